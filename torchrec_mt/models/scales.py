"""How cosines become logits: a temperature per task, learned within bounds or fixed; a bias where a loss has one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchrec_mt.errors import require, within


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What cosines are divided by: starts at `initial`; learned within [minimum, maximum], or fixed."""

    initial: float = 0.07
    minimum: float = 0.02
    maximum: float = 1.0
    learned: bool = True

    def __post_init__(self) -> None:
        bounds = f"above 0 and within [minimum, maximum] = [{self.minimum}, {self.maximum}]"
        require(0 < self.minimum <= self.initial <= self.maximum, "initial", self.initial, bounds)
        within(self, 0.0001, 1_000, "minimum", "maximum")


class TaskScales(nn.Module):
    """Inverse temperature and bias of every task.

    Args:
        tasks: names, T of them. default, own: temperatures. biased: tasks with a learned bias, which starts at 0.
    """

    def __init__(
        self, tasks: Iterable[str], default: Temperature, own: Mapping[str, Temperature], biased: tuple[str, ...]
    ) -> None:
        super().__init__()
        self._tasks, self._biased = list(tasks), biased
        chosen = [own.get(task, default) for task in self._tasks]
        self.log_inverse_T = nn.Parameter(-torch.tensor([one.initial for one in chosen]).log())
        self.bias_S = nn.Parameter(torch.zeros(len(biased))) if biased else None
        # A fixed temperature is one whose bounds leave it no room.
        least = [one.minimum if one.learned else one.initial for one in chosen]
        most = [one.maximum if one.learned else one.initial for one in chosen]
        self.register_buffer("_low_T", -torch.tensor(most).log(), persistent=False)
        self.register_buffer("_high_T", -torch.tensor(least).log(), persistent=False)

    def forward(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inverse temperature per task, and bias per task that has one: scalars.

        Outside its bounds a temperature has no gradient and would stay there: `clip` it after every step.
        """
        inverse_T = self.log_inverse_T.clamp(self._low_T, self._high_T).exp()  # type: ignore[arg-type]
        bias = {} if self.bias_S is None else dict(zip(self._biased, self.bias_S, strict=True))
        return dict(zip(self._tasks, inverse_T, strict=True)), bias

    @torch.no_grad()
    def clip(self) -> None:
        """Brings temperatures back into their bounds."""
        self.log_inverse_T.clamp_(self._low_T, self._high_T)  # type: ignore[arg-type]
