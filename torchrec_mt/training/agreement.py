"""Whether losses, negatives and data agree, asked before a run begins; and what the losses want of the reader."""

from pathlib import Path

from torchrec_mt.data.negatives import Memory, Mined, NegativesConfig
from torchrec_mt.data.task_pairs import PairRules
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.config import LossConfig, SoftmaxLoss
from torchrec_mt.runs import RunFolder
from torchrec_mt.schema import GivenPairs, Schema, Task

_ALWAYS = ("in_batch", "uniform", "popularity")
"""Sources that give every anchor columns from the first step on."""


def pair_rules(losses: LossConfig, schema: Schema) -> dict[str, PairRules]:
    """What the losses want of their tasks' pairs.

    Raises:
        UserError: a loss for a task that is not trained, or one of grades for pairs that have none.
    """
    for name in losses.tasks:
        if name not in schema.trained_tasks:
            raise UserError(f"loss.tasks names '{name}', which is no trained task: {list(schema.trained_tasks)}")
    rules = {}
    for name, task in schema.trained_tasks.items():
        match losses.of(name):
            case SoftmaxLoss(symmetric=symmetric, grades=grades):
                if grades != "none" and not _graded(task):
                    raise UserError(
                        f"loss: task '{name}' is to learn the order of grades, but its pairs have none: give "
                        '`pairs.grade`, or `pairs.label` with roles, in the dataset, or set grades = "none"'
                    )
                rules[name] = PairRules(symmetric=symmetric, grades=grades)
            case _:
                rules[name] = PairRules()
    return rules


def _graded(task: Task) -> bool:
    return isinstance(task.pairs, GivenPairs) and (task.pairs.grade is not None or task.pairs.label is not None)


def check_sources(negatives: NegativesConfig, schema: Schema, steps: int) -> None:
    """Refuses sources that leave an anchor with nothing to be compared with, and a memory that the run would not use.

    Raises:
        UserError: naming the task and what to add or change.
    """
    for name in schema.trained_tasks:
        sources = negatives.of(name)
        kinds = [source.kind for source in sources]
        if not set(kinds) & set(_ALWAYS):
            raise UserError(
                f"negatives: task '{name}' has only {kinds}, which give some anchors or the first steps nothing to "
                f"compare with: add one of {list(_ALWAYS)}"
            )
        for source in sources:
            if isinstance(source, Memory) and source.warmup >= steps:
                raise UserError(
                    f"negatives: the memory of task '{name}' waits for warmup = {source.warmup} steps, but the run has "
                    f"only {steps}: lower warmup, or leave the source out"
                )


def check_mined(negatives: NegativesConfig, run: RunFolder) -> None:
    """Refuses to replace the run whose mined negatives it is trained with.

    Raises:
        UserError: naming the negatives.
    """
    for source in [source for sources in (negatives.sources, *negatives.tasks.values()) for source in sources]:
        if run.is_aside and isinstance(source, Mined) and _is_in(run, source.path):
            raise UserError(
                f"the run in '{run.where}' would be replaced with its mined negatives, '{source.path}', which this "
                "training takes: give another --output"
            )


def _is_in(run: RunFolder, path: str) -> bool:
    if run.url:
        return path.startswith(f"{run.url}/")
    return Path(path).resolve().is_relative_to(run.place.resolve())
