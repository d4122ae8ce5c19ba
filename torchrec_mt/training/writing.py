"""What a training writes into its run folder beside checkpoints: what is known before the first step, and the log."""

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
from torchrec_mt.training.metrics_log import MetricsLog
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
