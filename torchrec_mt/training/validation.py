"""Validation in the run: exact retrieval of a fixed sample of the validation split."""

from torchrec.distributed import DistributedModelParallel

from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.retrieval.evaluator import EvaluateConfig, score
from torchrec_mt.retrieval.measures import asked_depth
from torchrec_mt.retrieval.rank import model_rankers
from torchrec_mt.schema import Schema
from torchrec_mt.training.step import Metrics


def validated_tasks(dataset: PreparedDataset, schema: Schema) -> list[str]:
    """Trained tasks with validation pairs."""
    return [name for name in schema.trained_tasks if dataset.manifest.tasks[name].pairs["valid"]]


def validate(
    model: DistributedModelParallel,
    collator: Collator,
    dataset: PreparedDataset,
    schema: Schema,
    max_anchors: int,
    here: Runtime,
) -> Metrics | None:
    """Metrics by "TASK/METRIC" on a fixed sample of validation anchors; None on all ranks but the main one."""
    config = EvaluateConfig(split="valid", max_anchors=max_anchors, baselines=())
    tasks = validated_tasks(dataset, schema)
    depths = dict.fromkeys(tasks, asked_depth(config.metrics))
    rankers = model_rankers(model, collator, dataset, tasks, config, here.device, depths=depths)
    if not here.is_main:
        return None
    metrics: Metrics = {}
    for name in tasks:
        found = score(dataset, name, rankers[name], config)
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    return metrics
