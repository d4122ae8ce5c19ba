"""Ranks of one machine share its folders; those of two machines are told that they do not."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from torchrec_mt.distributed.shared_folder import check_shared
from torchrec_mt.errors import UserError


def _seen(root: str) -> str:
    try:
        check_shared(Path(root), torch.device("cpu"), "share it")
    except UserError as error:
        return str(error)
    return "seen"


def _both(root: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        same = _seen(root)
        if dist.get_rank() == 1:
            patch.setattr(Path, "exists", lambda self: False)  # another machine
        return [same, _seen(root)]


def test_ranks_that_share_a_folder_and_ranks_that_do_not(tmp_path: Path) -> None:
    found = run_on_ranks(2, _both, str(tmp_path / "shared"))
    assert [same for same, _ in found] == ["seen", "seen"]
    for _, other in found:
        assert other == f"not every rank sees '{tmp_path / 'shared'}', in which all of them write the run: share it"
    assert not list((tmp_path / "shared").iterdir())
