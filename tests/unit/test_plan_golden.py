"""Plans of shipped configs as golden files: what the planner says today of five clusters, number by number."""

import json
from pathlib import Path
from typing import Any

import pytest

from torchrec_mt.plan import main

GOLDEN = Path("tests/golden/plans")
COUNTS = [  # of the demo's prepared dataset
    "plan.tables.tokens={ rows = 8545, lookups = 20.5 }",
    "plan.tables.product_id.rows=17653",
    "plan.tables.category.rows=61",
    "plan.tables.brand.rows=128",
]
CASES = {
    "demo-1x2-cpu": ([], "1x2xCPU"),
    "demo-1x1-h100": (["launch/overlays/gpu_1x1.toml"], "1x1xH100-80GB"),
    "demo-1x8-h100": (["launch/overlays/gpu_1x8.toml"], "1x8xH100-80GB"),
    "demo-2x8-h100": (["launch/overlays/gpu_2x8.toml"], "2x8xH100-80GB"),
    "billions-16x8-h100": (["launch/plans/billions.toml"], "16x8xH100-80GB"),
}


def plan(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    overlays, cluster = CASES[name]
    counts = [] if name.startswith("billions") else COUNTS
    overrides = [f"--set={one}" for one in (*counts, f"dataset.path={tmp_path}/nowhere")]
    assert main(["launch/demo.toml", *overlays, *overrides, "--cluster", cluster, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], update_golden: bool) -> None:
    found, file = plan(name, tmp_path, capsys), GOLDEN / f"{name}.json"
    if update_golden:
        output = ["--output", str(file)]
        overlays, cluster = CASES[name]
        counts = [] if name.startswith("billions") else COUNTS
        overrides = [f"--set={one}" for one in (*counts, f"dataset.path={tmp_path}/nowhere")]
        assert main(["launch/demo.toml", *overlays, *overrides, "--cluster", cluster, *output]) == 0
    same(found, json.loads(file.read_text()), name)
    lies_whole(found)


def same(found: Any, golden: Any, where: str) -> None:
    """Equal, floats to the ninth digit."""
    if isinstance(golden, dict):
        assert found.keys() == golden.keys(), where
        for key in golden:
            same(found[key], golden[key], f"{where}.{key}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), where
        for place, (one, other) in enumerate(zip(found, golden, strict=True)):
            same(one, other, f"{where}[{place}]")
    elif isinstance(golden, float):
        assert found == pytest.approx(golden, rel=1e-9), where
    else:
        assert found == golden, where


def lies_whole(found: dict[str, Any]) -> None:
    """Shards cover every table once; ranks add up; nothing is overfull."""
    for table in found["tables"]:
        covered = sum(rows * columns for _, _, _, rows, columns, _ in table["shards"])
        copies = len(found["ranks"]) if table["sharding_type"] == "data_parallel" else 1
        assert covered == copies * table["rows"] * table["dim"]
    for rank in found["ranks"]:
        held = sum(
            table["costs"][cost]["weights"]
            for table in found["tables"]
            for at, *_, cost in table["shards"]
            if at == rank["rank"]
        )
        assert held == rank["weights"]
        used = rank["weights"] + rank["sums"] + rank["buffers"] + rank["dense"]
        assert used + rank["reserved"] <= rank["capacity"] + 1
