"""RunConfig: the whole tree of config classes, from TOML files (merged left to right) and `--set` overrides.

Only this module knows the whole tree. Pydantic checks it (and plans that are read): unknown keys are errors, `kind`
tags a choice. Every class lives beside the code it configures.
"""

import argparse
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.config_errors import explain, told
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import NegativesConfig
from torchrec_mt.data.part import dataset_of_schema, schema_of_tasks
from torchrec_mt.data.reader import ReaderConfig
from torchrec_mt.data.sources import Source
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import RuntimeConfig
from torchrec_mt.errors import UserError, at_most, require
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.retrieval.evaluator import EvaluateConfig
from torchrec_mt.schema import Schema
from torchrec_mt.training.imagined import PlanConfig
from torchrec_mt.training.keeper import CheckpointConfig
from torchrec_mt.training.optim import OptimConfig
from torchrec_mt.training.trainer import TrainerConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Schema):
    """A dataset: where its raw tables come from, what they mean (the schema), the folder it is prepared into."""

    name: str
    path: str
    source: Source

    def __post_init__(self) -> None:
        at_most(self, max_rejected_share=1)
        # It becomes the name of a folder: runs/NAME.
        plain = re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII)
        require(plain is not None, "name", self.name, "letters, digits, '_', '-' and '.', the first no '-' or '.'")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run depends on. Each section is optional but the dataset."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    dataset: DatasetConfig
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    balancing: BalancingConfig = field(default_factory=BalancingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)


_ADAPTER = TypeAdapter(RunConfig)


def open_dataset(config: RunConfig) -> tuple[PreparedDataset, DatasetConfig]:
    """The prepared dataset and its schema; of both what the trained tasks need (`trainer.tasks`).

    Raises:
        UserError: it is not there, or was prepared by another declaration; no such task.
    """
    dataset = PreparedDataset.open(config.dataset.path)
    dataset.check_declaration(config.dataset)
    schema = schema_of_tasks(config.dataset, config.trainer.tasks)
    return dataset_of_schema(dataset, schema), schema


def add_config_arguments(parser: argparse.ArgumentParser, *, nargs: Literal["+", "*"] = "+") -> None:
    """The arguments by which a program takes its config."""
    parser.add_argument("config", nargs=nargs, help="TOML files, merged left to right: a base file and small overlays")
    add_set_argument(parser)


def add_set_argument(
    parser: argparse.ArgumentParser, *, example: str = "trainer.epochs=2", keys: Sequence[str] = ()
) -> None:
    """`--set KEY=VALUE`, for programs whose config comes from elsewhere: of `keys` alone (see `check_keys`), or any."""
    only = f"; only {', '.join(keys)}" if keys else ""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help=f"override one key, e.g. --set {example} (value as in TOML, a bare word is a string); repeatable{only}",
    )


def check_keys(overrides: Sequence[str], keys: Sequence[str]) -> None:
    """Refuses overrides that a program of a finished run cannot follow.

    Args:
        keys: what can be set there: keys, or sections as "evaluate.*".

    Raises:
        UserError: a key that the run has settled.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if not _is_one_of(key, keys):
            raise UserError(
                f"--set {override}: the run has settled '{key}', only {', '.join(keys)} can be set here; train again "
                "to change it"
            )


def changed_keys(settled: dict[str, Any], config: RunConfig, *, but: Sequence[str]) -> list[str]:
    """Dotted keys at which a run's config differs from another, but those of `but` (keys, or sections as "a.*")."""
    found: list[str] = []

    def compare(here: Any, there: Any, key: str) -> None:
        if isinstance(here, dict) and isinstance(there, dict):
            for name in {**here, **there}:
                compare(here.get(name), there.get(name), f"{key}.{name}" if key else name)
        elif here != there and not _is_one_of(key, but):
            found.append(key)

    compare(settled, json.loads(config_to_json(config)), "")
    return found


def _is_one_of(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or (one.endswith("*") and key.startswith(one[:-1])) for one in keys)


def load_as(kind: type[T], file: str | Path) -> T:
    """Reads a TOML file that is no run's config, and checks it against a config class as strictly.

    Raises:
        UserError: a file that is missing or no TOML, an unknown key, a wrong value.
    """
    raw = _read_toml(Path(file))
    try:
        return TypeAdapter(kind).validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        raise UserError(told(explain(error, raw, kind), where=str(file), overrides={})) from None


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = (), *, given_by: str = "--set") -> RunConfig:
    """Reads, merges and checks a config.

    Args:
        given_by: what messages call the place of the overrides.

    Raises:
        UserError: a file that is missing or no TOML, an unknown key, a wrong value: each names file or key and value.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merge(merged, _read_toml(Path(file)))
    return check_config(merged, overrides, where=", ".join(map(str, files)), given_by=given_by)


def check_config(
    raw: dict[str, Any], overrides: Sequence[str] = (), *, where: str, given_by: str = "--set"
) -> RunConfig:
    """Validates a raw tree, with overrides, against the config classes.

    Args:
        where: what messages call the place of the tree. given_by: and that of the overrides.

    Raises:
        UserError: unknown keys, wrong types, values out of range: each names its key.
    """
    raw = apply_overrides(raw, overrides, given_by=given_by)
    try:
        _check_paths(raw, "")
        # As JSON, because there `strict` takes a list for a tuple: 1 is a float, but true and "1" are no numbers.
        return _ADAPTER.validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        given = {one.partition("=")[0]: f"{given_by} {one}" for one in overrides}
        raise UserError(told(explain(error, raw, RunConfig), where=where, overrides=given)) from None


def _check_paths(raw: Any, key: str) -> None:
    """The operating system would raise a ValueError for a NUL at the first use of a path."""
    if isinstance(raw, dict):
        for name, value in raw.items():
            _check_paths(value, f"{key}.{name}" if key else name)
    elif isinstance(raw, list):
        for value in raw:
            _check_paths(value, key)
    elif isinstance(raw, str) and "\0" in raw and key.rpartition(".")[2] in ("path", "root"):
        raise UserError(f"{key} = {raw!r}: a path has no NUL in it")


def config_to_json(config: RunConfig) -> str:
    """The resolved config; `check_config` of it gives the same config back."""
    return json.dumps(asdict(config), indent=1, ensure_ascii=False) + "\n"


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str], *, given_by: str = "--set") -> dict[str, Any]:
    """Applies `KEY=VALUE` overrides to a raw tree."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{given_by} {override!r} is not of the form KEY=VALUE")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        except ValueError as error:  # an integer of thousands of digits
            raise UserError(f"{given_by} {key}: {error}") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        raw = _merge(raw, value)
    return raw


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no config file '{path}'") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder: give a TOML file") from None
    except ValueError as error:  # no TOML, no UTF-8, or an integer of thousands of digits
        raise UserError(f"'{path}' is not valid TOML: {error}") from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; tables merge; a table of another `kind` replaces the whole table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _kind_of(value) in (None, _kind_of(old)):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _kind_of(table: dict[str, Any]) -> str | None:
    """What tags it; a table of its own may be called `kind`, too."""
    kind = table.get("kind")
    return None if isinstance(kind, dict) else kind
