"""The plan of the job that runs: the same on every rank, or an error on every rank.

TorchRec's `collective_plan` raises on rank 0 alone and leaves the others waiting. Here every rank plans by itself
(planning is deterministic and needs no communication) and all compare the outcome.
"""

import json
from collections.abc import Mapping

import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import ShardingPlan

from torchrec_mt.distributed.planning import ShardingConfig, describe_plan
from torchrec_mt.distributed.plans.estimates import sharding_plan, topology_of
from torchrec_mt.distributed.plans.here import this_cluster
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.plans.planner import Problem, TablesDoNotFitError, solve
from torchrec_mt.distributed.plans.reading import read_plan
from torchrec_mt.distributed.table_optimizers import RowWiseAdagrad, TableOptimizer
from torchrec_mt.errors import UserError


def make_plan(
    module: nn.Module,
    sharding: ShardingConfig,
    *,
    pooling_factors: Mapping[str, list[float]],
    batch_size: int,
    device_type: str,
    optimizer: TableOptimizer | None = None,
    averages: bool = False,
    model: str = "",
) -> tuple[ShardingPlan, Plan]:
    """Plans every table of `module` for the ranks of this job; the same on every rank, or an error on every rank.

    Args:
        pooling_factors: per table, mean lookups per row of the batch for each key that reads it.
        batch_size: rows of a batch per rank. optimizer: of the tables; row-wise Adagrad where None.
        averages: of dense weights are kept.

    Raises:
        UserError: on every rank, if a layout cannot be right, planning fails on any, or ranks come to different plans;
            communication that the device has not.
        KeyboardInterrupt: also where the search had a plan already: a job that is ended does not go on with less.
    """
    made, failure, code = None, None, 2
    try:
        problem = Problem(
            module=module,
            sharding=sharding,
            cluster=this_cluster(device_type),
            lookups=pooling_factors,
            batch_rows=batch_size,
            optimizer=optimizer or RowWiseAdagrad(),
            averages=averages,
            pinned=read_plan(sharding.plan) if sharding.plan else None,
            model=model,
        )
        solved = solve(problem)
        if solved.found.interrupted:
            raise KeyboardInterrupt
        made = sharding_plan(module, topology_of(problem.cluster), solved.choices, solved.found.placed), solved.plan
    except TablesDoNotFitError as error:
        search = f"torchrec-mt plan CONFIG --cluster {problem.cluster.spec}"
        failure, code = f"{error}. `{search}` searches for what would fit", error.exit_code
    except UserError as error:
        failure, code = str(error), error.exit_code
    _agree(failure, made[0] if made else None, code)
    assert made is not None
    return made


def _agree(failure: str | None, plan: ShardingPlan | None, code: int) -> None:
    outcomes: list[tuple[str | None, str]] = [(None, "")] * dist.get_world_size()
    dist.all_gather_object(outcomes, (failure, json.dumps(describe_plan(plan), sort_keys=True)))
    failures = [(rank, text) for rank, (text, _) in enumerate(outcomes) if text]
    if failures:
        raise UserError(failure or f"rank {failures[0][0]} failed: {failures[0][1]}", exit_code=code if failure else 2)
    if len(set(outcomes)) > 1:
        raise UserError(
            "planning the tables failed: ranks came to different plans: give all the same config and dataset"
        )
