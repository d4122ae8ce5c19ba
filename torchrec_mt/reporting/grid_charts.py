"""The charts of an experiment's page: quality against cost, and curves over steps and seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from torchrec_mt.reporting.curves import Line, Point, line_chart, point_chart
from torchrec_mt.reporting.grid_verdicts import percent, told_gain
from torchrec_mt.reporting.page import number
from torchrec_mt.reporting.plans import size
from torchrec_mt.reporting.table import metric_title

Results = Mapping[str, Any]
COSTS = {"step_ms": "ms a step", "dense_parameters": "dense parameters", "table_bytes": "bytes of tables"}
_BYTES = "table_bytes"


@dataclass(frozen=True)
class Quality:
    """A way to say how good methods are: by method the value and its interval, or None.

    Args:
        relative: whether values are shares.
    """

    title: str
    relative: bool
    values: Mapping[str, tuple[float | None, float | None, float | None]]

    def told(self, name: str) -> str:
        """The value of a method in words."""
        value, low, high = self.values[name]
        return told_gain({"gain": value, "low": low, "high": high}) if self.relative else number(value)


def scatter(results: Results, numbers: Mapping[str, int]) -> dict[str, dict[str, Markup]]:
    """By cost and by what is gained or reached, the methods as points."""
    return {
        title: {one.title: _points(results, numbers, cost, one) for one in _qualities(results)}
        for cost, title in COSTS.items()
        if results["cost"]
    }


def _qualities(results: Results) -> list[Quality]:
    metric, reference = results["metrics"][0], results["reference"]
    found = []
    if results["gain"]:
        gains = {name: _interval(gain["all"], "gain") for name, gain in results["gain"].items()}
        found.append(Quality(f"gain over {reference}, all tasks", True, {reference: (0.0, None, None), **gains}))
    for task in results["trained"]:
        methods = results["tasks"][task]
        values = {name: _interval(one["metrics"][metric], "mean") for name, one in methods.items()}
        found.append(Quality(f"{task}, {metric_title(metric)}", False, values))
    return found


def _interval(found: Mapping[str, Any], key: str) -> tuple[float | None, float | None, float | None]:
    return found[key], found["low"], found["high"]


def _points(results: Results, numbers: Mapping[str, int], cost: str, quality: Quality) -> Markup:
    paid = {name: results["cost"][name][cost] for name in quality.values if name in results["cost"]}
    divisor, across = _unit(max(paid.values())) if cost == _BYTES else (1, COSTS[cost].removeprefix("dense "))
    points = []
    for name, (value, low, high) in quality.values.items():
        if value is not None and name in paid:
            at = size(paid[name]) if cost == _BYTES else f"{paid[name]:,.4g} {COSTS[cost]}"
            title = f"{name}: {quality.told(name)} at {at}"
            points.append(Point(title, numbers[name], paid[name] / divisor, value, low, high))
    label = f"{quality.title} against {COSTS[cost]}"
    return point_chart(points, label, across=across, up=percent_tick if quality.relative else None)


def percent_tick(value: float) -> str:
    """A share on an axis around 0."""
    return percent(value) if value else "0"


def _unit(most: float) -> tuple[int, str]:
    """Bytes of the unit in which the largest is told, and its name."""
    name = size(most).rpartition(" ")[2]
    return {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[name], name


def over_steps(results: Results, numbers: Mapping[str, int], kind: str) -> dict[str, Markup]:
    """Curves of a kind, by what they are of."""
    drawn = {}
    for what, methods in results["curves"][kind].items():
        lines = [_line(name, numbers, curve, curve["steps"]) for name, curve in methods.items()]
        title = what.replace("/", " and ")
        drawn[title] = line_chart(lines, f"{kind}, {title}", across="steps", zero=kind == "cosine")
    return drawn


def over_seconds(results: Results, numbers: Mapping[str, int]) -> dict[str, Markup]:
    """Validations over the seconds of training, with a line where all have taken as long as the cheapest."""
    drawn = {}
    for task, methods in results["curves"]["valid"].items():
        lines = []
        for name, curve in methods.items():
            seconds = [step * results["cost"][name]["step_ms"] / 1000 for step in curve["steps"]]
            lines.append(_line(name, numbers, curve, seconds))
        label = f"validations over seconds, {task}"
        drawn[task] = line_chart(lines, label, across="s", mark=results["equal_time"]["seconds"])
    return drawn


def _line(name: str, numbers: Mapping[str, int], curve: Mapping[str, Any], xs: Sequence[float]) -> Line:
    return Line(name, numbers[name], xs, curve["mean"], curve.get("low", ()), curve.get("high", ()))
