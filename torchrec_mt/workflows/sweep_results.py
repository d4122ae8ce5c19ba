"""What a sweep found: its trials, the best of them, and that one as a config file."""

import json
import textwrap
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrec_mt.retrieval.results import without_nan
from torchrec_mt.workflows.sweep_config import Sweep
from torchrec_mt.workflows.sweep_study import Outcome
from torchrec_mt.workflows.toml_text import toml_lines

FORMAT = 1
NOTE = (
    "chosen on the validation split, as the best of {count}: its value there flatters it; judge it once on the test "
    "split, and choose no more after that"
)


def run_of(sweep: Sweep, number: int) -> str:
    """The run folder of a trial."""
    return str(Path(sweep.output) / f"trial-{number:04}")


def sweep_results(
    sweep: Sweep, metric: str, outcomes: Sequence[Outcome], importances: Mapping[str, float]
) -> dict[str, Any]:
    """The sweep's outcome as JSON: all trials in their order, the best one, what matters, how many ended how."""
    trials = [_trial(sweep, one) for one in outcomes]
    finished = [one for one in trials if one["state"] == "complete"]
    best = max(finished, key=lambda one: one["value"], default=None)
    return dict(
        without_nan(
            {
                "format": FORMAT,
                "goal": sweep.goal,
                "metric": metric,
                "split": "valid",
                "plan": sweep.to_json(),
                "trials": trials,
                "states": dict(Counter(one["state"] for one in trials)),
                "best": best,
                "importances": dict(importances),
                "note": NOTE.format(count=len(finished)) if best else "",
            }
        )
    )


def _trial(sweep: Sweep, one: Outcome) -> dict[str, Any]:
    return {
        "trial": one.number,
        "run": run_of(sweep, one.number),
        "state": one.state,
        "value": one.value,
        "values": {key: tomllib.loads(f"value = {text}")["value"] for key, text in one.found.items()},
        "steps": one.steps,
        "minutes": one.seconds / 60,
        "why": one.why,
    }


def best_toml(sweep: Sweep, results: Mapping[str, Any], found: Mapping[str, str]) -> str:
    """The best trial as a config file, to be merged with the base: the sweep's settings and the trial's values.

    Args:
        found: its values as TOML by key.
    """
    best = results["best"]
    comments = [
        f"{' '.join(sweep.goal.split())}",
        f"Trial {best['trial']}: {results['metric']} = {best['value']:.4f} on the validation split.",
        f"  torchrec-mt train {' '.join(sweep.base)} {sweep.output}/best.toml",
        *textwrap.wrap(f"It was {results['note']}:", 116),
        f"  torchrec-mt evaluate {best['run']}",
    ]
    comments = ["".join(char if char.isprintable() else " " for char in line) for line in comments]  # as TOML has it
    return "\n".join([*(f"# {line}" for line in comments), *toml_lines(sweep.overlay(found))]) + "\n"


def to_json(results: Mapping[str, Any]) -> str:
    """As it is written and printed."""
    return json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
