"""A training job: reader, model, optimizers and validation wired into a run folder."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec.distributed.types import ShardingPlan

from torchrec_mt.balancing.static import BalancingConfig, static_weights
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import Manifest, PreparedDataset
from torchrec_mt.data.negatives import Mined, NegativesConfig
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.lost import telling_lost_ranks
from torchrec_mt.distributed.planning import ShardingConfig, describe_plan
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.runs import DATASET, MetricsLog, RunFolder, write_atomic
from torchrec_mt.schema import Schema
from torchrec_mt.training.agreement import check_sources, pair_rules
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.early_stop import check_metric
from torchrec_mt.training.keeper import CheckpointConfig, Keeper, checkpoints_path, newest_checkpoint
from torchrec_mt.training.objective import Objective, TaskSides
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.run_state import Restored, RunState
from torchrec_mt.training.trainer import Progress, Trainer, TrainerConfig
from torchrec_mt.training.validation import validate, validated_tasks
from torchrec_mt.training.watchdog import Watchdog


def task_sides(manifest: Manifest, schema: Schema) -> dict[str, TaskSides]:
    """What the loss must know of each trained task."""
    return {
        name: TaskSides(task.candidate, manifest.entities[task.anchor].count, manifest.entities[task.candidate].count)
        for name, task in schema.trained_tasks.items()
    }


def train(
    run: RunFolder,
    dataset: PreparedDataset,
    schema: Schema,
    *,
    config_json: str,
    reader_config: ReaderConfig,
    negatives: NegativesConfig,
    losses: LossConfig,
    model_config: ModelConfig,
    sharding: ShardingConfig,
    optim: OptimConfig,
    balancing: BalancingConfig,
    trainer_config: TrainerConfig,
    checkpoint: CheckpointConfig,
    runtime: Runtime,
    seed: int,
    progress: Progress,
    asked: Callable[[], bool] = lambda: False,
    resume: bool = False,
) -> dict[str, object]:
    """Trains into the run folder, on every rank. Returns what happened.

    Nothing is written before all is known to fit. A run that replaces an earlier one takes its place with its first
    checkpoint; if it fails before, the earlier one is as it was.

    Args:
        asked: whether this rank was asked to end. resume: go on from the newest whole checkpoint of the run.

    Raises:
        UserError: what does not fit, or cannot be read or written; another rank that is there no longer.
    """
    check_metric(trainer_config.metric, validated_tasks(dataset, schema))
    _check_mined(negatives, run)
    weights = static_weights(balancing, list(schema.trained_tasks))
    store = CheckpointStore(checkpoints_path(checkpoint, run.path), keep=checkpoint.keep)
    reader = Reader(
        reader_config,
        dataset,
        schema,
        negatives=negatives,
        rules=pair_rules(losses, schema),
        seed=seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        lanes=_lanes(store) if resume else None,
    )
    accumulate = trainer_config.accumulate
    steps = trainer_config.steps or max(1, round(trainer_config.epochs * reader.steps_per_epoch / accumulate))
    check_sources(negatives, schema, steps)
    model, plan = build_model(
        dataset.manifest,
        schema,
        model_config,
        sharding,
        runtime=runtime,
        seed=seed,
        losses=losses,
        batch_rows=accumulate * (2 * reader_config.batch_size + reader.draws_per_step),
        table_rate=optim.table_rate,
        table_optimizer=optim.tables,
    )

    optimizers = Optimizers(optim, model, steps)
    objective = Objective(task_sides(dataset.manifest, schema), losses, negatives, runtime.device)
    state = RunState(model, optimizers, objective, reader, runtime, seed=seed, batches_per_step=accumulate)
    restored = state.restore(store, trainer_config.patience) if resume else None
    if restored:
        _tell(restored, progress)

    after = restored.step if restored else 0
    with (
        _telling_how_to_go_on(run, checkpoint),
        _writing(run, config_json, dataset, plan, runtime, after=after) as log,
    ):

        def moved() -> CheckpointStore:
            _publish(run, log)
            return CheckpointStore(checkpoints_path(checkpoint, run.path), keep=checkpoint.keep)

        keeper = Keeper(checkpoint, state, store, moved=moved if run.is_aside else None)
        collator = Collator(dataset)
        trainer = Trainer(
            trainer_config,
            model,
            optimizers,
            objective=objective,
            weights=weights,
            runtime=runtime,
            validate=lambda: validate(model, collator, dataset, schema, trainer_config.validation_anchors, runtime),
            log=log.write if log else lambda step, kind, values: None,
            offending_path=run.offending_path,
            keep=keeper,
            asked=asked,
            progress=progress,
        )
        with (
            keeper.at_work(),
            Watchdog(
                lambda: trainer.clock.position,
                seconds=trainer_config.stuck_seconds,
                rank=runtime.rank,
                world_size=runtime.world_size,
            ),
        ):
            taken = trainer.run(iter(reader), steps, after=after, stop=restored.stop if restored else None)
        outcome = {
            "run": str(run.place),
            "steps": taken.step,
            "best_step": taken.stop.best_step,
            "best": taken.stop.best if math.isfinite(taken.stop.best) else None,
            "interrupted": taken.interrupted,
        }
        on_main(lambda: write_atomic(run.path / "training.json", json.dumps(outcome) + "\n"))
    return outcome


def _lanes(store: CheckpointStore) -> int:
    """In how many lanes a run reads that goes on.

    Raises:
        UserError: there is nothing to go on from.
    """
    newest = store.load_newest({}, partial=True)
    if newest is None:
        raise UserError(f"no checkpoint in '{store.where}' to go on from: train without --resume")
    return int(newest.state["reader"]["lanes"])


def _tell(restored: Restored, progress: Progress) -> None:
    for reason in restored.refused:
        progress.warning(restored.step, f"a newer checkpoint is not used: {reason}")
    if not restored.report.is_plain:
        progress.warning(restored.step, restored.report.text())
    progress.resumed(restored.step, restored.path)


def _check_mined(negatives: NegativesConfig, run: RunFolder) -> None:
    """Refuses to replace the run whose mined negatives it is trained with."""
    for source in [source for sources in (negatives.sources, *negatives.tasks.values()) for source in sources]:
        if (
            run.is_aside
            and isinstance(source, Mined)
            and Path(source.path).resolve().is_relative_to(run.place.resolve())
        ):
            raise UserError(
                f"the run in '{run.place}' would be replaced with its mined negatives, '{source.path}', which this "
                "training takes: give another --output"
            )


@contextmanager
def _telling_how_to_go_on(run: RunFolder, config: CheckpointConfig) -> Iterator[None]:
    """Adds to what ends a training, from where it can be gone on with."""
    try:
        with telling_lost_ranks():
            yield
    except UserError as error:
        newest = None if run.is_aside else newest_checkpoint(config, run.path)
        if newest is None:
            raise
        raise UserError(
            f"{error}; the newest checkpoint is '{newest}', `torchrec-mt train --resume {run.place}` goes on from it",
            exit_code=error.exit_code,
        ) from None


@contextmanager
def _writing(
    run: RunFolder, config_json: str, dataset: PreparedDataset, plan: ShardingPlan, here: Runtime, *, after: int
) -> Iterator[MetricsLog | None]:
    """Writes what is known before the first step, and gives the log (main rank). At the end the log is closed, and a
    run that has not taken its place removed."""

    def start() -> None:
        run.start(config_json)
        write_atomic(run.path / DATASET, json.dumps({"digest": dataset.manifest.digest}) + "\n")
        write_atomic(run.path / "plan.json", json.dumps(describe_plan(plan), indent=1) + "\n")

    log = None
    try:
        on_main(start)
        log = MetricsLog(run, after=after or None) if here.is_main else None
        yield log
    finally:
        if log:
            log.close()
        if here.is_main:
            run.discard()


def _publish(run: RunFolder, log: MetricsLog | None) -> None:
    """The run takes the place of the earlier one; on every rank."""

    def swap() -> None:
        assert log is not None, "the main rank has the log"
        log.close()
        run.swap()
        log.open(run.place)

    on_main(swap)
    run.path = run.place
