"""An S3 server on this machine, and a proxy before it that fails as it is told to. Nothing else is ever contacted."""

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # as long as its parent lives
"""
_CODES = {429: "TooManyRequests", 500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}


@contextmanager
def s3_server() -> Iterator[int]:
    """An in-memory S3; its port."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


@dataclass
class Fault:
    """What befalls the next `times` requests of a method whose path and query match, the first `after` left out.

    Args:
        what: an HTTP status, "refuse" (no answer at all) or "cut" (the answer breaks off in its middle).
    """

    method: str
    path: str
    what: int | str
    times: int = 1
    after: int = 0


class Proxy(ThreadingHTTPServer):
    """Hands every request on to the server, but those that a fault is waiting for. Keeps what it was asked."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def forget(self) -> None:
        """No fault any more, nothing asked yet."""
        with self._lock:
            self.faults, self.asked = [], []

    def take_fault(self, method: str, path: str) -> int | str | None:
        with self._lock:
            self.asked.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault.what
        return None

    def count(self, method: str, path: str = "") -> int:
        """Requests so far."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.asked)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _serve(self) -> None:
        length = self.headers.get("Content-Length")
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if chunked else self.rfile.read(int(length or 0))
        fault = self.server.take_fault(self.command, self.path)
        if fault == "refuse":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(fault, int):
            text = f"<Error><Code>{_CODES[fault]}</Code><Message>as told</Message></Error>".encode()
            self._answer(fault, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text)
            return
        headers = {key: value for key, value in self.headers.items() if key.lower() != "transfer-encoding"}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection", "date")]
        self._answer(answer.status, kept, content, cut=fault == "cut")
        connection.close()

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers:
            if key.lower() != "content-length" or self.command == "HEAD":
                self.send_header(key, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.wfile.flush()
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve


@contextmanager
def s3_behind_proxy() -> Iterator[Proxy]:
    """Both, running."""
    with s3_server() as port, Proxy(port) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


def only_here(monkeypatch: pytest.MonkeyPatch, proxy: Proxy, cache: Path) -> None:
    """Sets the environment such that the proxy is all the S3 there is, and the cache is a test's own."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
        "AWS_ACCESS_KEY_ID": "a-test",
        "AWS_SECRET_ACCESS_KEY": "no-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "*",
        "TORCHREC_MT_CACHE": str(cache),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def make_bucket(proxy: Proxy, name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.behind, timeout=30)
    connection.request("PUT", f"/{name}", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=a/b/us-east-1/s3/c"})
    assert connection.getresponse().status == 200
    connection.close()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
