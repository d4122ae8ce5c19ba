"""The loop: batches in, one step each, validation and early stop between, best and last model kept."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import from_main, sum_over_ranks
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import pad_rows
from torchrec_mt.errors import UserError, require
from torchrec_mt.training.checkpoint import save_model
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.step import TaskSides, task_losses


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long to train and how to judge.

    Args:
        epochs: passes over as many pairs as the training split holds; `steps` overrides it when positive.
        validations: how often to validate in the run (the last step included).
        patience: validations without a new best before stopping; 0 never stops early.
        metric: validation metric to stop on and keep the best model by: "METRIC" (mean over the tasks) or
            "TASK/METRIC".
        validation_anchors: anchors per task in a validation, a fixed sample.
        log_every: steps between lines of metrics.jsonl.
    """

    epochs: float = 5.0
    steps: int = 0
    validations: int = 5
    patience: int = 0
    metric: str = "recall@100"
    validation_anchors: int = 1000
    log_every: int = 20

    def __post_init__(self) -> None:
        require(self.steps > 0 or self.epochs > 0, "epochs", self.epochs, "above 0 (or give steps)")
        for key in ("steps", "patience", "validation_anchors"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key in ("validations", "log_every"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")


Metrics = dict[str, float]


class Progress(Protocol):
    """What shows training to a person; called on the main rank."""

    def step(self, step: int, steps: int, values: Metrics) -> None:
        """A logged step."""

    def validation(self, step: int, values: Metrics) -> None:
        """A validation."""


class Trainer:
    """Trains one model.

    Args:
        tasks: entities of each task. weights: weight of each task's loss.
        validate: metrics of the current model by "TASK/METRIC"; called on every rank, result used of rank 0.
        log: called on the main rank with step, kind and values.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        *,
        tasks: dict[str, TaskSides],
        weights: dict[str, float],
        runtime: Runtime,
        validate: Callable[[], Metrics | None],
        log: Callable[[int, str, Metrics], None],
        model_path: Path,
        progress: Progress | None = None,
    ) -> None:
        self._config, self._model, self._optimizers = config, model, optimizers
        self._tasks, self._weights, self._runtime = tasks, weights, runtime
        self._validate, self._log, self._model_path = validate, log, model_path
        self._progress = progress

    def train_step(self, batch: Batch, step: int) -> torch.Tensor:
        """One step. Returns the losses of the batch of all ranks, losses_T, still on the device."""
        batch = pad_rows(batch.to(self._runtime.device, non_blocking=True))
        self._optimizers.set_rate(step)
        self._optimizers.zero_grad()
        vectors = self._model(batch)
        losses = task_losses(vectors, batch, self._tasks)
        # The only backward of the step: it also updates the tables.
        sum(self._weights[name] * loss for name, loss in losses.items()).backward()  # type: ignore[union-attr]
        self._optimizers.step()
        return sum_over_ranks(torch.stack(list(losses.values()))) / self._runtime.world_size

    def run(self, batches: Iterator[Batch], steps: int) -> tuple[EarlyStop, int]:
        """Trains for `steps` steps or until early stop. Returns the stop's memory and the steps taken."""
        config, stop = self._config, EarlyStop(self._config.patience)
        validate_at = {round(steps * (n + 1) / config.validations) for n in range(config.validations)} | {steps}
        started, pairs, step = time.perf_counter(), 0, 0
        self._model.train()
        with closing(batches):  # type: ignore[type-var]
            for step in range(1, steps + 1):
                batch = next(batches)
                losses_T = self.train_step(batch, step - 1)
                pairs += batch.num_pairs * self._runtime.world_size
                if step % config.log_every == 0 or step in validate_at or step == 1:
                    rate = pairs / (time.perf_counter() - started)
                    self._log_step(step, steps, losses_T, rate)
                if step in validate_at:
                    if self._validation(step, stop):
                        save_model(self._model, self._model_path / "best")
                    if stop.should_stop:
                        break
                    self._model.train()
        save_model(self._model, self._model_path / "last")
        return stop, step

    def _log_step(self, step: int, steps: int, losses_T: torch.Tensor, pairs_per_second: float) -> None:
        values = dict(zip(self._tasks, losses_T.tolist(), strict=True))
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            raise UserError(
                f"the loss at step {step} is {bad}: lower optim.table_rate or optim.dense_rate", exit_code=1
            )
        metrics = {f"loss/{name}": value for name, value in values.items()} | {"pairs_per_second": pairs_per_second}
        if self._runtime.is_main:
            self._log(step, "train", metrics)
            if self._progress:
                self._progress.step(step, steps, metrics)

    def _validation(self, step: int, stop: EarlyStop) -> bool:
        metrics: dict[str, Any] = from_main(self._validate())
        value = chosen_metric(self._config.metric, metrics)
        if self._runtime.is_main:
            self._log(step, "valid", metrics | {"chosen": value})
            if self._progress:
                self._progress.validation(step, metrics | {"chosen": value})
        return stop.update(value, step)


def chosen_metric(name: str, metrics: Metrics) -> float:
    """The metric that judges a validation: one entry "TASK/METRIC", or the mean of METRIC over tasks.

    Raises:
        UserError: no such entry.
    """
    if name in metrics:
        return metrics[name]
    values = [value for key, value in metrics.items() if key.rpartition("/")[2] == name]
    if not values:
        raise UserError(f"trainer.metric = {name!r} is none of the validation metrics: {sorted(metrics)}")
    return sum(values) / len(values)
