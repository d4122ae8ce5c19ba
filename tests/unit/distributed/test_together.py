"""Mistakes that ranks pass over together, or that end the program."""

import time
from unittest.mock import patch

import pytest

from tests.ranks import run_on_ranks
from tests.tiny_run import here
from torchrec_mt.distributed.lost import Together
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.errors import UserError


def made_by(*ranks: int) -> str:
    """What a rank hears of a mistake that these ranks make; the others wait."""
    rank = here().rank
    with patch("torchrec_mt.distributed.lost._TOGETHER", 2.0):
        together = Together()
        if rank not in ranks:
            time.sleep(4.0)  # is there, and makes no mistake, until the other has waited for it in vain
            return "waits"
        try:
            together.failed(ValueError(f"of rank {rank}"))
        except UserError as error:
            return f"{error}, exit code {error.exit_code}"
        return "goes on"


@pytest.mark.parametrize(
    ("ranks", "heard"),
    [
        ((0, 1), ["goes on", "goes on"]),
        ((0,), ["rank 0 failed alone: of rank 0, exit code 1", "waits"]),
        ((1,), ["waits", "rank 1 failed alone: of rank 1, exit code 1"]),
    ],
)
def test_a_mistake_of_one_rank_alone_is_not_passed_over(ranks: tuple[int, ...], heard: list[str]) -> None:
    assert run_on_ranks(2, made_by, *ranks) == heard


def test_one_rank_has_all_mistakes_together() -> None:
    with runtime(RuntimeConfig(device="cpu", threads=1)):
        Together().failed(ValueError("of the only one"))
