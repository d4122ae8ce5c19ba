"""One step: batches in, losses checked, one backward through the tables, one update of everything."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import average_over_ranks, sum_over_ranks
from torchrec_mt.distributed.pipeline import InputPipeline
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import pad_rows
from torchrec_mt.models.embeddings import Embeddings
from torchrec_mt.models.scales import TaskScales
from torchrec_mt.models.two_tower import TwoTower, Vectors
from torchrec_mt.training.accumulate import JoinedLookup
from torchrec_mt.training.alarms import check_losses
from torchrec_mt.training.clock import StepClock
from torchrec_mt.training.cut import CutVectors, Inside
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.weighing import Weighing

Metrics = dict[str, float]


class Steps:
    """Takes the steps of a run.

    `clock` times them; `candidates` are the last batch's by task, vectors and ids; `pipeline` runs a batch ahead where
    there is one.

    Args:
        objective: losses of a batch. balancer: weighs them.
        offending_path: where the batch goes that breaks the run, asked when there is one.
        accumulate: batches of a step. pipeline: whether a GPU's next batch runs ahead.
        asked: whether this rank was asked to end; `is_asked` says of every rank whether any was.
        before_update: called in each step before tables change.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        *,
        objective: Objective,
        balancer: Balancer,
        runtime: Runtime,
        offending_path: Callable[[], str | Path],
        accumulate: int,
        pipeline: bool,
        asked: Callable[[], bool],
        before_update: Callable[[], None],
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self._objective, self._runtime = objective, runtime
        self._offending_path, self._accumulate = offending_path, accumulate
        self._asked, self.is_asked = asked, False
        self._before_update = before_update
        self.candidates: dict[str, tuple[Tensor, Tensor]] = {}
        # Batches that are looked up together have nothing to run ahead of; on a CPU nothing is gained.
        ahead = pipeline and accumulate == 1 and runtime.device.type == "cuda"
        self.pipeline = InputPipeline(model, runtime.device) if ahead else None
        self.clock = StepClock(runtime.device)
        embeddings = next(module for module in model.modules() if isinstance(module, Embeddings))
        embeddings.register_forward_hook(self._hold_updates)
        self.clock.watch(embeddings)
        # Without DDP: for steps that average the gradients themselves.
        self._plain = next(module for module in model.modules() if isinstance(module, TwoTower))
        self._scales = next(module for module in model.modules() if isinstance(module, TaskScales))
        self.weighing, self._logs = Weighing(balancer, self._plain), True

    def _hold_updates(self, embeddings: nn.Module, arguments: Any, features: dict[str, list[Tensor]]) -> None:
        """Holds the backward where it comes to looked-up features: what is left of it updates the tables."""
        every = [feature for of_entity in features.values() for feature in of_entity]
        register_multi_grad_hook(every, lambda gradient: self._before_update(), mode="any")

    def step(self, batches: Iterator[Batch], step: int, *, logs: bool = True) -> tuple[Metrics, int]:
        """The next batches and their step, on the clock. Returns the losses and the number of pairs of this rank.

        Args:
            logs: whether all is to be noted that a line of the log tells.
        """
        self._logs = logs
        self.clock.start(step + 1, timed=logs)
        if self.pipeline is not None:
            return self._pipelined(self.pipeline, batches, step)
        taken = [next(batches) for _ in range(self._accumulate)]
        self.clock.mark("data")
        losses = self.train_step(taken[0], step) if len(taken) == 1 else self.train_joined(taken, step)
        self.clock.stop()
        return losses, sum(batch.num_pairs for batch in taken)

    def _pipelined(self, pipeline: InputPipeline, batches: Iterator[Batch], step: int) -> tuple[Metrics, int]:
        """A step that starts the next batch on its way while the device computes."""

        def start_next() -> None:
            batch = next(batches, None)
            self.clock.mark("data")
            if batch is not None:
                pipeline.start(batch)
            self.clock.mark("copy")

        batch = pipeline.take()
        if batch is None:  # the first step
            pipeline.start(next(batches))
            self.clock.mark("data")
            batch = pipeline.take()
            assert batch is not None
        losses = self._step(batch, step, meanwhile=start_next)
        self.clock.stop()
        return losses, batch.num_pairs

    def train_step(self, batch: Batch, step: int) -> Metrics:
        """One step. Returns the losses of the batch of all ranks by task.

        Raises:
            UserError: a loss that is no finite number, before anything was updated.
        """
        return self._step(pad_rows(batch.to(self._runtime.device, non_blocking=True)), step)

    def _step(self, batch: Batch, step: int, meanwhile: Callable[[], None] | None = None) -> Metrics:
        """A step of a batch on the device. `meanwhile` is called when the device has the losses still to compute."""
        self._begin(step)
        with Inside(self._plain) as inside:
            vectors = self.model(batch)
        self.clock.mark("towers")
        cut = CutVectors(vectors)
        losses, values = self._losses(cut, inside.vectors, batch, step, meanwhile)
        self.weighing.settle(values)
        self.clock.mark("loss")
        # The only backward of the step: it also updates the tables.
        cut.backward(self.weighing.weighted(losses))
        self.clock.mark("tables")
        self._finish(vectors, batch)
        return values

    def train_joined(self, batches: Sequence[Batch], step: int) -> Metrics:
        """One step over several batches: of the mean of their losses, which is returned. Negatives are shared within
        each batch alone. Tasks are weighed as the step before has settled it.

        Raises:
            UserError: a loss that is no finite number, before anything was updated.
        """
        batches = [batch.to(self._runtime.device, non_blocking=True) for batch in batches]
        self._begin(step)
        lookup = JoinedLookup(self._plain.embeddings, batches)
        self.clock.mark("lookup")
        found = []
        for position, batch in enumerate(batches):
            vectors = self._plain(batch, sparse=lookup.of(position))
            self.clock.mark("towers")
            cut = CutVectors(vectors)
            losses, values = self._losses(cut, vectors, batch, step)
            cut.backward(self.weighing.weighted(losses) / len(batches))
            self.clock.mark("backward")
            found.append(values)
        means = {name: sum(values[name] for values in found) / len(found) for name in found[0]}
        self.weighing.settle(means)
        average_over_ranks(self.optimizers.dense_gradients())
        self.clock.mark("backward")
        self._before_update()
        lookup.backward()
        self.clock.mark("tables")
        self._finish(vectors, batch)
        return means

    def told(self) -> Metrics:
        """Of the last step, which logs: weights, gradients and temperatures of the tasks, by name."""
        inverse, _ = self._scales()
        return self.weighing.told() | {f"temperature/{task}": 1 / value.item() for task, value in inverse.items()}

    def _begin(self, step: int) -> None:
        self.optimizers.set_rate(step)
        self.optimizers.zero_grad()
        self.weighing.begin(step, logs=self._logs)
        self.clock.mark("copy")

    def _losses(
        self,
        cut: CutVectors,
        inside: Vectors,
        batch: Batch,
        step: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> tuple[dict[str, Tensor], Metrics]:
        """The losses by task: of this rank with gradient, and of all ranks' batches.

        Args:
            inside: the vectors that were cut, from inside DDP.
        """
        losses = self._objective(cut.leaves, batch, step)
        self.weighing.take(cut, losses, inside)
        if meanwhile is not None:
            self.clock.mark("loss")
            meanwhile()
        told = [*losses.values(), torch.tensor(float(self._asked()), device=self._runtime.device)]
        *sums, asked = sum_over_ranks(torch.stack(told)).tolist()
        self.is_asked = self.is_asked or asked > 0
        values = {name: value / self._runtime.world_size for name, value in zip(losses, sums, strict=True)}
        check_losses(values, batch, step + 1, self._offending_path(), self._runtime.rank)
        self.clock.mark("loss")
        return losses, values

    def _finish(self, vectors: Vectors, batch: Batch) -> None:
        self.optimizers.step()
        self._scales.clip()
        self.optimizers.take_average()
        self.clock.mark("optimizer")
        self.candidates = {
            name: (candidate_BD.detach(), batch.pairs[name].candidate_id_B)
            for name, candidate_BD in vectors.candidate.items()
        }
