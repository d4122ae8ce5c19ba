"""ALS and BPR: what they must find, that they repeat, and the loss that ALS is to lower."""

import pytest

from tests.tiny import TASKS
from tests.unit.retrieval.baselines.worlds import SEEN_PRODUCTS, SEEN_QUERIES, anchors_of, small_world
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.factors import als, bpr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "tiny")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rival", [als, bpr])
def test_most_of_what_is_found_is_of_the_right_group(world: PreparedDataset, task: str, rival: object) -> None:
    seen = anchors_of(task)[: SEEN_QUERIES if task == "find" else SEEN_PRODUCTS]
    ranked_BK = (als if rival is als else bpr)(world, task)(seen, 5)
    wanted_B = (seen + (task == "goes_with")) % 6
    assert (ranked_BK % 6 == wanted_B[:, None]).mean() > 0.6  # by chance 1 in 6; a fifth of the pairs is noise
    assert (ranked_BK < SEEN_PRODUCTS).all()


@pytest.mark.parametrize("task", TASKS)
def test_they_repeat(world: PreparedDataset, task: str) -> None:
    for rival in (als, bpr):
        first, second = (rival(world, task)(anchors_of(task), 20) for _ in range(2))
        assert first.tolist() == second.tolist()
