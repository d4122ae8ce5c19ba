"""A folder of exported vectors, for whatever serves them.

export.json                          run, digest of the dataset, width, and what lies where
candidates/SPACE/part-00000.parquet  id, vector of every candidate; SPACE: ENTITY, or ENTITY@TASK
anchors/TASK/part-00000.parquet      id, vector of every entity that may be an anchor of the task

Legend: N entities of a catalogue (M written at once), D width.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.encode import BLOCK

MARK = "export.json"
FORMAT = 1
AT_ONCE = 16 * BLOCK
"""Vectors of a row group: whole blocks, so that they have the same bits as those that are judged."""
_FILE_ROWS = 64 * AT_ONCE


@dataclass(frozen=True, kw_only=True)
class Space:
    """Vectors that are compared with each other's counterparts.

    Args:
        entity: whose vectors they are. tasks: that read them. anchors: or candidates. folder: in the export.
    """

    entity: str
    tasks: tuple[str, ...]
    anchors: bool
    folder: str


def write_export(
    folder: Path,
    dataset: PreparedDataset,
    spaces: Mapping[Space, Callable[[np.ndarray], Tensor]],
    *,
    run: str,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Writes a folder aside and renames it; an earlier one is replaced. Called on every rank; the main one writes.

    Args:
        spaces: what encodes catalogue rows id_M of each, as vector_MD on every rank. run: its name.

    Returns:
        What `export.json` says.
    """
    aside, told = folder.with_name(f".{folder.name}.partial"), []
    on_main(lambda: shutil.rmtree(aside, ignore_errors=True))
    for space, encode in spaces.items():
        count, width = dataset.manifest.entities[space.entity].count, 0
        with _Files(aside / space.folder, dataset.entity_path(space.entity)) as files:
            for start in range(0, count, AT_ONCE):
                vector_MD = encode(np.arange(start, min(start + AT_ONCE, count))).cpu().numpy()
                width = vector_MD.shape[1]
                on_main(partial(files.write, vector_MD))
                progress(space.folder, start + len(vector_MD), count)
        told.append(asdict(space) | {"rows": count, "width": width})
    about = {"format": FORMAT, "run": run, "digest": dataset.manifest.digest, "score": "inner product", "spaces": told}
    on_main(lambda: _put(aside, folder, about))
    return about


def _put(aside: Path, folder: Path, about: Mapping[str, Any]) -> None:
    (aside / MARK).write_text(json.dumps(about, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)


def check_place(folder: Path) -> None:
    """Refuses to write where something else lies.

    Raises:
        UserError: the path exists and is no export.
    """
    if folder.exists() and not (folder / MARK).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"'{folder}' exists and holds no export: give another --output, or move it away")


class _Files:
    """Parquet files of one space, one after the other; nothing is there before the first vectors."""

    def __init__(self, folder: Path, entity_file: Path) -> None:
        self._folder, self._ids, self._rows = folder, _ids(entity_file), 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def write(self, vector_MD: np.ndarray) -> None:
        """The vectors of the next AT_ONCE entities, beside their ids."""
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vector_MD.reshape(-1)), vector_MD.shape[1])
        table = pa.table({"id": next(self._ids), "vector": vectors})
        if self._rows % _FILE_ROWS == 0:
            self._close()
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"part-{self._rows // _FILE_ROWS:05}.parquet"
            # Floats hardly compress, and a dictionary of them is a second copy.
            self._writer = pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        assert self._writer is not None
        self._writer.write_table(table)
        self._rows += len(table)

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None


def _ids(entity_file: Path) -> Iterator[pa.ChunkedArray]:
    """The entities' ids in catalogue order, AT_ONCE at a time."""
    waiting: list[pa.Array] = []
    for batch in pq.ParquetFile(entity_file).iter_batches(AT_ONCE, columns=["id"]):
        ids = batch.column("id")
        while len(ids):
            room = AT_ONCE - sum(map(len, waiting))
            waiting.append(ids[:room])
            ids = ids[room:]
            if sum(map(len, waiting)) == AT_ONCE:
                yield pa.chunked_array(waiting)
                waiting = []
    if waiting:
        yield pa.chunked_array(waiting)
