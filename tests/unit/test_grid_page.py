"""The page of an experiment: all there, charts true to their numbers, escaped, small, readable in both themes."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.html_pages import EVIL, contrast, needs_browser, opened, read, themes
from tests.made_grid import experiment
from torchrec_mt.reporting.curves import Line, line_chart, plainly, round_ticks
from torchrec_mt.reporting.grid_page import grid_page
from torchrec_mt.reporting.page import number


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment(tmp_path_factory.mktemp("grid"))


def words_of(results: dict[str, Any]) -> str:
    return " ".join(" ".join(read(grid_page(results)).words).split())


def test_the_page_holds_the_answer_and_every_value(results: dict[str, Any]) -> None:
    words = words_of(results)
    for said in (
        "Is it better?",
        "In Recall@100, good is better than plain on search, search_by_words.",
        "In 1 of 3 comparisons there is no difference that can be told.",
        "Beside plain, in Recall@100:",
        "over 2 tasks: better, +",
        "no difference: similar",
        "200 search",
        "slices of fewer than 20 are left out",
        "by itself for Recall@100 on the trained tasks, which decides",
        "cold target",
        "as many as the cheapest method takes",
        "model.dim=128",
        "Made on Linux, 2 cores, torch 2.13, torchrec 1.8.",
        "search and similar",
    ):
        assert said in words, said
    for methods in results["tasks"].values():
        for found in methods.values():
            one = found["metrics"]["recall@100"]
            assert number(one["mean"]) in words
            assert f"±{number(one['sd_over_seeds'], 3)}" in words


def test_what_the_page_shows_is_in_the_json(results: dict[str, Any]) -> None:
    assert grid_page(json.loads(json.dumps(results, allow_nan=False))) == grid_page(results)


def test_a_failed_cell_is_told_with_its_reason(results: dict[str, Any]) -> None:
    words = words_of(results)
    assert "Failed: bad, seed 0." in words
    assert "bad, seed 0: the loss is no finite number" in words


def test_a_card_tells_cost_and_where_the_method_loses(results: dict[str, Any]) -> None:
    told = copy.deepcopy(results)
    told["cost"]["good"] |= {"step_ms": 12.0, "table_bytes": 2048}
    told["cost"]["plain"] |= {"step_ms": 1234.5, "table_bytes": 4096}
    slices = [part for methods in told["tasks"].values() for part in methods["good"]["slices"].values()]
    for part in slices:
        part |= {"difference": 0.1, "low": 0.0, "high": 0.2}
    words = words_of(told)
    assert "cost: 12.0 ms a step against 1,234.5, 2.00 KiB of tables against 4.00 KiB" in words
    assert "falls clearly behind on no slice" in words
    similar = told["tasks"]["similar"]["good"]["slices"]
    similar["target_training: cold"] |= {"difference": -0.2, "low": -0.3, "high": -0.1}
    similar["target_training: warm"] |= {"difference": -0.4, "low": -0.9, "high": 0.1}
    told["tasks"]["search_by_words"]["good"]["slices"]["target_training: cold"] |= similar["target_training: cold"]
    told["machines"] = {"here": ["good"], "there": ["plain"]}
    words = words_of(told)
    assert "falls behind on 1 slice (uncorrected), most on similar, cold target: −.200 (−.300 to −.100)" in words
    assert "cost: 2.00 KiB of tables" in words, "times of two machines cannot be compared"


def test_texts_are_escaped(tmp_path: Path) -> None:
    results = experiment(tmp_path, question=EVIL, settings=[EVIL], why=EVIL)
    results["fixed"]["settings"] = [EVIL]
    results["machines"] = {EVIL: ["good"]}
    page = grid_page(results)
    assert page.count("<script>") == 1
    assert "alert('x')" not in page
    assert sum(EVIL in word for word in read(page).words) >= 5


def test_one_seed(tmp_path: Path) -> None:
    results = experiment(tmp_path, seeds=(3,))
    page, words = grid_page(results), words_of(results)
    assert "one seed: nothing is known of another" in words
    assert "±" not in words
    assert 'class="band"' not in page
    assert 'class="half"' not in page


def test_one_method(tmp_path: Path) -> None:
    words = words_of(experiment(tmp_path, methods=("plain",), failed=False))
    for said in ("Nothing can be compared", "Nothing to compare: no other method was judged", "No slice has enough"):
        assert said in words


def test_no_difference(tmp_path: Path) -> None:
    words = words_of(experiment(tmp_path, gain=0.0))
    assert "No difference: in Recall@100 no method can be told from plain on any task." in words
    assert "≈ no difference" in words


def test_runs_without_telemetry(tmp_path: Path) -> None:
    words = words_of(experiment(tmp_path, telemetry=False))
    assert "No run logged cosines of two tasks' gradients." in words
    assert "No method changed the weights of tasks" in words


def test_validations_without_the_metric(results: dict[str, Any]) -> None:
    without = copy.deepcopy(results)
    without["equal_time"], without["curves"]["valid"] = None, {}
    assert "No validation logged any of Recall@100." in words_of(without)


def test_nothing_came_to_its_end(tmp_path: Path) -> None:
    words = words_of(experiment(tmp_path, methods=()))
    for said in ("No method was judged.", "No run came to its end.", "Nothing was logged."):
        assert said in words


def test_a_method_that_the_reference_is_not_compared_with_on_a_slice(results: dict[str, Any]) -> None:
    without = copy.deepcopy(results)
    for one in without["tasks"]["similar"].values():
        for key in ("difference", "low", "high"):
            one["slices"]["target_training: cold"].pop(key, None)
    read(grid_page(without))


def test_lines_and_bands_lie_where_their_values_are() -> None:
    chart = line_chart([Line("a", 2, [0, 50, 100], [1, 3, 2], [0, 3, 2], [2, 4, 2])], "x", across="steps", mark=50)
    assert '<path class="l" d="M46.0 125.0L197.0 47.0L348.0 86.0"/>' in chart
    assert '<path class="band" d="M46.0 86.0L197.0 8.0L348.0 86.0L348.0 86.0L197.0 47.0L46.0 164.0z"/>' in chart
    assert '<path class="budget" d="M197.0 8.0V164.0"/>' in chart


@pytest.mark.parametrize(
    ("low", "high", "ticks", "written"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.50", "0.75", "1.00"]),
        (0.31, 0.42, [0.3, 0.35, 0.4, 0.45], ["0.30", "0.35", "0.40", "0.45"]),
        (-0.013, 0.02, [-0.02, -0.01, 0, 0.01, 0.02], ["−0.02", "−0.01", "0", "0.01", "0.02"]),
        (5.0, 5.0, [4.6, 4.8, 5, 5.2, 5.4], ["4.6", "4.8", "5.0", "5.2", "5.4"]),
        (0.0, 0.0, [-0.5, -0.25, 0, 0.25, 0.5], ["−0.50", "−0.25", "0", "0.25", "0.50"]),
        (0.0, 41_000.0, [0, 20_000, 40_000, 60_000], ["0", "20,000", "40,000", "60,000"]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, ticks: list[float], written: list[str]) -> None:
    found = round_ticks(low, high)
    assert found == pytest.approx(ticks)
    assert [plainly(found)(tick) for tick in found] == written


def many(results: dict[str, Any], methods: int, points: int) -> dict[str, Any]:
    """The results with as many methods, all of them like `good`, and curves as long as they become."""
    found = copy.deepcopy(results)
    names = [f"method_{at}" for at in range(methods)]
    curve = {
        "steps": list(range(points)),
        **{key: [0.12345 + at / 7 for at in range(points)] for key in ("mean", "low", "high")},
    }
    for methods_of in (
        *found["tasks"].values(),
        found["gain"],
        found["cost"],
        found["varied"],
        found["equal_time"]["methods"],
    ):
        methods_of |= {name: copy.deepcopy(methods_of["good"]) for name in names}
    for kind, things in (("loss", 3), ("valid", 3), ("cosine", 3), ("weight", 3)):
        found["curves"][kind] = {f"task_{at}": dict.fromkeys(names, curve) for at in range(things)}
    return found


def test_a_page_of_many_methods_stays_small_and_tells_them_apart(results: dict[str, Any]) -> None:
    page = grid_page(many(results, 12, 100))
    read(page)
    assert len(page.encode()) < 1_500_000
    marks = set(re.findall(r'<g class="(c\d(?: dashed)?)" data-method="(\d+)">', page))
    assert len(marks) == len({number for _, number in marks}) == len({look for look, _ in marks}) == 15


def test_every_colour_is_defined_in_both_themes_and_can_be_read(results: dict[str, Any]) -> None:
    page = grid_page(results)
    light, dark = themes(page)
    assert set(light) == set(dark)
    assert set(re.findall(r"var\(--(\w+)\)", page)) <= set(light)
    for theme in (light, dark):
        for name in ("good", "bad", "soft", "other"):
            assert contrast(theme[name], theme["paper"]) >= 4.5, name
        for at in range(8):
            assert contrast(theme[f"g{at}"], theme["paper"]) >= 3, at


@needs_browser
@pytest.mark.parametrize("width", [480, 1400])
def test_a_browser_opens_the_page_and_its_buttons_work(results: dict[str, Any], tmp_path: Path, width: int) -> None:
    click = """<script>
      document.querySelectorAll("button[data-cost]")[1].click();
      document.querySelector("button[data-key='2']").click();
      const all = (what) => [...document.querySelectorAll(what)];
      const shown = all("div[data-cost]").filter((one) => !one.hidden);
      document.body.dataset.shown = shown.map((one) => one.dataset.cost).join();
      document.body.dataset.on = all(".chart g.on").every((one) => one.dataset.method === "2");
      document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    </script></body>"""
    done = opened(grid_page(results).replace("</body>", click), tmp_path, width)
    assert 'data-shown="2"' in done
    assert 'data-on="true"' in done
    assert 'class="alone"' in done
    assert 'data-wide="0"' in done, "nothing but tables scrolls sideways"
