"""What a person sees: nothing squeezed away in 80 columns, columns that stand below each other, no stray blanks."""

import io
from typing import Any

import pytest
from rich.console import Console

from torchrec_mt.reporting import terminal
from torchrec_mt.reporting.dataset import dataset_tables
from torchrec_mt.reporting.terminal import TrainingProgress, name_widths

TASKS = ["search", "similar", "complement", "personal", "complement_across_departments"]


@pytest.fixture(params=[80, 120])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    made = Console(file=io.StringIO(), force_terminal=True, width=request.param, height=40, color_system=None)
    monkeypatch.setattr(terminal, "progress_console", lambda: made)
    return made


def rendered(part: Any, width: int) -> list[str]:
    plain = Console(file=io.StringIO(), width=width)
    plain.print(part)
    return plain.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", range(1, 6))
def test_step_count_time_rate_and_all_losses_are_seen(screen: Console, number: int) -> None:
    progress = TrainingProgress()
    losses = {f"loss/{task}": 12.3456 for task in TASKS[:number]}
    progress.step(12_345, 123_456, losses | {"pairs_per_second": 123_456.7})
    lines = rendered(progress._bar.get_renderable(), screen.width)
    for part in ("train ━", " 12345/123456 0:00:00 ", " 123,457 pairs/s"):
        assert part in lines[0]
    for task in TASKS[:number]:
        assert f"{task} 12.346" in "\n".join(lines[1:])
    assert max(map(len, lines)) <= screen.width - 3, "a ^C that the terminal echoes would wrap"


def test_validations_stand_below_each_other_and_mark_the_best(screen: Console) -> None:
    progress = TrainingProgress()
    for step, chosen in ((100, 0.5), (200, 0.4), (12_300, 0.6)):
        values = {f"{task}/recall@100": 0.25 for task in TASKS} | {f"{task}/mrr@10": 0.1 for task in TASKS}
        progress.validation(step, values | {"chosen": chosen})
    _, names, *rows = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, rows)) <= screen.width
    assert [row.endswith(" best") for row in rows] == [True, False, True]
    assert {row.removesuffix(" best").rindex("0.") for row in rows} == {names.rindex("chosen")}
    assert all(row.count("0.2500") == len(TASKS) and "0.1000" not in row for row in rows)


def test_only_long_names_are_shortened() -> None:
    assert name_widths(["search", "complement"], 80) == [8, 10]
    assert name_widths(["search", "x" * 90], 80)[0] == 8
    assert name_widths(["a" * 20] * 9, 80) == [8] * 9


def manifest(**notes: float) -> dict[str, Any]:
    task = {
        "anchor": "product",
        "candidate": "product",
        "pairs": {"train": 7_643, "valid": 9, "test": 8},
        "rejected": {},
        "notes": notes,
    }
    return {
        "entities": {"product": {"count": 2_000, "cold": 3, "features": {"title": {"truncated": 2}}}},
        "tasks": {"complement": task},
        "tables": {"words": 5_000},
    }


def test_a_summary_has_no_empty_table_no_wrapped_title_and_no_stray_blanks() -> None:
    lines = [line for part in dataset_tables(manifest()) for line in rendered(part, 80)]
    titles = [line for line in lines if line and not line[0].isspace() and "  " not in line]
    assert titles == ["entities", "pairs", "embedding tables"]
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("chance", "share", "warns"), [(764, "10%", False), (7_643, "100%", True), (8_935, "117%", True)]
)
def test_the_permutation_check_warns_where_chance_finds_as_much(chance: int, share: str, warns: bool) -> None:
    parts = dataset_tables(manifest(real_pairs=7_643, permuted_pairs=chance))
    lines = [line for part in parts for line in rendered(part, 200)]
    assert f"complement  7,643  {chance:>9,}  {share:>5}" in lines
    assert any(line.startswith("warning: complement:") for line in lines) == warns
    assert "left out" not in lines


def test_what_was_left_out_is_told_by_reason() -> None:
    raw = manifest(unknown_in_negatives=4, named_negatives=17)
    raw["tasks"]["complement"]["rejected"] = {"unknown item": 1_200}
    lines = [line for part in dataset_tables(raw) for line in rendered(part, 80)]
    assert lines[lines.index("left out") + 2 :][:2] == [
        "complement  unknown item          1,200",
        "complement  unknown in negatives      4",
    ]
    assert lines[lines.index("notes") + 2] == "complement  named negatives  17"
