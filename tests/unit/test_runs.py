"""The run folder: atomic files, refusal of what is not ours."""

import errno
import json
import os
import re
import threading
from pathlib import Path

import pytest
import torch

from torchrec_mt import holding
from torchrec_mt.errors import UserError
from torchrec_mt.holding import LOCK
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
    (run.path / "checkpoints").mkdir()
    run.release()
    return run


def test_a_new_run_is_written_in_its_place(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "run")
    assert run.path == run.place == tmp_path / "run"
    assert RunFolder.open(run.path).config_json()["trainer"] == {"steps": 1}
    told = json.loads((run.path / "environment.json").read_text())
    assert told["versions"]["torch"].startswith("2.13")
    assert (told["accelerator"] is None) == (not torch.cuda.is_available())
    run.discard()
    assert (run.path / "checkpoints").is_dir()


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
    assert not (place / "checkpoints").exists()
    assert (place / "notes.txt").exists()


def test_the_place_is_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where names cannot be exchanged; also then nothing is lost where the second renaming fails."""
    place, renamed = earlier_run(tmp_path / "run").place, list[str]()
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: renamed.append(str(old)) or rename(old, new))
    again = RunFolder.create(place, overwrite=True)
    again.start(config(2))
    again.swap()
    assert not any(name in (str(place), str(again.path)) for name in renamed)
    again.release()

    monkeypatch.setattr("torchrec_mt.exchange._exchange", lambda one, other: False)
    third = RunFolder.create(place, overwrite=True)
    third.start(config(3))

    def failing(old: Path, new: Path) -> None:
        if old == third.path:
            raise OSError(errno.EACCES, "Permission denied")
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Permission denied"):
        third.swap()
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 2}
    monkeypatch.setattr(os, "rename", rename)
    third.swap()
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 3}
    assert list(tmp_path.iterdir()) == [place]


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


def test_a_run_that_is_trained_is_neither_gone_on_with_nor_replaced(tmp_path: Path) -> None:
    place = earlier_run(tmp_path / "run").place
    late = RunFolder.create(place, overwrite=True)
    late.start(config(2))
    running = RunFolder.open(place)
    running.hold()
    other = rf"'{re.escape(str(place))}' is being trained by process {os.getpid()} on host '.*' \(since .*\): wait"
    with pytest.raises(UserError, match=other):
        RunFolder.open(place).hold()
    with pytest.raises(UserError, match=other):
        RunFolder.create(place, overwrite=True)
    with pytest.raises(UserError, match=other):
        late.swap()
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 1}
    running.release()
    late.swap()
    with pytest.raises(UserError, match=other):
        RunFolder.open(place).hold()
    late.release()
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 2}
    assert not (place / LOCK).exists()


def test_a_run_that_was_killed_before_it_was_one_can_be_begun_again(tmp_path: Path) -> None:
    place = tmp_path / "run"
    killed = RunFolder.create(place)
    killed.path.mkdir()
    killed.hold()
    for left in ("", "{}", '{"versions": {}, "argv": [], "started": ""}'):
        (place / "environment.json").write_text(left) if left else (place / ".config.json.partial-7").touch()
        if left == "{}":
            with pytest.raises(UserError, match="is no run folder of ours"):
                RunFolder.create(place)
        else:
            assert RunFolder.create(place).path == place
    with pytest.raises(UserError, match="is being trained by process"):
        RunFolder.create(place).start(config(1))
    killed.release()
    earlier_run(place).release()
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 1}


def test_a_run_that_began_in_the_meantime_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "run"
    late = RunFolder.create(place)
    earlier_run(place)
    with pytest.raises(UserError, match="holds a run begun after this one: `--resume` it, or give"):
        late.start(config(2))
    late.release()
    assert RunFolder.open(place).config_json()["trainer"] == {"steps": 1}


def test_what_a_killed_process_left_locks_nothing(tmp_path: Path) -> None:
    place = earlier_run(tmp_path / "run").place
    (place / LOCK).write_text('{"half')
    run = RunFolder.open(place)
    run.hold()
    assert json.loads((place / LOCK).read_text())["process"] == os.getpid()
    run.release()
    assert not (place / LOCK).exists()


def test_another_try_of_the_same_job_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "shop")
    place = earlier_run(tmp_path / "run").place
    first, second = RunFolder.open(place), RunFolder.open(place)
    first.hold()
    threading.Timer(0.3, first.release).start()
    second.hold()
    second.release()
    first.hold()
    monkeypatch.setattr(holding, "PATIENCE_S", 0.1)
    with pytest.raises(UserError, match=r"\(job 'shop', since"):
        second.hold()
    first.release()


def test_one_that_has_just_ended_is_no_reason_to_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is gone between the asking and the reading of who it is."""
    run = earlier_run(tmp_path / "run")
    busy, locked = [True], holding._locked
    monkeypatch.setattr(holding, "_locked", lambda file: None if busy and busy.pop() else locked(file))
    run.hold()
    run.release()


def test_without_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    place = earlier_run(tmp_path / "run").place
    monkeypatch.setattr("fcntl.flock", none)
    run = RunFolder.open(place)
    run.hold()
    assert f"warning: '{place / LOCK}': no locks here" in capsys.readouterr().err
    assert holding.is_held(place), "nobody can tell, so nothing is removed"
    run.release()
