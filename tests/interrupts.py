"""Runs a program and sends it Ctrl-C at a chosen moment: when a file appears, or when it imports a module."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_HOOK = """
import os, signal, sys, threading

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            sys.meta_path.remove(self)
            press = lambda: os.kill(os.getpid(), signal.SIGINT)
            delay = float(os.environ["INTERRUPT_AFTER"])
            timer = threading.Timer(delay, press)
            timer.daemon = True
            timer.start() if delay else press()

sys.meta_path.insert(0, Interrupt())
"""


def interrupted_when(
    sign: Path, program: str, command: list[str], *, appears: str = ""
) -> subprocess.CompletedProcess[str]:
    """Sends Ctrl-C once `sign` exists and is not empty (or something in it that is called `appears`)."""
    process = _start(program, command, {})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(sign.glob(appears)) if appears else sign.exists() and sign.stat().st_size:
            break
        time.sleep(0.02)  # polls another process
    process.send_signal(signal.SIGINT)
    return _end(process)


def interrupted_at(
    folder: Path, module: str, program: str, command: list[str], *, after: float = 0
) -> subprocess.CompletedProcess[str]:
    """The program presses Ctrl-C itself when it begins to import `module`, or `after` seconds later.

    Args:
        folder: an empty one, for the hook.
    """
    (folder / "sitecustomize.py").write_text(_HOOK)
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return _end(_start(program, command, {"PYTHONPATH": paths, "INTERRUPT_AT": module, "INTERRUPT_AFTER": str(after)}))


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(program: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"torchrec_mt.{program}", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        # A background shell starts its children deaf to Ctrl-C, and they would pass that on.
        preexec_fn=_hear_interrupts,
    )


def _end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
