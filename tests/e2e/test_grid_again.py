"""An experiment that is called again, after something has changed."""

import json
from pathlib import Path

import pytest

from tests.shop import prepared_debug_shop, shared_root
from tests.small_grid import written_grid
from torchrec_mt.compare import main
from torchrec_mt.errors import CannotWriteError, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shared_root(tmp_path_factory)
    prepared_debug_shop(found)
    return found


PLAIN_WIDE = """
[methods.plain]

[methods.wide]
settings = ["model.hidden=32"]
"""


def written(root: Path, folder: Path, *files: Path) -> str:
    return written_grid(root, folder, PLAIN_WIDE, "trainer.steps=2", reference="plain", files=files)


def test_runs_of_a_config_file_that_was_edited_are_not_replaced(root: Path, tmp_path: Path) -> None:
    rates = tmp_path / "rates.toml"
    grid = written(root, tmp_path, rates)
    rates.write_text("optim.dense_rate = 0.01\n")
    assert main([grid, "--json", "--only", "plain"]) == 0
    rates.write_text("optim.dense_rate = 0.02\n")
    for arguments in ([], ["--only", "plain"]):
        with pytest.raises(UserError, match=r"out/plain/seed-0' holds a run of another config \(optim.dense_rate"):
            main([grid, "--json", *arguments])
    kept = json.loads((tmp_path / "out/plain/seed-0/config.json").read_text())
    assert kept["optim"]["dense_rate"] == 0.01
    rates.write_text("optim.dense_rate = 0.01\ntrainer.log_every = 1\n")
    assert main([grid, "--json"]) == 0, "how steps are carried out may change"


def test_a_cell_that_fails_with_brackets_is_told_as_it_is(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libraries write the place in their source, which looks like markup."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("[/pytorch/alloc.cpp:1] not enough memory [enforce fail]")

    monkeypatch.setattr("torchrec_mt.workflows.grid.train_here", fails)
    assert main([written(root, tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.err.count("failed: [/pytorch/alloc.cpp:1] not enough memory [enforce fail]") == 2
    assert "[enforce fail]" in told.out


def test_a_full_disk_ends_the_experiment(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell after it could keep anything either."""
    tried = []

    def full(*_: object, **__: object) -> None:
        tried.append(1)
        raise CannotWriteError("no room")

    monkeypatch.setattr("torchrec_mt.workflows.grid.train_here", full)
    with pytest.raises(CannotWriteError, match="no room"):
        main([written(root, tmp_path)])
    assert len(tried) == 1
