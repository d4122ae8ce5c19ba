"""From a config to a plan for an imagined cluster: what is asked for, the plan, and what would fit where none does."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchrec_mt.config import RunConfig, load_config
from torchrec_mt.data.imagined import planned_manifest
from torchrec_mt.data.preparation import check_schema
from torchrec_mt.distributed.plans.clusters import Cluster, parse_cluster
from torchrec_mt.distributed.plans.fixes import MOST_PLANS, Fixes, find_fixes
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.plans.planner import Problem, Solved, TablesDoNotFitError, solve
from torchrec_mt.distributed.plans.stuck import Stuck
from torchrec_mt.errors import UserError
from torchrec_mt.reporting.terminal import progress_bar
from torchrec_mt.training.imagined import batch_rows, imagined_problem


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """One plan that is asked for.

    Args:
        name: cluster (its label, or all that the user wrote where labels are the same) and change. files, overrides:
            that make the config. spec: of the cluster.
    """

    name: str
    files: Sequence[str]
    overrides: Sequence[str]
    spec: str
    config: RunConfig
    cluster: Cluster

    @property
    def pairs(self) -> int:
        """Pairs of a step, all ranks together."""
        return self.config.reader.batch_size * self.config.trainer.accumulate * self.cluster.world_size


def cases_of(
    files: Sequence[str], overrides: Sequence[str], clusters: Sequence[str], changes: Sequence[str]
) -> Iterator[PlanCase]:
    """Every cluster with the config as it is, then with each change (`KEY=VALUE;KEY=VALUE`).

    Args:
        clusters: none for the config's own.
    """
    for change in ("", *changes):
        here = [*overrides, *(part.strip() for part in change.split(";") if part.strip())]
        config = load_config(files, here)
        specs = {spec: parse_cluster(spec) for spec in clusters or [config.plan.cluster]}
        labels = Counter(cluster.label for cluster in specs.values())
        for spec, cluster in specs.items():
            name = f"{cluster.label if labels[cluster.label] == 1 else spec} {change}".strip()
            yield PlanCase(name=name, files=files, overrides=here, spec=spec, config=config, cluster=cluster)


def problem_of(config: RunConfig, cluster: Cluster) -> Problem:
    """What is to be planned for a config on a cluster.

    Raises:
        UserError: a dataset whose parts contradict each other, or a model that cannot be.
    """
    schema = config.dataset
    check_schema(schema)
    return imagined_problem(
        planned_manifest(schema, schema.path, schema.name, config.plan.tables),
        schema,
        cluster,
        model_config=config.model,
        sharding=config.sharding,
        losses=config.loss,
        optim=config.optim,
        rows=batch_rows(config.reader, config.negatives, schema, config.trainer.accumulate),
    )


def solve_visibly(problem: Problem) -> Solved:
    """Plans, showing how far it is.

    Raises:
        TablesDoNotFitError: no plan fits.
    """
    with progress_bar() as bar:
        line = bar.add_task(f"plan {problem.cluster.label}", total=None, note="")
        return solve(
            problem,
            asked=lambda done, total: bar.update(line, completed=done, total=total, note="estimates"),
            progress=lambda tried, ms: bar.update(line, note=f"{tried:,} placements, best {ms:.4g} ms"),
        )


def what_would_fit(case: PlanCase, problem: Problem, error: TablesDoNotFitError) -> Fixes:
    """Searches for single changes by which the tables of a case fit, showing how far it is."""

    def plan_case(overrides: Sequence[str], cluster: str | None) -> Plan | None:
        try:
            changed = load_config(case.files, [*case.overrides, *overrides])
            solved = solve(problem_of(changed, parse_cluster(cluster or case.spec)))
        except UserError:  # it does not fit either, or the change and the rest of the config refuse each other
            return None
        if solved.found.interrupted:
            raise KeyboardInterrupt
        return solved.plan

    stuck = Stuck(
        problem=problem,
        table=error.table,
        piece=error.piece,
        cluster=case.spec,
        batch_size=case.config.reader.batch_size,
    )
    with progress_bar() as bar:
        line = bar.add_task("what would fit", total=MOST_PLANS, note="")
        return find_fixes(
            stuck, plan_case, progress=lambda tried, kind: bar.update(line, completed=tried, note=f"changing {kind}")
        )
