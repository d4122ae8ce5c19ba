"""The loop: batches in, one step each, validation and early stop between, best and last model kept."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import from_main, gather_numbers, sum_over_ranks
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import pad_rows
from torchrec_mt.errors import UserError, require, within
from torchrec_mt.models.embeddings import Embeddings
from torchrec_mt.models.scales import TaskScales
from torchrec_mt.retrieval.metrics import METRICS
from torchrec_mt.training.alarms import COLLAPSED, check_losses, spread
from torchrec_mt.training.checkpoint import save_model
from torchrec_mt.training.clock import StepClock, over_ranks
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.tracking import NoTracking, Tracking


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
        log_every: steps between lines of metrics.jsonl. tracking: where they go as well.
    """

    epochs: float = 5.0
    steps: int = 0
    validations: int = 5
    patience: int = 0
    metric: str = "recall@100"
    validation_anchors: int = 1000
    log_every: int = 20
    tracking: Tracking = field(default_factory=NoTracking)

    def __post_init__(self) -> None:
        require(self.steps > 0 or self.epochs > 0, "epochs", self.epochs, "above 0 (or give steps)")
        within(self, 0, 1_000_000, "epochs")
        within(self, 0, 1_000_000_000, "steps", "patience", "validation_anchors")
        within(self, 1, 1_000_000, "validations")
        within(self, 1, 1_000_000_000, "log_every")


Metrics = dict[str, float]


class Progress(Protocol):
    """What shows training to a person; called on the main rank."""

    def step(self, step: int, steps: int, values: Metrics) -> None:
        """A logged step."""

    def validation(self, step: int, values: Metrics) -> None:
        """A validation."""

    def warning(self, step: int, text: str) -> None:
        """Something that a person should look at."""


