"""Planted shops: what theory says of two tasks' gradients is seen in real trainings.

"Narrow" is a table wide enough for either task alone and too narrow for both: each task wants six factors.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchrec_mt.config import load_config
from torchrec_mt.distributed.runtime import Runtime, RuntimeConfig, runtime
from torchrec_mt.prepare import prepare_dataset
from torchrec_mt.workflows.training import train_here

NARROW = ("model.dim=8", "dataset.tables.product_id.dim=8")
TASKS = ("similar", "complement")
UNEVEN = "model.temperatures.complement={initial=0.4,minimum=0.4}"
"""Makes one task's gradients a few times shorter than the other's, as happens where losses are unlike."""


@pytest.fixture(scope="module")
def here() -> Any:
    with runtime(RuntimeConfig(device="cpu", threads=1)) as one:
        yield one


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@cache
def looks(root: Path, here: Runtime, *settings: str, agreement: float = 0.0, steps: int = 150) -> dict[str, np.ndarray]:
    """A training's gradients as it logs them, at every step S: gram_STT, the weights in force weight_ST, cosine_S."""
    own = [f"dataset.path={root}/{agreement}", f"dataset.source.agreement={agreement}", "dataset.source.products=500"]
    length = [f"trainer.steps={steps}", "trainer.validations=1", "trainer.validation_anchors=50", "trainer.log_every=1"]
    config = load_config(["launch/planted.toml"], [*own, "dataset.source.pairs=10000", *length, *settings])
    prepare_dataset(config)
    run = root / "run"
    train_here(config, str(run), here, overwrite=True, show=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    length_ST = np.array([[line[f"gradient/{task}"] for task in TASKS] for line in lines])
    cosine_S = np.array([line["cosine/similar/complement"] for line in lines])
    cosine_STT = np.ones((len(lines), 2, 2))
    cosine_STT[:, 0, 1] = cosine_STT[:, 1, 0] = cosine_S
    return {
        "gram_STT": length_ST[:, :, None] * length_ST[:, None, :] * cosine_STT,
        "weight_ST": np.array([[line[f"weight/{task}"] for task in TASKS] for line in lines]),
        "cosine_S": cosine_S,
    }


def gains(found: dict[str, np.ndarray]) -> np.ndarray:
    """How much each task's loss falls along the combined direction, as a cosine: gain_ST; below 0 it is harmed."""
    gram_STT, weight_ST = found["gram_STT"], found["weight_ST"]
    along_ST = np.einsum("stu,su->st", gram_STT, weight_ST)
    combined_S = np.sqrt(np.einsum("st,st->s", weight_ST, along_ST))
    length_ST = np.sqrt(np.diagonal(gram_STT, axis1=1, axis2=2))
    return along_ST / (length_ST * combined_S[:, None])


def test_the_plain_sum_harms_the_task_of_short_gradients_in_a_conflict(root: Path, here: Runtime) -> None:
    """Gradients of one length cannot: the sum's product with each is |g|^2 (1 + cos)."""
    even = looks(root, here, *NARROW)
    assert (even["weight_ST"] == 1).all()
    assert even["cosine_S"][100:].mean() < -0.15
    assert (gains(even) > -0.01).all()
    uneven = looks(root, here, *NARROW, UNEVEN)
    assert (gains(uneven)[:, 0] > 0).all()
    assert (gains(uneven)[:, 1] < -0.05).sum() >= 20


@pytest.mark.parametrize("method", ["upgrad", "mgda"])
def test_methods_that_promise_it_harm_no_task(root: Path, here: Runtime, method: str) -> None:
    found = looks(root, here, *NARROW, UNEVEN, f'balancing.method={{kind="{method}"}}')
    summed = found | {"weight_ST": np.ones_like(found["weight_ST"])}
    assert (gains(summed) < -0.05).any(axis=1).sum() >= 20, "there is something to promise"
    assert gains(found).min() > -1e-3


@pytest.mark.parametrize("method", ["pcgrad", "upgrad"])
def test_two_tasks_are_summed_plainly_but_where_they_conflict(root: Path, here: Runtime, method: str) -> None:
    """Each gradient without what points against the other, added up: weights 1 - cos |g_other| / |g|. Of two tasks the
    two methods are one."""
    found = looks(root, here, *NARROW, UNEVEN, f'balancing.method={{kind="{method}"}}')
    conflict_S, gram_STT = found["cosine_S"] < 0, found["gram_STT"]
    assert 20 <= conflict_S.sum() <= len(conflict_S) - 20
    np.testing.assert_allclose(found["weight_ST"][~conflict_S], 1, rtol=1e-6)
    square_ST = np.diagonal(gram_STT, axis1=1, axis2=2)
    wanted_ST = 1 - gram_STT[:, 0, 1, None] / square_ST
    np.testing.assert_allclose(found["weight_ST"][conflict_S], wanted_ST[conflict_S], rtol=1e-3)


@pytest.mark.slow
def test_the_less_tasks_agree_in_a_narrow_table_the_more_their_gradients_conflict(root: Path, here: Runtime) -> None:
    narrow = {
        level: looks(root, here, *NARROW, agreement=level, steps=400)["cosine_S"][100:].mean()
        for level in (1.0, 0.5, 0.0)
    }
    assert list(narrow.values()) == sorted(narrow.values(), reverse=True), narrow
    assert narrow[1.0] > -0.03
    assert narrow[0.0] < -0.15
    wide = {level: looks(root, here, agreement=level, steps=400)["cosine_S"][100:].mean() for level in (1.0, 0.0)}
    assert wide[1.0] > 0
    assert abs(wide[0.0]) < 0.1 < abs(narrow[0.0])
