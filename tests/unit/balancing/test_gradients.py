"""Gradient-side methods: values by hand, what the papers promise, and other ways to the same weights."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from torchrec_mt.balancing import gradients
from torchrec_mt.balancing.gradients import Matrix, of_moving_tasks
from torchrec_mt.balancing.losses import Vector
from torchrec_mt.balancing.methods import CaGrad, GradNorm, MetaBalance, MultiBalance

METHODS: dict[str, Callable[[Matrix], Vector]] = {
    "pcgrad": lambda gram: gradients.pcgrad(gram, 0),
    "cagrad": lambda gram: gradients.cagrad(CaGrad(), gram),
    "mgda": gradients.mgda,
    "nash_mtl": gradients.nash_mtl,
    "upgrad": gradients.upgrad,
    "aligned_mtl": gradients.aligned_mtl,
    "imtl_g": gradients.imtl_g,
    "metabalance": lambda gram: gradients.metabalance(MetaBalance(target="a", relax=1.0), gram, 0),
}
# The rows in conflict that TorchJD's pages compute with, orthogonal rows of lengths 1 and 2, and two that agree.
CONFLICT, ORTHOGONAL, AGREE = [[-4, 1, 1], [6, 1, 1]], [[1, 0], [0, 2]], [[1, 0], [1, 1]]
# By hand. CONFLICT: G = [[18, -22], [-22, 38]].
BY_HAND = [
    ("pcgrad", CONFLICT, [1 + 22 / 38 + 0, 1 + 22 / 18], "swapped"),
    ("mgda", CONFLICT, [2 * 60 / 100, 2 * 40 / 100], ""),
    ("upgrad", CONFLICT, [1 + 22 / 18, 1 + 22 / 38], ""),
    ("imtl_g", CONFLICT, [2 / (1 + (18 / 38) ** 0.5), 2 / (1 + (38 / 18) ** 0.5)], ""),
    ("nash_mtl", CONFLICT, [2 / (1 + (18 / 38) ** 0.5), 2 / (1 + (38 / 18) ** 0.5)], ""),
    ("metabalance", CONFLICT, [1, (18 / 38) ** 0.5], ""),
    ("pcgrad", ORTHOGONAL, [1, 1], ""),
    ("mgda", ORTHOGONAL, [8 / 5, 2 / 5], ""),
    ("upgrad", ORTHOGONAL, [1, 1], ""),
    ("aligned_mtl", ORTHOGONAL, [1, 1 / 2], ""),
    ("imtl_g", ORTHOGONAL, [4 / 3, 2 / 3], ""),
    ("nash_mtl", ORTHOGONAL, [4 / 3, 2 / 3], ""),
    ("metabalance", ORTHOGONAL, [1, 1 / 2], ""),
    ("pcgrad", AGREE, [1, 1], ""),
    ("mgda", AGREE, [2, 0], ""),
    ("upgrad", AGREE, [1, 1], ""),
]


def jacobians(tasks: int, width: int = 5, count: int = 20) -> list[Matrix]:
    """Task gradients that point anywhere; rows differ in length by up to 30 times."""
    rng = np.random.default_rng(tasks)
    return [rng.normal(size=(tasks, width)) * 10 ** rng.uniform(-0.75, 0.75, (tasks, 1)) for _ in range(count)]


def weights(name: str, jacobian: Matrix) -> Vector:
    return of_moving_tasks(METHODS[name], jacobian @ jacobian.T)


@pytest.mark.parametrize(("name", "rows", "wanted", "order"), BY_HAND)
def test_by_hand(name: str, rows: list[list[float]], wanted: list[float], order: str) -> None:
    found = weights(name, np.array(rows, float))
    np.testing.assert_allclose(found, wanted[::-1] if order else wanted, rtol=2e-5, atol=1e-9)


def test_cagrad_by_hand() -> None:
    # Orthogonal gradients of one length: g_0 = (1/2, 1/2), |g_0| = 1/sqrt(2), shares 1/2, |g_w| the same.
    np.testing.assert_allclose(weights("cagrad", np.eye(2)), [1.4, 1.4], rtol=1e-6)
    np.testing.assert_allclose(gradients.cagrad(CaGrad(radius=0.0), np.eye(3)), np.ones(3))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tasks", [2, 3])
def test_renamed_tasks_weigh_the_same_and_the_common_scale_says_nothing(name: str, tasks: int) -> None:
    for jacobian in jacobians(tasks):
        found = weights(name, jacobian)
        np.testing.assert_allclose(weights(name, 1e-5 * jacobian), found, rtol=1e-3, atol=1e-4)
        # Of three tasks, PCGrad's order is random; the target of MetaBalance is the first.
        if name != "metabalance" and (name, tasks) != ("pcgrad", 3):
            np.testing.assert_allclose(weights(name, jacobian[::-1])[::-1], found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_one_task_and_tasks_without_gradient_weigh_1(name: str) -> None:
    assert weights(name, np.array([[3.0, 4.0]])).tolist() == [1.0]
    assert weights(name, np.zeros((3, 4))).tolist() == [1.0, 1.0, 1.0]
    found = weights(name, np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
    assert found[1] == 1.0
    np.testing.assert_allclose(found[[0, 2]], weights(name, np.array([[1.0, 0.0], [1.0, 1.0]])), rtol=1e-12)


# PCGrad promises it for two tasks.
@pytest.mark.parametrize(
    ("name", "tasks"), [("pcgrad", 2), *((name, n) for name in ("mgda", "upgrad", "nash_mtl") for n in (2, 3, 4))]
)
def test_no_task_is_harmed(name: str, tasks: int) -> None:
    conflicts = 0
    for jacobian in jacobians(tasks):
        lengths = np.linalg.norm(jacobian, axis=1)
        direction = weights(name, jacobian) @ jacobian
        # Frank-Wolfe stops at a step of 0.001.
        tolerance = 0.02 if name == "mgda" else 1e-6
        assert (jacobian @ direction / lengths >= -tolerance * max(np.linalg.norm(direction), 1)).all()
        conflicts += bool((jacobian @ jacobian.sum(axis=0) < 0).any())
    assert conflicts > 2, "the plain sum harms one"


@pytest.mark.parametrize("name", ["imtl_g", "nash_mtl"])
def test_the_direction_does_not_depend_on_the_scale_of_a_loss(name: str) -> None:
    for jacobian in jacobians(3):
        scaled = jacobian * np.array([[1.0], [7.0], [0.2]])
        one, other = weights(name, jacobian) @ jacobian, weights(name, scaled) @ scaled
        np.testing.assert_allclose(one / np.linalg.norm(one), other / np.linalg.norm(other), rtol=1e-3, atol=1e-3)


def test_imtl_g_projects_alike_on_every_task() -> None:
    for jacobian in jacobians(3):
        projected = jacobian @ (weights("imtl_g", jacobian) @ jacobian) / np.linalg.norm(jacobian, axis=1)
        np.testing.assert_allclose(projected, projected.mean(), rtol=1e-6)
        assert projected.mean() > 0


def test_nash_is_the_bargaining_solution() -> None:
    for jacobian in jacobians(4):
        found = weights("nash_mtl", jacobian)
        product = found * (jacobian @ (found @ jacobian))  # w * G w is 1 but for the scale
        np.testing.assert_allclose(product / product.mean(), 1, rtol=1e-3)
        assert found.sum() == pytest.approx(4)


def test_upgrad_against_every_set_of_active_constraints() -> None:
    for jacobian in jacobians(3):
        gram = jacobian @ jacobian.T
        wanted = sum(project_by_all_sets(gram, unit) for unit in np.eye(3))
        np.testing.assert_allclose(weights("upgrad", jacobian) @ jacobian, wanted @ jacobian, rtol=1e-6, atol=1e-8)


def project_by_all_sets(gram: Matrix, least: Vector) -> Vector:
    """The least v G v with v >= least: the best of the feasible solutions with some entries held at their bound."""
    tasks, best, found = len(gram), np.inf, least
    for size in range(tasks + 1):
        for free in combinations(range(tasks), size):
            v, chosen = least.astype(float), list(free)
            held = [row for row in range(tasks) if row not in free]
            if chosen:
                v[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], -gram[np.ix_(chosen, held)] @ least[held])
            if (v >= least - 1e-12).all() and v @ gram @ v < best:
                best, found = v @ gram @ v, v
    return found


def test_mgda_is_the_shortest_convex_combination() -> None:
    rng = np.random.default_rng(0)
    for jacobian in jacobians(3):
        shortest = np.linalg.norm(weights("mgda", jacobian) / 3 @ jacobian)
        others = np.linalg.norm(rng.dirichlet(np.ones(3), 2000) @ jacobian, axis=1)
        assert shortest <= others.min() * (1 + 1e-3) + 1e-3 * np.linalg.norm(jacobian)


def test_cagrad_helps_the_worst_task_most_within_its_radius() -> None:
    rng = np.random.default_rng(0)
    for jacobian in jacobians(3):
        mean = jacobian.mean(axis=0)
        direction = weights("cagrad", jacobian) / 3 @ jacobian
        reach = 0.4 * np.linalg.norm(mean)
        assert np.linalg.norm(direction - mean) == pytest.approx(reach, rel=1e-3)
        around = rng.normal(size=(5000, 5))
        around *= reach / np.linalg.norm(around, axis=1, keepdims=True)
        assert (jacobian @ direction).min() >= ((mean + around) @ jacobian.T).min(axis=1).max() - 1e-4


def test_pcgrad_leaves_the_random_state_alone_and_follows_its_seed() -> None:
    gram = next(
        j @ j.T for j in jacobians(4, width=3) if len({tuple(gradients.pcgrad(j @ j.T, s)) for s in range(9)}) > 1
    )
    before = torch.get_rng_state()
    assert gradients.pcgrad(gram, 3).tolist() == gradients.pcgrad(gram, 3).tolist()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradnorm_takes_the_step_of_the_paper() -> None:
    """Autograd of the paper's loss |w |g| - mean * r^alpha|, targets held fixed."""
    method, gram = GradNorm(rate=0.1, alpha=1.5), np.diag([4.0, 1.0, 1.0])
    first, later = np.array([1.0, 1.0, 1.0]), np.array([0.5, 1.0, 0.75])
    begun, state = gradients.gradnorm(method, first, gram, {})
    found, _ = gradients.gradnorm(method, later, gram, state)
    length = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64) / (4 / 3)
    learned = torch.tensor(begun, requires_grad=True)
    weighted = learned * length
    left = torch.tensor(later / later.mean())
    (weighted - (weighted.mean() * left**1.5).detach()).abs().sum().backward()
    assert learned.grad is not None
    wanted = (learned - 0.1 * learned.grad).detach()
    np.testing.assert_allclose(found, 3 * wanted / wanted.sum(), rtol=1e-12)


