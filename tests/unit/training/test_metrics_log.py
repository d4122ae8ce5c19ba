"""One log to two places, and what a resumed run makes of it."""

import json
from pathlib import Path

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.runs import RunFolder
from torchrec_mt.training.metrics_log import MetricsLog


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
