"""The run folder: one folder that explains a run. Everything that reads a run reads only this.

config.json          resolved config          plan.json       sharding plan
environment.json     versions, device, cores  metrics.jsonl   one line per logged step and validation
tensorboard/         the same as events       model/          best and last model (torch DCP)
evaluation/          metrics.json
    dataset.json         digest of the dataset it was trained on
    training.json        steps taken, best step
"""

import json
import os
import platform
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from torchrec_mt.errors import UserError

MARK = "config.json"
DATASET = "dataset.json"
_RECORDED = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "numpy",
    "pyarrow",
    "duckdb",
    "ibis-framework",
    "torchx",
)


def write_atomic(path: Path, text: str) -> None:
    """Writes aside, syncs, renames: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def environment() -> dict[str, Any]:
    """Versions and machine, as recorded with a run."""
    versions = {}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
        "argv": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class RunFolder:
    """Paths of a run and how its files are written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> "RunFolder":
        """A place for a new run; nothing is written before `start`.

        Raises:
            UserError: the path holds something that is no run; or a run, and it is not to be overwritten.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / MARK).exists())):
            raise UserError(f"'{path}' exists and is no run folder of ours: give another --output, or move it away")
        if (path / MARK).exists() and not overwrite:
            raise UserError(f"'{path}' holds an earlier run: give another --output, or --overwrite to replace it")
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run.

        Raises:
            UserError: nothing there, or no run.
        """
        run = cls(path)
        if not (run.path / MARK).is_file():
            raise UserError(
                f"'{path}' is no run folder (no {MARK} in it): give the folder that `torchrec-mt train` wrote"
            )
        return run

    def start(self, config_json: str) -> None:
        """Empties what an earlier run left (it is being replaced on request) and records config and environment."""
        if self.path.exists():
            for child in self.path.iterdir():
                if child.is_dir() and not child.is_symlink():
                    shutil.rmtree(child)
                else:
                    child.unlink()
        write_atomic(self.path / MARK, config_json)
        write_atomic(self.path / "environment.json", json.dumps(environment(), indent=1) + "\n")

    def config_json(self) -> dict[str, Any]:
        """The resolved config of the run."""
        return json.loads((self.path / MARK).read_text())

    def check_dataset(self, digest: str, path: str) -> None:
        """Refuses a dataset whose rows are not those the run was trained on.

        Raises:
            UserError: another digest than at training, or a run that did not get as far as recording it.
        """
        file = self.path / DATASET
        trained_on = json.loads(file.read_text())["digest"] if file.is_file() else None
        if trained_on != digest:
            raise UserError(
                f"run '{self.path}' was trained on another state of the dataset than '{path}' holds now: "
                "train again, or prepare as it was then"
            )

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation" / "metrics.json"


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events of a run; numbers are logged once, to both."""

    def __init__(self, run: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, only needed by training

        self._file = (run.path / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(run.path / "tensorboard"))

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """One line: step, kind ("train" or "valid"), and the values."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
