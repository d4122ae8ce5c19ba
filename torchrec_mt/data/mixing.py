"""How many pairs of each task a batch holds: proportional to data, flattened by a temperature, or fixed."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from torchrec_mt.errors import UserError, require, within


@dataclass(frozen=True, kw_only=True)
class ProportionalMixing:
    """Shares as the tasks' numbers of training pairs."""

    kind: Literal["proportional"] = "proportional"


@dataclass(frozen=True, kw_only=True)
class TemperatureMixing:
    """Shares as pairs ** (1 / temperature): 1 is proportional, large is even."""

    kind: Literal["temperature"] = "temperature"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        within(self, 0.1, 1_000_000, "temperature")


@dataclass(frozen=True, kw_only=True)
class FixedMixing:
    """Shares as given, one positive number per trained task (normalised to sum 1)."""

    kind: Literal["fixed"] = "fixed"
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, share in self.shares.items():
            require(1e-9 <= share <= 1e9, f"shares.{task}", share, "at least 1e-9 and at most 1e9")


Mixing = ProportionalMixing | TemperatureMixing | FixedMixing


def batch_sizes(mixing: Mixing, pairs: dict[str, int], batch_size: int) -> dict[str, int]:
    """Pairs per task in a batch of `batch_size`, each at least 1, summing to it (largest remainders).

    Raises:
        UserError: fixed shares that do not name exactly the tasks; a batch smaller than the tasks.
    """
    if batch_size < len(pairs):
        raise UserError(f"reader.batch_size = {batch_size} is smaller than the number of tasks ({len(pairs)})")
    names = list(pairs)
    match mixing:
        case ProportionalMixing():
            raw = np.array([pairs[name] for name in names], float)
        case TemperatureMixing(temperature=temperature):
            raw = np.array([pairs[name] for name in names], float) ** (1 / temperature)
        case FixedMixing(shares=shares):
            if set(shares) != set(names):
                raise UserError(f"reader.mixing.shares must give a positive share to each of {names}, got {shares}")
            raw = np.array([shares[name] for name in names], float)
    exact = raw / raw.sum() * (batch_size - len(names))
    sizes = np.floor(exact).astype(int)
    for index in np.argsort(-(exact - sizes), kind="stable")[: batch_size - len(names) - sizes.sum()]:
        sizes[index] += 1
    return {name: int(size) + 1 for name, size in zip(names, sizes, strict=True)}
