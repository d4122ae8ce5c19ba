"""What an experiment says, in words: better, worse or no difference, by method and task."""

from collections.abc import Iterator, Mapping
from typing import Any

from torchrec_mt.reporting.plans import size
from torchrec_mt.reporting.table import differs, metric_title
from torchrec_mt.reporting.verdict import Outcome, signed

WORDS = {"ahead": "better", "behind": "worse", "alike": "no difference"}
EQUAL_TIME = (
    "Of every run the model that would be kept had it ended after the training time of the cheapest "
    "method, on the validation split, by validations as they came; several runs of a method take the same share of "
    "their steps. Learning rates were planned for all steps, which flatters the cheapest. Validations have no intervals"
)
Results = Mapping[str, Any]


def outcome(beside: Mapping[str, Any]) -> Outcome:
    """How a method stands to the reference by what was found of a metric; alike where no difference can be told."""
    if not differs(beside):
        return "alike"
    return "ahead" if beside["difference"] > 0 else "behind"


def besides(results: Results, method: str, metric: str) -> dict[str, Mapping[str, Any]]:
    """What a method has more than the reference in a metric, by task."""
    found = {}
    for task, methods in results["tasks"].items():
        beside = methods.get(method, {}).get("metrics", {}).get(metric, {}).get("beside_reference")
        if beside is not None:
            found[task] = beside
    return found


def stance(results: Results, method: str) -> Outcome:
    """How a method stands to the reference over all tasks by the first metric."""
    found = {outcome(beside) for beside in besides(results, method, results["metrics"][0]).values()}
    if not found:
        return "alone"
    if found >= {"ahead", "behind"}:
        return "mixed"
    return next(iter(found - {"alike"}), "alike")


def percent(value: float | None) -> str:
    """A relative difference with its sign: +1.2%; a dash where there is none."""
    return "–" if value is None else f"{value:+.1%}".replace("-", "−")


def told_gain(gain: Mapping[str, Any]) -> str:
    """A gain with its interval."""
    if gain["low"] is None or gain["high"] is None:
        return percent(gain["gain"])
    return f"{percent(gain['gain'])} ({percent(gain['low'])} to {percent(gain['high'])})"


def told_difference(found: Mapping[str, Any], places: int) -> str:
    """A difference with its interval."""
    return f"{signed(found['difference'], places)} ({signed(found['low'])} to {signed(found['high'])})"


def with_seeds(beside: Mapping[str, Any]) -> str:
    """With how many seeds a difference that can be told has this sign; nothing of a single seed."""
    if outcome(beside) == "alike" or beside["seeds"] == 1:
        return ""
    all_alike = beside["seeds_alike"] == beside["seeds"]
    return ", with every seed" if all_alike else f", with {beside['seeds_alike']} of {beside['seeds']} seeds"


def headline(results: Results) -> str:
    """The answer in a sentence or two."""
    metric, reference = results["metrics"][0], results["reference"]
    found = {
        (name, task): outcome(beside)
        for name in results["varied"]
        for task, beside in besides(results, name, metric).items()
    }
    if not found:
        return f"Nothing can be compared: there are no two methods of which one is {reference}."
    apart = [
        f"{name} is {WORDS[one]} than {reference} on {', '.join(tasks)}"
        for name in results["varied"]
        for one in ("ahead", "behind")
        if (tasks := [task for (method, task), found_one in found.items() if method == name and found_one == one])
    ]
    title, alike = metric_title(metric), sum(one == "alike" for one in found.values())
    if not apart:
        return f"No difference: in {title} no method can be told from {reference} on any task."
    rest = f" In {alike} of {len(found)} comparisons there is no difference that can be told." if alike else ""
    return f"In {title}, {'; '.join(apart)}.{rest}"


def sentences(results: Results, method: str) -> Iterator[str]:
    """How a method stands to the reference over all tasks, and on each by the first metric."""
    yield from _over_all(results, method)
    for task, beside in besides(results, method, results["metrics"][0]).items():
        yield f"{task}: {WORDS[outcome(beside)]}, {told_difference(beside, 4)}{with_seeds(beside)}"


