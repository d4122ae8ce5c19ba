"""Tables and their optimizer's sums in one form, whatever the layout, the kernel and the number of ranks.

    tables.NAME.weight    rows x dim
    tables.NAME.sum       of Adagrad rows x dim, of row-wise Adagrad rows x blocks of columns (most layouts have one)

`table_layout` says as JSON what the sums mean; it is saved beside them and given to `load_tables`.

Legend: R rows of a shard, S blocks of columns.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding
from torchrec.modules.embedding_configs import data_type_to_dtype
from torchrec.optim.keyed import KeyedOptimizer

from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.sharding import is_table, shards_here
from torchrec_mt.distributed.table_optimizers import RowWiseAdagrad, Sgd, TableOptimizer
from torchrec_mt.errors import UserError
from torchrec_mt.schema import TABLE_PREFIX

Value = Tensor | Pieces
SHOWN = 8
"""Entries of a kind that a report names; it says how many more there are."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each entry: of the checkpoint as it was, by a rule, or not.

    Args:
        restored: same numbers. converted: by the rule it is given with. reinitialised: set to zero, with the reason.
        missing: not in the checkpoint, left as they were. unexpected: in the checkpoint alone.
    """

    restored: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    reinitialised: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def is_plain(self) -> bool:
        """Whether all is as it was saved, and nothing else."""
        return not (self.converted or self.reinitialised or self.missing or self.unexpected)

    def text(self) -> str:
        """One line a kind and entry, at most a screen."""
        lines = [f"restored: {len(self.restored)}"]
        kinds: dict[str, list[str]] = {
            "converted": [f"{name} ({rule})" for name, rule in self.converted.items()],
            "re-initialised": [f"{name} ({reason})" for name, reason in self.reinitialised.items()],
            "missing, left as they were": self.missing,
            "unexpected, not read": self.unexpected,
        }
        for kind, entries in kinds.items():
            if entries:
                lines += [f"{kind}: {len(entries)}", *(f"  {entry}" for entry in entries[:SHOWN])]
                lines += [f"  and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
        return "\n".join(lines)


@dataclass(frozen=True)
class _Shard:
    """This rank's part of a table from (row, column) on, as views of what the kernel works on.

    weight: rows x columns. sums: as wide, or one column under row-wise Adagrad; None where there are none.
    """

    row: int
    column: int
    weight: Tensor
    sums: Tensor | None


def table_layout(model: DistributedModelParallel, rule: TableOptimizer | None) -> dict[str, dict[str, Any]]:
    """What the state of tables means, the same on every rank, as JSON: by table its rows and dim, the kind of its
    optimizer (None: weights alone), and the borders of its blocks of columns, from 0 to dim."""
    configs, layout = _configs(model), {}
    for tables in model.plan.plan.values():
        for name, parameter in tables.items():
            shards = parameter.sharding_spec.shards if parameter.sharding_spec else []
            layout[name.removeprefix(TABLE_PREFIX)] = {
                "rows": configs[name].num_embeddings,
                "dim": configs[name].embedding_dim,
                "optimizer": rule.kind if rule else None,
                "columns": sorted({0, configs[name].embedding_dim} | {part.shard_offsets[1] for part in shards}),
            }
    return layout


def table_state(
    model: DistributedModelParallel, rule: TableOptimizer | None, optimizer: KeyedOptimizer | None = None
) -> dict[str, Value]:
    """The state of all tables: Pieces of sharded ones, plain tensors of those that every rank holds whole.

    All are views of the live tables: save, or copy, before the next step.

    Args:
        rule: the tables' optimizer; None: weights alone. optimizer: the one that updates replicated tables (it may hold
            others' parameters too); needed where there are such tables and sums.
    """
    shards, configs, state = _shards(model, rule, optimizer), _configs(model), dict[str, Value]()
    replicated = {name for tables in model.plan.plan.values() for name, p in tables.items() if _is_replicated(p)}
    for table, told in table_layout(model, rule).items():
        mine, config = shards.get(table, []), configs[TABLE_PREFIX + table]
        values = {
            "weight": Pieces(
                (told["rows"], told["dim"]),
                data_type_to_dtype(config.data_type),
                [((shard.row, shard.column), shard.weight) for shard in mine],
            )
        }
        if rule is not None and not isinstance(rule, Sgd):
            by_row = isinstance(rule, RowWiseAdagrad)
            starts = told["columns"][:-1] if by_row else list(range(told["dim"]))
            values["sum"] = Pieces(
                (told["rows"], len(starts)),
                torch.float32,
                [((shard.row, starts.index(shard.column)), shard.sums) for shard in mine if shard.sums is not None],
            )
        for kind, pieces in values.items():
            whole = config.name in replicated
            state[f"tables.{table}.{kind}"] = pieces.pieces[0][1] if whole else pieces
    return state


def of_tables(names: Iterable[str]) -> set[str]:
    """Those that `table_state` gives. Only a backward and an optimizer's step change these values."""
    return {name for name in names if name.startswith("tables.")}


