"""Trackers: what MLflow is told, that a resumed run goes on in the same place, and that no tracker harms a training."""

import http.server
import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.runs import RunFolder
from torchrec_mt.training import tracking
from torchrec_mt.training.mlflow_run import Line, allowed_name, flattened
from torchrec_mt.training.tracking import MlflowTracking, NoTracking, Tracker, check_tracking, tracked

CONFIG = {"optim": {"table_rate": 0.05}, "loss": {"tasks": {}, "kind": "softmax"}, "model": {"sizes": [1, 2]}}
TAGS = {"dataset_digest": "abc", "version.torch": "2.13.0"}
PLACE = {"kind": "mlflow", "uri": "file:/there", "experiment": "e"}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses; and what is set for MLflow does not outlive a test."""
    monkeypatch.setattr(tracking, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "shop")
    made.start(json.dumps({"dataset": {}, "trainer": {}, "optim": {}}))
    made.release()
    return made


class Notebook:
    """A service that writes down what it is told, and fails as often as it is asked to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.asked = failures, 0
        self.begun: list[str] = []
        self.lines: list[Line] = []
        self.status: str | None = None

    def _answer(self) -> None:
        self.asked += 1
        if self.asked <= self.failures:
            raise RuntimeError("no such luck\nand a long story")

    def begin(self, run_id: str | None) -> str:
        self._answer()
        self.begun.append(run_id or "new")
        return run_id or "id-1"

    def send(self, run_id: str, lines: Sequence[Line]) -> None:
        self._answer()
        self.lines += lines

    def end(self, run_id: str, status: str) -> None:
        self._answer()
        self.status = status


def written(run: RunFolder, service: Notebook, steps: int, **place: str) -> float:
    """Writes steps into a service. Returns the longest time that a step had to wait."""
    tracker, longest = Tracker(service, run, PLACE | place), 0.0
    for step in range(steps):
        start = time.perf_counter()
        tracker.write(step, "train", {"loss/find": step / 2})
        longest = max(longest, time.perf_counter() - start)
    tracker.close("FINISHED")
    return longest


