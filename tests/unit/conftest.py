"""What several unit tests start from; a file that needs another dataset has a fixture of its own."""

from collections.abc import Iterator

import pytest

from tests.tiny import write_tiny
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import Runtime, RuntimeConfig, runtime


@pytest.fixture(scope="module")
def here() -> Iterator[Runtime]:
    """One rank on the CPU."""
    with runtime(RuntimeConfig(device="cpu", threads=1)) as one:
        yield one


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The tiny one."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")
