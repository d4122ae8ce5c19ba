"""A run in MLflow: which calls of MLflow's client say what our log says. Used by the tracker's thread (tracking.py)."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is the program's
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker tries again by itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 wants to be asked twice for file:/PATH
}
"""What MLflow reads, unless a person has set it otherwise."""
_LONGEST_KEY, _LONGEST_VALUE = 250, 6000


@dataclass(frozen=True)
class Line:
    """A line of the log: step, kind, values, and when it was written (seconds of the wall clock)."""

    step: int
    kind: str
    values: dict[str, float]
    at: float


class MlflowRun:
    """One run of one experiment. Every method may raise MlflowException, and may then be called again.

    Args:
        name: what MLflow shows. config: becomes the parameters of a new run. tags: of a new run.
    """

    def __init__(
        self, uri: str, experiment: str, name: str, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        self._uri, self._experiment, self._name, self._tags = uri, experiment, name, dict(tags)
        self._params = flattened(config)
        self._begun: str | None = None

    @cached_property
    def _client(self) -> Any:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # seconds

        return MlflowClient(tracking_uri=self._uri)

    def begin(self, run_id: str | None) -> str:
        """A new run with its parameters and tags, or the given one goes on. Returns its id."""
        from mlflow.entities import Param

        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        if self._begun is None:
            found = self._client.get_experiment_by_name(self._experiment)
            experiment_id = found.experiment_id if found else self._client.create_experiment(self._experiment)
            self._begun = str(self._client.create_run(experiment_id, tags=self._tags, run_name=self._name).info.run_id)
        self._client.log_batch(self._begun, params=[Param(key, value) for key, value in self._params.items()])
        return self._begun

    def send(self, run_id: str, lines: Sequence[Line]) -> None:
        """The values of lines as metrics "KIND/NAME"."""
        from mlflow.entities import Metric

        metrics = [
            Metric(allowed_name(f"{line.kind}/{name}"), float(value), round(1000 * line.at), line.step)
            for line in lines
            for name, value in line.values.items()
        ]
        self._client.log_batch(run_id, metrics=metrics)

    def end(self, run_id: str, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status=status)


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config tree as MLflow's parameters: "SECTION.KEY" to text; what is neither table nor string, as JSON."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[allowed_name(prefix + key)] = text[:_LONGEST_VALUE]
    return found


def allowed_name(name: str) -> str:
    """A name with what MLflow takes: recall@10 becomes recall_at_10, other characters become "_"."""
    return re.sub(r"[^\w.\- :/]", "_", name.replace("@", "_at_"))[:_LONGEST_KEY]
