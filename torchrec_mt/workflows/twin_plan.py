"""What the twins of a run are: the run's config without the other tasks, and as many pairs of its own task in as many
steps. A task that cannot be trained alone, or a run whose twins would not be like it, is refused here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.config import RunConfig, open_dataset
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.mixing import ProportionalMixing, batch_sizes
from torchrec_mt.data.part import schema_of_tasks
from torchrec_mt.data.reader import batches_per_epoch
from torchrec_mt.errors import UserError
from torchrec_mt.runs import INIT, TRAINING, TWINS, RunFolder, read_object
from torchrec_mt.schema import Schema, own_table
from torchrec_mt.training.trained import lanes_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A task's twin: its config, where its run is, and the lanes in which its batches are read."""

    task: str
    config: RunConfig
    place: str
    lanes: int


def twin_tasks(config: RunConfig, asked: str | None, where: str) -> list[str]:
    """The tasks to make twins of, in declared order.

    Args:
        asked: names with commas between them; None: all trained tasks. where: the run, for messages.

    Raises:
        UserError: one of them is no trained task of the run; the run has only one task.
    """
    trained = list(schema_of_tasks(config.dataset, config.trainer.tasks).trained_tasks)
    if len(trained) == 1:
        raise UserError(f"'{where}' is trained on one task, '{trained[0]}': it is its own twin; give a run on several")
    wanted = trained if asked is None else [name.strip() for name in asked.split(",") if name.strip()]
    for name in wanted:
        if name not in trained:
            raise UserError(f"--tasks {asked}: '{name}' is no trained task of '{where}', one of {', '.join(trained)}")
    if not wanted:
        raise UserError(f"--tasks {asked!r}: names no task, give some of {', '.join(trained)}")
    return [name for name in trained if name in wanted]


def twin_config(config: RunConfig, task: str, *, pairs: int, steps: int) -> RunConfig:
    """The config of a run as that of a task's twin: what it says of other tasks is left out.

    Args:
        pairs: of the task, in a batch of one lane. steps: of the whole run.
    """
    tables = [*schema_of_tasks(config.dataset, [task]).tables]
    tables += [own_table(table, task) for table in tables]
    folder = config.checkpoint.folder
    return replace(
        config,
        reader=replace(config.reader, batch_size=pairs, mixing=ProportionalMixing()),
        negatives=replace(config.negatives, tasks=_only(config.negatives.tasks, [task])),
        loss=replace(config.loss, tasks=_only(config.loss.tasks, [task])),
        model=replace(config.model, temperatures=_only(config.model.temperatures, [task])),
        sharding=replace(config.sharding, tables=_only(config.sharding.tables, tables)),
        balancing=BalancingConfig(),
        trainer=replace(config.trainer, tasks=(task,), steps=steps, metric=config.trainer.metric.rpartition("/")[2]),
        checkpoint=replace(config.checkpoint, folder=folder and f"{folder.rstrip('/')}/{TWINS}/{task}"),
        evaluate=replace(config.evaluate, baselines=(), slices=()),
    )


def _only(settings: Mapping[str, T], names: Sequence[str] | Mapping[str, object]) -> dict[str, T]:
    return {name: one for name, one in settings.items() if name in names}


def planned_twins(run: RunFolder, config: RunConfig, tasks: Sequence[str]) -> list[Twin]:
    """The twins of a finished run, before any is trained. Called on every rank.

    Args:
        config: of the run. tasks: as `twin_tasks` gives them.

    Raises:
        UserError: the run has not come to its end, or began with another's weights; a task that cannot be trained alone
            or judged.
    """
    dataset, schema = open_dataset(config)
    run.check_dataset(dataset.manifest.digest, config.dataset.path)
    if (run.path / INIT).is_file():
        raise UserError(
            f"'{run.where}' began with the weights of another run ({INIT}), which its twins would not have: give a run "
            "that was trained from the beginning"
        )
    training = training_of(run)
    lanes = lanes_of(run, config.checkpoint)
    pairs = {name: dataset.manifest.tasks[name].pairs["train"] for name in schema.trained_tasks}
    steps = config.trainer.planned_steps(batches_per_epoch(config.reader, pairs, lanes))
    if training["interrupted"] or (training["steps"] < steps and not config.trainer.patience):
        raise UserError(
            f"'{run.where}' has taken {training['steps']} of its {steps} steps, its twins would take all of theirs: go "
            f"on with it first, torchrec-mt train --resume {run.where}"
        )
    sizes = batch_sizes(config.reader.mixing, pairs, config.reader.batch_size)
    for task in tasks:
        _check_task(dataset, schema, config, task, sizes[task] * lanes)
    return [
        Twin(
            task=task,
            config=twin_config(config, task, pairs=sizes[task], steps=steps),
            place=f"{run.where}/{TWINS}/{task}",
            lanes=lanes,
        )
        for task in tasks
    ]


def training_of(run: RunFolder) -> dict[str, Any]:
    """How far a run has come.

    Raises:
        UserError: it was broken off, or is being trained.
    """
    if not (run.path / TRAINING).is_file():
        raise UserError(
            f"'{run.where}' has not come to its end (no {TRAINING} in it): go on with it first, "
            f"torchrec-mt train --resume {run.where}"
        )
    return read_object(run.path / TRAINING)


def _check_task(dataset: PreparedDataset, schema: Schema, config: RunConfig, task: str, pairs: int) -> None:
    """Refuses a task that cannot be trained alone or judged, before any twin is trained.

    Args:
        pairs: of it in a batch of all lanes.
    """
    tasks, split = dataset.manifest.tasks, config.evaluate.split
    own, remedy = tasks[task].pairs, "leave it out of --tasks"
    if not own["valid"]:
        raise UserError(f"task '{task}' has no validation pairs, by which a twin's best step is chosen: {remedy}")
    if not any(tasks[name].pairs[split] for name in schema_of_tasks(schema, [task]).tasks):
        raise UserError(f"task '{task}' has no pairs in the {split} split to be judged on: {remedy}")
    if pairs > own["train"]:
        raise UserError(
            f"task '{task}' has {own['train']:,} training pairs, and a batch of the run holds {pairs:,} of them, some "
            f"more than once: a run on it alone refuses that; {remedy}"
        )
