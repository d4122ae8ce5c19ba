"""Which feature of which entity travels under which key of the KeyedJaggedTensor.

A slot is one lookup position of a table. The k-th feature of *each* entity that reads a table shares the table's k-th
slot: rows of different entities never overlap, so one key serves them all.
"""

from dataclasses import dataclass

from torchrec_mt.data.dataset import Manifest


@dataclass(frozen=True)
class Slot:
    """One key of the KeyedJaggedTensor: the table it reads, and the feature that fills it per entity."""

    key: str
    table: str
    features: dict[str, str]


def assign_slots(manifest: Manifest) -> list[Slot]:
    """Slots of all sparse features, in the order of the manifest's tables."""
    by_key: dict[str, Slot] = {}
    for table in manifest.tables:
        for entity, info in manifest.entities.items():
            reading = [name for name, feature in info.features.items() if feature.table == table]
            for position, name in enumerate(reading):
                key = f"{table}/{position}"
                by_key.setdefault(key, Slot(key, table, {})).features[entity] = name
    return list(by_key.values())
