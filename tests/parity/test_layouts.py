"""Every layout on 1, 2 and 4 ranks under every optimizer of tables learns what the plain formulas give, or is refused;
and what any of them saved, any other takes up.

Tolerance is for the order of float32 sums: 1e-5 of the largest entry of a tensor plus 1e-6. Conversions of row-wise
sums have the same; all else that is loaded has the same bits. Two ranks are two hosts, four are two hosts of two.
"""

import fcntl
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.utils import find_tensor_shard
from torchrec.distributed import comm

from tests.parity.tables import CASES, RANKS_OF_A_HOST, STEPS, Training, by_hand, joined, place_on_hosts, runs_on, told
from tests.ranks import run_on_ranks
from tests.shop import shared_root
from torchrec_mt.distributed.table_state import load_tables, table_layout
from torchrec_mt.errors import UserError

WORLD_SIZES = (1, 2, 4)
# Four processes start before the first test: half a minute on two idle cores, minutes on busy ones.
pytestmark = pytest.mark.timeout(900)
SAVED_AT = STEPS - 1
"""Steps taken before the state is saved; whoever loads it takes the one that is left."""
RUNS = [(kind, name, size) for (kind, name), case in CASES.items() for size in WORLD_SIZES if runs_on(case, size)]
REFUSED = [(*key, size) for key, case in CASES.items() for size in WORLD_SIZES if not runs_on(case, size)]
SUMS = [run for run in RUNS if run[0] != "sgd"]


def sources_of(kind: str, name: str, size: int) -> list[tuple[str, str, int]]:
    """What a run loads: one of its optimizer's runs of every layout, each time on another number of ranks. Of Adagrad,
    whose sums lie as the weights do, every third."""
    names = list(dict.fromkeys(other for _, other, _ in SUMS))
    turn, found = names.index(name) + WORLD_SIZES.index(size), []
    for other in names if kind == "rowwise_adagrad" else names[turn % 3 :: 3]:
        sizes = [world_size for world_size in WORLD_SIZES if (kind, other, world_size) in SUMS]
        found.append((kind, other, sizes[(turn + names.index(other)) % len(sizes)]))
    return found


class SavePlanner(DefaultSavePlanner):
    """Torch's looks for pieces in tensors only."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        return find_tensor_shard(self.state_dict[index.fqn], index)


class LoadPlanner(DefaultLoadPlanner):
    """The same; torch's puts None in the place of what is no tensor, too."""

    def set_up_planner(self, state_dict: dict[str, Any], metadata: Any = None, is_coordinator: bool = False) -> None:
        super().set_up_planner({}, metadata, is_coordinator)
        self.state_dict = state_dict

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return find_tensor_shard(self.state_dict[index.fqn], index)


def train_and_save(folder: str) -> dict[str, Any]:
    """State at the end by run, or why it was refused. Leaves the state at SAVED_AT in the folder, with its layout."""
    place_on_hosts()
    found: dict[str, Any] = {}
    for (kind, name), case in CASES.items():
        key = f"{kind}-{name}-{dist.get_world_size()}"
        try:
            training = Training(kind, case)
        except UserError as error:
            found[key] = str(error)
            continue
        for step in range(SAVED_AT):
            training.step(step)
        save(training.state(), checkpoint_id=Path(folder) / key, planner=SavePlanner())
        if dist.get_rank() == 0:
            layout = table_layout(training.model, training.rule)
            (Path(folder) / key / "layout.json").write_text(json.dumps(layout))
        saved = told(training.state())
        for step in range(SAVED_AT, STEPS):
            training.step(step)
        found[key] = {"saved": saved, "end": told(training.state())}
    return found


