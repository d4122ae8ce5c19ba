"""How large a model is: parameters, bytes of tables, products per pair; and widths that give a wished size."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import nn

from torchrec_mt.errors import UserError
from torchrec_mt.models.sharing.parts import Parts
from torchrec_mt.models.spec import ModelSpec
from torchrec_mt.models.two_tower import ModelConfig, dense_modules

_TOLERANCE = 0.02
_WIDEST = 65_536


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The size of a model.

    Args:
        sharing: the architecture's kind. widths: inside its blocks, by key of the config. dense_parameters: all but
            tables. tables: rows, dim, bytes and vocabulary by table. flops_per_pair: by task, multiplications and
            additions of the matrix products that one pair takes forward, both sides; a backward takes twice as many.
    """

    sharing: str
    widths: Mapping[str, int]
    dense_parameters: int
    tables: Mapping[str, Mapping[str, Any]]
    flops_per_pair: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """With totals."""
        return {
            "sharing": self.sharing,
            "widths": dict(self.widths),
            "dense_parameters": self.dense_parameters,
            "table_parameters": sum(table["rows"] * table["dim"] for table in self.tables.values()),
            "table_bytes": sum(table["bytes"] for table in self.tables.values()),
            "tables": {name: dict(table) for name, table in self.tables.items()},
            "flops_per_pair": dict(self.flops_per_pair),
        }

    def text(self) -> str:
        """One line for a person."""
        told = self.to_json()
        flops = ", ".join(f"{task} {flops:,}" for task, flops in self.flops_per_pair.items())
        return (
            f"model: sharing {self.sharing}, {self.dense_parameters:,} dense parameters; {len(self.tables)} tables of "
            f"{told['table_parameters']:,} parameters, {told['table_bytes'] / (1 << 20):,.1f} MiB; "
            f"FLOPs per pair, forward: {flops}"
        )


def model_size(spec: ModelSpec, config: ModelConfig) -> ModelSize:
    """The size of a model that need not be there.

    Args:
        config: its widths are taken as they are (`matched`).
    """
    parts, scales = _on_meta(spec, config)
    return ModelSize(
        sharing=config.sharing.kind,
        widths=_widths(config),
        dense_parameters=_count(parts, scales),
        tables={
            table.name: {
                "rows": table.rows,
                "dim": table.dim,
                "bytes": table.num_bytes,
                "vocabulary": table.vocabulary,
            }
            for table in spec.tables
        },
        flops_per_pair={task: _flops(parts, task, *sides) for task, sides in spec.tasks.items()},
    )


def _flops(parts: Parts, task: str, anchor: str, candidate: str) -> int:
    own = 0 if parts.candidates is None else parts.candidates.flops(task)
    return parts.towers.flops(anchor, task) + parts.anchors.flops(task) + parts.towers.flops(candidate, task) + own


def matched(spec: ModelSpec, config: ModelConfig) -> ModelConfig:
    """The config with its widths scaled, all by one factor, to `match_parameters` dense parameters; as it is for 0.

    Raises:
        UserError: no factor comes within 2%.
    """
    wanted = config.match_parameters
    if not wanted:
        return config

    @cache
    def count(thousandths: int) -> int:
        return _count(*_on_meta(spec, _scaled(config, thousandths / 1000)))

    # The count grows with the factor: halve the interval in which it passes the wish.
    low, high = 0, 1000 * _WIDEST // max(_widths(config).values())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    best = min((low, high), key=lambda factor: abs(count(factor) - wanted))
    if abs(count(best) - wanted) > _TOLERANCE * wanted:
        raise UserError(
            f"model.match_parameters = {wanted:,}: with sharing '{config.sharing.kind}' and model.dim = {config.dim} "
            f"the nearest is {count(best):,} dense parameters ({_said(_scaled(config, best / 1000))}), more than 2% "
            "off: ask for that, or change model.dim, model.depth or the number of experts"
        )
    return _scaled(config, best / 1000)


def _on_meta(spec: ModelSpec, config: ModelConfig) -> tuple[Parts, nn.Module]:
    with torch.device("meta"):
        return dense_modules(spec, config)


def _count(parts: Parts, scales: nn.Module) -> int:
    modules = [module for module in (*parts, scales) if module is not None]
    return sum(parameter.numel() for parameter in chain(*(module.parameters() for module in modules)))


def _widths(config: ModelConfig) -> dict[str, int]:
    """What is scaled, by key."""
    own = {f"sharing.{key}": getattr(config.sharing, key) for key in config.sharing.widths}
    return {"hidden": config.hidden, "task_hidden": config.task_hidden, **own}


def _scaled(config: ModelConfig, factor: float) -> ModelConfig:
    widths = {key: max(1, min(_WIDEST, round(factor * width))) for key, width in _widths(config).items()}
    own: Any = {key: widths[f"sharing.{key}"] for key in config.sharing.widths}  # other keys for each architecture
    sharing = replace(config.sharing, **own)
    return replace(config, hidden=widths["hidden"], task_hidden=widths["task_hidden"], sharing=sharing)


def _said(config: ModelConfig) -> str:
    return ", ".join(f"{key} = {width}" for key, width in _widths(config).items())
