"""One S3 server with a proxy before it for the tests of this folder; a bucket and a cache of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import Proxy, make_bucket, only_here, s3_behind_proxy


@pytest.fixture(scope="session")
def running_proxy() -> Iterator[Proxy]:
    with s3_behind_proxy() as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    running_proxy.forget()
    only_here(monkeypatch, running_proxy, tmp_path / "cache")
    return running_proxy


@pytest.fixture
def bucket(proxy: Proxy, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)):x}"
    make_bucket(proxy, name)
    return f"s3://{name}"
