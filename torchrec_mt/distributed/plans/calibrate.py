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

_REMEDY = "give the folder of a run that `train` wrote"


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
    held, log = _held(run / "held.json"), run / "metrics.jsonl"
    lines = _training_lines(log)
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
        Term(name="lookup (forward)", rank=None, unit="ms", predicted=forward, measured=_median(log, lines, "lookup")),
        Term(
            name="tables (backward)", rank=None, unit="ms", predicted=backward, measured=_median(log, lines, "tables")
        ),
    ]
    return Calibration(terms=[*terms, *times], cluster=_calibrated(plan, times, run), lines=len(lines))


def _weights(rank: RankLoad) -> int:
    """Tables' weights wherever they lie; `host` holds those and their sums."""
    return rank.weights + rank.host


def _held(file: Path) -> list[dict[str, float]]:
    """Bytes of weights and sums, by rank."""
    try:
        return [{name: float(rank[name]) for name in ("weights", "sums")} for rank in json.loads(_text(file))]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{file}' does not hold each rank's weights and sums ({error!r}): {_REMEDY}") from None


def _training_lines(file: Path) -> list[Mapping[str, Any]]:
    """What training logged, without the first line, in which everything is still cold, and without one that is still
    being written."""
    *lines, _ = _text(file).split("\n")
    try:
        training = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{file}' is not a log ({error!r}): {_REMEDY}") from None
    if not training:
        raise UserError(f"'{file}' has no line of training: let the run take some steps first")
    return training[1:] or training


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): {_REMEDY}") from None


def _median(file: Path, lines: Sequence[Mapping[str, Any]], phase: str) -> float:
    """Of a phase's milliseconds on the slowest rank."""
    key = f"ms/{phase}"
    try:
        return statistics.median(float(line.get(f"ms_max/{phase}", line[key])) for line in lines)
    except (ValueError, TypeError, KeyError):
        raise UserError(f"'{file}' has a line of training without a number '{key}': {_REMEDY}") from None


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
