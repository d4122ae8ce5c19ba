"""The machines a plan is made for: hosts x ranks of a device of the catalogue, or of a file, or those of this job."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from torchrec_mt.errors import UserError

GIB = 1 << 30
_MOST_RANKS = 65_536
_LEAST = 1e-6
"""GiB of memory, GB/s."""
_CATALOGUE = Path(__file__).with_name("clusters.toml")


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a rank computes on, and the host around it.

    Args:
        kind: `cpu` keeps everything in the host's memory.
        ranks_per_host: of a whole host. memory_gib, memory_gb_s: of one device; 0 on CPUs.
        host_memory_gib, host_memory_gb_s: of one host, shared by its ranks.
        host_link_gb_s: between a device and its host's memory.
        intra_host_gb_s, inter_host_gb_s: of one rank to ranks of its host, and of others; one direction.
        source: where the figures are from.
    """

    kind: Literal["cuda", "cpu"]
    ranks_per_host: int
    memory_gib: float
    memory_gb_s: float
    host_memory_gib: float
    host_memory_gb_s: float
    host_link_gb_s: float
    intra_host_gb_s: float
    inter_host_gb_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """`hosts` machines with `ranks_per_host` ranks each, all on the same device.

    Args:
        name: of the device. price_per_hour: of the whole cluster, in any currency; None if not told.
    """

    hosts: int
    ranks_per_host: int
    name: str
    device: Device
    price_per_hour: float | None = None

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.hosts * self.ranks_per_host

    @property
    def label(self) -> str:
        """As it is asked for: HOSTSxRANKSxDEVICE."""
        return f"{self.hosts}x{self.ranks_per_host}x{self.name}"

    @property
    def spec(self) -> str:
        """The label with what is not as the catalogue has it: `parse_cluster` gives the same cluster back."""
        usual = catalogue()[self.name]
        changes = {
            key: getattr(self.device, key) for key in _NUMBERS if getattr(self.device, key) != getattr(usual, key)
        }
        if self.price_per_hour is not None:
            changes["price_per_hour"] = self.price_per_hour
        return ",".join([self.label, *(f"{key}={value!r}" for key, value in changes.items())])

    @property
    def device_bytes(self) -> int:
        """Memory of one device; 0 on CPUs."""
        return int(self.device.memory_gib * GIB) if self.device.kind == "cuda" else 0

    @property
    def host_bytes(self) -> int:
        """A rank's share of its host's memory."""
        return int(self.device.host_memory_gib * GIB) // self.ranks_per_host

    def to_toml(self) -> str:
        """As a cluster file."""
        return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in self.to_json().items())

    def to_json(self) -> dict[str, Any]:
        """As a cluster file has it."""
        whole = asdict(self)
        device = whole.pop("device")
        device.pop("ranks_per_host")
        return {key: value for key, value in (whole | device).items() if value is not None}


_COUNTS = ("hosts", "ranks_per_host")
_NUMBERS = tuple(field.name for field in fields(Device) if field.name.endswith(("_gib", "_gb_s")))


@cache
def catalogue() -> dict[str, Device]:
    """Devices by name."""
    return {name: Device(**entry) for name, entry in tomllib.loads(_CATALOGUE.read_text()).items()}


def parse_cluster(text: str) -> Cluster:
    """The cluster that a text names: `2x8xH100-80GB`, `H100-80GB` (one host of one), either with changes behind
    commas (`2x8xH100-80GB,inter_host_gb_s=100,price_per_hour=60`), or a TOML file of such keys.

    Raises:
        UserError: no such device or file, a key or number that makes no sense.
    """
    what, *changes = (part.strip() for part in text.split(","))
    cluster = _from_file(Path(what)) if what.endswith(".toml") else _from_name(what)
    for change in changes:
        key, _, value = change.partition("=")
        try:
            cluster = _changed(cluster, {key.strip(): float(value)}, where=f"--cluster {text}")
        except ValueError:
            raise UserError(f"--cluster {text}: '{change}' is not of the form KEY=NUMBER") from None
    _check_whole(cluster, f"--cluster {text}")
    return cluster


