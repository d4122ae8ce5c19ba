"""`anchors.parquet`: every system's value of every measure for every anchor, to slice and to compare by oneself.

One row per task, system and anchor: `task`, `system`, `anchor` (the id that the data gave), `relevant` (right answers),
the metrics, the measures of lists, and a label per slicing (null where a task has no such slicing). A target slicing
has the label of the anchor's right answers, or "(mixed)". Null stands for a value that an anchor does not have.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.measures import LISTS, Measured
from torchrec_mt.retrieval.questions import Questions
from torchrec_mt.retrieval.slices import own_labels, slicing_names

ABOUT = b"torchrec_mt"
"""Key of the file's metadata under which it says what it is of, as JSON."""
_ROWS = 1 << 16


def records_path(metrics_path: Path) -> Path:
    """The anchors' file of a judgement: metrics-valid.json has anchors-valid.parquet beside it."""
    return metrics_path.with_name("anchors" + metrics_path.stem.removeprefix("metrics") + ".parquet")


class Records:
    """Takes the systems of a judgement, one after another; memory holds one of them.

    Args:
        file: where the Parquet goes. about: what the judgement is of. columns: to cut slices by.
    """

    def __init__(
        self,
        file: BinaryIO,
        dataset: PreparedDataset,
        about: Mapping[str, object],
        metrics: Sequence[str],
        columns: Sequence[tuple[str, str]],
    ) -> None:
        self._dataset = dataset
        self._ids: tuple[str, pa.Array] | None = None
        names = [name for task in dataset.manifest.tasks for name in slicing_names(dataset, task, columns)]
        self._slicings = list(dict.fromkeys(names))
        self._schema = pa.schema(
            [
                *((name, pa.string()) for name in ("task", "system", "anchor")),
                ("relevant", pa.int64()),
                *((name, pa.float64()) for name in (*metrics, *LISTS)),
                *((name, pa.string()) for name in self._slicings),
            ],
            metadata={ABOUT: json.dumps(about)},
        )
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, task: str, system: str, questions: Questions, measured: Measured) -> None:
        """The rows of one system on one task, in row groups of 65,536."""
        labels = {name: np.asarray(s.labels, object)[s.code] for name, s in questions.slicings.anchor.items()}
        labels |= {name: own_labels(s, questions.relevant) for name, s in questions.slicings.target.items()}
        rows = len(questions.anchor_B)
        columns: dict[str, object] = {
            "task": pa.repeat(task, rows),
            "system": pa.repeat(system, rows),
            "anchor": self._anchor_ids(task, questions.anchor_B),
            "relevant": questions.relevant.count_B,
            **{
                name: pa.array(value_B, from_pandas=True)
                for name, value_B in (measured.values | measured.lists).items()
            },
            **{name: pa.array(labels[name], pa.string()) for name in self._slicings if name in labels},
            **{name: pa.nulls(rows, pa.string()) for name in self._slicings if name not in labels},
        }
        self._writer.write_table(pa.table(columns, schema=self._schema), row_group_size=_ROWS)

    def close(self) -> None:
        """Writes the end of the file."""
        self._writer.close()

    def _anchor_ids(self, task: str, anchor_B: np.ndarray) -> pa.Array:
        entity = self._dataset.manifest.tasks[task].anchor
        if self._ids is None or self._ids[0] != entity:
            self._ids = entity, self._dataset.read(self._dataset.entity_path(entity), ["id"])["id"].combine_chunks()
        return self._ids[1].take(pa.array(anchor_B))


@contextmanager
def writing_records(
    path: Path,
    dataset: PreparedDataset,
    about: Mapping[str, object],
    metrics: Sequence[str],
    columns: Sequence[tuple[str, str]],
) -> Iterator[Records]:
    """Records that are written aside and put in their place at the end; of a judgement that fails nothing is left, nor
    the folder if it was made for it.

    Raises:
        OSError: naming the file; a failing write() names none.
    """
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            records = Records(file, dataset, about, metrics, columns)
            try:
                yield records
            finally:
                records.close()
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        aside.unlink(missing_ok=True)
        if is_new and not any(path.parent.iterdir()):
            path.parent.rmdir()