def load_all(folder: str) -> dict[str, Any]:
    """By run and source: the report, the state that was loaded, and after the remaining steps."""
    place_on_hosts()
    size, found = dist.get_world_size(), {}
    for kind, name, world_size in SUMS:
        if world_size != size:
            continue
        training = Training(kind, CASES[kind, name])
        for source in sources_of(kind, name, size):
            key = "-".join(map(str, source))
            report = load_from(training, Path(folder) / key)
            loaded = told(training.state())
            for step in range(SAVED_AT, STEPS):
                training.step(step)
            found[f"{name}<{key}"] = {"report": report.text(), "loaded": loaded, "end": told(training.state())}
    return found


def load_from(training: Training, path: Path) -> Any:
    layout = json.loads((path / "layout.json").read_text())
    return load_tables(
        training.model,
        layout,
        lambda wanted: load(wanted, checkpoint_id=path, planner=LoadPlanner()),
        training.rule,
        training.optimizers.combined,
    )


def in_groups(folder: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Of this one of four processes, what it did in groups of 4, 2 and 1: starting them anew takes far longer.

    The largest first: TorchRec has all ranks agree on something once per process, so none may be alone in it.
    """
    rank, found = dist.get_rank(), {"trained": dict[int, Any](), "loaded": dict[int, Any]()}
    for kind, work in {"trained": train_and_save, "loaded": load_all}.items():
        for size in reversed(WORLD_SIZES):
            leave_group()
            if rank < size:
                join_group(f"{folder}/{kind}-{size}", rank, size)
                found[kind][size] = work(folder)
    leave_group()
    join_group(f"{folder}/end", rank, max(WORLD_SIZES))
    return found


def leave_group() -> None:
    if dist.is_initialized():
        dist.barrier()  # who leaves while others are being connected fails them
        dist.destroy_process_group()
    comm._INTRA_PG = comm._CROSS_PG = None  # TorchRec would go on with those of the group before


def join_group(path: str, rank: int, size: int) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(path, size), rank=rank, world_size=size)
    dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the ranks of each world size, made once for all workers."""
    folder = shared_root(tmp_path_factory) / "layouts"
    folder.mkdir(exist_ok=True)
    made = folder / "results.pt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            found = run_on_ranks(max(WORLD_SIZES), in_groups, str(folder))
            of_ranks = {
                kind: {size: [rank[kind][size] for rank in found[:size]] for size in WORLD_SIZES}
                for kind in ("trained", "loaded")
            }
            torch.save({**of_ranks, "folder": str(folder)}, made)
    return torch.load(made, weights_only=True)


def assert_close(found: Tensor, wanted: Tensor, name: str) -> None:
    tolerance = 1e-6 + 1e-5 * wanted.abs().max().item()
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance, msg=lambda message: f"{name}: {message}")


def whole(ranks: list[dict[str, Any]], *keys: str) -> dict[str, Tensor]:
    """Tensors of all ranks' part of a result."""
    parts = ranks
    for key in keys:
        parts = [part[key] for part in parts]
    return joined(parts)


def per_column(sums: Tensor, borders: list[int]) -> Tensor:
    """Sums by block of columns, once for each column: rows x dim."""
    blocks = [sums[:, [block]].expand(-1, end - start) for block, (start, end) in enumerate(pairwise(borders))]
    return torch.cat(blocks, dim=1)


def by_column(state: dict[str, Tensor], layout: dict[str, Any]) -> dict[str, Tensor]:
    """The state with sums in the form of `by_hand`."""
    return {
        name: per_column(value, layout[name.split(".")[1]]["columns"])
        if name.endswith(".sum") and layout[name.split(".")[1]]["optimizer"] == "rowwise_adagrad"
        else value
        for name, value in state.items()
    }


def layout_saved(results: Any, key: str) -> dict[str, Any]:
    return json.loads((Path(results["folder"]) / key / "layout.json").read_text())


