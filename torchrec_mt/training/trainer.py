"""The loop: batches in, one step each, validation and early stop between, best and last model kept."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import average_over_ranks, from_main, sum_over_ranks
from torchrec_mt.distributed.pipeline import InputPipeline
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import pad_rows
from torchrec_mt.errors import require, within
from torchrec_mt.models.embeddings import Embeddings
from torchrec_mt.models.scales import TaskScales
from torchrec_mt.models.two_tower import TwoTower, Vectors
from torchrec_mt.training.accumulate import JoinedLookup
from torchrec_mt.training.alarms import COLLAPSED, check_losses, spread
from torchrec_mt.training.clock import StepClock
from torchrec_mt.training.early_stop import EarlyStop, chosen_metric
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import Optimizers


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long to train and how to judge.

    Args:
        epochs: passes over as many pairs as the training split holds; `steps` overrides it when positive.
        accumulate: batches of a step: it takes the mean of their losses, with the memory of one batch's towers and
            losses. `steps` and `epochs` count as ever: a step is an update.
        validations: how often to validate in the run (the last step included).
        patience: validations without a new best before stopping; 0 never stops early.
        metric: validation metric to stop on and keep the best model by: "METRIC" (mean over the tasks) or
            "TASK/METRIC".
        validation_anchors: anchors per task in a validation, a fixed sample.
        log_every: steps between lines of metrics.jsonl.
        stuck_seconds: longest that a phase of a step may take on a rank; then the watchdog names the rank that holds up
            the others, and ends the job.
        pipeline: whether the next batch is copied to the device, and its ids sent to their ranks, while the current one
            trains, with the same results. `auto`: on a GPU, where a step has one batch.
    """

    epochs: float = 5.0
    steps: int = 0
    accumulate: int = 1
    validations: int = 5
    patience: int = 0
    metric: str = "recall@100"
    validation_anchors: int = 1000
    log_every: int = 20
    stuck_seconds: float = 600.0
    pipeline: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        require(self.steps > 0 or self.epochs > 0, "epochs", self.epochs, "above 0 (or give steps)")
        within(self, 0, 1_000_000, "epochs")
        within(self, 0, 1_000_000_000, "steps", "patience", "validation_anchors")
        within(self, 1, 1_000_000, "validations", "accumulate")
        within(self, 1, 1_000_000_000, "log_every")
        within(self, 0.1, 1_000_000, "stuck_seconds")


Metrics = dict[str, float]


class Progress(Protocol):
    """What shows training to a person; called on the main rank."""

    def step(self, step: int, steps: int, values: Metrics) -> None:
        """A logged step."""

    def validation(self, step: int, values: Metrics) -> None:
        """A validation."""

    def warning(self, step: int, text: str) -> None:
        """Something that a person should look at."""

    def resumed(self, step: int, path: str, *, best: float) -> None:
        """Training goes on after a step, from the checkpoint at `path`; `best` validation so far, or -inf."""

    def started(self, lines: Sequence[str]) -> None:
        """What a new training takes of an earlier run."""


class Keep(Protocol):
    """What keeps checkpoints; called on every rank."""

    def is_due(self, step: int) -> bool:
        """Whether one is to be kept after this step, validation or not."""

    def save(self, step: int, stop: EarlyStop, *, value: float | None = None, last: bool = False) -> None:
        """Keeps one: `value` of a validation at this step, `last` where training ends."""


class _Nothing:
    def is_due(self, step: int) -> bool:
        return False

    def save(self, step: int, stop: EarlyStop, *, value: float | None = None, last: bool = False) -> None:
        return


@dataclass(frozen=True)
class Taken:
    """How far a training went: the last step, the stop's memory, and whether it was asked to end before its end."""

    step: int
    stop: EarlyStop
    interrupted: bool = False


