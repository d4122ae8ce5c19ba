"""Optimizers: row-wise Adagrad fused into the tables' backward, Adam for the rest, one learning-rate schedule."""

import math
from dataclasses import dataclass

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_mt.errors import require, within


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates.

    Args:
        table_rate: row-wise Adagrad of the tables. dense_rate: Adam of the rest.
        warmup_steps: steps of linear warm-up. final_rate: share of the rate left at the last step (cosine decay).
    """

    table_rate: float = 0.05
    dense_rate: float = 1e-3
    warmup_steps: int = 50
    final_rate: float = 0.1

    def __post_init__(self) -> None:
        within(self, 0, 1e30, "table_rate", "dense_rate")  # float32 holds it; whether it learns is seen in training
        within(self, 0, 1_000_000_000, "warmup_steps")
        require(0 <= self.final_rate <= 1, "final_rate", self.final_rate, "from 0 to 1")


def rate_factor(config: OptimConfig, step: int, steps: int) -> float:
    """Share of the full learning rate at a step: linear warm-up, then cosine decay to `final_rate`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Optimizers:
    """Both optimizers behind one `step`; tables were updated in the backward already.

    Raises:
        ValueError: a table that neither optimizer would update (TorchRec leaves replicated tables to the dense one).
    """

    def __init__(self, config: OptimConfig, model: DistributedModelParallel, steps: int) -> None:
        self._config, self._steps = config, steps
        dense = dict(in_backward_optimizer_filter(model.named_parameters()))
        orphans = [name for name in dense if ".embedding_bags." in name]
        if orphans:
            raise ValueError(f"tables without their fused optimizer: {orphans}")
        self._fused = model.fused_optimizer
        self._dense = KeyedOptimizerWrapper(
            dense, lambda parameters: torch.optim.Adam(parameters, lr=config.dense_rate)
        )
        self.combined = CombinedOptimizer([("tables", self._fused), ("dense", self._dense)])

    def zero_grad(self) -> None:
        self._dense.zero_grad()

    def set_rate(self, step: int) -> None:
        """Call before the backward of a step: the tables take their update there."""
        factor = rate_factor(self._config, step, self._steps)
        for optimizer, rate in ((self._fused, self._config.table_rate), (self._dense, self._config.dense_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        # The fused optimizer passes its rate to the kernels here; the weights moved in the backward.
        self._fused.step()

    def step(self) -> None:
        self._dense.step()
