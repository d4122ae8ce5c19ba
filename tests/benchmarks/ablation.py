"""`make ablation CONFIG=launch/demo.toml`: what each part of the learning signal is worth, 3 seeds, one table.

Every variant is a run of the config with a few keys set; finished runs are taken as they are, so it can be stopped and
started again. Prints mean and standard deviation over seeds of the test Recall@10 and Recall@100 per task.
"""

import argparse
import contextlib
import io
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from torchrec_mt.config import load_config
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.mine import main as mine
from torchrec_mt.prepare import main as prepare
from torchrec_mt.train import main as train

IN_BATCH, UNIFORM = '{kind="in_batch"}', '{kind="uniform", count=1024}'
MEMORY, MINED = '{kind="memory", size=8192, warmup=10}', '{kind="mined", path="MINED", count=4}'
PLAIN = ('negatives.logq="off"', 'negatives.mask="none"')


def _sources(*sources: str) -> str:
    return f"negatives.sources=[{', '.join(sources)}]"


# Each line adds one thing to the line it names, or changes one thing of the default ("+ masks").
VARIANTS: dict[str, tuple[str, ...]] = {
    "in-batch": (_sources(IN_BATCH), *PLAIN),
    "in-batch, masks": (_sources(IN_BATCH), 'negatives.logq="off"'),
    "in-batch, masks, symmetric": (_sources(IN_BATCH), 'negatives.logq="off"', "loss.default={symmetric=true}"),
    "in-batch, masks, logQ": (_sources(IN_BATCH),),
    "+ uniform": (_sources(IN_BATCH, UNIFORM), *PLAIN),
    "+ logQ": (_sources(IN_BATCH, UNIFORM), 'negatives.logq="refined"', 'negatives.mask="none"'),
    "+ masks": (_sources(IN_BATCH, UNIFORM), 'negatives.logq="refined"', 'negatives.mask="known"'),
    "+ masks + memory": (_sources(IN_BATCH, UNIFORM, MEMORY),),
    "+ masks + mined": (_sources(IN_BATCH, UNIFORM, MINED),),
    "standard logQ": (_sources(IN_BATCH, UNIFORM), 'negatives.logq="standard"'),
    "streaming logQ": (_sources(IN_BATCH, UNIFORM), 'negatives.frequencies={kind="streaming"}'),
    "+ popularity": (_sources(IN_BATCH, UNIFORM, '{kind="popularity", count=512}'),),
    "symmetric": (_sources(IN_BATCH, UNIFORM), "loss.default={symmetric=true}"),
    "smoothing .1": (_sources(IN_BATCH, UNIFORM), "loss.default={label_smoothing=0.1}"),
    "bce": (_sources(IN_BATCH, UNIFORM), 'loss.default={kind="bce"}'),
    "margin": (_sources(IN_BATCH, UNIFORM), 'loss.default={kind="margin"}'),
    "float32": (_sources(IN_BATCH, UNIFORM), 'loss.precision="float32"'),
}
BASE = "+ masks"
Scores = dict[str, dict[str, float]]


def score(config: str, overrides: list[str], folder: Path, name: str, seed: int) -> Scores:
    """Test metrics of the model by task; trains where they are not there yet."""
    run = folder / f"{name.replace(' ', '')}-{seed}"
    judged = run / "evaluation/metrics.json"
    if not judged.exists():
        settings = list(VARIANTS[name])
        if any("MINED" in setting for setting in settings):
            base = folder / f"{BASE.replace(' ', '')}-{seed}"
            if not (base / "mined").exists():
                mine([str(base), "--json"])
            settings = [setting.replace("MINED", str(base / "mined")) for setting in settings]
        keys = [f"--set={key}" for key in [*overrides, *settings, f"runtime.seed={seed}"]]
        train([config, *keys, "--output", str(run), "--overwrite", "--json"])
        evaluate([str(run), "--json"])
    tasks = json.loads(judged.read_text())["tasks"]
    return {task: found["systems"]["model"] for task, found in tasks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="runs/ablation")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    config = load_config([arguments.config], arguments.overrides)
    folder = Path(arguments.output) / config.dataset.name
    tasks = list(config.dataset.trained_tasks)
    prepare([arguments.config, *(f"--set={key}" for key in arguments.overrides)])
    table = Table("variant", *(f"{task} {metric}" for task in tasks for metric in ("R@10", "R@100")), box=None)
    for name in arguments.only:
        found = []
        for seed in range(arguments.seeds):
            with contextlib.redirect_stdout(io.StringIO()):
                found.append(score(arguments.config, arguments.overrides, folder, name, seed))
        cells = []
        for task in tasks:
            for metric in ("recall@10", "recall@100"):
                values = [scores[task][metric] for scores in found]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        print(f"{name}: {' | '.join(cells)}", flush=True)
        table.add_row(name, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
