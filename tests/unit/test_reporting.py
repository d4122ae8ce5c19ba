"""What a person sees: nothing squeezed away in 80 columns, columns that stand below each other, no stray blanks."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from torchrec_mt.reporting import terminal
from torchrec_mt.reporting.dataset import dataset_tables
from torchrec_mt.reporting.table import decimals, evaluation_tables, metric_title
from torchrec_mt.reporting.terminal import TrainingProgress, duration, name_widths, waiting_share

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
    times = {"ms/data": 99.0, "ms/loss": 1.0}
    progress.step(12_345, 123_456, losses | times | {"pairs_per_second": 123_456.7})
    lines = rendered(progress._bar.get_renderable(), screen.width)
    for part in ("train ━", " 12345/123456 0:00:00 ", " 123,457 pairs/s  waiting 99%"):
        assert part in lines[0]
    for task in TASKS[:number]:
        assert f"{task} 12.346" in "\n".join(lines[1:])
    assert max(map(len, lines)) <= screen.width - 3, "a ^C that the terminal echoes would wrap"


def lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, int]], *, total: int = 100, enabled: bool = True
) -> list[str]:
    """What is said of steps at these seconds."""
    plain = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr(terminal, "progress_console", lambda: plain)
    clock = iter(seconds for seconds, _ in steps)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with TrainingProgress(enabled=enabled) as progress:
        for _, step in steps:
            values = {"loss/search": 4.1234, "loss/[alike]": 3.0, "pairs_per_second": 1234.4}
            progress.step(step, total, values | {"ms/data": 1.0, "ms/loss": 3.0})
    return plain.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_without_a_terminal_there_is_one_plain_line_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(1000.0, 1), (1020.0, 21), (1029.0, 30), (1030.0, 41), (1059.0, 60), (1061.0, 81), (1062.0, 100)]
    lines = lines_without_a_terminal(monkeypatch, steps)
    said = "  1,234 pairs/s  waiting 25%  loss search 4.123  [alike] 3.000"
    assert lines == [
        f"step 1/100{said}",
        f"step 41/100{said}  0:00:44 left",  # 40 steps took 30 s, 59 are left
        f"step 81/100{said}  0:00:14 left",
        f"step 100/100{said}  0:00:00 left",
    ]


def test_the_last_step_is_told_of_a_training_that_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_without_a_terminal(monkeypatch, [(0.0, 1), (1.0, 2), (2.0, 3)])
    assert [line.split()[1] for line in lines] == ["1/100", "3/100"]
    assert lines_without_a_terminal(monkeypatch, [(0.0, 1), (1.0, 2)], enabled=False) == []
    assert len(lines_without_a_terminal(monkeypatch, [(0.0, 50)])) == 1, "nothing twice"


def test_waiting_is_that_of_the_rank_that_waits_longest() -> None:
    assert waiting_share({"ms/data": 1.0, "ms/loss": 3.0, "loss/data": 9.0}) == 0.25
    assert waiting_share({"ms/data": 1.0, "ms/loss": 3.0, "ms_max/data": 2.0, "ms_max/loss": 3.0}) == 0.5
    assert waiting_share({"pairs_per_second": 3.0}) == 0.0
    assert [duration(seconds) for seconds in (0.4, 59.6, 3723, 360_000)] == [
        "0:00:00",
        "0:01:00",
        "1:02:03",
        "100:00:00",
    ]


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


SCORES: dict[str, float | None] = {"popularity": 0.01, "co_occurrence_cosine": 0.47, "model": 0.48, "oracle": 1.0}


def judgement(p_holm: float | None, **scores: float | None) -> dict[str, Any]:
    """An evaluation of one task as JSON, every metric of a system the same."""
    metrics = ["recall@10", "recall@100", "ndcg@10", "mrr@10"]
    values = SCORES | scores
    systems = {name: dict.fromkeys(metrics, value) for name, value in values.items()}
    bounds = {name: None if value is None else [value - 0.012, value + 0.012] for name, value in values.items()}
    part = {
        "num_anchors": 1_234,
        "systems": systems,
        "intervals": {name: dict.fromkeys(metrics, bound or [None, None]) for name, bound in bounds.items()},
    }
    rivals = {name: {metric: {"p_holm": p_holm} for metric in metrics} for name in values if name != "model"}
    slices = {
        "anchor_popularity": {"head": part},
        "target_product_category_of_some_length": {"a very long value of a category": part},
        "target_product_size": {"XL": part},
    }
    task = {**part, "num_without_positives": 5, "comparisons": rivals, "slices": slices}
    empty = {
        "num_anchors": 0,
        "num_without_positives": 0,
        "systems": {},
        "intervals": {},
        "comparisons": {},
        "slices": {},
    }
    terms = {"split": "test", "model": "best", "max_anchors": 0, "baselines": ["oracle"], "main_metrics": metrics}
    return {**terms, "slices": ["category_of_some_length"], "tasks": {"complement": task, "none": empty}}


def test_an_evaluation_fits_and_marks_what_the_model_does_not_differ_from() -> None:
    lines = rendered(evaluation_tables(judgement(0.06)), 80)
    assert max(map(len, lines)) <= 80
    assert [line[:45].rstrip() for line in lines if "…" in line] == ["  target product_categor…: a very long value…"]
    rows = {line.split()[0]: line for line in reversed(lines) if line.startswith("  ")}
    assert list(reversed(rows)) == ["popularity", "co_occurrence_cosine", "model", "oracle", "anchor", "target"]
    assert rows["model"].split()[1:3] == [".4800", "±.012"]
    assert rows["co_occurrence_cosine"].split()[1] == ".4700≈±.012"
    assert rows["model"].split()[-1] == "48%"
    assert "complement: 5 anchors without a right answer are left out" in lines
    slices = lines[lines.index("Recall@100 by slice") :]
    assert slices[3] == "complement beside co_occurrence_cosine"
    assert slices[4].split() == ["anchor", "popularity:", "head", "1,234", ".4800", "±.012", ".4700", "±.012"]
    assert not [line for line in slices if "size" in line], "a column that nobody asked for"


def test_an_evaluation_says_nothing_of_what_differs_and_dashes_what_is_no_number() -> None:
    lines = rendered(evaluation_tables(judgement(0.04)), 80)
    assert "≈" not in "".join(line for line in lines if "±" in line and line.startswith("  "))
    lines = rendered(evaluation_tables(judgement(None, **dict.fromkeys(SCORES))), 80)
    assert next(line for line in lines if line.startswith("  model")).split() == ["model", *["-"] * 5]


def test_numbers_and_names_as_a_reader_writes_them() -> None:
    assert [decimals(value) for value in (0.48051, -0.5, 0.99999, None)] == [".4805", "-.5000", "1.000", "-"]
    assert [metric_title(name) for name in ("recall@10", "hit_rate@5", "ndcg@10")] == [
        "Recall@10",
        "Hit rate@5",
        "NDCG@10",
    ]
