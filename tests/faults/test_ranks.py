"""A loss that is no finite number on one rank of two: all stop at the step, say why, and every batch is saved."""

import contextlib
import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import run_on_ranks
from tests.tiny import write_tiny
from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, Named, NegativesConfig, Uniform
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import exit_code_of
from torchrec_mt.models.losses.config import BceLoss, LossConfig
from torchrec_mt.training import alarms

GUILTY = {"nan": 1, "inf": 0}
"""Which rank has the batch that makes a loss of this value."""
NEGATIVES = NegativesConfig(sources=(InBatch(), Uniform(count=8)), tasks={"find": (InBatch(), Named(count=2))})
LOSSES = LossConfig(tasks={"find": BceLoss()}, precision="float32")


def poisoned(batch: Batch, value: str) -> Batch:
    """The batch with a pair of `find` that weighs no number, or has a negative that stands for e^200 of itself."""
    pairs = batch.pairs["find"]
    if value == "nan":
        pairs = replace(pairs, weight_B=pairs.weight_B.index_fill(0, torch.tensor([3]), math.nan))
    else:
        assert pairs.private is not None
        log_count_BH = pairs.private.log_count_BH.clone()
        log_count_BH[3, 1] = -200.0
        pairs = replace(pairs, private=replace(pairs.private, log_count_BH=log_count_BH))
    return replace(batch, pairs=batch.pairs | {"find": pairs})


def stopped_by(folder: Path, value: str) -> dict[str, Any]:
    """What a rank does when the third batch of the guilty one is poisoned, whose disk is slow."""
    quiet_dependencies()
    here, steps = Runtime(dist.get_rank(), dist.get_world_size(), torch.device("cpu")), list[int]()
    dataset, guilty, before = (
        PreparedDataset.open(folder / "data"),
        GUILTY[value] == dist.get_rank(),
        dict[str, Tensor](),
    )
    trainer = tiny_trainer(
        dataset,
        folder / value,
        here,
        losses=LOSSES,
        negatives=NEGATIVES,
        log=lambda step, kind, values: steps.append(step),
    )

    def weights() -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}

    def batches() -> Iterator[Batch]:
        good = tiny_batches(dataset, negatives=NEGATIVES, rank=here.rank, world_size=here.world_size)
        for step, batch in enumerate(good, 1):
            if step == 3:
                before.update(weights())
            yield poisoned(batch, value) if guilty and step == 3 else batch

    def slow(*arguments: Any) -> None:
        time.sleep(0.5)  # long enough for a rank that does not wait to end, whereupon all would be killed
        torch.save(*arguments)

    def program() -> int:
        trainer.run(batches(), 10)
        return 0

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        if guilty:
            patch.setattr(alarms, "torch", type("SlowDisk", (), {"save": staticmethod(slow)}))
        code = exit_code_of(program)
        saved = sorted(path.name for path in (folder / value / "offending_batch").iterdir())
    untouched = all(torch.equal(before[name], weight) for name, weight in weights().items())
    return {"code": code, "said": said.getvalue(), "steps": steps, "saved": saved, "untouched": untouched}


def stopped_by_all(folder: str) -> dict[str, Any]:
    return {value: stopped_by(Path(folder), value) for value in GUILTY}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("stopped")
    write_tiny(folder / "data")
    return folder, run_on_ranks(2, stopped_by_all, str(folder))


@pytest.mark.parametrize("value", list(GUILTY))
def test_all_ranks_stop_and_say_why(stopped: tuple[Path, list[dict[str, Any]]], value: str) -> None:
    folder, ranks = stopped
    for rank, found in enumerate(ranks):
        assert found[value]["code"] == 1
        [line] = found[value]["said"].splitlines()
        assert line.startswith(f"error: the loss at step 3 is no finite number (find: {value}); tables and weights are")
        assert f"the batch is in '{folder / value / 'offending_batch'}'" in line
        assert found[value]["steps"] == ([] if rank else [1, 2])
        assert found[value]["untouched"]
    assert not (folder / value / "model").exists()


@pytest.mark.parametrize("value", list(GUILTY))
def test_the_guilty_batch_is_saved_before_any_rank_ends(stopped: tuple[Path, list[dict[str, Any]]], value: str) -> None:
    """A launcher kills the others as soon as one ends."""
    folder, ranks = stopped
    assert [found[value]["saved"] for found in ranks] == [["rank-0.pt", "rank-1.pt"]] * 2
    for rank in range(2):
        saved = torch.load(folder / value / f"offending_batch/rank-{rank}.pt", weights_only=True)
        assert saved["step"] == 3
        assert str(saved["losses"]["find"]) == value
        pairs = saved["batch"]["pairs"]["find"]
        found = {
            "nan": pairs["weight_B"].isnan().nonzero(),
            "inf": (pairs["private"]["log_count_BH"] == -200).nonzero(),
        }
        where = {"nan": [[3]], "inf": [[3, 1]]}
        assert found[value].tolist() == (where[value] if rank == GUILTY[value] else [])