class Trainer:
    """Trains one model.

    Args:
        objective: losses of a batch. weights: weight of each task's loss.
        validate: metrics of the current model by "TASK/METRIC"; called on every rank, result used of rank 0.
        log: called on the main rank with step, kind and values.
        run_path: the folder whose `model/` takes the best and the last model.
        offending_path: where the batch goes that breaks the run; none is RUN/offending_batch.
        publish: called on every rank after each saved model; says where the run folder lies from then on.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        *,
        objective: Objective,
        weights: dict[str, float],
        runtime: Runtime,
        validate: Callable[[], Metrics | None],
        log: Callable[[int, str, Metrics], None],
        run_path: Path,
        offending_path: Path | None = None,
        publish: Callable[[], Path] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._config, self._model, self._optimizers = config, model, optimizers
        self._objective, self._weights, self._runtime = objective, weights, runtime
        self._validate, self._log, self._run_path = validate, log, run_path
        self._offending_path = offending_path or run_path / "offending_batch"
        self._publish, self._progress = publish, progress
        self.clock = StepClock(runtime.device)
        self.clock.watch(next(module for module in model.modules() if isinstance(module, Embeddings)))
        self._scales = next(module for module in model.modules() if isinstance(module, TaskScales))

    def step(self, batches: Iterator[Batch], step: int, *, timed: bool = True) -> tuple[Metrics, int]:
        """The next batch and its step, on the clock. Returns the losses and the number of pairs of this rank."""
        self.clock.start(timed=timed)
        batch = next(batches)
        self.clock.mark("data")
        losses = self.train_step(batch, step)
        self.clock.stop()
        return losses, batch.num_pairs

    def train_step(self, batch: Batch, step: int) -> dict[str, float]:
        """One step. Returns the losses of the batch of all ranks by task.

        Raises:
            UserError: a loss that is no finite number, before anything was updated.
        """
        clock = self.clock
        batch = pad_rows(batch.to(self._runtime.device, non_blocking=True))
        self._optimizers.set_rate(step)
        self._optimizers.zero_grad()
        clock.mark("copy")
        vectors = self._model(batch)
        clock.mark("towers")
        losses = self._objective(vectors, batch, step)
        mean_T = sum_over_ranks(torch.stack(list(losses.values()))) / self._runtime.world_size
        values = dict(zip(losses, mean_T.tolist(), strict=True))
        check_losses(values, batch, step + 1, self._offending_path, self._runtime.rank)
        clock.mark("loss")
        # The only backward of the step: it also updates the tables.
        sum(self._weights[name] * loss for name, loss in losses.items()).backward()  # type: ignore[union-attr]
        clock.mark("tables")
        self._optimizers.step()
        self._scales.clip()
        clock.mark("optimizer")
        self._candidates = {
            name: (candidate_BD.detach(), batch.pairs[name].candidate_id_B)
            for name, candidate_BD in vectors.candidate.items()
        }
        return values

    def run(self, batches: Iterator[Batch], steps: int) -> tuple[EarlyStop, int]:
        """Trains for `steps` steps or until early stop. Returns the stop's memory and the steps taken."""
        config, stop, step = self._config, EarlyStop(self._config.patience), 0
        validate_at = {round(steps * (n + 1) / config.validations) for n in range(config.validations)} | {steps}
        self._model.train()
        with closing(batches):  # type: ignore[type-var]
            for step in range(1, steps + 1):
                logs = step % config.log_every == 0 or step in validate_at or step == 1
                losses, pairs = self.step(batches, step - 1, timed=logs)
                if logs:
                    self._log_step(step, steps, losses, pairs)
                if step in validate_at:
                    if self._validation(step, stop):
                        self._save("best")
                    if stop.should_stop:
                        break
                    self._model.train()
        self._save("last")
        return stop, step

    def _save(self, name: str) -> None:
        save_model(self._model, self._run_path / "model" / name)
        if self._publish:
            self._run_path = self._publish()

    def _log_step(self, step: int, steps: int, losses: Metrics, pairs: int) -> None:
        phases = self.clock.read()
        ranks = gather_numbers(list(phases.values()), self._runtime.device)
        spreads = {name: spread(*candidates) for name, candidates in self._candidates.items()}
        spreads = {name: value for name, value in spreads.items() if math.isfinite(value)}  # too few say nothing
        if not self._runtime.is_main:
            return
        rate = pairs * self._runtime.world_size / (sum(phases.values()) / 1000)
        metrics = {f"loss/{name}": value for name, value in losses.items()} | {"pairs_per_second": rate}
        metrics |= {f"ms/{phase}": value for phase, value in phases.items()}
        metrics |= over_ranks(dict(zip(phases, zip(*ranks, strict=True), strict=True)))
        metrics |= {f"spread/{name}": value for name, value in spreads.items()}
        self._log(step, "train", metrics)
        if self._progress:
            self._progress.step(step, steps, metrics)
        for name, value in spreads.items():
            if value < COLLAPSED:
                self._log(step, "warning", {f"collapse/{name}": value})
                if self._progress:
                    self._progress.warning(step, f"the vectors of task '{name}' collapse: spread {value:.3f} of 1")

    def _validation(self, step: int, stop: EarlyStop) -> bool:
        metrics: dict[str, Any] = from_main(self._validate())
        value = chosen_metric(self._config.metric, metrics)
        if self._runtime.is_main:
            self._log(step, "valid", metrics | {"chosen": value})
            if self._progress:
                self._progress.validation(step, metrics | {"chosen": value})
        return stop.update(value, step)


def check_metric(name: str, tasks: Collection[str]) -> None:
    """Is there a validation metric of this name? Asked before anything is written or trained.

    Args:
        tasks: trained tasks that have validation pairs.

    Raises:
        UserError: no such task or metric, or nothing to validate on.
    """
    if not tasks:
        raise UserError("no trained task has validation pairs: give dataset.split a larger valid_share, prepare again")
    known = [*METRICS, *(f"{task}/{metric}" for task in tasks for metric in METRICS)]
    if name not in known:
        raise UserError(f"trainer.metric = {name!r} is none of the validation metrics: {known}")


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
