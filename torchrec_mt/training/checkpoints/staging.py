"""A copy of a rank's tensors that can be written while training goes on; its memory is used again by the next one."""

from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.training.checkpoints.layout import as_bytes

_Key = tuple[str, int]


@dataclass(frozen=True)
class Copy:
    """Tensors over memory of a `Staging`, valid until its next copy.

    Args:
        tensors: the same names and layouts. finish: fills what is late, on any thread; until it returns they must stay
            as they are.
    """

    tensors: dict[str, Tensor | Pieces]
    finish: Callable[[], None]


class Staging:
    """Memory of the CPU, as much as this rank's tensors take, from the first copy on."""

    def __init__(self) -> None:
        self._buffers: dict[_Key, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor | Pieces], *, late: Container[str] = ()) -> Copy:
        """A copy of all but those that are late."""
        parts: dict[_Key, Tensor] = {}
        for name, value in tensors.items():
            values = [tensor for _, tensor in value.pieces] if isinstance(value, Pieces) else [value]
            parts |= {(name, i): tensor.detach() for i, tensor in enumerate(values)}
        self._fit(parts)
        now: list[tuple[Tensor, Tensor]] = []
        later: list[tuple[Tensor, Tensor]] = []
        for key, tensor in parts.items():
            (later if key[0] in late else now).append((self._buffers[key], tensor))
        _fill(now)
        aside = _aside(later)

        def finish() -> None:
            with aside():
                _fill(later)

        return Copy(
            {
                name: value.like(self._buffers[name, i] for i in range(len(value.pieces)))
                if isinstance(value, Pieces)
                else self._buffers[name, 0]
                for name, value in tensors.items()
            },
            finish,
        )

    def _fit(self, parts: Mapping[_Key, Tensor]) -> None:
        """Makes the memory that of such tensors; what does not fit any more goes before anything new comes."""
        self._buffers = {
            key: buffer
            for key, buffer in self._buffers.items()
            if key in parts and (parts[key].shape, parts[key].dtype) == (buffer.shape, buffer.dtype)
        }
        for key, tensor in parts.items():
            if key not in self._buffers:
                self._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _fill(copies: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, tensor in copies:
        if tensor.is_cuda or not tensor.is_contiguous():
            buffer.copy_(tensor)
        else:  # as one thread does it in half the time of torch's copy, which would start others beside those of a step
            np.copyto(np.asarray(as_bytes(buffer)), np.asarray(as_bytes(tensor)))


def _aside(copies: list[tuple[Tensor, Tensor]]) -> Callable[[], AbstractContextManager[object]]:
    """Around a copy on another thread: on a GPU a stream beside that of the steps, behind what is under way there."""
    devices = {tensor.device for _, tensor in copies if tensor.is_cuda}
    if not devices:
        return nullcontext
    [device] = devices
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return lambda: torch.cuda.stream(stream)
