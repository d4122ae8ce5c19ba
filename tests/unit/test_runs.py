"""The run folder: atomic files, refusal of what is not ours."""

import errno
import json
import os
from pathlib import Path

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.runs import RunFolder, write_atomic


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    write_atomic(file, "one")
    write_atomic(file, "two")
    assert file.read_text() == "two"
    assert [child.name for child in file.parent.iterdir()] == ["a.json"]


def test_a_folder_that_is_no_run_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no run folder of ours"):
        RunFolder.create(tmp_path)
    with pytest.raises(UserError, match=r"no run folder \(no config.json"):
        RunFolder.open(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def config(number: int) -> str:
    return json.dumps({"dataset": {"name": "a"}, "trainer": {"steps": number}, "optim": {}})


def earlier_run(path: Path) -> RunFolder:
    run = RunFolder.create(path)
    run.start(config(1))
    (run.path / "model").mkdir()
    return run


def test_a_new_run_is_written_in_its_place(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "run")
    assert run.path == run.place == tmp_path / "run"
    assert RunFolder.open(run.path).config_json()["trainer"] == {"steps": 1}
    assert json.loads((run.path / "environment.json").read_text())["versions"]["torch"].startswith("2.13")
    run.discard()
    assert (run.path / "model").is_dir()


def test_an_earlier_run_is_replaced_only_on_request_and_only_by_a_swap(tmp_path: Path) -> None:
    place = earlier_run(tmp_path / "run").place
    with pytest.raises(UserError, match="holds an earlier run: give another --output, or --overwrite"):
        RunFolder.create(place)
    again = RunFolder.create(place, overwrite=True)
    assert list(tmp_path.iterdir()) == [place], "nothing is written before start"
    again.start(config(2))
    assert again.path.parent == tmp_path
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 1}
    (place / "notes.txt").write_text("written while the new run trained")
    again.swap()
    assert list(tmp_path.iterdir()) == [place]
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 2}
    assert not (place / "model").exists()
    assert (place / "notes.txt").exists()


def test_a_discarded_run_leaves_nothing(tmp_path: Path) -> None:
    place = earlier_run(tmp_path / "run").place
    again = RunFolder.create(place, overwrite=True)
    again.start(config(2))
    again.discard()
    assert list(tmp_path.iterdir()) == [place]
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 1}


def test_a_swap_clears_what_killed_runs_left_but_not_what_runs(tmp_path: Path) -> None:
    place = earlier_run(tmp_path / "run").place
    (tmp_path / ".run.partial-killed").mkdir()
    (tmp_path / ".other.partial-killed").mkdir()
    first, second = (RunFolder.create(place, overwrite=True) for _ in range(2))
    first.start(config(2))
    second.start(config(3))
    second.swap()
    assert {child.name for child in tmp_path.iterdir()} == {"run", ".other.partial-killed", first.path.name}


def test_a_link_to_a_run_stays_a_link(tmp_path: Path) -> None:
    real = earlier_run(tmp_path / "disk/run").place
    link = tmp_path / "run"
    link.symlink_to(real)
    again = RunFolder.create(link, overwrite=True)
    again.start(config(2))
    again.swap()
    assert link.is_symlink()
    assert RunFolder.open(link).config_json()["trainer"] == {"steps": 2}


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_atomic(tmp_path / "a.json", "new")
    assert [(child.name, child.read_text()) for child in tmp_path.iterdir()] == [("a.json", "old")]
