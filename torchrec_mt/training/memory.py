"""What an objective remembers of earlier batches: candidate vectors (memory negatives) and how often candidates come.

Both see the candidates of all ranks in rank order, so they are the same on every rank.

Legend: P pairs of all ranks, Q vectors remembered, D width, X buckets of a hash table, H hash tables.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrec_mt.data.negatives import Memory, StreamingFrequencies

LEAST_COUNT = 1e-9
"""A column is there, so it was to be expected; estimates may say otherwise."""


class Columns(NamedTuple):
    """Candidates that anchors are compared with.

    vector_CD, id_C; share_C: share of the task's pairs with the id; drawn_C: copies expected from draws of all ranks;
    copies_C: how many equal columns this one stands for.
    """

    vector_CD: Tensor
    id_C: Tensor
    share_C: Tensor
    drawn_C: Tensor
    copies_C: Tensor

    @staticmethod
    def joined(parts: list["Columns"]) -> "Columns":
        """All columns side by side."""
        return Columns(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def expected(self, draws: int) -> Tensor:
        """Copies of each id expected of that many draws from the pairs and of the draws from the catalogue: count_C."""
        return (draws * self.share_C + self.drawn_C).clamp(min=LEAST_COUNT)

    def merged(self) -> "Columns":
        """Columns of one id as one: a batch encodes each entity once, so they are equal.

        (With dropout in the towers each rank has its own noise; then the first rank's vector stands for all.)

        Popular products stand in a batch many times: fewer products of matrices, and far fewer places to block.
        """
        sorted_C, order_C = self.id_C.sort(stable=True)
        new_C = torch.ones_like(sorted_C, dtype=torch.bool)
        new_C[1:] = sorted_C[1:] != sorted_C[:-1]
        first_U = order_C[new_C]
        copies_U = self.copies_C.new_zeros(len(first_U)).index_add_(0, new_C.cumsum(0) - 1, self.copies_C[order_C])
        return Columns(*(tensor.index_select(0, first_U) for tensor in self))._replace(copies_C=copies_U)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector_CD: Tensor, factor_C: Tensor) -> Tensor:
        ctx.save_for_backward(factor_C)
        return vector_CD.view_as(vector_CD)

    @staticmethod
    def backward(ctx: Any, gradient_CD: Tensor) -> tuple[Tensor, None]:
        (factor_C,) = ctx.saved_tensors
        return gradient_CD * factor_C[:, None], None


def with_gradient_of_all(vector_CD: Tensor, factor_C: Tensor) -> Tensor:
    """The same columns, their gradients times factor_C.

    A memory's columns take part of the softmax but no gradient. Where k of n expected copies of a candidate are
    remembered, the n - k fresh ones would teach its tower only (n - k) / n of what they should; a factor n / (n - k)
    makes the expected gradient of candidates, too, that of the full softmax. Without it a large memory starves them.
    """
    return _ScaledGradient.apply(vector_CD, factor_C)


class CandidateMemory:
    """The candidates of past steps, oldest first, as they were encoded then."""

    def __init__(self, source: Memory) -> None:
        self._source = source
        self._steps: deque[tuple[int, Columns]] = deque()

    def recall(self, step: int) -> list[Columns]:
        """What is young enough, oldest first; nothing during warm-up."""
        while self._steps and self._steps[0][0] < step - self._source.max_age:
            self._steps.popleft()
        return [] if step < self._source.warmup else [columns for _, columns in self._steps]

    def keep(self, step: int, columns: Columns) -> None:
        """Remembers a step's candidates and forgets the oldest beyond the size."""
        newest = Columns(*(tensor.detach()[-self._source.size :] for tensor in columns))
        self._steps.append((step, newest))
        over = sum(len(held.id_C) for _, held in self._steps) - self._source.size
        while over > 0:
            oldest_step, oldest = self._steps.popleft()
            if len(oldest.id_C) > over:
                self._steps.appendleft((oldest_step, Columns(*(tensor[over:] for tensor in oldest))))
            over -= len(oldest.id_C)

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint says of it: steps that are held, with how many candidates, and the vectors' kind."""
        vectors = [columns.vector_CD for _, columns in self._steps]
        return {
            "held": [[step, len(columns.id_C)] for step, columns in self._steps],
            "width": vectors[0].shape[1] if vectors else 0,
            "dtype": str(vectors[0].dtype).removeprefix("torch.") if vectors else "",
        }

    def tensors(self) -> dict[str, Tensor]:
        """All columns side by side, by name; nothing where nothing is held."""
        held = [columns for _, columns in self._steps]
        return dict(Columns.joined(held)._asdict()) if held else {}

    def restore(self, numbers: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
        """Makes room for what `numbers` say was held; the tensors returned are parts of it, to be filled."""
        total = sum(count for _, count in numbers["held"])
        if not total:
            self._steps.clear()
            return {}
        vector_CD = torch.zeros(total, numbers["width"], dtype=getattr(torch, numbers["dtype"]), device=device)
        id_C = torch.zeros(total, dtype=torch.int64, device=device)
        columns = Columns(vector_CD, id_C, *(torch.zeros(total, device=device) for _ in range(3)))
        parts = [tensor.split([count for _, count in numbers["held"]]) for tensor in columns]
        steps = [step for step, _ in numbers["held"]]
        self._steps = deque(zip(steps, (Columns(*held) for held in zip(*parts, strict=True)), strict=True))
        return dict(columns._asdict())


class FrequencyEstimator:
    """Share of a candidate in the stream of pairs, from the gaps between its appearances (Yi et al., RecSys 2019).

    Gaps are counted in pairs, not steps, so that a candidate may come several times in a batch. The gap of a first
    appearance reaches back to the start. The first 1 / rate gaps are averaged plainly: the first alone, off by as much
    as it is long, would weigh until as many have come. Of several hash tables the largest gap: a collision can only
    shorten gaps.
    """

    def __init__(self, config: StreamingFrequencies, device: torch.device) -> None:
        self._config, self._seen = config, 0
        shape = (config.hashes, config.buckets)
        self._last_HX = torch.zeros(shape, dtype=torch.int64, device=device)
        self._gap_HX = torch.full(shape, torch.inf, device=device)
        self._copies_HX = torch.zeros(shape, device=device)

    @property
    def seen(self) -> int:
        """Pairs so far."""
        return self._seen

    def tensors(self) -> dict[str, Tensor]:
        """Its tables, by reference."""
        return {"last": self._last_HX, "gap": self._gap_HX, "copies": self._copies_HX}

    def restore(self, seen: int) -> dict[str, Tensor]:
        """Takes the number of pairs of another state; the tables returned are to be filled with its own."""
        self._seen = seen
        return self.tensors()

    def update(self, id_P: Tensor) -> None:
        """Counts the candidates of a step."""
        self._seen += len(id_P)
        tables = zip(self._last_HX, self._gap_HX, self._copies_HX, self._buckets(id_P), strict=True)
        for last_X, gap_X, copies_X, bucket_P in tables:
            bucket_U, copies_U = bucket_P.unique(return_counts=True)
            gap_U = (self._seen - last_X[bucket_U]) / copies_U
            copies_X[bucket_U] += copies_U
            newest_U = torch.maximum(1 - (1 - self._config.rate) ** copies_U, copies_U / copies_X[bucket_U])
            gap_X[bucket_U] = (1 - newest_U) * gap_X[bucket_U].nan_to_num(posinf=0) + newest_U * gap_U
            last_X[bucket_U] = self._seen

    def share(self, id_C: Tensor) -> Tensor:
        """Estimated share of each id in the stream, 0 where it never came: share_C."""
        gaps = [gap_X[bucket_C] for gap_X, bucket_C in zip(self._gap_HX, self._buckets(id_C), strict=True)]
        return torch.stack(gaps).amax(dim=0).reciprocal()

    def _buckets(self, id_C: Tensor) -> list[Tensor]:
        odd = (0x9E3779B97F4A7C1, 0xBF58476D1CE4E5B, 0x94D049BB133111F)
        mixed = [id_C * (odd[h % 3] + 2 * h) for h in range(self._config.hashes)]
        return [((one ^ (one >> 29)) * 0x2545F4914F6CDD1D >> 20) % self._config.buckets for one in mixed]
