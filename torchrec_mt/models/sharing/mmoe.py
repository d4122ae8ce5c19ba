"""MMoE (Ma et al., KDD 2018): experts that all tasks share, weighed by a gate of each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from torchrec_mt.errors import within
from torchrec_mt.models.sharing.parts import Experts, Sizes, TaskSide, mixed
from torchrec_mt.models.towers import ByName, product_flops, zeroed


@dataclass(frozen=True, kw_only=True)
class Mmoe:
    """Shared experts, gates of each task, then the task's own residual block.

    Args:
        experts: how many. expert_hidden: width inside each. candidate_side: the same on the candidates' side, with
            experts of its own, so that a candidate's vector is per task.
    """

    shared_tables: ClassVar[bool] = True
    own_tables: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ("expert_hidden",)

    kind: Literal["mmoe"] = "mmoe"
    experts: int = 4
    expert_hidden: int = 128
    candidate_side: bool = False

    def __post_init__(self) -> None:
        within(self, 1, 1024, "experts")
        within(self, 1, 65_536, "expert_hidden")


class MultiGate(TaskSide):
    """x_BD + the gate's mixture of what experts add to it, then the task's own block.

    Gates are a softmax over experts and start at equal shares. With shares that sum to 1 this is a mixture of residual
    experts.
    """

    def __init__(self, tasks: Sequence[str], config: Mmoe, sizes: Sizes) -> None:
        super().__init__()
        self.experts = Experts(config.experts, config.expert_hidden, sizes)
        self.gates = ByName({task: zeroed(nn.Linear(sizes.dim, config.experts)) for task in tasks})
        self.own = ByName({task: sizes.own_block() for task in tasks})

    def forward(self, x_BD: Tensor, task: str) -> Tensor:
        gate_BK = self.gates[task](x_BD).softmax(dim=1)
        return self.own[task](x_BD + mixed(gate_BK, self.experts.added(x_BD)))

    def flops(self, task: str) -> int:
        return product_flops(self.experts, self.gates[task], self.own[task])
