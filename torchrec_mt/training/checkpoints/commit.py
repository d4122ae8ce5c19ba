"""The commit file of a checkpoint: what belongs to it. It is written last; a folder without it holds no checkpoint.

It carries its own checksum and is compared byte for byte with how it would be written, so no flipped bit is overlooked.
"""

import json
import re
from dataclasses import asdict, dataclass

from torchrec_mt.errors import UserError, first_line
from torchrec_mt.training.checkpoints.files import Files
from torchrec_mt.training.checkpoints.layout import checksum

FORMAT = 1
"""Of the files of a checkpoint. How this one file is written and checked stays the same over formats."""
COMMIT = "checkpoint.json"
_NAME = re.compile(r"step-(\d{10,})")


class DamagedCheckpointError(UserError):
    """A checkpoint of which a file is missing, cut short, altered or cannot be read; another one may be whole."""

    @classmethod
    def of(cls, path: str, what: str) -> "DamagedCheckpointError":
        """Says which file it is, and what of it."""
        return cls(f"'{path}' {what}: this checkpoint is of no use any more; use an earlier one, or remove it")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and checksum (xxh3_128, hex) of a whole file."""

    size: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What the commit file says.

    Args:
        step: of training. ranks: how many wrote it.
        sequence: grows by one with each save into the folder; the newest is the highest, whatever its step.
        marks: names for this checkpoint, of which the newest bearer counts ("best").
        files: all that belong to it.
    """

    step: int
    sequence: int
    attempt: str
    ranks: int
    marks: tuple[str, ...]
    files: dict[str, FileRecord]

    def dumps(self) -> bytes:
        """The file's bytes."""
        body = {"format": FORMAT, **asdict(self)}
        return _text(body | {"xxh3_128": checksum(_text(body))})


def tensors_file(attempt: str) -> str:
    """The file that says where every piece of every tensor lies."""
    return f"tensors.{attempt}.json"


def state_file(attempt: str) -> str:
    """The file of small state."""
    return f"state.{attempt}.json"


def data_file(rank: int, attempt: str) -> str:
    """The file of a rank's tensors."""
    return f"rank-{rank:05}.{attempt}.safetensors"


def folder_of(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:010}"


def step_of(name: str) -> int | None:
    """The step of such a folder; None for anything else."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def read_commit(files: Files, folder: str) -> Commit:
    """The commit file of a folder that has one.

    Raises:
        DamagedCheckpointError: it is not as it was written.
        UserError: a checkpoint of another format.
    """
    name = f"{folder}/{COMMIT}"
    path = files.where(name)
    try:
        data = files.read(name)
        body = json.loads(data)
        stated = body.pop("xxh3_128")
        whole = stated == checksum(_text(body)) and data == _text(body | {"xxh3_128": stated})
    except OSError as error:
        raise DamagedCheckpointError.of(path, f"cannot be read ({first_line(error)})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedCheckpointError.of(path, "is damaged (no JSON as we write it)") from None
    if not whole:
        raise DamagedCheckpointError.of(path, "is damaged (its checksum differs)")
    if body.pop("format") != FORMAT:
        raise UserError(f"'{path}' was written by another version (this one reads format {FORMAT}): load it with that")
    records = {file: FileRecord(**record) for file, record in body.pop("files").items()}
    commit = Commit(**body | {"marks": tuple(body["marks"]), "files": records})
    if commit.step != step_of(folder):
        raise DamagedCheckpointError.of(path, f"is of step {commit.step}, not of its folder's")
    return commit


def _text(body: dict[str, object]) -> bytes:
    return (json.dumps(body, indent=1) + "\n").encode()
