"""`torchrec-mt PROGRAM ...`: the same programs as `python -m torchrec_mt.PROGRAM`, under one name.

A program's module is imported only when it is asked for: `doctor` must run where torch cannot be imported.
"""

import importlib
import sys
from types import ModuleType

import torchrec_mt
from torchrec_mt.errors import UserError, exit_code_of, raise_on_interrupt

PROGRAMS = {
    "doctor": "check the installation and this machine; say what mends each problem",
    "prepare": "raw tables in, prepared dataset out",
    "plan": "where the tables would lie on a cluster that need not exist, and what that takes",
    "train": "train a model on a prepared dataset, into a run folder",
    "mine": "hard negatives for the next training, from a run's model",
    "evaluate": "score a run and the baselines over the whole catalogue",
    "twins": "train one model per task beside a run's one for all, and compare them",
    "compare": "compare the models of two evaluated runs, anchor by anchor",
    "sweep": "search config keys for the best validation, trial by trial",
    "export": "write a run's vectors as Parquet, for whatever serves them",
    "indexes": "measure approximate indexes on a run's vectors, and recommend one",
}


def main(argv: list[str] | None = None) -> int:
    """Runs `PROGRAM ARGUMENTS...` and returns its exit code; argv without the command's own name."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case []:
            print(_usage(), file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(_usage())
            return 0
        case ["--version", *_]:
            print(f"torchrec-mt {torchrec_mt.__version__}")
            return 0
        case [name, *rest] if name in PROGRAMS:
            program = _load(name)
            raise_on_interrupt()  # imported: from here on there is something to clean up
            code: int = program.main(rest)
            return code
        case [name, *_]:
            raise UserError(f"no program '{name}': one of {', '.join(PROGRAMS)} (`torchrec-mt --help`)")
    raise AssertionError(arguments)


def _usage() -> str:
    width = max(map(len, PROGRAMS))
    programs = "\n".join(f"  {name:{width}}  {line}" for name, line in PROGRAMS.items())
    return (
        f"usage: torchrec-mt PROGRAM ...\n\n{programs}\n\n"
        "`torchrec-mt PROGRAM --help` explains a program's arguments; `torchrec-mt --version` prints the version."
    )


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"torchrec_mt.{name}")
    except (ImportError, OSError) as error:  # OSError: a shared library with an undefined symbol
        if isinstance(error, ImportError) and (error.name or "").startswith("torchrec_mt"):
            raise  # ours: a bug, not a broken installation
        raise UserError(
            f"'{name}' does not load ({error}): `torchrec-mt doctor` says what to mend", exit_code=1
        ) from error


if __name__ == "__main__":
    sys.exit(main())
