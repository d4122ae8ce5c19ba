"""A training job: reader, model, optimizers and validation wired into a run folder."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from torchrec_mt.balancing.static import BalancingConfig, static_weights
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import Manifest, PreparedDataset
from torchrec_mt.data.negatives import Mined, NegativesConfig
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.planning import ShardingConfig, describe_plan
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.retrieval.evaluator import EvaluateConfig, score
from torchrec_mt.retrieval.measures import asked_depth
from torchrec_mt.retrieval.rank import model_rankers
from torchrec_mt.runs import DATASET, MetricsLog, RunFolder, write_atomic
from torchrec_mt.schema import Schema
from torchrec_mt.training.agreement import check_sources, pair_rules
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoint import load_model
from torchrec_mt.training.objective import Objective, TaskSides
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.trainer import Metrics, Progress, Trainer, TrainerConfig, check_metric


def task_sides(manifest: Manifest, schema: Schema) -> dict[str, TaskSides]:
    """What the loss must know of each trained task."""
    return {
        name: TaskSides(task.candidate, manifest.entities[task.anchor].count, manifest.entities[task.candidate].count)
        for name, task in schema.trained_tasks.items()
    }


def validated_tasks(dataset: PreparedDataset, schema: Schema) -> list[str]:
    """Trained tasks with validation pairs."""
    return [name for name in schema.trained_tasks if dataset.manifest.tasks[name].pairs["valid"]]


def validate(
    model: DistributedModelParallel,
    collator: Collator,
    dataset: PreparedDataset,
    schema: Schema,
    max_anchors: int,
    here: Runtime,
) -> Metrics | None:
    """Metrics by "TASK/METRIC" on a fixed sample of validation anchors; None on all ranks but the main one."""
    config = EvaluateConfig(split="valid", max_anchors=max_anchors, baselines=())
    tasks = validated_tasks(dataset, schema)
    depths = dict.fromkeys(tasks, asked_depth(config.metrics))
    rankers = model_rankers(model, collator, dataset, tasks, config, here.device, depths=depths)
    if not here.is_main:
        return None
    metrics: Metrics = {}
    for name in tasks:
        found = score(dataset, name, rankers[name], config)
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    return metrics


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
    runtime: Runtime,
    seed: int,
    progress: Progress,
    published: Callable[[], None],
) -> dict[str, object]:
    """Trains into the run folder, on every rank. Returns what happened.

    Nothing is written before all is known to fit. A run that replaces an earlier one takes its place with its first
    saved model; if it fails before, the earlier one is as it was. `published` is called on the main rank whenever the
    run in its place has a new model.
    """
    check_metric(trainer_config.metric, validated_tasks(dataset, schema))
    _check_mined(negatives, run)
    weights = static_weights(balancing, list(schema.trained_tasks))
    reader = Reader(
        reader_config,
        dataset,
        schema,
        negatives=negatives,
        rules=pair_rules(losses, schema),
        seed=seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
    steps = trainer_config.steps or max(1, round(trainer_config.epochs * reader.steps_per_epoch))
    check_sources(negatives, schema, steps)
    model, plan = build_model(
        dataset.manifest,
        schema,
        model_config,
        sharding,
        runtime=runtime,
        seed=seed,
        losses=losses,
        batch_rows=2 * reader_config.batch_size + reader.draws_per_step,
        table_rate=optim.table_rate,
    )

    with _writing(run, config_json, dataset, plan, runtime) as log:
        collator = Collator(dataset)
        trainer = Trainer(
            trainer_config,
            model,
            Optimizers(optim, model, steps),
            objective=Objective(task_sides(dataset.manifest, schema), losses, negatives, runtime.device),
            weights=weights,
            runtime=runtime,
            validate=lambda: validate(model, collator, dataset, schema, trainer_config.validation_anchors, runtime),
            log=log.write if log else lambda step, kind, values: None,
            run_path=run.path,
            offending_path=run.offending_path,
            publish=lambda: _publish(run, log, published),
            progress=progress,
        )
        stop, taken = trainer.run(iter(reader), steps)
        outcome = {"run": str(run.place), "steps": taken, "best_step": stop.best_step, "best": stop.best}
        on_main(lambda: write_atomic(run.path / "training.json", json.dumps(outcome) + "\n"))
    return outcome


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
def _writing(
    run: RunFolder, config_json: str, dataset: PreparedDataset, plan: ShardingPlan, here: Runtime
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
        log = MetricsLog(run) if here.is_main else None
        yield log
    finally:
        if log:
            log.close()
        if here.is_main:
            run.discard()


def _publish(run: RunFolder, log: MetricsLog | None, published: Callable[[], None]) -> Path:
    """The run takes the place of the earlier one, if it has not yet, and is there to be read; on every rank."""

    def swap() -> None:
        assert log is not None, "the main rank has the log"
        log.close()
        run.swap()
        log.open(run.place)

    if run.is_aside:
        on_main(swap)
        run.path = run.place
    on_main(published)
    return run.path


def load_run_model(
    run: RunFolder,
    dataset: PreparedDataset,
    schema: Schema,
    model_config: ModelConfig,
    losses: LossConfig,
    sharding: ShardingConfig,
    *,
    runtime: Runtime,
    which: str = "best",
) -> DistributedModelParallel:
    """The trained model of a run, sharded over the present ranks."""
    model, _ = build_model(
        dataset.manifest,
        schema,
        model_config,
        sharding,
        losses=losses,
        runtime=runtime,
        seed=0,
        batch_rows=4096,
        table_rate=0.0,
    )
    load_model(model, run.model_path / which)
    return model
