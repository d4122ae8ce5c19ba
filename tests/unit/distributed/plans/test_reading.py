"""Plans that are read: broken files and plans that contradict themselves end in one message with the key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.imagined_plans import laid_plan, laid_table
from torchrec_mt.distributed.plans.reading import plan_from_json, read_plan
from torchrec_mt.errors import UserError

PLAN = laid_plan("1x4xH100", [laid_table("rows", 100, range(4)), laid_table("whole", 50, [2])])


def read_edited(edit: Callable[[Any], object]) -> None:
    raw = json.loads(PLAN.to_json())
    edit(raw)
    plan_from_json(json.dumps(raw), "mine.json")


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    assert read_plan(str(tmp_path)) == read_plan(str(tmp_path / "plan.json")) == PLAN


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw["tables"][0]["costs"][0].pop("sums"), "a cost of table 'rows' has other keys than"),
        (lambda raw: raw["tables"][0]["shards"][0].pop(), "of table 'rows' is not \\[rank, row, column, rows,"),
        (lambda raw: raw["tables"][1]["shards"][0].__setitem__(5, 3), "'whole' has a shard of cost 3, and 1 cost"),
        (lambda raw: raw["tables"][1]["shards"][0].__setitem__(0, 4), "has a shard on rank 4, and there are 4 ranks"),
        (lambda raw: raw["tables"][1]["shards"][0].__setitem__(0, -1), "has a shard on rank -1, and there are 4"),
        (lambda raw: raw["tables"].append(raw["tables"][0]), "table 'rows' is there 2 times"),
        (lambda raw: raw["ranks"].pop(), "`ranks` are not 0 to 3"),
        (lambda raw: raw["ranks"].reverse(), "`ranks` are not 0 to 3"),
        (lambda raw: raw["cluster"].pop("hosts"), ", cluster lacks hosts"),
        (lambda raw: raw.update(cluster="two hosts"), "holds no plan \\(cluster: Input should be"),
        (lambda raw: raw["tables"][0].update(rows="many"), "holds no plan \\(tables.0.rows: Input should be"),
        (lambda raw: raw["tables"][0].pop("rows"), "holds no plan \\(tables.0.rows: Field required"),
        (lambda raw: raw["ranks"][0].update(forward_compute=float("nan")), "NaN in place of a number"),
        (lambda raw: raw["ranks"][0].update(weights=float("inf")), "Infinity in place of a number"),
        (lambda raw: raw.update(format=2), "is a plan of format 2, this version reads 1"),
    ],
)
def test_an_edited_plan_is_refused(edit: Callable[[Any], object], message: str) -> None:
    with pytest.raises(UserError, match=f"^'mine.json'.*{message}"):
        read_edited(edit)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", PLAN.to_json()[:500], "[" * 100_000, '{"format": 1e999}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^'mine\.json'"):
        plan_from_json(text, "mine.json")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"plan.json' cannot be read \('utf-8' codec"):
        read_plan(str(tmp_path))
    with pytest.raises(UserError, match=r"plan.json/a' cannot be read .*Not a directory"):
        read_plan(str(tmp_path / "plan.json/a"))
