"""A new run starts from the weights of another, whose vocabularies may have been smaller, larger or in another order.

Rows of tables are found again by their value: those of both runs take their weights and their optimizer's sums along,
new ones stay as they were initialised, those that have vanished are left behind. A table of another dtype takes the
numbers rounded to it. Dense weights are taken where name and shape are the same. The earlier run's dataset is not
needed, and no rank holds more of its tables than a block of rows.

Legend: K rows found again, R rows of a block, D columns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.matching import count_matched, matched_rows
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.table_state import LoadReport, load_tables, table_layout, table_state
from torchrec_mt.errors import UserError
from torchrec_mt.models.two_tower import TwoTower
from torchrec_mt.schema import declared_table
from torchrec_mt.training.checkpoints.layout import DTYPE_NAMES
from torchrec_mt.training.checkpoints.store import CheckpointStore, Loaded
from torchrec_mt.training.keeper import BEST
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.run_state import Value, dense_weights

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The run that another starts from: its folder, where its checkpoints are, and its URL if it has one."""

    path: Path
    checkpoints: str | Path
    url: str = ""


def warm_start(
    model: DistributedModelParallel,
    optimizers: Optimizers,
    dataset: PreparedDataset,
    earlier: Earlier,
    *,
    block_bytes: int = _BLOCK_BYTES,
) -> dict[str, Any]:
    """Takes the weights of an earlier run's best checkpoint, averages where it has them. Called on every rank.

    Args:
        block_bytes: of a table that are read at a time.

    Returns:
        What became of it, as JSON: see `describe`.

    Raises:
        UserError: on every rank; no such checkpoint, a damaged one, or tables of other dims.
    """
    store = CheckpointStore(earlier.checkpoints, keep=1)
    try:
        found = store.load({}, mark=BEST, partial=True)
        vocabularies = _vocabularies(model)
        rows = {name: dataset.manifest.tables[vocabulary] for name, vocabulary in vocabularies.items()}
        saved: dict[str, dict[str, Any]] = found.state["layout"]
        _check_dims(model, optimizers, saved, earlier)
        report = load_tables(
            model,
            {name: told | {"rows": rows.get(name, told["rows"])} for name, told in saved.items()},
            lambda tables: _read(store, found, tables, vocabularies, dataset, earlier, block_bytes),
            optimizers.table_rule,
            optimizers.combined,
        )
        taken, left = _take_dense(store, found, model)
    finally:
        store.close()
    if optimizers.average:
        optimizers.average.start_over()
    dtypes = _other_dtypes(found, table_state(model, optimizers.table_rule, optimizers.combined))
    return {
        "run": earlier.url or str(earlier.path),
        "checkpoint": found.path,
        "step": found.step,
        "tables": on_main(lambda: _counts(vocabularies, dataset, earlier, saved, report, dtypes)),
        "tables_left_behind": sorted(saved.keys() - rows.keys()),
        "dense_taken": taken,
        "dense_left": left,
    }


def describe(told: dict[str, Any]) -> list[str]:
    """What `warm_start` returns, for a person: a line a table, and one for the rest."""
    lines = [f"starts from the weights of {told['run']} after step {told['step']}"]
    for name, table in told["tables"].items():
        lines.append(
            f"table {name}: {table['kept']:,} rows kept, {table['fresh']:,} fresh, {table['dropped']:,} dropped; "
            f"{table['dtype'] + '; ' if 'dtype' in table else ''}optimizer's sums {table['sums']}"
        )
    lines += [f"table {name}: left behind, nothing reads it now" for name in told["tables_left_behind"]]
    lines.append(f"other weights: {told['dense_taken']} taken")
    lines += [f"not taken: {name} ({reason})" for name, reason in told["dense_left"].items()]
    return lines


