"""What tasks have of their own, against twins that walk over rows and experts one by one in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchrec_mt.models.sharing.adatt import AdaTT, TaskToTask
from torchrec_mt.models.sharing.conditioned import TaskConditioning
from torchrec_mt.models.sharing.mmoe import Mmoe, MultiGate
from torchrec_mt.models.sharing.parts import Sizes, TaskSide
from torchrec_mt.models.sharing.ple import Ple, Progressive
from torchrec_mt.models.sharing.shared_bottom import OwnBlocks

TASKS = ["search", "similar", "items"]
DIM, ROWS = 4, 5
SIZES = Sizes(dim=DIM, hidden=6, depth=1, task_hidden=3, task_dim=2, dropout=0.0)
MMOE = Mmoe(experts=3, expert_hidden=5)
Weights = dict[str, Tensor]


def linear(weights: Weights, name: str, x_D: Tensor) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.stack(
        [sum((w * x for w, x in zip(row, x_D, strict=True)), b) for row, b in zip(weight, bias, strict=True)]
    )


def added(weights: Weights, name: str, x_D: Tensor) -> Tensor:
    """What a residual block adds."""
    centred_D = x_D - x_D.mean()
    normed_D = centred_D / (centred_D.square().mean() + 1e-5).sqrt()
    h = linear(weights, f"{name}.up", normed_D * weights[f"{name}.norm.weight"] + weights[f"{name}.norm.bias"])
    gelu = torch.stack([one * 0.5 * (1 + math.erf(one.item() / math.sqrt(2))) for one in h])
    return linear(weights, f"{name}.down", gelu)


def softmax(logits: Tensor) -> list[float]:
    powers = [math.exp(one.item()) for one in logits]
    return [one / sum(powers) for one in powers]


def own(weights: Weights, x_D: Tensor, task: str) -> Tensor:
    return x_D + added(weights, f"own.of_{task}", x_D)


def plain_bottom(weights: Weights, x_D: Tensor, task: str) -> Tensor:
    return own(weights, x_D, task)


def plain_conditioned(weights: Weights, x_D: Tensor, task: str) -> Tensor:
    film = linear(weights, "film", weights["task_TD"][TASKS.index(task)])
    return own(weights, x_D * (1 + film[:DIM]) + film[DIM:], task)


def plain_lhuc(weights: Weights, x_D: Tensor, task: str) -> Tensor:
    task_D = weights["task_TD"][TASKS.index(task)]
    film = linear(weights, "film", task_D)
    x_D = x_D * (1 + film[:DIM]) + film[DIM:]
    h = linear(weights, "lhuc.up", torch.cat([x_D, task_D]))
    gates = linear(weights, "lhuc.down", torch.stack([one if one > 0 else 0 * one for one in h]))
    return own(
        weights, torch.stack([x * 2 / (1 + math.exp(-gate.item())) for x, gate in zip(x_D, gates, strict=True)]), task
    )


def plain_mmoe(weights: Weights, x_D: Tensor, task: str) -> Tensor:
    shares = softmax(linear(weights, f"gates.of_{task}", x_D))
    mixture = sum(share * (x_D + added(weights, f"experts.{k}", x_D)) for k, share in enumerate(shares))
    assert isinstance(mixture, Tensor)
    return own(weights, mixture, task)


def plain_ple(levels: int, shared_experts: int, own_experts: int) -> Callable[[Weights, Tensor, str], Tensor]:
    """Every state of every level is computed, whether the task needs it or not."""

    def plain(weights: Weights, x_D: Tensor, task: str) -> Tensor:
        states, shared_D = dict.fromkeys(TASKS, x_D), x_D
        for level in range(levels):
            at = f"levels.{level}"
            shared = [added(weights, f"{at}.shared_experts.{k}", shared_D) for k in range(shared_experts)]
            mine = {
                t: [added(weights, f"{at}.own_experts.of_{t}.{k}", states[t]) for k in range(own_experts)]
                for t in TASKS
            }
            following = {}
            for t in TASKS:
                shares = softmax(linear(weights, f"{at}.gates.of_{t}", states[t]))
                seen = mine[t] + shared
                following[t] = states[t] + sum(share * part for share, part in zip(shares, seen, strict=True))
            if level < levels - 1:
                shares = softmax(linear(weights, f"{at}.shared_gate", shared_D))
                every = [part for t in TASKS for part in mine[t]] + shared
                shared_D = shared_D + sum(share * part for share, part in zip(shares, every, strict=True))
            states = following
        return own(weights, states[task], task)

    return plain


def plain_adatt(levels: int, own_experts: int) -> Callable[[Weights, Tensor, str], Tensor]:
    def plain(weights: Weights, x_D: Tensor, task: str) -> Tensor:
        states = dict.fromkeys(TASKS, x_D)
        for level in range(levels):
            at, following = f"levels.{level}", {}
            mine = {
                t: [added(weights, f"{at}.experts.of_{t}.{k}", states[t]) for k in range(own_experts)] for t in TASKS
            }
            every = [part for t in TASKS for part in mine[t]]
            for row, t in enumerate(TASKS):
                shares = softmax(linear(weights, f"{at}.gates.of_{t}", states[t]))
                fused = sum(share * part for share, part in zip(shares, every, strict=True))
                native = sum(weight * part for weight, part in zip(weights[f"{at}.own_TK"][row], mine[t], strict=True))
                following[t] = states[t] + fused + native
            states = following
        return own(weights, states[task], task)

    return plain


SIDES: dict[str, tuple[Callable[[], TaskSide], Callable[[Weights, Tensor, str], Tensor]]] = {
    "shared_bottom": (lambda: OwnBlocks(TASKS, SIZES), plain_bottom),
    "conditioned": (lambda: TaskConditioning(TASKS, SIZES), plain_conditioned),
    "lhuc": (lambda: TaskConditioning(TASKS, SIZES, lhuc=True), plain_lhuc),
    "mmoe": (lambda: MultiGate(TASKS, MMOE, SIZES), plain_mmoe),
    "cgc": (lambda: Progressive(TASKS, Ple(expert_hidden=5), SIZES), plain_ple(1, 2, 1)),
    "ple": (
        lambda: Progressive(TASKS, Ple(levels=3, shared_experts=1, own_experts=2, expert_hidden=5), SIZES),
        plain_ple(3, 1, 2),
    ),
    "adatt": (lambda: TaskToTask(TASKS, AdaTT(levels=2, own_experts=2, expert_hidden=5), SIZES), plain_adatt(2, 2)),
    "adatt of one": (lambda: TaskToTask(TASKS, AdaTT(own_experts=1, expert_hidden=5), SIZES), plain_adatt(1, 1)),
}


def at_random(side: nn.Module) -> nn.Module:
    """With no weight left at its start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in side.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return side


