"""An experiment that is called again, after something has changed."""

import json
from pathlib import Path

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.compare import main
from torchrec_mt.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shared_root(tmp_path_factory)
    prepared_debug_shop(found)
    return found


def test_runs_of_a_config_file_that_was_edited_are_not_replaced(root: Path, tmp_path: Path) -> None:
    rates, grid = tmp_path / "rates.toml", tmp_path / "grid.toml"
    settings = [*debug_overrides(root), "trainer.steps=2", "trainer.validations=1"]
    grid.write_text(
        f"""
question = "Is it better?"
base = {[*FILES, str(rates)]}
output = "{tmp_path}/out"
reference = "plain"
seeds = [0]
metrics = ["recall@100"]
settings = {settings}

[methods.plain]

[methods.wide]
settings = ["model.hidden=32"]
"""
    )
    rates.write_text("optim.dense_rate = 0.01\n")
    assert main([str(grid), "--json", "--only", "plain"]) == 0
    rates.write_text("optim.dense_rate = 0.02\n")
    for arguments in ([], ["--only", "plain"]):
        with pytest.raises(UserError, match=r"out/plain/seed-0' holds a run of another config \(optim.dense_rate"):
            main([str(grid), "--json", *arguments])
    kept = json.loads((tmp_path / "out/plain/seed-0/config.json").read_text())
    assert kept["optim"]["dense_rate"] == 0.01
    rates.write_text("optim.dense_rate = 0.01\ntrainer.log_every = 1\n")
    assert main([str(grid), "--json"]) == 0, "how steps are carried out may change"
