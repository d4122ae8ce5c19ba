"""What loading says of each entry and does where checkpoint and run do not agree. In this process, on one rank."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.distributed import destroy_process_group, init_process_group

from tests.parity.tables import CASES, Training, told
from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.table_state import LoadReport, Value, load_tables, table_layout, table_state
from torchrec_mt.errors import UserError


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    quiet_dependencies()
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def trained(kind: str, name: str = "row_wise") -> Training:
    training = Training(kind, CASES[kind, name])
    for step in range(2):
        training.step(step)
    return training


def whole(value: Value) -> Tensor:
    """Of one rank, whose pieces lie side by side."""
    if not isinstance(value, Pieces):
        return value
    joined = torch.empty(value.shape)
    for (row, column), tensor in value.pieces:
        joined[row : row + tensor.shape[0], column : column + tensor.shape[1]] = tensor
    return joined


def load(into: Training, saved: Training, layout: dict[str, Any] | None = None) -> tuple[LoadReport, set[str]]:
    """Loads from memory what another model holds; also what was asked for."""
    state = {name: whole(value).clone() for name, value in saved.state().items()}
    asked: set[str] = set()

    def read(wanted: dict[str, Value]) -> None:
        asked.update(wanted)
        for name, value in wanted.items():
            for (row, column), tensor in value.pieces if isinstance(value, Pieces) else [((0, 0), value)]:
                tensor.copy_(state[name][row : row + tensor.shape[0], column : column + tensor.shape[1]])

    layout = table_layout(saved.model, saved.rule) if layout is None else layout
    return load_tables(into.model, layout, read, into.rule, into.optimizers.combined), asked


@pytest.mark.parametrize("name", ["row_wise", "data_parallel"])
def test_sums_of_another_optimizer_start_at_zero_and_it_is_said(name: str) -> None:
    run, saved = trained("rowwise_adagrad", name), trained("adagrad")
    report, asked = load(run, saved)
    weights = [f"tables.{table}.weight" for table in "abc"]
    assert asked == set(weights)
    assert report.restored == weights
    reason = "saved of adagrad, the run's is rowwise_adagrad"
    assert report.reinitialised == {f"tables.{table}.sum": reason for table in "abc"}
    found, wanted = run.state(), saved.state()
    assert all(torch.equal(whole(found[name]), whole(wanted[name])) for name in weights)
    assert not any(whole(found[f"tables.{table}.sum"]).any() for table in "abc")


def test_sums_that_nobody_needs_are_not_read() -> None:
    report, asked = load(trained("sgd"), trained("adagrad"))
    assert report.unexpected == [f"tables.{table}.sum" for table in "abc"]
    assert asked == {f"tables.{table}.weight" for table in "abc"}


def test_sums_that_were_not_saved_start_at_zero() -> None:
    run = trained("adagrad")
    report, _ = load(run, trained("sgd"))
    assert report.reinitialised == {f"tables.{table}.sum": "saved of sgd, the run's is adagrad" for table in "abc"}
    assert not whole(run.state()["tables.a.sum"]).any()


def test_tables_of_one_side_alone() -> None:
    run, saved = trained("adagrad"), trained("adagrad")
    layout = table_layout(saved.model, saved.rule)
    layout["gone"] = layout.pop("b")
    before = told(run.state())["tables.b.weight"][1][0][1]
    report, asked = load(run, saved, layout)
    assert report.missing == ["tables.b.weight", "tables.b.sum"]
    assert report.unexpected == ["tables.gone.weight", "tables.gone.sum"]
    assert not any(".b." in name for name in asked)
    assert torch.equal(whole(run.state()["tables.b.weight"]), before)


def test_a_table_of_another_shape_is_refused_before_anything_is_read() -> None:
    run = trained("sgd")
    layout = table_layout(run.model, run.rule)
    layout["c"]["rows"] = 1200
    with pytest.raises(UserError, match="table 'c' has 23 rows of width 16, the checkpoint's 1,200 of width 16: take"):
        load_tables(run.model, layout, lambda wanted: pytest.fail("read"), run.rule)


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad"])
@pytest.mark.parametrize("name", ["row_wise", "column_wise", "data_parallel", "mixed"])
def test_the_state_is_the_live_tables(kind: str, name: str) -> None:
    """Nothing is copied: a step shows in the state that was taken before it."""
    training = trained(kind, name)
    state = training.state()
    before = {entry: whole(value).clone() for entry, value in state.items()}
    training.step(2)
    for entry, value in training.state().items():
        assert torch.equal(whole(state[entry]), whole(value)), entry
        assert not torch.equal(before[entry], whole(value)), entry


def test_weights_alone() -> None:
    training = trained("adagrad")
    assert list(table_state(training.model, None)) == [f"tables.{table}.weight" for table in "abc"]
    assert {told["optimizer"] for told in table_layout(training.model, None).values()} == {None}


def test_a_report_fits_a_screen() -> None:
    report = LoadReport(
        restored=["tables.a.weight"],
        converted={"tables.a.sum": "mean over columns, 2 -> 1 blocks"},
        missing=[f"tables.t{i}.weight" for i in range(200)],
    )
    assert report.text().splitlines() == [
        "restored: 1",
        "converted: 1",
        "  tables.a.sum (mean over columns, 2 -> 1 blocks)",
        "missing, left as they were: 200",
        *(f"  tables.t{i}.weight" for i in range(8)),
        "  and 192 more",
    ]


@pytest.mark.parametrize("name", ["row_wise", "column_wise"])
def test_a_second_backward_of_a_step_is_no_second_update(name: str) -> None:
    training = trained("rowwise_adagrad" if name == "row_wise" else "adagrad", name)
    before = {entry: whole(value).clone() for entry, value in training.state().items()}
    with pytest.raises(ValueError, match=r"a second backward of a step .* would be a second update"):
        training.pass_backward(2)
    assert all(torch.equal(before[entry], whole(value)) for entry, value in training.state().items())


def test_replicated_tables_may_have_several() -> None:
    """Their gradients add up until the optimizer's step."""
    training = trained("sgd", "data_parallel")
    training.pass_backward(2)
