"""The page of an evaluation: all there, nothing from elsewhere, whole HTML, escaped, readable in both themes."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.html_pages import EVIL, contrast, needs_browser, opened, read, themes
from torchrec_mt.reporting import charts
from torchrec_mt.reporting.charts import Mark
from torchrec_mt.reporting.page import evaluation_page, half, number, page_path, samples_path, share
from torchrec_mt.reporting.table import metric_title
from torchrec_mt.reporting.verdict import signed, verdict

METRICS = ["recall@10", "recall@100", "ndcg@10", "mrr@10", "map@10"]
MAIN = METRICS[:4]
MEASURES = ["coverage@10", "coverage@100", "novelty@10", "popularity_lift@10", "diversity@10", "cross_category@10"]


def result(anchors: int = 1_234, p_holm: float | None = 0.001, **means: float | None) -> dict[str, Any]:
    """One task of metrics.json; every metric of a system is a little off its mean."""
    values = {"popularity": 0.05, "two_hops": 0.41, "model": 0.52, "fusion": 0.53, "oracle": 0.81} | means

    def scores(names: list[str], shift: float = 0.0) -> dict[str, dict[str, float | None]]:
        return {
            system: {
                name: None if value is None else round(value + shift + place / 1000, 4)
                for place, name in enumerate(names)
            }
            for system, value in values.items()
        }

    def intervals(found: dict[str, dict[str, float | None]]) -> dict[str, dict[str, list[float | None]]]:
        return {
            system: {
                name: [None, None] if value is None else [value - 0.0123, value + 0.0123]
                for name, value in named.items()
            }
            for system, named in found.items()
        }

    def part(count: int, shift: float) -> dict[str, Any]:
        found = scores(MAIN, shift)
        return {"num_anchors": count, "systems": found, "intervals": intervals(found)}

    whole, lists = scores(METRICS), scores(MEASURES, 0.1)
    model = values["model"] or 0.0
    return {
        "num_anchors": anchors,
        "num_without_positives": 5,
        "systems": whole,
        "intervals": intervals(whole),
        "lists": lists,
        "comparisons": {
            rival: {
                metric: {
                    "difference": model - (value or 0.0),
                    "low": model - (value or 0.0) - 0.02,
                    "high": model - (value or 0.0) + 0.02,
                    "p_value": p_holm,
                    "p_holm": p_holm,
                    "effect_size": 0.2,
                }
                for metric in MAIN
            }
            for rival, value in values.items()
            if rival != "model"
        },
        "slices": {
            "anchor_popularity": {"head": part(700, 0.01), "tail": part(99, -0.02)},
            "target_product_category": {"hats": part(120, -0.1), EVIL: part(33, 0.02)},
        },
    }


def judgement(tasks: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 2,
        "split": "valid",
        "model": "last",
        "max_anchors": 0,
        "baselines": ["popularity"],
        "metrics": METRICS,
        "main_metrics": MAIN,
        "slices": [],
        "dataset": "abc",
        "tasks": tasks,
    }


def seen(tasks: list[str], *, category: str | None = "hats", title: str = "red hat") -> dict[str, Any]:
    """samples.json of some tasks."""
    answers = [
        {"text": f"{title} {at}", "category": category, "right": at == 1, "cosine": 0.9 - at / 10} for at in range(3)
    ]
    counts = [1, 5, 3, 0]
    return {
        "format": 1,
        "about": {"run": "tuned", "dataset": "shop", "entities": {"product": 20_000}, "date": "2025-03-01 12:00"},
        "cosines": {
            task: {
                "anchors": 300,
                "low": -0.5,
                "high": 1.0,
                "counts": {"right": counts, "wrong": counts[::-1], "random": [9, 1, 0, 0]},
                "means": {"right": 0.61, "wrong": 0.72, "random": -0.05},
                "above_wrong": 0.17,
                "above_random": 0.95,
            }
            for task in tasks
        },
        "lists": [
            {
                "entity": "product",
                "tasks": tasks,
                "anchors": [
                    {
                        "text": f"{title} of the {band or 'unknown'}",
                        "category": category,
                        "band": band,
                        "lists": {task: {"relevant": 1, "answers": answers} for task in tasks[:count]},
                    }
                    for band, count in (("head", 1), ("tail", 9), (None, 9))
                ],
            }
        ],
        "maps": {
            "product": {
                "count": 20_000,
                "agreement": None if category is None else {"vectors": 0.94, "chance": 0.02},
                "points": [
                    [at * 90, 1000 - at * 90, f"{title} {at}", None if category is None else f"{category} {at % 10}"]
                    for at in range(12)
                ],
            }
        },
    }


EMPTY = {"cosines": {}, "lists": [], "maps": {}}


def both() -> tuple[dict[str, Any], dict[str, Any]]:
    tasks = {"similar": result(), "complement": result(model=0.4, p_holm=0.2)}
    return judgement(tasks), seen(["similar", "complement"])


def test_the_page_holds_every_task_system_and_value() -> None:
    evaluation, samples = both()
    found = read(evaluation_page(evaluation, samples))
    words = " ".join(found.words)
    for task, one in evaluation["tasks"].items():
        assert f" {task} " in words
        for system, scores in one["systems"].items():
            assert system in words
            assert all(number(value) in words for value in scores.values())
            assert all(number(value, 3) in words for value in one["lists"][system].values())
        for labels in one["slices"].values():
            for label, part in labels.items():
                assert label in words
                assert f"{part['num_anchors']:,}" in words
                assert number(part["systems"]["model"]["recall@100"], 3) in words
    assert all(metric_title(name) in words for name in (*METRICS, *MEASURES))
    for said in (
        "tuned",
        "shop",
        "valid",
        "last",
        "20,000 product",
        "2025-03-01 12:00",
        "red hat of the tail",
        "±.012",
    ):
        assert said in words
    for said in ("17% of right answers", "94% are of its category", "1,234 anchors", "5 without a right answer"):
        assert said in words


def test_both_themes_are_in_the_style_and_every_colour_is_defined_in_both() -> None:
    light, dark = themes(evaluation_page(*both()))
    assert set(light) == set(dark)
    used = set(re.findall(r"var\(--(\w+)\)", evaluation_page(*both())))
    assert used <= set(light)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_contrast(theme: int) -> None:
    colours = themes(evaluation_page(*both()))[theme]
    for name in ("ink", "soft", "model", "rival", "other", "oracle", "good", "bad"):
        assert min(contrast(colours[name], colours[ground]) for ground in ("paper", "band")) >= 4.5, name
    for at in range(charts.COLOURS):
        assert contrast(colours[f"g{at}"], colours["paper"]) >= 3, f"g{at}"


def test_texts_of_the_data_are_escaped() -> None:
    evaluation = judgement({EVIL: result()})
    samples = seen([EVIL], category=EVIL, title=EVIL)
    samples["about"] |= {"run": EVIL, "dataset": EVIL, "entities": {EVIL: 3}}
    samples["lists"][0]["entity"] = EVIL
    samples["maps"] = {EVIL: samples["maps"]["product"]}
    page = evaluation_page(evaluation, samples)
    found = read(page)
    assert page.count("<script>") == 1
    assert "alert('x')" not in page
    assert "49" not in found.words
    assert any(EVIL in word for word in found.words)


def test_judged_pools_are_shown() -> None:
    graded = result()
    names = ("condensed_ndcg@10", "ndcg@10", "bpref", "unjudged@10")
    values = {"random": (0.3111, 0.0222, None, 0.9), "model": (0.5432, 0.2345, 0.4567, 0.3)}
    graded["judged"] = {
        "num_anchors": 120,
        "num_judged": 4_321,
        "systems": {system: dict(zip(names, scores, strict=True)) for system, scores in values.items()},
    }
    words = " ".join(read(evaluation_page(judgement({"find": graded}), seen(["find"]))).words)
    for said in ("120 anchors, 4,321 graded", "random", ".3111", ".5432", ".4567", "judged NDCG@10"):
        assert said in words
    assert "Judged pool" not in " ".join(read(evaluation_page(*both())).words)


@pytest.mark.parametrize("category", ["hats", None])
@pytest.mark.parametrize("names", [["find"], ["find", "alike", "goes_with", "fourth"]])
def test_pages_with_parts_missing(names: list[str], category: str | None) -> None:
    lonely = result()
    for part in ("systems", "intervals", "lists"):
        lonely[part] = {"model": lonely[part]["model"]}
    lonely |= {"comparisons": {}, "slices": {}}
    words = " ".join(
        read(evaluation_page(judgement(dict.fromkeys(names, lonely)), seen(names, category=category))).words
    )
    assert "there is no rival to compare it with" in words
    assert words.count("No slices.") == 1
    assert ("all others" in words) == (category is not None)
    assert ("by chance 2% would be" in words) == (category is not None)


def test_what_is_no_number_is_a_dash() -> None:
    lost = result(anchors=1, p_holm=None, two_hops=None, oracle=None)
    for part in (lost, *(one for labels in lost["slices"].values() for one in labels.values())):
        part["intervals"] = {name: {key: [None, None] for key in METRICS} for name in part["systems"]}
    for found in lost["comparisons"].values():
        for one in found.values():
            one |= {"low": None, "high": None, "effect_size": None}
    samples = seen(["find"])
    samples["cosines"]["find"] |= {"above_wrong": None, "means": {"right": 0.6, "wrong": None, "random": 0.1}}
    words = " ".join(read(evaluation_page(judgement({"find": lost}), samples)).words)
    assert "best wrong –" in words
    assert "and there is no p-value" in words
    assert "Only 1 anchors" not in words
    assert "Only 1 anchor:" in words


def test_a_task_that_was_not_judged_is_told() -> None:
    nothing = {"num_anchors": 0, "num_without_positives": 3} | {
        part: {} for part in ("systems", "intervals", "lists", "comparisons", "slices")
    }
    samples = seen(["find"])
    words = " ".join(read(evaluation_page(judgement({"find": nothing}), samples | EMPTY)).words)
    assert "no anchor of the split has a right answer" in words
    assert words.count("No task") == 4


def test_a_page_of_much_data_stays_small() -> None:
    long = "Ω" * 80
    samples = seen(["a", "b", "c"], category=long, title=long)
    point = samples["maps"]["product"]["points"][0]
    samples["maps"]["product"]["points"] = [point] * 2000
    samples["lists"][0]["anchors"] *= 4
    size = len(evaluation_page(judgement({name: result() for name in "abc"}), samples).encode())
    assert size < 2_000_000


@pytest.mark.parametrize(
    ("model", "p_holm", "outcome", "said"),
    [
        (0.52, 0.0004, "ahead", "+.110 (95% interval +.090 to +.130), significant after Holm's correction (p < .001)."),
        (0.42, 0.3, "alike", "+.010 (95% interval −.010 to +.030), not significant at .05 after Holm's correction"),
        (0.30, 0.01, "behind", "−.110 (95% interval −.130 to −.090), significant after Holm's correction (p = .010)."),
    ],
)
def test_the_verdict_is_against_the_strongest_rival(model: float, p_holm: float, outcome: str, said: str) -> None:
    found = verdict(result(model=model, p_holm=p_holm), MAIN)
    assert found.outcome == outcome
    assert found.sentences[0].startswith(
        f"Recall@100 is {number(model + 0.001, 3)}; the strongest rival, two_hops, has .411."
    )
    assert said in found.sentences[0]
    assert "of the oracle's .811" in found.sentences[1]
    words = {"ahead": "Ahead of", "alike": "No significant difference from", "behind": "Behind"}[outcome]
    assert f"{words} two_hops by Recall@10, NDCG@10, MRR@10." in found.sentences
    assert any("Weakest slice of 100 anchors or more: target product category: hats" in one for one in found.sentences)
    assert any(one.startswith("two_hops has the higher mean") for one in found.sentences) == (outcome == "behind")


def test_each_metric_has_its_own_rival_and_a_verdict_may_be_mixed() -> None:
    found = result()
    found["systems"]["popularity"]["mrr@10"] = 0.9
    found["comparisons"]["popularity"]["mrr@10"] |= {"difference": -0.377, "p_holm": 0.001}
    said = verdict(found, MAIN)
    assert said.outcome == "mixed"
    assert "Ahead of two_hops by Recall@10, NDCG@10." in said.sentences
    assert "Behind popularity by MRR@10." in said.sentences
    assert "◆ mixed" in evaluation_page(judgement({"find": found}), seen(["find"]))


def test_many_lost_slices_are_told_in_short() -> None:
    lost = result(model=0.1)
    lost["slices"] = {"anchor_words": {str(at): lost["slices"]["anchor_popularity"]["head"] for at in range(7)}}
    last = verdict(lost, MAIN).sentences[-1]
    assert last.startswith("two_hops has the higher mean in 7 of 7 such slices: anchor words: 0; anchor words: 1; ")
    assert last.endswith("anchor words: 3; and 3 more.")


def test_marks_stand_where_their_values_are() -> None:
    marks = [Mark(0.25, 0.2, 0.3, "model", "m <1>"), Mark(None, None, None, "rival", "r")]
    strip = str(charts.strip(marks, 0.5))
    assert '<circle cx="50.00%" cy="33%" r="3.5"/>' in strip
    assert '<line class="span" x1="40.60%" y1="33%" x2="59.40%" y2="33%"/>' in strip
    assert strip.count("<circle") == 1
    assert "m &lt;1&gt;" in strip


@pytest.mark.parametrize(("most", "top"), [(None, 1), (0, 1), (0.59, 0.6), (0.61, 0.8), (1.0, 1), (0.012, 0.015)])
def test_an_axis_ends_at_a_round_number(most: float | None, top: float) -> None:
    assert charts.ceiling([None, most]) == pytest.approx(top)


def test_the_largest_groups_have_a_colour() -> None:
    names = [f"c{at}" for at in range(12) for _ in range(12 - at)] + [None]
    assert charts.groups(names) == [f"c{at}" for at in range(charts.COLOURS)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (number(None), "–"),
        (number(-0.25, 2), "−.25"),
        (number(12.345, 3), "12.35"),
        (half([0.1, 0.2]), "±.050"),
        (half([None, None]), ""),
        (half(None), ""),
        (share(None), "–"),
        (share(0.934), "93%"),
        (signed(0.1), "+.100"),
        (signed(-0.1), "−.100"),
    ],
)
def test_numbers_as_a_reader_writes_them(told: str, expected: str) -> None:
    assert told == expected


def test_files_are_named_after_the_judgement() -> None:
    assert page_path(Path("r/evaluation/metrics.json")) == Path("r/evaluation/report.html")
    assert page_path(Path("metrics-valid-last.json")) == Path("report-valid-last.html")
    assert samples_path(Path("metrics-valid-last.json")) == Path("samples-valid-last.json")


@needs_browser
def test_a_browser_opens_the_page_and_says_nothing(tmp_path: Path) -> None:
    assert 'aria-pressed="false"' in opened(evaluation_page(*both()), tmp_path), "the script has run"
