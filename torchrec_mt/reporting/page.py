"""The page of an evaluation: one HTML file that needs nothing else, made of metrics.json and samples.json.

It is rendered by `templates/evaluation.html`; every text of the data is escaped (Jinja's autoescape, Markup.format).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from torchrec_mt.reporting import charts
from torchrec_mt.reporting.charts import Mark
from torchrec_mt.reporting.rendering import page_environment
from torchrec_mt.reporting.table import (
    JUDGED_COLUMNS,
    best_value,
    decimals,
    differs,
    metric_title,
    ordered,
    strongest_rival,
)
from torchrec_mt.reporting.verdict import FEW, headline, slicing_title, verdict

_MEASURES = {
    "coverage@10": "share of the catalogue that stands in somebody's first ten",
    "coverage@100": "the same for the first hundred",
    "novelty@10": "in bits; ten bits is one training pair in a thousand",
    "popularity_lift@10": "0 is as popular as the training pairs, 1 twice as popular",
    "diversity@10": "share of a list's pairs of products that are of different categories",
    "cross_category@10": "share of products of another category than the anchor",
}
_KINDS = {"right": "right answers", "wrong": "best wrong answer of each list", "random": "random candidates"}


def page_path(metrics_path: Path) -> Path:
    """The page of a judgement: metrics-valid.json has report-valid.html beside it."""
    return metrics_path.with_name("report" + metrics_path.stem.removeprefix("metrics") + ".html")


def samples_path(metrics_path: Path) -> Path:
    """The samples of a judgement: metrics-valid.json has samples-valid.json beside it."""
    return metrics_path.with_name("samples" + metrics_path.stem.removeprefix("metrics") + ".json")


def evaluation_page(evaluation: Mapping[str, Any], samples: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        evaluation: metrics.json. samples: samples.json.
    """
    metrics = evaluation["main_metrics"]
    judged = {name: result for name, result in evaluation["tasks"].items() if result["num_anchors"]}
    context = {
        "evaluation": evaluation,
        "about": samples["about"],
        "headline": headline(metrics),
        "few": FEW,
        "verdicts": {name: verdict(result, metrics) for name, result in evaluation["tasks"].items()},
        "systems": {name: _systems(result, metrics) for name, result in judged.items()},
        "slices": {name: _slices(result, headline(metrics)) for name, result in judged.items() if result["slices"]},
        "measures": _MEASURES,
        "lists": {name: _lists(result) for name, result in judged.items()},
        "kinds": _KINDS,
        "cosines": samples["cosines"],
        "examples": samples["lists"],
        "maps": {entity: _map(entity, found) for entity, found in samples["maps"].items()},
    }
    return _environment().get_template("evaluation.html").render(context)


@cache
def _environment() -> Environment:
    return page_environment(
        {
            "number": number,
            "half": half,
            "metric": metric_title,
            "slicing": slicing_title,
            "share": share,
            "count": "{:,}".format,
        },
        {"key": charts.key, "shapes": charts.shapes, "histogram": charts.histogram, "zip": zip},
    )


def number(value: float | None, digits: int = 4) -> str:
    """As the terminal has it, but with a dash for what is no number, and a minus that is one."""
    return "–" if value is None else decimals(value, digits).replace("-", "−")


def half(interval: Sequence[float | None] | None, digits: int = 3) -> str:
    """Half of an interval, "±.012"; nothing where there is none."""
    low, high = interval or (None, None)
    return "" if low is None or high is None else f"±{decimals((high - low) / 2, digits)}"


def share(value: float | None) -> str:
    """In percent."""
    return "–" if value is None else f"{value:.0%}"


def plotted(metrics: Sequence[str]) -> list[str]:
    """Main metrics that are drawn: the first two recalls, else the first two."""
    recalls = [metric for metric in metrics if metric.startswith("recall@")]
    return list(recalls or metrics)[:2]


def _mark(part: Mapping[str, Any], system: str, metric: str, role: str) -> Mark:
    value, interval = part["systems"][system][metric], part["intervals"].get(system, {}).get(metric)
    low, high = interval or (None, None)
    return Mark(value, low, high, role, f"{system} {number(value)} {half(interval)}".strip())


