"""The next batch while the current one trains: its copy to the device, and its ids on their way between ranks.

TorchRec's `TrainPipelineSparseDist` does the same, but for models that `torch.fx` can trace and whose forward gives the
loss: ours iterates over the batch's entities, and its loss must be looked at before the backward. So only its method is
taken: `input_dist` of the sharded tables runs ahead on a stream of its own, `compute_and_output_dist` in the forward.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardedModule

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.sharding import pad_rows


class InputPipeline:
    """Holds one batch that is under way. Every rank must `start` and `take` at the same places of its step.

    Results are those of the simple loop, bit by bit on a CPU (where nothing is gained). Takes the place of the tables'
    forward; features that were not started here are looked up as ever.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batch: Batch | None = None
        [tables] = [module for module in model.modules() if isinstance(module, ShardedEmbeddingBagCollection)]
        self._tables = tables
        self._context: Any = None
        self._ids: Any = None
        self._expected: KeyedJaggedTensor | None = None
        tables.forward = self._look_up

    def start(self, batch: Batch) -> None:
        """Sends a batch on its way; waits on the host for how many ids go where, not for the ids."""
        assert self._batch is None, "one batch at a time"
        if self._stream is not None:
            batch = batch.pin_memory()
        with self._aside():
            self._batch = pad_rows(batch.to(self._device, non_blocking=True))
            self._context = self._tables.create_context()
            self._ids = self._tables.input_dist(self._context, self._batch.features).wait()

    def take(self) -> Batch | None:
        """The batch that was started, whose features the model's next forward must look up; None if there is none."""
        batch, self._batch = self._batch, None
        if batch is not None and self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            batch.record_stream(current)
        self._expected = batch.features if batch is not None else None
        return batch

    def _look_up(self, features: KeyedJaggedTensor) -> Any:
        """In place of the tables' forward."""
        if self._ids is None or features is not self._expected:
            return ShardedModule.forward(self._tables, features)
        context, ids, self._context, self._ids = self._context, self._ids, None, None
        with self._aside():
            found = ids.wait()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            found.record_stream(current)
            context.record_stream(current)
        return self._tables.compute_and_output_dist(context, found)

    def _aside(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
