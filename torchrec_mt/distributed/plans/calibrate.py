"""What was foretold of a run beside what it took: memory by rank, milliseconds of lookup and update."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchrec_mt.distributed.plans.clusters import Cluster, cluster_of
from torchrec_mt.distributed.plans.plan import Plan, RankLoad
from torchrec_mt.distributed.plans.reading import read_plan
from torchrec_mt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Term:
    """One quantity. `rank` is None for the slowest of all; unit is "B" or "ms"."""

    name: str
    rank: int | None
    unit: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None where nothing was predicted."""
        return self.measured / self.predicted if self.predicted else None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A run's terms, and its cluster with bandwidths as they turned out. `lines` of the log were read."""

    terms: list[Term]
    cluster: Cluster
    lines: int


def calibrate(run: Path) -> Calibration:
    """Compares a run's plan with its records.

    Args:
        run: the run's folder.

    Raises:
        UserError: a run without a plan, or without a line of training.
    """
    plan = read_plan(str(run))
    held, lines = _read(run / "held.json"), _training_lines(run / "metrics.jsonl")
    if len(held) != len(plan.ranks):
        raise UserError(f"'{run}/held.json' has {len(held)} ranks, the plan {len(plan.ranks)}: train again")
    terms = [
        Term(name=name, rank=rank.rank, unit="B", predicted=predicted, measured=measured[name])
        for rank, measured in zip(plan.ranks, held, strict=True)
        for name, predicted in (("weights", _weights(rank)), ("sums", rank.sums))
    ]
    busiest = plan.busiest
    forward = busiest.forward_compute + busiest.forward_comms + busiest.prefetch
    backward = busiest.backward_compute + busiest.backward_comms
    times = [
        Term(name="lookup (forward)", rank=None, unit="ms", predicted=forward, measured=_median(lines, "lookup")),
        Term(name="tables (backward)", rank=None, unit="ms", predicted=backward, measured=_median(lines, "tables")),
    ]
    return Calibration(terms=[*terms, *times], cluster=_calibrated(plan, times, run), lines=len(lines))


def _weights(rank: RankLoad) -> int:
    """Tables' weights wherever they lie; `host` holds those and their sums."""
    return rank.weights + rank.host


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): give the folder of a run that `train` wrote") from None


def _training_lines(file: Path) -> list[Mapping[str, Any]]:
    """What training logged, without the first line, in which everything is still cold."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): give the folder of a run that `train` wrote") from None
    training = [line for line in lines if line.get("kind") == "train"]
    if not training:
        raise UserError(f"'{file}' has no line of training: let the run take some steps first")
    return training[1:] or training


def _median(lines: Sequence[Mapping[str, Any]], phase: str) -> float:
    """Of a phase's milliseconds on the slowest rank."""
    return statistics.median(line.get(f"ms_max/{phase}", line[f"ms/{phase}"]) for line in lines)


def _calibrated(plan: Plan, times: Sequence[Term], run: Path) -> Cluster:
    """The cluster with every bandwidth times what was foretold over what was measured."""
    cluster = cluster_of(plan.cluster, f"'{run}/plan.json'")
    predicted, measured = sum(term.predicted for term in times), sum(term.measured for term in times)
    if not predicted or not measured:
        return cluster
    factor, device = predicted / measured, cluster.device

    def scaled(bandwidth: float) -> float:
        return float(f"{bandwidth * factor:.4g}")

    source = f"{plan.model} on {plan.label}: bandwidths times {factor:.3g}; before: {device.source}"
    device = replace(
        device,
        source=source,
        memory_gb_s=scaled(device.memory_gb_s),
        host_memory_gb_s=scaled(device.host_memory_gb_s),
        host_link_gb_s=scaled(device.host_link_gb_s),
        intra_host_gb_s=scaled(device.intra_host_gb_s),
        inter_host_gb_s=scaled(device.inter_host_gb_s),
    )
    return replace(cluster, device=device)
