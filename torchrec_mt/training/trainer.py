"""The loop: batches in, one step each, validation and early stop between, best and last model kept."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torchrec.distributed import DistributedModelParallel

from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import from_main, gather_numbers, on_main
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import require, within
from torchrec_mt.training.alarms import COLLAPSED, check_update, spread
from torchrec_mt.training.clock import over_ranks
from torchrec_mt.training.early_stop import EarlyStop, chosen_metric
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.step import Metrics, Steps
from torchrec_mt.training.tracking import NoTracking, Tracking


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long to train and how to judge.

    Args:
        tasks: the trained tasks of the dataset to train on; none: all of them. The others are not judged either.
        epochs: passes over as many pairs as the training split holds; `steps` overrides it when positive.
        accumulate: batches of a step: it takes the mean of their losses, with the memory of one batch's towers and
            losses. `steps` and `epochs` count as ever: a step is an update.
        validations: how often to validate in the run (the last step included).
        patience: validations without a new best before stopping; 0 never stops early.
        metric: validation metric to stop on and keep the best model by: "METRIC" (mean over the tasks) or
            "TASK/METRIC".
        validation_anchors: anchors per task in a validation, a fixed sample.
        log_every: steps between lines of metrics.jsonl. tracking: where they go as well.
        stuck_seconds: longest that a phase of a step may take on a rank; then the watchdog names the rank that holds up
            the others, and ends the job.
        pipeline: whether the next batch is copied to the device, and its ids sent to their ranks, while the current one
            trains, with the same results. `auto`: on a GPU, where a step has one batch.
    """

    tasks: tuple[str, ...] = ()
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
    tracking: Tracking = field(default_factory=NoTracking)

    def __post_init__(self) -> None:
        require(len(set(self.tasks)) == len(self.tasks), "tasks", self.tasks, "a list without repeats")
        require(self.steps > 0 or self.epochs > 0, "epochs", self.epochs, "above 0 (or give steps)")
        within(self, 0, 1_000_000, "epochs")
        within(self, 0, 1_000_000_000, "steps", "patience", "validation_anchors")
        within(self, 1, 1_000_000, "validations", "accumulate")
        within(self, 1, 1_000_000_000, "log_every")
        within(self, 0.1, 1_000_000, "stuck_seconds")

    def planned_steps(self, batches_per_epoch: int) -> int:
        """Steps of a run that is not stopped early.

        Args:
            batches_per_epoch: of all ranks together, until as many pairs have passed as the training split holds.
        """
        return self.steps or max(1, round(self.epochs * batches_per_epoch / self.accumulate))


GiveUp = Callable[[int, int, float], bool]
"""Whether a training is to end at a validation, of which it is told the step, the steps of the whole run, the value."""


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
        """What a training begins with: the model, what it takes of an earlier run."""


class Keep(Protocol):
    """What keeps checkpoints; called on every rank."""

    def is_due(self, step: int) -> bool:
        """Whether one is to be kept after this step, validation or not."""

    def save(self, step: int, stop: EarlyStop, *, value: float | None = None, last: bool = False) -> None:
        """Keeps one: `value` of a validation at this step, `last` where training ends."""

    def before_update(self) -> None:
        """Waits until tables may change; called in every step right before they do."""


class _Nothing:
    def is_due(self, step: int) -> bool:
        return False

    def save(self, step: int, stop: EarlyStop, *, value: float | None = None, last: bool = False) -> None:
        return

    def before_update(self) -> None:
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
        objective: losses of a batch. balancer: weighs them.
        validate: metrics of the current model by "TASK/METRIC"; called on every rank, result used of rank 0.
        log: called on the main rank with step, kind and values.
        offending_path: where the batch goes that breaks the run, asked when there is one.
        keep: takes checkpoints; none are kept without it. asked: whether this rank was asked to end; what one rank was
            asked, all do, after the step that they are in.
        give_up: asked on the main rank after each validation at which the training would go on; given on all or none.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        *,
        objective: Objective,
        balancer: Balancer,
        runtime: Runtime,
        validate: Callable[[], Metrics | None],
        log: Callable[[int, str, Metrics], None],
        offending_path: Callable[[], str | Path],
        keep: "Keep | None" = None,
        asked: Callable[[], bool] | None = None,
        give_up: GiveUp | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._give_up = give_up
        self._config, self.model, self.optimizers = config, model, optimizers
        self._runtime, self._validate, self._log = runtime, validate, log
        self._progress, self._keep = progress, keep or _Nothing()
        self.steps = Steps(
            model,
            optimizers,
            objective=objective,
            balancer=balancer,
            runtime=runtime,
            offending_path=offending_path,
            accumulate=config.accumulate,
            pipeline=config.pipeline == "auto",
            asked=asked or (lambda: False),
            before_update=self._keep.before_update,
        )

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
                losses, pairs = self.steps.step(batches, step - 1, logs=logs)
                if logs:
                    self.steps.clock.enter("log")
                    self._log_step(step, steps, losses, pairs)
                value = self._validation(step, stop) if step in validate_at else None
                interrupted = self.steps.is_asked and step < steps
                ends = step == steps or stop.should_stop or self._gives_up(step, steps, value)
                if value is not None or ends or interrupted or self._keep.is_due(step):
                    self.steps.clock.enter("checkpoint")
                    check_update(self.optimizers.gradient_norm, step)
                    self._keep.save(step, stop, value=value, last=ends)
                if ends or interrupted:
                    return Taken(step, stop, interrupted and not ends)
        return Taken(step, stop)

    def _gives_up(self, step: int, steps: int, value: float | None) -> bool:
        give_up = self._give_up
        return give_up is not None and value is not None and on_main(lambda: give_up(step, steps, value))

    def _log_step(self, step: int, steps: int, losses: Metrics, pairs: int) -> None:
        phases = self.steps.clock.read()
        ranks = gather_numbers(list(phases.values()), self._runtime.device)
        spreads = {name: spread(*candidates) for name, candidates in self.steps.candidates.items()}
        spreads = {name: value for name, value in spreads.items() if math.isfinite(value)}  # too few say nothing
        if not self._runtime.is_main:
            return
        rate = pairs * self._runtime.world_size / (sum(phases.values()) / 1000)
        metrics = {f"loss/{name}": value for name, value in losses.items()} | {"pairs_per_second": rate}
        if self.optimizers.gradient_norm is not None:
            metrics["gradient_norm"] = float(self.optimizers.gradient_norm)
        metrics |= self.steps.told()
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

    def _validation(self, step: int, stop: EarlyStop) -> float:
        self.steps.clock.enter("validation")
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
