"""Preparation that ends early: killed, interrupted, no room, no right to write. What was there before stays."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.raw_shop import CLICKS, given, groups, make_schema, with_pairs, write_raw
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import folder, prepare
from torchrec_mt.errors import UserError

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.raw_shop import groups, with_pairs
from torchrec_mt.data.preparation import prepare

def die(stage, done, total):
    if stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
prepare(with_pairs(groups(min_support=2)), name="t", raw=root / "raw", output=root / "out", progress=die)
"""


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_killed_run_is_never_taken_for_whole_and_is_cleared_by_the_next(tmp_path: Path) -> None:
    raw, out = write_raw(tmp_path / "raw"), tmp_path / "out"
    before = prepare(make_schema(), name="t", raw=raw, output=out).dataset.manifest
    for stage in ("write entities", "digest"):
        process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), stage], cwd=Path.cwd(), check=False)
        assert process.returncode == -signal.SIGKILL
    assert len(hidden(tmp_path)) == 2
    assert PreparedDataset.open(out).manifest == before
    after = prepare(with_pairs(groups(min_support=2)), name="t", raw=raw, output=out)
    assert after.fresh
    assert after.dataset.manifest.digest != before.digest
    assert hidden(tmp_path) == []
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("stage", ["entities", "pairs", "features", "write entities", "digest"])
@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (KeyboardInterrupt("by hand"), KeyboardInterrupt, "by hand"),
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "no room on the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), UserError, "no right to write"),
    ],
)
def test_ending_in_any_stage_leaves_the_earlier_result(
    tmp_path: Path, stage: str, raised: BaseException, expected: type[BaseException], said: str
) -> None:
    raw, out = write_raw(tmp_path / "raw"), tmp_path / "out"
    before = prepare(make_schema(), name="t", raw=raw, output=out).dataset.manifest

    def fail(now: str, done: int, total: int) -> None:
        if now == stage:
            raise raised

    with pytest.raises(expected, match=said):
        prepare(with_pairs(groups(min_support=2)), name="t", raw=raw, output=out, progress=fail)
    assert PreparedDataset.open(out).manifest == before
    assert hidden(tmp_path) == []


def test_a_running_neighbour_is_not_cleared(tmp_path: Path) -> None:
    raw, out = write_raw(tmp_path / "raw"), tmp_path / "out"
    seen: list[int] = []

    def inner(stage: str, done: int, total: int) -> None:
        if stage == "digest" and done == 0:
            prepare(make_schema(), name="other", raw=raw, output=out)
            seen.append(len(hidden(tmp_path)))

    result = prepare(make_schema(), name="t", raw=raw, output=out, progress=inner)
    assert seen == [1], "the outer run's folder is locked, so the inner run leaves it"
    assert result.dataset.manifest.name == "t"
    assert hidden(tmp_path) == []


def test_the_output_may_be_an_empty_folder_or_a_link_but_no_file(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    prepare(make_schema(), name="t", raw=raw, output=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/manifest.json").is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises((UserError, NotADirectoryError), match="file"):
        prepare(make_schema(), name="t", raw=raw, output=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "part",
    ["pairs/search/valid.parquet", "frequencies/search/anchors.parquet", "known/search/anchors.values.npy",
     "negatives/search/candidates.offsets.npy"],
)  # fmt: skip
def test_a_dataset_with_a_part_missing_is_made_again(tmp_path: Path, part: str) -> None:
    raw, out = write_raw(tmp_path / "raw", clicks={**CLICKS, "shown": [["e"]] * 8}), tmp_path / "out"
    schema = with_pairs(given(negatives="shown"))
    first = prepare(schema, name="t", raw=raw, output=out)
    assert not prepare(schema, name="t", raw=raw, output=out).fresh
    os.remove(out / part)
    again = prepare(schema, name="t", raw=raw, output=out)
    assert again.fresh
    assert again.dataset.manifest.digest == first.dataset.manifest.digest


def test_room_is_asked_for_before_a_memory_map_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_raw(tmp_path / "raw")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 16))
    with pytest.raises(UserError, match="no room on the disk"):
        prepare(make_schema(), name="t", raw=raw, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
