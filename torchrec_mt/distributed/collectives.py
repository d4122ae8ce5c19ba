"""Collectives the project needs, each the identity on one rank. Equal shapes on all ranks unless said otherwise."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from torchrec_mt.errors import UserError

T = TypeVar("T")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's rows: sum their gradients, keep our own rows.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(local: Tensor, counts: Sequence[int] = ()) -> Tensor:
    """Rows of all ranks in rank order, with gradient: x_ND -> x_(W*N)D.

    Args:
        counts: rows of each rank, where they differ.
    """
    if dist.get_world_size() == 1:
        return local
    if len(set(counts)) > 1:
        most = max(counts)
        whole = gather(pad(local, [0, 0] * (local.dim() - 1) + [0, most - len(local)]))
        return torch.cat([whole[at * most : at * most + count] for at, count in enumerate(counts)])
    if local.requires_grad:
        return _Gather.apply(local)
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    value = value.detach().clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value


@torch.no_grad()
def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Puts the mean over ranks in place of each tensor, all in one message."""
    world_size = dist.get_world_size()
    if world_size == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def max_over_ranks(value: int, device: torch.device) -> int:
    """Largest of one integer per rank."""
    if dist.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def gather_numbers(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """The numbers of every rank, in rank order; as many on each."""
    if dist.get_world_size() == 1:
        return [list(values)]
    return gather(torch.tensor([values], dtype=torch.float64, device=device)).tolist()  # type: ignore[no-any-return]


def from_main(value: T | None) -> T:
    """Rank 0's object, on every rank."""
    if dist.get_world_size() == 1:
        return value  # type: ignore[return-value]
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def on_main(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 and returns its result on every rank. What fails there fails on every rank: none waits
    for an answer, or takes the next one for it.

    Raises:
        UserError: on the other ranks, of what a user can mend. RuntimeError: there, of anything else.
    """
    result: T | None = None
    if dist.get_rank() == 0:
        try:
            result = function()
        except Exception as error:  # raised again; the others must hear of it, whatever it is
            from_main((isinstance(error, UserError | OSError), str(error) or type(error).__name__))
            raise
    failure: tuple[bool, str] | None = from_main(None)
    if failure is not None:
        raise (UserError if failure[0] else RuntimeError)(f"rank 0 failed: {failure[1]}")
    return from_main(result)


def group_beside() -> dist.ProcessGroup:
    """All ranks once more, for tensors on the CPU whose messages must not mix with others'. It waits as long as they do
    (torch's own default is half an hour, whatever the job's)."""
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    options = dist.distributed_c10d._get_default_group()._get_backend(device).options
    return dist.new_group(backend="gloo", timeout=options._timeout)


def barrier() -> None:
    """Waits for all ranks."""
    if dist.get_world_size() > 1:
        dist.barrier()


def rank_and_size() -> tuple[int, int]:
    """This rank and the number of ranks."""
    return dist.get_rank(), dist.get_world_size()