def load_tables(
    model: DistributedModelParallel,
    layout: Mapping[str, Mapping[str, Any]],
    read: Callable[[dict[str, Value]], None],
    rule: TableOptimizer | None,
    optimizer: KeyedOptimizer | None = None,
) -> LoadReport:
    """Reads the state of tables, saved under any layout and number of ranks, into the model as it is sharded now.

    Weights and sums of Adagrad are the same numbers. The sum of row-wise Adagrad is that of the mean square over the
    columns of a block, so a block takes the mean of the saved blocks it overlaps, weighted by the columns they share:
    exact where blocks are joined; where one is split, each part takes an equal share, for want of better.
    Sums of another kind of optimizer are not used: the run's own start at zero.

    Args:
        layout: `table_layout` of the state that was saved. read: fills the values it is given, by name; called once, on
            every rank. rule, optimizer: as of `table_state`.

    Raises:
        UserError: on every rank, a table of another shape.
    """
    here, state = table_layout(model, rule), table_state(model, rule, optimizer)
    report, wanted, conversions = LoadReport(), dict[str, Value](), []
    for table, told in here.items():
        weight, sums, saved = f"tables.{table}.weight", f"tables.{table}.sum", layout.get(table)
        if saved is None:
            report.missing.extend(name for name in (weight, sums) if name in state)
            continue
        _check_shape(table, saved, told)
        wanted[weight] = state[weight]
        report.restored.append(weight)
        if sums not in state:
            report.unexpected.extend([sums] if rule and _has_sums(saved) else [])
        elif saved["optimizer"] != told["optimizer"]:
            report.reinitialised[sums] = (
                f"saved of {saved['optimizer'] or 'no optimizer'}, the run's is {told['optimizer']}"
            )
        elif isinstance(rule, RowWiseAdagrad) and saved["columns"] != told["columns"]:
            conversion = _Conversion.of(state[sums], saved["columns"], told["columns"])
            wanted[sums] = conversion.saved
            conversions.append(conversion)
            report.converted[sums] = (
                f"mean over columns, {len(saved['columns']) - 1} -> {len(told['columns']) - 1} blocks"
            )
        else:
            wanted[sums] = state[sums]
            report.restored.append(sums)
    for table in sorted(layout.keys() - here.keys()):
        report.unexpected.extend([f"tables.{table}.weight"] + [f"tables.{table}.sum"] * _has_sums(layout[table]))
    read(wanted)
    for conversion in conversions:
        conversion.apply()
    for name in report.reinitialised:
        for _, tensor in _pieces(state[name]):
            tensor.zero_()
    for bags in shards_here(model):
        bags.purge()  # rows that a cache of the kernel holds
    return report