def briefly(results: Results, method: str) -> Iterator[str]:
    """The same without the numbers of tasks on which there is no difference."""
    yield from _over_all(results, method)
    found = besides(results, method, results["metrics"][0])
    for task, beside in found.items():
        if outcome(beside) != "alike":
            yield f"{task}: {WORDS[outcome(beside)]}, {told_difference(beside, 4)}{with_seeds(beside)}"
    alike = [task for task, beside in found.items() if outcome(beside) == "alike"]
    if alike:
        yield f"no difference: {', '.join(alike)}"


def aside(results: Results, method: str) -> Iterator[str]:
    """What a method costs beside the reference, and on how many slices it clearly falls behind."""
    ours, theirs = results["cost"].get(method), results["cost"].get(results["reference"])
    if ours and theirs:
        told = [f"{size(ours['table_bytes'])} of tables against {size(theirs['table_bytes'])}"]
        if len(results["machines"]) == 1:
            told.insert(0, f"{ours['step_ms']:,.1f} ms a step against {theirs['step_ms']:,.1f}")
        yield f"cost: {', '.join(told)}"
    worse = [one for one in behind_on(results, method) if one[0] in results["trained"] and one[2]["high"] < 0]
    if worse:
        task, title, part = worse[0]
        number = f"{len(worse)} slice{'s' * (len(worse) > 1)}"
        yield f"falls behind on {number} (uncorrected), most on {task}, {title}: {told_difference(part, 3)}"
    elif besides(results, method, results["metrics"][0]):
        yield "falls clearly behind on no slice"


def behind_on(results: Results, method: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Task, slice and what was found where a method falls behind the reference, by the ends of the intervals."""
    worse = [
        (task, slice_title(label), part)
        for task, methods in results["tasks"].items()
        for label, part in methods.get(method, {"slices": {}})["slices"].items()
        if (part.get("difference") or 0.0) < 0
    ]
    return sorted(worse, key=lambda one: (one[2]["high"], one[:2]))


def slice_title(label: str) -> str:
    """`target_training: cold` is told as `cold target`."""
    slicing, _, name = label.partition(": ")
    return f"{name} {slicing.partition('_')[0]}"


def _over_all(results: Results, method: str) -> Iterator[str]:
    gain = results["gain"].get(method, {}).get("all")
    if gain and gain["gain"] is not None:
        tasks = "1 task" if gain["num_tasks"] == 1 else f"{gain['num_tasks']} tasks"
        yield f"over {tasks}: {_gained(results, gain)}, {told_gain(gain)}"


def _gained(results: Results, gain: Mapping[str, Any]) -> str:
    """Intervals of gains are not corrected for the number of methods."""
    if gain["low"] is None or gain["high"] is None:
        return "unknown"
    if gain["low"] <= 0 <= gain["high"]:
        return "no difference"
    methods = len(results["gain"])
    return ("better" if gain["gain"] > 0 else "worse") + (f" (not corrected for {methods} methods)" * (methods > 1))


def verdicts(results: Results) -> list[str]:
    """A sentence per method, and one per cell that failed."""
    title = metric_title(results["metrics"][0])
    lines = []
    for name in results["varied"]:
        told = "; ".join(sentences(results, name))
        lines += [f"{name} beside {results['reference']}, {title}: {told}"] if told else []
    return lines + failures(results)


def failures(results: Results) -> list[str]:
    """A line per cell that failed."""
    return [f"{one['method']}, seed {one['seed']}, failed: {one['why']}" for one in results["failed"]]


def notes(results: Results) -> list[str]:
    """What the marks and tables mean."""
    seeds, reference = len(results["seeds"]), results["reference"]
    spread = f"± standard deviation over {seeds} seeds; " if seeds > 1 else "one seed: nothing is known of another; "
    told = [
        f"{spread}▲ better or ▼ worse than {reference}, ≈ no difference that can be told (sign-flip test over anchors, "
        "values averaged over seeds, p < 0.05 after Holm's correction, by itself for the first metric on the trained "
        "tasks, which decides, and for all else)",
        f"gain: what a method has more than {reference}, as a share of that; over all tasks their mean. Its 95% "
        "interval (paired bootstrap) is of anchors: others of the same kind, not other seeds or tasks; nothing is "
        "corrected for the number of methods",
        "s: milliseconds of a step times steps; dense: parameters",
    ]
    return [*told, f"equal time: {EQUAL_TIME[0].lower()}{EQUAL_TIME[1:]}"] if results["equal_time"] else told
