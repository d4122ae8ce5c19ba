"""What an evaluation says of a task, in words: the model beside its strongest rival, and where it is weak."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torchrec_mt.reporting.table import ALPHA, decimals, differs, metric_title, strongest_rival

Outcome = Literal["ahead", "behind", "alike", "alone", "mixed"]
FEW = 100
"""Anchors below which an interval is itself uncertain."""


@dataclass(frozen=True)
class Verdict:
    """The words for one task.

    Args:
        outcome: ahead of the strongest rival by the headline metric, or behind it, significantly; alike; alone, without
            a rival; or mixed, where the model is significantly ahead by one main metric and behind by another.
        sentences: what there is to say, most important first.
    """

    outcome: Outcome
    sentences: tuple[str, ...]


def headline(metrics: list[str]) -> str:
    """The main metric that is told first: Recall@100 where it is among them."""
    return "recall@100" if "recall@100" in metrics else metrics[0]


def verdict(result: Mapping[str, Any], metrics: list[str]) -> Verdict:
    """The words for one task of metrics.json.

    Args:
        metrics: the main ones.
    """
    first = headline(metrics)
    if not result["num_anchors"]:
        return Verdict("alone", ("Nothing to judge: no anchor of the split has a right answer.",))
    rest = [metric for metric in metrics if metric != first]
    sentences = [_standing(result, first), *_ceiling(result, first), *_others(result, rest), *_weak(result, first)]
    if result["num_anchors"] < FEW:
        anchors = f"{result['num_anchors']} anchor{'s' if result['num_anchors'] > 1 else ''}"
        sentences.append(f"Only {anchors}: intervals of so few are themselves uncertain.")
    found = {outcome(result, metric) for metric in metrics}
    return Verdict("mixed" if found >= {"ahead", "behind"} else outcome(result, first), tuple(sentences))


def outcome(result: Mapping[str, Any], metric: str) -> Outcome:
    """How the model stands to its strongest rival by a metric."""
    rival = strongest_rival(result["systems"], metric)
    if rival is None or rival not in result["comparisons"]:
        return "alone"
    found = result["comparisons"][rival][metric]
    if not differs(found):
        return "alike"
    return "ahead" if found["difference"] > 0 else "behind"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign, +.432 or −.010."""
    told = decimals(value, digits)
    return told.replace("-", "−") if value is None or value < 0 else f"+{told}"


def _standing(result: Mapping[str, Any], metric: str) -> str:
    name, rival = metric_title(metric), strongest_rival(result["systems"], metric)
    here = decimals(result["systems"]["model"][metric], 3)
    if rival is None or rival not in result["comparisons"]:
        return f"The model has {name} {here}; there is no rival to compare it with."
    found, there = result["comparisons"][rival][metric], decimals(result["systems"][rival][metric], 3)
    said = (
        f"{name} is {here}; the strongest rival, {rival}, has {there}. The difference is {signed(found['difference'])}"
    )
    if found["low"] is not None and found["high"] is not None:
        said += f" (95% interval {signed(found['low'])} to {signed(found['high'])})"
    return f"{said}, {_significance(found)}."


def _significance(found: Mapping[str, Any]) -> str:
    p_holm = found["p_holm"]
    if p_holm is None:
        return "and there is no p-value"
    p = "p < .001" if p_holm < 0.001 else f"p = {decimals(p_holm, 3)}"
    word = "significant" if differs(found) else f"not significant at {decimals(ALPHA, 2)}"
    return f"{word} after Holm's correction ({p})"


def _ceiling(result: Mapping[str, Any], metric: str) -> Iterator[str]:
    top, here = result["systems"].get("oracle", {}).get(metric), result["systems"]["model"][metric]
    if top and here is not None:
        yield f"That is {here / top:.0%} of the oracle's {decimals(top, 3)}."


def _others(result: Mapping[str, Any], metrics: list[str]) -> Iterator[str]:
    """By the other main metrics, each against the rival that is the strongest by it."""
    words = {"ahead": "Ahead of", "alike": "No significant difference from", "behind": "Behind"}
    found: dict[tuple[str, str | None], list[str]] = {}
    for metric in metrics:
        key = outcome(result, metric), strongest_rival(result["systems"], metric)
        found.setdefault(key, []).append(metric_title(metric))
    for (kind, rival), names in found.items():
        if kind in words:
            yield f"{words[kind]} {rival} by {', '.join(names)}."


def _weak(result: Mapping[str, Any], metric: str) -> Iterator[str]:
    """The weakest slice of enough anchors, and the slices in which the strongest rival is ahead."""
    rival = strongest_rival(result["systems"], metric)
    parts = [
        (f"{slicing_title(slicing)}: {label}", part)
        for slicing, labels in result["slices"].items()
        for label, part in labels.items()
        if part["num_anchors"] >= FEW and part["systems"]["model"][metric] is not None
    ]
    if parts:
        name, part = min(parts, key=lambda found: found[1]["systems"]["model"][metric])
        value = decimals(part["systems"]["model"][metric], 3)
        yield f"Weakest slice of {FEW} anchors or more: {name}, {value} ({part['num_anchors']:,} anchors)."
    if rival is None:
        return
    lost = [name for name, part in parts if (part["systems"][rival][metric] or 0) > part["systems"]["model"][metric]]
    if lost:
        shown = "; ".join(lost[:4]) + (f"; and {len(lost) - 4} more" if len(lost) > 4 else "")
        yield f"{rival} has the higher mean in {len(lost)} of {len(parts)} such slices: {shown}."


def slicing_title(name: str) -> str:
    """`target_popularity` as a reader writes it."""
    return name.replace("_", " ")
