"""The approximate indexes worth measuring on a catalogue of a size, and those that it is too small for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLAT = "Flat"
_POINTS_PER_CENTROID = 39
"""FAISS's least number of vectors to train a centroid with (ClusteringParameters); with fewer it warns."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """An index to build.

    Args:
        factory: of `faiss.index_factory`. build, searches: texts for `faiss.ParameterSpace().set_index_parameters`,
            before vectors are added and before a search; "" for none.
        needs: candidates below which FAISS would warn that there are too few to train with.
    """

    factory: str
    build: str = ""
    searches: tuple[str, ...] = ("",)
    needs: int = 1


def structures(candidates: int, width: int) -> tuple[list[Structure], dict[str, str]]:
    """The indexes to measure on a catalogue, and the factory strings of those left out, with the reason.

    IVF gets about 4 sqrt(N) lists, the least that FAISS's wiki asks for ("Guidelines to choose an index"), and about
    sqrt(N), which smaller catalogues can train; both as powers of two. PQ codes are a byte per 4 dimensions, or 4 bits
    per 2 in the fast-scan form ("x4fs"), which may be re-ranked with the full vectors ("RFlat").
    """
    few, many = (1 << int(math.log2(factor * math.sqrt(candidates))) for factor in (1, 4))
    trained = {few: _POINTS_PER_CENTROID * few, many: _POINTS_PER_CENTROID * many}
    bytes_, nibbles = (_POINTS_PER_CENTROID * centroids for centroids in (256, 16))
    some, refined = ("k_factor_rf=2", "k_factor_rf=4", "k_factor_rf=8"), ("k_factor_rf=2", "k_factor_rf=8")
    probes = (4, 16, 64)
    both = tuple(f"{probe},{factor}" for probe in _probes(few, probes) for factor in refined)
    links = tuple(f"efSearch={2**power}" for power in range(5, 10))
    wanted = [
        Structure(factory=FLAT),
        Structure(factory="SQ8"),
        *(Structure(factory=f"IVF{n},Flat", searches=_probes(n), needs=trained[n]) for n in (few, many)),
        Structure(factory=f"IVF{few},SQ8", searches=_probes(few, probes), needs=trained[few]),
        *(Structure(factory=f"HNSW{n}", build="efConstruction=200", searches=links) for n in (16, 32)),
        Structure(factory=f"PQ{width // 4}", needs=bytes_),
        Structure(factory=f"IVF{few},PQ{width // 4}", searches=_probes(few, probes), needs=max(trained[few], bytes_)),
        Structure(factory=f"PQ{width // 2}x4fs", needs=nibbles),
        Structure(factory=f"PQ{width // 2}x4fs,RFlat", searches=some, needs=nibbles),
        Structure(factory=f"IVF{few},PQ{width // 2}x4fs,RFlat", searches=both, needs=max(trained[few], nibbles)),
    ]
    left_out = {}
    for one in wanted:
        divisor = (2 if "x4fs" in one.factory else 4) if "PQ" in one.factory else 1
        if width % divisor:
            left_out[one.factory] = f"needs a width that {divisor} divides, not {width}"
        elif candidates < one.needs:
            left_out[one.factory] = f"needs {one.needs:,} candidates to train on, not {candidates:,}"
    return [one for one in wanted if one.factory not in left_out], left_out


def _probes(lists: int, wanted: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)) -> tuple[str, ...]:
    """Numbers of lists to look at, up to half of them."""
    return tuple(f"nprobe={number}" for number in wanted if number <= max(1, lists // 2)) or ("nprobe=1",)
