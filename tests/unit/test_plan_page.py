"""The page of sharding plans: all there, folded where ranks are alike, escaped, small, readable in both themes."""

import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from tests.html_pages import EVIL, VISIONS, contrast, needs_browser, opened, read, seen_apart, themes
from tests.imagined_plans import laid_plan, laid_table
from torchrec_mt.distributed.plans.plan import PARTS, Plan
from torchrec_mt.plan import main
from torchrec_mt.reporting.plan_page import COLOURS, plan_page
from torchrec_mt.reporting.plans import milliseconds, size
from torchrec_mt.reporting.rank_kinds import SHOWN, rank_kinds, shard_kinds, shown_kinds, spans

CLUSTER = "2x4xH100-80GB"


def small_plan(**changes: object) -> Plan:
    tables = [
        laid_table("product", 40_000_000, range(8)),
        laid_table("brand", 20_000, [5]),
        laid_table("rare", 9_000_000, [2], host=True),
    ]
    return laid_plan(CLUSTER, tables, **changes)


def page_of(plan: Plan, name: str = "the only") -> str:
    return plan_page([(name, plan)], [4096 * len(plan.ranks)])


def tiles(page: str) -> list[str]:
    return re.findall(r'<svg class="tile".*?</svg>.*?</svg>', page)


def test_the_page_says_what_was_planned_and_how_it_ends() -> None:
    plan = small_plan()
    words = " ".join(read(page_of(plan)).words)
    busiest, fullest = plan.busiest, max(plan.ranks, key=lambda rank: rank.used)
    for said in (
        "two towers",
        "2x4xH100-80GB: 8 ranks, 79.6 GiB a rank",
        "4,096 rows a rank",
        "rowwise_adagrad",
        "TorchRec 1.8.0",
        f"Times and {plan.estimates[10:]}.",
        f"Busiest: rank {busiest.rank}",
        f"{milliseconds(busiest.ms)} ms of tables a step",
        "Because of table 'rare' (",
        f"less than 0.05 ms, {0.05 / busiest.ms:.0%} of this",
        f"{plan.imbalance:.2f}× the mean",
        f"Fullest: rank {fullest.rank}",
        f"{size(fullest.used)} of 79.60 GiB",
        f"{size(fullest.capacity - fullest.reserved - fullest.used)} are free",
        f"In the host's memory most, rank 2: {size(plan.ranks[2].host)} of",
    ):
        assert said in words, said


def test_every_rank_and_table_has_its_figures() -> None:
    plan = small_plan()
    page = page_of(plan)
    words = " ".join(read(page).words)
    assert len(tiles(page)) == len(plan.ranks)
    assert [f"host {at}" in words for at in range(3)] == [True, True, False]
    for rank in plan.ranks:
        for value in (rank.weights, rank.sums, rank.buffers, rank.dense, rank.reserved, rank.host):
            assert size(value) in words
        assert all(f"{getattr(rank, part):.4f}" in words for part in PARTS if getattr(rank, part))
        assert f"tables of rank {rank.rank}" in page
    for table in plan.tables:
        assert table.name in words
        assert f"<title>{table.name}: " in page
        for _, shard in shard_kinds(table):
            assert f"({shard.held:,.0f} B)" in words
    assert "brand: 20,000 × 16, 1.30 MiB (1,360,000 B), 0.1001 ms" in page


def test_a_bar_is_as_long_as_its_figure_and_the_mean_is_marked() -> None:
    plan = small_plan()
    page = page_of(plan)
    rank, top = plan.ranks[2], 0.3
    rows = re.findall(r"<tr><th scope=\"row\">rank 2</th>.*", page)
    memory, times = (row for row in rows if 'href="#ticks"' in row)
    wide = [float(found) for found in re.findall(r'class="p\d" x="[\d.]+%" y="15%" width="([\d.]+)%"', times)]
    assert wide == pytest.approx([94 * getattr(rank, part) / top for part in PARTS], abs=0.01)
    mean = 3 + 94 * (sum(one.ms for one in plan.ranks) / 8) / top
    assert f'class="mean" x1="{mean:.2f}%"' in times
    filled = sum(
        float(found) for found in re.findall(r'class="(?:m\d|free)" x="[\d.]+%" y="15%" width="([\d.]+)%"', memory)
    )
    assert filled == pytest.approx(94 + 94 * rank.host / rank.host_capacity, abs=0.05)


