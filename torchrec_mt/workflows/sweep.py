"""Runs a sweep: trial by trial a training in a folder of its own. Called again, what is there is kept, and the trial
that was stopped goes on from its checkpoint."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torchrec_mt.config import RunConfig, changed_keys, check_config, config_to_json, open_dataset
from torchrec_mt.data.preparation import check_schema
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.lost import Together
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import CannotWriteError, UserError, first_line
from torchrec_mt.holding import Hold
from torchrec_mt.runs import read_object, write_atomic
from torchrec_mt.training.early_stop import check_metric
from torchrec_mt.training.validation import validated_tasks
from torchrec_mt.workflows.grid_turns import AskedToEndError
from torchrec_mt.workflows.sweep_config import Sweep
from torchrec_mt.workflows.sweep_results import best_toml, run_of, sweep_results, to_json
from torchrec_mt.workflows.sweep_study import Study
from torchrec_mt.workflows.training import BESIDE, EXECUTION, kept_run, train_here

PLAN, JOURNAL, RESULTS, BEST = "sweep.json", "study.jsonl", "results.json", "best.toml"
_FIXED = ("keys", "seed", "pruning")
_NOT_JUDGED = "no validation gave a finite number"
T = TypeVar("T")


def run_sweep(
    sweep: Sweep,
    here: Runtime,
    *,
    show: bool = True,
    tell: Callable[[str], None] = lambda line: None,
    asked: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains what is left of the trials, and writes down what came of all. Called on every rank; returns the results.

    Args:
        tell: takes a line per trial. asked: whether this rank was asked to end.

    Raises:
        AskedToEndError: it was; the trial goes on with the next call.
        UserError: nothing to train or to validate on; another sweep is there, or this one runs already; exit code 1: a
            trial failed on this rank alone. CannotWriteError: no room for checkpoints.
    """
    base, folder, began = sweep.config({}), Path(sweep.output), time.monotonic()
    check_schema(base.dataset)
    dataset, schema = open_dataset(base)
    check_metric(base.trainer.metric, validated_tasks(dataset, schema))
    on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    with _held(folder):
        on_main(lambda: begin(sweep, base, dataset.manifest.digest))
        together = Together()
        study = _Shared(lambda: Study(sweep, folder / JOURNAL, base.trainer.validations))
        while not on_main(lambda: _is_late(sweep, began)):
            found = study.ask(Study.next)
            if found is None:
                break
            number, values = found
            drawn = ", ".join(f"{key} = {text}" for key, text in values.items())
            tell(f"[{number + 1}/{sweep.trials}] {drawn}")
            why = _run(sweep, number, values, study, here, together, show, asked)
            if why:
                tell(f"  {why}")

        def write(done: Study) -> dict[str, Any]:
            results = sweep_results(sweep, base.trainer.metric, done.outcomes(), done.importances())
            write_atomic(folder / RESULTS, to_json(results) + "\n")
            if results["best"]:
                best = next(one for one in done.outcomes() if one.number == results["best"]["trial"])
                write_atomic(folder / BEST, best_toml(sweep, results, best.found))
            return results

        return study.ask(write)


def begin(sweep: Sweep, base: RunConfig, digest: str) -> None:
    """Writes the sweep's plan down, or checks that the one that has begun is the same; it may become longer.

    Args:
        digest: of the dataset.

    Raises:
        UserError: what makes trials comparable has changed since the first one.
    """
    file = Path(sweep.output) / PLAN
    plan = json.loads(to_json(sweep.to_json())) | {"config": json.loads(config_to_json(base)), "digest": digest}
    if file.is_file():
        begun = read_object(file)
        changed = [key for key in _FIXED if begun.get(key) != plan[key]]
        settled = json.loads(config_to_json(check_config(begun["config"], where=str(file))))
        changed += changed_keys(settled, base, but=(*EXECUTION, *BESIDE))
        if changed:
            raise UserError(
                f"'{file}' is of another sweep ({', '.join(changed[:3])} differ): only goal, trials and "
                "timeout_minutes may change once trials are made; give another output"
            )
        if begun.get("digest", digest) != digest:
            raise UserError(
                f"'{file}': '{base.dataset.path}' has been prepared anew since (digest {begun['digest']}, now "
                f"{digest}): trials on the one cannot be compared with trials on the other; give another output"
            )
    write_atomic(file, to_json(plan) + "\n")


class _Shared:
    """The study, which only the main rank has; its answers come to all."""

    def __init__(self, opened: Callable[[], Study]) -> None:
        self._study: list[Study] = []
        on_main(lambda: self._study.append(opened()))

    def ask(self, question: Callable[[Study], T]) -> T:
        """On every rank."""
        return on_main(lambda: question(self._study[0]))

    def report(self, step: int, steps: int, value: float) -> bool:
        """On the main rank alone."""
        return self._study[0].report(step, steps, value)


def _run(
    sweep: Sweep,
    number: int,
    values: dict[str, str],
    study: _Shared,
    here: Runtime,
    together: Together,
    show: bool,
    asked: Callable[[], bool],
) -> str:
    """Trains a trial and tells the study; returns what kept it from its end."""
    place, began = run_of(sweep, number), time.monotonic()
    outcome: dict[str, Any] = {}
    failure = ""
    try:
        config = sweep.config(values)
        if not study.ask(lambda known: known.given_up):  # as it was to be when the sweep was stopped
            kept = on_main(lambda: kept_run(place, config, but=(*EXECUTION, *BESIDE)) is not None)
            outcome = train_here(
                config, place, here, resume=kept, overwrite=not kept, show=show, asked=asked, give_up=study.report
            )
    except CannotWriteError:
        raise  # the trial goes on with the next call
    except (UserError, ValueError, RuntimeError, FloatingPointError) as error:
        # A model that diverges, values that do not go together: a result of its own.
        together.failed(error)
        failure = first_line(error)
    seconds = time.monotonic() - began
    study.ask(lambda known: known.took(seconds))
    if outcome.get("interrupted"):
        raise AskedToEndError(Path(place))
    return study.ask(lambda known: _end(known, outcome, failure))


def _end(study: Study, outcome: dict[str, Any], failure: str) -> str:
    steps, value = outcome.get("steps"), outcome.get("best")
    if not failure and study.given_up:
        study.end("pruned", steps=steps)
        return "pruned"
    failure = failure or ("" if value is not None else _NOT_JUDGED)
    if failure:
        study.end("failed", why=failure, steps=steps)
        return f"failed: {failure}"
    study.end("complete", value=value, steps=steps)
    return ""


def _is_late(sweep: Sweep, began: float) -> bool:
    minutes = sweep.timeout_minutes
    return minutes is not None and time.monotonic() - began > 60 * minutes


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Nobody else runs the sweep meanwhile."""
    holds: list[Hold] = []
    on_main(lambda: holds.append(Hold(folder, str(folder))))
    try:
        yield
    finally:
        for hold in holds:
            hold.release()
