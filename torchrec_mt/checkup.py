"""What `doctor` checks: pure functions of what was found, each a `Check` with the one command that mends it.

The wheels of torch, torchrec and fbgemm declare no versions of each other, and a wrong trio dies at import with an
undefined symbol, so `check_trio` judges by metadata alone. Only the standard library is needed here.
"""

import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Build = Literal["cpu", "cuda"]
PYTHON = (3, 11)
WORKING_TRIOS = ({"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm": "1.8.0"},)
"""Versions that were run together; newest last. fbgemm stands for fbgemm-gpu-cpu or fbgemm-gpu."""
GB = 1 << 30
DISK_ERROR, DISK_WARNING, MEMORY_WARNING = 1 * GB, 5 * GB, 2 * GB


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding. `remedy` is the command (or advice, where there is none) that mends what is not ok."""

    name: str
    status: Literal["ok", "warning", "error"]
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Distribution:
    """An installed distribution: its version, and the names it requires."""

    version: str
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Child:
    """How a child process ended. `code` is None where it ran out of time, negative where a signal ended it."""

    code: int | None
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """One line that says why: the line with the undefined symbol, or else the last one."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        symbol = [line for line in lines if "undefined symbol" in line]
        last = (symbol or lines or ["it said nothing"])[-1][:300]  # a C++ symbol can be a page long
        if self.code is None:
            return "no answer in time" + (f"; last line: {last}" if lines else "")
        return f"killed by signal {-self.code} ({signal.strsignal(-self.code)}): {last}" if self.code < 0 else last


@dataclass(frozen=True, kw_only=True)
class Commands:
    """How to mend an installation: with `python`'s pip, from the repository at `root` (None: no repository)."""

    python: str
    root: Path | None

    def install(self, build: Build = "cpu") -> str:
        """Brings every pinned distribution to its version."""
        if self.root is None:
            trio = WORKING_TRIOS[-1]
            fbgemm = "fbgemm-gpu" if build == "cuda" else "fbgemm-gpu-cpu"
            pins = f"torch=={trio['torch']} torchrec=={trio['torchrec']} {fbgemm}=={trio['fbgemm']}"
            return f"{self._pip} install --no-deps {pins}"
        return f"cd {shlex.quote(str(self.root))} && {self._pip} install -r requirements/{build}.txt"

    def replace(self, build: Build = "cpu") -> str:
        """Removes what one build may have overwritten of the other, then installs. "2.13.0+cpu" satisfies ==2.13.0, so
        torch must go too before its CUDA build can come."""
        torch = " torch" if build == "cuda" else ""
        return f"{self._pip} uninstall --yes fbgemm-gpu fbgemm-gpu-cpu{torch} && {self.install(build)}"

    @property
    def _pip(self) -> str:
        return f"{shlex.quote(self.python)} -m pip"


def check_python(version: tuple[int, int]) -> Check:
    """The interpreter is the one that the pins were tested on."""
    found, wanted = f"{version[0]}.{version[1]}", f"{PYTHON[0]}.{PYTHON[1]}"
    if version == PYTHON:
        return Check(name="python", status="ok", detail=found)
    remedy = f"rm -r .venv && make install PYTHON=python{wanted}"
    return Check(name="python", status="error", detail=f"{found}, but only {wanted} is supported", remedy=remedy)


def check_trio(installed: Mapping[str, Distribution], commands: Commands) -> Check:
    """torch, torchrec and one build of fbgemm are there, in versions known to work together."""
    cpu, cuda, build = "fbgemm-gpu-cpu" in installed, has_cuda_fbgemm(installed), build_of(installed)
    missing = [name for name in ("torch", "torchrec") if name not in installed]
    if not (cpu or cuda):
        missing.append("fbgemm-gpu-cpu")
    fbgemm = "fbgemm-gpu" if build == "cuda" else "fbgemm-gpu-cpu"
    if missing:
        detail, remedy = f"not installed: {', '.join(missing)}", commands.install(build)
        return Check(name="versions", status="error", detail=detail, remedy=remedy)
    found = {"torch": "torch", "torchrec": "torchrec", "fbgemm": fbgemm}
    detail = ", ".join(f"{name} {installed[name].version}" for name in found.values())
    if cpu and cuda:
        detail = "fbgemm-gpu (CUDA) and fbgemm-gpu-cpu both ship the module fbgemm_gpu: one has overwritten the other"
        return Check(name="versions", status="error", detail=detail, remedy=commands.replace())
    # "2.13.0+cpu" is 2.13.0: what follows the plus names the build.
    if {key: installed[name].version.split("+")[0] for key, name in found.items()} not in WORKING_TRIOS:
        known = "; ".join(", ".join(f"{k} {v}" for k, v in trio.items()) for trio in WORKING_TRIOS)
        detail += f" are not known to work together; known: {known}"
        return Check(name="versions", status="error", detail=detail, remedy=commands.install(build))
    if cuda and installed["torch"].version.endswith("+cpu"):
        detail += ": the CUDA build of fbgemm does not load on a CPU build of torch"
        return Check(name="versions", status="error", detail=detail, remedy=commands.replace())
    return Check(name="versions", status="ok", detail=detail)


