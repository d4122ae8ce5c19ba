"""torchrec-mt plan CONFIG.toml ...: where the tables of a model would lie on a cluster that need not exist, what that
takes and why; no GPU, no process group, no data.

torchrec-mt plan launch/demo.toml --cluster 2x8xH100-80GB
torchrec-mt plan launch/demo.toml --cluster 1x8xA100-80GB --cluster 1x8xH100-80GB --what-if reader.batch_size=8192
Exit code 3: the tables do not fit; then it says why, and searches for changes by which they would.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torchrec_mt.config import add_config_arguments
from torchrec_mt.distributed.plans.calibrate import calibrate
from torchrec_mt.distributed.plans.diff import diff
from torchrec_mt.distributed.plans.explain import Explained, explain
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.plans.planner import TablesDoNotFitError
from torchrec_mt.distributed.plans.reading import read_plan
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.errors import UserError, run_program
from torchrec_mt.reporting.fixes import print_fixes
from torchrec_mt.reporting.plan_details import calibration_table, diff_tables, explained_tables
from torchrec_mt.reporting.plan_page import plan_page
from torchrec_mt.reporting.plans import plan_tables, side_by_side
from torchrec_mt.reporting.terminal import console
from torchrec_mt.runs import write_atomic
from torchrec_mt.workflows.planning import PlanCase, cases_of, problem_of, solve_visibly, what_would_fit


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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    match list(sys.argv[1:] if argv is None else argv):
        case ["diff", *rest]:
            return _diff(rest)
        case ["calibrate", *rest]:
            return _calibrate(rest)
        case rest:
            arguments = build_parser().parse_args(rest)
            quiet_dependencies()
            cases = list(cases_of(arguments.config, arguments.overrides, arguments.cluster or [], arguments.what_if))
            return _one(cases[0], arguments) if len(cases) == 1 else _several(cases, arguments)


def _one(case: PlanCase, arguments: argparse.Namespace) -> int:
    problem = problem_of(case.config, case.cluster)
    try:
        solved = solve_visibly(problem)
    except TablesDoNotFitError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        found = what_would_fit(case, problem, error)
        if arguments.json:
            print(found.to_json(str(error)), end="")
        else:
            print_fixes(found)
        if arguments.html:
            write_atomic(Path(arguments.html), plan_page([(case.name, None)], [case.pairs]))
        return error.exit_code
    names = [table.name for table in solved.plan.tables] if "all" in arguments.explain else arguments.explain
    explained = explain(problem, solved, names)
    if arguments.output:
        write_atomic(Path(arguments.output), solved.plan.to_json())
    if arguments.html:
        write_atomic(Path(arguments.html), plan_page([(case.name, solved.plan)], [case.pairs]))
    _say(solved.plan, explained, as_json=arguments.json)
    if solved.found.interrupted:
        print("interrupted: this is the best plan so far", file=sys.stderr)
    return 0


def _say(plan: Plan, explained: Sequence[Explained], *, as_json: bool) -> None:
    if as_json:
        more = {"explained": [asdict(one) for one in explained]} if explained else {}
        print(json.dumps(json.loads(plan.to_json()) | more, indent=1))
        return
    console().print(plan_tables(plan))
    if explained:
        console().print(explained_tables(explained))


def _several(cases: Sequence[PlanCase], arguments: argparse.Namespace) -> int:
    for option in ("output", "explain"):
        if getattr(arguments, option):
            raise UserError(f"--{option} is of a single plan: give one --cluster and no --what-if with it")
    plans, pairs = [(case.name, _plan_or_none(case)) for case in cases], [case.pairs for case in cases]
    if arguments.html:
        write_atomic(Path(arguments.html), plan_page(plans, pairs))
    if arguments.json:
        print(json.dumps({name: json.loads(plan.to_json()) if plan else None for name, plan in plans}, indent=1))
    else:
        console().print(side_by_side(plans, pairs))
    return 0 if all(plan for _, plan in plans) else 3


def _plan_or_none(case: PlanCase) -> Plan | None:
    try:
        solved = solve_visibly(problem_of(case.config, case.cluster))
    except TablesDoNotFitError as error:
        print(f"{error}", file=sys.stderr)
        return None
    if solved.found.interrupted:
        print(f"interrupted: this is the best plan so far for {case.name}", file=sys.stderr)
    return solved.plan


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
