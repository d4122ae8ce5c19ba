"""What must not pass in silence: a loss that is no number stops the run untouched, collapsing vectors are told."""

import json
import math
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError, exit_code_of
from torchrec_mt.reporting.terminal import TrainingProgress
from torchrec_mt.runs import RunFolder
from torchrec_mt.training.alarms import check_losses, spread
from torchrec_mt.training.metrics_log import MetricsLog
from torchrec_mt.training.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Every table, weight and optimizer state."""
    weights = {
        name: (value.local_shards()[0].tensor if hasattr(value, "local_shards") else value).clone()
        for name, value in trainer.model.state_dict().items()
    }
    for parameter, values in trainer.optimizers.combined.state_dict()["state"].items():
        for key, value in values.items():
            value = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
            weights[f"{parameter}:{key}"] = torch.as_tensor(value).clone()
    return weights


def poisoned(batch: Batch, name: str, value: float) -> Batch:
    """One pair of a task weighs no number."""
    weight_B = batch.pairs[name].weight_B.clone()
    weight_B[3] = value
    return replace(batch, pairs=batch.pairs | {name: replace(batch.pairs[name], weight_B=weight_B)})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_untouched(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, batches = tiny_trainer(dataset, tmp_path, here), tiny_batches(dataset)
    for step in range(3):
        trainer.steps.train_step(next(batches), step)
    before, bad = state_of(trainer), poisoned(next(batches), "alike", value)
    assert len(before) > 20
    with pytest.raises(UserError, match=r"the loss at step 4 is no finite number \(alike: nan\)") as stopped:
        trainer.steps.train_step(bad, 3)
    assert stopped.value.exit_code == 1
    after = state_of(trainer)
    assert all(torch.equal(before[name], value) for name, value in after.items()), "bit for bit"

    saved = torch.load(tmp_path / "offending_batch/rank-0.pt", weights_only=True)
    assert saved["step"] == 4
    assert math.isnan(saved["losses"]["alike"])
    assert math.isfinite(saved["losses"]["find"])
    pairs = saved["batch"]["pairs"]["alike"]
    torch.testing.assert_close(pairs["weight_B"], bad.pairs["alike"].weight_B, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(pairs["anchor_id_B"], bad.pairs["alike"].anchor_id_B)
    assert torch.equal(pairs["blocked"]["id_L"], bad.pairs["alike"].blocked.id_L)
    assert torch.equal(saved["batch"]["entities"]["product"]["id_E"], bad.entities["product"].id_E)
    features = saved["batch"]["features"]
    assert features["keys"] == bad.features.keys()
    lengths = torch.cat([bad.features[key].lengths() for key in bad.features.keys()])  # noqa: SIM118
    assert features["lengths"].sum() == lengths.sum()

    # A program that ends so says it in one message.
    def program() -> int:
        trainer.steps.train_step(bad, 3)
        return 0

    assert exit_code_of(program) == 1
    assert "look for extreme numbers in the data" in capsys.readouterr().err
    # The next good batch trains on.
    assert all(map(math.isfinite, trainer.steps.train_step(next(batches), 4).values()))


def test_the_loop_stops_too(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    steps: list[int] = []
    trainer = tiny_trainer(dataset, tmp_path, here, log=lambda step, kind, values: steps.append(step))
    good = tiny_batches(dataset)
    batches = (batch for batch in chain(islice(good, 2), [poisoned(next(good), "find", math.nan)], good))
    with pytest.raises(UserError, match=r"at step 3 .*\(find: nan\)"):
        trainer.run(batches, 10)
    assert steps == [1, 2]
    assert not (tmp_path / "model").exists()


def test_finite_losses_leave_nothing_behind(dataset: PreparedDataset, tmp_path: Path) -> None:
    check_losses({"find": 0.0, "alike": 1e30}, next(tiny_batches(dataset)), 1, tmp_path / "offending", 0)
    assert not (tmp_path / "offending").exists()


def test_every_bad_task_is_named(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    batch = next(tiny_batches(dataset))
    with pytest.raises(UserError, match=r"step 7 .*\(find: inf, goes_with: nan\); tables and weights are as before"):
        check_losses({"find": math.inf, "alike": 1.0, "goes_with": math.nan}, batch, 7, tmp_path / "deep/folder", 2)
    assert [path.name for path in (tmp_path / "deep/folder").iterdir()] == ["rank-2.pt"]


def test_spread_by_hand() -> None:
    eight = torch.arange(8)
    assert spread(torch.tensor([[1.0, 0.0]] * 8), eight) == 0.0
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 4), eight) == 1.0
    assert spread(torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 4), eight) == 0.5
    popular = torch.cat([eight, torch.zeros(92, dtype=torch.int64)])  # one product in 93 of 100 pairs is no collapse
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 4 + [[1.0, 0.0]] * 92), popular) == 1.0
    assert math.isnan(spread(torch.ones(7, 2), torch.arange(7))), "too few to tell"


def logged(dataset: PreparedDataset, here: Runtime, path: Path, *, collapse: bool) -> list[dict[str, float | str]]:
    """`metrics.jsonl` of two steps, of a model whose products are all one vector if so wished."""
    run = RunFolder.create(path, overwrite=False)
    run.start("{}")
    log = MetricsLog(run)
    with TrainingProgress() as progress:
        trainer = tiny_trainer(dataset, path, here, log=log.write, progress=progress)
        if collapse:
            tower = next(m for name, m in trainer.model.named_modules() if name.endswith("towers.of_product"))
            with torch.no_grad():
                for parameter in tower.parameters():
                    parameter.zero_()
                assert isinstance(tower.mix, nn.Linear)
                tower.mix.bias.fill_(1.0)
        trainer.run((batch for batch in tiny_batches(dataset)), 2)
    log.close()
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_collapsing_vectors_are_told(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = logged(dataset, here, tmp_path / "run", collapse=True)
    warnings = [line for line in lines if line["kind"] == "warning"]
    assert warnings[0]["step"] == 1
    found = {key: value for line in warnings for key, value in line.items() if key.startswith("collapse/")}
    assert found.keys() == {"collapse/find", "collapse/alike", "collapse/goes_with"}
    assert all(float(value) < 0.05 for value in found.values())
    output = capsys.readouterr()
    assert "step 1: warning: the vectors of task 'find' collapse: spread 0.000 of 1" in output.out + output.err


def test_a_sound_model_is_not_warned_of(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = logged(dataset, here, tmp_path / "run", collapse=False)
    assert [line["kind"] for line in lines] == ["train", "train", "valid"]
    assert all(float(lines[0][f"spread/{task}"]) > 0.3 for task in ("find", "alike", "goes_with"))
    output = capsys.readouterr()
    assert "warning" not in output.out + output.err
