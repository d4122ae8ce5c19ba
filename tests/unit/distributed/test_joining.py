"""Ranks that are started again find each other in a store that is full of what those before them wrote."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore

from torchrec_mt.distributed.joining import store_of_this_try
from torchrec_mt.errors import UserError

SOON = timedelta(seconds=20)


def test_each_try_has_a_store_of_its_own() -> None:
    store = HashStore()
    for attempt in range(3):
        with ThreadPoolExecutor(3) as ranks:
            tries = [ranks.submit(store_of_this_try, store, rank, 3, SOON) for rank in (2, 1, 0)]
            found = [one.result() for one in tries]
        assert not found[0].check(["place"])
        found[0].set("place", str(attempt))
        assert [one.get("place") for one in found] == [str(attempt).encode()] * 3


def test_a_rank_alone_waits_for_nobody() -> None:
    store_of_this_try(HashStore(), 0, 1, SOON).set("place", "here")


def test_a_rank_that_does_not_come() -> None:
    store = HashStore()
    store.set("try/here/1", "of a dead one")
    with pytest.raises(UserError, match=r"of 2 ranks, \[1\] did not come within 0 s .*timeout_minutes"):
        store_of_this_try(store, 0, 2, timedelta(seconds=0.1))
