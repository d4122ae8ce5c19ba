"""How an entity is told to a person: its text, else its id, and its category."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.slices import MISSING, RARE, category_feature, column_slicing

LONGEST = 80
"""Characters of a text; what is longer ends in "…"."""


@dataclass(frozen=True)
class Label:
    """One entity. `category` is None where it has none or a rare one."""

    text: str
    category: str | None

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "category": self.category}


def labels_of(dataset: PreparedDataset, entity: str, rows: np.ndarray) -> list[Label]:
    """Labels of the entities in `rows`: the feature `title`, else the first text; the id where that is empty."""
    features = dataset.manifest.entities[entity].features
    texts = [name for name, info in features.items() if info.kind == "text"]
    column = "title" if "title" in texts else next(iter(texts), None)
    columns = ["id", *([f"{column}__text"] if column else [])]
    table = dataset.read(dataset.entity_path(entity), columns).take(pa.array(rows))
    ids = table["id"].to_pylist()
    told = table[columns[1]].to_pylist() if column else [None] * len(ids)
    category = category_feature(dataset, entity)
    names: list[str | None] = [None] * len(ids)
    if category is not None:
        slicing = column_slicing(dataset, entity, category, rows)
        names = [slicing.labels[code] for code in slicing.code.tolist()]
    return [
        Label(_cut(text or "") or _cut(one), None if name in (None, RARE, MISSING) else _cut(str(name)))
        for one, text, name in zip(ids, told, names, strict=True)
    ]


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
