"""The oracle: the ceiling of every table, never a rival."""

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset, Split
from torchrec_mt.retrieval.baselines.ranker import Ranker, same_entity, without_self


def oracle(dataset: PreparedDataset, task: str, split: Split) -> Ranker:
    """The best possible ranking: by the truth where the data knows it, else the split's own pairs, best grade first.

    The truth is that of the test period (its catalogue, its preferences), so only the test split is ranked by it: on
    the validation split the oracle ranks the split's own pairs, whatever the data knows.
    """
    info, same = dataset.manifest.tasks[task], same_entity(dataset, task)
    if split == "test" and dataset.truth_path(task).exists():
        truth = dataset.read(dataset.truth_path(task), ["anchor", "candidate"])
        anchor, candidate = truth["anchor"].to_numpy(), truth["candidate"].to_numpy()  # they lie best first
    else:
        pairs = dataset.pairs(task, split)
        anchor = pairs["anchor"]
        candidate = pairs["candidate"][np.lexsort((pairs["candidate"], -pairs["grade"], anchor))]
    count = dataset.manifest.entities[info.anchor].count
    offsets = np.concatenate([[0], np.cumsum(np.bincount(anchor, minlength=count))])

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        width = k + 1
        at_BK = offsets[anchor_B][:, None] + np.arange(width)
        inside = at_BK < offsets[anchor_B + 1][:, None]
        ranked = np.where(inside, candidate[np.minimum(at_BK, max(len(candidate) - 1, 0))], -1)
        return without_self(ranked, anchor_B, k, same_entity=same)

    return rank
