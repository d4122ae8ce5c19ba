"""The objective: vectors of a batch -> the loss of every task. Gathers what ranks share; the loss itself sees no rank.

Ranks hold disjoint anchors and share all candidates. With L_r = W * sum over own anchors of w * loss / sum over all
anchors of w, the mean over ranks is the weighted mean over all anchors, and the mean is what DDP and TorchRec take of
gradients.

Legend: B anchors of this rank, P pairs of all ranks, C columns, M drawn negatives of this rank, K of all ranks, W
ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrec_mt.batch import Batch, Entries, Pairs
from torchrec_mt.data.negatives import InBatch, Memory, NegativesConfig, StreamingFrequencies
from torchrec_mt.distributed.collectives import gather, rank_and_size, sum_over_ranks
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.blocked import Blocked, find_blocked
from torchrec_mt.models.losses.config import LossConfig, SoftmaxLoss
from torchrec_mt.models.losses.terms import Comparison, task_loss
from torchrec_mt.models.losses.walk import product_dtype
from torchrec_mt.models.two_tower import Vectors
from torchrec_mt.training.memory import (
    LEAST_COUNT,
    CandidateMemory,
    Columns,
    FrequencyEstimator,
    with_gradient_of_all,
)


@dataclass(frozen=True)
class TaskSides:
    """Entities of a task, as far as the loss must know: names, and how many there are."""

    candidate: str
    anchors: int
    candidates: int


class Drawn(NamedTuple):
    """The negatives of one candidate entity on all ranks, lane after lane, and how many each rank has."""

    vector_KD: Tensor
    id_K: Tensor
    lanes: int
    counts: tuple[int, ...]


class Objective:
    """Losses of all tasks; remembers candidates and frequencies across steps where the config asks for it."""

    def __init__(
        self, tasks: Mapping[str, TaskSides], losses: LossConfig, negatives: NegativesConfig, device: torch.device
    ) -> None:
        self.tasks, self._losses, self._negatives = dict(tasks), losses, negatives
        self._dtype, self._device = product_dtype(losses.precision, device), device
        memories = {name: source for name in tasks for source in negatives.of(name) if isinstance(source, Memory)}
        self._memories = {name: CandidateMemory(source) for name, source in memories.items()}
        self._in_batch = {name: any(isinstance(s, InBatch) for s in negatives.of(name)) for name in tasks}
        self._frequencies = {
            name: FrequencyEstimator(negatives.frequencies, device)
            for name in tasks
            if isinstance(negatives.frequencies, StreamingFrequencies)
        }

    def __call__(self, vectors: Vectors, batch: Batch, step: int) -> dict[str, Tensor]:
        """L_r of every task on this rank (its mean over ranks is the task's loss over the batch of all ranks)."""
        drawn = {}
        for entity, vector_MD in vectors.negative.items():
            own = batch.negatives[entity]
            lanes = own.lanes or rank_and_size()[1]
            drawn[entity] = Drawn(gather(vector_MD, own.counts), gather(own.id_M, own.counts), lanes, own.counts)
        return {
            name: self._task(name, vectors, batch.pairs[name], drawn[side.candidate], step)
            for name, side in self.tasks.items()
        }

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint says of it beside `tensors`, as JSON."""
        return {
            "memories": {name: memory.numbers() for name, memory in self._memories.items()},
            "frequencies": {name: estimator.seen for name, estimator in self._frequencies.items()},
        }

    def tensors(self) -> dict[str, Tensor]:
        """What it remembers of earlier steps, by name; the same on every rank."""
        memories = {name: memory.tensors() for name, memory in self._memories.items()}
        frequencies = {name: estimator.tensors() for name, estimator in self._frequencies.items()}
        return _named("memory", memories) | _named("frequencies", frequencies)

    def restore(self, numbers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Makes room for what another objective of the same config remembered; returns what is to be filled with it.

        Raises:
            UserError: it remembered of other tasks.
        """
        for kind, here in (("memories", self._memories), ("frequencies", self._frequencies)):
            if numbers[kind].keys() != here.keys():
                raise UserError(
                    f"the checkpoint has {kind} of the tasks {sorted(numbers[kind])}, the config asks for those of "
                    f"{sorted(here)}: go on with the negatives that it was trained with"
                )
        memories = {
            name: memory.restore(numbers["memories"][name], self._device) for name, memory in self._memories.items()
        }
        frequencies = {
            name: estimator.restore(numbers["frequencies"][name]) for name, estimator in self._frequencies.items()
        }
        return _named("memory", memories) | _named("frequencies", frequencies)

    def _task(self, name: str, vectors: Vectors, pairs: Pairs, drawn: Drawn, step: int) -> Tensor:
        loss = self._losses.of(name)
        _, world_size = rank_and_size()
        weight_B = world_size * pairs.weight_B / sum_over_ranks(pairs.weight_B.sum()).clamp(min=1e-12)
        forward = task_loss(loss, self._forward(name, vectors, pairs, drawn, weight_B, step), self._dtype)
        if isinstance(loss, SoftmaxLoss) and loss.symmetric:
            backward = task_loss(loss, self._backward(name, vectors, pairs, weight_B), self._dtype)
            return 0.5 * (forward + backward)
        return forward

    def _forward(
        self, name: str, vectors: Vectors, pairs: Pairs, drawn: Drawn, weight_B: Tensor, step: int
    ) -> Comparison:
        """Anchors against candidates."""
        pair_columns = self._pair_columns(name, vectors.candidate[name], pairs)
        fresh = [pair_columns] if self._in_batch[name] else []
        fresh.append(self._drawn_columns(name, pairs, drawn))
        memory = self._memories.get(name)
        old = memory.recall(step) if memory else []
        new = Columns.joined(fresh)
        if self._negatives.mask != "none":
            new = new.merged()
        fresh_draws = len(pair_columns.id_C) - 1 if self._in_batch[name] else 0
        draws = fresh_draws + sum(len(held.id_C) for held in old)
        if old:
            factor_C = new.expected(draws) / new.expected(fresh_draws)
            new = new._replace(vector_CD=with_gradient_of_all(new.vector_CD, factor_C))
        columns = Columns.joined([new, *old])
        if memory:
            memory.keep(step, pair_columns)
        share_B = self._share(name, pairs.candidate_id_B, pairs.share_B)
        positive_log_count_B = (draws * share_B + pairs.drawn_B).clamp(min=LEAST_COUNT).log()
        corrected = self._negatives.logq != "off"
        log_count_C, log_copies_C = columns.expected(draws).log(), columns.copies_C.log()
        anchor_BD = vectors.anchor[name]
        private_BHD = vectors.private.get(name, anchor_BD.new_zeros(len(anchor_BD), 0, anchor_BD.shape[1]))
        log_count_BH = anchor_BD.new_zeros(len(anchor_BD), 0) if pairs.private is None else pairs.private.log_count_BH
        if not corrected:
            log_count_BH = torch.where(log_count_BH.isinf(), log_count_BH, 0.0)
        return Comparison(
            anchor_BD=anchor_BD,
            positive_BD=vectors.candidate[name],
            weight_B=weight_B,
            column_CD=columns.vector_CD,
            log_count_C=log_count_C - log_copies_C if corrected else -log_copies_C,
            blocked=self._blocked(pairs.blocked, columns.id_C, pairs, own_there=self._in_batch[name]),
            learning=len(new.id_C),
            private_BHD=private_BHD,
            private_log_count_BH=log_count_BH,
            positive_log_count_B=positive_log_count_B * (self._negatives.logq == "standard"),
            inverse_temperature=vectors.inverse_temperature[name],
            bias=vectors.bias.get(name),
            catalogue=self.tasks[name].candidates,
            corrected=corrected,
        )

    def _backward(self, name: str, vectors: Vectors, pairs: Pairs, weight_B: Tensor) -> Comparison:
        """Candidates against the anchors of the batch."""
        assert pairs.backward is not None
        column_CD, id_C = gather(vectors.anchor[name], pairs.counts), gather(pairs.anchor_id_B, pairs.counts)
        corrected = self._negatives.logq != "off"
        log_count_C = ((len(id_C) - 1) * gather(pairs.backward.share_B, pairs.counts)).clamp(min=LEAST_COUNT).log()
        own_log_count_B = ((len(id_C) - 1) * pairs.backward.share_B).clamp(min=LEAST_COUNT).log()
        anchor_BD = vectors.candidate[name]
        return Comparison(
            anchor_BD=anchor_BD,
            positive_BD=vectors.anchor[name],
            weight_B=weight_B,
            column_CD=column_CD,
            log_count_C=log_count_C if corrected else torch.zeros_like(log_count_C),
            blocked=self._blocked(pairs.backward.known, id_C, pairs, own_there=True),
            learning=len(column_CD),
            private_BHD=anchor_BD.new_zeros(len(anchor_BD), 0, anchor_BD.shape[1]),
            private_log_count_BH=anchor_BD.new_zeros(len(anchor_BD), 0),
            positive_log_count_B=own_log_count_B * (self._negatives.logq == "standard"),
            inverse_temperature=vectors.inverse_temperature[name],
            bias=None,
            catalogue=self.tasks[name].anchors,
            corrected=corrected,
        )

    def _pair_columns(self, name: str, candidate_BD: Tensor, pairs: Pairs) -> Columns:
        """The candidates of all ranks' pairs, C = P."""
        id_P = gather(pairs.candidate_id_B, pairs.counts)
        if name in self._frequencies:
            self._frequencies[name].update(id_P)
        share_P, drawn_P = gather(torch.stack([pairs.share_B, pairs.drawn_B], dim=1), pairs.counts).unbind(dim=1)
        share_P = self._share(name, id_P, share_P)
        return Columns(gather(candidate_BD, pairs.counts), id_P, share_P, drawn_P, torch.ones_like(share_P))

    def _drawn_columns(self, name: str, pairs: Pairs, drawn: Drawn) -> Columns:
        """The task's stretches of the negatives that all ranks drew."""
        both_K2 = gather(torch.stack([pairs.share_M, pairs.drawn_M], dim=1), drawn.counts)

        def chosen(all_K: Tensor) -> Tensor:
            lane_K = all_K.unflatten(0, (drawn.lanes, -1)) if len(all_K) else all_K[None]
            return torch.cat([lane_K[:, start:stop].flatten(0, 1) for start, stop in pairs.stretches or ((0, 0),)])

        vector_CD, id_C, both_C2 = chosen(drawn.vector_KD), chosen(drawn.id_K), chosen(both_K2)
        share_C = self._share(name, id_C, both_C2[:, 0])
        return Columns(vector_CD, id_C, share_C, both_C2[:, 1], torch.ones_like(share_C))

    def _share(self, name: str, id_C: Tensor, counted_C: Tensor) -> Tensor:
        """Share of each candidate in the pairs: counted by preparation, or estimated from the stream."""
        return self._frequencies[name].share(id_C) if name in self._frequencies else counted_C

    def _blocked(self, entries: Entries, column_id_C: Tensor, pairs: Pairs, *, own_there: bool) -> Blocked:
        if self._negatives.mask != "none":
            return find_blocked(entries.owner_L, entries.id_L, column_id_C)
        if not own_there:
            return Blocked.nothing(column_id_C.device)
        # Unmasked, still not against itself: the pair's own place among the columns of all ranks.
        rank, _ = rank_and_size()
        row_B = torch.arange(len(pairs.weight_B), device=column_id_C.device)
        return Blocked(row_B, row_B + (sum(pairs.counts[:rank]) if pairs.counts else rank * len(row_B)))


def _named(kind: str, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{kind}.{task}.{name}": tensor for task, parts in tensors.items() for name, tensor in parts.items()}
