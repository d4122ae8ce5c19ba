"""The run folder: one folder that explains a run. Everything that reads a run reads only this.

config.json          resolved config          plan.json       sharding plan
environment.json     versions, machine        metrics.jsonl   one line per logged step and validation
tensorboard/         the same as events       checkpoints/    to go on from, and to judge
evaluation/          judgements, indexes      mined/          hard negatives
dataset.json         digest of the dataset    training.json   steps taken, best step
tracking.json        the run's id in a tracker
held.json            bytes of tables by rank  model.json      parameters, FLOPs per pair
vocabulary/          whose rows tables' are   init.json       what was taken of another run's weights
offending_batch/     the batch of each rank at which the loss was no number
twins/TASK/          a run on that task alone       twins/comparison.json   what the run has more than those
training.lock        while it is trained: by whom     export/   vectors as Parquet

A new run is written in its place. One that replaces an earlier run is written into a hidden folder beside it and takes
its place once it is worth having; until then the earlier one is untouched.
"""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchrec_mt.environment import environment
from torchrec_mt.errors import UserError
from torchrec_mt.exchange import take_place
from torchrec_mt.holding import LOCK, Hold, is_held, job
from torchrec_mt.storage import is_url, local_copy

MARK = "config.json"
DATASET = "dataset.json"
TRACKING = "tracking.json"
INIT = "init.json"
HELD = "held.json"
MODEL = "model.json"
TRAINING = "training.json"
_ENVIRONMENT = "environment.json"
_RECORDED = {"versions", "argv", "started"}
_FILES = (MARK, _ENVIRONMENT, DATASET, "plan.json", HELD, MODEL, "metrics.jsonl", TRAINING, TRACKING, INIT)
_FOLDERS = ("tensorboard", "vocabulary", "checkpoints", "evaluation", "mined", "export", "twins", "offending_batch")
_EARLIER = ("model",)
"""What earlier versions wrote."""
TWINS = "twins"
TWINS_COMPARISON = f"{TWINS}/comparison.json"
PARTS = (*_FILES, *(name for name in _FOLDERS if name not in ("checkpoints", TWINS)), TWINS_COMPARISON)
"""What a run and its copy at a URL have in common; checkpoints are written and read there directly, twins are runs."""
READ_PARTS = (*_FILES, "evaluation")
"""What of it a program needs that judges or uses its model."""


