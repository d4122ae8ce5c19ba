"""The balancer of a run: when it looks, what it keeps, its state, and what it refuses."""

import json
from itertools import permutations

import numpy as np
import pytest

from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.balancing.choice import Method
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.balancing.methods import (
    AlignedMtl,
    CaGrad,
    Dwa,
    Famo,
    GradNorm,
    ImtlG,
    Log,
    MetaBalance,
    Mgda,
    MultiBalance,
    NashMtl,
    PcGrad,
    Static,
    Uncertainty,
    UpGrad,
)
from torchrec_mt.errors import UserError

TASKS = ["find", "alike", "goes_with"]
LOSS_SIDE: list[Method] = [Static(), Uncertainty(), Dwa(window=3), Log(), Famo()]
GRADIENT_SIDE: list[Method] = [
    GradNorm(),
    PcGrad(),
    CaGrad(),
    Mgda(),
    NashMtl(),
    UpGrad(),
    AlignedMtl(),
    ImtlG(),
    MultiBalance(),
    MetaBalance(target="alike"),
]
ALL = [*LOSS_SIDE, *GRADIENT_SIDE]


def seen(steps: int) -> list[tuple[list[float], list[list[float]]]]:
    rng = np.random.default_rng(1)
    jacobians = rng.normal(size=(steps, 3, 4))
    return [(rng.uniform(0.1, 2, 3).tolist(), (j @ j.T).tolist()) for j in jacobians]


def run(balancer: Balancer, steps: list[tuple[list[float], list[list[float]]]], first: int = 0) -> list[list[float]]:
    weights = []
    for step, (losses, gram) in enumerate(steps, first):
        balancer.update(losses, gram if balancer.looks_at_gradients(step) else None)
        weights.append(list(balancer.weights.values()))
    return weights


def config_of(method: Method) -> BalancingConfig:
    if method in GRADIENT_SIDE:
        return BalancingConfig(method=method, every=2, average=0.6)
    return BalancingConfig(method=method)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.kind)
def test_goes_on_from_its_state_as_if_never_interrupted(method: Method) -> None:
    steps, whole, begun = seen(12), Balancer(config_of(method), TASKS), Balancer(config_of(method), TASKS)
    wanted = run(whole, steps)
    assert (np.ptp(wanted, axis=0).max() > 0) == (method != Static())
    found = run(begun, steps[:5])
    resumed = Balancer(config_of(method), TASKS)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert resumed.weights == begun.weights
    assert found + run(resumed, steps[5:], first=5) == wanted
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("method", [one for one in ALL if one != PcGrad()], ids=lambda method: method.kind)
def test_renamed_tasks_keep_their_weights(method: Method) -> None:
    steps = seen(6)
    wanted = Balancer(BalancingConfig(method=method), TASKS)
    run(wanted, steps)
    for order in permutations(range(3)):
        other = Balancer(BalancingConfig(method=method), [TASKS[n] for n in order])
        run(other, [([one[n] for n in order], np.array(gram)[np.ix_(order, order)].tolist()) for one, gram in steps])
        assert other.weights == pytest.approx(wanted.weights, rel=5e-3, abs=5e-3)


def test_own_weights_multiply_those_of_the_method() -> None:
    assert Balancer(BalancingConfig(weights={"alike": 0.5}), TASKS).weights == {"find": 1, "alike": 0.5, "goes_with": 1}
    balancer = Balancer(BalancingConfig(weights={"alike": 3.0}, method=Log()), TASKS)
    balancer.update([0.5, 0.25, 2.0], None)
    assert balancer.weights == {"find": 2, "alike": 12, "goes_with": 0.5}


def test_looks_every_few_steps_and_keeps_its_weights_between() -> None:
    balancer = Balancer(BalancingConfig(method=UpGrad(), every=3), TASKS)
    assert [balancer.looks_at_gradients(step) for step in range(7)] == [True, False, False, True, False, False, True]
    weights = run(balancer, seen(6))
    assert weights[0] == weights[1] == weights[2] != weights[3] == weights[4]
    assert not any(Balancer(BalancingConfig(method=Famo()), TASKS).looks_at_gradients(step) for step in range(5))


def test_the_average_is_of_gram_matrices() -> None:
    averaged = Balancer(BalancingConfig(method=ImtlG(), average=0.75), TASKS)
    steps = seen(2)
    run(averaged, steps)
    alone = Balancer(BalancingConfig(method=ImtlG()), TASKS)
    alone.update(steps[1][0], (0.75 * np.array(steps[0][1]) + 0.25 * np.array(steps[1][1])).tolist())
    assert averaged.weights == pytest.approx(alone.weights, rel=1e-12)


def test_what_is_refused() -> None:
    for config, message in (
        (BalancingConfig(weights={"serach": 1.0}), "weights names 'serach', which is no trained task"),
        (BalancingConfig(method=MetaBalance(target="serach")), "method.target is 'serach', which is no trained task"),
    ):
        with pytest.raises(UserError, match=message):
            Balancer(config, TASKS)
    for wrong, message in (
        (
            lambda: BalancingConfig(weights={"find": 0.0}, method=Log()),
            'weights.find = 0.0: must be above 0 with method "log"',
        ),
        (lambda: BalancingConfig(every=5), 'every = 5: must be as by default: method "static" does not look'),
        (lambda: BalancingConfig(method=Famo(), average=0.5), 'average = 0.5: .* method "famo" does not look'),
        (lambda: BalancingConfig(method=PcGrad(), average=1.0), "average = 1.0: must be from 0 to below 1"),
        (lambda: CaGrad(radius=1.0), "radius = 1.0: must be from 0 to below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    state = Balancer(BalancingConfig(method=Famo()), TASKS).state_dict()
    for other, message in (
        (Balancer(BalancingConfig(method=Log()), TASKS), "has method 'famo', the config 'log'"),
        (Balancer(BalancingConfig(method=Famo()), TASKS[:2]), "has tasks"),
    ):
        with pytest.raises(UserError, match=message):
            other.load_state_dict(state)
