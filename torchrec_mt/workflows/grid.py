"""Runs an experiment: every cell trained and judged in a folder of its own. What is there is kept, what was stopped
goes on, and a cell that fails does not stop the rest."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torchrec_mt.config import RunConfig
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.lost import Together
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import CannotWriteError, UserError, first_line
from torchrec_mt.retrieval.comparison import Judgement
from torchrec_mt.retrieval.evaluator import terms
from torchrec_mt.retrieval.records import records_path
from torchrec_mt.runs import RunFolder, read_object, write_atomic
from torchrec_mt.training.keeper import BEST
from torchrec_mt.workflows.evaluation import evaluate_here
from torchrec_mt.workflows.grid_config import Cell, Grid
from torchrec_mt.workflows.grid_turns import AskedToEndError, turns
from torchrec_mt.workflows.training import BESIDE, EXECUTION, changed_since, kept_run, train_here
from torchrec_mt.workflows.twin_plan import training_of, twin_tasks
from torchrec_mt.workflows.twins import compare_with_twins

PLAN = "grid.json"
_MAY_CHANGE = (*EXECUTION, *BESIDE)
_FREE = ("methods", "seeds", "question")
"""What may be added to an experiment that has begun."""
_JUDGED_BY = ("dataset", "split", "model", "max_anchors", "metrics")


@dataclass(frozen=True)
class Done:
    """A cell's outcome: judgements of its runs (`anchors.parquet`), or why it failed."""

    cell: Cell
    records: tuple[Path, ...] = ()
    failure: str = ""


def begin(grid: Grid) -> None:
    """Writes the experiment's plan down, or checks that the one that has begun is the same.

    Raises:
        UserError: what is fixed has changed since the first run.
    """
    file = Path(grid.output) / PLAN
    plan = json.loads(json.dumps(grid.to_json()))
    if file.is_file():
        begun = read_object(file)
        changed = [key for key in plan if key not in _FREE and plan[key] != begun.get(key)]
        changed += [
            f"methods.{name}"
            for name, method in begun["methods"].items()
            if plan["methods"].get(name, method) != method
        ]
        if changed:
            raise UserError(
                f"'{file}' is another experiment ({', '.join(changed)} differ): what is fixed stays fixed once runs "
                "are made; give another output"
            )
        plan["methods"] = begun["methods"] | plan["methods"]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(plan, indent=1) + "\n")


def check_kept(cells: Sequence[Cell]) -> None:
    """Refuses to go on where the config files of the runs that are there have changed since.

    Raises:
        UserError: naming the run and the keys.
    """
    for cell in cells:
        changed = changed_since(str(cell.place), cell.config, but=_MAY_CHANGE)
        if changed:
            raise UserError(
                f"'{cell.place}' holds a run of another config ({', '.join(changed[:3])} differ): what is fixed stays "
                "fixed once runs are made; give another output, or take the config back"
            )


def run_cells(
    cells: Sequence[Cell],
    here: Runtime,
    *,
    show: bool = True,
    tell: Callable[[str], None] = lambda line: None,
    asked: Callable[[], bool] = lambda: False,
) -> list[Done]:
    """Trains and judges what is not there yet, but for cells that other programs do meanwhile. Called on every rank.

    Args:
        tell: takes a line per cell. asked: whether this rank was asked to end.

    Raises:
        AskedToEndError: it was; everything goes on from where it stands with the next call.
        UserError: exit code 1; a cell failed on this rank alone. CannotWriteError: no room for checkpoints.
    """
    done: dict[str, Done] = {}
    together = Together()
    with closing(turns(cells, tell=tell, asked=asked)) as in_turn:
        for number, cell in in_turn:
            tell(f"[{number}/{len(cells)}] {cell.name}")
            done[cell.name] = run_cell(cell, here, together, show=show, tell=tell, asked=asked)
    return [done[cell.name] for cell in cells]


def run_cell(
    cell: Cell,
    here: Runtime,
    together: Together,
    *,
    show: bool,
    tell: Callable[[str], None],
    asked: Callable[[], bool],
) -> Done:
    """The same for one cell, which this program holds."""
    try:
        return Done(
            cell, tuple(_twins(cell, here, show, tell, asked) if cell.twins_of else _run(cell, here, show, tell, asked))
        )
    except CannotWriteError:
        raise  # nor could the next cell
    except (UserError, ValueError, RuntimeError, FloatingPointError) as error:
        # One cell's mistake (a model that diverges, a method that the config refuses) is a result of its own.
        together.failed(error)
        tell(f"  failed: {first_line(error)}")
        return Done(cell, failure=first_line(error))


def _run(cell: Cell, here: Runtime, show: bool, tell: Callable[[str], None], asked: Callable[[], bool]) -> list[Path]:
    place = str(cell.place)
    kept = on_main(lambda: kept_run(place, cell.config, but=_MAY_CHANGE) is not None)
    outcome = train_here(cell.config, place, here, resume=kept, overwrite=not kept, show=show, asked=asked)
    if outcome["interrupted"]:
        raise AskedToEndError(cell.place)
    if "nothing_left" in outcome:
        tell("  trained before, kept")
    return [_judge(RunFolder.open(str(cell.place)), cell.config, here)]


def _judge(run: RunFolder, config: RunConfig, here: Runtime) -> Path:
    """The values of the run's best model anchor by anchor; made where they are not there for this very model."""
    path = run.evaluation_path.with_name(config.evaluate.file_name(BEST))
    stamp, records = path.with_suffix(".of.json"), records_path(path)
    model = json.dumps([training_of(run), config.evaluate.split, list(config.evaluate.metrics)])

    def is_there() -> bool:
        if not (stamp.is_file() and stamp.read_text() == model and records.is_file()):
            return False
        about = Judgement.open(str(run.path), records).about  # `torchrec-mt evaluate` may have written it since
        wanted = terms(config.evaluate, BEST, str(run.dataset_digest))
        return all(about.get(key) == wanted[key] for key in _JUDGED_BY)

    if not on_main(is_there):
        evaluate_here(run, config, here, path=path)
        on_main(lambda: write_atomic(stamp, model))
    return records


def _twins(cell: Cell, here: Runtime, show: bool, tell: Callable[[str], None], asked: Callable[[], bool]) -> list[Path]:
    """The twins of the run in the cell's place; a judgement of each."""
    run = RunFolder.open(str(cell.place))
    tasks = twin_tasks(cell.config, None, str(cell.place))
    found = compare_with_twins(
        run, cell.config, here, tasks, show=show, tell=lambda line: tell(f"  {line}"), asked=asked, judge=_judge
    )
    if "interrupted" in found:
        raise AskedToEndError(cell.place)
    file = cell.config.evaluate.file_name(BEST)
    folders = [RunFolder.open(twin["run"]) for twin in found["twins"].values()]
    return [records_path(folder.evaluation_path.with_name(file)) for folder in folders]
