"""Whole models of every architecture, unsharded: whose tables they read, where gradients go, what they count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.sharing_kinds import KINDS, OWN_TABLES, PER_TASK
from tests.tiny import TASKS, tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, Named, NegativesConfig, Uniform
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.sharing.shared_bottom import SharedBottom
from torchrec_mt.models.sharing.single import OwnTowers
from torchrec_mt.models.sharing.stem import StemTowers
from torchrec_mt.models.size import matched, model_size
from torchrec_mt.models.spec import ModelSpec, with_own_tables
from torchrec_mt.models.towers import unit
from torchrec_mt.models.two_tower import ModelConfig, TwoTower, Vectors, entity_ranges
from torchrec_mt.training.assemble import model_spec

CPU = torch.device("cpu")
NEGATIVES = NegativesConfig(sources=(InBatch(), Uniform(count=8)), tasks={"find": (Uniform(count=8), Named(count=2))})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def batch(dataset: PreparedDataset) -> Batch:
    config = ReaderConfig(batch_size=30, prefetch=0)
    return next(iter(Reader(config, dataset, tiny_schema(), negatives=NEGATIVES, seed=0, rank=0, world_size=1)))


def config_of(name: str, **settings: object) -> ModelConfig:
    return ModelConfig(dim=16, hidden=24, task_hidden=20, sharing=KINDS[name], **settings)


def spec_of(dataset: PreparedDataset, name: str) -> ModelSpec:
    return model_spec(dataset.manifest, tiny_schema(), LossConfig(), KINDS[name])


def make_model(dataset: PreparedDataset, name: str, **settings: object) -> TwoTower:
    """No weight is left at its start."""
    model = TwoTower(spec_of(dataset, name), config_of(name, **settings), device=CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.startswith("scales."):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def all_of(vectors: Vectors, *tasks: str) -> Tensor:
    """Something that hangs on every vector of the tasks, and on their temperatures."""
    parts = [*(vectors.anchor[task] for task in tasks), *(vectors.candidate[task] for task in tasks)]
    parts += [vectors.private[task] for task in tasks if task in vectors.private]
    parts += [negative for name, negative in vectors.negative.items() if name in tasks or name == "product"]
    rng = torch.Generator().manual_seed(3)
    total = sum((part * torch.randn(part.shape, generator=rng)).sum() for part in parts)
    return total + sum(vectors.inverse_temperature[task] for task in tasks)


@pytest.mark.parametrize("name", KINDS)
def test_every_vector_is_there_and_of_length_one(dataset: PreparedDataset, batch: Batch, name: str) -> None:
    vectors = make_model(dataset, name)(batch)
    assert vectors.private["find"].shape == (10, 2, 16)
    assert vectors.negative.keys() == (TASKS.keys() if name in PER_TASK else {"product"})
    for part in (*vectors.anchor.values(), *vectors.candidate.values(), *vectors.negative.values()):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(len(part)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_pairs_and_whole_entities_are_encoded_alike(dataset: PreparedDataset, name: str) -> None:
    """A batch of pairs without dropout of ids, as training has it, and its entities as retrieval asks for them."""
    schema = tiny_schema(id_dropout=0.0)
    reader = Reader(ReaderConfig(batch_size=9), dataset, schema, negatives=NEGATIVES, seed=0, rank=0, world_size=1)
    batch, model, collator = next(iter(reader)), make_model(dataset, name).eval(), Collator(dataset)
    vectors = model(batch)
    for task, (anchor, candidate) in TASKS.items():
        pairs = batch.pairs[task]
        found = model(collator.entities(anchor, pairs.anchor_id_B.numpy()), {task: anchor}).anchor[task]
        torch.testing.assert_close(found, vectors.anchor[task], rtol=0, atol=1e-6)
        asked = {task: candidate} if name in PER_TASK else {}
        for ids, expected in (
            (pairs.candidate_id_B, vectors.candidate[task]),
            (batch.negatives["product"].id_M, vectors.negative[task if name in PER_TASK else "product"]),
        ):
            whole = model(collator.entities(candidate, ids.numpy()), {}, candidates_of=asked)
            found = whole.candidate[task] if name in PER_TASK else whole.negative[candidate]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert name in PER_TASK or not torch.equal(vectors.anchor["alike"], vectors.anchor["goes_with"])


@pytest.mark.parametrize("name", KINDS)
def test_gradient_flows_to_every_parameter(dataset: PreparedDataset, batch: Batch, name: str) -> None:
    model = make_model(dataset, name)
    all_of(model(batch), *TASKS).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("rows_at_once", [1, 7])
@pytest.mark.parametrize("name", ["lhuc", "ple of candidates", "single", "stem"])
def test_slices_give_the_same_gradient(dataset: PreparedDataset, batch: Batch, name: str, rows_at_once: int) -> None:
    def gradients(at_once: int) -> dict[str, Tensor]:
        model = make_model(dataset, name, rows_at_once=at_once)
        all_of(model(batch), *TASKS).backward()
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    whole, sliced = gradients(0), gradients(rows_at_once)
    assert whole.keys() == sliced.keys()
    for key, gradient in whole.items():
        torch.testing.assert_close(
            sliced[key], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def touched(model: TwoTower, batch: Batch, task: str) -> set[str]:
    """Parameters that a task's loss moves, scales left out."""
    all_of(model(batch), task).backward()
    moved = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    return {key for key in moved if not key.startswith("scales.")}


