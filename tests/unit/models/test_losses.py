"""The sampled softmax and its mask, by numbers a reader can check, and against slow twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mt.models.losses import blocked_columns, sampled_softmax


def test_sampled_softmax_by_hand() -> None:
    # One anchor, scores 1 and 0 at inverse temperature ln 3 x 1; counts 1: softmax = 3 / (3 + 1).
    loss_B = sampled_softmax(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([0]),
        torch.zeros(2),
        torch.zeros(1, 2, dtype=torch.bool),
        torch.tensor(math.log(3)),
    )
    assert loss_B.item() == pytest.approx(-math.log(3 / 4))


def test_a_candidate_expected_twice_counts_half() -> None:
    # Two copies of the negative, expected twice each: together they weigh as one.
    one = sampled_softmax(
        torch.tensor([[1.0]]),
        torch.tensor([[0.5], [0.2]]),
        torch.tensor([0]),
        torch.zeros(2),
        torch.zeros(1, 2, dtype=torch.bool),
        torch.tensor(1.0),
    )
    two = sampled_softmax(
        torch.tensor([[1.0]]),
        torch.tensor([[0.5], [0.2], [0.2]]),
        torch.tensor([0]),
        torch.tensor([0.0, math.log(2), math.log(2)]),
        torch.zeros(1, 3, dtype=torch.bool),
        torch.tensor(1.0),
    )
    assert two.item() == pytest.approx(one.item())


def test_everything_blocked_but_the_own_column_is_no_loss() -> None:
    blocked = torch.tensor([[False, True, True]])
    loss_B = sampled_softmax(
        torch.randn(1, 4), torch.randn(3, 4), torch.tensor([0]), torch.zeros(3), blocked, torch.tensor(5.0)
    )
    assert loss_B.item() == 0.0


def test_blocked_columns_by_hand() -> None:
    # Pairs of all ranks: (1, 10), (1, 11), (2, 10), (10, 3); columns: their candidates, then negatives 11, 2, 9.
    anchors, candidates = torch.tensor([1, 1, 2, 10]), torch.tensor([10, 11, 10, 3])
    columns = torch.tensor([10, 11, 10, 3, 11, 2, 9])
    blocked = blocked_columns(anchors, anchors, candidates, columns, torch.arange(4), same_entity=True)
    assert blocked.int().tolist() == [
        [0, 1, 1, 0, 1, 0, 0],  # 1 is paired with 10 and 11: every copy but its own column
        [1, 0, 1, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],  # 2 itself is among the negatives
        [1, 0, 1, 0, 0, 0, 0],  # 10 itself is a candidate of others
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 8), st.booleans())
def test_blocked_columns_equal_the_slow_twin(seed: int, pairs: int, negatives: int, same_entity: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    anchors = torch.randint(0, 6, (pairs,), generator=rng)
    candidates = torch.randint(0, 6, (pairs,), generator=rng)
    columns = torch.cat([candidates, torch.randint(0, 6, (negatives,), generator=rng)])
    own = torch.arange(pairs)
    known = set(zip(anchors.tolist(), candidates.tolist(), strict=True))
    expected = [
        [
            column != position and ((anchor, item) in known or (same_entity and item == anchor))
            for column, item in enumerate(columns.tolist())
        ]
        for position, anchor in enumerate(anchors.tolist())
    ]
    assert blocked_columns(anchors, anchors, candidates, columns, own, same_entity=same_entity).tolist() == expected


def test_expected_gradient_is_the_full_softmax_gradient() -> None:
    """With the correction, sampled gradients average to the gradient of the softmax over the whole catalogue."""
    torch.manual_seed(0)
    catalogue_ND = torch.randn(20, 4)
    anchor_D = torch.randn(4, requires_grad=True)
    positive = 3
    p_N = torch.softmax(torch.randn(20), 0)
    full = torch.autograd.grad(
        torch.nn.functional.cross_entropy(catalogue_ND @ anchor_D, torch.tensor(positive)), anchor_D
    )
    draws, samples = 400, 2000

    def mean_gradient(sign: float) -> torch.Tensor:
        column_SC = torch.multinomial(p_N.repeat(samples, 1), draws, replacement=True)
        columns_SC = torch.cat([torch.full((samples, 1), positive), column_SC], 1)
        log_count_SC = sign * (draws * p_N[columns_SC]).log()
        log_count_SC[:, 0] = 0  # the positive stands for itself: it is always there
        logits_SC = (catalogue_ND @ anchor_D)[columns_SC] - log_count_SC
        hit = (columns_SC == positive) & (torch.arange(draws + 1) > 0)
        loss = torch.nn.functional.cross_entropy(
            logits_SC.masked_fill(hit, -math.inf), torch.zeros(samples, dtype=torch.long)
        )
        return torch.autograd.grad(loss, anchor_D)[0]

    assert (mean_gradient(1.0) - full[0]).norm() < 0.02 * full[0].norm() + 0.01
    assert (mean_gradient(-1.0) - full[0]).norm() > 0.1 * full[0].norm()