@pytest.mark.parametrize(("kind", "name", "size"), RUNS)
def test_every_layout_learns_what_the_formulas_give(results: Any, kind: str, name: str, size: int) -> None:
    key = f"{kind}-{name}-{size}"
    found = by_column(whole(results["trained"][size], key, "end"), layout_saved(results, key))
    wanted = by_hand(kind, CASES[kind, name].blocks or {})[STEPS - 1]
    assert found.keys() == wanted.keys()
    for entry, value in wanted.items():
        assert_close(found[entry], value, entry)


@pytest.mark.parametrize(("kind", "name", "size"), REFUSED)
def test_layouts_over_hosts_are_refused_on_one(results: Any, kind: str, name: str, size: int) -> None:
    for rank in results["trained"][size]:
        assert "which lays tables on hosts, and all" in rank[f"{kind}-{name}-{size}"]


@pytest.mark.parametrize(("kind", "name", "size"), SUMS)
def test_every_layout_takes_up_what_any_other_saved(results: Any, kind: str, name: str, size: int) -> None:
    layout = layout_saved(results, f"{kind}-{name}-{size}")
    for source in sources_of(kind, name, size):
        key = "-".join(map(str, source))
        saved, borders = whole(results["trained"][source[2]], key, "saved"), layout_saved(results, key)
        loaded = whole(results["loaded"][size], f"{name}<{key}", "loaded")
        assert loaded.keys() == saved.keys()
        for entry, value in saved.items():
            table = entry.split(".")[1]
            if entry.endswith(".weight") or borders[table]["columns"] == layout[table]["columns"] or kind == "adagrad":
                assert torch.equal(loaded[entry], value), f"{entry} of {key}"
                continue
            columns = per_column(value, borders[table]["columns"])
            blocks = [columns[:, start:end].mean(dim=1) for start, end in pairwise(layout[table]["columns"])]
            assert_close(loaded[entry], torch.stack(blocks, dim=1), f"{entry} of {key}")


@pytest.mark.parametrize(("kind", "name", "size"), SUMS)
def test_what_was_taken_up_goes_on_as_if_never_interrupted(results: Any, kind: str, name: str, size: int) -> None:
    layout = layout_saved(results, f"{kind}-{name}-{size}")
    for source in sources_of(kind, name, size):
        key = "-".join(map(str, source))
        if any(told["columns"] != layout[table]["columns"] for table, told in layout_saved(results, key).items()):
            continue
        ends = whole(results["loaded"][size], f"{name}<{key}", "end"), whole(results["trained"][source[2]], key, "end")
        for entry, value in ends[1].items():
            assert_close(ends[0][entry], value, f"{entry} of {key}")


def test_what_was_compared(results: Any) -> None:
    """Blocks of columns differ where they should, ranks share the work, and training moves the tables."""
    borders = {key: layout_saved(results, f"rowwise_adagrad-{key}") for key in ("fours-2", "grid-4", "row_wise-1")}
    assert [borders[key]["a"]["columns"] for key in borders] == [[0, 4, 8, 12, 16], [0, 8, 16], [0, 16]]
    four = results["trained"][4]
    for name, holders in {"table_wise": 1, "row_wise": 4, "column_wise": 2, "table_row_wise": 2, "grid": 4}.items():
        parts = [rank[f"sgd-{name}-4"]["end"]["tables.a.weight"][1] for rank in four]
        assert sum(any(tensor.numel() for _, tensor in part) for part in parts) == holders, name
    saved, end = (whole(four, "sgd-row_wise-4", when)["tables.a.weight"] for when in ("saved", "end"))
    assert (saved - end).abs().max() > 0.001
    assert set(RANKS_OF_A_HOST) == set(WORLD_SIZES)
    [fours] = [source for source in sources_of("rowwise_adagrad", "row_wise", 2) if source[1] == "fours"]
    text = results["loaded"][2][0]["row_wise<" + "-".join(map(str, fours))]["report"]
    assert text.splitlines() == [
        "restored: 5",
        "converted: 1",
        "  tables.a.sum (mean over columns, 4 -> 1 blocks)",
    ]