@dataclass(frozen=True)
class _Conversion:
    """Row-wise sums from one division of the columns to another: rows R x S as they were saved, and those here."""

    saved: Pieces
    here: Value
    borders_saved: list[int]
    borders_here: list[int]

    @classmethod
    def of(cls, here: Value, borders_saved: list[int], borders_here: list[int]) -> "_Conversion":
        pieces, blocks = _pieces(here), len(borders_saved) - 1
        rows = {row: tensor.new_empty(len(tensor), blocks) for (row, _), tensor in pieces}
        saved = Pieces((here.shape[0], blocks), torch.float32, [((row, 0), tensor) for row, tensor in rows.items()])
        return cls(saved, here, borders_saved, borders_here)

    def apply(self) -> None:
        """Fills the sums here, once `saved` was read."""
        saved = {row: tensor_RS for (row, _), tensor_RS in self.saved.pieces}
        for (row, block), sums_R1 in _pieces(self.here):
            start, end = self.borders_here[block : block + 2]
            sums_R1.zero_()
            for column, (left, right) in enumerate(pairwise(self.borders_saved)):
                shared = min(end, right) - max(start, left)
                if shared > 0:
                    sums_R1.add_(saved[row][:, column : column + 1], alpha=shared / (end - start))


def _shards(
    model: DistributedModelParallel, rule: TableOptimizer | None, optimizer: KeyedOptimizer | None
) -> dict[str, list[_Shard]]:
    """This rank's shards by table; what a kernel's cache holds is written to the tables first."""
    after_backward = _sums_after_backward(optimizer) if rule is not None else {}
    shards: dict[str, list[_Shard]] = {}
    for bags in shards_here(model):
        bags.flush()
        fused = rule is not None and hasattr(bags.emb_module, "split_optimizer_states")
        states = bags.emb_module.split_optimizer_states() if fused else []
        weights = bags.split_embedding_weights()
        for table, weight, of_kernel in zip_longest(bags.config.embedding_tables, weights, states):
            sums = of_kernel[0] if of_kernel else after_backward.get(table.name)
            row, column = table.local_metadata.shard_offsets if table.local_metadata else (0, 0)
            shards.setdefault(table.name.removeprefix(TABLE_PREFIX), []).append(
                _Shard(
                    row, column, weight.detach(), None if sums is None else sums if sums.dim() == 2 else sums[:, None]
                )
            )
    return shards


def _sums_after_backward(optimizer: KeyedOptimizer | None) -> dict[str, Tensor]:
    """Sums of tables that are updated after the backward, by TorchRec's name of the table."""
    if optimizer is None:
        return {}
    states = optimizer.state
    found = {name.split(".")[-2]: states.get(table, {}) for name, table in optimizer.params.items() if is_table(name)}
    return {table: state["sum"] for table, state in found.items() if "sum" in state}


def _configs(model: DistributedModelParallel) -> dict[str, Any]:
    """Of all tables, also of those this rank holds nothing of, by TorchRec's name."""
    collections = [module for module in model.modules() if isinstance(module, ShardedEmbeddingBagCollection)]
    return {config.name: config for collection in collections for config in collection._embedding_bag_configs}


def _is_replicated(parameter: ParameterSharding) -> bool:
    return bool(parameter.sharding_type == "data_parallel")


def _pieces(value: Value) -> list[tuple[torch.Size, Tensor]]:
    return value.pieces if isinstance(value, Pieces) else [(torch.Size([0, 0]), value)]


def _has_sums(told: Mapping[str, Any]) -> bool:
    return told["optimizer"] not in (None, Sgd().kind)


def _check_shape(table: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if (saved["rows"], saved["dim"]) != (here["rows"], here["dim"]):
        raise UserError(
            f"table '{table}' has {here['rows']:,} rows of width {here['dim']}, the checkpoint's {saved['rows']:,} of "
            f"width {saved['dim']}: take the dataset and the dims it was trained with, or train again"
        )
