"""Whether all ranks of a job see one and the same folder; asked before they write a model into it together."""

import uuid
from pathlib import Path

import torch

from torchrec_mt.distributed.collectives import max_over_ranks, on_main
from torchrec_mt.errors import UserError


def check_shared(folder: Path, device: torch.device, remedy: str) -> None:
    """Called on every rank.

    Raises:
        UserError: on every rank, if one of them does not see what the main rank writes there.
    """

    def write() -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / f".seen-by-all-{uuid.uuid4().hex[:12]}"
        token.touch()
        return token

    token = on_main(write)
    unseen = max_over_ranks(int(not token.exists()), device)
    on_main(token.unlink)
    if unseen:
        raise UserError(f"not every rank sees '{folder}', in which all of them write the run: {remedy}")
