"""torchrec-mt train CONFIG.toml ... --output FOLDER: trains the unified model on a prepared dataset, in this process or
under torchrun.

torchrun --nproc_per_node 2 -m torchrec_mt.train launch/demo.toml
torchx run -s local_cwd dist.ddp -j 1x2 -m torchrec_mt.train -- launch/demo.toml
"""

import argparse
import json
from collections.abc import Sequence

from torchrec_mt.config import RunConfig, add_config_arguments, config_to_json, load_config
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import check_schema
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.distributed.shared_folder import check_shared
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.terminal import TrainingProgress, console
from torchrec_mt.runs import MARK, PARTS, RunFolder
from torchrec_mt.storage import Output, is_url
from torchrec_mt.training.job import train


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--output", help="the run folder to write, or a URL such as s3://bucket/run; default runs/NAME")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in that folder")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    return parser


def train_run(
    config: RunConfig, run_path: str, *, overwrite: bool = False, show: bool = True
) -> dict[str, object] | None:
    """Trains into a run folder. Returns the outcome (best step and metric, steps, path), on the main rank."""
    with runtime(config.runtime) as here:
        check_schema(config.dataset)
        dataset = PreparedDataset.open(config.dataset.path)
        dataset.check_declaration(config.dataset)
        output = Output(run_path, mark=MARK, parts=PARTS)
        run = on_main(lambda: RunFolder.create(output.folder(), overwrite=overwrite))
        if is_url(run_path):
            check_shared(run.path.parent, here.device, "set TORCHREC_MT_CACHE to a folder that all machines share")
        with TrainingProgress(enabled=show and here.is_main) as progress:
            outcome = train(
                run,
                dataset,
                config.dataset,
                config_json=config_to_json(config),
                reader_config=config.reader,
                negatives=config.negatives,
                losses=config.loss,
                model_config=config.model,
                sharding=config.sharding,
                optim=config.optim,
                balancing=config.balancing,
                trainer_config=config.trainer,
                runtime=here,
                seed=config.runtime.seed,
                progress=progress,
                published=output.try_push,
            )
            on_main(output.push)
        return outcome | {"run": run_path} if here.is_main else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    run_path = arguments.output or f"runs/{config.dataset.name}"
    outcome = train_run(config, run_path, overwrite=arguments.overwrite, show=not arguments.json)
    if outcome is not None and arguments.json:
        print(json.dumps(outcome))
    elif outcome is not None:
        console().print(f"trained {outcome['steps']} steps, best at step {outcome['best_step']}: run {outcome['run']}")
    return 0


if __name__ == "__main__":
    run_program(main)
