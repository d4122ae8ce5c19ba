"""Tables that do not fit: reasons are exact, fixes fit when planned again, and the next smaller change does not."""

import json
import math
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError

from tests.unit.distributed.plans.oversized import CASES, Oversized
from torchrec_mt.distributed.planning import make_sharder
from torchrec_mt.distributed.plans.changes import two_digits
from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.estimates import topology_of
from torchrec_mt.distributed.plans.fixes import MOST_PLANS, Fix, find_fixes
from torchrec_mt.distributed.plans.ladders import least_rung
from torchrec_mt.distributed.plans.plan import Plan


def value(fix: Fix) -> str:
    return fix.overrides[-1].partition("=")[2]


def smaller(case: Oversized, fix: Fix) -> list[tuple[Sequence[str], str | None]]:
    """Changes of the same kind that are less than a fix, as overrides and cluster; none where it is the least."""
    match fix.kind:
        case "layout" | "dtype" if len(fix.overrides) > 1:
            return [(fix.overrides[:-1], None), *(((one,), None) for one in fix.overrides)]
        case "reserve":
            return [((f"sharding.reserve={float(value(fix)) + 0.01:.2f}",), None)]
        case "ranks":
            assert fix.cluster is not None
            hosts, ranks = map(int, re.findall(r"^(\d+)x(\d+)x", fix.cluster)[0])
            fewer = (hosts, ranks - 1) if hosts == parse_cluster(case.cluster).hosts else (hosts - 1, ranks)
            return [((), re.sub(r"^\d+x\d+x", "{}x{}x".format(*fewer), fix.cluster))]
        case "kernel" if len(fix.overrides) > 1:
            return [(fix.overrides[:1], None)]
        case "dim":
            step = 8 if any("columns = 2" in override for override in case.overrides) else 4
            return [((fix.overrides[0].replace(f"={value(fix)}", f"={int(value(fix)) + step}"),), None)]
        case "rows":
            digits = int(value(fix)[:2]) + 1
            return [((fix.overrides[0].replace(value(fix), f"{digits}{'0' * (len(value(fix)) - 2)}"),), None)]
        case "batch":
            return [((f"reader.batch_size={int(value(fix)) + 131_072}",), None)]  # 16 million in 123 steps
        case _:
            return []


@pytest.mark.parametrize("name", CASES)
def test_each_fix_fits_and_nothing_smaller_does(name: str) -> None:
    case = CASES[name]
    reason = str(case.refused())
    assert reason.startswith(f"the tables do not fit on {case.cluster.partition(',')[0]}: no place for table '")
    assert [part for part in case.reason if part not in reason] == []
    found = find_fixes(case.stuck(), case.plan)
    assert tuple(" ".join(fix.arguments) for fix in found.fixes) == case.fixes
    assert sum(found.tried.values()) <= MOST_PLANS
    for fix in found.fixes:
        plan = case.plan(fix.overrides, fix.cluster)
        assert plan is not None
        fullest = min(plan.ranks, key=lambda rank: rank.capacity - rank.reserved - rank.used)
        assert fix.free_bytes == fullest.capacity - fullest.reserved - fullest.used >= 0
        assert fix.busiest_ms == max(rank.ms for rank in plan.ranks)
        assert fix.smallest
        for overrides, cluster in smaller(case, fix):
            assert case.plan(overrides, cluster) is None, (fix.says, overrides, cluster)


