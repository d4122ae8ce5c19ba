"""Saves and loads checkpoints: the way in. Every method is called on every rank, and ends alike on all of them."""

import json
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from torchrec_mt.distributed.collectives import group_beside
from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.errors import UserError
from torchrec_mt.training.checkpoints.commit import COMMIT, DamagedCheckpointError, folder_of, read_commit
from torchrec_mt.training.checkpoints.files import Files
from torchrec_mt.training.checkpoints.reader import Reader
from torchrec_mt.training.checkpoints.shelf import Shelf
from torchrec_mt.training.checkpoints.staging import Staging
from torchrec_mt.training.checkpoints.writer import PiecesSavePlanner, Writer

Tensors = Mapping[str, Tensor | Pieces]
State = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was loaded, beside the tensors.

    Args:
        path: of the checkpoint.
        state: of all ranks. rank_states: of each rank that saved, however many load.
        shapes, dtypes: of all tensors that it holds, by name.
        refused: why newer ones were not used.
    """

    step: int
    path: str
    state: dict[str, Any]
    rank_states: tuple[dict[str, Any], ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    refused: tuple[str, ...] = ()


class CheckpointStore:
    """The checkpoints of one run. Makes a process group of its own, so all ranks make the store together.

    Args:
        folder: a local path that all machines share, or a URL of fsspec.
        keep: how many of the newest checkpoints stay, beside the newest of each mark; at least 1.

    Raises:
        UserError: a file system that is not known or not installed.
    """

    def __init__(self, folder: str | Path, *, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: must be at least 1")
        self._files = Files(folder)
        self._shelf = Shelf(self._files, keep)
        # Messages of a save in the background must not mix with those of a training step; tensors of it are on the CPU.
        self._group = group_beside()
        self._staging = Staging()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._copying: Future[None] | None = None
        self._running: Future[None] | None = None

    @property
    def where(self) -> str:
        """The folder, as a user knows it."""
        return self._files.where()

    def save(
        self,
        step: int,
        tensors: Tensors,
        *,
        state: State,
        rank_state: State,
        marks: tuple[str, ...] = (),
        background: bool = False,
        late: Container[str] = (),
    ) -> None:
        """Saves a checkpoint, which counts once all of it is on the disk; one of the same step is replaced.

        Args:
            tensors: by name; a plain tensor is the same on all ranks and is saved once.
            state: small, of numbers, strings, lists and dicts; the same on all ranks. rank_state: this rank's own.
            marks: names that this checkpoint takes over, by which it is kept and found ("best").
            background: return once the tensors are copied, and write while training goes on. Failures show in the next
                `save` or in `finish`, on every rank.
            late: names of tensors that are copied in the background, too: they must not change before `finish_copy`.

        Raises:
            UserError: on every rank, if any could not write; earlier checkpoints are as they were.
            ValueError: state that JSON does not give back as it was.
        """
        self.finish()
        writer = Writer(
            self._files, self._shelf, step=step, marks=marks, state=_json(state), rank_state=_json(rank_state)
        )
        if background:
            copy = self._staging.copy(tensors, late=late)
            self._copying = self._thread.submit(copy.finish)
            self._running = self._thread.submit(self._write, writer, copy.tensors, self._copying.result)
        else:
            self._write(writer, dict(tensors))

    def reserve(self, tensors: Tensors) -> None:
        """Takes the memory that background saves of such tensors need, so that the first does not wait for it."""
        self._staging.copy(tensors)

    def finish_copy(self) -> None:
        """Waits until what a save in the background copies late may change. Called on any rank.

        Raises:
            Exception: what the copy ended with, on this rank; all ranks hear of it in the next `save` or in `finish`.
        """
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.result()

    def finish(self) -> None:
        """Waits for a save in the background.

        Raises:
            UserError: on every rank, if it failed on any.
        """
        running, self._running, self._copying = self._running, None, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Waits like `finish`; the store is of no use afterwards."""
        try:
            self.finish()
        finally:
            self._thread.shutdown()
            dist.destroy_process_group(self._group)

    def _write(self, writer: Writer, tensors: dict[str, Any], ready: Callable[[], None] = lambda: None) -> None:
        try:
            save(tensors, storage_writer=writer, planner=PiecesSavePlanner(ready), process_group=self._group)
        except CheckpointException as failure:  # the same on all ranks
            writer.abandon()
            _, (error, _) = min(failure.failures.items())
            raise error from None if isinstance(error, UserError) else failure

    def load_newest(self, tensors: Tensors, *, partial: bool = False) -> Loaded | None:
        """Fills the tensors from the newest checkpoint that is whole; None where there is none at all.

        Args:
            tensors: in any layout, on any number of ranks. partial: the checkpoint may hold more.

        Raises:
            UserError: on every rank; all checkpoints are damaged, or the newest whole one holds other tensors.
        """
        self.finish()
        refused: list[str] = []
        entries = self._on_main(
            lambda: [[entry.folder, entry.problem, entry.damaged] for entry in self._shelf.entries()]
        )
        for folder, problem, damaged in entries:
            if problem and not damaged:
                raise UserError(problem)
            try:
                return self._load(folder, tensors, partial, tuple(refused))
            except DamagedCheckpointError as error:
                self._shelf.refuse(folder)
                refused.append(str(error))
        if refused:
            raise UserError(f"no checkpoint under '{self._files.where()}' is whole; " + "; ".join(refused))
        return None

    def load(
        self, tensors: Tensors, *, step: int | None = None, mark: str | None = None, partial: bool = False
    ) -> Loaded:
        """The same from one checkpoint: that of a step, or the newest with a mark.

        Raises:
            UserError: on every rank; there is none, it is damaged (DamagedCheckpointError), or holds other tensors.
        """
        if (step is None) == (mark is None):
            raise ValueError("give a step or a mark")
        self.finish()
        folder = folder_of(step) if step is not None else self._marked(str(mark))
        return self._load(folder, tensors, partial, ())

    def _marked(self, mark: str) -> str:
        def found() -> list[list[str]]:
            entries = self._shelf.entries()
            marked = [entry.folder for entry in entries if entry.commit and mark in entry.commit.marks]
            return [marked, [entry.problem for entry in entries if entry.problem]]

        folders, problems = self._on_main(found)
        if not folders:
            where = f"no checkpoint under '{self._files.where()}' is marked '{mark}'"
            raise UserError(
                "; ".join([where, *problems]) if problems else f"{where}: train first, as far as a validation"
            )
        return str(folders[0])

    def steps(self) -> list[int]:
        """Steps of the checkpoints, the newest first; not those whose commit file is damaged."""
        self.finish()
        steps = self._on_main(lambda: [entry.commit.step for entry in self._shelf.entries() if entry.commit])
        return list(map(int, steps))

    def prune(self) -> None:
        """Removes what the next save would remove. Call where the newest was just loaded: that one is whole.

        Raises:
            UserError: on every rank, one cannot be removed.
        """
        self._on_main(self._shelf.prune)

    def refuse(self, step: int) -> None:
        """Says that the checkpoint of a step is damaged: it is none of those that the next save keeps."""
        self._shelf.refuse(folder_of(step))

    def _load(self, folder: str, tensors: Tensors, partial: bool, refused: tuple[str, ...]) -> Loaded:
        outcome, loaded = ["", ""], None
        try:
            if not self._files.exists(f"{folder}/{COMMIT}"):
                raise UserError(f"no checkpoint at '{self._files.where(folder)}': train first, or name another step")
            commit = read_commit(self._files, folder)
            reader = Reader(self._files, folder, commit)
            reader.check(tensors, partial=partial)
            reader.fill(tensors)
            loaded = Loaded(
                step=commit.step,
                path=self._files.where(folder),
                state=reader.state["state"],
                rank_states=tuple(reader.state["ranks"]),
                shapes=reader.shapes,
                dtypes=reader.dtypes,
                refused=refused,
            )
        except (UserError, OSError) as error:
            outcome = ["damaged" if isinstance(error, DamagedCheckpointError) else "wrong", str(error)]
        _raise_first(_gather(outcome, self._group))
        assert loaded is not None
        return loaded

    def _on_main(self, function: Callable[[], Any]) -> Any:
        """What rank 0 finds, on every rank."""
        outcome: list[Any] = ["", "", None]
        if dist.get_rank(self._group) == 0:
            try:
                outcome[2] = function()
            except (UserError, OSError) as error:
                outcome[:2] = ["wrong", str(error)]
        outcomes = _gather(outcome, self._group)
        _raise_first(outcomes)
        return outcomes[0][2]


def _raise_first(outcomes: list[list[Any]]) -> None:
    """The same error on every rank: one that no other checkpoint helps against, rather than damage."""
    for kind, message, *_ in sorted(outcomes, key=lambda outcome: outcome[0] != "wrong"):
        if kind == "wrong":
            raise UserError(message)
        if kind == "damaged":
            raise DamagedCheckpointError(message)


def _gather(value: object, group: dist.ProcessGroup) -> list[Any]:
    """The values of all ranks, as JSON: torch's own would pickle them."""
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, torch.tensor([len(mine)]), group=group)
    longest = max(int(length) for length in lengths)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(texts, torch.nn.functional.pad(mine, (0, longest - len(mine))), group=group)
    return [json.loads(text[: int(length)].numpy().tobytes()) for text, length in zip(texts, lengths, strict=True)]


def _json(value: State) -> str:
    text = json.dumps(value, allow_nan=False)
    if json.loads(text) != value:
        raise ValueError(f"JSON gives this back as something else: {value!r:.300}")
    return text
