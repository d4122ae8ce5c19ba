"""docs/extending.md holds: its examples are applied to a copy of the code, and what they add is prepared, trained and
judged."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TEXT = Path("docs/extending.md").read_text()
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
RUN = """
import sys
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.prepare import main as prepare
from torchrec_mt.train import main as train

few = ["--set=trainer.steps=6", "--set=trainer.validations=2", "--set=reader.batch_size=64", "--set=runtime.device=cpu"]
assert prepare(["recipes.toml"]) == 0
assert train(["recipes.toml", *few, "--set=trainer.log_every=1"]) == 0
assert evaluate(["runs/recipes", "--json", "--baselines", "popularity"]) == 0
assert train(["recipes.toml", *few, "--set=model.match_parameters=30000", "--output=runs/matched"]) == 0
"""


def blocks(kind: str) -> dict[str, str]:
    """Blocks of a kind by the path that their first line names."""
    found = [block.partition("\n") for name, block in BLOCK.findall(TEXT) if name == kind]
    return {first.removeprefix("--- ").removeprefix("# "): rest for first, _, rest in found}


def apply(text: str, hunks: str) -> str:
    """A text with hunks of a diff, each of which finds its place by its lines."""
    for hunk in hunks.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"the place is not there, or not alone: {before}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the extended code, the data and the config."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree("torchrec_mt", root / "torchrec_mt", ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in blocks("python").items():
        assert not (root / path).exists(), "a new file"
        (root / path).write_text(text)
    for path, hunks in blocks("diff").items():
        (root / path).write_text(apply((root / path).read_text(), hunks))
    (root / "recipes.toml").write_text(blocks("toml")["recipes.toml"])
    write_recipes(root / "recipes")
    return root


def write_recipes(folder: Path) -> None:
    """Recipes of six kitchens, whose products are named after them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    recipes = [{"recipe": f"r{n}", "title": f"kitchen{n % 6} dish{n}"} for n in range(40)]
    products = [{"sku": f"p{n}", "title": f"kitchen{n % 6} thing{n}"} for n in range(60)]
    uses = [
        {"recipe": f"r{n}", "sku": f"p{n % 6 + 6 * int(one)}", "time": f"2026-01-{1 + int(day):02}"}
        for n in range(40)
        for one, day in zip(rng.permutation(10)[:6], rng.integers(0, 28, 6), strict=True)
    ]
    for name, rows in {"recipes": recipes, "products": products, "uses": uses}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_is_one_new_file_and_one_match() -> None:
    new, changed = blocks("python"), blocks("diff")
    assert [Path(path).parent for path in new] == [Path(path).parent for path in changed]
    for hunks in changed.values():
        assert [line for line in hunks.splitlines() if re.match(r"[+] +case ", line)]
        assert len([line for line in hunks.splitlines() if line.startswith("+")]) == 4, "import, name, arm of two lines"


def test_what_is_added_works(extended: Path) -> None:
    where = f"{extended}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", RUN],
        cwd=extended,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = extended / "runs/recipes"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = [line["weight/cook"] for line in lines if line["kind"] == "train"]
    assert len(set(weights)) == 6, "drawn anew in each step"
    model = json.loads((run / "model.json").read_text())
    assert (model["sharing"], model["widths"]["sharing.rank"]) == ("adapters", 4)
    [judged] = (run / "evaluation").glob("metrics*.json")
    assert json.loads(judged.read_text())["tasks"].keys() == {"cook", "together"}
    matched = json.loads((extended / "runs/matched/model.json").read_text())
    assert abs(matched["dense_parameters"] - 30_000) < 600
    assert matched["widths"]["sharing.rank"] != 4


def test_the_example_is_written_as_the_code_is(extended: Path) -> None:
    files = [str(extended / path) for path in [*blocks("python"), *blocks("diff")]]
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", "pyproject.toml", *files],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
