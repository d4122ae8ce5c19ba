"""By which columns a pair source is split: its time, the split's columns, its own, or none (all test)."""

from dataclasses import dataclass

from torchrec_mt.data.preparation.columns import column_names
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.schema import GivenPairs, GroupPairs, Schema, Task, TimeSplit


@dataclass(frozen=True)
class SplitBy:
    """Columns of one pair source that say which part a row belongs to; none: every row is of the test part.

    Args:
        note: for the manifest, where the columns are not those that the split or the task names.
    """

    columns: tuple[str, ...]
    note: str = ""


def split_by(task: Task, schema: Schema, source: Source) -> SplitBy:
    """The split columns of one task's source."""
    if isinstance(schema.split, TimeSplit):
        time = task.pairs.time
        return SplitBy(()) if time is None else SplitBy((time,))
    own = task.pairs.group if isinstance(task.pairs, GivenPairs) else task.pairs.split_group
    if own:
        return SplitBy(own)
    wanted = schema.split.column
    if not set(wanted) & set(column_names(source)):
        match task.pairs:
            case GroupPairs() as groups:
                return SplitBy(groups.group, f"by its own group: {', '.join(groups.group)}")
            case GivenPairs() if task.trained_as is not None:
                return SplitBy(())
    return SplitBy(wanted)
