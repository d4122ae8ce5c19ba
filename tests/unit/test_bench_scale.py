import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import bench_scale
from tests.benchmarks.bench_scale import SMOKE, Results, Sizes

SIZES = Sizes(batch=10, rows=(100, 1000), saved=1000, checkpoint_rows=1)

NAMES = {
    "scaling_2_ranks",
    "weak_scaling_2_ranks",
    "cost_growth_rows",
    "memory_over_expected",
    "peak_over_expected",
    "save_memory_over_expected",
    "staging_memory_over_expected",
    "save_over_dd",
    "load_over_dd",
    "load_over_dd_cached",
    "save_stall_steps",
    "save_stall_steps_first",
    "save_slower_steps",
}


def results() -> Results:
    def step(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "phases": {"towers": 1000 * seconds}}

    one = {10: step(1.0), 20: step(3.0)}
    return Results(
        ranks={
            "table_wise": {1: one, 2: {10: step(0.5), 20: step(2.0)}},  # strong 2 and 1.5, weak 10 / 10
            "row_wise": {1: one, 2: {10: step(1.25), 20: step(2.5)}},  # strong 0.8 and 1.2, weak 8 / 10
        },
        rows={
            100: {**step(2.0), "expected": 100, "built": 107, "trained": 110, "peak": 120},
            1000: {
                **step(2.5),
                "expected": 1000,
                "built": 1010,
                "trained": 1020,
                "peak": 1300,
                "save": 50,
                "staging": 1000,
            },
        },
        checkpoints={
            "save": 2.0,
            "dd": 3.0,
            "load": 0.5,
            "dd, reading": 0.25,
            "load, cached": 0.2,
            "dd, reading, cached": 0.14,
            "blocked": 0.1,
        },
        save={
            "usual": [0.1, 0.1, 0.2, 0.1],
            "blocked": [1.0, 0.1, 0.1, 0.2],
            "first": [0.0, 0.1, 0.1, 0.2],  # with it, in steps 10; 2, 1, 4
            "waited": [0.0, 0.1, 0.0, 0.1],
            "slower": [0.0, 0.2, 0.1, 0.1],  # with it, 10; 3, 1, 3
            "writing": [1.0, 1.0, 1.0, 1.0],
        },
    )


def test_the_ratios_are_those_of_the_figures() -> None:
    assert bench_scale.ratios(results(), SIZES) == {
        "scaling_2_ranks": 0.8,
        "weak_scaling_2_ranks": 0.8,
        "cost_growth_rows": 1.25,
        "memory_over_expected": 1.07,
        "peak_over_expected": 1.3,
        "save_memory_over_expected": 0.05,
        "staging_memory_over_expected": 1.0,
        "save_over_dd": 1.5,
        "load_over_dd": 0.5,
        "load_over_dd_cached": 0.7,
        "save_stall_steps": 2.0,
        "save_stall_steps_first": 10.0,
        "save_slower_steps": 3.0,
    }


def test_the_tables_name_every_layout_table_and_save(capsys: pytest.CaptureFixture[str]) -> None:
    bench_scale.show(results(), SIZES)
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["row_wise", "10", "2", "8", "0.80", "1250.0"] in cells
    assert ["100", "2000.0", "2000.0", "0", "0", "0", "0"] in cells
    assert ["2", "100", "100", "100", "100", "200", "1,000", "2.00", "3.00"] in cells
    assert ["dd,", "reading", "0.25", "0.00"] in cells


@pytest.mark.slow
@pytest.mark.timeout(900)  # some ten processes, each of which imports torch
def test_on_tiny_sizes_the_last_line_is_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_scale", str(tmp_path), "--smoke"])
    bench_scale.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line.keys() == NAMES
    assert line["scaling_2_ranks"] > 0
    assert line["cost_growth_rows"] >= 1
    assert list(tmp_path.iterdir()) == []  # what was measured on is gone
    assert SMOKE.saved in SMOKE.rows
