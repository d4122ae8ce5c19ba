"""Architectures of sharing in small, by name, for tests that go through all of them."""

from torchrec_mt.models.sharing.adatt import AdaTT
from torchrec_mt.models.sharing.choice import Sharing
from torchrec_mt.models.sharing.conditioned import Conditioned
from torchrec_mt.models.sharing.mmoe import Mmoe
from torchrec_mt.models.sharing.ple import Ple
from torchrec_mt.models.sharing.shared_bottom import SharedBottom
from torchrec_mt.models.sharing.single import Single
from torchrec_mt.models.sharing.stem import Stem

KINDS: dict[str, Sharing] = {
    "conditioned": Conditioned(),
    "lhuc": Conditioned(lhuc=True),
    "shared_bottom": SharedBottom(),
    "single": Single(),
    "mmoe": Mmoe(experts=3, expert_hidden=10),
    "ple": Ple(expert_hidden=10),
    "ple of three levels": Ple(levels=3, shared_experts=2, own_experts=2, expert_hidden=6),
    "adatt": AdaTT(levels=2, own_experts=2, expert_hidden=6),
    "stem": Stem(),
    "own bottoms of candidates": SharedBottom(candidate_side=True),
    "mmoe of candidates": Mmoe(experts=3, expert_hidden=10, candidate_side=True),
    "ple of candidates": Ple(levels=2, expert_hidden=6, candidate_side=True),
    "adatt of candidates": AdaTT(expert_hidden=6, candidate_side=True),
}
OWN_TABLES = ("single", "stem")
PER_TASK = tuple(name for name, kind in KINDS.items() if kind.own_tables or kind.candidate_side)
