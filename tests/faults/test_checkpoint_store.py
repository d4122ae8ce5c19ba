"""Checkpoints outlive what happens to programs and disks: a kill at any moment, damaged files, no room."""

import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileOpener
from torch._C._distributed_c10d import HashStore

from tests.pieces import any_bits, laid_out, same_bits
from tests.ranks import run_on_ranks
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.errors import UserError
from torchrec_mt.training.checkpoints import layout as file_layout
from torchrec_mt.training.checkpoints.store import CheckpointStore, Loaded

SHAPES = {"table": (300, 400), "dense": (100,), "none": (0, 3)}


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {name: any_bits(shape, torch.float32, step) for name, shape in SHAPES.items()}


def save(store: CheckpointStore, step: int) -> None:
    store.save(
        step, tensors_of(step), state={"step": step}, rank_state={"place": [step] * 50}, background=step % 2 == 1
    )
    store.finish()


def load(store: CheckpointStore) -> Loaded | None:
    """The newest, after a look at every bit of it."""
    found = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    loaded = store.load_newest(found)
    if loaded is not None:
        assert loaded.state == {"step": loaded.step}
        assert loaded.rank_states == ({"place": [loaded.step] * 50},)
        assert all(same_bits(found[name], wanted) for name, wanted in tensors_of(loaded.step).items())
    return loaded


# Killed by SIGKILL: a process without a group of its own forks one child after the other, each with one.


