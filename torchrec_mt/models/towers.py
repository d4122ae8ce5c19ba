"""Towers: features of an entity -> one vector.

Second stage of the model; what tasks share and what each has of its own is in sharing/. All are residual around an
identity path whose start is the plain sum of feature vectors: an untrained model already scores by shared tokens, and
training learns what to add.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

M = TypeVar("M", bound=nn.Module)


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The layer with weights and bias of 0."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def unit(x_ED: Tensor) -> Tensor:
    """Rows of length 1.

    A row of zeros (an entity whose bags are all empty, in an untrained model) stays zero and its gradient is of bounded
    size; torch's `normalize` would multiply it by 1e12 and spoil Adam's moments for the run.
    """
    return x_ED * (x_ED.square().sum(dim=1, keepdim=True) + 1e-6).rsqrt()


def in_slices(function: Callable[..., Tensor], at_once: int, *inputs: Tensor) -> Tensor:
    """`function` of the inputs' rows, `at_once` rows at a time (0: all); activations are recomputed in the backward."""
    rows = len(inputs[0])
    if at_once == 0 or rows <= at_once:
        return function(*inputs)
    slices = [[x[start : start + at_once] for x in inputs] for start in range(0, rows, at_once)]
    return torch.cat([checkpoint(function, *parts, use_reentrant=False) for parts in slices])


def product_flops(*modules: nn.Module) -> int:
    """Multiplications and additions of the matrix products that each row takes in modules which run once a row: 2mn of
    a layer m x n."""
    return sum(
        2 * part.weight.numel() for module in modules for part in module.modules() if isinstance(part, nn.Linear)
    )


class ByName(nn.Module, Generic[M]):
    """Modules by names that a user chose; `nn.ModuleDict` refuses its own attributes: "items", "train", "values"."""

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(f"of_{name}", module)

    def __getitem__(self, name: str) -> M:
        return cast("M", self.get_submodule(f"of_{name}"))


class ResidualMLP(nn.Module):
    """x_ED + W2 gelu(W1 norm(x_ED)); W2 starts at zero, so that the block starts as the identity."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.down = zeroed(nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def added(self, x_ED: Tensor) -> Tensor:
        """What the block adds to the identity path."""
        return self.down(self.dropout(nn.functional.gelu(self.up(self.norm(x_ED)))))

    def forward(self, x_ED: Tensor) -> Tensor:
        return x_ED + self.added(x_ED)


class Tower(nn.Module):
    """An entity's sparse and dense features -> one vector.

    Args:
        sparse_dims: width of each pooled sparse feature. dense_dim: width of all dense features together.
        dim: width D of the vector. hidden: width inside the residual blocks. depth: number of blocks.
    """

    def __init__(
        self, sparse_dims: Sequence[int], dense_dim: int, *, dim: int, hidden: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        if not sparse_dims and not dense_dim:
            raise ValueError("a tower needs at least one feature")
        self._direct = [index for index, width in enumerate(sparse_dims) if width == dim]
        self.gain_F = nn.Parameter(torch.ones(len(self._direct)))
        inputs = sum(sparse_dims) + dense_dim
        self.mix = nn.Linear(inputs, dim)
        nn.init.normal_(self.mix.weight, std=0.1 * inputs**-0.5)
        nn.init.zeros_(self.mix.bias)
        self.blocks = nn.Sequential(*(ResidualMLP(dim, hidden, dropout) for _ in range(depth)))

    @property
    def last(self) -> nn.Linear:
        """The last layer that has weights of its own."""
        blocks = [block for block in self.blocks if isinstance(block, ResidualMLP)]
        return blocks[-1].down if blocks else self.mix

    def forward(self, sparse: Sequence[Tensor], dense_ED: Tensor) -> Tensor:
        """The entity's vector_ED, not normalised."""
        x_ED = self.mix(torch.cat([*sparse, dense_ED], dim=1))
        for gain, index in zip(self.gain_F, self._direct, strict=True):
            x_ED = x_ED + gain * sparse[index]
        return self.blocks(x_ED)
