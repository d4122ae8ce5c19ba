"""Cases of tables that do not fit, as a config and a cluster, and a way to plan them as `torchrec-mt plan` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchrec_mt.config import RunConfig, apply_overrides, check_config
from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.plans.planner import TablesDoNotFitError, solve
from torchrec_mt.distributed.plans.stuck import Stuck
from torchrec_mt.errors import UserError
from torchrec_mt.workflows.planning import problem_of


@dataclass(frozen=True)
class Oversized:
    """Tables as {name: (rows, dim)}, a cluster, and what else is set.

    Args:
        reason: parts of the message. fixes: all that shall be found, as a user types them.
    """

    tables: Mapping[str, tuple[int, int]]
    cluster: str
    overrides: tuple[str, ...]
    reason: tuple[str, ...]
    fixes: tuple[str, ...]

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        return check_config(apply_overrides(self._raw(), [*self.overrides, *overrides]), where="the test")

    def plan(self, overrides: Sequence[str] = (), cluster: str | None = None) -> Plan | None:
        """None: it does not fit, or cannot be."""
        try:
            return solve(problem_of(self.config(overrides), parse_cluster(cluster or self.cluster))).plan
        except UserError:
            return None

    def refused(self) -> TablesDoNotFitError:
        """The error of planning it as it is."""
        try:
            solve(problem_of(self.config(), parse_cluster(self.cluster)))
        except TablesDoNotFitError as error:
            return error
        raise AssertionError("it fits")

    def stuck(self) -> Stuck:
        config, error = self.config(), self.refused()
        return Stuck(
            problem=problem_of(config, parse_cluster(self.cluster)),
            table=error.table,
            piece=error.piece,
            cluster=self.cluster,
            batch_size=config.reader.batch_size,
        )

    def _raw(self) -> dict[str, Any]:
        """One entity with a category for each table, one task."""
        features = {name: {"kind": "category", "column": name, "table": name} for name in self.tables}
        pairs = {"kind": "groups", "path": "views.parquet", "group": ["session"], "item": "item", "time": "time"}
        return {
            "dataset": {
                "name": "oversized",
                "path": "nowhere",
                "source": {"kind": "synthetic_shop"},
                "tables": {name: {"dim": dim} for name, (_, dim) in self.tables.items()},
                "entities": {"item": {"path": "items.parquet", "id": "item", "features": features}},
                "tasks": {"alike": {"anchor": "item", "candidate": "item", "pairs": pairs}},
                "split": {"kind": "time"},
            },
            "plan": {"tables": {name: {"rows": rows} for name, (rows, _) in self.tables.items()}},
        }


M, B = 10**6, 10**9
SMALL = (1000, 64)


def _laid(table: str, kind: str, kernel: str) -> str:
    return f'--set \'sharding.tables.{table}={{ kind = "{kind}", kernel = "{kernel}" }}\''


def _on_host(table: str, kind: str) -> tuple[str, str]:
    return _laid(table, kind, "fused_uvm_caching"), _laid(table, kind, "fused_uvm")


# A rank of H100-80GB has 0.85 * 79.60 = 67.66 GiB for tables, of its host 0.85 * 2,048 / 8 = 217.60 GiB. A table of n
# million rows of width 64 takes 0.2384 n GiB in float32, and 0.0037 n GiB for a sum a row.
CASES = {
    "too large for a rank": Oversized(
        {"big": (400 * M, 64), "small": SMALL},
        "1x8xH100-80GB",
        ("sharding.tables.big=table_wise",),
        (
            "no place for table 'big' (400,000,000 x 64 float32): whole, it needs 96.86 GiB (weights 95.37 GiB, "
            "optimizer's sums 1.49 GiB, buffers of the batch 0.01 GiB) of H100-80GB memory, and a rank has 67.66 GiB",
            "Allowed for it: table_wise (fused). A rank has 79.60 GiB of H100-80GB memory, less 15% reserve",
        ),
        (
            "--set sharding.tables.big=auto",
            "--set dataset.tables.big.dtype=float16",
            *_on_host("big", "table_wise"),
            "--set dataset.tables.big.dim=44",
            "--set plan.tables.big.rows=270000000",
        ),
    ),
    "several too large for a rank": Oversized(
        {"a": (400 * M, 64), "b": (300 * M, 64), "c": SMALL},
        "1x8xH100-80GB",
        ("sharding.tables.a=table_wise", "sharding.tables.b=table_wise", "sharding.tables.c=data_parallel"),
        ("no place for table 'a'", "whole, it needs 96.86 GiB"),
        (
            "--set sharding.tables.a=auto --set sharding.tables.b=auto",
            "--set dataset.tables.a.dtype=float16 --set dataset.tables.b.dtype=float16",
        ),
    ),
    "laid by the default": Oversized(
        {f"t{i}": (400 * M, 64) for i in range(4)},
        "1x8xH100-80GB",
        ("sharding.default=table_wise",),
        ("no place for table 't0'", "whole, it needs 96.86 GiB"),
        (
            "--set sharding.default=auto",
            " ".join(f"--set dataset.tables.t{i}.dtype=float16" for i in range(4)),
        ),
    ),
    "all together": Oversized(
        {f"t{i}": (B, 64) for i in range(3)},
        "1x8xH100-80GB",
        (),
        (
            "no place for table 't2' (1,000,000,000 x 64 float32): all tables need 726.45 GiB of H100-80GB memory "
            "together, and 8 rank(s) have 541.27 GiB for them",
        ),
        (
            "--cluster 2x8xH100-80GB",
            "--set dataset.tables.t0.dtype=float16 --set dataset.tables.t1.dtype=float16",
            *_on_host("t0", "row_wise"),
            "--set dataset.tables.t0.dim=12",
            "--set plan.tables.t0.rows=230000000",
        ),
    ),
    "copies": Oversized(
        {"copied": (200 * M, 64), "other": (50 * M, 64)},
        "2x8xH100-80GB",
        ("sharding.tables.copied=data_parallel",),
        (
            "no place for table 'copied' (200,000,000 x 64 float32): the copy on each of 16 rank(s) needs 143.80 GiB "
            "(weights 47.68 GiB, optimizer's sums 0.75 GiB, gradients and buffers 95.37 GiB) of H100-80GB memory",
        ),
        (
            "--set sharding.tables.copied=auto",
            *_on_host("copied", "row_wise"),
            "--set dataset.tables.copied.dim=28",
            "--set plan.tables.copied.rows=93000000",
        ),
    ),
    "sums of Adagrad": Oversized(
        {"big": (1200 * M, 64), "small": SMALL},
        "1x8xH100-80GB",
        ("optim.tables.kind=adagrad",),
        ("cut into 8 (row_wise), its largest piece needs 71.53 GiB (weights 35.76 GiB, optimizer's sums 35.76 GiB",),
        (
            "--cluster 2x8xH100-80GB",
            "--set dataset.tables.big.dtype=float16",
            "--set optim.tables.kind=rowwise_adagrad",
            *_on_host("big", "row_wise"),
            "--set dataset.tables.big.dim=60",
            "--set plan.tables.big.rows=1100000000",
        ),
    ),
    "sums of row-wise Adagrad": Oversized(
        {"narrow": (30 * B, 4), "small": SMALL},
        "1x8xH100-80GB",
        (),
        ("its largest piece needs 69.85 GiB (weights 55.88 GiB, optimizer's sums 13.97 GiB",),
        (
            "--cluster 2x8xH100-80GB",
            "--set dataset.tables.narrow.dtype=float16",
            "--set optim.tables.kind=sgd",
            *_on_host("narrow", "row_wise"),
            "--set plan.tables.narrow.rows=29000000000",
        ),
    ),
    "host memory": Oversized(
        {"big": (3 * B, 64), "small": SMALL},
        "1x8xH100-80GB",
        ('sharding.tables.big={ kind = "table_wise", kernel = "fused_uvm" }',),
        ("whole, it needs 726.43 GiB of host memory, and a rank's share has 217.60 GiB for tables",),
        (
            _laid("big", "row_wise", "fused_uvm"),
            "--set dataset.tables.big.dim=16",
            "--set plan.tables.big.rows=890000000",
        ),
    ),
    "buffers": Oversized(
        {f"t{i}": (M, 128) for i in range(4)},
        "1x8xH100-80GB",
        ("reader.batch_size=16_000_000",),
        (
            "its largest piece needs 122.37 GiB (weights 0.06 GiB, optimizer's sums 0.00 GiB, buffers of the batch "
            "122.31 GiB) of H100-80GB memory",
        ),
        (
            " ".join(f"--set dataset.tables.t{i}.dtype=float16" for i in range(4)),
            "--set reader.batch_size=8650752",
        ),
    ),
    "middling tables": Oversized(
        {f"t{i}": (200 * M, 64) for i in range(9)},
        "1x8xH100-80GB",
        ("sharding.default=table_wise",),
        (
            "no place for table 't8' (200,000,000 x 64 float32): whole, it needs 48.43 GiB of H100-80GB memory, and "
            "the tables placed before it leave no rank more than 19.22 GiB",
        ),
        (
            "--set sharding.tables.t0=auto",
            "--cluster 2x8xH100-80GB",
            "--set dataset.tables.t0.dtype=float16 --set dataset.tables.t1.dtype=float16",
            *_on_host("t0", "table_wise"),
            "--set dataset.tables.t0.dim=24",
            "--set plan.tables.t0.rows=79000000",
        ),
    ),
    "CPU": Oversized(
        {"big": (300 * M, 64), "small": SMALL},
        "1x2xCPU,price_per_hour=3",
        (),
        (
            "cut into 2 (row_wise), its largest piece needs 36.32 GiB (weights 35.76 GiB, optimizer's sums 0.56 GiB",
            "of memory, and a rank has 27.20 GiB for tables",
        ),
        (
            "--cluster 2x2xCPU,price_per_hour=6",
            "--set dataset.tables.big.dtype=float16",
            "--set dataset.tables.big.dim=44",
            "--set plan.tables.big.rows=220000000",
        ),
    ),
    "L4": Oversized(
        {"big": (450 * M, 64), "small": SMALL},
        "1x1xL4-24GB",
        (),
        ("whole, it needs 108.97 GiB", "of L4-24GB memory, and a rank has 19.12 GiB for tables"),
        (
            "--cluster 1x6xL4-24GB",
            _laid("big", "row_wise", "fused_uvm_caching") + " --set sharding.cache_share=0.02",
            _laid("big", "row_wise", "fused_uvm"),
            "--set dataset.tables.big.dim=8",
            "--set plan.tables.big.rows=78000000",
        ),
    ),
    "columns": Oversized(
        {"wide": (800 * M, 64), "small": SMALL},
        "1x4xH100-80GB",
        ('sharding.tables.wide={ kind = "column_wise", columns = 2, sum_per_block = true }',),
        ("cut into 2 (column_wise), its largest piece needs 98.35 GiB (weights 95.37 GiB, optimizer's sums 2.98 GiB",),
        (
            "--set sharding.tables.wide=auto",
            "--set dataset.tables.wide.dtype=float16",
            *(
                text.replace('column_wise",', 'column_wise", columns = 2, sum_per_block = true,')
                for text in _on_host("wide", "column_wise")
            ),
            "--set dataset.tables.wide.dim=40",
            "--set plan.tables.wide.rows=550000000",
        ),
    ),
    "towers": Oversized(
        {"small": SMALL},
        "1x8xH100-80GB",
        ("model.dim=65_536", "model.hidden=65_536"),
        ("the towers alone take 160.44 GiB of a rank", "lower model.dim, model.hidden or model.depth"),
        (),
    ),
    "reserve": Oversized(
        {"big": (B, 64)},
        "1x8xA100-40GB",
        ("sharding.reserve=0.6",),
        (
            "its largest piece needs 30.27 GiB",
            "a rank has 15.84 GiB for tables",
            "39.60 GiB of A100-40GB memory, less 60% reserve",
        ),
        (
            "--set sharding.reserve=0.23",
            "--cluster 2x8xA100-40GB",
            "--set dataset.tables.big.dtype=float16",
            *_on_host("big", "row_wise"),
            "--set dataset.tables.big.dim=32",
            "--set plan.tables.big.rows=520000000",
        ),
    ),
    "one host of several": Oversized(
        {"big": (2500 * M, 64)},
        "2x8xH100-80GB",
        ("sharding.tables.big=table_row_wise",),
        ("cut into 8 (table_row_wise), its largest piece needs 75.68 GiB",),
        (
            "--set sharding.tables.big=auto",
            "--set dataset.tables.big.dtype=float16",
            *_on_host("big", "table_row_wise"),
            "--set dataset.tables.big.dim=56",
            "--set plan.tables.big.rows=2200000000",
        ),
    ),
}