def in_child(function: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
            function()
            code = 0
        finally:
            os._exit(code)
    return child


def check(folder: Path, least: int) -> None:
    """All that lies in the folder is as it was saved, and no older than what was reported as saved."""
    store = CheckpointStore(folder, keep=1)
    loaded = load(store)
    assert not (loaded and loaded.refused), loaded
    assert (loaded.step if loaded else 0) >= least
    for step in store.steps():
        store.load({name: torch.zeros(shape) for name, shape in SHAPES.items()}, step=step)


def killed_by_chance(folder: Path, times: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance, saved = random.Random(seed), 0
    for _ in range(times + 1):
        reports, report = os.pipe()

        def write(saved: int = saved, report: int = report) -> None:
            check(folder, saved)
            os.write(report, b"0 ")
            store = CheckpointStore(folder, keep=1)
            for step in range(saved + 1, saved + 1000):
                save(store, step)
                os.write(report, f"{step} ".encode())

        child = in_child(write)
        os.close(report)
        with os.fdopen(reports, "rb", buffering=0) as told:
            assert told.read(2) == b"0 ", "the checkpoints that the one before left are damaged"
            time.sleep(chance.uniform(0, 0.2))  # any moment of its life will do
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            saved = max([saved, *map(int, (told.readall() or b"").split())])
    assert saved > times / 4, "most were killed before they had done anything"


CALLS = ("replace", "fsync", "unlink", "rmdir", "mkdir", "remove")
"""Of `os`: what changes a disk, beside writing a file."""


def killed_at(call: int) -> None:
    """Lets this process die before that call (the 1st, 2nd, ...) which changes the disk, or in the middle of it."""
    calls = 0

    def counted(function: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                if half is not None:
                    half(*given)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return called

    def half_of_it(file: Any, data: Any) -> None:
        file.f.write(data[: len(data) // 2])
        file.f.flush()

    os.fsync = lambda descriptor: None  # slow, and a process takes nothing with it that the system already has
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    LocalFileOpener.write = counted(LocalFileOpener.write, half_of_it)


def killed_at_every_call(folder: Path) -> None:
    """One child after the other dies a call later; the last one lives to the end."""
    torch.set_num_threads(1)
    whole, status, call = folder.with_name("whole"), 1, 0

    def first() -> None:
        save(CheckpointStore(whole, keep=1), 1)

    def write() -> None:
        if call > 1:
            check(folder, 1)
            shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        killed_at(call)
        store = CheckpointStore(folder, keep=1)
        for step in (2, 2, 3):
            save(store, step)
        check(folder, 3)

    os.waitpid(in_child(first), 0)
    while status:
        call += 1
        _, status = os.waitpid(in_child(write), 0)
        assert status in (0, signal.SIGKILL), f"what was left of a death at call {call - 1} is damaged"
    assert call > 40


def in_a_new_process(function: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_killed_at_any_moment(tmp_path: Path) -> None:
    in_a_new_process(killed_by_chance, tmp_path / "checkpoints", 20, 0)


@pytest.mark.slow
def test_killed_at_any_moment_often(tmp_path: Path) -> None:
    in_a_new_process(killed_by_chance, tmp_path / "checkpoints", 100, 1)


def test_killed_before_every_call_that_changes_the_disk(tmp_path: Path) -> None:
    in_a_new_process(killed_at_every_call, tmp_path / "checkpoints")


# Damaged files.


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    with runtime(RuntimeConfig(device="cpu", threads=1)):
        store = CheckpointStore(folder, keep=2)
        save(store, 1)
        save(store, 2)
        yield folder
        store.close()


def flipped(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def cut(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def longer(file: Path, chance: random.Random) -> None:
    with file.open("ab") as end:
        end.write(b" ")


def gone(file: Path, chance: random.Random) -> None:
    file.unlink()


@pytest.mark.parametrize("pattern", ["checkpoint.json", "tensors.*", "state.*", "rank-00000.*"])
@pytest.mark.parametrize(("damage", "times"), [(flipped, 25), (cut, 10), (longer, 1), (gone, 1)])
def test_damage_is_seen_and_the_one_before_is_used(
    two: Path, tmp_path: Path, pattern: str, damage: Callable[[Path, random.Random], None], times: int
) -> None:
    chance = random.Random(f"{pattern} {damage.__name__}")
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for _ in range(times):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        shutil.copytree(two, tmp_path / "checkpoints")
        [file] = (tmp_path / "checkpoints/step-0000000002").glob(pattern)
        damage(file, chance)
        loaded = load(store)
        assert loaded is not None
        assert loaded.step == 1
        if pattern != "checkpoint.json" or damage is not gone:  # then there is no checkpoint
            [why] = loaded.refused
            assert f"'{file}' is " in why
            assert why.endswith("use an earlier one, or remove it")
    store.close()


def test_all_damaged(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "checkpoints")
    for file in (tmp_path / "checkpoints").glob("*/rank-*"):
        cut(file, random.Random(0))
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    with pytest.raises(
        UserError, match=r"no checkpoint under '.*checkpoints' is whole; .*step-0*2/rank.*step-0*1/rank"
    ):
        load(store)
    store.close()


# Several ranks.


def refused(*given: object, **named: object) -> None:
    raise AssertionError("unpickled")


def on_two_ranks(folder: str) -> dict[str, Any]:
    """A disk that is full for rank 1; a block that only rank 1 reads is damaged; nothing is unpickled."""
    rank, told = dist.get_rank(), {}
    file_layout.BLOCK_BYTES = 1000
    whole = any_bits((100, 50), torch.float32, 0)
    store = CheckpointStore(folder, keep=2)
    for step in (1, 2):
        store.save(step, {"x": laid_out(whole, "rows", rank, 2)}, state={}, rank_state={"rank": rank})
    for background in (False, True):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            store.save(3, {"x": laid_out(whole, "rows", rank, 2)}, state={}, rank_state={}, background=background)
            for _ in range(20 * background):
                dist.all_reduce(torch.ones(100))  # training goes on
            store.finish()
        except UserError as error:
            told[f"full {background}"] = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    apart = CheckpointStore("memory://each/its/own", keep=1)
    try:
        apart.save(1, {"x": laid_out(whole, "rows", rank, 2)}, state={}, rank_state={})
    except UserError as error:
        told["apart"] = str(error)
    dist.barrier()
    told["left"] = sorted(path.name for path in Path(folder).iterdir())
    dist.barrier()
    if rank == 0:
        [file] = Path(folder).glob("step-0000000002/rank-00001*")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    dist.barrier()
    found = torch.zeros_like(whole)
    with pytest.MonkeyPatch.context() as patch:
        for place, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(place, name, refused)
        loaded = store.load_newest({"x": laid_out(found, "rows", rank, 2)})
    assert loaded is not None
    store.close()
    rows = slice(0, 25) if rank == 0 else slice(25, 100)
    return told | {
        "step": loaded.step,
        "why": list(loaded.refused),
        "ranks": list(loaded.rank_states),
        "right": same_bits(found[rows], whole[rows]),
    }


def test_all_ranks_end_alike(tmp_path: Path) -> None:
    ranks = run_on_ranks(2, on_two_ranks, str(tmp_path / "checkpoints"))
    assert ranks[0] == ranks[1]
    for background in (False, True):
        message = ranks[0][f"full {background}"]
        assert message.startswith(
            f"the checkpoint of step 3 cannot be written under '{tmp_path / 'checkpoints'}': rank 1"
        )
        assert "File too large" in message
        assert (
            "bytes are free there: free some space or write elsewhere; earlier checkpoints are as they were" in message
        )
    assert "rank-00001" in ranks[0]["apart"]
    assert "name a folder for checkpoints that all machines share" in ranks[0]["apart"]
    assert ranks[0]["left"] == ["step-0000000001", "step-0000000002"]
    assert ranks[0]["step"] == 1
    [why] = ranks[0]["why"]
    assert "rank-00001" in why
    assert "the checksum of its bytes" in why
    assert ranks[0]["ranks"] == [{"rank": 0}, {"rank": 1}]
    assert ranks[0]["right"]


def copy_that_fails_on_one(folder: str) -> dict[str, Any]:
    rank, told = dist.get_rank(), {"gate": "", "finish": ""}
    store, row_D = CheckpointStore(folder, keep=1), torch.ones(3)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(np, "copyto", lambda *given: 1 / 0)
        part = {f"row {rank}": row_D}
        store.save(1, part, state={}, rank_state={}, background=True, late=part)
        for name, wait in (("gate", store.finish_copy), ("finish", store.finish)):
            try:
                wait()
            except ZeroDivisionError as error:
                told[name] = str(error)
    dist.barrier()
    store.save(2, {"row": row_D}, state={}, rank_state={}, background=True, late=["row"])
    store.close()
    return told | {"left": sorted(path.name for path in Path(folder).iterdir())}


def test_a_late_copy_that_fails_on_one_rank_ends_the_save_on_all(tmp_path: Path) -> None:
    ranks = run_on_ranks(2, copy_that_fails_on_one, str(tmp_path / "checkpoints"))
    assert [rank["gate"] for rank in ranks] == ["", "division by zero"], "the other one goes on"
    assert [rank["finish"] for rank in ranks] == ["division by zero"] * 2
    assert all(rank["left"] == ["step-0000000002"] for rank in ranks)


def test_the_files_hold_no_pickle(two: Path) -> None:
    for file in two.glob("*/*"):
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors"
