"""AdaTT-sp (Li et al., KDD 2023, arXiv 2304.04959): experts of each task, and gates of each task over all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from torchrec_mt.errors import within
from torchrec_mt.models.sharing.parts import Experts, Sizes, TaskSide, mixed
from torchrec_mt.models.towers import ByName, product_flops, zeroed


@dataclass(frozen=True, kw_only=True)
class AdaTT:
    """Levels of experts of each task, fused by task-to-task gates, then the task's own residual block.

    Args:
        levels: how many. own_experts: of a level and task. expert_hidden: width inside each. candidate_side: the same
            on the candidates' side, with experts of its own, so that a candidate's vector is per task.
    """

    shared_tables: ClassVar[bool] = True
    own_tables: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ("expert_hidden",)

    kind: Literal["adatt"] = "adatt"
    levels: int = 1
    own_experts: int = 2
    expert_hidden: int = 128
    candidate_side: bool = False

    def __post_init__(self) -> None:
        within(self, 1, 16, "levels")
        within(self, 1, 1024, "own_experts")
        within(self, 1, 65_536, "expert_hidden")


class TaskToTask(TaskSide):
    """Fusion level after level, then the task's own block. All but the last level are computed for all tasks."""

    def __init__(self, tasks: Sequence[str], config: AdaTT, sizes: Sizes) -> None:
        super().__init__()
        self._tasks = list(tasks)
        self.levels = nn.ModuleList(Fusion(tasks, config, sizes) for _ in range(config.levels))
        self.own = ByName({task: sizes.own_block() for task in tasks})

    def _wanted(self, task: str) -> list[list[str]]:
        return [*[self._tasks] * (len(self.levels) - 1), [task]]

    def forward(self, x_BD: Tensor, task: str) -> Tensor:
        states: Mapping[str, Tensor] = dict.fromkeys(self._tasks, x_BD)
        for level, wanted in zip(self.levels, self._wanted(task), strict=True):
            states = level(states, wanted)
        return self.own[task](states[task])

    def flops(self, task: str) -> int:
        levels = zip(self.levels, self._wanted(task), strict=True)
        return product_flops(self.own[task]) + sum(cast("Fusion", level).flops(wanted) for level, wanted in levels)


class Fusion(nn.Module):
    """A level: each state + the gate's mixture of what all tasks' experts add + a linear mixture of its own experts'.

    Gates start at equal shares, and so do the weights own_TK of the linear mixture.
    """

    def __init__(self, tasks: Sequence[str], config: AdaTT, sizes: Sizes) -> None:
        super().__init__()
        self._row = {task: row for row, task in enumerate(tasks)}
        self.experts = ByName({task: Experts(config.own_experts, config.expert_hidden, sizes) for task in tasks})
        every = len(tasks) * config.own_experts
        self.gates = ByName({task: zeroed(nn.Linear(sizes.dim, every)) for task in tasks})
        self.own_TK = nn.Parameter(torch.full((len(tasks), config.own_experts), 1 / config.own_experts))

    def forward(self, states: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """The states of the tasks that are wanted, one level up."""
        added = {task: self.experts[task].added(x_BD) for task, x_BD in states.items()}
        every = [part for parts in added.values() for part in parts]
        found = {}
        for task in wanted:
            gate_BK = self.gates[task](states[task]).softmax(dim=1)
            own_1K = self.own_TK[self._row[task]][None]
            found[task] = states[task] + mixed(gate_BK, every) + mixed(own_1K, added[task])
        return found

    def flops(self, wanted: Sequence[str]) -> int:
        """Of the states that are wanted."""
        return product_flops(self.experts, *(self.gates[task] for task in wanted))
