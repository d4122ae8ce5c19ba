"""Copies and URLs in step: what travels, what stays, and who waits for whom."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import Fault, Proxy, contents
from torchrec_mt.errors import UserError
from torchrec_mt.storage import fetch, fetch_output, file_system, is_url, local_copy, push
from torchrec_mt.storage.place import Place

MARK = "mark.json"


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/deep/made"


def write(url: str, files: dict[str, str]) -> Path:
    """A folder of ours at a URL, written by this machine."""
    made = fetch_output(url, mark=MARK)
    for name, text in ({MARK: "{}"} | files).items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    push(made, url, mark=MARK)
    return made


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / name))


def put(url: str, text: str) -> None:
    """Somebody else writes an object."""
    fs, path = file_system(url)
    fs.pipe_file(path, text.encode())


@pytest.mark.parametrize(
    ("path", "expected"), [("s3://b/x", True), ("memory://x", True), ("a/b", False), ("/a", False)]
)
def test_what_a_url_is(path: str, expected: bool) -> None:
    assert is_url(path) is expected
    assert not is_url(Path(path))


@pytest.mark.parametrize("bad", ["s3://", "s3:///", "s3://b/../x", "s3://b/./x", "nothing://b/x"])
def test_urls_that_name_nothing(bad: str) -> None:
    with pytest.raises(UserError, match=r"names nothing in a storage|no kind of storage that we know"):
        fetch(bad)


def test_what_is_there_is_not_fetched_again(
    url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(url, {"a": "1", "deep/b": "2", "deep/c": "3"})
    elsewhere(monkeypatch, tmp_path, "reader")
    proxy.asked.clear()
    copy = fetch(url, mark=MARK)
    assert contents(copy) == {MARK: b"{}", "a": b"1", "deep/b": b"2", "deep/c": b"3"}
    assert proxy.count("GET", "made/") == 4
    assert fetch(url, mark=MARK) == copy
    assert proxy.count("GET", "made/") == 4
    # Same size, other content: the tag tells. What is no longer there goes.
    put(f"{url}/a", "4")
    fs, path = file_system(url)
    fs.rm_file(f"{path}/deep/c")
    assert contents(fetch(url, mark=MARK)) == {MARK: b"{}", "a": b"4", "deep/b": b"2"}
    assert proxy.count("GET", "made/") == 5
    # A copy that somebody spoilt is mended.
    (copy / "deep/b").write_text("5")
    assert contents(fetch(url, mark=MARK))["deep/b"] == b"2"
    # A lost record costs time, not truth.
    (Place(url).folder / "record.json").write_text("[")
    assert contents(fetch(url, mark=MARK)) == {MARK: b"{}", "a": b"4", "deep/b": b"2"}
    assert not list(copy.parent.glob("*.partial*"))


def test_only_what_differs_is_pushed(url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write(url, {"a": "1", "b": "2", "c": "3"})
    proxy.asked.clear()
    push(made, url, mark=MARK)
    assert proxy.count("PUT") == proxy.count("DELETE") == 0
    (made / "b").write_text("22")
    (made / "c").unlink()
    put(f"{url}/theirs", "not ours to remove")
    push(made, url, mark=MARK)
    assert [path.rpartition("/")[2] for method, path in proxy.asked if method == "PUT"] == [
        "theirs",
        f"{MARK}.unfinished",
        "b",
        MARK,
    ]
    elsewhere(monkeypatch, tmp_path, "reader")
    assert contents(fetch(url, mark=MARK)) == {MARK: b"{}", "a": b"1", "b": b"22", "theirs": b"not ours to remove"}


def test_times_are_those_of_the_storage(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(url, {"a": "1"})
    times = set()
    for machine in ("one", "two"):
        elsewhere(monkeypatch, tmp_path, machine)
        times.add((fetch(url, mark=MARK) / "a").stat().st_mtime_ns)
        time.sleep(0.01)
    assert len(times) == 1


@pytest.mark.parametrize("name", ["lock", "in_use", "record.json", "files"])
def test_any_name(name: str, bucket: str) -> None:
    write(f"{bucket}/{name}", {name: "1"})
    assert contents(fetch(f"{bucket}/{name}", mark=MARK)) == {MARK: b"{}", name: b"1"}


def test_parts(url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(url, {"a/1": "1", "a2/1": "no", "b/x.csv": "2", "b/y.txt": "3", "c": "4"})
    elsewhere(monkeypatch, tmp_path, "reader")
    copy = fetch(url, parts=["a", "b/*.csv"])
    assert contents(copy) == {"a/1": b"1", "b/x.csv": b"2"}
    fetch(url, parts=["c"])
    assert contents(copy) == {"a/1": b"1", "b/x.csv": b"2", "c": b"4"}
    fs, path = file_system(url)
    fs.rm_file(f"{path}/b/x.csv")
    put(f"{url}/b/z.csv", "5")
    fetch(url, parts=["b/*.csv"])
    assert contents(copy) == {"a/1": b"1", "b/z.csv": b"5", "c": b"4"}
    assert fetch(f"{url}/b/y.txt").read_text() == "3"
    (copy / "a/1").write_text("9")
    (copy / "c").write_text("9")
    push(copy, url, parts=["a"])
    assert (proxy.count("PUT", "a/1$"), proxy.count("PUT", "/c$")) == (2, 1)


def test_nothing_whole(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'{url}': there is nothing"):
        fetch(url)
    put(f"{url}/a", "1")
    with pytest.raises(UserError, match=f"'{url}' holds no {MARK}"):
        fetch(url, mark=MARK)
    with pytest.raises(UserError, match=rf"holds something else .no {MARK}, but a.: nothing was touched"):
        fetch_output(url, mark=MARK)


def test_names_that_lead_out_of_the_folder(url: str, tmp_path: Path) -> None:
    put(f"{url}/a", "1")
    fs, path = file_system(url)
    fs.pipe_file(f"{path}/../../../../secret", b"1")
    with pytest.raises(UserError, match="is no name of a file on this machine"):
        fetch(url)
    assert not list(tmp_path.rglob("secret"))


def test_a_folder_that_changes_while_it_is_fetched(
    url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchrec_mt.storage import mirror

    write(url, {"a": "old", "b": "old", "c": "old"})
    elsewhere(monkeypatch, tmp_path, "reader")
    get, left = mirror._get, [1]

    def while_somebody_writes(*arguments: Any) -> UserError | None:
        if left.pop() if left else 0:
            put(f"{url}/a", "newer")
            put(f"{url}/b", "newer")
            fs, path = file_system(url)
            fs.rm_file(f"{path}/c")
        return get(*arguments)

    monkeypatch.setattr(mirror, "_get", while_somebody_writes)
    assert contents(fetch(url, mark=MARK)) == {MARK: b"{}", "a": b"newer", "b": b"newer"}


def test_large_files_come_in_blocks(url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchrec_mt.storage import mirror

    text = "".join(map(str, range(3000)))
    write(url, {"large": text, "empty": ""})
    elsewhere(monkeypatch, tmp_path, "reader")
    monkeypatch.setattr(mirror, "_BLOCK", 1000)
    proxy.faults = [Fault("GET", "large", "cut", 2), Fault("GET", "large", 503)]
    assert contents(fetch(url, mark=MARK)) == {MARK: b"{}", "large": text.encode(), "empty": b""}
    assert proxy.count("GET", "large") == -(-len(text) // 1000) + 3


_FETCH = """
import sys
from torchrec_mt.storage import fetch
print(fetch(sys.argv[1], mark="mark.json"), flush=True)
sys.stdin.read()
"""


def start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _FETCH, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )


def end(process: subprocess.Popen[str]) -> None:
    process.stdin.close()
    process.stdout.close()
    assert process.wait(30) == 0


def test_of_several_processes_one_fetches(
    url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And while they use the copy nobody replaces it."""
    write(url, {str(n): str(n) for n in range(20)})
    elsewhere(monkeypatch, tmp_path, "reader")
    proxy.asked.clear()
    ranks = [start(url) for _ in range(3)]
    places = {rank.stdout.readline().strip() for rank in ranks}
    assert len(places) == 1
    assert proxy.count("GET", "made/") == 21
    put(f"{url}/3", "changed")
    with pytest.raises(UserError, match="has changed while another program on this machine uses its local copy"):
        fetch(url, mark=MARK)
    for rank in ranks:
        end(rank)
    assert (fetch(url, mark=MARK) / "3").read_text() == "changed"


