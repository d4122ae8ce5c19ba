"""A small catalogue with a skewed popularity, and columns drawn from it: what a training run sees, without a run.

`Draw` builds the comparison of a few anchors as `objective.py` does: columns of every source, log counts of what all
sources together are expected to give, an anchor's positive and private list blocked among the shared columns.

Legend: N candidates, B anchors, C columns, H private columns, D width.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tests.unit.models.losses.comparisons import near
from torchrec_mt.models.losses.blocked import find_blocked
from torchrec_mt.models.losses.terms import Comparison

CATALOGUE, WIDTH, INVERSE, BIAS = 30, 8, 4.0, 0.3
LISTED, TAKEN = 8, 6
"""Length of an anchor's private list, and how many neighbours of it are taken."""


@dataclass(frozen=True)
class World:
    """Candidates' vectors and popularity; anchors near their positives (a popular, a middling, a rare one); lists."""

    item_ND: Tensor
    popularity_N: Tensor
    anchor_BD: Tensor
    positive_B: Tensor
    list_BL: Tensor

    def sources(self) -> dict[str, Tensor]:
        """How each source of shared columns draws: a distribution over the candidates."""
        flat_N = self.popularity_N**0.75
        return {
            "in_batch": self.popularity_N,
            "uniform": torch.full((CATALOGUE,), 1 / CATALOGUE),
            "popularity": flat_N / flat_N.sum(),
            "memory": self.popularity_N,
        }


@cache
def world() -> World:
    """The one small world of these tests; candidates are numbered by popularity, p ~ 1 / rank."""
    rng = torch.Generator().manual_seed(5)
    item_ND = torch.nn.functional.normalize(torch.randn(CATALOGUE, WIDTH, generator=rng), dim=1)
    popularity_N = 1 / torch.arange(1, CATALOGUE + 1)
    positive_B = torch.tensor([0, CATALOGUE // 2, CATALOGUE - 1])
    anchor_BD = near(rng, item_ND[positive_B])
    others = [torch.randperm(CATALOGUE, generator=rng) for _ in positive_B]
    lists = [order[order != positive][:LISTED] for order, positive in zip(others, positive_B, strict=True)]
    return World(item_ND, popularity_N / popularity_N.sum(), anchor_BD, positive_B, torch.stack(lists))


@dataclass(frozen=True)
class Draw:
    """A mix of sources and how its columns are corrected.

    Args:
        mix: names of sources, "private" among them. draws: of each shared source. change: what is wrong with the
            correction, for the tests to notice: "flipped" (log counts added instead of taken off), "off" (none),
            "standard" (the positive's taken off too), "unblocked" (private lists stay among the shared columns), or a
            source that is forgotten.
    """

    mix: tuple[str, ...]
    draws: int
    change: str = ""

    def __call__(self, rng: torch.Generator) -> Comparison:
        """One comparison of all anchors of the world, the anchors a leaf."""
        here = world()
        shares = {name: share_N for name, share_N in here.sources().items() if name in self.mix}
        id_C = torch.cat(
            [torch.multinomial(share_N, self.draws, replacement=True, generator=rng) for share_N in shares.values()]
        )
        count_N = sum(self.draws * share_N for name, share_N in shares.items() if name != self.change)
        assert isinstance(count_N, Tensor)
        log_count_N = count_N.log() * {"flipped": -1, "off": 0}.get(self.change, 1)
        private_BH, log_count_BH = self._private(rng)
        anchors = len(here.positive_B)
        entries = [here.positive_B[:, None]]
        if "private" in self.mix and self.change != "unblocked":
            entries.append(here.list_BL)
        entry_BL = torch.cat(entries, dim=1)
        owner_L = torch.arange(anchors).repeat_interleave(entry_BL.shape[1])
        standard_B = log_count_N[here.positive_B]
        return Comparison(
            anchor_BD=here.anchor_BD.clone().requires_grad_(),
            positive_BD=here.item_ND[here.positive_B],
            weight_B=torch.ones(anchors),
            column_CD=here.item_ND[id_C],
            log_count_C=log_count_N[id_C],
            blocked=find_blocked(owner_L, entry_BL.flatten(), id_C),
            learning=sum(self.draws for name in shares if name != "memory"),
            private_BHD=here.item_ND[private_BH],
            private_log_count_BH=log_count_BH,
            positive_log_count_B=standard_B if self.change == "standard" else torch.zeros(anchors),
            inverse_temperature=torch.tensor(INVERSE),
            bias=torch.tensor(BIAS),
            catalogue=CATALOGUE,
            corrected=True,
        )

    def _private(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Neighbours from a random start of each anchor's list, round its end; each member with probability 6 / 8."""
        list_BL = world().list_BL
        if "private" not in self.mix:
            return list_BL[:, :0], torch.zeros(len(list_BL), 0)
        start_B = torch.randint(0, LISTED, (len(list_BL),), generator=rng)
        taken_BH = list_BL.gather(1, (start_B[:, None] + torch.arange(TAKEN)) % LISTED)
        log_count = 0.0 if self.change == "private" else math.log(TAKEN / LISTED)
        return taken_BH, torch.full(taken_BH.shape, log_count)