def rows() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", SIDES)
def test_sides_equal_plain_loops(name: str, task: str) -> None:
    make, plain = SIDES[name]
    side, x_BD = at_random(make()), rows()
    weights = {key: value.detach() for key, value in side.named_parameters()}
    expected = torch.stack([plain(weights, x_D, task) for x_D in x_BD])
    torch.testing.assert_close(side(x_BD, task).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SIDES)
def test_sides_begin_as_the_identity(name: str) -> None:
    x_BD = rows().float()
    for task in TASKS:
        torch.testing.assert_close(SIDES[name][0]()(x_BD, task), x_BD)


@pytest.mark.parametrize("name", SIDES)
def test_gradient_flows_to_every_parameter(name: str) -> None:
    """From all tasks together, and none of one task's to what is another's alone."""
    side = at_random(SIDES[name][0]())
    sum(side(rows(), task).square().sum() for task in TASKS).backward()
    for key, parameter in side.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 1e-12, key
    side.zero_grad()
    side(rows(), "search").square().sum().backward()
    for task in ("similar", "items"):
        assert all(parameter.grad is None for key, parameter in side.named_parameters() if f"own.of_{task}." in key)


@pytest.mark.parametrize(("name", "levels", "more"), [("mmoe", 1, 0), ("cgc", 1, 0), ("ple", 3, 0), ("adatt", 2, 1)])
def test_shares_of_gates_sum_to_one(name: str, levels: int, more: int) -> None:
    """Where every expert adds the same, whatever the gates say, it is added once a level (and once as its own)."""
    side, same_D = at_random(SIDES[name][0]()), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    for key, parameter in side.named_parameters():
        if key.endswith("own_TK"):
            parameter.data.fill_(1 / parameter.shape[1])
        if ".down." in key:
            parameter.data = same_D.clone() if key.endswith("bias") and "own.of_" not in key else 0 * parameter.data
    for task in TASKS:
        torch.testing.assert_close(side(rows(), task), rows() + levels * (1 + more) * same_D)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", SIDES)
def test_flops_are_those_that_torch_counts(name: str, task: str) -> None:
    """Of twice as many rows, less those of once: what is computed once a batch goes out."""
    side, x_BD = SIDES[name][0](), rows().float()
    counted = []
    for times in (1, 2):
        with FlopCounterMode(display=False) as counter:
            side(x_BD.repeat(times, 1), task)
        counted.append(counter.get_total_flops())
    assert counted[1] - counted[0] == ROWS * side.flops(task)
    if name == "mmoe":
        experts, gate, block = 3 * 2 * (2 * DIM * 5), 2 * DIM * 3, 2 * (2 * DIM * 3)
        assert side.flops(task) == experts + gate + block


def test_gates_of_lhuc_give_no_gradient_to_the_vector_they_read() -> None:
    """What reaches the vector is the gate's value times what reaches the gated vector."""
    side = at_random(TaskConditioning(TASKS, SIZES, lhuc=True))
    assert isinstance(side, TaskConditioning)
    assert side.lhuc is not None
    x_BD, task_D = rows().requires_grad_(), side.task_TD[0]
    gated_BD = side.lhuc(x_BD, task_D)
    gated_BD.sum().backward()
    assert x_BD.grad is not None
    torch.testing.assert_close(x_BD.grad, (gated_BD / x_BD).detach())
