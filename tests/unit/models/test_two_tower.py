"""The model on one CPU without sharding: shapes, units, what an untrained model knows, and what is directed."""

import numpy as np
import pytest
import torch

from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import NegativesConfig, Uniform
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.scales import Temperature
from torchrec_mt.models.towers import unit
from torchrec_mt.models.two_tower import ModelConfig, TwoTower
from torchrec_mt.training.assemble import model_spec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def batch(dataset: PreparedDataset) -> Batch:
    config, negatives = ReaderConfig(batch_size=30, prefetch=0), NegativesConfig(sources=(Uniform(count=8),))
    return next(iter(Reader(config, dataset, tiny_schema(), negatives=negatives, seed=0, rank=0, world_size=1)))


def make_model(dataset: PreparedDataset, **settings: object) -> TwoTower:
    torch.manual_seed(0)
    config = ModelConfig(dim=16, hidden=24, task_hidden=24, **settings)  # type: ignore[arg-type]
    return TwoTower(model_spec(dataset.manifest, tiny_schema(), LossConfig()), config, device=CPU)


def test_vectors_have_length_one_and_the_pairs_shapes(dataset: PreparedDataset, batch: Batch) -> None:
    vectors = make_model(dataset)(batch)
    for name in ("find", "alike", "goes_with"):
        assert vectors.anchor[name].shape == vectors.candidate[name].shape == (10, 16)
        torch.testing.assert_close(vectors.anchor[name].norm(dim=1), torch.ones(10))
    assert vectors.negative["product"].shape == (8, 16)
    assert vectors.inverse_temperature["find"].item() == pytest.approx(1 / 0.07)


def test_temperatures_stay_within_their_bounds_and_come_back(dataset: PreparedDataset) -> None:
    soft = Temperature(initial=0.1, minimum=0.05, maximum=0.5)
    model = make_model(dataset, temperature=soft, temperatures={"find": Temperature(initial=0.3, learned=False)})
    log_inverse_T = model.scales.log_inverse_T
    with torch.no_grad():
        log_inverse_T.copy_(torch.tensor([9.0, -9.0, 9.0]))
    found, _ = model.scales()
    assert [value.item() for value in found.values()] == pytest.approx([1 / 0.3, 2.0, 20.0])
    model.scales.clip()
    sum(model.scales()[0].values()).backward()  # type: ignore[union-attr]
    assert log_inverse_T.grad is not None
    assert (log_inverse_T.grad > 0).all(), "no way back from the bound"
    torch.optim.SGD([log_inverse_T], lr=0.01).step()
    model.scales.clip()
    assert model.scales()[0]["find"].item() == pytest.approx(1 / 0.3), "fixed, but it moved"
    assert 10 < model.scales()[0]["goes_with"].item() < 20


@pytest.mark.parametrize("rows_at_once", [1, 7, 16])
def test_towers_in_slices_give_the_same_gradient(dataset: PreparedDataset, batch: Batch, rows_at_once: int) -> None:
    def gradients(at_once: int) -> dict[str, torch.Tensor]:
        model = make_model(dataset, rows_at_once=at_once)
        vectors = model(batch)
        parts = [*vectors.anchor.values(), *vectors.candidate.values(), *vectors.negative.values()]
        rng = torch.Generator().manual_seed(3)
        sum((part * torch.randn(part.shape, generator=rng)).sum() for part in parts).backward()  # type: ignore[union-attr]
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole, sliced = gradients(0), gradients(rows_at_once)
    assert whole.keys() == sliced.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(sliced[name], gradient, rtol=1e-4, atol=1e-6)


def test_pairs_and_whole_entities_are_encoded_alike(dataset: PreparedDataset, batch: Batch) -> None:
    model = make_model(dataset).eval()
    ids = batch.pairs["goes_with"].anchor_id_B.numpy()
    # The reader drops ids at random, evaluation never does: compare on a batch without dropout.
    clean = Collator(dataset).entities("product", ids)
    anchors = model(clean, {"goes_with": "product"}).anchor["goes_with"]
    one_by_one = torch.cat(
        [
            model(Collator(dataset).entities("product", ids[i : i + 1]), {"goes_with": "product"}).anchor["goes_with"]
            for i in range(3)
        ]
    )
    torch.testing.assert_close(anchors[:3], one_by_one)


def test_an_untrained_model_already_scores_by_shared_tokens(dataset: PreparedDataset) -> None:
    model = make_model(dataset).eval()
    with torch.no_grad():
        queries = model(Collator(dataset).entities("query", np.arange(24)), {"find": "query"}).anchor["find"]
        products = model(Collator(dataset).entities("product", np.arange(60)), {}).negative["product"]
    scores = queries @ products.T
    same_group = (torch.arange(24) % 6)[:, None] == (torch.arange(60) % 6)[None, :]
    assert scores[same_group].mean() > scores[~same_group].mean() + 0.1


def test_only_the_anchor_side_knows_the_task(dataset: PreparedDataset) -> None:
    model = make_model(dataset).eval()
    before = model(Collator(dataset).entities("product", np.arange(5)), {"alike": "product", "goes_with": "product"})
    torch.testing.assert_close(
        before.anchor["alike"], before.anchor["goes_with"]
    )  # conditioning starts at the identity
    with torch.no_grad():
        model.conditioning.own["goes_with"].down.weight.normal_()
    after = model(Collator(dataset).entities("product", np.arange(5)), {"alike": "product", "goes_with": "product"})
    torch.testing.assert_close(after.anchor["alike"], before.anchor["alike"])
    torch.testing.assert_close(after.negative["product"], before.negative["product"])
    assert (after.anchor["goes_with"] - before.anchor["goes_with"]).abs().max() > 0.1


def test_an_entity_without_features_gives_bounded_gradients() -> None:
    """All bags empty, an untrained tower: a vector of zeros. torch's `normalize` multiplies its gradient by 1e12."""
    x_ED = torch.zeros(3, 16, requires_grad=True)
    unit(x_ED).sum().backward()
    assert x_ED.grad is not None
    assert x_ED.grad.abs().max() <= 1000.1
    torch.testing.assert_close(unit(torch.randn(5, 16)).norm(dim=1), torch.ones(5))
