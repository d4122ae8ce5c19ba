"""Disks that fill up, prepared files that vanish or are cut off, while a training runs: one message, exit code 2."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faulty import changed_after, changed_within, full_disk
from tests.jobs import STEPS, Job, checkpoints, newest, resumed, small, state_after
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.mined import MinedTask, write_mined

Uninterrupted = Callable[[int], dict[str, Any]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_room_for_a_checkpoint(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path, ranks: int) -> None:
    """Of two ranks, only the second one's disk is full."""
    run = tmp_path / "run"
    fault = partial(full_disk, 5, ranks - 1, 100_000)
    ended = Job(tmp_path / "said", [*small(debug_shop), f"--output={run}"], ranks=ranks, fault=fault).wait(30)
    assert [one.code for one in ended] == [2] * ranks
    for one in ended:
        assert f"cannot be written under '{run / 'checkpoints'}'" in one.error
        assert "File too large" in one.error
        assert "earlier checkpoints are as they were" in one.error
        assert f"the newest checkpoint is '{run}/checkpoints/step-{newest(run):010}'" in one.error
    assert newest(run) in (3, 4), "4 was being written when the disk filled up"
    assert not list((run / "checkpoints").glob(".*")), "what was half written takes room"
    resumed(tmp_path / "again", run, ranks=ranks)
    assert state_after(run, STEPS) == uninterrupted(ranks)


def test_no_room_for_the_log(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*small(debug_shop, "checkpoint.every=4", "checkpoint.background=false"), f"--output={run}"]
    [ended] = Job(tmp_path / "said", arguments, fault=partial(full_disk, 6, 0, 2500)).wait(30)
    assert ended.code == 2
    assert f"'{run / 'metrics.jsonl'}': this file would be larger than the limit allows" in ended.error
    assert newest(run) == 4
    resumed(tmp_path / "again", run, ranks=1)
    assert state_after(run, STEPS)["log"] == uninterrupted(1)["log"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes: two checkpoints, and not three."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may mount no disk here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_small_disk(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path, small_disk: Path) -> None:
    run, place = tmp_path / "run", f"checkpoint.folder={small_disk / 'kept'}"
    [ended] = Job(tmp_path / "said", [*small(debug_shop, place), f"--output={run}"]).wait(30)
    assert ended.code == 2
    assert "No space left on device" in ended.error
    assert "free some space or write elsewhere" in ended.error
    (run / "checkpoints").symlink_to(small_disk / "kept")
    assert checkpoints(run) == [1, 2]
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    resumed(tmp_path / "again", run, ranks=1)
    assert state_after(run, STEPS) == uninterrupted(1)


@pytest.mark.slow
def test_fewer_checkpoints_make_room(debug_shop: Path, tmp_path: Path, small_disk: Path) -> None:
    run, settings = tmp_path / "run", [f"checkpoint.folder={small_disk / 'kept'}", "trainer.validations=1"]
    [ended] = Job(tmp_path / "said", [*small(debug_shop, *settings), f"--output={run}"]).wait(30)
    assert ended.code == 2
    resumed(tmp_path / "again", run, "checkpoint.keep=1", ranks=1)
    assert [path.name for path in (small_disk / "kept").iterdir()] == [f"step-{STEPS:010}"]


@pytest.fixture
def own_shop(debug_shop: Path, tmp_path: Path) -> Path:
    shutil.copytree(debug_shop / "debug", tmp_path / "root/debug")
    return tmp_path / "root"


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


FILES = [
    "pairs/search/train.parquet",
    "store/product/title.values.npy",
    pytest.param("known/similar/candidates.values.npy", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("change", [Path.unlink, cut_in_half])
@pytest.mark.parametrize("name", FILES)
def test_a_prepared_file(
    debug_shop: Path, own_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path, name: str, change: Any
) -> None:
    run, file = tmp_path / "run", own_shop / "debug" / name
    fault = partial(changed_after, 8, partial(change, file), 0)
    [ended] = Job(tmp_path / "said", [*small(own_shop), f"--output={run}"], fault=fault).wait(30)
    assert ended.code == 2, ended.err
    assert ended.error.startswith(f"error: '{file}' is ")
    assert "prepare again" in ended.error
    assert f"the newest checkpoint is '{run}/checkpoints/step-{newest(run):010}'" in ended.error
    assert newest(run) == 8
    shutil.copy(debug_shop / "debug" / name, file)
    resumed(tmp_path / "again", run, ranks=1)
    assert state_after(run, STEPS) == uninterrupted(1)


@pytest.mark.parametrize("change", [Path.unlink, cut_in_half])
def test_a_file_of_mined_negatives(debug_shop: Path, tmp_path: Path, change: Any) -> None:
    dataset, mined = PreparedDataset.open(debug_shop / "debug"), tmp_path / "mined"
    anchors = dataset.manifest.entities[dataset.manifest.tasks["search"].anchor].count
    write_mined(mined, dataset, {"search": MinedTask(np.ones(anchors, np.int64), np.ones(anchors, np.int64))}, {})
    run, file = tmp_path / "run", mined / "search/candidates.values.npy"
    fault = partial(changed_after, 8, partial(change, file), 0)
    sources = f'negatives.tasks={{search = [{{kind = "in_batch"}}, {{kind = "mined", path = "{mined}"}}]}}'
    [ended] = Job(tmp_path / "said", [*small(debug_shop, sources), f"--output={run}"], fault=fault).wait(30)
    assert ended.code == 2, ended.err
    assert ended.error.startswith(f"error: '{file}' is ")
    assert "mine again" in ended.error
    assert f"the newest checkpoint is '{run}/checkpoints/step-{newest(run):010}'" in ended.error
    assert newest(run) == 8


def test_a_mapped_file_that_is_cut_off_while_it_is_read(own_shop: Path, tmp_path: Path) -> None:
    """The system kills the process; what it was doing is told, and a launcher reports the signal."""
    file = own_shop / "debug/store/product/title.values.npy"
    fault = partial(changed_within, 9, partial(os.truncate, file, 0), 0)
    [ended] = Job(tmp_path / "said", [*small(own_shop), f"--output={tmp_path / 'run'}"], fault=fault).wait(30)
    assert ended.code == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in ended.err
    assert "torchrec_mt/data/store.py" in ended.err
    assert newest(tmp_path / "run") >= 4, "batches are read ahead of their steps"
