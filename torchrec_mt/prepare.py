"""torchrec-mt prepare CONFIG.toml ...: raw tables in, prepared dataset out. Does nothing where nothing changed."""

import argparse
import json
from collections.abc import Sequence

from torchrec_mt.config import RunConfig, add_config_arguments, load_config
from torchrec_mt.data.dataset import MANIFEST
from torchrec_mt.data.preparation import PreparedResult, check_output, check_schema, prepare, relative_paths
from torchrec_mt.data.sources import check_truth, materialise
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.dataset import dataset_tables
from torchrec_mt.reporting.terminal import console, progress_bar, progress_console
from torchrec_mt.storage import Output


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(prog="torchrec-mt prepare", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--permutation-check",
        action="store_true",
        help="also count the pairs each group rule finds after shuffling items over events: what chance alone gives",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    return parser


def prepare_dataset(config: RunConfig, *, permutation_check: bool = False) -> PreparedResult:
    """Materialises the source's raw tables and prepares them, with a progress bar.

    Raises:
        UserError: what can be told without a look at the data is told before anything is written.
    """
    dataset = config.dataset
    check_schema(dataset)
    check_truth(dataset.source, dataset)
    target = Output(dataset.path, mark=MANIFEST)
    output = target.folder()
    check_output(output)
    with progress_bar() as bar:
        task = bar.add_task("prepare", total=None, note="")

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"prepare: {stage}", completed=done, total=total)

        show("raw tables", 0, 1)
        raw, fingerprint = materialise(dataset.source, output.with_name(f"{output.name}.raw"), relative_paths(dataset))
        result = prepare(
            dataset,
            name=dataset.name,
            raw=raw,
            output=output,
            progress=show,
            permutation_check=permutation_check,
            source_fingerprint=fingerprint,
        )
        show("write", 0, 1)
        target.push()
        return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    result = prepare_dataset(config, permutation_check=arguments.permutation_check)
    if result.why:
        progress_console().print(f"prepared anew: {result.why}", highlight=False, markup=False, soft_wrap=True)
    if arguments.json:
        print((result.dataset.path / "manifest.json").read_text(), end="")
        return 0
    for table in dataset_tables(json.loads((result.dataset.path / "manifest.json").read_text())):
        console().print(table)
    console().print(f"{'prepared' if result.fresh else 'unchanged, nothing to do:'} {config.dataset.path}")
    return 0


if __name__ == "__main__":
    run_program(main)
