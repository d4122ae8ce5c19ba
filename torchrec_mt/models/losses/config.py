"""Which loss a task is trained by."""

from dataclasses import dataclass, field
from typing import Literal

from torchrec_mt.errors import require
from torchrec_mt.models.losses.walk import Precision


@dataclass(frozen=True, kw_only=True)
class SoftmaxLoss:
    """Cross entropy of the anchor's candidate among all columns; with logQ it estimates the softmax over the catalogue.

    Args:
        symmetric: also the candidate's anchor among the batch's anchors, half and half.
        label_smoothing: share of the target spread evenly over the catalogue.
        grades: a pair's grade as soft target: pairs weigh by the grade ("linear") or 2^grade - 1 ("exponential"), and
            an anchor's other known candidates stay in its denominator, so that the scores learn the order of grades.
    """

    kind: Literal["softmax"] = "softmax"
    symmetric: bool = False
    label_smoothing: float = 0.0
    grades: Literal["none", "linear", "exponential"] = "none"

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")
        clash = self.symmetric and self.grades != "none"
        require(
            not clash,
            "symmetric",
            self.symmetric,
            'false where grades is not "none"',
        )


@dataclass(frozen=True, kw_only=True)
class BceLoss:
    """Binary cross entropy: the pair against every product of the catalogue, estimated from the columns.

    The logit is the score minus log(catalogue size) plus a learned bias of the task.
    """

    kind: Literal["bce"] = "bce"


@dataclass(frozen=True, kw_only=True)
class MarginLoss:
    """Triplets: by how much the cosine of a column comes closer than `margin` to that of the pair, on average."""

    kind: Literal["margin"] = "margin"
    margin: float = 0.2

    def __post_init__(self) -> None:
        require(0 < self.margin <= 2, "margin", self.margin, "above 0 and at most 2 (cosines lie in [-1, 1])")


Loss = SoftmaxLoss | BceLoss | MarginLoss


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Losses of all tasks.

    Args:
        default: for tasks not named in `tasks`. precision: of the matrix products of the loss; `auto` is bfloat16 (with
            float32 sums) where the processor or GPU multiplies it, else float32.
    """

    default: Loss = field(default_factory=SoftmaxLoss)
    tasks: dict[str, Loss] = field(default_factory=dict)
    precision: Precision = "auto"

    def of(self, task: str) -> Loss:
        """The loss of a task."""
        return self.tasks.get(task, self.default)
