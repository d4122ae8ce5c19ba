"""Where a step's time goes: data, copy, lookup, towers, loss, backward, tables, optimizer, and what is left (idle).

Every mark gives the time since the last one to a phase. On a GPU only the steps that are timed wait for the device at
each mark, so that a launch is not taken for the work.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_AFTER = {
    "idle": "data",
    "data": "copy",
    "copy": "lookup",
    "lookup": "towers",
    "towers": "loss",
    "loss": "backward",
    "backward": "tables",
    "tables": "optimizer",
    "optimizer": "idle",
}
PHASES = ("data", "copy", "lookup", "towers", "loss", "backward", "tables", "optimizer", "idle")


@dataclass(frozen=True)
class Position:
    """Where a rank is: in which phase of which step, and since when (`time.perf_counter`)."""

    step: int
    phase: str
    since: float


class StepClock:
    """Milliseconds per step and phase since the last `read`, and where the step is now."""

    def __init__(self, device: torch.device) -> None:
        self.position = Position(0, "start", time.perf_counter())
        self._device, self._last, self._on = device, time.perf_counter(), False
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = 0

    def watch(self, embeddings: nn.Module) -> None:
        """Tells the lookup from the towers, forward and backward; `embeddings` maps entities to lists of features."""

        def before(module: nn.Module, arguments: Any) -> None:
            self.mark("towers")
            self.enter("lookup")

        def after(module: nn.Module, arguments: Any, output: dict[str, list[Tensor]]) -> None:
            self.mark("lookup")
            for features in output.values():
                for feature in features:
                    if feature.requires_grad:
                        # The last of these to run ends the dense part of the backward; the rest of it is the tables'.
                        feature.register_hook(lambda gradient: self.mark("backward"))

        embeddings.register_forward_pre_hook(before)
        embeddings.register_forward_hook(after)

    def enter(self, phase: str, step: int | None = None) -> None:
        """Says where the program is; also for what is no part of a step ("validation", "checkpoint")."""
        self.position = Position(self.position.step if step is None else step, phase, time.perf_counter())

    def start(self, step: int = 0, *, timed: bool = True) -> None:
        """Begins a step. On a CPU every step is timed, on a GPU those that ask for it."""
        self.enter("data", step)
        self._on = timed or self._device.type == "cpu"
        self._steps += self._on
        self._last = self._now()

    def mark(self, phase: str) -> None:
        """Gives the time since the last mark to a phase."""
        self.enter(_AFTER[phase])
        if self._on:
            now = self._now()
            self._seconds[phase] += now - self._last
            self._last = now

    def stop(self) -> None:
        """Ends a step: nothing is timed until the next."""
        self.mark("idle")
        self._on = False

    def read(self) -> dict[str, float]:
        """Milliseconds per timed step and phase, and starts anew."""
        steps = max(1, self._steps)
        result = {phase: 1000 * seconds / steps for phase, seconds in self._seconds.items()}
        self._seconds, self._steps = dict.fromkeys(PHASES, 0.0), 0
        return result

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def over_ranks(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How phases differ between ranks: `ms_min/PHASE`, `ms_median/PHASE`, `ms_max/PHASE`, and `slowest/PHASE`, the rank
    of the maximum (the first of equal ones). Nothing where there is one rank.

    Args:
        values: by phase, milliseconds of every rank in rank order.
    """
    found: dict[str, float] = {}
    for phase, ranks in values.items():
        if len(ranks) > 1:
            found |= {f"ms_min/{phase}": min(ranks), f"ms_median/{phase}": statistics.median(ranks)}
            found |= {f"ms_max/{phase}": max(ranks), f"slowest/{phase}": ranks.index(max(ranks))}
    return found
