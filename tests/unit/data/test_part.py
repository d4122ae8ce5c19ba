"""What some tasks need of a schema and of a prepared dataset, by hand."""

from dataclasses import replace

import pytest

from tests.tiny import tiny_schema
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.part import dataset_of_schema, schema_of_tasks
from torchrec_mt.data.slots import assign_slots
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema


def with_judged(schema: Schema) -> Schema:
    """The tiny schema, and a task that is only evaluated."""
    judged = replace(schema.tasks["alike"], trained_as="alike")
    return replace(schema, tasks={**schema.tasks, "alike_across": judged})


def test_no_task_named_is_the_whole() -> None:
    schema = tiny_schema()
    assert schema_of_tasks(schema, ()) is schema


def test_a_task_takes_along_what_is_judged_as_it_and_what_it_reads() -> None:
    part = schema_of_tasks(with_judged(tiny_schema()), ["alike"])
    assert (list(part.tasks), list(part.entities)) == (["alike", "alike_across"], ["product"])
    assert list(part.tables) == ["tokens", "product_id", "kind"]
    part = schema_of_tasks(with_judged(tiny_schema()), ["goes_with", "find"])
    assert list(part.tasks) == ["find", "goes_with"], "in declared order"
    assert list(part.entities) == ["query", "product"]


def test_a_table_that_nothing_reads_is_left_out() -> None:
    schema = tiny_schema()
    product = schema.entities["product"]
    own = {name: feature for name, feature in product.features.items() if name != "title"}
    schema = replace(schema, entities={**schema.entities, "product": replace(product, features=own)})
    assert list(schema_of_tasks(schema, ["alike"]).tables) == ["product_id", "kind"]


@pytest.mark.parametrize("tasks", [["seek"], ["find", "alike_across"]])
def test_what_is_no_trained_task(tasks: list[str]) -> None:
    said = rf"trainer.tasks names '{tasks[-1]}', which is no trained task: \['find', 'alike', 'goes_with'\]"
    with pytest.raises(UserError, match=said):
        schema_of_tasks(with_judged(tiny_schema()), tasks)


def test_the_dataset_is_seen_in_part(dataset: PreparedDataset) -> None:
    part = dataset_of_schema(dataset, schema_of_tasks(tiny_schema(), ["alike"]))
    assert (part.path, part.manifest.digest) == (dataset.path, dataset.manifest.digest)
    assert (list(part.manifest.tasks), list(part.manifest.entities)) == (["alike"], ["product"])
    assert [slot.features for slot in assign_slots(part.manifest)] == [
        {"product": "title"},
        {"product": "product_id"},
        {"product": "kind"},
    ]
    assert dataset_of_schema(dataset, tiny_schema()).manifest == dataset.manifest
