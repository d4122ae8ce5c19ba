"""A folder of mined hard negatives, as `torchrec-mt mine` writes it and the reader takes it.

mined.json                     digest of the dataset, how it was mined, per task anchors and negatives
TASK/candidates.*.npy          per anchor its hard negatives (see links.py)
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.links import Links, write_links
from torchrec_mt.data.opening import Mapped, reading
from torchrec_mt.errors import UserError
from torchrec_mt.storage import local_copy

MARK = "mined.json"
_REMEDY = "mine again"


@dataclass(frozen=True)
class MinedTask:
    """Hard negatives of one task: length_N per anchor entity, and all their rows in order of (anchor, row)."""

    length_N: np.ndarray
    id_L: np.ndarray


@dataclass(frozen=True)
class MinedFolder:
    """An opened folder of mined negatives."""

    path: Path
    about: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "MinedFolder":
        """Opens a folder, or the local copy of one that a URL names.

        Raises:
            UserError: nothing there, or no whole folder of mined negatives.
        """
        path = Path(local_copy(str(path), mark=MARK))
        if not (path / MARK).is_file():
            there = f"; there are some in '{path / 'mined'}'" if (path / "mined").is_dir() else ""
            raise UserError(
                f"negatives: a source of kind 'mined' has path = '{path}', where no mined negatives are: run "
                f"`torchrec-mt mine RUN` and name the folder that it writes, RUN/mined{there}"
            )
        with reading(path / MARK, _REMEDY):
            about = json.loads((path / MARK).read_text(encoding="utf-8"))
            if not (isinstance(about, dict) and {"digest", "tasks"} <= about.keys()):
                raise ValueError("it does not say of which dataset and tasks")
            return cls(path, about)

    def of_task(self, dataset: PreparedDataset, task: str) -> Links:
        """The negatives of a task.

        Raises:
            UserError: mined from another state of the dataset, not for this task, or a file is missing.
        """
        if self.about["digest"] != dataset.manifest.digest:
            raise UserError(
                f"'{self.path}' was mined from another state of the dataset than '{dataset.path}' holds: mine again"
            )
        if task not in self.about["tasks"]:
            raise UserError(f"'{self.path}' has no negatives of task '{task}' (it has: {sorted(self.about['tasks'])})")
        with reading(self.path / task / "candidates.values.npy", _REMEDY):
            return Links.open(self.path / task, "candidates")

    def mapped(self, task: str) -> Mapped:
        """The files of a task, which training reads from beginning to end."""
        return Mapped((self.path / task).glob("candidates.*.npy"), _REMEDY)


def write_mined(
    path: Path, dataset: PreparedDataset, mined: Mapping[str, MinedTask], settings: Mapping[str, float]
) -> dict[str, Any]:
    """Writes a folder aside and renames it; an earlier one is replaced. Returns what `mined.json` says.

    Raises:
        UserError: the path holds something else.
    """
    check_place(path)
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tasks = {}
    for name, task in mined.items():
        candidates = dataset.manifest.entities[dataset.manifest.tasks[name].candidate].count
        write_links(aside / name, "candidates", task.length_N, candidates, [task.id_L])
        tasks[name] = {"anchors": int((task.length_N > 0).sum()), "negatives": len(task.id_L)}
    about = {"digest": dataset.manifest.digest, "settings": dict(settings), "tasks": tasks}
    (aside / MARK).write_text(json.dumps(about, indent=1) + "\n")
    if path.exists():
        shutil.rmtree(path)
    aside.rename(path)
    return about


def check_place(path: Path) -> None:
    """Refuses to write where something else lies.

    Raises:
        UserError: the path exists and is no folder of mined negatives.
    """
    if path.exists() and not (path / MARK).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"'{path}' exists and holds no mined negatives: give another --output, or move it away")
