"""One S3 server for the tests of this folder, a proxy, a bucket and a cache of its own for each test."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import Proxy, make_bucket, only_here, s3_server


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3_port) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        only_here(monkeypatch, proxy, tmp_path / "cache")
        yield proxy
        proxy.shutdown()


@pytest.fixture
def bucket(proxy: Proxy, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)):x}"
    make_bucket(proxy, name)
    return f"s3://{name}"