@pytest.mark.parametrize("task", TASKS)
def test_single_never_mixes_tasks(dataset: PreparedDataset, batch: Batch, task: str) -> None:
    model = make_model(dataset, "single")
    own = {key for key, _ in model.named_parameters() if f"of_{task}." in key or key.endswith(f"@{task}.weight")}
    assert touched(model, batch, task) == own
    others = {f"of_{other}." for other in TASKS if other != task} | {f"@{other}." for other in TASKS if other != task}
    assert not [key for key in own if any(other in key for other in others)]


@pytest.mark.parametrize("task", TASKS)
def test_stem_moves_shared_and_own_parts_alone(dataset: PreparedDataset, batch: Batch, task: str) -> None:
    model = make_model(dataset, "stem")
    moved = touched(model, batch, task)
    assert not [
        key for key in moved for other in TASKS if other != task and (f"of_{other}." in key or f"@{other}" in key)
    ]
    own = {key for key, _ in model.named_parameters() if f"of_{task}." in key or key.endswith(f"@{task}.weight")}
    towers = tuple(f"towers.shared.of_{entity}." for entity in TASKS[task])
    shared = {key for key, _ in model.named_parameters() if key.startswith(towers)}
    shared |= {key for key, _ in model.named_parameters() if key.startswith("embeddings.") and "@" not in key}
    assert moved == own | shared
    with torch.no_grad():
        before = model(batch).candidate[task].clone()
        for key, parameter in model.named_parameters():
            if "@" in key and not key.endswith(f"@{task}.weight"):
                parameter.mul_(3)
        assert not torch.allclose(model(batch).candidate[task], before), "the others' towers are not heard"


@pytest.mark.parametrize("name", OWN_TABLES)
def test_lookups_are_those_of_each_tasks_own_table(dataset: PreparedDataset, batch: Batch, name: str) -> None:
    """Every bag of every entity, walked row by row."""
    model, spec = make_model(dataset, name), spec_of(dataset, name)
    tables = {key.split(".")[-2].removeprefix("table_"): p.detach() for key, p in model.embeddings.named_parameters()}
    rows = batch.features.stride()
    bags = {key: at * rows for at, key in enumerate(batch.features.keys())}
    offsets = batch.features.offsets().tolist()
    found = model.embeddings(batch.features, entity_ranges(batch))
    for entity, (start, stop) in entity_ranges(batch).items():
        readers = [task for task, sides in TASKS.items() if entity in sides]
        expected = []
        for reader in readers if name == "single" else [None, *readers]:
            for key in spec.entities[entity].keys:
                table_RD = tables[key.partition("/")[0] + (f"@{reader}" if reader else "")]
                pooled = []
                for row in range(start, stop):
                    first, last = offsets[bags[key] + row : bags[key] + row + 2]
                    values, weights = batch.features.values()[first:last], batch.features.weights()[first:last]
                    pooled.append(sum((w * table_RD[v] for v, w in zip(values, weights, strict=True)), torch.zeros(16)))
                expected.append(torch.stack(pooled))
        assert len(found[entity]) == len(expected)
        for one, other in zip(found[entity], expected, strict=True):
            torch.testing.assert_close(one, other)


def test_tables_of_tasks_have_the_keys_that_their_entities_read(dataset: PreparedDataset) -> None:
    shared = spec_of(dataset, "mmoe")
    assert spec_of(dataset, "conditioned") == shared
    assert shared.vocabularies == {name: name for name in ("tokens", "product_id", "kind")}
    single, stem = spec_of(dataset, "single"), spec_of(dataset, "stem")
    copies = {f"{table}@{task}": table for task in TASKS for table in ("tokens", "product_id", "kind")}
    assert single.vocabularies == copies
    assert stem.vocabularies == shared.vocabularies | copies
    assert [table for table in stem.tables if table.task is None] == [*shared.tables]
    assert {table.name: table.keys for table in single.tables}["tokens@alike"] == ("tokens/0",)
    assert {name: entity.readers for name, entity in stem.entities.items()} == {
        "query": (None, "find"),
        "product": (None, *TASKS),
    }
    # A table that none of a task's entities reads is not copied.
    narrow = replace(shared, tasks={"only": ("query", "query")})
    assert [table.name for table in with_own_tables(narrow, shared=False, own=True).tables] == ["tokens@only"]