def test_texts_of_the_plan_are_escaped() -> None:
    plan = laid_plan(
        CLUSTER, [laid_table(EVIL, 9_000, range(8)), laid_table("<b>", 5, [1])], model=EVIL, optimizer=EVIL
    )
    plan.cluster["source"] = plan.cluster["name"] = EVIL
    for page in (page_of(plan, EVIL), plan_page([(EVIL, plan), (EVIL, None)], [8, 8])):
        found = read(page)
        assert page.count("<script>") == 1
        assert "alert('x')" not in page
        assert "<b></b>" not in page
        assert "49" not in found.words
        assert any(EVIL in word for word in found.words)


@pytest.mark.parametrize(("cluster", "ranks"), [("2x8xH100-80GB", 16), ("3x8xH100-80GB", 24)])
def test_equal_ranks_are_folded_where_there_are_many(cluster: str, ranks: int) -> None:
    plan = laid_plan(cluster, [laid_table("wide", ranks * 1000, range(ranks)), laid_table("lone", 10, [9])])
    page = page_of(plan)
    words = " ".join(read(page).words)
    if ranks == 16:
        assert len(tiles(page)) == 16
        assert "alike" not in words.replace("shards that are alike", "")
    else:
        assert len(tiles(page)) == 2
        for said in ("ranks 0–8, 10–23", "23 alike", "hosts 0–2", "host 1", "rank 9"):
            assert said in words


def test_kinds_hold_every_rank_once_with_what_it_holds() -> None:
    chance = random.Random(3)
    tables = [laid_table(f"t{at}", 10 ** chance.randint(2, 6), chance.sample(range(32), 4)) for at in range(9)]
    plan = laid_plan("4x8xH100-80GB", tables)
    kinds = rank_kinds(plan)
    assert sorted(rank for kind in kinds for rank in kind.ranks) == list(range(32))
    told = set()
    for kind in kinds:
        shards = Counter((shard.table.name, shard.rows, shard.columns, shard.ms) for shard in kind.shards)
        told.add(frozenset(shards.items()))
        for rank in kind.ranks:
            assert shards == Counter(
                (table.name, rows, columns, sum(table.costs[cost][part] for part in PARTS))
                for table in tables
                for holder, _, _, rows, columns, cost in table.shards
                if holder == rank
            )
    assert len(told) == len(kinds) < 32


def test_a_plan_for_one_rank() -> None:
    page = page_of(laid_plan("1x1xCPU", [laid_table("only", 1000, [0])], bound_ms=0.0))
    words = " ".join(read(page).words)
    assert len(tiles(page)) == 1
    for said in ("1x1xCPU: 1 rank, 64 GiB a host", "1.00× the mean", "Nothing is known of how much less", "host 0"):
        assert said in words
    assert "host's memory" not in words


def test_a_rank_without_tables_and_tables_without_rows() -> None:
    page = page_of(laid_plan("1x2xCPU", [laid_table("empty", 0, [0])]))
    assert "no table" in " ".join(read(page).words)


@pytest.mark.parametrize("way", ["row_wise", "table_wise", "both"])
def test_a_page_of_many_ranks_and_tables_stays_small(way: str) -> None:
    chance = random.Random(1)
    tables = []
    for at in range(1000):
        whole = way == "table_wise" or (way == "both" and chance.random() < 0.7)
        rows = int(10 ** chance.uniform(3, 8))
        tables.append(laid_table(f"feature_{at:04d}", rows, [chance.randrange(128)] if whole else range(128)))
    page = page_of(laid_plan("16x8xH100-80GB", tables))
    read(page)
    assert len(page.encode()) < 1_000_000
    assert all(f'<th scope="row">feature_{at:04d}</th>' in page for at in range(1000))


def test_of_very_many_kinds_of_ranks_those_that_matter_are_shown() -> None:
    tables = [laid_table(f"t{rank}", 1000 + rank, [rank]) for rank in range(160)]
    big = laid_table("big", 60_000_000, [0], dim=200)
    big.costs[0].update(dict.fromkeys(PARTS, 0.0))
    plan = laid_plan("20x8xH100-80GB", [*tables, big])
    page = page_of(plan)
    read(page)
    shown = [kind.ranks[0] for kind in shown_kinds(rank_kinds(plan))]
    assert shown == [0, *range(33, 160)]
    assert len(tiles(page)) == SHOWN
    assert "32 kinds of ranks that are less busy are left out" in page


