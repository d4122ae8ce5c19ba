"""A copy of a rank's tensors that can be written while training goes on; its memory is used again by the next one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from torchrec_mt.distributed.pieces import Pieces

_Key = tuple[str, int]


class Staging:
    """Memory of the CPU, as much as this rank's tensors take, from the first copy on."""

    def __init__(self) -> None:
        self._buffers: dict[_Key, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor | Pieces]) -> dict[str, Tensor | Pieces]:
        """The same names and layouts over memory of our own, valid until the next copy."""
        parts: dict[_Key, Tensor] = {}
        for name, value in tensors.items():
            values = [tensor for _, tensor in value.pieces] if isinstance(value, Pieces) else [value]
            parts |= {(name, i): tensor for i, tensor in enumerate(values)}
        # What does not fit any more goes before anything new comes.
        self._buffers = {
            key: buffer
            for key, buffer in self._buffers.items()
            if key in parts and (parts[key].shape, parts[key].dtype) == (buffer.shape, buffer.dtype)
        }
        for key, tensor in parts.items():
            if key not in self._buffers:
                self._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key].copy_(tensor.detach())
        return {
            name: value.like(self._buffers[name, i] for i in range(len(value.pieces)))
            if isinstance(value, Pieces)
            else self._buffers[name, 0]
            for name, value in tensors.items()
        }
