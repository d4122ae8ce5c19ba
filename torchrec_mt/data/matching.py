"""Which rows of an earlier run's tables are rows of the present ones: those of the same value.

A run keeps the vocabularies it was trained with, since its dataset is often prepared anew in its place. They are a
tenth of its tables or less.
"""

import shutil
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.errors import UserError
from torchrec_mt.schema import OOV_ROW


def keep_vocabularies(dataset: PreparedDataset, run_path: Path) -> None:
    """Copies the dataset's vocabularies into a run folder that has none."""
    for table in dataset.manifest.tables:
        place = _kept(run_path, table)
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            aside = place.with_name(f".{place.name}.partial")
            shutil.copyfile(dataset.vocabulary_path(table), aside)
            aside.rename(place)


def matched_rows(dataset: PreparedDataset, run_path: Path, table: str, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a table of the dataset whose value had a row in an earlier run, and those rows: row_K, earlier_K (int64).

    By earlier row. Text counts as the same where its kind is. Row 0, of all that has none, is row 0.

    Args:
        rows: of the dataset's table, of which those are wanted.

    Raises:
        UserError: the run's vocabularies are not there, or damaged.
    """
    found = _joined("here.row::BIGINT AS here, there.row::BIGINT AS there", dataset, run_path, table, rows)
    first = np.full(int(OOV_ROW in rows), OOV_ROW, np.int64)
    return np.concatenate([first, found["here"]]), np.concatenate([first, found["there"]])


def count_matched(dataset: PreparedDataset, run_path: Path, table: str) -> int:
    """How many rows of a table of the dataset were rows of an earlier run, row 0 included; errors as `matched_rows`."""
    rows = range(dataset.manifest.tables[table])
    return 1 + int(_joined("count(*) AS number", dataset, run_path, table, rows)["number"][0])


def _joined(wanted: str, dataset: PreparedDataset, run_path: Path, table: str, rows: range) -> dict[str, np.ndarray]:
    here, there = dataset.vocabulary_path(table), _kept(run_path, table)
    with dataset.reading(here):
        columns = set(pq.read_schema(here).names)
    keys = ", ".join(key for key in ("value", "kind") if key in columns & _columns(there))
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(config={"temp_directory": scratch}) as connection:
        return connection.execute(
            f"""
            SELECT {wanted} FROM read_parquet($here) AS here JOIN read_parquet($there) AS there USING ({keys})
            WHERE here.row >= $start AND here.row < $stop {"" if "count" in wanted else "ORDER BY there.row"}
            """,
            {"here": str(here), "there": str(there), "start": rows.start, "stop": rows.stop},
        ).fetchnumpy()


def _kept(run_path: Path, table: str) -> Path:
    return run_path / "vocabulary" / f"{table}.parquet"


def _columns(file: Path) -> set[str]:
    """Of a vocabulary that a run kept."""
    try:
        return set(pq.read_schema(file).names)
    except FileNotFoundError:
        problem = "is not there"
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({error})"
    raise UserError(f"'{file}' {problem}: without it nobody knows whose rows the run's are; train that run again")
