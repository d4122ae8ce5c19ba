"""The map: neighbours stay neighbours, whatever the graph of neighbours is like."""

import numpy as np
import pytest

from torchrec_mt.retrieval.layout import agreement, nearest, plane


def bundles(sizes: list[int], width: int = 32, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around a direction each, and which."""
    rng = np.random.default_rng(1)
    label_N = np.repeat(np.arange(len(sizes)), sizes)
    vector_ND = np.eye(width)[label_N] + rng.normal(scale=spread, size=(len(label_N), width))
    return (vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)).astype(np.float32), label_N


def near_on_the_map(place_N2: np.ndarray, neighbours: int) -> np.ndarray:
    distance_NN = np.linalg.norm(place_N2[:, None] - place_N2[None], axis=2)
    return np.argsort(distance_NN, axis=1)[:, 1 : neighbours + 1]


@pytest.mark.parametrize("sizes", [[40, 40, 40], [200, 20, 60, 30], [90, 3, 50]])
def test_neighbours_on_the_map_are_of_the_same_bundle(sizes: list[int]) -> None:
    vector_ND, label_N = bundles(sizes)
    place_N2 = plane(vector_ND)
    assert place_N2.shape == (sum(sizes), 2)
    assert (place_N2.min(axis=0) == 0).all()
    assert (place_N2.max(axis=0) == 1).all()
    assert agreement(near_on_the_map(place_N2, 5), label_N) > 0.85
    np.testing.assert_array_equal(place_N2, plane(vector_ND))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
def test_few_points_have_a_place_each(count: int) -> None:
    place_N2 = plane(bundles([count])[0])
    assert place_N2.shape == (count, 2)
    assert ((place_N2 >= 0) & (place_N2 <= 1)).all()


def test_equal_vectors_have_places_too() -> None:
    assert np.isfinite(plane(np.tile(np.eye(4, dtype=np.float32)[:1], (30, 1)))).all()


def test_nearest_equal_a_sort() -> None:
    vector_ND, label_N = bundles([9, 14, 7])
    near_NK = nearest(vector_ND, 4)
    for row, near_K in enumerate(near_NK):
        order = np.argsort(-(vector_ND @ vector_ND[row]))
        assert set(near_K.tolist()) == set(order[order != row][:4].tolist())
    assert agreement(near_NK, label_N) == np.mean(
        [label_N[near] == label_N[row] for row in range(30) for near in near_NK[row]]
    )
    assert nearest(vector_ND[:3], 10).shape == (3, 2)