class Trainer:
    """Trains one model.

    Args:
        objective: losses of a batch. weights: weight of each task's loss.
        validate: metrics of the current model by "TASK/METRIC"; called on every rank, result used of rank 0.
        log: called on the main rank with step, kind and values.
        offending_path: where the batch goes that breaks the run.
        keep: takes checkpoints; none are kept without it. asked: whether this rank was asked to end; what one rank was
            asked, all do, after the step that they are in.
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
        offending_path: Path,
        keep: "Keep | None" = None,
        asked: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._config, self.model, self.optimizers = config, model, optimizers
        self._objective, self._weights, self._runtime = objective, weights, runtime
        self._validate, self._log, self._offending_path = validate, log, offending_path
        self._progress, self._keep = progress, keep or _Nothing()
        self._asked = asked or (lambda: False)
        self._is_asked = False
        # Batches that are looked up together have nothing to run ahead of; on a CPU nothing is gained.
        ahead = config.pipeline == "auto" and config.accumulate == 1 and runtime.device.type == "cuda"
        self.pipeline = InputPipeline(model, runtime.device) if ahead else None
        self.clock = StepClock(runtime.device)
        self.clock.watch(next(module for module in model.modules() if isinstance(module, Embeddings)))
        # Without DDP: for steps that average the gradients themselves.
        self._plain = next(module for module in model.modules() if isinstance(module, TwoTower))
        self._scales = next(module for module in model.modules() if isinstance(module, TaskScales))

    def step(self, batches: Iterator[Batch], step: int, *, timed: bool = True) -> tuple[Metrics, int]:
        """The next batches and their step, on the clock. Returns the losses and the number of pairs of this rank."""
        self.clock.start(step + 1, timed=timed)
        if self.pipeline is not None:
            return self._pipelined(self.pipeline, batches, step)
        taken = [next(batches) for _ in range(self._config.accumulate)]
        self.clock.mark("data")
        losses = self.train_step(taken[0], step) if len(taken) == 1 else self.train_joined(taken, step)
        self.clock.stop()
        return losses, sum(batch.num_pairs for batch in taken)

    def _pipelined(self, pipeline: InputPipeline, batches: Iterator[Batch], step: int) -> tuple[Metrics, int]:
        """A step that starts the next batch on its way while the device computes."""

        def start_next() -> None:
            batch = next(batches, None)
            self.clock.mark("data")
            if batch is not None:
                pipeline.start(batch)
            self.clock.mark("copy")

        batch = pipeline.take()
        if batch is None:  # the first step
            pipeline.start(next(batches))
            self.clock.mark("data")
            batch = pipeline.take()
            assert batch is not None
        losses = self._step(batch, step, meanwhile=start_next)
        self.clock.stop()
        return losses, batch.num_pairs

    def train_step(self, batch: Batch, step: int) -> Metrics:
        """One step. Returns the losses of the batch of all ranks by task.

        Raises:
            UserError: a loss that is no finite number, before anything was updated.
        """
        return self._step(pad_rows(batch.to(self._runtime.device, non_blocking=True)), step)

    def _step(self, batch: Batch, step: int, meanwhile: Callable[[], None] | None = None) -> Metrics:
        """A step of a batch on the device. `meanwhile` is called when the device has the losses still to compute."""
        self._begin(step)
        vectors = self.model(batch)
        self.clock.mark("towers")
        loss, values = self._loss(vectors, batch, step, meanwhile)
        # The only backward of the step: it also updates the tables.
        loss.backward()
        self.clock.mark("tables")
        self._finish(vectors, batch)
        return values

    def train_joined(self, batches: Sequence[Batch], step: int) -> Metrics:
        """One step over several batches: of the mean of their losses, which is returned. Negatives are shared within
        each batch alone.

        Raises:
            UserError: a loss that is no finite number, before anything was updated.
        """
        batches = [batch.to(self._runtime.device, non_blocking=True) for batch in batches]
        self._begin(step)
        lookup = JoinedLookup(self._plain.embeddings, batches)
        self.clock.mark("lookup")
        found = []
        for position, batch in enumerate(batches):
            vectors = self._plain(batch, sparse=lookup.of(position))
            self.clock.mark("towers")
            loss, values = self._loss(vectors, batch, step)
            (loss / len(batches)).backward()
            self.clock.mark("backward")
            found.append(values)
        average_over_ranks(self.optimizers.dense_gradients())
        self.clock.mark("backward")
        lookup.backward()
        self.clock.mark("tables")
        self._finish(vectors, batch)
        return {name: sum(values[name] for values in found) / len(found) for name in found[0]}

    def _begin(self, step: int) -> None:
        self.optimizers.set_rate(step)
        self.optimizers.zero_grad()
        self.clock.mark("copy")

    def _loss(
        self, vectors: Vectors, batch: Batch, step: int, meanwhile: Callable[[], None] | None = None
    ) -> tuple[Tensor, Metrics]:
        """What the backward begins at, and the losses by task of all ranks' batches."""
        losses = self._objective(vectors, batch, step)
        if meanwhile is not None:
            self.clock.mark("loss")
            meanwhile()
        told = [*losses.values(), torch.tensor(float(self._asked()), device=self._runtime.device)]
        *sums, asked = sum_over_ranks(torch.stack(told)).tolist()
        self._is_asked = self._is_asked or asked > 0
        values = {name: value / self._runtime.world_size for name, value in zip(losses, sums, strict=True)}
        check_losses(values, batch, step + 1, self._offending_path, self._runtime.rank)
        self.clock.mark("loss")
        return sum(self._weights[name] * loss for name, loss in losses.items()), values  # type: ignore[return-value]

    def _finish(self, vectors: Vectors, batch: Batch) -> None:
        self.optimizers.step()
        self._scales.clip()
        self.optimizers.take_average()
        self.clock.mark("optimizer")
        self._candidates = {
            name: (candidate_BD.detach(), batch.pairs[name].candidate_id_B)
            for name, candidate_BD in vectors.candidate.items()
        }

    def run(self, batches: Iterator[Batch], steps: int, *, after: int = 0, stop: EarlyStop | None = None) -> Taken:
        """Trains from the step after `after` up to step `steps`, or until early stop, or until asked to end.

        Args:
            stop: that of the run so far.
        """
        config, stop, step = self._config, stop or EarlyStop(self._config.patience), after
        validate_at = {round(steps * (n + 1) / config.validations) for n in range(config.validations)} | {steps}
        self.model.train()
        with closing(batches):  # type: ignore[type-var]
            for step in range(after + 1, steps + 1):
                logs = step % config.log_every == 0 or step in validate_at or step == 1
                losses, pairs = self.step(batches, step - 1, timed=logs)
                if logs:
                    self._log_step(step, steps, losses, pairs)
                value = self._validation(step, stop) if step in validate_at else None
                interrupted = self._is_asked and step < steps
                ends = step == steps or stop.should_stop
                if value is not None or ends or interrupted or self._keep.is_due(step):
                    self.clock.enter("checkpoint")
                    self._keep.save(step, stop, value=value, last=ends)
                if ends or interrupted:
                    return Taken(step, stop, interrupted and not ends)
        return Taken(step, stop)

    def _log_step(self, step: int, steps: int, losses: Metrics, pairs: int) -> None:
        phases = self.clock.read()
        spreads = {name: spread(*candidates) for name, candidates in self._candidates.items()}
        spreads = {name: value for name, value in spreads.items() if math.isfinite(value)}  # too few say nothing
        if not self._runtime.is_main:
            return
        rate = pairs * self._runtime.world_size / (sum(phases.values()) / 1000)
        metrics = {f"loss/{name}": value for name, value in losses.items()} | {"pairs_per_second": rate}
        if self.optimizers.gradient_norm is not None:
            metrics["gradient_norm"] = float(self.optimizers.gradient_norm)
        metrics |= {f"ms/{phase}": value for phase, value in phases.items()}
        metrics |= {f"spread/{name}": value for name, value in spreads.items()}
        self._log(step, "train", metrics)
        if self._progress:
            self._progress.step(step, steps, metrics)
        for name, value in spreads.items():
            if value < COLLAPSED:
                self._log(step, "warning", {f"collapse/{name}": value})
                if self._progress:
                    self._progress.warning(step, f"the vectors of task '{name}' collapse: spread {value:.3f} of 1")

    def _validation(self, step: int, stop: EarlyStop) -> float:
        self.clock.enter("validation")
        with self.optimizers.averaged():
            metrics: dict[str, Any] = from_main(self._validate())
        value = chosen_metric(self._config.metric, metrics)
        if self._runtime.is_main:
            self._log(step, "valid", metrics | {"chosen": value})
            if self._progress:
                self._progress.validation(step, metrics | {"chosen": value})
        stop.update(value, step)
        self.model.train()
        return value
