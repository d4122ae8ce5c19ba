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
from torchrec_mt.plan import problem_of


@dataclass(frozen=True)
class Oversized:
    """Tables as {name: (rows, dim)}, a cluster, and what else is set.

    Args:
        reason: parts of the message. fixes: of each kind that shall be found, what a user types.
    """

    tables: Mapping[str, tuple[int, int]]
    cluster: str
    overrides: tuple[str, ...]
    reason: tuple[str, ...]
    fixes: Mapping[str, tuple[str, ...]]

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
        pairs = {"kind": "groups", "path": "views.parquet", "group": ["session"], "item": "item"}
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
CASES = {
    "too large for a rank": Oversized(
        {"big": (400 * M, 64), "small": (1000, 64)}, "1x8xH100-80GB", ("sharding.tables.big=table_wise",), (), {}
    ),
    "all together": Oversized({f"t{i}": (B, 64) for i in range(3)}, "1x8xH100-80GB", (), (), {}),
    "copies": Oversized(
        {"copied": (200 * M, 64), "other": (50 * M, 64)},
        "2x8xH100-80GB",
        ("sharding.tables.copied=data_parallel",),
        (),
        {},
    ),
    "sums of Adagrad": Oversized(
        {"big": (1200 * M, 64), "small": (1000, 64)}, "1x8xH100-80GB", ("optim.tables.kind=adagrad",), (), {}
    ),
    "host memory": Oversized(
        {"big": (1000 * M, 64), "small": (1000, 64)},
        "1x8xH100-80GB",
        ('sharding.tables.big={ kind = "table_wise", kernel = "fused_uvm" }',),
        (),
        {},
    ),
    "buffers": Oversized(
        {f"t{i}": (M, 128) for i in range(4)}, "1x8xH100-80GB", ("reader.batch_size=16_000_000",), (), {}
    ),
    "middling tables": Oversized(
        {f"t{i:02}": (100 * M, 64) for i in range(17)}, "1x8xH100-80GB", ("sharding.default=table_wise",), (), {}
    ),
    "CPU": Oversized({"big": (300 * M, 64), "small": (1000, 64)}, "1x2xCPU", (), (), {}),
    "L4": Oversized({"big": (100 * M, 64), "small": (1000, 64)}, "1x1xL4-24GB", (), (), {}),
    "columns": Oversized(
        {"wide": (800 * M, 64), "small": (1000, 64)},
        "1x4xH100-80GB",
        ('sharding.tables.wide={ kind = "column_wise", columns = 2, sum_per_block = true }',),
        (),
        {},
    ),
    "towers": Oversized({"small": (1000, 64)}, "1x8xH100-80GB", ("model.dim=65_536", "model.hidden=65_536"), (), {}),
    "reserve": Oversized({"big": (B, 64)}, "1x8xA100-40GB", ("sharding.reserve=0.6",), (), {}),
    "one host of several": Oversized(
        {"big": (2500 * M, 64)}, "2x8xH100-80GB", ("sharding.tables.big=table_row_wise",), (), {}
    ),
}
