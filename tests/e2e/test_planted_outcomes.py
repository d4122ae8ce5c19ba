"""Planted shops: what must come of sharing comes of the shipped experiments, with their three seeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from torchrec_mt.compare import main
from torchrec_mt.config import load_config
from torchrec_mt.prepare import prepare_dataset
from torchrec_mt.workflows.grid_config import load_grid

MARGIN = 0.02
"""Recall@100 that counts for nothing: where "nothing is lost", the whole interval lies above minus this."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def outcome(capsys: pytest.CaptureFixture[str], root: Path, name: str, *only: str) -> dict[str, Any]:
    """A shipped experiment run as it stands, but for where its files lie: its results."""
    file = Path(f"launch/grids/{name}.toml")
    grid, data = load_grid(str(file)), root / name / "data"
    prepare_dataset(load_config(grid.base, [f"dataset.path={data}"]))
    text = file.read_text().replace(f'output = "{grid.output}"', f'output = "{root / name}"')
    lines = [line for line in text.splitlines() if not line.startswith('settings = ["model.dim=8"')]
    lines.insert(
        lines.index('reference = "twins"'), f"settings = {json.dumps([*grid.settings, f'dataset.path={data}'])}"
    )
    (root / f"{name}.toml").write_text("\n".join(lines) + "\n")
    chosen = [part for method in only for part in ("--only", method)]
    capsys.readouterr()
    assert main([str(root / f"{name}.toml"), "--json", *chosen]) == 0
    return json.loads(capsys.readouterr().out)


def beside_twins(results: dict[str, Any], method: str) -> dict[str, dict[str, float]]:
    """By task: difference of Recall@100 from the twins', its interval, p after Holm's correction."""
    return {
        task: found[method]["metrics"]["recall@100"]["beside_reference"] for task, found in results["tasks"].items()
    }


def test_tasks_that_want_the_same_learn_from_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task, found in beside_twins(outcome(capsys, tmp_path, "planted_synergy"), "unified").items():
        assert found["p_holm"] < 0.05, task
        assert found["low"] > 0.1, task


def test_unrelated_tasks_lose_nothing_in_a_table_wide_enough_for_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, found in beside_twins(outcome(capsys, tmp_path, "planted_unrelated"), "unified").items():
        assert found["low"] > -MARGIN, task


def test_in_a_table_too_narrow_for_both_room_helps_and_weights_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = outcome(
        capsys, tmp_path, "planted_conflict", "unified", "twins", "pcgrad", "upgrad", "mgda", "single", "stem", "wide"
    )
    for task in results["tasks"]:
        found = {method: beside_twins(results, method)[task] for method in results["tasks"][task] if method != "twins"}
        assert all(found[method]["high"] < -0.2 for method in ("unified", "pcgrad", "upgrad", "mgda")), (task, found)
        assert found["single"]["low"] > -MARGIN, "two models in one are two models"
        assert all(found[method]["low"] > -0.1 for method in ("stem", "wide")), (task, found)
        assert found["upgrad"]["difference"] == pytest.approx(found["pcgrad"]["difference"], abs=0.005)
