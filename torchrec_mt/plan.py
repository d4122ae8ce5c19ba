"""torchrec-mt plan CONFIG.toml ...: where the tables of a model would lie on a cluster that need not exist, what that
takes and why; no GPU, no process group, no data.

torchrec-mt plan launch/demo.toml --cluster 2x8xH100-80GB
torchrec-mt plan launch/demo.toml --cluster 1x8xA100-80GB --cluster 1x8xH100-80GB --what-if reader.batch_size=8192
Exit code 3: the tables do not fit; then it says why, and searches for changes by which they would.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from torchrec_mt.config import RunConfig, add_config_arguments, load_config
from torchrec_mt.data.imagined import planned_manifest
from torchrec_mt.distributed.plans.calibrate import calibrate
from torchrec_mt.distributed.plans.clusters import Cluster, parse_cluster
from torchrec_mt.distributed.plans.diff import diff
from torchrec_mt.distributed.plans.explain import Explained, explain
from torchrec_mt.distributed.plans.fixes import MOST_PLANS, find_fixes
from torchrec_mt.distributed.plans.plan import Plan, read_plan
from torchrec_mt.distributed.plans.planner import Problem, Solved, TablesDoNotFitError, solve
from torchrec_mt.distributed.plans.stuck import Stuck
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.errors import UserError, run_program
from torchrec_mt.reporting.fixes import print_fixes
from torchrec_mt.reporting.plan_details import calibration_table, diff_tables, explained_tables
from torchrec_mt.reporting.plan_page import plan_page
from torchrec_mt.reporting.plans import plan_tables, side_by_side
from torchrec_mt.reporting.terminal import console, progress_bar
from torchrec_mt.runs import write_atomic
from torchrec_mt.training.imagined import batch_rows, imagined_problem


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--cluster",
        action="append",
        metavar="SPEC",
        help="HOSTSxRANKSxDEVICE such as 2x8xH100-80GB, with changes behind commas (price_per_hour=60), or a TOML "
        "file; repeatable: side by side. Default: the config's plan.cluster",
    )
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="KEY=VALUE;KEY=VALUE",
        help="one more plan beside the others, with these keys set; repeatable",
    )
    parser.add_argument(
        "--explain",
        action="append",
        default=[],
        metavar="TABLE",
        help="every way that a table could lie, what each takes, why it is not open; repeatable; all: of every table",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--output", metavar="FILE", help="write the plan as JSON, for sharding.plan or `plan diff`")
    parser.add_argument("--html", metavar="FILE", help="write the plan, or all of them side by side, as a page")
    return parser


def problem_of(config: RunConfig, cluster: Cluster) -> Problem:
    """What is to be planned for a config on a cluster."""
    schema = config.dataset
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


def _solved(problem: Problem) -> Solved:
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


def _say_fixes(error: TablesDoNotFitError, problem: Problem, config: RunConfig, arguments: argparse.Namespace) -> int:
    """Says why the one case asked for does not fit and searches for what would make it fit; returns the exit code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    spec = (arguments.cluster or [config.plan.cluster])[0]

    def plan_case(overrides: Sequence[str], cluster: str | None) -> Plan | None:
        try:
            changed = load_config(arguments.config, [*arguments.overrides, *overrides])
            solved = solve(problem_of(changed, parse_cluster(cluster or spec)))
        except UserError:  # it does not fit either, or the change and the rest of the config refuse each other
            return None
        if solved.found.interrupted:
            raise KeyboardInterrupt
        return solved.plan

    stuck = Stuck(
        problem=problem, table=error.table, piece=error.piece, cluster=spec, batch_size=config.reader.batch_size
    )
    with progress_bar() as bar:
        line = bar.add_task("what would fit", total=MOST_PLANS, note="")
        found = find_fixes(
            stuck, plan_case, progress=lambda tried, kind: bar.update(line, completed=tried, note=f"changing {kind}")
        )
    if arguments.json:
        print(found.to_json(str(error)), end="")
    else:
        print_fixes(found)
    return error.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    match list(sys.argv[1:] if argv is None else argv):
        case ["diff", *rest]:
            return _diff(rest)
        case ["calibrate" | "--calibrate", *rest]:
            return _calibrate(rest)
        case rest:
            return _plan(rest)


