"""`torchrec-mt doctor`: is this installation whole, can this machine train, and which command mends what is not so?

Reads metadata first, without importing anything, then tries the import and a rendezvous of two ranks in child
processes, which may die. The judgements are in checkup.py; this program collects, asks and prints. It runs on the
standard library alone (rich makes the table where it is installed), since it must work where nothing else does.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from torchrec_mt import checkup
from torchrec_mt.checkup import Check, Child, Commands, Distribution
from torchrec_mt.errors import run_program

CHILD_SECONDS, RENDEZVOUS_SECONDS = 180, 10

IMPORT = """
import json
import torch, fbgemm_gpu, torchrec
cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"cuda": cuda, "threads": torch.get_num_threads()}))
"""
# The second rank is a fork: torch is imported once. No interface is named, as in a training run.
RENDEZVOUS = """
import os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
rank = 0 if os.fork() else 1
address, limit = f"tcp://127.0.0.1:{sys.argv[1]}", timedelta(seconds=float(sys.argv[2]))
dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
ones = torch.ones(1)
dist.all_reduce(ones)
if ones.item() != 2:
    raise RuntimeError(f"1 + 1 over two ranks gave {ones.item()}")
dist.destroy_process_group()
"""


def main(argv: list[str] | None = None) -> int:
    """Runs every check and prints it; 1 if one of them is an error, else 0."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt doctor",
        description="Checks the installation (versions, pins, import) and this machine (devices, cores, memory, disk, "
        "ports, a rendezvous of two ranks), and names the one command that mends each problem.",
        epilog="Exit code: 0 if nothing is wrong (warnings allowed), 1 if a check fails.",
    )
    parser.add_argument("--json", action="store_true", help='print {"ok": ..., "checks": [...]} instead of a table')
    arguments = parser.parse_args(argv)
    if not arguments.json:
        print("importing torch, fbgemm_gpu and torchrec in a child process takes some seconds ...", file=sys.stderr)
    checks = examine(Path.cwd(), repository())
    ok = all(check.status != "error" for check in checks)
    if arguments.json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _print_table(checks)
        _print_remedies(checks)
    return 0 if ok else 1


def examine(folder: Path, root: Path | None) -> list[Check]:
    """All checks, for work in `folder` with the repository at `root`."""
    commands = Commands(python=sys.executable, root=root)
    installed = installed_distributions()
    build = checkup.build_of(installed)
    pins = None if root is None else read_pins(root / "requirements" / "base.txt")
    imported = run_child(IMPORT)
    torch = json.loads(imported.stdout.splitlines()[-1]) if imported.code == 0 else {"cuda": [], "threads": None}
    port, trio = free_port(), checkup.check_trio(installed, commands)
    checks = [
        checkup.check_python((sys.version_info[0], sys.version_info[1])),
        trio,
        checkup.check_pins(installed, pins, build, commands),
        checkup.check_import(imported, trio, build, commands),
        checkup.check_devices(torch["cuda"], Path("/proc/driver/nvidia/version").exists(), build, commands),
        checkup.check_cores(len(os.sched_getaffinity(0)), torch["threads"]),
        checkup.check_memory(available_memory()),
        checkup.check_disk(folder, shutil.disk_usage(folder).free),
        checkup.check_port(port),
    ]
    if imported.code == 0 and isinstance(port, int):  # otherwise it has no chance, and the reason is said already
        met = run_child(RENDEZVOUS, str(port), str(RENDEZVOUS_SECONDS))
        checks.append(checkup.check_rendezvous(met))
    return checks


def repository() -> Path | None:
    """The checkout this package lies in, if it does: it holds the requirement sets."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "requirements" / "base.txt").is_file() else None


def installed_distributions() -> dict[str, Distribution]:
    """What is installed, by normalised name; nothing is imported."""
    found: dict[str, Distribution] = {}
    for distribution in importlib.metadata.distributions():
        requires = tuple(_normalise(re.split(r"[^\w.-]", r, maxsplit=1)[0]) for r in distribution.requires or ())
        # The first of a name is the one that Python imports.
        name = _normalise(distribution.metadata["Name"] or "")
        found.setdefault(name, Distribution(distribution.version, requires))
    return found


def read_pins(path: Path) -> dict[str, str]:
    """The `name==version` lines of a requirements file, by normalised name."""
    pins = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", path.read_text(), flags=re.MULTILINE)
    return {_normalise(name): version for name, version in pins}


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_child(script: str, *arguments: str, seconds: float = CHILD_SECONDS) -> Child:
    """Runs a script in a Python of its own, which may die without harm."""
    command = [sys.executable, "-c", script, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        stderr = late.stderr or b""
        return Child(None, "", stderr if isinstance(stderr, str) else stderr.decode(errors="replace"))
    return Child(done.returncode, done.stdout, done.stderr)


def free_port() -> int | OSError:
    """A port of the loopback interface that could just be bound, or why none could."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        return error


def available_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    kilobytes = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
    return int(kilobytes[1]) * 1024 if kilobytes else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _print_table(checks: list[Check]) -> None:
    if importlib.util.find_spec("rich") is None:
        for check in checks:
            print(f"{check.status:8} {check.name:9} {check.detail}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "error": "bold red"}
    table = Table("check", "status", "detail")
    for check in checks:
        table.add_row(check.name, Text(check.status, style=colours[check.status]), Text(check.detail))
    Console().print(table)


def _print_remedies(checks: list[Check]) -> None:
    """Outside the table and unwrapped, so that a command can be copied."""
    for check in checks:
        if check.remedy is not None:
            print(f"{check.status}: {check.name}: {check.detail}\n  to mend it: {check.remedy}")


if __name__ == "__main__":
    run_program(main)
