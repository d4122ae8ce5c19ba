"""What every test shares: reproducible hypothesis, `--update-golden`, and `gpu` tests skipped where there is no GPU."""

import pytest
from hypothesis import settings

# No deadline: two workers share the cores. Derandomized: the gate gives the same answer twice.
settings.register_profile("gate", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gate")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether to write golden files instead of comparing with them."""
    return bool(request.config.getoption("--update-golden"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch  # seconds, so only where it is needed

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
