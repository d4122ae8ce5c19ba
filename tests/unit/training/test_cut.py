"""The cut: tasks on disjoint rows meet at the tower alone; looking changes nothing; bfloat16; what is told, refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import PRODUCTS, TASKS, tiny_schema
from tests.tiny_trainer import LOSSES, MODEL, tiny_batches, tiny_trainer
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.balancing.methods import Static, UpGrad
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, NegativesConfig, Sampler
from torchrec_mt.data.task_pairs import PairMaker
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError
from torchrec_mt.training.agreement import pair_rules
from torchrec_mt.training.cut import GramMatrix, told

ALONE = NegativesConfig(sources=(InBatch(),))


def test_tasks_on_disjoint_rows_meet_at_the_tower_alone(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path
) -> None:
    names, rules, rng = dataset.manifest.tasks, pair_rules(LOSSES, tiny_schema()), np.random.default_rng(0)
    sampler = Sampler(
        {name: ALONE.of(name) for name in names}, {n: dataset.frequencies(n) for n in names}, PRODUCTS, lanes=1
    )
    pairs = {}
    for name in names:
        rows = dataset.pairs(name, "train")
        # Products of "alike" are those of the first half, and of no other task.
        first = (rows["anchor"] < 30) & (rows["candidate"] < 30) if name == "alike" else None
        second = (rows["candidate"] >= 30) & ((rows["anchor"] >= 30) | (name == "find"))
        anchor, candidate = (rows[end][second if first is None else first][:20] for end in ("anchor", "candidate"))
        ones, maker = np.ones(len(anchor), np.float32), PairMaker(dataset, name, ALONE, rules[name], sampler)
        pairs[name] = maker(anchor, candidate, ones, ones, sampler.draw(rng), rng)
    batch = Collator(dataset)(pairs, {"product": sampler.draw(rng)}, dropout_key=0)
    cosines = {}
    for cut in ("vectors", "tower"):
        trainer = tiny_trainer(
            dataset,
            tmp_path,
            here,
            negatives=ALONE,
            balancing=BalancingConfig(cut=cut),
        )
        trainer.steps.train_step(batch, 0)
        cosines[cut] = trainer.steps.told()
    assert cosines["vectors"]["cosine/find/alike"] == cosines["vectors"]["cosine/alike/goes_with"] == 0
    assert abs(cosines["vectors"]["cosine/find/goes_with"]) > 1e-3
    assert min(abs(value) for name, value in cosines["tower"].items() if name.startswith("cosine/")) > 1e-3


@pytest.mark.parametrize("cut", ["vectors", "tower"])
def test_bfloat16_and_slices_see_almost_the_same(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, cut: Any
) -> None:
    batch, found = next(tiny_batches(dataset)), {}
    for name, model in (
        ("float32", MODEL),
        ("slices", replace(MODEL, rows_at_once=7)),
        ("bfloat16", replace(MODEL, precision="bfloat16")),
    ):
        balancing = BalancingConfig(method=UpGrad(), cut=cut)
        trainer = tiny_trainer(dataset, tmp_path, here, model_config=model, balancing=balancing)
        trainer.steps.train_step(batch, 0)
        found[name] = trainer.steps.told()
    assert found["slices"] == pytest.approx(found["float32"], rel=1e-4, abs=1e-5)
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.03, abs=0.03)
    assert found["bfloat16"] != found["float32"]


@pytest.mark.parametrize("log_every", [1, 3])
def test_looking_changes_no_bit_of_the_training(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, log_every: int
) -> None:
    lines: dict[int, dict[str, float]] = {}

    def log(step: int, kind: str, values: dict[str, float]) -> None:
        if kind == "train":
            lines[step] = values

    model = replace(MODEL, dropout=0.3, rows_at_once=7)  # draws noise, and draws it again
    for config in (BalancingConfig(), BalancingConfig(method=UpGrad(), every=2)):
        weights = {}
        for every in (log_every, 100):
            torch.manual_seed(3)
            trainer = tiny_trainer(
                dataset, tmp_path, here, log=log, log_every=every, model_config=model, balancing=config
            )
            trainer.run(tiny_batches(dataset), 6)
            weights[every] = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        for name, value in weights[100].items():
            assert torch.equal(weights[log_every][name], value), name
        kept = {step: line["weight/find"] for step, line in lines.items()}
        assert len(set(kept.values())) > 1 or isinstance(config.method, Static)
    names = {name for name in lines[6] if name.startswith(("weight/", "gradient/", "cosine/", "temperature/"))}
    tasks = list(TASKS)
    assert names == {f"{kind}/{task}" for kind in ("weight", "gradient", "temperature") for task in tasks} | {
        "cosine/find/alike",
        "cosine/find/goes_with",
        "cosine/alike/goes_with",
    }
    assert lines[6]["temperature/find"] == pytest.approx(0.07, rel=0.2)


def test_lengths_and_cosines_by_hand() -> None:
    assert told([[4.0, -3.0, 0.0], [-3.0, 9.0, 0.0], [0.0, 0.0, 0.0]], ["a", "b", "c"]) == {
        "gradient/a": 2,
        "gradient/b": 3,
        "gradient/c": 0,
        "cosine/a/b": -0.5,
    }


@pytest.mark.parametrize("joined", [False, True])
def test_a_gradient_that_is_no_number_ends_the_run_before_the_tables_change(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    trainer = tiny_trainer(dataset, tmp_path, here)
    monkeypatch.setattr(GramMatrix, "result", lambda self: torch.tensor([[1.0, 0, 0], [0, torch.inf, 0], [0, 0, 1]]))
    batch, steps = next(tiny_batches(dataset)), trainer.steps
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(
        UserError, match=r"gradients of alike at step 3 are no finite numbers.*optim.table_rate"
    ) as told:
        steps.train_joined([batch, batch], 2) if joined else steps.train_step(batch, 2)
    assert told.value.exit_code == 1
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
