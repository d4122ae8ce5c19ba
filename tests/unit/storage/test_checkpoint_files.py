"""Checkpoints in an object store that throttles, hangs up and refuses: tried again, or told; never taken for damage."""

import pytest

from tests.object_store import Fault, Proxy
from torchrec_mt.storage import StorageError
from torchrec_mt.training.checkpoints.commit import COMMIT, Commit, folder_of
from torchrec_mt.training.checkpoints.files import Files, read_into
from torchrec_mt.training.checkpoints.shelf import Shelf


@pytest.fixture
def files(bucket: str) -> Files:
    return Files(f"{bucket}/run/checkpoints")


def save(files: Files, *steps: int) -> None:
    """Checkpoints that hold nothing."""
    shelf = Shelf(files, keep=10)
    for step in steps:
        folder = shelf.begin(step, "attempt")
        sequence = shelf.next_sequence()
        commit = Commit(step=step, sequence=sequence, attempt="attempt", ranks=1, marks=(), files={})
        shelf.publish(folder, commit)


def test_what_passes_is_tried_again(files: Files, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    proxy.faults = [Fault("PUT", "some", 503, 2), Fault("GET", "some", "cut"), Fault("GET", "some", "refuse")]
    files.write("some", [b"one ", b"two"])
    assert files.read("some") == b"one two"
    proxy.faults += [Fault("GET", "some", "cut", 2), Fault("HEAD", "some", 500)]
    target = bytearray(3)
    with files.open("some") as file:
        assert read_into(file, 4, memoryview(target))
        assert not read_into(file, 5, memoryview(bytearray(3))), "it ends early"
    assert target == b"two"
    assert sum(fault.times for fault in proxy.faults) == 0


def test_a_file_that_is_not_there(files: Files) -> None:
    assert files.names() == []
    assert not files.exists("some")
    for ask in (files.read, files.size, lambda name: files.open(name).__enter__()):
        with pytest.raises(FileNotFoundError, match=r"run/checkpoints/some"):
            ask("some")


def test_a_bucket_that_is_not_there(proxy: Proxy) -> None:
    files = Files("s3://no-such-bucket/run")
    with pytest.raises(StorageError, match="'s3://no-such-bucket/run': there is no such bucket"):
        files.names()
    with pytest.raises(StorageError, match="'s3://no-such-bucket/run/some': there is no such bucket"):
        files.write("some", [b"one"])
    with pytest.raises(StorageError, match="'s3://no-such-bucket/run/some': there is no such bucket"):
        files.read("some")


def test_no_right_is_no_damage(files: Files, proxy: Proxy) -> None:
    """A checkpoint of which nothing is known is neither passed over nor removed."""
    save(files, 1, 2)
    path = f"checkpoints/{folder_of(2)}/{COMMIT}"
    for method in ("HEAD", "GET"):
        for use in (Shelf.entries, Shelf.next_sequence, Shelf.prune, Shelf.clear, lambda shelf: shelf.begin(3, "new")):
            proxy.faults = [Fault(method, path, 403)]
            with pytest.raises(StorageError, match=f"{path}': no right to it, the server said 403"):
                use(Shelf(files, keep=1))
    proxy.forget()
    assert [entry.folder for entry in Shelf(files, keep=1).entries()] == [folder_of(2), folder_of(1)]


def test_all_go_where_a_new_run_begins(files: Files) -> None:
    save(files, 1, 2)
    files.write(f"{folder_of(2)}/unfinished", [b"x"])
    files.write("notes.txt", [b"not ours"])
    Shelf(files, keep=1).clear()
    assert files.names() == ["notes.txt"]