def resized(text: str, *, hosts: int, ranks_per_host: int) -> str:
    """The text of the same machines, another number of them; a price grows with the ranks."""
    cluster, (what, *changes) = parse_cluster(text), (part.strip() for part in text.split(","))
    sized = (*_COUNTS, "price_per_hour")
    kept = [change for change in changes if change.partition("=")[0].strip() not in sized]
    if what.endswith(".toml"):
        kept = [f"hosts={hosts}", f"ranks_per_host={ranks_per_host}", *kept]
    else:
        what = f"{hosts}x{ranks_per_host}x{cluster.name}"
    if cluster.price_per_hour is not None:
        kept.append(f"price_per_hour={cluster.price_per_hour * hosts * ranks_per_host / cluster.world_size:.6g}")
    return ",".join([what, *kept])


def _from_name(text: str) -> Cluster:
    *counts, name = text.split("x", 2) if text.count("x") >= 2 else [text]
    devices = {known.lower(): known for known in catalogue()}
    exact = devices.get(name.lower()) or next(
        (full for low, full in devices.items() if low.split("-")[0] == name.lower()), ""
    )
    if not exact or not all(count.isdecimal() and int(count) for count in counts):
        raise UserError(
            f"no cluster '{text}': write HOSTSxRANKSxDEVICE, e.g. 2x8xH100-80GB, with a device of "
            f"{', '.join(catalogue())}, or name a TOML file"
        )
    hosts, ranks = map(int, counts or (1, 1))
    return Cluster(hosts=hosts, ranks_per_host=ranks, name=exact, device=catalogue()[exact])


def _from_file(path: Path) -> Cluster:
    try:
        entries = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no cluster file '{path}'") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not valid TOML: {error}") from None
    return cluster_of({"name": path.stem, **entries}, f"'{path}'")


def cluster_of(entries: Mapping[str, Any], where: str) -> Cluster:
    """The cluster that a file's keys describe; those of a device of the catalogue may be left out.

    Raises:
        UserError: a key too few or too many, or one that makes no sense.
    """
    changes = dict(entries)
    name = str(changes.pop("name"))
    known = catalogue().get(name)
    wanted = [field.name for field in fields(Device) if field.name != "ranks_per_host"]
    missing = [key for key in ("hosts", "ranks_per_host", *(wanted if known is None else ())) if key not in changes]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: a cluster file has these and the device's keys")
    numbers = {key: 0.0 for key in wanted if key not in ("kind", "source")}
    empty = Device(kind="cpu", source="", ranks_per_host=1, **numbers)
    cluster = _changed(Cluster(hosts=1, ranks_per_host=1, name=name, device=known or empty), changes, where=where)
    _check_whole(cluster, where)
    return cluster


def _check_whole(cluster: Cluster, where: str) -> None:
    """No more ranks than can be planned for; memory, and speed wherever something is moved."""
    if cluster.world_size > _MOST_RANKS:
        raise UserError(f"{where}: {cluster.world_size:,} ranks, and plans are for at most {_MOST_RANKS:,}")
    wanted = ["host_memory_gib", "host_memory_gb_s"]
    wanted += ["memory_gib", "memory_gb_s", "host_link_gb_s"] if cluster.device.kind == "cuda" else []
    wanted += ["intra_host_gb_s"] if cluster.ranks_per_host > 1 else []
    wanted += ["inter_host_gb_s"] if cluster.hosts > 1 else []
    for key in wanted:
        value = getattr(cluster.device, key)
        if value < _LEAST:
            raise UserError(f"{where}: {key} = {value!r}: must be at least {_LEAST} for {cluster.label}")


def _changed(cluster: Cluster, changes: dict[str, Any], *, where: str) -> Cluster:
    mine = (*_COUNTS, "price_per_hour")
    for key, value in changes.items():
        if key in ("kind", "source"):
            allowed = "cuda or cpu" if key == "kind" else "a text"
            good = isinstance(value, str) and (key == "source" or value in ("cuda", "cpu"))
        elif key in mine or key in _NUMBERS:
            whole = key in _COUNTS
            good = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and 0 <= value < 1e12
                and (not whole or (value >= 1 and value == int(value)))
            )
            allowed = "a whole number from 1" if whole else "a number from 0"
            value = int(value) if good and whole else value
        else:
            raise UserError(f"{where}: unknown key '{key}': one of {', '.join([*mine, *_NUMBERS])}")
        if not good:
            raise UserError(f"{where}: {key} = {value!r}: must be {allowed}")
        part = {key: value}
        cluster = replace(cluster, **part) if key in mine else replace(cluster, device=replace(cluster.device, **part))
    return cluster