def test_gradnorm_makes_gradients_alike_where_losses_fall_alike() -> None:
    method, state, gram = GradNorm(rate=0.01), {}, np.diag([4.0, 1.0, 0.25])
    for _ in range(500):
        found, state = gradients.gradnorm(method, np.ones(3), gram, state)
    np.testing.assert_allclose(found * [2, 1, 0.5], (found * [2, 1, 0.5]).mean(), rtol=0.05)
    assert found.sum() == pytest.approx(3)


def test_multibalance_comes_to_the_shortest_combination() -> None:
    for jacobian in jacobians(3, count=5):
        state, gram = {}, jacobian @ jacobian.T
        for _ in range(5000):
            found, state = gradients.multibalance(MultiBalance(rate=0.2), gram, state)
        np.testing.assert_allclose(found, weights("mgda", jacobian), atol=0.1)
        assert found.sum() == pytest.approx(3)


def test_metabalance_strategies() -> None:
    gram = np.diag([1.0, 4.0, 0.25])
    for strategy, wanted in (("both", [1, 0.5, 2]), ("reduce", [1, 0.5, 1]), ("enlarge", [1, 1, 2])):
        method = MetaBalance(target="a", relax=0.5, strategy=strategy)
        np.testing.assert_allclose(gradients.metabalance(method, gram, 0), (np.array(wanted) + 1) / 2)


def test_onto_simplex() -> None:
    for x, wanted in (([0.2, 0.8], [0.2, 0.8]), ([1.0, 1.0], [0.5, 0.5]), ([2.0, 0.0, -1.0], [1, 0, 0])):
        np.testing.assert_allclose(gradients.onto_simplex(np.array(x)), wanted)
