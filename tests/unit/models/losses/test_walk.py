"""Chunked sums equal the whole matrix, in value and gradient.

Errors are relative to the largest entry of the float64 reference: of the loss, or of the gradient in question.
"""

import math

import pytest
import torch
from torch import Tensor

from tests.unit.models.losses.sums import SHAPES, Inputs, error
from torchrec_mt.models.losses import walk
from torchrec_mt.models.losses.blocked import Blocked
from torchrec_mt.models.losses.walk import product_dtype, weighted_logsumexp

FLOAT32_BOUND = 1e-6


def bound_at(inverse: float) -> float:
    """1e-6, or more where a logit is rounded by more (2^-24 of it in float32): by so much its share is off."""
    return max(FLOAT32_BOUND, inverse * 2**-24)


@pytest.fixture(params=[1, 3, 8, 1000])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of a chunk; 1000 is everything at once."""
    monkeypatch.setattr(walk, "_MIN_ROWS", request.param)
    monkeypatch.setattr(walk, "_LOGITS_AT_ONCE", {"cpu": 0})
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inverse", [1.0, 14.0, 50.0])
def test_chunks_equal_the_whole_matrix(shape: str, inverse: float, rows: int) -> None:
    inputs = Inputs(shape, inverse)
    total, gradients = inputs.measured()
    expected, expected_gradients = inputs.reference()
    assert error(total, expected) < FLOAT32_BOUND
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert error(gradient, expected_gradient) < bound_at(inverse)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_size_of_chunks_does_not_matter(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(shape, 14.0)
    whole, whole_gradients = inputs.measured()
    for rows in [1, 2, 5, 28, 29]:
        monkeypatch.setattr(walk, "_MIN_ROWS", rows)
        monkeypatch.setattr(walk, "_LOGITS_AT_ONCE", {"cpu": 0})
        total, gradients = inputs.measured()
        assert error(total, whole.double()) < FLOAT32_BOUND
        for gradient, whole_gradient in zip(gradients, whole_gradients, strict=True):
            assert error(gradient, whole_gradient.double()) < FLOAT32_BOUND


def test_a_chunk_holds_as_many_rows_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_LOGITS_AT_ONCE", {"cpu": 400})
    monkeypatch.setattr(walk, "_MIN_ROWS", 8)

    def lengths(anchors: int, columns: int) -> list[int]:
        chunks = walk._Walk(
            torch.zeros(anchors, 2),
            torch.zeros(columns, 2),
            Blocked.nothing(torch.device("cpu")),
            torch.float32,
            width=2,
        )
        return [chunk.stop - chunk.start for chunk in chunks]

    assert lengths(40, 20) == [16, 16, 8]  # 20 would fit: a multiple of _MIN_ROWS, so that few shapes occur
    assert lengths(20, 40) == [8, 8, 4]
    assert lengths(20, 4000) == [8, 8, 4]  # never fewer than _MIN_ROWS
    assert lengths(3, 0) == [3]
    assert lengths(0, 40) == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("learning", [0, 1, 25, 41])
def test_only_the_first_columns_take_a_gradient(shape: str, learning: int, rows: int) -> None:
    inputs = Inputs(shape, 14.0)
    total, gradients = inputs.measured(learning=learning)
    expected, (anchor_BD, column_CD, own) = inputs.reference()
    most = column_CD.abs().max().item()
    column_CD[learning:] = 0
    assert error(total, expected) < FLOAT32_BOUND
    assert error(gradients[0], anchor_BD) < FLOAT32_BOUND
    assert error(gradients[2], own) < FLOAT32_BOUND
    torch.testing.assert_close(gradients[1].double(), column_CD, rtol=0, atol=FLOAT32_BOUND * most)
    assert not gradients[1][learning:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_multiplied_by_what_comes_from_above(shape: str) -> None:
    inputs = Inputs(shape, 14.0)
    leaves = [leaf.clone().requires_grad_() for leaf in inputs.leaves]
    gradients = torch.autograd.grad((3 * inputs.fast(*leaves) - 1) ** 2, leaves)
    total, plain = inputs.reference()
    for gradient, expected in zip(gradients, plain, strict=True):
        assert error(gradient, 2 * (3 * total - 1) * 3 * expected) < 3 * FLOAT32_BOUND


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_a_larger_graph(shape: str) -> None:
    """Raw vectors are brought to length 1 and multiplied by a learned inverse temperature; columns serve twice."""
    inputs = Inputs(shape, 20.0)
    raw_leaves = (inputs.anchor_BD / 20, inputs.column_CD, inputs.own.nan_to_num(neginf=0.0) / 20)

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        raw_BD, column_CD, own_B = (leaf.to(dtype, copy=True).requires_grad_() for leaf in raw_leaves)
        log_inverse = torch.tensor(math.log(20.0), dtype=dtype, requires_grad=True)
        inverse = log_inverse.exp()
        vector_BD = torch.nn.functional.normalize(2 * raw_BD, dim=1)
        sums = inputs.fast if dtype == torch.float32 else inputs.slow
        total = sums(inverse * vector_BD, column_CD, inverse * own_B) + (vector_BD @ column_CD[0]).mean()
        return list(torch.autograd.grad(total, [raw_BD, column_CD, own_B, log_inverse]))

    found, expected = gradients(torch.float32), gradients(torch.float64)
    for gradient, expected_gradient in zip(found[:3], expected[:3], strict=True):
        assert error(gradient, expected_gradient) < bound_at(20.0)
    # The temperature's gradient is a sum in which large terms cancel.
    assert error(found[3], expected[3]) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_blocked_columns_take_no_part(shape: str) -> None:
    """What stands in a column that is blocked for every anchor changes nothing, and it takes no gradient."""
    inputs = Inputs(shape, 14.0)
    every = torch.ones(29, 41, dtype=torch.bool)
    every[:, :40] = False
    inputs.blocked = Blocked(*every.nonzero().unbind(dim=1))
    total, gradients = inputs.measured()
    inputs.column_CD[40] = 1e4
    again, again_gradients = inputs.measured()
    assert error(again, total.double()) < FLOAT32_BOUND
    assert error(again_gradients[0], gradients[0].double()) < FLOAT32_BOUND
    assert not gradients[1][40].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("anchors", "columns"), [(0, 41), (29, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_compare(shape: str, anchors: int, columns: int, dtype: torch.dtype) -> None:
    inputs = Inputs(shape, 14.0)
    inputs.leaves = (inputs.anchor_BD[:anchors], inputs.column_CD[:columns], inputs.own[:anchors])
    inputs.column_C, inputs.weight_B = inputs.column_C[:columns], inputs.weight_B[:anchors] + 1
    inputs.blocked = Blocked.nothing(torch.device("cpu"))
    total, gradients = inputs.measured(dtype=dtype)
    expected, expected_gradients = inputs.reference()
    bound = 1e-6 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(total.double(), expected, rtol=bound, atol=0)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=20 * bound)


@pytest.mark.parametrize(("own", "column", "share"), [(1000.0, 1000.0, 0.5), (0.0, 1000.0, 1.0), (1000.0, 0.0, 0.0)])
def test_large_logits_neither_overflow_nor_vanish(own: float, column: float, share: float) -> None:
    """log(e^1000 + e^1000) = 1000 + log 2, and half the gradient goes to each; beside e^1000, e^0 is nothing."""
    column_CD = torch.tensor([[column / 1000]], requires_grad=True)
    private_BK = torch.tensor([[own]], requires_grad=True)
    blocked = Blocked.nothing(torch.device("cpu"))
    total = weighted_logsumexp(torch.tensor([[1000.0]]), column_CD, private_BK, torch.zeros(1), torch.ones(1), blocked)
    total.backward()
    assert total.item() == pytest.approx(1000 + (math.log(2) if share == 0.5 else 0))
    assert private_BK.grad.item() == pytest.approx(1 - share)
    assert column_CD.grad.item() == pytest.approx(1000 * share)


def test_products_are_float32_where_nothing_else_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert product_dtype("float32", cpu) == torch.float32
    assert product_dtype("bfloat16", cpu) == torch.bfloat16
    for avx, amx, expected in [(0, 0, torch.float32), (1, 0, torch.bfloat16), (0, 1, torch.bfloat16)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert product_dtype("auto", cpu) == expected