def test_lines_come_in_order_and_the_id_is_kept(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    service = Notebook()
    written(run, service, 120)
    assert [line.step for line in service.lines] == list(range(120))
    assert service.lines[3].values == {"loss/find": 1.5}
    assert service.status == "FINISHED"
    assert json.loads((run.path / "tracking.json").read_text()) == {**PLACE, "run_id": "id-1"}
    assert capsys.readouterr().err == ""


def test_a_resumed_run_goes_on_in_the_same_place_only(run: RunFolder) -> None:
    written(run, Notebook(), 1)
    again, elsewhere = Notebook(), Notebook()
    written(run, again, 1)
    written(run, elsewhere, 1, experiment="another")
    assert (again.begun, elsewhere.begun) == (["id-1"], ["new"])


def test_what_a_tracker_missed_is_sent_when_it_answers(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    service = Notebook(failures=4)
    tracker = Tracker(service, run, PLACE)
    for step in range(200):
        tracker.write(step, "train", {"loss/find": 1.0})
    limit = time.monotonic() + 20
    while len(service.lines) < 200 and time.monotonic() < limit:
        time.sleep(0.01)
    tracker.close("FAILED")
    assert [line.step for line in service.lines] == list(range(200))
    assert service.status == "FAILED"
    assert capsys.readouterr().err == (
        "warning: mlflow at 'file:/there' fails (RuntimeError: no such luck): training goes on; metrics.jsonl has all "
        "numbers\n"
    )


def test_of_what_a_dead_tracker_misses_the_newest_is_kept(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(Notebook(failures=10**9), run, PLACE)
    for step in range(5000):
        tracker.write(step, "train", {})
    assert len(tracker._lines) <= 2000
    assert tracker._lines[-1].step == 4999
    tracker.close("FINISHED")
    assert not (run.path / "tracking.json").exists()


def test_a_tracker_that_hangs_holds_up_nothing_but_the_end(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_AT_THE_END", 0.2)
    free = threading.Event()

    class Hangs(Notebook):
        def send(self, run_id: str, lines: Sequence[Line]) -> None:
            free.wait()

    start = time.perf_counter()
    assert written(run, Hangs(), 50) < 1
    assert time.perf_counter() - start < 5
    free.set()


def test_the_id_moves_with_the_run_folder(tmp_path: Path, run: RunFolder) -> None:
    again = RunFolder.create(run.place, overwrite=True)
    again.start("{}")
    service = Notebook(failures=1)
    tracker = Tracker(service, again, PLACE)
    again.swap()
    again.path = again.place
    tracker.write(1, "train", {})
    tracker.close("FINISHED")
    assert [child.name for child in tmp_path.iterdir()] == ["shop"], "nothing where the run folder was"
    assert (run.place / "tracking.json").exists() == bool(service.begun)


def send_to_mlflow(run: RunFolder, uri: str, lines: Mapping[int, float], error: BaseException | None = None) -> None:
    config = MlflowTracking(uri=uri, experiment="shop tests")
    with tracked(config, run, json.dumps(CONFIG), TAGS, enabled=True) as track:
        for step, value in lines.items():
            track(step, "valid", {"find/recall@10": value, "slowest/data": 3})
        if error:
            raise error


def test_mlflow_holds_settings_numbers_tags_and_goes_on_when_resumed(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file:{tmp_path}/mlflow"
    with pytest.raises(KeyboardInterrupt):
        send_to_mlflow(run, uri, {1: 0.25, 2: 0.5}, KeyboardInterrupt())
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run_id = json.loads((run.path / "tracking.json").read_text())["run_id"]
    found = client.get_run(run_id)
    assert found.data.params == flattened(CONFIG)
    assert found.data.tags.items() >= TAGS.items()
    assert (found.info.status, found.info.run_name) == ("KILLED", "shop")
    assert client.get_experiment(found.info.experiment_id).name == "shop tests"

    send_to_mlflow(run, uri, {2: 0.625, 3: 0.75})  # resumed at step 1: MLflow takes nothing back
    history = client.get_metric_history(run_id, "valid/find/recall_at_10")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5), (2, 0.625), (3, 0.75)]
    assert abs(history[-1].timestamp / 1000 - time.time()) < 60
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.metrics["valid/slowest/data"] == 3
    assert len(client.search_runs([found.info.experiment_id])) == 1
    assert capsys.readouterr() == ("", "")


def test_an_error_of_the_training_ends_the_run_as_failed(run: RunFolder, tmp_path: Path) -> None:
    uri = f"file:{tmp_path}/mlflow"
    with pytest.raises(UserError, match="no finite number"):
        send_to_mlflow(run, uri, {1: 0.25}, UserError("no finite number"))
    from mlflow import MlflowClient

    run_id = json.loads((run.path / "tracking.json").read_text())["run_id"]
    assert MlflowClient(tracking_uri=uri).get_run(run_id).info.status == "FAILED"


@contextmanager
def server(answer: str) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that answers 500, drops the connection, or answers what is no JSON. Its address, and requests."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if answer == "drop":
                self.connection.close()
                return
            self.send_response(500 if answer == "500" else 200)
            self.end_headers()
            self.wfile.write(b"<html>oh")

        do_POST = do_GET

        def finish(self) -> None:
            if answer != "drop":
                super().finish()

        def log_message(self, *arguments: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}", requests
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("answer", ["500", "drop", "no json"])
def test_a_server_that_fails_is_told_of_once_and_training_goes_on(
    run: RunFolder, answer: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        server(answer) as (uri, requests),
        tracked(MlflowTracking(uri=uri), run, json.dumps(CONFIG), TAGS, enabled=True) as track,
    ):
        limit = time.monotonic() + 60
        step = 0
        while len(requests) < 4 and time.monotonic() < limit:
            step += 1
            track(step, "train", {"loss/find": 1.0})
            time.sleep(0.01)
    assert len(requests) >= 4, "it is asked again"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"warning: mlflow at '{uri}' fails (" in err
    assert not caplog.records
    assert not (run.path / "tracking.json").exists()


def test_nobody_listening_delays_no_end(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    send_to_mlflow(run, "http://127.0.0.1:9", {1: 0.5})
    assert capsys.readouterr().err.startswith("warning: mlflow at 'http://127.0.0.1:9' fails (MlflowException: ")


def test_ranks_that_do_not_speak_and_runs_without_a_tracker_start_nothing(run: RunFolder) -> None:
    for config, enabled in ((NoTracking(), True), (MlflowTracking(uri="http://nowhere"), False)):
        with tracked(config, run, "{}", {}, enabled=enabled) as track:
            track(1, "train", {"loss/find": 1.0})
    assert "tracker" not in [thread.name for thread in threading.enumerate()]


def test_a_missing_package_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracking(MlflowTracking(uri="http://here"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_tracking(NoTracking())
    with pytest.raises(UserError, match=r"mlflow is not installed: pip install 'torchrec-mt\[mlflow\]'"):
        check_tracking(MlflowTracking(uri="http://here"))


@pytest.mark.parametrize("uri", ["", "sqlite:///a.db", "mlruns", "http://", "http://[", "file:", "databricks"])
def test_places_that_are_none_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="must be http://HOST, https://HOST or file:/PATH"):
        MlflowTracking(uri=uri)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_USERNAME") as refused:
        MlflowTracking(uri="https://me:secret@mlflow.example")
    assert "secret" not in str(refused.value)


def test_a_config_becomes_flat_parameters() -> None:
    assert flattened(CONFIG | {"a/b": None, "ä": "x" * 9000}) == {
        "optim.table_rate": "0.05",
        "loss.tasks": "{}",
        "loss.kind": "softmax",
        "model.sizes": "[1, 2]",
        "a/b": "null",
        "ä": "x" * 6000,
    }
    assert allowed_name("valid/search/recall@100") == "valid/search/recall_at_100"
    assert allowed_name("a?b*c") == "a_b_c"
