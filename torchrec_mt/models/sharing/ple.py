"""PLE (Tang et al., RecSys 2020): levels of shared experts and experts of each task, kept apart.

A level is CGC (customised gate control): a task's gate sees its own and the shared experts, the shared gate sees all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from torchrec_mt.errors import within
from torchrec_mt.models.sharing.parts import Experts, Sizes, TaskSide, mixed
from torchrec_mt.models.towers import ByName, product_flops, zeroed

_State = Mapping[str | None, Tensor]
"""x_BD by task; None: what all tasks share."""


@dataclass(frozen=True, kw_only=True)
class Ple:
    """Levels of shared experts and experts of each task, then the task's own residual block.

    Args:
        levels: one is CGC. shared_experts: of a level. own_experts: of a level and task. expert_hidden: width inside
            each. candidate_side: the same on the candidates' side, with experts of its own, so that a candidate's
            vector is per task.
    """

    shared_tables: ClassVar[bool] = True
    own_tables: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ("expert_hidden",)

    kind: Literal["ple"] = "ple"
    levels: int = 1
    shared_experts: int = 2
    own_experts: int = 1
    expert_hidden: int = 128
    candidate_side: bool = False

    def __post_init__(self) -> None:
        within(self, 1, 16, "levels")
        within(self, 1, 1024, "shared_experts", "own_experts")
        within(self, 1, 65_536, "expert_hidden")


class Progressive(TaskSide):
    """CGC level after level, then the task's own block."""

    def __init__(self, tasks: Sequence[str], config: Ple, sizes: Sizes) -> None:
        super().__init__()
        self._tasks = list(tasks)
        last = config.levels - 1
        self.levels = nn.ModuleList(
            CustomGates(tasks, config, sizes, is_last=number == last) for number in range(config.levels)
        )
        self.own = ByName({task: sizes.own_block() for task in tasks})

    def _wanted(self, task: str) -> list[list[str | None]]:
        """Of each level what those after it need for a task."""
        every: list[list[str | None]] = [[*self._tasks, None] for _ in self.levels]
        last: list[list[str | None]] = [[task, None], [task]]
        return [*every, *last][-len(self.levels) :]

    def forward(self, x_BD: Tensor, task: str) -> Tensor:
        states: _State = dict.fromkeys([*self._tasks, None], x_BD)
        for level, wanted in zip(self.levels, self._wanted(task), strict=True):
            states = level(states, wanted)
        return self.own[task](states[task])

    def flops(self, task: str) -> int:
        levels = zip(self.levels, self._wanted(task), strict=True)
        return product_flops(self.own[task]) + sum(cast("CustomGates", level).flops(wanted) for level, wanted in levels)


class CustomGates(nn.Module):
    """A level: each state + the gate's mixture of what its experts add. Gates start at equal shares.

    Args:
        is_last: nothing is shared after it.
    """

    def __init__(self, tasks: Sequence[str], config: Ple, sizes: Sizes, *, is_last: bool) -> None:
        super().__init__()
        self._tasks = list(tasks)
        hidden = config.expert_hidden
        seen = config.own_experts + config.shared_experts
        self.own_experts = ByName({task: Experts(config.own_experts, hidden, sizes) for task in tasks})
        self.shared_experts = Experts(config.shared_experts, hidden, sizes)
        self.gates = ByName({task: zeroed(nn.Linear(sizes.dim, seen)) for task in tasks})
        every = len(tasks) * config.own_experts + config.shared_experts
        self.shared_gate = None if is_last else zeroed(nn.Linear(sizes.dim, every))

    def forward(self, states: _State, wanted: Sequence[str | None]) -> dict[str | None, Tensor]:
        """The states that are wanted, one level up."""
        shared = self.shared_experts.added(states[None])
        own = {task: self.own_experts[task].added(states[task]) for task in self._experts_for(wanted)}
        found: dict[str | None, Tensor] = {}
        for task in wanted:
            seen = (
                [*own[task], *shared] if task is not None else [part for one in own.values() for part in one] + shared
            )
            found[task] = states[task] + mixed(self._gate(task)(states[task]).softmax(dim=1), seen)
        return found

    def flops(self, wanted: Sequence[str | None]) -> int:
        """Of the states that are wanted."""
        experts = [self.own_experts[task] for task in self._experts_for(wanted)]
        return product_flops(self.shared_experts, *experts, *(self._gate(task) for task in wanted))

    def _experts_for(self, wanted: Sequence[str | None]) -> list[str]:
        """Tasks whose experts the wanted states need: the shared one needs all."""
        return [task for task in self._tasks if None in wanted or task in wanted]

    def _gate(self, task: str | None) -> nn.Module:
        gate = self.shared_gate if task is None else self.gates[task]
        assert gate is not None, "the last level shares nothing"
        return gate
