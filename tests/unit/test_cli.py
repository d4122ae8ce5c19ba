"""`torchrec-mt PROGRAM`: dispatch, help, and what happens where a program does not load."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import torchrec_mt
from torchrec_mt import cli
from torchrec_mt.errors import UserError


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for torchrec_mt.train that returns the number of its arguments."""
    module = ModuleType("torchrec_mt.train")
    module.main = len  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchrec_mt.train", module)
    return module


@pytest.mark.parametrize("arguments", [[], ["launch/demo.toml"], ["launch/demo.toml", "--run", "runs/demo"]])
def test_the_program_gets_what_follows_its_name(train: ModuleType, arguments: list[str]) -> None:
    assert cli.main(["train", *arguments]) == len(arguments)


def test_arguments_come_from_the_command_line(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["torchrec-mt", "train", "a", "b"])
    assert cli.main() == 2


def test_an_error_of_the_program_is_one_message(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        raise UserError("no such run 'x'", exit_code=2)

    train.main = main  # type: ignore[attr-defined]
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "error: no such run 'x'\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_one_line_per_program(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(cli.PROGRAMS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchrec-mt {torchrec_mt.__version__}\n"


def test_no_program_is_a_mistake_that_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: torchrec-mt PROGRAM")


def test_an_unknown_program_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian", "x"]) == 2
    expected = (
        "error: no program 'trian': one of doctor, prepare, plan, train, mine, evaluate, twins, compare, "
        "sweep, export, indexes (`torchrec-mt --help`)\n"
    )
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "error",
    [OSError("fbgemm_gpu_py.so: undefined symbol: _ZN3c10"), ModuleNotFoundError("No module named 'x'", name="torch")],
)
def test_a_broken_installation_sends_to_the_doctor(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def import_module(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert cli.main(["train"]) == 1
    expected = f"error: 'train' does not load ({error}): `torchrec-mt doctor` says what to mend\n"
    assert capsys.readouterr().err == expected


def test_a_mistake_in_our_own_imports_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        raise ImportError("cannot import name 'x'", name="torchrec_mt.batch")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match="cannot import name 'x'"):
        cli.main(["train"])


def test_the_doctor_is_reached_without_importing_torch() -> None:
    script = (
        "import sys; from torchrec_mt import cli\n"
        "try: cli.main(['doctor', '--help'])\n"
        "except SystemExit: print('loaded', sorted({'torch', 'torchrec', 'fbgemm_gpu', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--json" in done.stdout
    assert done.stdout.endswith("loaded []\n")
