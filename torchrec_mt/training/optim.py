"""Optimizers: that of the tables, mostly fused into their backward, Adam of the rest, one schedule."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from torchrec_mt.distributed.sharding import allow_one_update, is_table, replicated_tables, table_kernels
from torchrec_mt.distributed.table_optimizers import RowWiseAdagrad, TableOptimizer, plain_optimizer
from torchrec_mt.errors import within
from torchrec_mt.training.ema import EmaConfig, MovingAverage
from torchrec_mt.training.schedule import CosineSchedule, Schedule, rate_factor


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates, and what becomes of gradients and weights.

    Args:
        tables: the rule of all tables, however they are sharded. table_rate: its rate. dense_rate: Adam of the rest.
        schedule: how both rates change over the run.
        clip_norm: the gradients of all that is updated after the backward (dense weights and replicated tables, as one
            vector) are scaled down to this length where they are longer; 0 never. Sharded tables are not clipped: they
            take their update inside the backward, before the length is known; Adagrad (SGD does not) divides by the
            length of a row's own gradients, so that no row moves by much more than its rate anyway.
        ema: validation and the saved models take the dense weights' moving averages, none: the weights themselves.
    """

    tables: TableOptimizer = field(default_factory=RowWiseAdagrad)
    table_rate: float = 0.05
    dense_rate: float = 1e-3
    schedule: Schedule = field(default_factory=CosineSchedule)
    clip_norm: float = 0.0
    ema: EmaConfig | None = None

    def __post_init__(self) -> None:
        within(self, 0, 1e30, "table_rate", "dense_rate")  # float32 holds it; whether it learns is seen in training
        within(self, 0, 1e30, "clip_norm")


class Optimizers:
    """All optimizers behind one `step`; sharded tables were updated in the backward already.

    Replicated tables, which TorchRec gives no optimizer, take the fused kernel's update from the plain rule.

    `gradient_norm` is the length of the last step's gradients of dense weights and replicated tables before clipping,
    equal on all ranks; `average` holds the moving averages where the config asks for them.

    Raises:
        ValueError: a table that no optimizer would update, or two would.
    """

    def __init__(self, config: OptimConfig, model: DistributedModelParallel, steps: int) -> None:
        self._config, self._steps = config, steps
        self.table_rule = config.tables
        self.gradient_norm: Tensor | None = None
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
        self.average = MovingAverage(config.ema, dense) if config.ema else None
        self._dense = list(dense.values())
        self._clipped = [*self._dense, *replicated.values()]
        self.combined = CombinedOptimizer([("tables", self._fused), *self._after_backward.items()])

    def zero_grad(self) -> None:
        for optimizer in self._after_backward.values():
            optimizer.zero_grad()

    def set_rate(self, step: int) -> None:
        """Call before the backward of a step: sharded tables take their update there."""
        factor = rate_factor(self._config.schedule, step, self._steps)
        for name, optimizer in {"tables": self._fused, **self._after_backward}.items():
            rate = self._config.dense_rate if name == "dense" else self._config.table_rate
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        # The fused optimizer passes its rate to the kernels here; the weights moved in the backward.
        self._fused.step()
        allow_one_update(self._kernels)

    def dense_gradients(self) -> list[Tensor]:
        """Of the last backward, by reference."""
        return [parameter.grad for parameter in self._dense if parameter.grad is not None]

    def replicated_sums(self) -> int:
        """Bytes that the optimizer of replicated tables remembers, its step counters left out."""
        optimizer = self._after_backward.get("replicated")
        states = [] if optimizer is None else [optimizer.state.get(table, {}) for table in optimizer.params.values()]
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in tensors if tensor.dim())

    def dense_slots(self) -> list[tuple[str, str, Tensor]]:
        """What the dense optimizer remembers of each weight: weight, name, tensor by reference."""
        optimizer = self._after_backward["dense"]
        states = [(name, optimizer.state.get(parameter, {})) for name, parameter in optimizer.params.items()]
        return [(name, key, value) for name, state in states for key, value in sorted(state.items())]

    def make_dense_slots(self, told: Sequence[Sequence[Any]]) -> list[tuple[str, str, Tensor]]:
        """Makes room for slots of another run's optimizer of the same weights; returns them, to be filled.

        Args:
            told: weight, name, dtype, shape, device ("cpu" or the weight's) of each.
        """
        optimizer = self._after_backward["dense"]
        for parameter in optimizer.params.values():
            optimizer.state[parameter] = {}
        for name, key, dtype, shape, place in told:
            if name in optimizer.params:
                parameter = optimizer.params[name]
                device = torch.device("cpu") if place == "cpu" else parameter.device
                optimizer.state[parameter][key] = torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
        return self.dense_slots()

    def step(self) -> None:
        """Updates what the backward has not."""
        gradients = [parameter.grad for parameter in self._clipped if parameter.grad is not None]
        self.gradient_norm = get_total_norm(gradients)
        if self._config.clip_norm:
            clip_grads_with_norm_(self._clipped, self._config.clip_norm, self.gradient_norm)
        for optimizer in self._after_backward.values():
            optimizer.step()

    def take_average(self) -> None:
        """Takes the weights into their moving averages. Call when a step has wholly settled them."""
        if self.average:
            self.average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the model's dense weights are their moving averages, if the config asks for them."""
        return self.average.applied() if self.average else nullcontext()