def test_torchrec_says_less() -> None:
    """TorchRec's message for the first case: more devices, which do not help, of memory that it shows to be enough."""
    case = CASES["too large for a rank"]
    problem = case.stuck().problem
    planner = EmbeddingShardingPlanner(
        topology=topology_of(problem.cluster),
        batch_size=problem.batch_rows,
        storage_reservation=FixedPercentageStorageReservation(problem.sharding.reserve),
        constraints={"table_big": ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"])},
    )
    sharder = make_sharder(problem.sharding.communication, torch.device("cuda"))
    with pytest.raises(PlannerError, match="Increase the number of devices") as said:
        planner.plan(problem.module, [sharder])
    advice, _, last = str(said.value).partition("Last planner error")
    assert "big" not in advice
    assert "Shard size: (400000000, 64), offset: (0, 0), storage: Storage(hbm=104006488064, ddr=0, ssd=0)" in last
    available, required = (float(text) for text in re.findall(r"model parallel: Storage\(hbm = ([\d.]+) GB", advice))
    assert required < available
    assert case.plan((), "1024x8xH100-80GB") is None


class Faked:
    """Plans a case without planning: those fit that are named; Ctrl-C comes with the last one wanted."""

    def __init__(self, plan: Plan | None, fitting: Sequence[str] = (), *, interrupt_at: float = math.inf) -> None:
        self.asked: list[str] = []
        self._plan, self._fitting, self._interrupt_at = plan, fitting, interrupt_at

    def __call__(self, overrides: Sequence[str], cluster: str | None) -> Plan | None:
        self.asked.append(" ".join(overrides) or str(cluster))
        if len(self.asked) >= self._interrupt_at:
            raise KeyboardInterrupt
        return self._plan if any(part in self.asked[-1] for part in self._fitting) else None


def test_the_search_is_bounded_and_no_kind_starves_another() -> None:
    case, told = CASES["all together"], []
    faked = Faked(None)
    found = find_fixes(case.stuck(), faked, progress=lambda tried, kind: told.append((tried, kind)))
    assert (found.fixes, found.interrupted) == ([], False)
    assert len(faked.asked) == sum(found.tried.values()) <= MOST_PLANS
    assert list(found.tried) == ["ranks", "dtype", "optimizer", "kernel", "dim", "rows", "batch"]
    assert [tried for tried, _ in told] == list(range(len(faked.asked)))
    assert len(set(faked.asked)) == len(faked.asked)


def test_an_interrupt_leaves_what_was_found() -> None:
    case = CASES["reserve"]
    plan = case.plan(("sharding.reserve=0.15",))
    # The last rung of the ladder fits, and so does the guess; then the user has seen enough.
    found = find_fixes(case.stuck(), Faked(plan, ["reserve=0.15", "reserve=0.23"], interrupt_at=3))
    assert found.interrupted
    assert [(fix.overrides, fix.smallest) for fix in found.fixes] == [(("sharding.reserve=0.23",), False)]
    assert json.loads(found.to_json("why"))["interrupted"] is True
    nothing = find_fixes(case.stuck(), Faked(plan, interrupt_at=1))
    assert (nothing.fixes, nothing.interrupted) == ([], True)


@given(st.data(), st.integers(0, 200), st.booleans())
def test_the_least_rung(data: st.DataObject, rungs: int, steady: bool) -> None:
    first = data.draw(st.integers(0, rungs))  # rungs: none fits
    guess = data.draw(st.integers(0, max(0, rungs - 1)))
    asked: list[int] = []

    def fits(rung: int) -> bool:
        assert 0 <= rung < rungs
        asked.append(rung)
        return rung >= first

    assert least_rung(fits, rungs, guess=guess, steady=steady) == (first if first < rungs else None)
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * math.log2(rungs + 1) + 2
    near = abs(guess - first) <= 1 and first < rungs
    assert not near or len(asked) <= 4


@given(st.integers(1, 10**13))
def test_two_digits(count: int) -> None:
    numbers = two_digits(count)
    assert numbers == sorted(numbers, reverse=True)
    assert all(
        count / 100 <= number < count and len(str(number).rstrip("0")) <= 2 and number >= 10 for number in numbers
    )
    if count > 10:
        assert numbers[0] >= count * 0.9 - 1


def test_json() -> None:
    case = CASES["sums of Adagrad"]
    found = find_fixes(case.stuck(), case.plan)
    told = json.loads(found.to_json("why"))
    assert (told["fits"], told["reason"], told["interrupted"]) == (False, "why", False)
    assert told["tried"] == found.tried
    assert [fix["kind"] for fix in told["fixes"]] == ["ranks", "dtype", "optimizer", "kernel", "kernel", "dim", "rows"]
    assert told["fixes"][2] == {
        "kind": "optimizer",
        "says": "tables by rowwise_adagrad in place of adagrad",
        "overrides": ["optim.tables.kind=rowwise_adagrad"],
        "cluster": None,
        "smallest": True,
        "busiest_ms": pytest.approx(found.fixes[2].busiest_ms),
        "free_bytes": found.fixes[2].free_bytes,
        "arguments": ["--set optim.tables.kind=rowwise_adagrad"],
    }
