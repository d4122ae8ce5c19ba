"""The baselines that a config asks for, as rankers."""

from functools import cache

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.bm25 import bm25
from torchrec_mt.retrieval.baselines.counting import chance, co_occurrence, popularity
from torchrec_mt.retrieval.baselines.ease import ease
from torchrec_mt.retrieval.baselines.factors import als, bpr
from torchrec_mt.retrieval.baselines.fusion import fusion
from torchrec_mt.retrieval.baselines.names import Baseline
from torchrec_mt.retrieval.baselines.neighbours import item_knn, two_hops
from torchrec_mt.retrieval.baselines.oracle import oracle
from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.evaluator import EvaluateConfig


def baseline_rankers(
    dataset: PreparedDataset, task: str, config: EvaluateConfig, *, model: Ranker | None = None
) -> dict[str, Ranker]:
    """The baselines that the config asks for and the task allows, in the config's order.

    Args:
        model: what "fusion" fuses with BM25; without it there is no fusion.
    """

    @cache  # for two rivals
    def words() -> Ranker | None:
        return bm25(dataset, task)

    def built(name: Baseline) -> Ranker | None:
        match name:
            case "random":
                return chance(dataset, task)
            case "popularity":
                return popularity(dataset, task)
            case "bm25_text":
                return bm25(dataset, task, categories=False)
            case "bm25":
                return words()
            case "co_occurrence":
                return co_occurrence(dataset, task)
            case "co_occurrence_cosine":
                return co_occurrence(dataset, task, discount=0.5)
            case "co_occurrence_lift":
                return co_occurrence(dataset, task, discount=1.0)
            case "two_hops":
                return two_hops(dataset, task)
            case "item_knn":
                return item_knn(dataset, task)
            case "ease":
                return ease(dataset, task)
            case "als":
                return als(dataset, task)
            case "bpr":
                return bpr(dataset, task)
            case "fusion":
                known = words()
                return None if known is None or model is None else fusion([known, model])
            case "oracle":
                return oracle(dataset, task, config.split)

    rankers = {name: built(name) for name in config.baselines}
    return {name: ranker for name, ranker in rankers.items() if ranker is not None}