def has_cuda_fbgemm(installed: Mapping[str, Distribution]) -> bool:
    """Whether fbgemm-gpu is the real one: the stub of that name only requires the CPU build."""
    fbgemm = installed.get("fbgemm-gpu")
    return fbgemm is not None and "fbgemm-gpu-cpu" not in fbgemm.requires


def build_of(installed: Mapping[str, Distribution]) -> Build:
    """The set that an installation is meant to be."""
    return "cuda" if has_cuda_fbgemm(installed) and "fbgemm-gpu-cpu" not in installed else "cpu"


def check_pins(
    installed: Mapping[str, Distribution], pins: Mapping[str, str] | None, build: Build, commands: Commands
) -> Check:
    """Everything pinned is installed (else an error) in its pinned version (else a warning), the trio apart."""
    if pins is None:
        return Check(name="pins", status="ok", detail="not compared: no requirements/ beside this package")
    pins = {name: version for name, version in pins.items() if name not in WORKING_TRIOS[-1]}
    missing = [f"{name} {version}" for name, version in pins.items() if name not in installed]
    differ = [
        f"{name} {installed[name].version} (pinned {version})"
        for name, version in pins.items()
        if name in installed and installed[name].version.split("+")[0] != version
    ]
    if missing:
        detail = f"not installed: {', '.join(missing)}"
        return Check(name="pins", status="error", detail=detail, remedy=commands.install(build))
    if differ:
        return Check(name="pins", status="warning", detail=", ".join(differ), remedy=commands.install(build))
    return Check(name="pins", status="ok", detail=f"{len(pins)} distributions as pinned")


def check_import(child: Child, trio: Check, build: Build, commands: Commands) -> Check:
    """torch, fbgemm_gpu and torchrec can be imported. Where `trio` says why not, its remedy is the remedy."""
    if child.code == 0:
        return Check(name="import", status="ok", detail="torch, fbgemm_gpu and torchrec load")
    return Check(name="import", status="error", detail=child.complaint, remedy=trio.remedy or commands.replace(build))


def check_devices(cuda: list[str], driver: bool, build: Build, commands: Commands) -> Check:
    """The GPUs that torch sees, and whether fbgemm can use them. `driver`: there is an NVIDIA driver."""
    remedy = commands.replace("cuda")
    if cuda:
        detail = f"cpu, {len(cuda)} x CUDA ({', '.join(sorted(set(cuda)))})"
        if build == "cuda":
            return Check(name="devices", status="ok", detail=detail)
        detail += ", but fbgemm is the CPU build"
        return Check(name="devices", status="warning", detail=detail, remedy=remedy)
    if driver and build == "cpu":
        detail = "cpu; there is an NVIDIA driver, but the CPU set is installed"
        return Check(name="devices", status="warning", detail=detail, remedy=remedy)
    if driver:
        detail = "cpu; there is an NVIDIA driver, but torch sees no GPU"
        return Check(name="devices", status="warning", detail=detail, remedy="nvidia-smi   # says what is wrong")
    return Check(name="devices", status="ok", detail="cpu")


def check_cores(cores: int, threads: int | None) -> Check:
    """torch uses no more threads than there are cores to use."""
    detail = f"{cores} cores" + ("" if threads is None else f", torch uses {threads} threads")
    if threads is None or threads <= cores:
        return Check(name="cores", status="ok", detail=detail)
    return Check(name="cores", status="warning", detail=detail, remedy=f"export OMP_NUM_THREADS={cores}")


def check_memory(available: int) -> Check:
    """Memory that is free, in bytes."""
    detail, advice = f"{available / GB:.1f} GB available", "ps aux --sort=-rss | head   # and end what is not needed"
    if available < MEMORY_WARNING:
        return Check(name="memory", status="warning", detail=detail, remedy=advice)
    return Check(name="memory", status="ok", detail=detail)


def check_disk(folder: Path, free: int) -> Check:
    """Room for prepared data and runs, in bytes."""
    detail = f"{free / GB:.1f} GB free in '{folder}'"
    if free >= DISK_WARNING:
        return Check(name="disk", status="ok", detail=detail)
    advice = f"du -xh --max-depth=2 {shlex.quote(str(folder))} | sort -h | tail   # and remove what is not needed"
    return Check(name="disk", status="error" if free < DISK_ERROR else "warning", detail=detail, remedy=advice)


def check_port(port: int | OSError) -> Check:
    """A port of the loopback interface can be bound (ranks of one machine meet there)."""
    if isinstance(port, int):
        return Check(name="loopback", status="ok", detail=f"127.0.0.1:{port} could be bound")
    detail = f"no port of 127.0.0.1 can be bound ({port})"
    return Check(name="loopback", status="error", detail=detail, remedy="ip link set lo up")


def check_rendezvous(child: Child) -> Check:
    """Two gloo ranks found each other and added up a number."""
    if child.code == 0:
        return Check(name="gloo", status="ok", detail="two ranks met on the loopback interface")
    detail = f"two ranks could not meet: {child.complaint}"
    return Check(name="gloo", status="error", detail=detail, remedy="export GLOO_SOCKET_IFNAME=lo")
