"""The plan of a sweep: which keys of a config are searched, within what, how long, and when a trial is given up."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from torchrec_mt.config import RunConfig, apply_overrides, load_as, load_config
from torchrec_mt.errors import UserError, require, within
from torchrec_mt.storage import is_url
from torchrec_mt.workflows.toml_text import toml_value

JUDGING = (
    *(f"trainer.{key}" for key in ("metric", "tasks", "validations", "validation_anchors")),
    *(f"dataset.{key}" for key in ("name", "path", "source", "split")),
)
"""Keys that say how and on what a trial is judged: trials that differ in them cannot be compared."""
JOB = ("runtime.device", "runtime.threads", "runtime.timeout_minutes")
"""Keys of the process in which all trials run."""
_TRIES = 32
"""Draws of all other keys among which there must be one with which a value makes a config, if it does not alone."""


@dataclass(frozen=True, kw_only=True)
class FloatRange:
    """A number from `low` to `high`. `log`: drawn evenly by its logarithm."""

    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        within(self, -1e300, 1e300, "low", "high")
        require(self.low < self.high, "high", self.high, f"above low = {self.low!r}")
        require(self.low > 0 or not self.log, "low", self.low, "above 0 where log = true")

    @property
    def bounds(self) -> tuple[str, ...]:
        """Its ends as TOML."""
        return toml_value(self.low), toml_value(self.high)


@dataclass(frozen=True, kw_only=True)
class IntRange:
    """A whole number from `low` to `high`, both included, `step` apart."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        within(self, -(10**15), 10**15, "low", "high")
        require(self.low < self.high, "high", self.high, f"above low = {self.low!r}")
        within(self, 1, 10**15, "step")
        require((self.high - self.low) % self.step == 0, "high", self.high, f"low + a multiple of step = {self.step}")

    @property
    def bounds(self) -> tuple[str, ...]:
        """Its ends as TOML."""
        return toml_value(self.low), toml_value(self.high)


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """One of some values: whatever TOML can say, such as a table with a `kind`."""

    kind: Literal["one_of"] = "one_of"
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        try:
            texts = self.bounds
        except TypeError:  # a null, which no TOML file has
            texts = ()
        require(
            len(texts) > 1 and len(set(texts)) == len(texts), "values", list(self.values), "two or more, all different"
        )

    @property
    def bounds(self) -> tuple[str, ...]:
        """All of them as TOML."""
        return tuple(map(toml_value, self.values))


Choice = FloatRange | IntRange | OneOf


@dataclass(frozen=True, kw_only=True)
class NoPruning:
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class MedianPruning:
    """A trial ends where its best validation so far is below the median that finished trials had at this validation.

    Args:
        startup: trials that finish first. warmup: validations of a trial after which it is not yet given up.
    """

    kind: Literal["median"] = "median"
    startup: int = 5
    warmup: int = 1

    def __post_init__(self) -> None:
        within(self, 1, 1_000_000, "startup")
        within(self, 0, 1_000_000, "warmup")


@dataclass(frozen=True, kw_only=True)
class HyperbandPruning:
    """Hyperband, Li et al., JMLR 2018: of the trials that come to a rung, the best 1 / `factor` go on.

    Args:
        least: validations until the first rung. factor: how many times further the next one is.
    """

    kind: Literal["hyperband"] = "hyperband"
    least: int = 1
    factor: int = 3

    def __post_init__(self) -> None:
        within(self, 1, 1_000_000, "least")
        within(self, 2, 1_000_000, "factor")


