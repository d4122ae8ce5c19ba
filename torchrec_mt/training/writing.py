"""What a training writes into its run folder: what is known before the first step, log, checkpoints; and its place."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torchrec_mt import __version__
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.matching import keep_vocabularies
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.environment import environment
from torchrec_mt.models.size import ModelSize
from torchrec_mt.runs import DATASET, HELD, INIT, MODEL, RunFolder, write_atomic
from torchrec_mt.storage import Output
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.keeper import CheckpointConfig, Keeper, checkpoints_path, remove_checkpoints
from torchrec_mt.training.metrics_log import MetricsLog
from torchrec_mt.training.run_state import Restored, RunState
from torchrec_mt.training.tracking import Record


@contextmanager
def writing(
    run: RunFolder,
    config_json: str,
    dataset: PreparedDataset,
    plan: Plan,
    held: list[dict[str, int]],
    size: ModelSize,
    here: Runtime,
    *,
    after: int,
    origin: dict[str, Any] | None,
) -> Iterator[MetricsLog | None]:
    """Writes what is known before the first step, and gives the log (main rank). At the end the log is closed, and a
    run that has not taken its place removed."""

    def start() -> None:
        run.start(config_json)
        write_atomic(run.path / DATASET, json.dumps({"digest": dataset.manifest.digest}) + "\n")
        write_atomic(run.path / "plan.json", plan.to_json())
        write_atomic(run.path / HELD, json.dumps(held, indent=1) + "\n")
        write_atomic(run.path / MODEL, json.dumps(size.to_json(), indent=1) + "\n")
        keep_vocabularies(dataset, run.path)
        if origin:
            write_atomic(run.path / INIT, json.dumps(origin, indent=1) + "\n")

    log = None
    try:
        on_main(start)
        log = MetricsLog(run, after=after or None) if here.is_main else None
        yield log
    finally:
        if log:
            log.close()
        if here.is_main:
            run.discard()


def take_place(run: RunFolder, log: MetricsLog | None) -> None:
    """The run takes the place of the earlier one; on every rank."""

    def swap() -> None:
        assert log is not None, "the main rank has the log"
        log.close()
        run.swap()
        log.open(run.place)

    on_main(swap)
    run.path = run.place


def keeper_of(
    config: CheckpointConfig,
    state: RunState,
    store: CheckpointStore,
    run: RunFolder,
    log: MetricsLog | None,
    output: Output,
    restored: Restored | None,
) -> Keeper:
    """What writes the run's checkpoints; with the first one a new run takes its place."""
    run.at_url = restored is not None
    begins = restored is None and config.folder != ""

    def push() -> None:
        """Whatever the newest checkpoint needs of the run folder is at the URL before it."""
        if run.at_url:
            on_main(output.try_update)
        else:
            _begin_at_url(run, log, config, output)
        run.at_url = True

    def make_room() -> None:
        nonlocal begins
        if begins:
            on_main(lambda: remove_checkpoints(config, run))
        begins = False

    def moved() -> CheckpointStore:
        take_place(run, log)
        return CheckpointStore(checkpoints_path(config, run), keep=config.keep)

    return Keeper(
        config,
        state,
        store,
        good=restored.good if restored else (),
        before=push if run.url else make_room,
        moved=moved if run.is_aside and not run.url else None,
    )


def _begin_at_url(run: RunFolder, log: MetricsLog | None, config: CheckpointConfig, output: Output) -> None:
    """A new run takes its place in the local copy and at the URL. A reader meets one run or none, never a mixture."""
    on_main(lambda: remove_checkpoints(config, run))
    if run.is_aside:
        take_place(run, log)
    on_main(output.push)


def to_both(log: MetricsLog | None, track: Record) -> Record:
    """Writes lines to the log of the run and to its tracker; the main rank's."""

    def write(step: int, kind: str, values: Mapping[str, float]) -> None:
        if log is not None:
            log.write(step, kind, values)
            track(step, kind, values)

    return write


def versions() -> dict[str, str]:
    """Of this project and what it stands on, as tags of a tracker."""
    found = {"torchrec-mt": __version__, **environment()["versions"]}
    return {f"version.{name}": version for name, version in found.items()}
