"""Which layouts are refused and what is said; what a config may write; what a reader of a trained model gets."""

import json
from pathlib import Path

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from torchrec_mt.config import check_config, config_to_json, load_config
from torchrec_mt.distributed.layouts import (
    Auto,
    ColumnWise,
    DataParallel,
    Grid,
    Hosts,
    Layout,
    RowWise,
    TableRowWise,
    TableWise,
    check_layout,
    leaves_a_rank_empty,
)
from torchrec_mt.distributed.planning import ShardingConfig, for_reading, told_of_few_rows, too_few_rows
from torchrec_mt.distributed.table_optimizers import Adagrad, RowWiseAdagrad, Sgd, TableOptimizer
from torchrec_mt.errors import UserError

DEMO = Path("launch/demo.toml")


@pytest.fixture(autouse=True)
def no_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def check(
    layout: Layout,
    *,
    rows: int = 1000,
    dim: int = 16,
    optimizer: TableOptimizer | None = None,
    device_type: str = "cpu",
    world_size: int = 4,
) -> None:
    check_layout(
        "t",
        layout,
        rows=rows,
        dim=dim,
        optimizer=optimizer or RowWiseAdagrad(),
        device_type=device_type,
        hosts=Hosts.of(world_size),
        world_size=world_size,
    )


@pytest.mark.parametrize(
    "layout",
    [
        Auto(kind="auto"),
        DataParallel(kind="data_parallel"),
        TableWise(kind="table_wise"),
        RowWise(kind="row_wise"),
        ColumnWise(kind="column_wise", sum_per_block=True),
    ],
)
def test_what_needs_nothing_is_allowed(layout: Layout) -> None:
    check(layout)


@pytest.mark.parametrize("optimizer", [Adagrad(), Sgd()])
def test_columns_need_no_acceptance_where_they_are_exact(optimizer: TableOptimizer) -> None:
    check(ColumnWise(kind="column_wise"), optimizer=optimizer)
    with pytest.raises(UserError, match=f"optim.tables is '{optimizer.kind}', which has no sum per row: leave the key"):
        check(ColumnWise(kind="column_wise", sum_per_block=True), optimizer=optimizer)


