"""A training from a whole config: dataset, run folder and earlier run wired into `training.job`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torchrec_mt.config import RunConfig, changed_keys, check_config, config_to_json, open_dataset
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError
from torchrec_mt.holding import Hold, job
from torchrec_mt.reporting.terminal import TrainingProgress
from torchrec_mt.runs import MARK, PARTS, RunFolder, restarted
from torchrec_mt.storage import Output, is_url
from torchrec_mt.training.job import train
from torchrec_mt.training.keeper import checkpoints_path, has_checkpoint
from torchrec_mt.training.trainer import GiveUp
from torchrec_mt.training.warm_start import Earlier

EXECUTION = (
    *(f"runtime.{key}" for key in ("device", "threads", "timeout_minutes")),
    *(f"trainer.{key}" for key in ("log_every", "stuck_seconds", "pipeline")),
    "reader.prefetch",
)
"""Keys of how steps are carried out."""
PLACEMENT = ("sharding.*", "dataset.path")
"""Keys of where things lie: they make no other model, but for the order of sums."""
BESIDE = ("checkpoint.*", "evaluate.*", "plan.*")
"""Keys that no step reads."""
RESUMED = (
    *(f"trainer.{key}" for key in ("epochs", "steps", "validations", "patience")),
    *EXECUTION,
    *PLACEMENT,
    *BESIDE,
)
"""Not what decides the meaning of a step, of the best validation so far, or which batches come."""


def train_here(
    config: RunConfig,
    run_path: str,
    here: Runtime,
    *,
    overwrite: bool = False,
    resume: bool = False,
    init_from: str | None = None,
    lanes: int | None = None,
    show: bool = True,
    asked: Callable[[], bool] = lambda: False,
    give_up: GiveUp | None = None,
) -> dict[str, object]:
    """Trains into a run folder, in a job that was joined already and by a schema that was checked.

    Returns the outcome (best step and metric, steps, path), on every rank.

    Args:
        resume: go on with the run in the folder. init_from: a run whose weights a new one starts from.
        lanes: in which a new run's batches are read; None: as many as there are ranks.
        asked: whether this rank was asked to end. give_up: whether to end here, asked on the main rank after each
            validation but the last; given on all ranks or none.
    """
    dataset, schema = open_dataset(config)
    output = Output(run_path, mark=MARK, parts=PARTS)
    run, again = on_main(lambda: _place(config, output, overwrite=overwrite, resume=resume))
    try:
        if again:
            on_main(run.hold)
            on_main(lambda: run.check_dataset(dataset.manifest.digest, config.dataset.path))
        earlier = _earlier(init_from) if init_from and not again else None
        with TrainingProgress(enabled=show and here.is_main) as progress:
            outcome = train(
                run,
                dataset,
                schema,
                config_json=config_to_json(config),
                reader_config=config.reader,
                negatives=config.negatives,
                losses=config.loss,
                model_config=config.model,
                sharding=config.sharding,
                optim=config.optim,
                balancing=config.balancing,
                trainer_config=config.trainer,
                checkpoint=config.checkpoint,
                runtime=here,
                seed=config.runtime.seed,
                progress=progress,
                output=output,
                asked=asked,
                give_up=give_up,
                resume=again,
                earlier=earlier,
                lanes=lanes,
            )
        on_main(output.update)
        return outcome
    finally:
        run.release()


def kept_run(place: str, config: RunConfig, *, but: Sequence[str]) -> RunFolder | None:
    """The run at a place as far as it has come; None where nothing of this config can be gone on with.

    Args:
        but: keys that may differ.
    """
    run = _begun(place, config)
    return None if run is None or _changed(run, config, but) else run


def changed_since(place: str, config: RunConfig, *, but: Sequence[str]) -> list[str]:
    """Keys at which the run at a place, where there is one to go on with, was made with other values.

    Args:
        but: keys that may differ.
    """
    run = _begun(place, config)
    return [] if run is None else _changed(run, config, but)


def _begun(place: str, config: RunConfig) -> RunFolder | None:
    """The run at a place; None where it has no checkpoint."""
    folder = Output(place, mark=MARK, parts=PARTS).folder()
    run = RunFolder(folder, url=place if is_url(place) else "")
    return run if (folder / MARK).is_file() and has_checkpoint(config.checkpoint, run) else None


def _changed(run: RunFolder, config: RunConfig, but: Sequence[str]) -> list[str]:
    settled = json.loads(config_to_json(check_config(run.config_json(), where=run.where)))
    return changed_keys(settled, config, but=but)


def _earlier(path: str) -> Earlier:
    run = RunFolder.open(path, parts=PARTS)
    config = check_config(run.config_json(), where=path)
    return Earlier(path=run.path, checkpoints=checkpoints_path(config.checkpoint, run), url=run.url)


def _place(config: RunConfig, output: Output, *, overwrite: bool, resume: bool) -> tuple[RunFolder, bool]:
    """The run folder, and whether to go on with what is in it: asked for, or a launcher's next try of the same job."""
    path, place = output.where, output.folder()
    run = RunFolder(place, url=path if is_url(path) else "")
    if resume:
        RunFolder.open(place)
        return run, True
    again = restarted(place)
    if again:
        Hold(place, path).release()  # the try before may be about to write its first checkpoint
    if again and has_checkpoint(config.checkpoint, run):
        changed = changed_keys(run.config_json(), config, but=RESUMED)
        if changed:
            raise UserError(
                f"'{path}' holds a run of this very job, '{job()}', with another config ({', '.join(changed[:3])} "
                "differ): give another --output, or its own config to go on with it"
            )
        return run, True
    run = RunFolder.create(place, overwrite=overwrite or again, url=run.url)
    if config.checkpoint.folder and has_checkpoint(config.checkpoint, run):
        _check_folder(config, place)
    return run, False


def _check_folder(config: RunConfig, place: Path) -> None:
    """Refuses to write checkpoints among those of another run than the one that is replaced, and to remove them."""
    folder = config.checkpoint.folder
    replaced = RunFolder(place).config_json() if (place / MARK).is_file() else {}
    if replaced.get("checkpoint", {}).get("folder") != folder:
        raise UserError(
            f"checkpoint.folder = '{folder}' holds checkpoints of another run: name a folder of this run's own, or "
            "remove them"
        )
