"""Loss-side methods: values by hand, other ways to the same weights."""

import numpy as np
import pytest
import torch
from torchjd.scalarization import DWA, UW

from torchrec_mt.balancing import losses
from torchrec_mt.balancing.losses import State
from torchrec_mt.balancing.methods import Dwa, Famo, Uncertainty

STEPS = np.random.default_rng(0).uniform(0.2, 2, (40, 3)) * np.linspace(1, 0.3, 40)[:, None]


def test_uncertainty_is_gradient_descent_on_the_paper() -> None:
    # TorchJD's combination is half of ours.
    state: State = {}
    scalarizer = UW(3).double()
    optimizer = torch.optim.SGD(scalarizer.parameters(), lr=2 * 0.05)
    for losses_T in STEPS:
        weights_T, state = losses.uncertainty(Uncertainty(rate=0.05), losses_T, state)
        values = torch.tensor(losses_T, requires_grad=True)
        optimizer.zero_grad()
        scalarizer(values).backward()
        assert values.grad is not None
        np.testing.assert_allclose(weights_T, 2 * values.grad, rtol=1e-12)
        optimizer.step()


def test_uncertainty_tends_to_1_over_the_loss() -> None:
    state: State = {}
    for _ in range(3000):
        weights_T, state = losses.uncertainty(Uncertainty(rate=0.05), np.array([0.5, 1, 4]), state)
    np.testing.assert_allclose(weights_T, [2, 1, 0.25], rtol=1e-6)


def test_dwa_agrees_with_torchjd() -> None:
    state: State = {}
    scalarizer = DWA(temperature=2.0)
    for step, losses_T in enumerate(STEPS):
        weights_T, state = losses.dwa(Dwa(window=7), losses_T, state)
        values = torch.tensor(losses_T, requires_grad=True)
        scalarizer(values).backward()
        assert values.grad is not None
        np.testing.assert_allclose(weights_T, values.grad, rtol=1e-12)
        if step % 7 == 6:
            scalarizer.step()
    assert np.ptp(weights_T) > 0


def test_dwa_by_hand() -> None:
    state: State = {}
    for losses_T in ([1.0, 1.0], [1.0, 2.0]):
        weights_T, state = losses.dwa(Dwa(window=1, temperature=1.0), np.array(losses_T), state)
        assert weights_T.tolist() == [1, 1]
    weights_T, _ = losses.dwa(Dwa(window=1, temperature=1.0), np.ones(2), state)
    np.testing.assert_allclose(weights_T, [2 / (1 + np.e), 2 * np.e / (1 + np.e)])


def test_log_gives_every_scale_the_same_share() -> None:
    losses_T = np.array([0.5, 2.0])
    np.testing.assert_allclose(losses.log(losses_T), [2, 0.5])
    scaled_T = losses_T * np.array([10, 0.1])
    np.testing.assert_allclose(losses.log(scaled_T) * scaled_T, losses.log(losses_T) * losses_T)
    assert np.isfinite(losses.log(np.zeros(2))).all()


def test_famo_takes_the_step_of_the_paper() -> None:
    """Autograd of softmax(logits) . (log loss before - log loss after), with weight decay."""
    method, state = Famo(rate=0.1, decay=0.01), State()
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.1, weight_decay=0.01)
    before = None
    for losses_T in STEPS:
        weights_T, state = losses.famo(method, losses_T, state)
        values = torch.tensor(losses_T, requires_grad=True)
        if before is not None:
            optimizer.zero_grad()
            (logits.softmax(0) @ (before.log() - values.detach().log())).backward()
            optimizer.step()
        share = logits.softmax(0).detach()
        (share @ values.log() / (share / values).sum().detach()).backward()
        np.testing.assert_allclose(weights_T, 3 * values.grad, rtol=1e-12)
        before = values.detach()
    assert weights_T.sum() == pytest.approx(3)


def test_famo_turns_to_the_task_that_falls_least() -> None:
    state, losses_T = State(), np.ones(2)
    for _ in range(50):
        weights_T, state = losses.famo(Famo(rate=1.0), losses_T, state)
        losses_T = losses_T * np.array([0.9, 1.0])
    share_T = weights_T * losses_T
    assert share_T[1] > 2 * share_T[0]
