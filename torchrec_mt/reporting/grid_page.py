"""The page of an experiment: one HTML file that needs nothing else, made of results.json by `templates/grid.html`."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment

from torchrec_mt.reporting import charts
from torchrec_mt.reporting.charts import Mark
from torchrec_mt.reporting.curves import key
from torchrec_mt.reporting.grid import fewer_seeds, fewer_tasks, num_anchors
from torchrec_mt.reporting.grid_charts import over_seconds, over_steps, percent_tick, scatter
from torchrec_mt.reporting.grid_verdicts import (
    EQUAL_TIME,
    aside,
    besides,
    briefly,
    headline,
    notes,
    outcome,
    percent,
    slice_title,
    stance,
    told_gain,
)
from torchrec_mt.reporting.page import half, number, share
from torchrec_mt.reporting.plans import size
from torchrec_mt.reporting.rendering import page_environment
from torchrec_mt.reporting.table import metric_title
from torchrec_mt.reporting.verdict import FEW, signed
from torchrec_mt.retrieval.slices import LEAST

Results = Mapping[str, Any]


def grid_page(results: Results) -> str:
    """The page as HTML.

    Args:
        results: results.json.
    """
    numbers = {name: at for at, name in enumerate(results["varied"])}
    context = {
        "results": results,
        "numbers": numbers,
        "first": results["metrics"][0],
        "headline": headline(results),
        "cards": {
            name: {"outcome": stance(results, name), "sentences": told, "aside": list(aside(results, name))}
            for name in results["varied"]
            if (told := list(briefly(results, name)))
        },
        "notes": notes(results),
        "equal_time": EQUAL_TIME,
        "anchors": {task: num_anchors(methods) for task, methods in results["tasks"].items()},
        "means": _means(results),
        "forest": _forest(results),
        "gains": _gains(results),
        "slices": _slices(results),
        "scatter": scatter(results, numbers),
        "timed": over_seconds(results, numbers),
        "charts": {kind: over_steps(results, numbers, kind) for kind in ("loss", "valid", "cosine", "weight")},
        "few": FEW,
        "least": LEAST,
    }
    return _environment().get_template("grid.html").render(context)


@cache
def _environment() -> Environment:
    return page_environment(
        {
            "number": number,
            "half": half,
            "signed": signed,
            "share": share,
            "percent": percent,
            "gain": told_gain,
            "metric": metric_title,
            "size": size,
            "count": "{:,.0f}".format,
            "outcome": outcome,
            "fewer": lambda found, results: fewer_seeds(results, found),
        },
        {"shapes": charts.shapes, "key": key},
    )


def _means(results: Results) -> dict[str, Any]:
    """Rows by task: the metrics, and the first with its interval over anchors on a common scale."""
    first = results["metrics"][0]
    told = [found["metrics"][first] for methods in results["tasks"].values() for found in methods.values()]
    top = charts.ceiling(one[end] for one in told for end in ("mean", "high"))
    rows = {
        task: [
            {
                "name": name,
                "seeds": fewer_seeds(results, found),
                "metrics": found["metrics"],
                "strip": charts.strip([_mean(name, found["metrics"][first])], top),
            }
            for name, found in methods.items()
        ]
        for task, methods in results["tasks"].items()
    }
    return {"rows": rows, "axis": charts.axis(top)}


def _mean(name: str, found: Mapping[str, Any]) -> Mark:
    title = f"{name} {number(found['mean'])} ({number(found['low'], 3)} to {number(found['high'], 3)})"
    return Mark(found["mean"], found["low"], found["high"], "other", title)


def _forest(results: Results) -> dict[str, Any]:
    """Differences to the reference by task and method, that of the first metric on a common scale around 0."""
    first = results["metrics"][0]
    found = {
        name: {metric: besides(results, name, metric) for metric in results["metrics"]} for name in results["varied"]
    }
    ends = (abs(one[end] or 0.0) for by in found.values() for one in by[first].values() for end in ("low", "high"))
    top = charts.ceiling(ends)
    rows: dict[str, list[dict[str, Any]]] = {}
    for task in results["tasks"]:
        for name, by in found.items():
            if task in by[first]:
                one = by[first][task]
                interval = f"{signed(one['low'])} to {signed(one['high'])}"
                title = f"{name} {signed(one['difference'], 4)} ({interval})"
                mark = Mark(one["difference"], one["low"], one["high"], outcome(one), title)
                told = {metric: by[metric][task] for metric in results["metrics"]}
                rows.setdefault(task, []).append(
                    {"name": name, "strip": charts.strip([mark], top, -top), "metrics": told}
                )
    return {"rows": rows, "axis": charts.axis(top, _signed_tick, -top)}


def _signed_tick(value: float) -> str:
    return "0" if not value else f"{value:+.3g}".replace("-", "−")


def _gains(results: Results) -> dict[str, Any]:
    """Rows by method: the gain over all tasks, on a common scale around 0, and by task."""
    ends = (abs(gain["all"][end] or 0.0) for gain in results["gain"].values() for end in ("gain", "low", "high"))
    top = charts.ceiling(ends)
    rows = []
    for name, gain in results["gain"].items():
        whole = gain["all"]
        mark = Mark(whole["gain"], whole["low"], whole["high"], _side(whole), f"{name} {told_gain(whole)}")
        strip = charts.strip([mark], top, -top)
        more = fewer_tasks(results, whole)
        rows.append({"name": name, "more": more, "all": whole, "tasks": gain["tasks"], "strip": strip})
    tasks = list(dict.fromkeys(task for gain in results["gain"].values() for task in gain["tasks"]))
    return {"rows": rows, "tasks": tasks, "axis": charts.axis(top, percent_tick, -top)}


def _side(found: Mapping[str, Any]) -> str:
    """On which side of 0 an interval lies."""
    if found["low"] is None or found["low"] <= 0 <= found["high"]:
        return "alike"
    return "ahead" if found["low"] > 0 else "behind"


def _slices(results: Results) -> dict[str, Any]:
    """By task the methods that are compared, and by slice their differences to the reference."""
    found = {}
    for task, methods in results["tasks"].items():
        compared = [
            name for name in methods if name != results["reference"] and besides(results, name, results["metrics"][0])
        ]
        rows: dict[str, dict[str, Any]] = {}
        for name in compared:
            for label, part in methods[name]["slices"].items():
                row = rows.setdefault(label, {"title": slice_title(label), "anchors": part["num_anchors"], "parts": {}})
                if "difference" in part:
                    row["parts"][name] = part | {"side": _side(part)}
        if rows:
            found[task] = {"methods": compared, "rows": list(rows.values())}
    return found
