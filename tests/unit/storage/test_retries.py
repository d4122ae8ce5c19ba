"""What S3 does wrong for a while is retried, what cannot be mended is told at once."""

import os
import socket
import time
from pathlib import Path

import pytest

from tests.object_store import Fault, Proxy, contents
from torchrec_mt.errors import UserError
from torchrec_mt.storage import client, fetch, fetch_output, push

MARK = "mark.json"


@pytest.fixture(autouse=True)
def unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no test before this one had had anything retried."""
    monkeypatch.setattr(client._WATCH, "_said", set())


@pytest.fixture
def folder(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, bytes]]:
    """A folder at a URL, and what is in it; this machine has no copy."""
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / "theirs"))
    made = fetch_output(f"{bucket}/made", mark=MARK)
    (made / "parts").mkdir(parents=True)
    (made / "parts/one.bin").write_bytes(os.urandom(200_000))
    (made / "parts/two.bin").write_bytes(b"")
    (made / MARK).write_text("{}")
    push(made, f"{bucket}/made", mark=MARK)
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / "ours"))
    return f"{bucket}/made", contents(made)


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("storage: ")]


@pytest.mark.parametrize("what", [503, 429, 500, "refuse"])
def test_a_request_that_fails_for_a_while_is_tried_again(
    what: int | str, folder: tuple[str, dict[str, bytes]], proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    url, expected = folder
    times = 2 if what == "refuse" else 1  # the HTTP library itself asks again where a kept connection was closed
    asked = [("GET", "list-type"), ("GET", "one.bin"), ("PUT", "three")]
    proxy.faults = [Fault(method, path, what, times) for method, path in asked]
    copy = fetch(url, mark=MARK)
    assert contents(copy) == expected
    (copy / "parts/three.bin").write_bytes(b"3" * 1000)
    push(copy, url, mark=MARK)
    assert contents(fetch(url, mark=MARK)) == expected | {"parts/three.bin": b"3" * 1000}
    assert [fault.times for fault in proxy.faults] == [0, 0, 0]
    lines = said(capsys.readouterr().err)
    assert len(lines) == 1, "once, not per retry"
    assert str(what) in lines[0] or "Connection" in lines[0]


def test_an_answer_that_breaks_off_is_read_to_its_end(folder: tuple[str, dict[str, bytes]], proxy: Proxy) -> None:
    url, expected = folder
    proxy.faults = [Fault("GET", "one.bin", "cut")]
    assert contents(fetch(url, mark=MARK)) == expected
    assert proxy.faults[0].times == 0


def test_without_being_told_a_request_is_tried_7_times(
    folder: tuple[str, dict[str, bytes]], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def soon(self: object, seconds: float) -> None:
        pauses.append(seconds)

    pauses: list[float] = []
    monkeypatch.setattr("aiobotocore.endpoint.AioEndpoint._sleep", soon)
    url, _ = folder
    for what, times in ((429, 7), (500, 7), (503, 7), ("refuse", 14)):
        pauses.clear()
        proxy.forget()
        proxy.faults = [Fault("GET", "one.bin", what, times=1000)]
        with pytest.raises(UserError, match=r"tried 7 times: "):
            fetch(url, mark=MARK)
        assert proxy.count("GET", "one.bin") in (7, times)
        assert len(pauses) == 6
        assert all(0 <= pause <= 2**n for n, pause in enumerate(pauses)), "exponential, with jitter"


def test_an_answer_that_always_breaks_off(
    folder: tuple[str, dict[str, bytes]], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = folder
    monkeypatch.setattr(client.random, "uniform", lambda least, most: least)
    proxy.faults = [Fault("GET", "one.bin", "cut", times=1000)]
    with pytest.raises(UserError, match=r"one.bin': no whole answer \(ClientPayloadError: .*, tried 5 times: see to"):
        fetch(url, mark=MARK)
    assert proxy.count("GET", "one.bin") == 5


def test_throttling_without_end_is_given_up(
    folder: tuple[str, dict[str, bytes]], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = folder
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.faults = [Fault("GET", "one.bin", 503, times=1000)]
    with pytest.raises(UserError) as caught:
        fetch(url, mark=MARK)
    tries = proxy.count("GET", "one.bin")
    assert tries == 2
    assert str(caught.value) == (
        f"'{url}/parts/one.bin': the server said 503 SlowDown (as told), tried {tries} times: wait and run again, or "
        "let it be tried more often by AWS_MAX_ATTEMPTS"
    )
    proxy.faults.clear()
    assert (fetch(url, mark=MARK) / "parts/one.bin").stat().st_size == 200_000


def test_a_push_that_is_given_up_says_where_all_of_it_lies(
    folder: tuple[str, dict[str, bytes]], proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, expected = folder
    copy = fetch(url, mark=MARK)
    (copy / "parts/one.bin").write_bytes(b"new")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.faults = [Fault("PUT", "one.bin", 500, times=1000)]
    with pytest.raises(UserError, match="500 InternalError") as caught:
        push(copy, url, mark=MARK)
    assert f"all of it lies in '{copy}'" in str(caught.value)
    # Elsewhere nobody takes the half of it for the whole.
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / "third"))
    with pytest.raises(UserError, match="is being written, or its writer was stopped"):
        fetch(url, mark=MARK)
    # Who has it can still write it.
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / "ours"))
    proxy.faults.clear()
    assert fetch_output(url, mark=MARK) == copy
    push(copy, url, mark=MARK)
    monkeypatch.setenv("TORCHREC_MT_CACHE", str(tmp_path / "third"))
    assert contents(fetch(url, mark=MARK)) == expected | {"parts/one.bin": b"new"}


def test_nobody_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"no whole answer \(EndpointConnectionError: .*AWS_ENDPOINT_URL"):
        fetch(f"{bucket}/made", mark=MARK)


@pytest.mark.parametrize("name", ["made", "made/parts/one.bin"])
def test_no_right(name: str, folder: tuple[str, dict[str, bytes]], bucket: str, proxy: Proxy) -> None:
    proxy.asked.clear()
    proxy.faults = [Fault(method, "", 403, times=1000) for method in ("GET", "HEAD")]
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no right to it, the server said 403.*set others"):
        fetch(f"{bucket}/{name}")
    assert time.monotonic() - began < 2
    assert len(proxy.asked) == len(set(proxy.asked)), "nothing was asked twice"


def test_no_right_to_write(folder: tuple[str, dict[str, bytes]], proxy: Proxy) -> None:
    url, _ = folder
    copy = fetch(url, mark=MARK)
    (copy / "new").write_text("")
    proxy.faults = [Fault("PUT", "", 403, times=1000)]
    with pytest.raises(UserError, match="403 AccessDenied"):
        push(copy, url, mark=MARK)
    assert proxy.count("PUT", "unfinished") == 2, "the first made the folder, the second failed, no third"


def test_no_bucket(bucket: str, proxy: Proxy) -> None:
    for call in (
        lambda: fetch("s3://no-such-bucket/made", mark=MARK),
        lambda: fetch_output("s3://no-such-bucket/a", mark=MARK),
    ):
        with pytest.raises(UserError, match=r"'s3://no-such-bucket/.*': there is no such bucket .*make it"):
            call()


def test_no_credentials(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    proxy.asked.clear()
    with pytest.raises(UserError, match=r"no credentials .*: set AWS_ACCESS_KEY_ID"):
        fetch(f"{bucket}/made", mark=MARK)
    assert not proxy.asked


def test_the_local_disk_speaks_for_itself(folder: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    url, _ = folder
    (tmp_path / "ours").write_text("a file where the cache should be")
    with pytest.raises(OSError, match=str(tmp_path / "ours")):
        fetch(url, mark=MARK)