def test_plans_side_by_side_then_each_in_a_fold() -> None:
    first, second = small_plan(), laid_plan("1x1xCPU", [laid_table("brand", 7, [0]), laid_table("new", 90_000, [0])])
    page = plan_page([("first", first), ("second", second), ("third; x=1", None)], [10, 10, 10])
    found = read(page)
    words = " ".join(found.words)
    assert page.index('id="side"') < page.index('<details class="plan" id="A">') < page.index('id="B"')
    assert page.count('<details class="plan"') == 3
    for said in (
        "3 plans of the tables",
        "third; x=1 : does not fit",
        "no fit",
        "row_wise",
        "towers and losses come on",
    ):
        assert said in words.replace("1: does", "1 : does")
    for plan in (first, second):
        assert milliseconds(plan.busiest.ms) in words
    colours = dict(re.findall(r'<path class="(t\d)[^>]*><title>(\w+):', page))
    assert len(set(colours.values())) == len(colours) == 4, "a table has one colour in all plans"


def test_no_plan_fits() -> None:
    assert "no plan fits" in " ".join(read(plan_page([("a", None), ("b", None)], [1, 1])).words)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([4], "4"),
        ([0, 1], "0–1"),
        ([7, 0, 1, 2, 2], "0–2, 7"),
        ([0, 2, 4, 6], "0, 2, 4, 6"),
        ([0, 2, 4, 6, 8, 9], "0, 2, 4, … (6)"),
    ],
)
def test_numbers_in_spans(numbers: list[int], told: str) -> None:
    assert spans(numbers) == told


def colours_of(page: str, theme: int) -> dict[str, tuple[str, str]]:
    """Colour and that of words on it, by class."""
    style = page[page.index("<style>") : page.index("</style>")]
    ground = themes(page)[theme]
    found: dict[str, tuple[str, str]] = {}
    own = style[style.index(".t { --c") : style.index("svg.tile path")]
    before, _, after = own.partition("@media (prefers-color-scheme: dark)")
    for block in (before, after if theme else ""):
        for names, body in re.findall(r"((?:\.\w+,? ?)+)\{ (--c.*?) \}", block):
            values = dict(re.findall(r"--(\w+): ([^;]+);", body))
            for name in re.findall(r"\.(\w+)", names):
                colour = re.sub(r"var\(--(\w+)\)", lambda word: ground[word[1]], values["c"])
                on = re.sub(r"var\(--(\w+)\)", lambda word: ground[word[1]], values.get("on", "#000000"))
                found[name] = (colour, on)
    return found


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_can_be_told_apart_and_words_on_them_read(theme: int) -> None:
    colours = colours_of(page_of(small_plan()), theme)
    assert {f"t{at}" for at in range(COLOURS)} < colours.keys()
    for name, (colour, on) in colours.items():
        assert not name.startswith("t") or contrast(colour, on) >= 4.5, name
    for kind in "tmp":
        alike = [colour for name, (colour, _) in colours.items() if name.startswith(kind)]
        for first, second in combinations(alike, 2):
            assert min(seen_apart(first, second, vision) for vision in VISIONS) > 15, (first, second)


def test_every_colour_of_the_theme_is_defined_in_both() -> None:
    page = page_of(small_plan())
    light, dark = themes(page)
    assert set(light) == set(dark)
    assert set(re.findall(r"var\(--(\w+)\)", page)) - {"c", "on", "tile", "tiles"} <= set(light)


@needs_browser
@pytest.mark.parametrize("width", [480, 1400])
def test_a_browser_opens_the_page_and_sorts_its_table(tmp_path: Path, width: int) -> None:
    click = """<script>
      document.querySelectorAll("table.sortable thead button")[1].click();
      document.querySelectorAll("table.sortable thead button")[1].click();
      document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    </script></body>"""
    done = opened(page_of(small_plan()).replace("</body>", click), tmp_path, width)
    body = done[done.index('class="sortable"') :]
    assert 'aria-sort="ascending"' in body
    assert re.findall(r'<tr><th scope="row">(\w+)</th>', body) == ["brand", "rare", "product"]
    assert 'data-wide="0"' in done, "nothing but tables scrolls sideways"


@pytest.mark.parametrize("more", [[], ["--cluster", "1x1xCPU"]])
def test_the_program_writes_the_page(tmp_path: Path, more: list[str]) -> None:
    counts = tmp_path / "counts.toml"
    counts.write_text(
        "[plan.tables]\ntokens = { rows = 500, lookups = 20 }\nproduct_id = { rows = 5_000 }\n"
        "category = { rows = 50 }\nbrand = { rows = 20 }\n"
    )
    page = tmp_path / "new" / "plan.html"
    assert main(["launch/demo.toml", str(counts), "--cluster", "1x2xCPU", *more, "--html", str(page)]) == 0
    words = " ".join(read(page.read_text(encoding="utf-8")).words)
    assert "product_id" in words
    assert ("Side by side" in words) == bool(more)
