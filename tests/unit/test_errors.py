"""How programs end: one message, one exit code, no traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torchrec_mt.errors import UserError, exit_code_of, run_program


def raising(error: BaseException) -> Callable[[], int]:
    def program() -> int:
        raise error

    return program


@pytest.mark.parametrize("code", [0, 1, 5])
def test_a_program_s_own_code_is_kept(code: int) -> None:
    assert exit_code_of(lambda: code) == code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("'a.toml': no key 'x'"), 2, "error: 'a.toml': no key 'x'"),
        (UserError("diverged", exit_code=1), 1, "error: diverged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 2, "error: 'runs/a': permission denied: "),
        (OSError(errno.ENOSPC, "No space left", "p/x.npy"), 2, "error: 'p/x.npy': no space left on the disk: "),
        (OSError(errno.ENAMETOOLONG, "File name too long", "rr"), 2, "error: 'rr': this name is too long for the file"),
        (
            FileExistsError(errno.EEXIST, "File exists", "e"),
            2,
            "error: 'e': a file lies where a folder is wanted: move",
        ),
        (OSError(errno.EROFS, "Read-only", Path("a"), None, "b"), 2, "error: 'a' -> 'b': the file system is read-only"),
        (OSError(errno.ENOSPC, "No space left"), 2, "error: writing, from '"),
    ],
)
def test_one_message_on_stderr(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "bug", [ValueError("bug"), OSError(errno.EIO, "I/O error"), BrokenPipeError(errno.EPIPE, "a worker died")]
)
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        exit_code_of(raising(bug))


def test_run_program_exits_with_the_code_and_leaves_arguments_to_the_program() -> None:
    seen = []

    def main(argv: list[str] | None) -> int:
        seen.append(argv)
        return 3

    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == 3
    assert seen == [None]


PRINTING = (
    "from torchrec_mt.errors import run_program\nrun_program(lambda argv: [print('x' * 80) for _ in range({})] and 0)"
)


@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_reader_that_goes_away_ends_the_program_quietly(lines: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", PRINTING.format(lines)]
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_full_disk_under_stdout_is_one_message(lines: int) -> None:
    program = [sys.executable, "-c", PRINTING.format(lines)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
