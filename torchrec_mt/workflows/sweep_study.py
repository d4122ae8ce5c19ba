"""What Optuna does of a sweep: it suggests values, says which trials to give up, and remembers all in a journal.

The journal is a file of JSON lines, each written and synced at once: it needs no database, and a program that is killed
leaves what it had said. One program at a time has it, on the main rank; whoever calls holds the sweep's folder.
"""

import importlib.util
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrec_mt.errors import UserError
from torchrec_mt.workflows.sweep_config import (
    Choice,
    FloatRange,
    HyperbandPruning,
    IntRange,
    MedianPruning,
    NoPruning,
    OneOf,
    Pruning,
    Sweep,
)
from torchrec_mt.workflows.toml_text import toml_value

if TYPE_CHECKING:  # importing it takes a second
    from optuna import Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import TPESampler

_NAME = "sweep"
_GIVEN_UP = "given_up"
_ENOUGH = 10
"""Finished trials from which on there is anything to say of what matters."""


def check_optuna() -> None:
    """Asked before anything is done.

    Raises:
        UserError: its package is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("a sweep needs the package optuna, which is not installed: pip install 'torchrec-mt[optuna]'")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, or that it has not.

    Args:
        state: "complete", "pruned", "failed" or "running". value: best validation; of a pruned one, its best before.
        found: values as TOML, by key. steps: taken. why: it failed.
    """

    number: int
    state: str
    value: float | None
    found: dict[str, str]
    steps: int | None
    seconds: float
    why: str


class Study:
    """The trials of a sweep.

    Args:
        file: the journal. validations: of a trial that is not ended early.

    `given_up`: whether the trial at hand was to end before its end.

    Raises:
        UserError: the journal is damaged.
    """

    def __init__(self, sweep: Sweep, file: Path, validations: int) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        _mend(file)
        self._sweep, self._validations = sweep, validations
        self._trial: Trial | None = None
        self.given_up = False
        try:
            self._storage = JournalStorage(JournalFileBackend(str(file.resolve())))
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=_NAME,  # Hyperband's brackets depend on it
                direction="maximize",
                pruner=_pruner(sweep.pruning, validations),
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:  # Optuna checks no line of it
            raise UserError(f"'{file}' is damaged ({error}): give the sweep another output") from None

    def next(self) -> tuple[int, dict[str, str]] | None:
        """The trial that was not ended, or a new one: its number, and its values as TOML by key; None after the last.

        What is suggested depends on the seed, the number of the trial and the outcomes so far, not on how often the
        sweep was stopped.
        """
        import optuna

        trials = self._study.get_trials(deepcopy=False)
        running = [trial.number for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]
        if not running and len(trials) >= self._sweep.trials:
            return None
        number = running[0] if running else len(trials)
        self._study.sampler = _sampler(self._sweep.seed, number)
        if running:
            study_id = self._storage.get_study_id_from_name(_NAME)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
            self._trial = optuna.Trial(self._study, trial_id)
        else:
            self._trial = self._study.ask()
        self.given_up = self._was_given_up()
        return number, {key: _suggest(self._trial, key, choice) for key, choice in self._sweep.keys.items()}

    @property
    def trial(self) -> "Trial":
        """The one of `next`."""
        assert self._trial is not None
        return self._trial

    def report(self, step: int, steps: int, value: float) -> bool:
        """Takes a validation of the trial; whether to give it up. Counted in validations, so that trials of different
        lengths are compared at the same share of their training."""
        number = round(step * self._validations / steps)
        if number not in self._reported():
            self.trial.report(value, number)
        self.given_up = self.trial.should_prune()
        if self.given_up:
            self.trial.set_user_attr(_GIVEN_UP, True)
        return self.given_up

    def end(self, state: str, *, value: float | None = None, why: str = "", steps: int | None = None) -> None:
        """The trial is over: "complete" with its value, "pruned" or "failed"."""
        from optuna.trial import TrialState

        self.trial.set_user_attr("why", why)
        self.trial.set_user_attr("steps", steps)
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        self._study.tell(self.trial, value, states[state])

    def took(self, seconds: float) -> None:
        """The trial was worked at for so long."""
        self.trial.set_user_attr("seconds", self.trial.user_attrs.get("seconds", 0.0) + seconds)

    def outcomes(self) -> list[Outcome]:
        """Of all trials, in their order."""
        return [self._outcome(trial) for trial in self._study.get_trials(deepcopy=False)]

    def importances(self) -> dict[str, float]:
        """How much each key decides whether a trial is among the best tenth, as shares of 1; nothing where too few have
        finished (PED-ANOVA, Watanabe et al., IJCAI 2023)."""
        from optuna.importance import get_param_importances

        if sum(one.state == "complete" for one in self.outcomes()) < _ENOUGH:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that all are alike, which the numbers say
            return get_param_importances(self._study)

    def _was_given_up(self) -> bool:
        """What was said of the trial when the sweep was stopped; asked again, Hyperband lets it go on."""
        told: bool = self.trial.user_attrs.get(_GIVEN_UP, False)
        return told or (bool(self._reported()) and self.trial.should_prune())

    def _reported(self) -> dict[int, float]:
        trials = self._study.get_trials(deepcopy=False)
        return trials[self.trial.number].intermediate_values

    def _outcome(self, trial: Any) -> Outcome:
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        validated = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
        value = trial.value if state == "complete" else max(validated, default=None)
        found = {
            key: _text(choice, trial.params[key]) for key, choice in self._sweep.keys.items() if key in trial.params
        }
        told = trial.user_attrs
        return Outcome(
            trial.number, state, value, found, told.get("steps"), told.get("seconds", 0.0), told.get("why", "")
        )


def _mend(file: Path) -> None:
    """Takes off what a killed program left: a half-written last line, which the next one would be added to, and the
    journal's own lock."""
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.is_file():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with file.open("r+b") as journal:
                journal.truncate(whole)


def _sampler(seed: int, number: int) -> "TPESampler":
    """Of one trial: a sampler that went on from trial to trial would begin anew where a sweep goes on."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))


def _pruner(pruning: Pruning, validations: int) -> "BasePruner":
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    match pruning:
        case NoPruning():
            return NopPruner()
        case MedianPruning(startup=startup, warmup=warmup):
            return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup + 1)  # validations count from 1
        case HyperbandPruning(least=least, factor=factor):
            return HyperbandPruner(min_resource=least, max_resource=validations, reduction_factor=factor)


def _suggest(trial: "Trial", key: str, choice: Choice) -> str:
    match choice:
        case FloatRange(low=low, high=high, log=log):
            return _text(choice, trial.suggest_float(key, low, high, log=log))
        case IntRange(low=low, high=high, step=step):
            return _text(choice, trial.suggest_int(key, low, high, step=step))
        case OneOf():
            return _text(choice, trial.suggest_categorical(key, choice.bounds))


def _text(choice: Choice, value: Any) -> str:
    """A suggestion as TOML: of a list, that is what Optuna knows its values by."""
    return str(value) if isinstance(choice, OneOf) else toml_value(value)