def test_a_killed_fetch_leaves_nothing_half(
    url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(url, {str(n): str(n) for n in range(30)})
    elsewhere(monkeypatch, tmp_path, "reader")
    proxy.asked.clear()
    reader = start(url)
    while proxy.count("GET", "made/") < 10:
        time.sleep(0.005)
    reader.send_signal(signal.SIGKILL)
    reader.wait(30)
    reader.stdin.close()
    reader.stdout.close()
    copy = Place(url).copy
    assert not copy.exists() or len(contents(copy)) == 31
    assert len(contents(fetch(url, mark=MARK))) == 31
    assert [path.name for path in copy.parent.iterdir()] == ["made"]


def test_who_pushes_is_named_while_it_lasts(url: str, proxy: Proxy) -> None:
    made = write(url, {"a": "1"})
    (made / "a").write_text("2")
    proxy.faults = [Fault("PUT", "/a$", 403)]
    with pytest.raises(UserError):
        push(made, url, mark=MARK)
    fs, path = file_system(url)
    assert json.loads(fs.cat_file(f"{path}/{MARK}.unfinished"))["process"] == os.getpid()
    push(made, url, mark=MARK)
    assert sorted(name.rpartition("/")[2] for name in fs.ls(path, detail=False, refresh=True)) == ["a", MARK]


def test_endpoints_do_not_share_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Place("s3://b/x").copy
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    assert Place("s3://b/x").copy != here
    assert Place("s3://b/x/").copy == Place("s3://b/x").copy


def test_a_path_stays_a_path(tmp_path: Path) -> None:
    assert local_copy("some/folder", mark=MARK) == "some/folder"


def test_any_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about S3 alone."""
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / "one"))
    write("memory://shop/made", {"a": "1", "b/c": "2"})
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / "two"))
    copy = fetch("memory://shop/made", mark=MARK)
    assert contents(copy) == {MARK: b"{}", "a": b"1", "b/c": b"2"}
    put("memory://shop/made/a", "3")
    assert contents(fetch("memory://shop/made", mark=MARK))["a"] == b"3"
