"""The same two-tower model in plain PyTorch: nn.EmbeddingBag with sparse gradients, Adagrad, F.cross_entropy.

The rival of `bench_step`. It gets its batches ready made (no reader to wait for), looks up one row per pair as a plain
program does, and scores the batch by one matrix product.
"""

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from tests.benchmarks.dataset import DIM, ROWS
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.models.sharing.conditioned import TaskConditioning
from torchrec_mt.models.sharing.parts import Sizes
from torchrec_mt.models.towers import Tower


class PlainTwoTower(nn.Module):
    """Tables, towers and conditioning of the project's default model, unsharded."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {
                name: nn.EmbeddingBag(rows, DIM, mode="mean", sparse=True)
                for name in ("query_id", "product_id", "words", "brand")
            }
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=DIM**-0.5)
        shape = {"dim": DIM, "hidden": 128, "depth": 1, "dropout": 0.0}
        sizes = Sizes(**shape, task_hidden=128, task_dim=16)
        self.query, self.product = Tower([DIM] * 2, 0, **shape), Tower([DIM] * 3, 0, **shape)
        self.anchor = TaskConditioning(["search"], sizes)
        self.log_inverse = nn.Parameter(-torch.tensor(0.07).log())

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of the pairs."""
        table = self.tables
        none_BD = batch["query_id"].new_zeros(len(batch["query_id"]), 0, dtype=torch.float32)
        query = [table["query_id"](batch["query_id"]), table["words"](batch["query_words"])]
        product = [
            table["product_id"](batch["product_id"]),
            table["words"](batch["product_words"]),
            table["brand"](batch["brand"]),
        ]
        anchor_BD = normalize(self.anchor(self.query(query, none_BD), "search"), dim=1)
        candidate_BD = normalize(self.product(product, none_BD), dim=1)
        logits_BB = self.log_inverse.exp() * anchor_BD @ candidate_BD.T
        return cross_entropy(logits_BB, torch.arange(len(logits_BB)))


class PlainTraining:
    """One step of it."""

    def __init__(self, rows: int) -> None:
        torch.manual_seed(0)
        self.model = PlainTwoTower(rows)
        tables = list(self.model.tables.parameters())
        dense = [p for name, p in self.model.named_parameters() if not name.startswith("tables.")]
        self.optimizers = [torch.optim.Adagrad(tables, lr=0.05), torch.optim.Adam(dense, lr=1e-3)]

    def step(self, batch: dict[str, Tensor]) -> float:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.model(batch)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()


def plain_batches(dataset: PreparedDataset, batch_size: int, count: int) -> list[dict[str, Tensor]]:
    """Ready batches of the benchmark's own pairs and features, a row per pair."""
    pairs = pq.read_table(dataset.pairs_path("search", "train"))
    bags = {
        (entity, feature): np.load(dataset.store_path(entity) / f"{feature}.values.npy").reshape(ROWS, -1)
        for entity, feature in (("query", "id"), ("query", "text"), *(("product", f) for f in ("id", "text", "brand")))
    }
    batches = []
    for start in range(0, batch_size * count, batch_size):
        query, product = (pairs[end].to_numpy()[start : start + batch_size] for end in ("anchor", "candidate"))
        rows = {
            "query_id": bags["query", "id"][query],
            "query_words": bags["query", "text"][query],
            "product_id": bags["product", "id"][product],
            "product_words": bags["product", "text"][product],
            "brand": bags["product", "brand"][product],
        }
        batches.append({name: torch.from_numpy(ids.astype(np.int64)) for name, ids in rows.items()})
    return batches