def write_atomic(path: Path, text: str) -> None:
    """Writes aside, syncs, renames: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: naming the file; nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a failing write() names no file
    finally:
        aside.unlink(missing_ok=True)


def restarted(path: str | Path) -> bool:
    """Whether the run in a folder was begun by an earlier try of this very job."""
    if job() == "" or not _is_run(Path(path)):
        return False
    return read_object(Path(path) / _ENVIRONMENT).get("job") == job()


class RunFolder:
    """Paths of a run and how its files are written.

    Args:
        place: where the run is to be found.
        path: where its files are now; the same but while an earlier run has the place.
        url: what `place` is the local copy of, if of anything. at_url: whether the run is there already, as far as its
            newest checkpoint.
    """

    def __init__(self, place: str | Path, path: Path | None = None, *, url: str = "") -> None:
        self.place = Path(place)
        self.path = path or self.place
        self.url, self.at_url = url.rstrip("/"), False
        self._held: Hold | None = None

    @classmethod
    def create(cls, place: str | Path, *, overwrite: bool = False, url: str = "") -> "RunFolder":
        """A place for a new run; nothing is written before `start`. Arguments as above.

        Raises:
            UserError: the place holds something that is no run; or a run, and it is not to be overwritten, or is being
                trained, or holds files that no program of ours wrote.
        """
        if "\0" in str(place):
            raise UserError(f"--output {str(place)!r}: a path has no NUL in it")
        place, where = Path(place), url or place
        if not place.exists() or _is_hardly_begun(place):
            return cls(place, url=url)
        if not _is_run(place):
            raise UserError(f"'{where}' exists and is no run folder of ours: give another --output, or move it away")
        if not overwrite:
            raise UserError(f"'{where}' holds an earlier run: give another --output, or --overwrite to replace it")
        strange = _strange(place)
        if strange:
            shown = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
            raise UserError(f"'{place}' holds, beside an earlier run, what is not ours: move it away first ({shown})")
        if place.is_mount():
            raise UserError(f"'{place}' is a mount point, which cannot be replaced: give a folder in it as --output")
        real = place.resolve()
        Hold(place, str(where)).release()
        return cls(place, real.with_name(f"{_prefix(real)}{uuid.uuid4().hex[:12]}"), url=url)

    @classmethod
    def open(cls, path: str | Path, *, parts: Sequence[str] = READ_PARTS) -> "RunFolder":
        """An existing run, or the local copy of one that a URL names.

        Args:
            parts: what is fetched of it.

        Raises:
            UserError: nothing there, or no run; the storage does not answer.
        """
        url = str(path) if is_url(path) else ""
        run = cls(local_copy(url, mark=MARK, parts=parts) if url else path, url=url)
        if not (run.path / MARK).is_file():
            raise UserError(
                f"'{path}' is no run folder (no {MARK} in it): give the folder that `torchrec-mt train` wrote"
            )
        return run

    def hold(self) -> None:
        """Keeps the run from other trainings until `release`, or until this process ends.

        Raises:
            UserError: another process trains it.
        """
        self._held = self._held or Hold(self.path, self.where)

    def release(self) -> None:
        """Ends what `hold` and `start` began."""
        held, self._held = self._held, None
        if held:
            held.release()

    def start(self, config_json: str) -> None:
        """Makes the folder, holds it and records config and environment.

        Raises:
            UserError: another process trains the run, or has begun one here since `create`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        goes_on = self._held is not None
        self.hold()
        if not goes_on and (self.path / MARK).exists():
            raise UserError(f"'{self.where}' holds a run begun after this one: `--resume` it, or give another --output")
        write_atomic(self.path / _ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")
        write_atomic(self.path / MARK, config_json)

    def swap(self) -> None:
        """Puts the folder in the place of the earlier run, which is removed; what came to lie in it since is kept.

        Raises:
            UserError: another process has begun to train the earlier run.
        """
        real = self.place.resolve()
        aside = real.with_name(f"{_prefix(real)}{uuid.uuid4().hex[:12]}")
        held = Hold(real, self.where) if real.exists() else None
        try:
            earlier = take_place(self.path, real, aside)
        finally:
            if held:
                held.release()
        if self._held:
            self._held.moved(real)
        if earlier.exists():
            for name in _strange(earlier):
                os.rename(earlier / name, real / name)
        for leftover in real.parent.glob(f"{glob.escape(_prefix(real))}*"):
            _remove_unless_in_use(leftover)

    @property
    def where(self) -> str:
        """What a user calls it by."""
        return self.url or str(self.place)

    @property
    def is_aside(self) -> bool:
        """Whether an earlier run still has the place."""
        return self.path != self.place

    def discard(self) -> None:
        """Removes what was written aside, if it has not taken its place."""
        if self.is_aside:
            shutil.rmtree(self.path, ignore_errors=True)

    def config_json(self) -> dict[str, Any]:
        """The resolved config of the run.

        Raises:
            UserError: the file is damaged.
        """
        return read_object(self.path / MARK)

    def check_dataset(self, digest: str, path: str) -> None:
        """Refuses a dataset whose rows are not those the run was trained on.

        Raises:
            UserError: another digest than at training, or a run that did not get as far as recording it.
        """
        if self.dataset_digest != digest:
            raise UserError(
                f"run '{self.path}' was trained on another state of the dataset than '{path}' holds now: "
                "train again, or prepare as it was then"
            )

    @property
    def dataset_digest(self) -> str | None:
        """Of the dataset it is trained on; None where it did not get as far as recording it."""
        file = self.path / DATASET
        return read_object(file).get("digest") if file.is_file() else None

    @property
    def offending_path(self) -> str | Path:
        """Where the batch goes that broke the run, or its URL; beside the place, if an earlier run may have it."""
        if self.url:
            return f"{self.url}/offending_batch" if self.at_url else f"{self.url}.offending_batch"
        if self.is_aside:
            return self.place.with_name(f"{self.place.resolve().name}.offending_batch")
        return self.path / "offending_batch"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation" / "metrics.json"


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a run.

    Raises:
        UserError: the file is damaged.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise UserError(f"'{file}' is damaged ({error}): train again") from None
    return value


def _is_run(path: Path) -> bool:
    """Whether a folder says unmistakably that `train` wrote it."""
    try:
        config, machine = read_object(path / MARK), read_object(path / _ENVIRONMENT)
    except (UserError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    sections = all(isinstance(config.get(key), dict) for key in ("dataset", "trainer", "optim"))
    return sections and machine.keys() >= _RECORDED


def _is_hardly_begun(path: Path) -> bool:
    """Whether a folder has no more in it than a `start` leaves that was killed before the run had its `MARK`."""
    names = {child.name.partition(".partial-")[0] for child in path.iterdir()} if path.is_dir() else {MARK}
    begun = names <= {LOCK, _ENVIRONMENT, f".{_ENVIRONMENT}", f".{MARK}"}
    return begun and (_ENVIRONMENT not in names or read_object(path / _ENVIRONMENT).keys() >= _RECORDED)


def _strange(path: Path) -> list[str]:
    """Names in a run folder that no program of ours writes."""
    known = {*_FILES, *_FOLDERS, *_EARLIER, LOCK}
    hidden = {f".{name}" for name in known}  # what a killed program left unfinished
    names = [child.name for child in path.iterdir()]
    return sorted(name for name in names if name not in known and name.partition(".partial")[0] not in hidden)


def _prefix(place: Path) -> str:
    return f".{place.name}.partial-"


def _remove_unless_in_use(folder: Path) -> None:
    """Removes what a killed run left beside its place; a running one is held."""
    if not is_held(folder):
        shutil.rmtree(folder, ignore_errors=True)
