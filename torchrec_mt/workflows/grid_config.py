"""The plan of an experiment, written before its first run: the question, what is fixed and varied, how it is judged."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from torchrec_mt.config import RunConfig, load_as, load_config, open_dataset
from torchrec_mt.errors import UserError, require
from torchrec_mt.retrieval.metrics import parse_metric
from torchrec_mt.storage import is_url

_DECIDED = {"runtime.seed": "seeds", "evaluate.split": "split", "evaluate.metrics": "metrics"}
"""Keys of a config that a plan has keys of its own for."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One thing that varies.

    Args:
        settings: keys, as of `--set`. twins_of: in place of a model of its own, one model per task: the twins of this
            method's run of the same seed.
    """

    settings: tuple[str, ...] = ()
    twins_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """An experiment: every method with every seed.

    Args:
        question: in a sentence. base: config files, merged left to right. settings: keys of all methods, as of `--set`.
        reference: the method that others are compared with. metrics: to judge by, the first decides.
        split: "valid" while something is still chosen by it, "test" once. output: folder of the runs.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    question: str
    base: tuple[str, ...]
    output: str
    reference: str
    methods: dict[str, Method]
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    metrics: tuple[str, ...] = ("recall@100", "recall@10", "ndcg@10")
    split: str = "test"

    def __post_init__(self) -> None:
        for at, metric in enumerate(self.metrics):
            _check_metric(f"metrics.{at}", metric)
        for seed in self.seeds:
            require(0 <= seed < 2**32, "seeds", seed, "numbers from 0 to 4,294,967,295")
        require(self.question.strip(), "question", self.question, "a sentence")
        require(self.base, "base", self.base, "at least one config file")
        require(not is_url(self.output), "output", self.output, "a folder here, not object storage")
        require(self.seeds and len(frozenset(self.seeds)) == len(self.seeds), "seeds", self.seeds, "different numbers")
        different = self.metrics and len(frozenset(self.metrics)) == len(self.metrics)
        require(different, "metrics", self.metrics, "different metrics, at least one")
        _check_settings("settings", self.settings)
        require(self.split in ("test", "valid"), "split", self.split, "test or valid")
        require(self.reference in self.methods, "reference", self.reference, f"one of the methods {list(self.methods)}")
        for name, method in self.methods.items():
            plain = re.fullmatch(r"\w[\w.+-]*", name, re.ASCII)
            require(plain, f"methods.{name}", name, "letters, digits, '_', '-', '+' and '.': it becomes a folder")
            _check_settings(f"methods.{name}.settings", method.settings)
            other = method.twins_of
            if other is not None:
                good = other in self.methods and self.methods[other].twins_of is None and not method.settings
                require(good, f"methods.{name}.twins_of", other, "a method that is a model, with nothing else set")

    def to_json(self) -> dict[str, Any]:
        """What of it decides the runs and their judgement, as JSON."""
        return asdict(self)


def _check_metric(key: str, name: str) -> None:
    try:
        parse_metric(name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _check_settings(key: str, settings: Sequence[str]) -> None:
    """What the plan decides for all methods would be overridden without a word."""
    for setting in settings:
        name = setting.partition("=")[0]
        require(name not in _DECIDED, key, setting, f"without {name}: that is what `{_DECIDED.get(name)}` says")


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    method: str
    seed: int
    twins_of: str | None
    config: RunConfig
    place: Path

    @property
    def name(self) -> str:
        """As it is told."""
        return f"{self.method}, seed {self.seed}"


def load_grid(file: str) -> Grid:
    """Reads and checks an experiment.

    Raises:
        UserError: what `load_as` refuses.
    """
    return load_as(Grid, file)


def cells_of(grid: Grid, only: Sequence[str] = (), *, file: str = "the grid") -> list[Cell]:
    """Every cell, seed by seed, twins after the run whose twins they are. All configs are checked before any runs.

    Args:
        only: methods; none means all. file: of the grid, as messages name it.

    Raises:
        UserError: a config that is none, a method that the grid lacks, methods that are not judged on the same.
    """
    for name in only:
        if name not in grid.methods:
            raise UserError(f"--only {name}: {file} has no such method: choose of {', '.join(grid.methods)}")
    judging = [f"evaluate.split={grid.split}", f"evaluate.metrics={list(grid.metrics)}", "evaluate.baselines=[]"]
    cells = []
    for seed in grid.seeds:
        for name in sorted(grid.methods, key=lambda name: grid.methods[name].twins_of is not None):
            method = grid.methods[name]
            if only and name not in only:
                continue
            source = method if method.twins_of is None else grid.methods[method.twins_of]
            overrides = [*grid.settings, *source.settings, f"runtime.seed={seed}", *judging]
            try:
                config = load_config(grid.base, overrides, given_by="settings")
            except UserError as error:
                raise UserError(f"{file}, method '{name}': {error}") from None
            folder = Path(grid.output) / (method.twins_of or name) / f"seed-{seed}"
            cells.append(Cell(name, seed, method.twins_of, config, folder))
    for cell in cells:
        _check_alike(cells[0], cell)
    return cells


def check_datasets(cells: Sequence[Cell], *, file: str) -> None:
    """Looks for the prepared dataset of every method, before an experiment is begun that none of them can take part in.

    Raises:
        UserError: one is not there, or was prepared by another declaration; no such task.
    """
    for cell in {cell.method: cell for cell in cells}.values():
        try:
            open_dataset(cell.config)
        except UserError as error:
            raise UserError(f"{file}, method '{cell.method}': {error}") from None


def _check_alike(first: Cell, cell: Cell) -> None:
    """Refuses what would be ignored, or could not be compared after all runs are made."""
    for (key, one), other in zip(_for_all(first.config).items(), _for_all(cell.config).values(), strict=True):
        if one != other:
            raise UserError(
                f"method '{cell.method}': {key} = {other!r}, but that of '{first.method}' is {one!r}: all methods run "
                "in one job and are judged on the same; set it for all"
            )
    folder = cell.config.checkpoint.folder
    if folder:
        raise UserError(f"checkpoint.folder = {folder!r}: all runs would write there; leave it out")


def _for_all(config: RunConfig) -> dict[str, object]:
    """What may not vary, by key."""
    runtime = {f"runtime.{key}": value for key, value in asdict(config.runtime).items() if key != "seed"}
    return {
        "dataset.path": config.dataset.path,
        "evaluate.max_anchors": config.evaluate.max_anchors,
        **runtime,
    }
