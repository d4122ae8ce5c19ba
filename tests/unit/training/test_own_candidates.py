"""The objective of candidates with a vector per task: where these are equal for all tasks, it is the usual one."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_schema, write_tiny
from tests.tiny_trainer import LOSSES
from torchrec_mt.data.negatives import InBatch, Memory, NegativesConfig, StreamingFrequencies, Uniform
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.errors import UserError
from torchrec_mt.models.sharing.mmoe import Mmoe
from torchrec_mt.models.sharing.single import Single
from torchrec_mt.models.two_tower import ModelConfig, TwoTower
from torchrec_mt.training.assemble import model_spec
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.own_candidates import OwnCandidatesObjective, objective_for

NEGATIVES = NegativesConfig(
    sources=(InBatch(), Uniform(count=8), Memory(size=50, warmup=1, max_age=3)),
    frequencies=StreamingFrequencies(buckets=64),
)
CPU = torch.device("cpu")


def test_equal_candidates_give_the_usual_losses(tmp_path: Path) -> None:
    """Over steps, with a memory and estimated frequencies; saved and taken up by another one on the way."""
    dataset, schema = write_tiny(tmp_path / "data"), tiny_schema()
    with runtime(RuntimeConfig(device="cpu", threads=1)):
        sides = task_sides(dataset.manifest, schema)
        usual = Objective(sides, LOSSES, NEGATIVES, CPU)
        own = objective_for(Single(), sides, LOSSES, NEGATIVES, CPU)
        assert isinstance(own, OwnCandidatesObjective)
        torch.manual_seed(0)
        model = TwoTower(model_spec(dataset.manifest, schema, LOSSES), ModelConfig(dim=16), device=CPU)
        reader = Reader(ReaderConfig(batch_size=30), dataset, schema, negatives=NEGATIVES, seed=0, rank=0, world_size=1)
        for step, batch in enumerate(islice(iter(reader), 5)):
            with torch.no_grad():
                vectors = model(batch)
                of_tasks = vectors._replace(negative=dict.fromkeys(sides, vectors.negative["product"]))
                expected = usual(vectors, batch, step)
                found = own(of_tasks, batch, step)
            assert {task: loss.item() for task, loss in found.items()} == {t: one.item() for t, one in expected.items()}
            assert own.numbers() == usual.numbers()
            assert own.tensors().keys() == usual.tensors().keys()
            assert all(torch.equal(tensor, usual.tensors()[name]) for name, tensor in own.tensors().items())
            if step == 2:
                later = objective_for(Single(), sides, LOSSES, NEGATIVES, CPU)
                for name, room in later.restore(own.numbers()).items():
                    room.copy_(own.tensors()[name])
                own = later
        with pytest.raises(UserError, match=r"memories of the tasks \['alike'\]"):
            own.restore({"memories": {"alike": {}}, "frequencies": {}})


def test_shared_candidates_keep_the_usual_objective() -> None:
    chosen = objective_for(Mmoe(), {}, LOSSES, NEGATIVES, CPU)
    assert type(chosen) is Objective
    assert type(objective_for(Mmoe(candidate_side=True), {}, LOSSES, NEGATIVES, CPU)) is OwnCandidatesObjective
