"""The judgement of a run from its whole config: model, baselines, records, page."""

import json
from functools import partial
from pathlib import Path

from torchrec_mt.config import RunConfig, open_dataset
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.reporting.page import evaluation_page, page_path, samples_path
from torchrec_mt.reporting.terminal import progress_bar
from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.baselines.rankers import baseline_rankers
from torchrec_mt.retrieval.encode import candidates_of, vectors_of
from torchrec_mt.retrieval.evaluator import EvaluateConfig, evaluate_tasks, judged_tasks, ranked_depth, terms
from torchrec_mt.retrieval.rank import model_rankers
from torchrec_mt.retrieval.records import records_path, writing_records
from torchrec_mt.retrieval.results import MODEL
from torchrec_mt.retrieval.samples import choose, encode_chosen, samples_json
from torchrec_mt.retrieval.slices import slice_columns
from torchrec_mt.runs import RunFolder, write_atomic
from torchrec_mt.training.keeper import BEST
from torchrec_mt.training.trained import load_run_model


def evaluate_here(
    run: RunFolder, config: RunConfig, here: Runtime, *, path: Path, which: str = BEST
) -> dict[str, object] | None:
    """All tasks that the run trained, model and baselines, in a job that was joined already. Called on every rank.

    Args:
        path: where the judgement goes; its records, page and samples beside it. which: of the kept models.

    Returns:
        The judgement as JSON, on the main rank.
    """
    dataset, schema = open_dataset(config)
    run.check_dataset(dataset.manifest.digest, schema.path)
    columns = slice_columns(dataset, config.evaluate.slices)
    with progress_bar(enabled=here.is_main) as bar:
        line = bar.add_task("evaluate", total=None, note="")

        def show(stage: str, done: int, total: int) -> None:
            bar.update(line, description=f"evaluate: {stage}", completed=done, total=total)

        show("load", 0, 1)
        model = load_run_model(
            run,
            dataset,
            schema,
            config.model,
            config.loss,
            config.sharding,
            config.checkpoint,
            runtime=here,
            which=which,
        )
        tasks = judged_tasks(dataset, config.evaluate)
        collator = Collator(dataset)
        models = model_rankers(
            model,
            collator,
            dataset,
            tasks,
            config.evaluate,
            here.device,
            depths={name: ranked_depth(dataset, name, config.evaluate) for name in tasks},
            folder=path.parent if config.evaluate.vectors == "disk" else None,
            progress=show,
        )
        info = dataset.manifest.tasks
        sides = {name: candidates_of(model, info[name].trained_as or name) for name in tasks}
        sampled = on_main(lambda: choose(dataset, models, config.evaluate))
        encoded = encode_chosen(dataset, sampled, vectors_of(model, collator, here.device), sides)

        def judge() -> dict[str, object]:
            rankers = {name: partial(_systems, dataset, name, config.evaluate, models[name]) for name in tasks}
            about = terms(config.evaluate, which, dataset.manifest.digest)
            with writing_records(records_path(path), dataset, about, config.evaluate.metrics, columns) as records:
                evaluation = evaluate_tasks(dataset, rankers, config.evaluate, progress=show, records=records)
            found = evaluation.to_json(which, dataset.manifest.digest)
            write_atomic(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
            samples = samples_json(dataset, sampled, *encoded, run=run.path.resolve().name)
            write_atomic(samples_path(path), json.dumps(samples, allow_nan=False) + "\n")
            write_atomic(page_path(path), evaluation_page(found, samples))
            return found

        evaluation = on_main(judge)
        return evaluation if here.is_main else None


def _systems(dataset: PreparedDataset, task: str, config: EvaluateConfig, model: Ranker) -> dict[str, Ranker]:
    """The model of a task and its baselines."""
    return {MODEL: model, **baseline_rankers(dataset, task, config, model=model)}
