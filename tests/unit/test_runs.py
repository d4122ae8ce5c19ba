"""The run folder: atomic files, refusal of what is not ours, one log to two places."""

import errno
import json
import os
from pathlib import Path

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.runs import MetricsLog, RunFolder, write_atomic


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
    return run


def test_a_new_run_is_written_in_its_place(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "run")
    assert run.path == run.place == tmp_path / "run"
    assert RunFolder.open(run.path).config_json()["trainer"] == {"steps": 1}
    assert json.loads((run.path / "environment.json").read_text())["versions"]["torch"].startswith("2.13")
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


def test_metrics_go_to_jsonl_and_tensorboard(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.start("{}")
    log = MetricsLog(run)
    log.write(3, "train", {"loss/find": 0.5})
    log.close()
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"step": 3, "kind": "train", "loss/find": 0.5}
    assert list((run.path / "tensorboard").glob("events.*"))
    log.open(run.path)
    log.write(4, "train", {"loss/find": 0.25})
    log.close()
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 2


def logged(log: MetricsLog, *steps: int, loss: float) -> None:
    for step in steps:
        log.write(step, "train", {"loss/find": loss})
    log.close()


def scalars(path: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows of the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(path / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars("train/loss/find")]


def lines_of(path: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss/find"]) for line in lines]


def test_a_resumed_log_drops_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.start("{}")
    logged(MetricsLog(run), 1, 2, 3, 4, loss=0.5)
    before = (run.path / "metrics.jsonl").read_text().splitlines()
    logged(MetricsLog(run, after=2), 3, 5, loss=0.25)
    assert (run.path / "metrics.jsonl").read_text().splitlines()[:2] == before[:2]
    wanted = [(1, 0.5), (2, 0.5), (3, 0.25), (5, 0.25)]
    assert lines_of(run.path) == scalars(run.path) == wanted
    logged(MetricsLog(run, after=0), 1, loss=0.125)
    assert lines_of(run.path) == scalars(run.path) == [(1, 0.125)]


def test_a_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.start("{}")
    logged(MetricsLog(run), 1, 2, loss=0.5)
    whole = (run.path / "metrics.jsonl").read_bytes()
    for cut in range(1, len(whole)):  # after a kill -9 any part of it may be there
        (run.path / "metrics.jsonl").write_bytes(whole[:cut])
        MetricsLog(run, after=9).close()
        assert (run.path / "metrics.jsonl").read_bytes() == whole[: whole.rfind(b"\n", 0, cut) + 1]
    for tail in (b"\0" * 70, "à".encode()[:1]):
        (run.path / "metrics.jsonl").write_bytes(whole + tail)
        logged(MetricsLog(run, after=9), 10, loss=0.25)
        assert lines_of(run.path) == [(1, 0.5), (2, 0.5), (10, 0.25)]


@pytest.mark.parametrize("damage", [b'{"step": 1, "ki', b"[]", b'{"kind": "train"}', b"\xff"])
def test_damage_before_the_last_line_is_named_and_left_as_it_is(tmp_path: Path, damage: bytes) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.start("{}")
    (run.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl' line 2 is damaged .*remove that line"):
        MetricsLog(run, after=1)
    assert damage in (run.path / "metrics.jsonl").read_bytes()
