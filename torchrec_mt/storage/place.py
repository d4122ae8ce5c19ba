"""Where the local copy of a URL lies, who is using it, and what is known of it.

$TORCHREC_MT_CACHE/HASH/          default ~/.cache/torchrec_mt; HASH is of the URL and the endpoint
    files/NAME/                   the copy, under the URL's last name; whoever writes aside does it beside it
    record.json                   size, the storage's tag and the local time of every file, as of the last fetch or push
    lock                          held while the copy or the storage is changed
    in_use                        held, shared, by every process that was given the copy, until it ends
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_USED: dict[Path, int] = {}
"""Open files that hold `in_use`, by place, until the process ends."""


@dataclass(frozen=True)
class Known:
    """A file as it was when copy and storage last agreed: bytes, the storage's tag, the copy's modification time."""

    size: int
    tag: str
    mtime_ns: int


class Place:
    """The place of a URL in the cache. A URL means another place at another endpoint."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        print_of_url = hashlib.sha256(f"{endpoint} {self.url}".encode()).hexdigest()[:16]
        self.folder = cache_root() / print_of_url
        self.copy = self.folder / "files" / self.url.rpartition("/")[2]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone on this machine; whoever comes second waits."""
        self.copy.parent.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def take(self) -> bool:
        """Whether no other process uses the copy; until `use`, none can. Only while `locked`."""
        if self.folder not in _USED:
            _USED[self.folder] = os.open(self.folder / "in_use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(_USED[self.folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def use(self) -> None:
        """Marks the copy as used by this process until it ends, beside others. Only while `locked`."""
        fcntl.flock(_USED[self.folder], fcntl.LOCK_SH)

    def read_record(self) -> dict[str, Known]:
        """What is known of the files by name; nothing, if the record is missing or damaged."""
        try:
            raw = json.loads((self.folder / "record.json").read_text(encoding="utf-8"))
            return {name: Known(**known) for name, known in raw["files"].items()}
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def write_record(self, files: Mapping[str, Known]) -> None:
        """Replaces the record at once."""
        content = {"url": self.url, "files": {name: asdict(known) for name, known in files.items()}}
        aside = self.folder / f".record.json.partial-{os.getpid()}"
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.rename(self.folder / "record.json")


def cache_root() -> Path:
    """$TORCHREC_MT_CACHE, or ~/.cache/torchrec_mt."""
    return Path(os.environ.get("TORCHREC_MT_CACHE") or Path.home() / ".cache" / "torchrec_mt").absolute()
