"""Methods that weigh tasks by their gradients: the Gram matrix gram_TT of the task gradients -> weights_T.

None depends on the common scale of all gradients. Weights are such that T tasks with orthogonal gradients of one length
weigh 1 each (with cagrad all the same, but more). Solvers are TorchJD's (Quinton & Rey, arXiv 2406.16232) where they
need nothing but torch. Legend: T tasks, G the Gram matrix, g_t a task's gradient.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from torch import Tensor
from torchjd.aggregation import (
    AlignedMTLWeighting,
    IMTLGWeighting,
    MGDAWeighting,
    PCGradWeighting,
    UPGradWeighting,
)
from torchjd.linalg import DualConeProjector

from torchrec_mt.balancing.losses import LEAST_LOSS, State, Vector
from torchrec_mt.balancing.methods import CaGrad, GradNorm, MetaBalance, MultiBalance

Matrix = NDArray[np.float64]

NO_GRADIENT = 1e-12
"""A task whose squared length is at most this share of the longest's has no gradient."""
LEAST_WEIGHT = 1e-3
RIDGE = 1e-6


def of_moving_tasks(function: Callable[[Matrix], Vector], gram_TT: Matrix) -> Vector:
    """`function` of the tasks that have a gradient, its mean squared length made 1; the others weigh 1."""
    square_T = gram_TT.diagonal()
    moving_T = square_T > NO_GRADIENT * square_T.max()
    weights_T = np.ones(len(gram_TT))
    if moving_T.sum() > 1:
        gram = gram_TT[np.ix_(moving_T, moving_T)]
        weights_T[moving_T] = function(gram / gram.diagonal().mean())
    return weights_T


def pcgrad(gram_TT: Matrix, seed: int) -> Vector:
    """Yu et al., NeurIPS 2020: of each task's gradient what points against another's is taken off, in random order.

    Args:
        seed: of the order, the same on all ranks.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # not `manual_seed`: it would seed GPUs, too
    try:
        return _by_torchjd(PCGradWeighting(), gram_TT)
    finally:
        torch.set_rng_state(before)


def mgda(gram_TT: Matrix) -> Vector:
    """Désidéri 2012, by Frank-Wolfe as Sener & Koltun, NeurIPS 2018: the shortest convex combination, times T."""
    return len(gram_TT) * _by_torchjd(MGDAWeighting(), gram_TT)


def upgrad(gram_TT: Matrix) -> Vector:
    """Quinton & Rey, arXiv 2406.16232: each gradient projected onto the cone of directions that harm no task."""
    return len(gram_TT) * _by_torchjd(UPGradWeighting(projector=_NonNegativeProjector()), gram_TT)


def aligned_mtl(gram_TT: Matrix) -> Vector:
    """Senushkin et al., CVPR 2023: the gradients' principal components all made as long as the shortest."""
    return len(gram_TT) * _by_torchjd(AlignedMTLWeighting(), gram_TT)


def imtl_g(gram_TT: Matrix) -> Vector:
    """Liu et al., ICLR 2021: the sum has the same projection on every task's direction. Single weights can be negative.

    The paper's weights sum to 1, whatever way the projections then point; here they point forward.
    """
    weights_T = len(gram_TT) * _by_torchjd(IMTLGWeighting(), gram_TT)
    projections_T = gram_TT @ weights_T / np.sqrt(gram_TT.diagonal())
    return weights_T if projections_T.sum() >= 0 else -weights_T


