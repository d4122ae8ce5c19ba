"""`metrics.jsonl` and TensorBoard events of a run: the log that a training writes, and cuts where it is resumed."""

import json
from collections.abc import Mapping
from pathlib import Path

from torchrec_mt.errors import UserError
from torchrec_mt.runs import RunFolder, write_atomic


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events of a run; numbers are logged once, to both.

    Args:
        after: the step that a resumed run goes on from; see `open`.
    """

    def __init__(self, run: RunFolder, *, after: int | None = None) -> None:
        self.open(run.path, after=after)

    def open(self, path: Path, *, after: int | None = None) -> None:
        """Logs into the run folder at `path`, after what is there; `close` first to change over.

        Args:
            after: drops what was logged of later steps, and a last line that a killed program left half written.

        Raises:
            UserError: `after` is given, and a line before the last is damaged.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import, only needed by training

        file = path / "metrics.jsonl"
        if after is not None and file.exists():
            write_atomic(file, _lines_until(file, after))
        self._file = file.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(path / "tensorboard"), purge_step=None if after is None else after + 1)

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line: step, kind ("train" or "valid"), and the values."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _lines_until(file: Path, step: int) -> str:
    """The lines of `metrics.jsonl` up to a step, each as it stands there."""
    lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last line end is nothing, or half a line
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line.decode() + "\n")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"'{file}' line {number} is damaged ({type(error).__name__}): remove that line, then resume"
            ) from None
    return "".join(kept)