def test_single_is_one_model_per_task(dataset: PreparedDataset, batch: Batch) -> None:
    """The twin of each task: a model of that task alone, with towers and tables that it shares with none."""
    single = make_model(dataset, "single")
    vectors, state = single(batch), single.state_dict()
    for task, entities in TASKS.items():
        spec = model_spec(dataset.manifest, tiny_schema(), LossConfig())
        of_task = {name: entity for name, entity in spec.entities.items() if name in entities}
        alone = replace(spec, tasks={task: entities}, entities=of_task)
        twin = TwoTower(alone, replace(config_of("single"), sharing=SharedBottom()), device=CPU)
        for key, parameter in twin.named_parameters():
            if not key.startswith("scales."):
                own = key.replace("towers.", f"towers.own.of_{task}.")
                own = own.replace(".weight", f"@{task}.weight") if ".embedding_bags." in key else own
                parameter.data = state[own].clone()
        part = {name: rows for name, rows in batch.entities.items() if name in entities}
        found = twin(replace(batch, entities=part, pairs={task: batch.pairs[task]}))
        for kind in ("anchor", "candidate"):
            torch.testing.assert_close(getattr(found, kind)[task], getattr(vectors, kind)[task], rtol=0, atol=1e-6)
        torch.testing.assert_close(found.negative["product"], vectors.negative[task], rtol=0, atol=1e-6)


def test_stem_mixes_all_towers_of_an_entity(dataset: PreparedDataset, batch: Batch) -> None:
    model = make_model(dataset, "stem")
    towers = model.towers
    assert isinstance(towers, StemTowers)
    sparse = model.embeddings(batch.features, entity_ranges(batch))
    vectors = model(batch)
    features, dense_ED = sparse["product"], batch.entities["product"].dense_ED
    of = {reader: features[3 * at : 3 * at + 3] for at, reader in enumerate([None, *TASKS])}
    said = [towers.shared["product"](of[None], dense_ED)] + [towers.own[t]["product"](of[t], dense_ED) for t in TASKS]
    for task, pairs in batch.pairs.items():
        expected = []
        for row in pairs.candidate_B.tolist():
            read = torch.cat([of[None][k][row] + of[task][k][row] for k in range(3)] + [dense_ED[row]])
            gate = towers.gates[task]["product"]
            powers = (gate.weight @ read + gate.bias).exp().tolist()
            expected.append(sum(power / sum(powers) * x_ED[row] for power, x_ED in zip(powers, said, strict=True)))
        torch.testing.assert_close(vectors.candidate[task], unit(torch.stack(expected)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_sizes_are_those_of_the_model(dataset: PreparedDataset, name: str) -> None:
    model, spec, config = make_model(dataset, name).eval(), spec_of(dataset, name), config_of(name)
    told = model_size(spec, config).to_json()
    tables = {id(p) for p in model.embeddings.parameters()}
    assert told["dense_parameters"] == sum(p.numel() for p in model.parameters() if id(p) not in tables)
    assert told["table_parameters"] == sum(p.numel() for p in model.embeddings.parameters())
    assert told["table_bytes"] == sum(p.nbytes for p in model.embeddings.parameters())
    assert {table: one["vocabulary"] for table, one in told["tables"].items()} == model.vocabularies
    assert len(told["tables"]) == {"single": 9, "stem": 12}.get(name, 3)
    collator, ids = Collator(dataset), np.arange(6)
    for task, (anchor, candidate) in TASKS.items():
        counted = 0
        for entity, anchors_of, candidates_of in ((anchor, {task: anchor}, {}), (candidate, {}, {task: candidate})):
            flops = []
            for count in (3, 6):  # what is computed once a batch goes out
                with FlopCounterMode(display=False) as counter:
                    model(collator.entities(entity, ids[:count]), anchors_of, candidates_of=candidates_of)
                flops.append(counter.get_total_flops())
            counted += (flops[1] - flops[0]) // 3
        assert told["flops_per_pair"][task] == counted
    assert f"{told['dense_parameters']:,} dense parameters" in model_size(spec, config).text()


@pytest.mark.parametrize("name", KINDS)
def test_widths_are_scaled_to_a_wished_size(dataset: PreparedDataset, name: str) -> None:
    spec = spec_of(dataset, name)
    for wanted in (20_000, 300_000):
        config = matched(spec, config_of(name, match_parameters=wanted))
        assert abs(model_size(spec, config).dense_parameters - wanted) <= 0.02 * wanted
        assert config.hidden / config.task_hidden == pytest.approx(24 / 20, rel=0.1)
    assert matched(spec, config_of(name)) == config_of(name)


def test_a_size_that_no_width_gives_is_refused(dataset: PreparedDataset) -> None:
    spec = spec_of(dataset, "ple")
    with pytest.raises(
        UserError, match=r"model\.match_parameters = 1,000: with sharing 'ple' and model\.dim = 16"
    ) as error:
        matched(spec, config_of("ple", match_parameters=1000))
    assert "hidden = 1, task_hidden = 1, sharing.expert_hidden = 1" in str(error.value)


def test_towers_of_tasks_say_what_is_asked_for(dataset: PreparedDataset) -> None:
    model = make_model(dataset, "single")
    assert isinstance(model.towers, OwnTowers)
    batch = Collator(dataset).entities("product", np.arange(4))
    both = model.encode(batch, tasks=["goes_with", "find"])["product"]
    assert list(both) == ["find", "goes_with"]
    torch.testing.assert_close(both["goes_with"], model.encode(batch, tasks=["goes_with"])["product"]["goes_with"])
