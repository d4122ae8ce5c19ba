"""Changes of where a table lies: a pinned one released, or one moved to the host's memory."""

import json
from dataclasses import asdict, replace

from torchrec_mt.distributed.layouts import Auto, Kernel, Layout, RowWise, kernel_of, layout_of
from torchrec_mt.distributed.plans.choices import CACHE_SHARE
from torchrec_mt.distributed.plans.ladders import Change, Ladder, ladder, largest, one
from torchrec_mt.distributed.plans.stuck import Stuck, StuckTable, WithKernel

_SMALL_CACHE = 0.02


def layouts(stuck: Stuck) -> list[Ladder]:
    """One table released; all that the default pins; several."""
    pinned = [table for table in stuck.tables if not isinstance(table.layout, Auto)]
    ladders = [
        one(_laid(table, layout))
        for table in stuck.suspects(lambda table: not isinstance(table.layout, Auto))
        for layout in _released(table)
    ]
    by_default = [table for table in pinned if table.name not in stuck.problem.sharding.tables]
    if len(by_default) > 1:
        says = (
            f"auto in place of {by_default[0].layout.kind} for the {len(by_default)} tables that sharding.default lays"
        )
        ladders.append(one(Change(says=says, overrides=("sharding.default=auto",))))
    return [*ladders, largest(pinned, "by auto", lambda table: f"sharding.tables.{table.name}=auto")]


def _released(table: StuckTable) -> list[Layout]:
    """What a pinned table may do instead; `auto` knows no kernels of the host's memory."""
    ways: list[Layout] = [Auto(kind="auto")]
    if isinstance(table.layout, WithKernel) and not table.on_device and not isinstance(table.layout, RowWise):
        ways.append(RowWise(kind="row_wise", kernel=table.layout.kernel))
    return ways


def _laid(table: StuckTable, layout: Layout) -> Change:
    return Change(
        says=f"table '{table.name}' {_words(layout)} in place of {_words(table.layout)}",
        overrides=(f"sharding.tables.{table.name}={_text(layout)}",),
    )


def _words(layout: Layout) -> str:
    return layout.kind + (f" ({kernel_of(layout)})" if kernel_of(layout).startswith("fused_uvm") else "")


def _text(layout: Layout) -> str:
    """A layout as TOML."""
    if layout == layout_of(layout.kind):
        return layout.kind
    keys = {"kind": layout.kind} | asdict(layout)
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) + " }"


def kernels(stuck: Stuck, kernel: Kernel) -> list[Ladder]:
    """One table in the host's memory: with a cache on the GPU, of the usual size or a small one; or without."""
    has = (kernel,) if kernel == "fused_uvm" else ("fused_uvm",)
    tables = stuck.suspects(lambda table: kernel_of(table.layout) not in has)
    on_cpu = stuck.problem.cluster.device.kind == "cpu"
    return [] if on_cpu else [_on_host(stuck, table, kernel) for table in tables]


def _on_host(stuck: Stuck, table: StuckTable, kernel: Kernel) -> Ladder:
    layout, now = stuck.movable(table), stuck.problem.sharding.cache_share
    override = f"sharding.tables.{table.name}={_text(replace(layout, kernel=kernel))}"
    says = f"table '{table.name}' in the host's memory, {layout.kind}"
    if kernel == "fused_uvm":
        return one(Change(says=f"{says}, no cache", overrides=(override,)))
    cached = kernel_of(table.layout) == kernel
    shares = [
        share
        for share in dict.fromkeys((min(now, CACHE_SHARE), _SMALL_CACHE))
        if share < now or (share == now and not cached)
    ]

    def at(share: float) -> Change:
        smaller = () if share == now else (f"sharding.cache_share={share:g}",)
        return Change(says=f"{says}, {100 * share:g}% of the rows cached on the GPU", overrides=(override, *smaller))

    return ladder(shares, at, steady=False)