def _read(
    store: CheckpointStore,
    found: Loaded,
    tables: dict[str, Value],
    vocabularies: Mapping[str, str],
    dataset: PreparedDataset,
    earlier: Earlier,
    block_bytes: int,
) -> None:
    """Fills the rows that were there before, and zeros of sums; block by block, as many of them on every rank."""
    for table in sorted({_table_of(name) for name in tables}):
        told = found.state["layout"][table]
        parts = [
            _Part.of(name, vocabularies[table], at, tensor, dataset, earlier)
            for name, value in tables.items()
            if _table_of(name) == table
            for at, tensor in (value.pieces if isinstance(value, Pieces) else [((0, 0), value)])
        ]
        step = max(1, block_bytes // (4 * told["dim"]))
        for start in range(0, told["rows"], step):
            _read_block(store, found, parts, range(start, min(start + step, told["rows"])), told["rows"], tables)


@dataclass(frozen=True)
class _Part:
    """A piece of a tensor of a table here, and which of its rows row_K were which earlier_K, by those."""

    name: str
    column: int
    tensor: Tensor
    row_K: Tensor
    earlier_K: Tensor

    @classmethod
    def of(
        cls,
        name: str,
        vocabulary: str,
        at: Iterable[int],
        tensor: Tensor,
        dataset: PreparedDataset,
        earlier: Earlier,
    ) -> "_Part":
        row, column = at
        if name.endswith(".sum"):
            tensor.zero_()
        here, there = matched_rows(dataset, earlier.path, vocabulary, range(row, row + len(tensor)))
        return cls(name, column, tensor, torch.from_numpy(here - row), torch.from_numpy(there))


def _read_block(
    store: CheckpointStore, found: Loaded, parts: list[_Part], block: range, rows: int, tables: dict[str, Value]
) -> None:
    read: dict[str, dict[int, Tensor]] = {}
    filled = []
    for part in parts:
        first, last = torch.searchsorted(part.earlier_K, torch.tensor([block.start, block.stop])).tolist()
        if first < last:
            columns = read.setdefault(part.name, {})
            if part.column not in columns:
                columns[part.column] = torch.empty(len(block), part.tensor.shape[1], dtype=found.dtypes[part.name])
            filled.append((part, columns[part.column], slice(first, last)))
    wanted = {
        name: Pieces(
            (rows, tables[name].shape[1]),
            found.dtypes[name],
            [((block.start, at), block_RD) for at, block_RD in columns.items()],
        )
        for name, columns in read.items()
    }
    store.load(wanted, step=found.step, partial=True)
    for part, block_RD, here in filled:
        values_KD = block_RD[part.earlier_K[here] - block.start]
        part.tensor[part.row_K[here].to(part.tensor.device)] = values_KD.to(part.tensor)


def _check_dims(
    model: DistributedModelParallel, optimizers: Optimizers, saved: dict[str, dict[str, Any]], earlier: Earlier
) -> None:
    here = table_layout(model, optimizers.table_rule)
    dims = {name: (told["dim"], saved[name]["dim"]) for name, told in here.items() if name in saved}
    other = {declared_table(name): f"{dim} ({there} there)" for name, (dim, there) in dims.items() if dim != there}
    if other:
        keys = ", ".join(f"dataset.tables.{table}.dim = {told}" for table, told in other.items())
        raise UserError(
            f"the tables of '{earlier.url or earlier.path}' have other widths, and a row cannot be taken into one of "
            f"another width: {keys}: take its dims, or start without --init-from"
        )


def _take_dense(store: CheckpointStore, found: Loaded, model: DistributedModelParallel) -> tuple[int, dict[str, str]]:
    """How many weights were taken, and which were not, with the reason."""
    prefix = "dense" if found.state["average_updates"] is None else "average"
    wanted: dict[str, Value] = {}
    left: dict[str, str] = {}
    for name, weight in dense_weights(model).items():
        shape = found.shapes.get(f"{prefix}.{name}")
        if shape is None:
            left[name] = "new here"
        elif shape != tuple(weight.shape):
            left[name] = f"{[*shape]} there, {[*weight.shape]} here"
        else:
            wanted[f"{prefix}.{name}"] = weight
    store.load(wanted, step=found.step, partial=True)
    return len(wanted), left


def _vocabularies(model: DistributedModelParallel) -> Mapping[str, str]:
    """By table of the model the dataset's table whose rows it has."""
    return next(module.vocabularies for module in model.modules() if isinstance(module, TwoTower))


def _counts(
    vocabularies: Mapping[str, str],
    dataset: PreparedDataset,
    earlier: Earlier,
    saved: dict[str, dict[str, Any]],
    report: LoadReport,
    dtypes: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """By table how many rows were kept, are fresh and were dropped, another dtype, and what became of the sums."""
    counts = {}
    for name, vocabulary in vocabularies.items():
        rows = dataset.manifest.tables[vocabulary]
        there = saved[name]["rows"] if name in saved else 0
        kept = count_matched(dataset, earlier.path, vocabulary) if name in saved else 0
        counts[name] = {
            "kept": kept,
            "fresh": rows - kept,
            "dropped": there - kept,
            **({"dtype": dtypes[name]} if name in dtypes else {}),
            "sums": _sums(f"tables.{name}.sum", report),
        }
    return counts


def _other_dtypes(found: Loaded, tables: dict[str, Value]) -> dict[str, str]:
    """By table, where weights have another dtype here: which, there and here."""
    other = {}
    for name, value in tables.items():
        there = found.dtypes.get(name, value.dtype)
        if there != value.dtype:
            other[_table_of(name)] = f"{DTYPE_NAMES[there]} there, {DTYPE_NAMES[value.dtype]} here"
    return other


def _sums(name: str, report: LoadReport) -> str:
    if name in report.restored:
        return "kept"
    if name in report.reinitialised or name in report.missing:
        return "start at zero"
    return report.converted.get(name, "none")


def _table_of(name: str) -> str:
    return name.removeprefix("tables.").rpartition(".")[0]