def _plan(argv: Sequence[str]) -> int:
    arguments = build_parser().parse_args(argv)
    quiet_dependencies()
    cases = list(_cases(arguments))
    pairs = [config.reader.batch_size * config.trainer.accumulate * cluster.world_size for _, config, cluster in cases]
    if len(cases) == 1:
        name, config, cluster = cases[0]
        problem = problem_of(config, cluster)
        try:
            solved = _solved(problem)
        except TablesDoNotFitError as error:
            return _say_fixes(error, problem, config, arguments)
        names = [table.name for table in solved.plan.tables] if "all" in arguments.explain else arguments.explain
        explained = explain(problem, solved, names)
        _write_page([(name, solved.plan)], pairs, arguments)
        _say(solved.plan, explained, arguments)
        if solved.found.interrupted:
            print("interrupted: this is the best plan so far", file=sys.stderr)
        return 0
    plans = [(name, _plan_or_none(config, cluster)) for name, config, cluster in cases]
    _write_page(plans, pairs, arguments)
    if arguments.json:
        print(json.dumps({name: json.loads(plan.to_json()) if plan else None for name, plan in plans}, indent=1))
    else:
        console().print(side_by_side(plans, pairs))
    return 0 if all(plan for _, plan in plans) else 3


def _cases(arguments: argparse.Namespace) -> Iterator[tuple[str, RunConfig, Cluster]]:
    """What is asked for, with a name of each: every cluster, with the config as it is and with each change."""
    for change in ("", *arguments.what_if):
        overrides = [*arguments.overrides, *(part.strip() for part in change.split(";") if part.strip())]
        config = load_config(arguments.config, overrides)
        for spec in arguments.cluster or [config.plan.cluster]:
            cluster = parse_cluster(spec)
            yield (f"{cluster.label} {change}".strip(), config, cluster)


def _plan_or_none(config: RunConfig, cluster: Cluster) -> Plan | None:
    try:
        return _solved(problem_of(config, cluster)).plan
    except TablesDoNotFitError as error:
        print(f"{error}", file=sys.stderr)
        return None


def _say(plan: Plan, explained: Sequence[Explained], arguments: argparse.Namespace) -> None:
    if arguments.output:
        write_atomic(Path(arguments.output), plan.to_json())
    if arguments.json:
        more = {"explained": [asdict(one) for one in explained]} if explained else {}
        print(json.dumps(json.loads(plan.to_json()) | more, indent=1))
    else:
        console().print(plan_tables(plan))
        if explained:
            console().print(explained_tables(explained))


def _write_page(plans: Sequence[tuple[str, Plan | None]], pairs: Sequence[int], arguments: argparse.Namespace) -> None:
    if arguments.html:
        write_atomic(Path(arguments.html), plan_page(plans, pairs))


def _diff(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="torchrec-mt plan diff", description="How two plans differ.")
    parser.add_argument("plans", nargs=2, metavar="PLAN", help="a file that `plan --output` wrote, or a run folder")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    arguments = parser.parse_args(argv)
    found = diff(*map(read_plan, arguments.plans))
    if arguments.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        console().print(diff_tables(found))
    return 0


def _calibrate(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="torchrec-mt plan calibrate", description="What was foretold of a run beside what it took."
    )
    parser.add_argument("run", help="a run folder that `train` wrote")
    parser.add_argument("--output", metavar="FILE.toml", help="write its cluster, with bandwidths as they turned out")
    parser.add_argument("--json", action="store_true", help="print the terms as JSON")
    arguments = parser.parse_args(argv)
    found = calibrate(Path(arguments.run))
    if arguments.output:
        write_atomic(Path(arguments.output), found.cluster.to_toml())
    if arguments.json:
        print(json.dumps({"terms": [asdict(term) | {"ratio": term.ratio} for term in found.terms]}, indent=1))
    else:
        console().print(calibration_table(found))
    return 0


if __name__ == "__main__":
    run_program(main)
