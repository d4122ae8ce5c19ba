"""How learning rates change over a run: a warm-up, then a decay, or none."""

import math
from dataclasses import dataclass
from typing import Literal

from torchrec_mt.errors import require, within


@dataclass(frozen=True, kw_only=True)
class _WarmUp:
    warmup_steps: int = 50

    def __post_init__(self) -> None:
        within(self, 0, 1_000_000_000, "warmup_steps")


@dataclass(frozen=True, kw_only=True)
class _Decay(_WarmUp):
    final_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final_rate <= 1, "final_rate", self.final_rate, "from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(_Decay):
    """A linear warm-up, then half a cosine down to `final_rate`.

    Args:
        warmup_steps: steps of linear warm-up. final_rate: share of the rate left at the last step.
    """

    kind: Literal["cosine"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class LinearSchedule(_Decay):
    """A linear warm-up, then a straight line down to `final_rate`; keys as those of `CosineSchedule`."""

    kind: Literal["linear"] = "linear"


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule(_WarmUp):
    """A linear warm-up of `warmup_steps`, then the full rate."""

    kind: Literal["constant"] = "constant"


Schedule = CosineSchedule | LinearSchedule | ConstantSchedule


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Share of the full learning rate at a step, which counts from 0, of a run of `steps`."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps))
    match schedule:
        case CosineSchedule(final_rate=final_rate):
            return final_rate + (1 - final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        case LinearSchedule(final_rate=final_rate):
            return final_rate + (1 - final_rate) * (1 - progress)
        case ConstantSchedule():
            return 1.0
