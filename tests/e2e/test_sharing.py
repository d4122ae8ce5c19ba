"""Every architecture through the programs, on the debug shop, and a run on what was mined."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.indexes import main as indexes
from torchrec_mt.mine import main as mine
from torchrec_mt.plan import main as plan
from torchrec_mt.train import main as train

TASKS = ("search", "similar", "complement")
KINDS: dict[str, tuple[str, bool]] = {
    "lhuc": ('{kind = "conditioned", lhuc = true}', False),
    "shared_bottom": ('{kind = "shared_bottom"}', False),
    "mmoe": ('{kind = "mmoe", candidate_side = true}', True),
    "ple": ('{kind = "ple", levels = 2}', False),
    "adatt": ('{kind = "adatt"}', False),
    "stem": ('{kind = "stem"}', True),
    "single": ('{kind = "single"}', True),
}
"""The choice as TOML, and whether candidates have a vector per task."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


def arguments(root: Path, *overrides: str) -> list[str]:
    short = ("trainer.steps=8", "trainer.validations=1", "evaluate.baselines=['popularity']", "evaluate.max_anchors=60")
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *short, *overrides])]


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", KINDS)
def test_programs_know_the_architecture(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (kind, per_task), run = KINDS[name], tmp_path / "run"
    chosen = f"model.sharing={kind}"
    assert train([*arguments(root, chosen), "--output", str(run), "--json"]) == 0
    assert told(capsys)["steps"] == 8
    size = json.loads((run / "model.json").read_text())
    assert size["sharing"] in kind
    assert size["flops_per_pair"].keys() == {*TASKS}
    plans = [json.loads((run / "plan.json").read_text())]
    assert plan([*arguments(root, chosen), "--cluster", "1x1xCPU", "--json"]) == 0
    plans.append(told(capsys))
    for one in plans:
        assert {table["name"]: table["rows"] * table["dim"] for table in one["tables"]} == {
            table: about["rows"] * about["dim"] for table, about in size["tables"].items()
        }
    assert evaluate([str(run), "--json"]) == 0
    judged = told(capsys)["tasks"]
    for task in TASKS:
        assert judged[task]["systems"]["model"]["recall@100"] > 0
    samples = json.loads(next((run / "evaluation").glob("samples*.json")).read_text())
    assert set(samples["cosines"]) == {*TASKS}
    assert mine([str(run), "--depth", "400", "--per-anchor", "3", "--margin", "0", "--json"]) == 0
    mined = told(capsys)["tasks"]
    assert all(mined[task]["negatives"] > 0 for task in TASKS)
    assert indexes([str(run), "--json"]) == 0
    spaces = told(capsys)["entities"]
    assert list(spaces) == ([f"product@{task}" for task in TASKS] if per_task else ["product"])
    assert [task for space in spaces.values() for task in space["anchors"]] == [*TASKS]
    again = f'negatives.tasks.search=[{{kind = "in_batch"}}, {{kind = "mined", count = 2, path = "{run}/mined"}}]'
    assert train([*arguments(root, chosen, again), "--output", str(tmp_path / "again")]) == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.sharing.kind=moe", "'model.sharing' has kind = 'moe': choose one of 'conditioned', 'shared_bottom'"),
        ("model.sharing={kind = 'single', candidate_side = true}", "unknown key 'model.sharing.candidate_side'"),
        ("model.sharing={kind = 'ple', levels = 0}", "model.sharing.levels = 0: must be at least 1 and at most 16"),
        ("model.sharing={kind = 'mmoe', experts = 2.5}", "'model.sharing.experts' = 2.5"),
        ("model.match_parameters=900", "model.match_parameters = 900: with sharing 'conditioned' and model.dim = 64"),
    ],
)
def test_bad_choices_are_refused_in_one_message(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    command = [*arguments(root, override), "--output", str(tmp_path / "run")]
    assert exit_code_of(lambda: train(command)) == 2
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()