@pytest.mark.parametrize(
    ("layout", "changes", "said"),
    [
        (
            ColumnWise(kind="column_wise"),
            {},
            "keep its own sum of squared gradients per row.*Accept that with sum_per_block = true",
        ),
        (
            ColumnWise(kind="column_wise", columns=3, sum_per_block=True),
            {},
            "columns = 3: the width 16 does not fall into",
        ),
        (
            ColumnWise(kind="column_wise", columns=8, sum_per_block=True),
            {},
            "columns = 8: the width 16 .* a multiple of 4",
        ),
        (
            RowWise(kind="row_wise", kernel="fused_uvm"),
            {},
            "kernel = 'fused_uvm': it lets a GPU .* this device is 'cpu'",
        ),
        (RowWise(kind="row_wise"), {"rows": 9}, "its 9 rows in equal blocks for 4 ranks leave one without any"),
        (TableRowWise(kind="table_row_wise"), {}, "all 4 ranks are on one .LOCAL_WORLD_SIZE.: take 'row_wise'"),
        (Grid(kind="grid"), {}, "all 4 ranks are on one .LOCAL_WORLD_SIZE.: take 'column_wise'"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_reason(layout: Layout, changes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=f"^sharding of table 't' is '{layout.kind}'.*{said}"):
        check(layout, **changes)


def test_layouts_over_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Hosts.of(4) == Hosts(2, 2)
    check(TableRowWise(kind="table_row_wise"), rows=2)
    check(Grid(kind="grid", sum_per_block=True))
    with pytest.raises(UserError, match="its 1 rows in equal blocks for 2 ranks"):
        check(TableRowWise(kind="table_row_wise"), rows=1)
    with pytest.raises(UserError, match="columns = 4: each block of columns needs a host of its own, and there are 2"):
        check(Grid(kind="grid", columns=4, sum_per_block=True))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert Hosts.of(4) is None
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE = '3' does not divide the number of ranks"):
        check(TableRowWise(kind="table_row_wise"))


@pytest.mark.gpu
def test_kernels_beside_the_gpu_are_allowed_on_cuda() -> None:
    check(RowWise(kind="row_wise", kernel="fused_uvm_caching"), device_type="cuda")


def test_which_rows_leave_a_rank_empty() -> None:
    empty = [rows for rows in range(1, 20) if leaves_a_rank_empty(rows, 4)]
    assert empty == [1, 2, 3, 5, 6, 9]
    assert not any(leaves_a_rank_empty(rows, 1) for rows in range(1, 20))


def updated(rows_between: int) -> Tensor:
    """The last table's rows after gradients 1, 2, 3, 4, 5 of its five rows, behind a narrower table of so many rows."""
    host, cpu = EmbeddingLocation.HOST, ComputeDevice.CPU
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[(7, 16, host, cpu), (rows_between, 8, host, cpu), (5, 16, host, cpu)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=1.0,
    )
    for weight in kernel.split_embedding_weights():
        weight.zero_()
    pooled = kernel(indices=torch.arange(5), offsets=torch.tensor([0] * 11 + [1, 2, 3, 4, 5]))
    pooled.backward(torch.cat([torch.zeros(5, 24), torch.arange(1.0, 6.0)[:, None].expand(5, 16)], dim=1))
    return kernel.split_embedding_weights()[2][:, 0]


def test_a_shard_without_rows_spoils_the_next() -> None:
    """The trap that `leaves_a_rank_empty` avoids. Where it is gone, so may the refusal be."""
    assert updated(1).tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert updated(0).tolist() != [-1.0, -2.0, -3.0, -4.0, -5.0]


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("row_wise", RowWise(kind="row_wise")),
        ("column_wise", ColumnWise(kind="column_wise")),
        (
            "{ kind = 'column_wise', columns = 4, sum_per_block = true }",
            ColumnWise(kind="column_wise", columns=4, sum_per_block=True),
        ),
        ("{ kind = 'table_wise', kernel = 'fused_uvm' }", TableWise(kind="table_wise", kernel="fused_uvm")),
        ("{ kind = 'data_parallel' }", DataParallel(kind="data_parallel")),
        ("grid", Grid(kind="grid")),
    ],
)
def test_a_layout_is_a_name_or_a_table(text: str, layout: Layout) -> None:
    config = load_config([DEMO], [f"sharding.tables.brand={text}", f"sharding.default={text}"])
    assert config.sharding.of("brand") == config.sharding.of("product_id") == layout
    assert check_config(json.loads(config_to_json(config)), where="run") == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sharding.default=by_row", "'sharding.default' = 'by_row': input should be 'auto', 'data_parallel', "),
        ("sharding.tables.brand=by_row", "'sharding.tables.brand' = 'by_row': input should be 'auto', 'data_parallel'"),
        (
            "sharding.tables.brand={columns=2}",
            "'sharding.tables.brand' = {'columns': 2} has no kind: choose one of 'auto', ",
        ),
        ("sharding.tables.brand=2", "'sharding.tables.brand' = 2: input should be 'auto', 'data_parallel'"),
        ("sharding.tables.brand={kind='rows'}", "'sharding.tables.brand' has kind = 'rows': choose one of 'auto', "),
        ("sharding.tables.brand={kind='row_wise', columns=2}", "unknown key 'sharding.tables.brand.columns'"),
        ("sharding.tables.brand={kind='data_parallel', kernel='fused'}", "unknown key 'sharding.tables.brand.kernel'"),
        ("sharding.tables.brand={kind='row_wise', kernel='dense'}", "'sharding.tables.brand.kernel' = 'dense'"),
        ("sharding.tables.brand={kind='grid', columns=1}", "sharding.tables.brand.columns = 1: must be at least 2"),
        ("optim.tables.kind=adam", "'optim.tables' has kind = 'adam': choose one of 'rowwise_adagrad', 'adagrad'"),
    ],
)
def test_a_mistake_names_its_key(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([DEMO], [override])
    assert said in str(caught.value)
    assert str(caught.value).count(";") == 0, str(caught.value)


def test_a_trained_model_is_read_where_its_layout_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ShardingConfig(
        default="table_row_wise",
        tables={
            "grid": Grid(kind="grid", sum_per_block=True),
            "uvm": RowWise(kind="row_wise", kernel="fused_uvm"),
            "rows": "row_wise",
            "few": "row_wise",
            "copies": "data_parallel",
        },
        cache_share=0.02,
        reserve=0.3,
    )
    tables = {"hosts": 100, "grid": 100, "uvm": 100, "rows": 100, "few": 5, "copies": 5}

    def kinds(device_type: str) -> dict[str, str]:
        here = for_reading(config, tables, device_type=device_type, world_size=4)
        assert (here.cache_share, here.reserve) == (0.02, 0.3)
        return {table: here.of(table).kind for table in tables}

    kept = {"rows": "row_wise", "few": "auto", "copies": "data_parallel", "grid": "auto"}
    assert kinds("cpu") == {**kept, "hosts": "auto", "uvm": "auto"}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert kinds("cuda") == {**kept, "hosts": "table_row_wise", "uvm": "row_wise"}


def test_a_default_gives_way_where_rows_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """On four ranks 9 rows fall into blocks of 3; on the two of a host, 1 row into one."""
    default = RowWise(kind="row_wise", kernel="fused_uvm")
    config, tables = ShardingConfig(default=default, tables={"named": "row_wise"}), {"few": 9, "named": 9, "all": 10}
    assert too_few_rows(config, tables, world_size=4, hosts=Hosts.of(4)) == {
        "few": TableWise(kind="table_wise", kernel="fused_uvm")
    }
    assert told_of_few_rows(config, tables, world_size=4) == [
        "table few: 9 rows are too few for sharding.default = 'row_wise' on 4 ranks: 'table_wise' it is"
    ]
    assert too_few_rows(config, tables, world_size=1, hosts=Hosts.of(1)) == {}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for name in ("table_row_wise", "grid"):
        over_hosts = ShardingConfig(default=name)
        assert too_few_rows(over_hosts, {"one": 1, "two": 2}, world_size=4, hosts=Hosts.of(4)) == {
            "one": TableWise(kind="table_wise")
        }
    for name in ("auto", "data_parallel", "table_wise", "column_wise"):
        assert too_few_rows(ShardingConfig(default=name), tables, world_size=4, hosts=Hosts.of(4)) == {}
