"""Dockerfile: what can be told without Docker. It copies what exists and is sent along, and runs as TorchX needs it."""

import re
import shlex
from pathlib import Path

import fsspec
import pytest
from torchx.workspace.api import walk_workspace

LINES = [
    line.strip()
    for line in re.sub(r"\\\n", " ", Path("Dockerfile").read_text()).splitlines()
    if line.strip() and not line.startswith("#")
]
STAGES = " \n".join(LINES).split("FROM ")[1:]


@pytest.fixture(scope="module")
def sent() -> set[str]:
    """Files that .dockerignore lets through, as TorchX reads it."""
    here = Path.cwd()
    found = set()
    for folder, _, files in walk_workspace(fsspec.filesystem("file"), str(here), ".dockerignore"):
        found |= {str((Path(folder) / file).relative_to(here)) for file in files}
    return found


def copied() -> list[str]:
    """Sources of every COPY from the build context."""
    words = [shlex.split(line)[1:-1] for line in LINES if line.startswith("COPY ") and "--from=" not in line]
    return [word for line in words for word in line if not word.startswith("--")]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_is_sent(source: str, sent: set[str]) -> None:
    assert Path(source).exists()
    within = {str(file) for file in Path(source).rglob("*") if file.is_file()} if source.endswith("/") else {source}
    built = re.compile(r"__pycache__|\.egg-info|/build/")
    assert {file for file in within if not built.search(file)} <= sent


def test_nothing_big_or_private_is_sent(sent: set[str]) -> None:
    tops = {Path(file).parts[0] for file in sent}
    assert {"torchrec_mt", "launch", "requirements", "pyproject.toml"} <= tops
    assert not tops & {".git", ".venv", ".venv-peers", "data", "runs", "tests", "docs"}
    assert not [file for file in sent if "__pycache__" in file]


def test_every_variant_has_its_requirements() -> None:
    install = next(line for line in LINES if "requirements/$VARIANT.txt" in line)
    variants = re.findall(r"(\w+)\) ", install.partition("*)")[0])
    assert variants == ["cpu", "cuda"]
    for variant in variants:
        file = Path(f"requirements/{variant}.txt")
        named = [line for line in file.read_text().splitlines() if line.startswith(("-r ", "./"))]
        for line in named:  # -r is relative to the file, a folder to where pip runs
            assert (file.parent / line[3:] if line.startswith("-r ") else Path(line)).exists()
    assert "ARG VARIANT=cpu" in LINES


def test_the_image_runs_as_torchx_needs_it() -> None:
    last = STAGES[-1]
    assert "ENTRYPOINT" not in last
    assert re.search(r"^USER (?!root|0)\w+", last, re.MULTILINE)
    assert not re.search(r"build-essential|gcc|g\+\+|cmake|pip install", last)
    work = re.search(r"^WORKDIR (\S+)", last, re.MULTILINE)
    assert work is not None
    for file in Path("launch/torchx").glob("*.ini"):
        for place in re.findall(r"dst=(\S+?)(?:,|$)", file.read_text(), re.MULTILINE):
            assert place in (f"{work[1]}/data", f"{work[1]}/runs"), f"{file} mounts {place}, which the image lacks"


def test_both_stages_have_one_python_and_it_is_ours() -> None:
    assert [stage.split()[0] for stage in STAGES] == ["python:${PYTHON}", "python:${PYTHON}"]
    assert any(re.match(r"ARG PYTHON=3\.11-", line) for line in LINES)
