"""Optimizers: that of the tables, mostly fused into their backward, Adam of the rest, one schedule."""

import math
from dataclasses import dataclass, field

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from torchrec_mt.distributed.sharding import allow_one_update, is_table, replicated_tables, table_kernels
from torchrec_mt.distributed.table_optimizers import RowWiseAdagrad, TableOptimizer, plain_optimizer
from torchrec_mt.errors import require, within


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates.

    Args:
        tables: the rule of all tables, however they are sharded. table_rate: its rate. dense_rate: Adam of the rest.
        warmup_steps: steps of linear warm-up. final_rate: share of the rate left at the last step (cosine decay).
    """

    tables: TableOptimizer = field(default_factory=RowWiseAdagrad)
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
    """All optimizers behind one `step`; sharded tables were updated in the backward already.

    Replicated tables, which TorchRec gives no optimizer, take the fused kernel's update from the plain rule.

    Raises:
        ValueError: a table that no optimizer would update, or two would.
    """

    def __init__(self, config: OptimConfig, model: DistributedModelParallel, steps: int) -> None:
        self._config, self._steps = config, steps
        replicated = replicated_tables(model)
        dense = {name: parameter for name, parameter in model.named_parameters() if not is_table(name)}
        self._fused, self._kernels = model.fused_optimizer, table_kernels(model)
        self._after_backward = {
            "dense": KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=config.dense_rate))
        }
        if replicated:
            self._after_backward["replicated"] = KeyedOptimizerWrapper(
                replicated, lambda parameters: plain_optimizer(config.tables, parameters, config.table_rate)
            )
        self.combined = CombinedOptimizer([("tables", self._fused), *self._after_backward.items()])

    def zero_grad(self) -> None:
        for optimizer in self._after_backward.values():
            optimizer.zero_grad()

    def set_rate(self, step: int) -> None:
        """Call before the backward of a step: sharded tables take their update there."""
        factor = rate_factor(self._config, step, self._steps)
        for name, optimizer in {"tables": self._fused, **self._after_backward}.items():
            rate = self._config.dense_rate if name == "dense" else self._config.table_rate
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        # The fused optimizer passes its rate to the kernels here; the weights moved in the backward.
        self._fused.step()
        allow_one_update(self._kernels)

    def step(self) -> None:
        for optimizer in self._after_backward.values():
            optimizer.step()