Pruning = NoPruning | MedianPruning | HyperbandPruning


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search over keys of a config, for the highest `trainer.metric` on the validation split.

    Args:
        goal: in a sentence. base: config files, merged left to right. settings: keys of all trials, as of `--set`.
        output: folder of the trials' runs. trials: how many in all, failed ones included. seed: of what is drawn.
        timeout_minutes: of a call, after which no further trial begins. keys: dotted, with what each is searched in.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    goal: str
    base: tuple[str, ...]
    output: str
    trials: int
    keys: dict[str, Choice]
    settings: tuple[str, ...] = ()
    seed: int = 0
    timeout_minutes: float | None = None
    pruning: Pruning = field(default_factory=NoPruning)

    def __post_init__(self) -> None:
        require(self.goal.strip(), "goal", self.goal, "a sentence")
        require(self.base, "base", self.base, "at least one config file")
        require(not is_url(self.output), "output", self.output, "a folder here: a study is no file of object storage")
        require(self.keys, "keys", self.keys, "at least one key")
        within(self, 1, 1_000_000, "trials")
        within(self, 0, 2**32 - 1, "seed")
        if self.timeout_minutes is not None:
            within(self, 0, 1_000_000, "timeout_minutes")
        given = [setting.partition("=")[0] for setting in self.settings]
        for key in self.keys:
            judging = next((one for one in JUDGING if _holds(one, key) or _holds(key, one)), None)
            require(judging is None, f"keys.{key}", key, f"none of what trials are judged by and on ({judging})")
            joined = next((one for one in JOB if _holds(key, one)), None)
            require(joined is None, f"keys.{key}", key, f"no key of the process in which all trials run ({joined})")
            for other in [*given, *(other for other in self.keys if other != key)]:
                require(
                    not _holds(key, other), f"keys.{key}", key, f"apart from '{other}', which is in it: leave out one"
                )

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def settings_with(self, found: Mapping[str, str]) -> list[str]:
        """Keys of a trial, as of `--set`.

        Args:
            found: values as TOML by key.
        """
        return [*self.settings, *(f"{key}={text}" for key, text in found.items())]

    def config(self, found: Mapping[str, str]) -> RunConfig:
        """The config of a trial.

        Raises:
            UserError: these values make none.
        """
        return load_config(self.base, self.settings_with(found), given_by="with" if found else "settings")

    def overlay(self, found: Mapping[str, str]) -> dict[str, Any]:
        """What the base must be merged with to be a trial's config."""
        return apply_overrides({}, self.settings_with(found))


def _holds(key: str, other: str) -> bool:
    """Whether a dotted key is another or a section that the other is in."""
    return other == key or other.startswith(f"{key}.")


def load_sweep(file: str) -> Sweep:
    """Reads and checks a sweep: every value of a list and both ends of every range make a config, alone or with some
    values of the other keys.

    Raises:
        UserError: what `load_as` refuses; a value that makes no config; fewer validations than pruning wants; one
            folder of checkpoints for all trials.
    """
    sweep = load_as(Sweep, file)
    try:
        base = sweep.config({})
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    for key, choice in sweep.keys.items():
        for text in choice.bounds:
            _check_value(file, sweep, key, text)
    least = sweep.pruning.least if isinstance(sweep.pruning, HyperbandPruning) else 0
    if least > base.trainer.validations:
        raise UserError(
            f"{file}: pruning.least = {least}: a trial has only trainer.validations = {base.trainer.validations}"
        )
    if base.checkpoint.folder:
        raise UserError(
            f"{file}: checkpoint.folder = {base.checkpoint.folder!r}: all trials would write there; leave it out"
        )
    return sweep


def _check_value(file: str, sweep: Sweep, key: str, text: str) -> None:
    """Tried alone, then with values of the other keys, of which it may need one."""
    draw, first = random.Random(0), None
    others = [(name, choice) for name, choice in sweep.keys.items() if name != key]
    for number in range(_TRIES + 1):
        drawn = {name: draw.choice(choice.bounds) for name, choice in others} if number else {}
        try:
            sweep.config(drawn | {key: text})
        except UserError as error:
            first = first or error
        else:
            return
    raise UserError(f"{file}: keys.{key} = {text} makes no config: {first}")
