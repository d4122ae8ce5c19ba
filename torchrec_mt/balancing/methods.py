"""Settings of the methods in losses.py and gradients.py: one tagged class per method, chosen in choice.py."""

from dataclasses import dataclass
from typing import Literal

from torchrec_mt.errors import require, within


@dataclass(frozen=True, kw_only=True)
class Static:
    """The weights of the config, nothing else."""

    kind: Literal["static"] = "static"


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """See `losses.uncertainty`. `rate`: of the learned log variances."""

    kind: Literal["uncertainty"] = "uncertainty"
    rate: float = 0.01

    def __post_init__(self) -> None:
        within(self, 0, 1, "rate")


@dataclass(frozen=True, kw_only=True)
class Dwa:
    """See `losses.dwa`. `window`: steps whose mean loss is compared with that of as many before."""

    kind: Literal["dwa"] = "dwa"
    window: int = 100
    temperature: float = 2.0

    def __post_init__(self) -> None:
        within(self, 1, 1_000_000_000, "window")
        within(self, 0.01, 1_000_000, "temperature")


@dataclass(frozen=True, kw_only=True)
class Log:
    """See `losses.log`."""

    kind: Literal["log"] = "log"


@dataclass(frozen=True, kw_only=True)
class Famo:
    """See `losses.famo`. `rate`: of the learned logits. `decay`: how they are pulled back to 0."""

    kind: Literal["famo"] = "famo"
    rate: float = 0.025
    decay: float = 0.001

    def __post_init__(self) -> None:
        within(self, 0, 10, "rate")
        within(self, 0, 1, "decay")


@dataclass(frozen=True, kw_only=True)
class GradNorm:
    """See `gradients.gradnorm`. `rate`: of the learned weights. `alpha`: how much slow tasks are pulled along."""

    kind: Literal["gradnorm"] = "gradnorm"
    rate: float = 0.025
    alpha: float = 1.5

    def __post_init__(self) -> None:
        within(self, 0, 1, "rate")
        within(self, 0, 10, "alpha")


@dataclass(frozen=True, kw_only=True)
class PcGrad:
    """See `gradients.pcgrad`."""

    kind: Literal["pcgrad"] = "pcgrad"


@dataclass(frozen=True, kw_only=True)
class CaGrad:
    """See `gradients.cagrad`. `radius`: how far from the mean gradient, as a share of its length."""

    kind: Literal["cagrad"] = "cagrad"
    radius: float = 0.4

    def __post_init__(self) -> None:
        require(0 <= self.radius < 1, "radius", self.radius, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Mgda:
    """See `gradients.mgda`."""

    kind: Literal["mgda"] = "mgda"


@dataclass(frozen=True, kw_only=True)
class NashMtl:
    """See `gradients.nash_mtl`."""

    kind: Literal["nash_mtl"] = "nash_mtl"


@dataclass(frozen=True, kw_only=True)
class UpGrad:
    """See `gradients.upgrad`."""

    kind: Literal["upgrad"] = "upgrad"


@dataclass(frozen=True, kw_only=True)
class AlignedMtl:
    """See `gradients.aligned_mtl`."""

    kind: Literal["aligned_mtl"] = "aligned_mtl"


@dataclass(frozen=True, kw_only=True)
class ImtlG:
    """See `gradients.imtl_g`."""

    kind: Literal["imtl_g"] = "imtl_g"


@dataclass(frozen=True, kw_only=True)
class MultiBalance:
    """See `gradients.multibalance`. `rate`: of the projected gradient step on the weights."""

    kind: Literal["multibalance"] = "multibalance"
    rate: float = 0.05

    def __post_init__(self) -> None:
        within(self, 0, 1, "rate")


@dataclass(frozen=True, kw_only=True)
class MetaBalance:
    """See `gradients.metabalance`.

    Args:
        target: the task whose gradient's length the others come near. relax: how near: 0 not at all, 1 the same.
        strategy: which others: longer ones are reduced, shorter ones enlarged, or both.
    """

    kind: Literal["metabalance"] = "metabalance"
    target: str
    relax: float = 0.7
    strategy: Literal["both", "reduce", "enlarge"] = "both"

    def __post_init__(self) -> None:
        within(self, 0, 1, "relax")
