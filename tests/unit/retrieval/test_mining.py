"""Mined hard negatives against a slow twin: best-ranked first, never a known positive, below the margin."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from tests.ranks import run_on_ranks
from tests.tiny import PRODUCTS, QUERIES, write_tiny
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.links import Links, offsets_of
from torchrec_mt.data.mined import MinedFolder, MinedTask, check_place, write_mined
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval import mining
from torchrec_mt.retrieval.mining import mine_task, of_all_ranks


def links_of(lists: list[list[int]]) -> Links:
    flat = np.array([id_ for one in lists for id_ in sorted(one)], np.int32)
    return Links(offsets_of(np.array([len(one) for one in lists])), flat)


def lists_of(mined: MinedTask) -> list[list[int]]:
    return [part.tolist() for part in np.split(mined.id_L, np.cumsum(mined.length_N)[:-1])]


def vectors(seed: int, rows: int, dim: int = 6) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def twin(
    anchor_ND: Tensor, candidate_ND: Tensor, id_N: list[int], known: list[list[int]], anchors: int, **how: float
) -> list[list[int]]:
    """One anchor, one candidate after the other."""
    result: list[list[int]] = [[] for _ in range(anchors)]
    for vector_D, anchor in zip(anchor_ND, id_N, strict=True):
        scores = (candidate_ND.double() @ vector_D.double()).tolist()
        ranked = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
        ranked = [row for row in ranked if not (how["same_entity"] and row == anchor)][: int(how["depth"])]
        limit = np.mean([scores[row] for row in known[anchor]]) - how["margin"] if known[anchor] else np.inf
        good = [row for row in ranked if row not in known[anchor] and scores[row] <= limit]
        result[anchor] = sorted(good[: int(how["per_anchor"])])
    return result


@given(
    seed=st.integers(0, 1000),
    depth=st.integers(1, 30),
    per_anchor=st.integers(1, 10),
    margin=st.sampled_from([-2.0, -0.3, 0.0, 0.1, 0.4, 2.0]),
    same_entity=st.booleans(),
    chunk=st.sampled_from([1, 3, 2048]),
    first_look=st.sampled_from([1, 8]),
)
def test_mining_against_a_slow_twin(
    seed: int, depth: int, per_anchor: int, margin: float, same_entity: bool, chunk: int, first_look: int
) -> None:
    rng, candidates, anchors = np.random.default_rng(seed), 25, 12
    id_N = np.sort(rng.permutation(anchors)[: rng.integers(0, anchors + 1)])
    known = [rng.permutation(candidates)[: rng.integers(0, 5)].tolist() for _ in range(anchors)]
    anchor_ND, candidate_ND = vectors(seed, len(id_N)), vectors(seed + 5000, candidates)
    with patch.multiple(mining, _FIRST_LOOK=first_look, _DEEPER=2):
        found = mine_task(
            anchor_ND,
            candidate_ND,
            id_N,
            links_of(known),
            anchors=anchors,
            same_entity=same_entity,
            depth=depth,
            per_anchor=per_anchor,
            margin=margin,
            chunk=chunk,
        )
    how = {"depth": depth, "per_anchor": per_anchor, "margin": margin, "same_entity": same_entity}
    assert lists_of(found) == twin(anchor_ND, candidate_ND, id_N.tolist(), known, anchors, **how)
    assert found.length_N.sum() == len(found.id_L)
    assert found.length_N[np.setdiff1d(np.arange(anchors), id_N)].sum() == 0, "only anchors that were asked for"


def test_mining_by_hand() -> None:
    """One anchor along the first axis; candidates by their cosine with it."""
    cosines = torch.tensor([0.95, 0.9, 0.8, 0.6, 0.5, -0.2])
    candidate_ND = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    anchor_ND = torch.tensor([[1.0, 0.0]])

    def mined(depth: int = 6, per_anchor: int = 6, margin: float = 0.0, known: tuple[int, ...] = (1, 3)) -> list[int]:
        links = links_of([list(known)])
        [found] = lists_of(
            mine_task(
                anchor_ND,
                candidate_ND,
                np.array([0]),
                links,
                anchors=1,
                same_entity=False,
                depth=depth,
                per_anchor=per_anchor,
                margin=margin,
            )
        )
        return found

    # The known ones have cosines 0.9 and 0.6: 0.75 on average.
    assert mined() == [4, 5]
    assert mined(margin=-0.1) == [2, 4, 5], "up to 0.85"
    assert mined(margin=-0.21) == [0, 2, 4, 5]
    assert mined(margin=0.3) == [5]
    assert mined(margin=1.0) == []
    assert mined(depth=5) == [4]
    assert mined(depth=4) == []
    assert mined(depth=100) == [4, 5], "deeper than the catalogue"
    assert mined(margin=-2.0, per_anchor=1) == [0], "the best-ranked"
    assert mined(known=(), per_anchor=2) == [0, 1], "without known candidates there is no limit"


@pytest.mark.parametrize("depth", [9_000, 9_001, 100_000])
def test_a_depth_beyond_the_catalogue_is_the_catalogue(depth: int) -> None:
    """Seconds of products and a sort: not the vectors of every pair. A margin that nearly nothing is below."""
    candidate_ND, anchor_ND = vectors(3, 9_000, 64), vectors(4, 300, 64)
    known = [[row] for row in range(300)]
    found = mine_task(
        anchor_ND,
        candidate_ND,
        np.arange(300),
        links_of(known),
        anchors=300,
        same_entity=True,
        depth=depth,
        per_anchor=2,
        margin=0.4,
    )
    score_NN = anchor_ND.double().numpy() @ candidate_ND.double().numpy().T
    for anchor, rows in enumerate(lists_of(found)):
        order = np.argsort(-score_NN[anchor], kind="stable")
        below = order[score_NN[anchor, order] <= score_NN[anchor, anchor] - 0.4]
        assert rows == sorted(below[:2].tolist())
    assert 0 < found.length_N.sum() < 600, "some found fewer in the whole catalogue"


Parts = list[list[int]]
PARTS: list[tuple[Parts, Parts]] = [
    ([[1, 2, 0, 0], [0, 0, 0, 2]], [[1, 2, 0, 2], [0, 1, 2, 10, 11]]),
    ([[1, 2, 0, 0], [0, 0, 0, 0]], [[1, 2, 0, 0], [0, 1, 2]]),
    ([[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], []]),
]
"""How many negatives each of two ranks has found for four anchors; the numbers and the negatives of both."""


def mined_in_parts(cases: list[Parts]) -> list[Parts]:
    rank, wholes = dist.get_rank(), []
    for numbers in cases:
        own = MinedTask(np.array(numbers[rank]), np.arange(sum(numbers[rank])) + 10 * rank)
        whole = of_all_ranks(own, torch.device("cpu"))
        wholes.append([whole.length_N.tolist(), whole.id_L.tolist()])
    return wholes


def test_parts_of_two_ranks() -> None:
    assert run_on_ranks(2, mined_in_parts, [numbers for numbers, _ in PARTS]) == [[whole for _, whole in PARTS]] * 2


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    known, progress = links_of([[]] * 5), lambda done, total: seen.append((done, total))
    mine_task(
        vectors(0, 5),
        vectors(1, 9),
        np.arange(5),
        known,
        anchors=5,
        same_entity=False,
        depth=3,
        per_anchor=2,
        margin=0.0,
        chunk=2,
        progress=progress,
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


def some(rows: list[int]) -> dict[str, MinedTask]:
    """Hard negatives of query 0 in the task `find`."""
    lengths = np.zeros(QUERIES, np.int64)
    lengths[0] = len(rows)
    return {"find": MinedTask(lengths, np.array(rows, np.int64))}


def test_a_folder_is_written_read_and_replaced(dataset: PreparedDataset, tmp_path: Path) -> None:
    path = tmp_path / "deep/mined"
    about = write_mined(path, dataset, some([3, 5, PRODUCTS - 1]), {"depth": 7})
    assert about["tasks"] == {"find": {"anchors": 1, "negatives": 3}}
    assert about["settings"] == {"depth": 7}
    folder = MinedFolder.open(path)
    assert folder.about == about
    owner_L, id_L = folder.of_task(dataset, "find").of(np.array([1, 0]))
    assert (owner_L.tolist(), id_L.tolist()) == ([1, 1, 1], [3, 5, PRODUCTS - 1])
    (path.parent / ".mined.partial").mkdir()  # what an interrupted mining leaves
    write_mined(path, dataset, some([]), {})
    assert MinedFolder.open(path).of_task(dataset, "find").of(np.arange(QUERIES))[1].tolist() == []
    assert [one.name for one in path.parent.iterdir()] == ["mined"]


def _file(path: Path) -> None:
    path.write_text("mine")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize("put", [_file, _folder])
def test_what_is_not_ours_is_not_replaced(
    dataset: PreparedDataset, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path / "there")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for attempt in (check_place, lambda path: write_mined(path, dataset, some([1]), {})):
        with pytest.raises(UserError, match="exists and holds no mined negatives: give another --output"):
            attempt(tmp_path / "there")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")
    check_place(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["{", "", "[]", "{}", '{"digest": 3}', "3"])
def test_a_broken_mark_is_told(dataset: PreparedDataset, tmp_path: Path, text: str) -> None:
    write_mined(tmp_path / "mined", dataset, some([1]), {})
    (tmp_path / "mined/mined.json").write_text(text)
    with pytest.raises(UserError, match=r"mined\.json' is damaged .*: mine again"):
        MinedFolder.open(tmp_path / "mined").of_task(dataset, "find")


def test_a_lost_part_is_told(dataset: PreparedDataset, tmp_path: Path) -> None:
    write_mined(tmp_path / "mined", dataset, some([1]), {})
    (tmp_path / "mined/find/candidates.values.npy").unlink()
    with pytest.raises(UserError, match="mine again"):
        MinedFolder.open(tmp_path / "mined").of_task(dataset, "find")
