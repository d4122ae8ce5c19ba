"""Gather with gradient, padding, and failing together, on real gloo ranks."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from torchrec_mt.distributed.collectives import (
    from_main,
    gather,
    gather_numbers,
    group_beside,
    max_over_ranks,
    on_main,
    sum_over_ranks,
)
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.errors import UserError


def on_two_ranks() -> dict[str, object]:
    rank = dist.get_rank()
    local = torch.tensor([[1.0 + rank]], requires_grad=True)
    gathered = gather(local)
    # Rank r's loss weighs row 0 by 1 + r and row 1 by 10: the gradient of a row is the sum over ranks.
    (gathered[0] * (1 + rank) + gathered[1] * 10).sum().backward()

    uneven = torch.full((1 + rank, 2), 5.0 + rank, requires_grad=True)
    all_uneven = gather(uneven, (1, 2))
    (all_uneven * torch.tensor([[1.0], [2.0], [3.0]]) * (1 + rank)).sum().backward()
    assert uneven.grad is not None

    def fail() -> None:
        raise UserError("no room")

    try:
        on_main(fail)
        failure = ""
    except UserError as error:
        failure = str(error)
    assert local.grad is not None
    return {
        "gathered": gathered.tolist(),
        "gradient": local.grad.tolist(),
        "uneven": all_uneven.tolist(),
        "uneven gradient": uneven.grad.tolist(),
        "uneven numbers": gather(torch.arange(rank), (0, 1)).tolist(),
        "sum": sum_over_ranks(torch.tensor(3.0 + rank)).item(),
        "max": max_over_ranks(5 - rank, torch.device("cpu")),
        "numbers": gather_numbers([0.1 + rank, 2.0], torch.device("cpu")),
        "main": from_main(f"rank {rank}"),
        "failure": failure,
    }


def test_two_ranks() -> None:
    first, second = run_on_ranks(2, on_two_ranks)
    assert first["gathered"] == second["gathered"] == [[1.0], [2.0]]
    assert first["gradient"] == [[3.0]]
    assert second["gradient"] == [[20.0]]
    assert first["uneven"] == second["uneven"] == [[5.0, 5.0], [6.0, 6.0], [6.0, 6.0]]
    assert first["uneven gradient"] == [[3.0, 3.0]]
    assert second["uneven gradient"] == [[6.0, 6.0], [9.0, 9.0]]
    assert first["uneven numbers"] == second["uneven numbers"] == [0]
    assert (first["sum"], first["max"], first["main"]) == (7.0, 5, "rank 0")
    assert (second["sum"], second["max"], second["main"]) == (7.0, 5, "rank 0")
    assert first["numbers"] == second["numbers"] == [[0.1, 2.0], [1.1, 2.0]], "no bit lost"
    assert first["failure"] == "no room"
    assert second["failure"] == "rank 0 failed: no room"


def passed_over() -> list[str]:
    """What a rank hears that goes on after mistakes of rank 0."""
    heard = []
    for mistake in (ValueError("of the main rank"), KeyError("gone"), None):

        def answer(mistake: Exception | None = mistake) -> str:
            if mistake is not None:
                raise mistake
            return "all is well"

        try:
            heard.append(on_main(answer))
        except (ValueError, KeyError, RuntimeError) as error:
            heard.append(f"{type(error).__name__}: {error}")
    return heard


def test_what_fails_on_the_main_rank_fails_on_all() -> None:
    """Whatever it is, ranks stay in step: the next answer is that of the next question."""
    first, second = run_on_ranks(2, passed_over)
    assert first == ["ValueError: of the main rank", "KeyError: 'gone'", "all is well"]
    assert second == [
        "RuntimeError: rank 0 failed: of the main rank",
        "RuntimeError: rank 0 failed: 'gone'",
        "all is well",
    ]


def test_a_rank_that_raises_fails_the_test_helper() -> None:
    with pytest.raises(Exception, match="no such thing"):
        run_on_ranks(1, raising)


def raising() -> None:
    raise RuntimeError("no such thing")


def test_a_group_beside_waits_as_long_as_the_job() -> None:
    with runtime(RuntimeConfig(device="cpu", threads=1, timeout_minutes=90)):
        backend = group_beside()._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(minutes=90)
