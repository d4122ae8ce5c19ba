"""The rule by which tables are updated: one choice, as a kernel fused into the backward and as a plain optimizer.

These three are what fbgemm's CPU kernels know; both forms of each take the same steps (tests/parity/test_layouts.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as RowWiseAdagradOptimizer

# The fused kernels' default is 1e-8, that of the plain optimizers 1e-10, so it is given to both.
TABLE_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class RowWiseAdagrad:
    """One sum per row, of the mean over its columns of squared gradients: a table's state is 1 / width of its size."""

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """One sum of squared gradients per entry (Duchi et al., JMLR 2011): the state is as large as the table."""

    kind: Literal["adagrad"] = "adagrad"


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """The gradient times the rate; no state."""

    kind: Literal["sgd"] = "sgd"


TableOptimizer = RowWiseAdagrad | Adagrad | Sgd


def _rule(optimizer: TableOptimizer) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    match optimizer:
        case RowWiseAdagrad():
            return RowWiseAdagradOptimizer, {"eps": TABLE_EPS}
        case Adagrad():
            return torch.optim.Adagrad, {"eps": TABLE_EPS}
        case Sgd():
            return torch.optim.SGD, {}


def fused_rule(optimizer: TableOptimizer, rate: float) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """Class and arguments by which TorchRec knows the fused kernel."""
    rule, arguments = _rule(optimizer)
    return rule, {"lr": rate, **arguments}


def plain_optimizer(optimizer: TableOptimizer, parameters: Iterable[nn.Parameter], rate: float) -> Optimizer:
    """The same rule for tables with a dense gradient; rows whose gradient is zero stay as they are."""
    rule, arguments = _rule(optimizer)
    return rule(parameters, lr=rate, **arguments)