def _role(system: str, rival: str | None) -> str:
    return system if system in ("model", "oracle") else "rival" if system == rival else "other"


def _systems(result: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """Rows of all systems: means with intervals, and the drawn metrics on a common scale each."""
    systems, drawn, first = result["systems"], plotted(metrics), headline(list(metrics))
    rival, ceiling = strongest_rival(systems, first), systems.get("oracle", {}).get(first)
    best = {metric: best_value(systems, metric) for metric in metrics}
    marks = {metric: {name: _mark(result, name, metric, _role(name, rival)) for name in systems} for metric in drawn}
    tops = {
        metric: charts.ceiling(end for mark in found.values() for end in (mark.value, mark.high))
        for metric, found in marks.items()
    }
    rows = []
    for name in ordered(systems):
        comparison = result["comparisons"].get(name, {})
        value = systems[name][first]
        rows.append(
            {
                "name": name,
                "role": _role(name, rival),
                "cells": [
                    {
                        "value": systems[name][metric],
                        "interval": result["intervals"].get(name, {}).get(metric),
                        "best": name != "oracle" and best[metric] is not None and systems[name][metric] == best[metric],
                        "alike": metric in comparison and not differs(comparison[metric]),
                    }
                    for metric in metrics
                ],
                "strips": [charts.strip([marks[metric][name]], tops[metric]) for metric in drawn],
                "of_oracle": value / ceiling if ceiling and value is not None else None,
            }
        )
    others = [metric for metric in result["systems"]["model"] if metric not in metrics]
    return {
        "rows": rows,
        "metrics": metrics,
        "drawn": drawn,
        "axes": [charts.axis(tops[metric]) for metric in drawn],
        "others": others,
        "pool": _pool(result),
        "rest": [
            (name, [(systems[name][metric], result["intervals"].get(name, {}).get(metric)) for metric in others])
            for name in ordered(systems)
        ],
    }


def _pool(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measures of the judged pool, a random order among the systems; None where nothing was judged irrelevant."""
    found = result.get("judged")
    if not found:
        return None
    rows = [(name, [found["systems"][name][one] for one in JUDGED_COLUMNS]) for name in ordered(found["systems"])]
    return {
        "anchors": found["num_anchors"],
        "judged": found["num_judged"],
        "titles": [*JUDGED_COLUMNS.values()],
        "rows": rows,
    }


def _slices(result: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """The model beside its strongest rival on each slice."""
    rival = strongest_rival(result["systems"], metric)
    names = [("model", "model"), *([(rival, "rival")] if rival else [])]
    found = [
        (slicing, label, part, [_mark(part, name, metric, role) for name, role in names])
        for slicing, labels in result["slices"].items()
        for label, part in labels.items()
    ]
    top = charts.ceiling(end for *_, marks in found for mark in marks for end in (mark.value, mark.high))
    grouped: dict[str, list[dict[str, Any]]] = {}
    for slicing, label, part, marks in found:
        row = {"label": label, "anchors": part["num_anchors"], "marks": marks, "strip": charts.strip(marks, top)}
        row["behind"] = len(marks) > 1 and (marks[1].value or 0) > (marks[0].value or 0)
        grouped.setdefault(slicing, []).append(row)
    return {"rival": rival, "groups": grouped, "axis": charts.axis(top)}


def _lists(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[float | None, Any]]]]:
    return [
        (
            name,
            [
                (result["lists"][name].get(measure), result["intervals"].get(name, {}).get(measure))
                for measure in _MEASURES
            ],
        )
        for name in ordered(result["systems"])
        if name in result["lists"]
    ]


def _map(entity: str, found: Mapping[str, Any]) -> dict[str, Any]:
    points = [(x, y, title, group) for x, y, title, group in found["points"]]
    coloured = charts.groups(group for *_, group in points)
    label = f"{len(points)} of {found['count']} {entity} rows in a plane"
    return {
        "svg": charts.scatter(points, coloured, label),
        "coloured": [(name, sum(group == name for *_, group in points)) for name in coloured],
        "others": sum(group not in coloured for *_, group in points),
        "shown": len(points),
        "count": found["count"],
        "agreement": found["agreement"],
    }
