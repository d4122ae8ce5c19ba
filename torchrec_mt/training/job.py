"""A training job: reader, model, optimizers and validation wired into a run folder."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import Manifest, PreparedDataset
from torchrec_mt.data.negatives import NegativesConfig
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.lost import telling_lost_ranks
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.runs import TRAINING, RunFolder, write_atomic
from torchrec_mt.schema import Schema
from torchrec_mt.storage import Output
from torchrec_mt.training.agreement import check_mined, check_sources, pair_rules
from torchrec_mt.training.assemble import build_model, size_of, told_of_tables
from torchrec_mt.training.checkpoints.store import CheckpointStore, Loaded
from torchrec_mt.training.early_stop import EarlyStop, check_metric
from torchrec_mt.training.held import held_by_ranks
from torchrec_mt.training.keeper import CheckpointConfig, checkpoints_path, newest_checkpoint
from torchrec_mt.training.objective import TaskSides
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.own_candidates import objective_for
from torchrec_mt.training.run_state import Restored, RunState
from torchrec_mt.training.tracking import check_tracking, tracked
from torchrec_mt.training.trainer import GiveUp, Progress, Trainer, TrainerConfig
from torchrec_mt.training.validation import validate, validated_tasks
from torchrec_mt.training.warm_start import Earlier, describe, warm_start
from torchrec_mt.training.watchdog import Watchdog
from torchrec_mt.training.writing import keeper_of, to_both, versions, writing


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
    output: Output,
    asked: Callable[[], bool] = lambda: False,
    give_up: GiveUp | None = None,
    resume: bool = False,
    earlier: Earlier | None = None,
    lanes: int | None = None,
) -> dict[str, object]:
    """Trains into the run folder, on every rank. Returns what happened.

    Nothing is written before all is known to fit. A run that replaces an earlier one takes its place with its first
    checkpoint; if it fails before, the earlier one is as it was. A URL's copy takes its place there right before it.

    Args:
        output: what pushes the run folder to its URL.
        asked: whether this rank was asked to end. give_up: whether to end here, asked on the main rank after each
            validation but the last. resume: go on from the newest whole checkpoint of the run.
        earlier: a new run starts from this one's weights. lanes: in which a new run's batches are read; None: as many
            as there are ranks.

    Raises:
        UserError: what does not fit, or cannot be read or written; another rank that is there no longer.
    """
    check_metric(trainer_config.metric, validated_tasks(dataset, schema))
    check_mined(negatives, run)
    on_main(lambda: check_tracking(trainer_config.tracking))
    balancer = Balancer(balancing, list(schema.trained_tasks))
    store = CheckpointStore(checkpoints_path(checkpoint, run), keep=checkpoint.keep)
    newest = _newest(store) if resume else None
    reader = Reader(
        reader_config,
        dataset,
        schema,
        negatives=negatives,
        rules=pair_rules(losses, schema),
        seed=seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        lanes=int(newest.state["reader"]["lanes"]) if newest else lanes,
    )
    accumulate = trainer_config.accumulate
    steps = trainer_config.planned_steps(reader.steps_per_epoch)
    check_sources(negatives, schema, steps)
    model, plan = build_model(
        dataset.manifest,
        schema,
        model_config,
        sharding,
        runtime=runtime,
        seed=seed,
        losses=losses,
        batch_rows=accumulate * (2 * reader.pairs_per_step + reader.draws_per_step),
        table_rate=optim.table_rate,
        table_optimizer=optim.tables,
        averages=optim.ema is not None,
    )

    optimizers = Optimizers(optim, model, steps)
    sides = task_sides(dataset.manifest, schema)
    objective = objective_for(model_config.sharing, sides, losses, negatives, runtime.device)
    state = RunState(model, optimizers, objective, balancer, reader, runtime, seed=seed, batches_per_step=accumulate)
    restored = state.restore(store, newest, trainer_config.patience) if newest else None
    if restored:
        _warn(restored, progress)
        if restored.step >= steps or restored.stop.should_stop:
            store.close()
            return _end(run, restored.step, restored.stop) | {"nothing_left": _why_over(restored, steps)}
        progress.resumed(restored.step, restored.path, best=restored.stop.best)
        store.prune()  # a disk that is full may have no room for the next one before
    progress.started(
        told_of_tables(dataset.manifest, schema, model_config, sharding, losses, world_size=runtime.world_size)
    )
    size = size_of(dataset.manifest, schema, model_config, losses)
    progress.started([size.text()])
    origin = warm_start(model, optimizers, dataset, earlier) if earlier and not restored else None
    if origin:
        progress.started(describe(origin))
    held = held_by_ranks(model, optimizers, runtime.device)
    after = restored.step if restored else 0
    tags = {"dataset_digest": dataset.manifest.digest, "run": run.url or str(run.place.resolve()), **versions()}
    with (
        _telling_how_to_go_on(run, checkpoint),
        writing(run, config_json, dataset, plan, held, size, runtime, after=after, origin=origin) as log,
        tracked(trainer_config.tracking, run, config_json, tags, enabled=runtime.is_main) as track,
    ):
        keeper = keeper_of(checkpoint, state, store, run, log, output, restored)
        collator = Collator(dataset)
        trainer = Trainer(
            trainer_config,
            model,
            optimizers,
            objective=objective,
            balancer=balancer,
            runtime=runtime,
            validate=lambda: validate(model, collator, dataset, schema, trainer_config.validation_anchors, runtime),
            log=to_both(log, track),
            offending_path=lambda: run.offending_path,
            keep=keeper,
            asked=asked,
            give_up=give_up,
            progress=progress,
        )
        with (
            keeper.at_work(),
            Watchdog(
                lambda: trainer.steps.clock.position,
                seconds=trainer_config.stuck_seconds,
                rank=runtime.rank,
                world_size=runtime.world_size,
            ),
        ):
            taken = trainer.run(iter(reader), steps, after=after, stop=restored.stop if restored else None)
        return _end(run, taken.step, taken.stop, interrupted=taken.interrupted)


def _end(run: RunFolder, step: int, stop: EarlyStop, *, interrupted: bool = False) -> dict[str, object]:
    """How far a run has come, and says so in its folder."""
    outcome = {
        "run": run.where,
        "steps": step,
        "best_step": stop.best_step,
        "best": stop.best if math.isfinite(stop.best) else None,
        "interrupted": interrupted,
    }
    text, file = json.dumps(outcome) + "\n", run.path / TRAINING

    def write() -> None:
        if not file.is_file() or file.read_text() != text:  # a run that was over before stays untouched
            write_atomic(file, text)

    on_main(write)
    return dict(outcome)


def _why_over(restored: Restored, steps: int) -> str:
    if restored.step >= steps:
        return f"it has taken {restored.step} of {steps} steps; raise trainer.steps or trainer.epochs to go on"
    return (
        f"it stopped early at step {restored.step}, after {restored.stop.since_best} validations without a new best; "
        "raise trainer.patience to go on, or set it to 0"
    )


def _newest(store: CheckpointStore) -> Loaded:
    """What a run goes on from, tensors left out.

    Raises:
        UserError: there is nothing to go on from.
    """
    newest = store.load_newest({}, partial=True)
    if newest is None:
        raise UserError(f"no checkpoint in '{store.where}' to go on from: train without --resume, with --overwrite")
    return newest


def _warn(restored: Restored, progress: Progress) -> None:
    for reason in restored.refused:
        progress.warning(restored.step, f"a newer checkpoint is not used: {reason}")
    if not restored.report.is_plain:
        progress.warning(restored.step, restored.report.text())


@contextmanager
def _telling_how_to_go_on(run: RunFolder, config: CheckpointConfig) -> Iterator[None]:
    """Adds to what ends a training, from where it can be gone on with."""
    try:
        with telling_lost_ranks():
            yield
    except UserError as error:
        newest = None if run.is_aside else newest_checkpoint(config, run)
        if newest is None:
            raise
        raise UserError(
            f"{error}; the newest checkpoint is '{newest}', `torchrec-mt train --resume {run.where}` goes on from it",
            exit_code=error.exit_code,
        ) from None