def cagrad(method: CaGrad, gram_TT: Matrix) -> Vector:
    """Liu et al., NeurIPS 2021 (algorithm 1): within radius |g_0| of the mean gradient g_0, the direction in which the
    worst task fares best. Nothing moves where no direction helps all.

    The dual over the simplex is solved by SLSQP, as in the authors' code.
    """
    tasks = len(gram_TT)
    mean_T = gram_TT.mean(axis=1)
    reach = method.radius * max(float(mean_T.mean()), 0.0) ** 0.5

    def length(share_T: Vector) -> float:
        return max(float(share_T @ gram_TT @ share_T), 0.0) ** 0.5

    found = minimize(
        lambda share_T: share_T @ mean_T + reach * length(share_T),
        np.full(tasks, 1 / tasks),
        jac=lambda share_T: mean_T + reach * (gram_TT @ share_T) / max(length(share_T), 1e-12),
        bounds=[(0, 1)] * tasks,
        constraints={"type": "eq", "fun": lambda share_T: share_T.sum() - 1, "jac": lambda _: np.ones(tasks)},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    if length(found.x) < 1e-6:
        return np.zeros(tasks)
    return 1 + tasks * reach / length(found.x) * found.x


def nash_mtl(gram_TT: Matrix) -> Vector:
    """Navon et al., ICML 2022: the bargaining solution G w = 1 / w, scaled to sum T.

    It is where the convex w G w / 2 - sum of log w is least, which damped Newton steps find; the authors solve a series
    of other convex problems. Lengths only divide the weights, so that cosines are solved for. A little is added to
    their diagonal: opposite gradients have no solution.
    """
    tasks, length_T = len(gram_TT), np.sqrt(gram_TT.diagonal())
    cosine_TT = gram_TT / np.outer(length_T, length_T) + RIDGE * np.eye(tasks)
    weights_T = np.ones(tasks)
    for _ in range(200):
        gradient_T = cosine_TT @ weights_T - 1 / weights_T
        step_T = np.linalg.solve(cosine_TT + np.diag(weights_T**-2), gradient_T)
        decrement = np.sqrt(max(gradient_T @ step_T, 0.0))
        weights_T = weights_T - step_T / (1 + decrement)  # stays above 0: the function is self-concordant
        if decrement < 1e-12:
            break
    weights_T = weights_T / length_T
    return tasks * weights_T / weights_T.sum()


def gradnorm(method: GradNorm, losses_T: Vector, gram_TT: Matrix, state: State) -> tuple[Vector, State]:
    """Chen et al., ICML 2018: weights are learned so that weighted gradients have the lengths mean * r^alpha, where r
    says how much less than the others' a task's loss has fallen. They sum to T.

    Lengths are divided by their mean, so that `rate` does not depend on the gradients' scale.
    """
    first_T = np.array(state.get("first_losses", losses_T))
    weights_T = np.array(state.get("weights", np.ones(len(losses_T))))
    length_T = np.sqrt(gram_TT.diagonal())
    length_T = length_T / max(length_T.mean(), np.finfo(float).tiny)
    left_T = np.maximum(losses_T, LEAST_LOSS) / np.maximum(first_T, LEAST_LOSS)
    target_T = (weights_T * length_T).mean() * (left_T / left_T.mean()) ** method.alpha
    weights_T = weights_T - method.rate * np.sign(weights_T * length_T - target_T) * length_T
    weights_T = np.maximum(weights_T, LEAST_WEIGHT)
    weights_T = len(weights_T) * weights_T / weights_T.sum()
    return weights_T, {"first_losses": first_T.tolist(), "weights": weights_T.tolist()}


def multibalance(method: MultiBalance, gram_TT: Matrix, state: State) -> tuple[Vector, State]:
    """After MultiBalance, He et al., arXiv 2411.11871: the shortest convex combination of the gradients at the shared
    representation, which the weights follow by one projected gradient step at a time instead of solving for it; times
    T. `average` smooths what it follows."""
    tasks = len(gram_TT)
    share_T = np.array(state.get("shares", np.full(tasks, 1 / tasks)))
    scale = max(gram_TT.diagonal().mean(), np.finfo(float).tiny)
    share_T = onto_simplex(share_T - method.rate * (gram_TT / scale) @ share_T)
    return tasks * share_T, {"shares": share_T.tolist()}


def metabalance(method: MetaBalance, gram_TT: Matrix, target: int) -> Vector:
    """He et al., WWW 2022: other tasks' gradients are scaled towards the length of the target's. `average` stands for
    the paper's moving average of lengths.

    Args:
        target: its place among the tasks.
    """
    length_T = np.sqrt(gram_TT.diagonal())
    ratio_T = np.divide(length_T[target], length_T, out=np.ones(len(length_T)), where=length_T > 0)
    match method.strategy:
        case "reduce":
            ratio_T = np.minimum(ratio_T, 1.0)
        case "enlarge":
            ratio_T = np.maximum(ratio_T, 1.0)
    return method.relax * ratio_T + 1 - method.relax


def onto_simplex(x_T: Vector) -> Vector:
    """The nearest shares, at least 0 with sum 1 (Duchi et al., ICML 2008)."""
    falling_T = np.sort(x_T)[::-1]
    excess_T = (falling_T.cumsum() - 1) / np.arange(1, len(x_T) + 1)
    return np.maximum(x_T - excess_T[np.nonzero(falling_T > excess_T)[0][-1]], 0.0)


def _by_torchjd(weighting: Callable[[Tensor], Tensor], gram_TT: Matrix) -> Vector:
    return weighting(torch.from_numpy(gram_TT)).numpy()


class _NonNegativeProjector(DualConeProjector):
    """TorchJD's projection by non-negative least squares; its own solver is under the GPL.

    The least v G v with v >= u is that of |A (u + z)| with z >= 0 and A^T A = G.
    """

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:
        value_T, vector_TT = np.linalg.eigh(G.numpy())
        root_TT = np.sqrt(np.maximum(value_T, 0))[:, None] * vector_TT.T
        return torch.from_numpy(np.stack([u_T + nnls(root_TT, -root_TT @ u_T)[0] for u_T in U.numpy()]))
