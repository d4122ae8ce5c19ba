"""The machine that runs preparation's Ibis expressions: DuckDB, in this process.

Everything above this module is Ibis expressions that other backends have too; what is DuckDB's own is only here.
Queries run one after another.
"""

import errno
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import ibis
import ibis.expr.operations as ops
import ibis.expr.types as ir
import pyarrow as pa

from torchrec_mt.data.preparation.columns import damaged_file
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.errors import UserError, first_line


class Engine:
    """A DuckDB connection that spills into `scratch`. Use as a context manager."""

    def __init__(self, scratch: Path, *, threads: int = 2) -> None:
        self.scratch = scratch
        self._backend = ibis.duckdb.connect(
            threads=threads,
            memory_limit=f"{_memory_limit() >> 20}MiB",
            temp_directory=str(scratch),
            preserve_insertion_order=False,
        )
        self._connection = self._backend.con
        self._connection.execute("SET enable_progress_bar = false")
        self._numbers = itertools.count()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read(self, files: Sequence[Path], source: Source | None = None) -> ir.Table:
        """Parquet files as one table; nothing is read yet but their schema.

        Args:
            source: what the files are of, for messages.
        """
        # Ibis 12 asks DuckDB 2 for schemas through a method that DuckDB has renamed.
        with _told_to_users(source), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return self._backend.read_parquet(
                [str(file) for file in files], table_name=f"source_{next(self._numbers)}", union_by_name=True
            )

    def cache(self, table: ir.Table, source: Source | None = None) -> ir.Table:
        """Computes a table once and keeps it (on disk where memory is short).

        Args:
            source: whose files are read here, for messages.
        """
        # Not `table.cache()`: its clean-up drops tables with a statement that this DuckDB does not parse.
        name = f"cached_{next(self._numbers)}"
        with _told_to_users(source):
            self._backend._run_pre_execute_hooks(table)
            self._connection.sql(self._backend.compile(table)).create(name)
        return ops.DatabaseTable(name=name, schema=table.schema(), source=self._backend).to_expr()

    def drop(self, table: ir.Table) -> None:
        """Forgets a cached table."""
        self._connection.execute(f'DROP TABLE "{table.get_name()}"')

    def arrow(self, table: ir.Table) -> pa.Table:
        """The whole result."""
        with _told_to_users():
            return self._backend.to_pyarrow(table)

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """The result in batches. Run nothing else before the last one."""
        with _told_to_users():
            self._backend._run_pre_execute_hooks(table)
            yield from self._connection.sql(self._backend.compile(table)).to_arrow_reader(65_536)

    def one(self, table: ir.Table) -> dict:
        """The only row of a result."""
        (row,) = self.arrow(table).to_pylist()
        return row


def _memory_limit() -> int:
    """Half of the machine's memory, 8 GiB at most; the rest is for Arrow and numpy."""
    return min(8 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


@contextmanager
def _told_to_users(source: Source | None = None) -> Iterator[None]:
    """DuckDB's own errors in terms of what a user can do about them; `source`: whose files are being read."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if "No space left" in text or "max_temp_directory_size" in text:
            raise OSError(errno.ENOSPC, text.split("\n", 1)[0]) from error
        if isinstance(error, duckdb.InterruptException):
            raise KeyboardInterrupt from error
        if source is not None and not isinstance(error, duckdb.OutOfMemoryException):
            file = damaged_file(source)
            raise UserError(f"{source.key}: '{file}' cannot be read ({first_line(error)}); write it again") from error
        raise
    except RuntimeError as error:
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from error
        raise
