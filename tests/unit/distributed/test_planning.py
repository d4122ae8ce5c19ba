"""Whatever goes wrong while planning ends every rank with a message, also where one rank alone sees it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.distributed as dist

from tests.parity.tables import SPECS, Tables
from tests.ranks import run_on_ranks
from torchrec_mt.distributed.layouts import LayoutName
from torchrec_mt.distributed.planning import ShardingConfig, describe_plan
from torchrec_mt.distributed.plans import job
from torchrec_mt.distributed.plans.job import make_plan
from torchrec_mt.distributed.plans.planner import Problem, Solved, solve
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.errors import UserError
from torchrec_mt.models.embeddings import embedding_collection
from torchrec_mt.models.spec import TableSpec

FACTORS = {spec.name: [2.0] * len(spec.keys) for spec in SPECS}


def said(
    default: LayoutName, *, factors: Mapping[str, list[float]] = FACTORS, module: torch.nn.Module | None = None
) -> str:
    try:
        make_plan(
            module or Tables(),
            ShardingConfig(default=default),
            pooling_factors=factors,
            batch_size=8,
            device_type="cpu",
        )
    except UserError as error:
        return str(error)
    return "planned"


def one_table(rows: int) -> torch.nn.Module:
    return embedding_collection([TableSpec(name="a", rows=rows, dim=16, keys=("a0",))], torch.device("meta"))


def few_rows(config: ShardingConfig) -> str:
    """What becomes of a table whose row-wise blocks would leave a rank without any."""
    try:
        plan, _ = make_plan(one_table(1), config, pooling_factors={"a": [1.0]}, batch_size=10**6, device_type="cpu")
    except UserError as error:
        return str(error)
    return str(describe_plan(plan)["a"]["sharding_type"])


def interrupted() -> str:
    """What a job does whose search is interrupted once it has a plan: nothing more, in place of training by it."""

    def impatient(problem: Problem) -> Solved:
        solved = solve(problem)
        return replace(solved, found=replace(solved.found, interrupted=True))

    with patch.object(job, "solve", impatient):
        try:
            said("auto")
        except KeyboardInterrupt:
            return "interrupted"
    return "trains"


def all_mistakes() -> dict[str, str]:
    quiet_dependencies()
    rank = dist.get_rank()
    found = {
        "different": said("row_wise" if rank else "table_wise"),
        "too large": said("row_wise", factors={"a": [1.0]}, module=one_table(10**12 if rank else 100)),
        "few rows": few_rows(ShardingConfig()),
        "few rows by default": few_rows(ShardingConfig(default="row_wise")),
        "few rows by name": few_rows(ShardingConfig(tables={"a": "row_wise"})),
        "interrupted": interrupted(),
    }
    os.environ["LOCAL_WORLD_SIZE"] = "1" if rank else "2"  # two ranks of unlike hosts
    return found | {"hosts": said("table_row_wise")}


def test_all_ranks_end_with_a_message() -> None:
    ranks = run_on_ranks(2, all_mistakes)
    assert {rank["different"] for rank in ranks} == {
        "planning the tables failed: ranks came to different plans: give all the same config and dataset"
    }
    assert ranks[1]["too large"].startswith(
        "the tables do not fit on 1x2xCPU: no place for table 'a' (1,000,000,000,000 x "
    )
    assert "`torchrec-mt plan CONFIG --cluster 1x2xCPU" in ranks[1]["too large"]
    assert ranks[1]["too large"].endswith("` searches for what would fit")
    assert ranks[0]["too large"] == f"rank 1 failed: {ranks[1]['too large']}"
    assert {rank["interrupted"] for rank in ranks} == {"interrupted"}
    assert {rank["few rows"] for rank in ranks} == {"table_wise"}
    assert {rank["few rows by default"] for rank in ranks} == {"table_wise"}
    refused = ranks[0]["few rows by name"]
    assert refused.startswith(
        "sharding of table 'a' is 'row_wise', and its 1 rows in equal blocks for 2 ranks leave one"
    )
    assert ranks[0]["hosts"].startswith(
        "sharding of table 'a' is 'table_row_wise', which lays tables on hosts, and all"
    )
    assert ranks[1]["hosts"] == f"rank 0 failed: {ranks[0]['hosts']}"
