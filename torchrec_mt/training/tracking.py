"""Experiment trackers: what the log of a run says is sent elsewhere too, while it trains.

A thread of its own sends; training never waits for it, and never ends because of it. A tracker that fails is told of
once, and gets what it missed when it answers again. All that is sent stands in metrics.jsonl as well.
"""

import importlib.util
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

from torchrec_mt.errors import UserError, first_line, require
from torchrec_mt.runs import TRACKING, RunFolder, read_object, write_atomic
from torchrec_mt.training.mlflow_run import Line, MlflowRun

_KEPT = 2000
"""Lines that wait for a tracker that does not answer; older ones are given up."""
_TOGETHER = 50
"""Lines sent at a time."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds from a failure to the next attempt; each failure in a row doubles them."""
_AT_THE_END = 15.0
"""Seconds that the end of a training waits for what is still to be sent."""

Record = Callable[[int, str, Mapping[str, float]], None]
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class NoTracking:
    """Numbers stay in the run folder."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class MlflowTracking:
    """A run in MLflow.

    Args:
        uri: the tracking server (http:// or https://), or a folder (file:/PATH). Who may write there, MLflow takes from
            its own environment variables.
        experiment: its name; made if it is not there.
    """

    kind: Literal["mlflow"] = "mlflow"
    uri: str
    experiment: str = "torchrec-mt"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.uri)
        except ValueError:  # an IPv6 address that is none
            parts = urlsplit("")
        found = parts.netloc if parts.scheme in ("http", "https") else parts.path if parts.scheme == "file" else ""
        require(found, "uri", self.uri, "http://HOST, https://HOST or file:/PATH")
        # config.json would hold them, and the messages of errors.
        plain = "without user and password (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are read instead)"
        require("@" not in parts.netloc, "uri", f"...{parts.netloc.rpartition('@')[2]}", plain)
        require(self.experiment.strip(), "experiment", self.experiment, "a name")


Tracking = NoTracking | MlflowTracking


class Service(Protocol):
    """A tracker's side of a run. Any of these may raise whatever its library raises, and is then called again."""

    def begin(self, run_id: str | None) -> str:
        """A new run, or the given one goes on. Returns its id."""

    def send(self, run_id: str, lines: Sequence[Line]) -> None:
        """Lines of the log."""

    def end(self, run_id: str, status: Status) -> None:
        """The run is over."""


def check_tracking(config: Tracking) -> None:
    """Asked before anything is written or trained.

    Raises:
        UserError: the tracker's package is not installed.
    """
    if isinstance(config, MlflowTracking) and importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "trainer.tracking: the package mlflow is not installed: pip install 'torchrec-mt[mlflow]', or set kind = "
            '"none"'
        )


@contextmanager
def tracked(
    config: Tracking, run: RunFolder, config_json: str, tags: Mapping[str, str], *, enabled: bool
) -> Iterator[Record]:
    """Gives what sends a line of the log to the tracker, and ends the tracker's run with the training.

    Args:
        run: keeps the id of the tracker's run; where it has one of the same place, that run goes on.
        config_json: the resolved config, sent as parameters. tags: sent with a new run.
        enabled: false on all ranks but the main one.
    """
    match config:
        case MlflowTracking(uri=uri, experiment=experiment) if enabled:
            service = MlflowRun(uri, experiment, run.place.resolve().name, json.loads(config_json), tags)
            place = {"kind": config.kind, "uri": uri, "experiment": experiment}
        case _:
            yield lambda step, kind, values: None
            return
    tracker = Tracker(service, run, place)
    status: Status = "FAILED"
    try:
        yield tracker.write
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)


class Tracker:
    """Sends lines to a service from a thread of its own, and keeps the id of the service's run in the run folder.

    Args:
        place: says where the service's run is, stored beside its id.
    """

    def __init__(self, service: Service, run: RunFolder, place: Mapping[str, str]) -> None:
        self._service, self._run, self._place = service, run, dict(place)
        self._stored = self._stored_id()
        self._run_id: str | None = None
        self._lines: deque[Line] = deque(maxlen=_KEPT)
        self._changed, self._over = threading.Event(), threading.Event()
        self._status: Status = "FAILED"
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line of the log; returns at once."""
        self._lines.append(Line(step, kind, dict(values), time.time()))
        self._changed.set()
        self._store_id()

    def close(self, status: Status) -> None:
        """Sends what is left, unless the service does not answer, and ends the service's run."""
        self._status = status
        self._over.set()
        self._changed.set()
        self._thread.join(_AT_THE_END)
        self._store_id()

    def _stored_id(self) -> str | None:
        """Of an earlier part of this training, if it was sent to the same place."""
        file = self._run.path / TRACKING
        found = read_object(file) if file.is_file() else {}
        run_id = found.get("run_id")
        return run_id if isinstance(run_id, str) and found == {**self._place, "run_id": run_id} else None

    def _store_id(self) -> None:
        """On the training's own thread: only it knows when the run folder takes its place."""
        if self._run_id != self._stored and self._run_id is not None:
            text = json.dumps({**self._place, "run_id": self._run_id})
            write_atomic(self._run.path / TRACKING, text + "\n")
            self._stored = self._run_id

    def _work(self) -> None:
        batch: list[Line] = []
        failures = 0
        while True:
            try:
                if self._run_id is None:
                    self._run_id = self._service.begin(self._stored)
                batch = batch or self._take()
                if batch:
                    self._service.send(self._run_id, batch)
                elif self._over.is_set():
                    self._service.end(self._run_id, self._status)
                    return
                batch, failures = [], 0
            except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on
                self._warn(error)
                if self._over.is_set():
                    return
                self._over.wait(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures, 10)))
                failures += 1
            if not batch and not self._lines and not self._over.is_set():
                self._changed.wait()
                self._changed.clear()

    def _take(self) -> list[Line]:
        return [self._lines.popleft() for _ in range(min(_TOGETHER, len(self._lines)))]

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            where = f"{self._place['kind']} at '{self._place['uri']}'"
            text = f"{where} fails ({type(error).__name__}: {first_line(error)})"
            print(f"warning: {text}: training goes on; metrics.jsonl has all numbers", file=sys.stderr, flush=True)
