"""`torchrec-mt plan` on tables that do not fit: the reason, what would fit, exit code 3."""

import json
import shlex
from pathlib import Path

import pytest

from torchrec_mt import plan
from torchrec_mt.distributed.plans.planner import Problem, solve
from torchrec_mt.workflows import planning

COUNTS = """[plan.tables]
tokens = { rows = 50_000, lookups = 20 }
product_id = { rows = 5_000_000_000 }
category = { rows = 500 }
brand = { rows = 2_000 }
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "counts.toml").write_text(COUNTS)
    return ["launch/demo.toml", str(tmp_path / "counts.toml"), "--set", f"dataset.path={tmp_path}/nowhere"]


def test_in_the_terminal(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([*files, "--cluster", "1x8xH100-80GB"]) == 3
    said = capsys.readouterr()
    assert said.err.startswith("error: the tables do not fit on 1x8xH100-80GB: no place for table 'product_id' (5,000,")
    assert "1  --cluster 3x8xH100-80GB\n" in said.out
    asked = [line[3:] for line in said.out.splitlines() if line[1:3] == "  " and line[3:5] == "--"]
    assert len(asked) == 5
    for arguments in asked[1:]:  # as it stands on the screen, the shell gives it to the program, which finds a plan
        assert plan.main([*files, "--cluster", "1x8xH100-80GB", *shlex.split(arguments)]) == 0
    assert "dataset.tables.NAME.max_rows" in said.out
    assert "planned again, by what was changed: ranks 2, dtype 4, " in said.out


def test_as_json(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([*files, "--set", 'plan.cluster="1x8xH100-80GB"', "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is False
    assert told["reason"].startswith("the tables do not fit on 1x8xH100-80GB: no place for table 'product_id'")
    assert [fix["kind"] for fix in told["fixes"]] == ["ranks", "kernel", "kernel", "dim", "rows"]


def test_nothing_found(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    large = ["--set", "model.dim=65536", "--set", "model.hidden=65536"]
    assert plan.main([*files, *large, "--cluster", "1x1xL4-24GB"]) == 3
    said = capsys.readouterr()
    assert "the towers alone take" in said.err
    assert said.out.startswith(
        "no single change was found by which the tables fit\nplanned again, by what was changed:"
    )


def test_interrupted(files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def impatient(problem: Problem, **named: object) -> object:
        planned.append(problem.cluster.hosts)
        if len(planned) == 4:
            raise KeyboardInterrupt
        return solve(problem, **named)

    monkeypatch.setattr(planning, "solve", impatient)
    assert plan.main([*files, "--cluster", "1x8xH100-80GB"]) == 3
    assert planned == [1, 3, 2, 1]
    said = capsys.readouterr().out
    assert "1  --cluster 3x8xH100-80GB\n" in said
    assert said.endswith("planned again, by what was changed: ranks 2, dtype 1; interrupted, there may be more\n")
