"""Sweeps: what a file may say, what Optuna suggests and remembers, what comes of trials that are there."""

import importlib.util
import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from torchrec_mt.config import load_config
from torchrec_mt.errors import UserError
from torchrec_mt.reporting.sweep import short_names, sweep_tables
from torchrec_mt.sweep import main
from torchrec_mt.workflows.sweep import begin
from torchrec_mt.workflows.sweep_config import HyperbandPruning, MedianPruning, NoPruning, Pruning, Sweep, load_sweep
from torchrec_mt.workflows.sweep_results import best_toml, sweep_results, to_json
from torchrec_mt.workflows.sweep_study import Outcome, Study
from torchrec_mt.workflows.toml_text import toml_lines, toml_value

TEXT = """
goal = "The best rate."
base = ["launch/demo.toml"]
output = "OUTPUT"
trials = 12
settings = ["trainer.steps=7"]
pruning = { kind = "median", startup = 3, warmup = 1 }

[keys]
"optim.dense_rate" = { kind = "float", low = 1e-4, high = 1e-1, log = true }
"model.hidden" = { kind = "int", low = 32, high = 96, step = 32 }
"balancing.every" = { kind = "one_of", values = [1, 4] }
"balancing.method" = { kind = "one_of", values = [{ kind = "mgda" }, { kind = "gradnorm", rate = 0.01 }] }
"""
VALIDATIONS = 4


def written(folder: Path, *changes: tuple[str, str]) -> str:
    text = TEXT.replace("OUTPUT", str(folder / "out"))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "sweep.toml").write_text(text)
    return str(folder / "sweep.toml")


def sweep_of(folder: Path, *changes: tuple[str, str], pruning: Pruning | None = None) -> Sweep:
    sweep = load_sweep(written(folder, *changes))
    return sweep if pruning is None else Sweep(**{**vars(sweep), "pruning": pruning})


def test_a_trial_is_the_base_with_its_values(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    found = {
        "optim.dense_rate": "0.002",
        "model.hidden": "64",
        "balancing.every": "4",
        "balancing.method": '{ kind = "gradnorm", rate = 0.01 }',
    }
    config = sweep.config(found)
    assert (config.optim.dense_rate, config.model.hidden, config.trainer.steps) == (0.002, 64, 7)
    assert (config.balancing.every, config.balancing.method.kind) == (4, "gradnorm")
    outcome = Outcome(3, "complete", 0.25, found, 7, 90.0, "")
    results = sweep_results(sweep, "recall@100", [outcome], {})
    (tmp_path / "best.toml").write_text(best_toml(sweep, results, found))
    assert load_config([*sweep.base, tmp_path / "best.toml"]) == config


def test_the_best_can_be_read_whatever_the_goal_says(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, ("The best rate.", r"The \u0007 best\n</script> \u007F rate # \u00e9."))
    found = {"optim.dense_rate": "0.002"}
    outcome = Outcome(3, "complete", 0.25, found, 7, 90.0, "")
    text = best_toml(sweep, sweep_results(sweep, "recall@100", [outcome], {}), found)
    assert tomllib.loads(text)["optim"] == {"dense_rate": 0.002}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('goal = "The best rate."', 'goal = " "', "goal = ' ': must be a sentence"),
        ('base = ["launch/demo.toml"]', "base = []", "base = (): must be at least one config file"),
        ('base = ["launch/demo.toml"]', 'base = ["launch/no.toml"]', "no config file 'launch/no.toml'"),
        ("trials = 12", "trials = 0", "trials = 0: must be at least 1"),
        ("trials = 12", "trial = 12", "unknown key 'trial'"),
        ("trials = 12", "trials = 12\ntimeout_minutes = -1.0", "timeout_minutes = -1.0: must be at least 0"),
        ("low = 1e-4, high", "low = 0.2, high", "keys.optim.dense_rate.high = 0.1: must be above low = 0.2"),
        ("low = 1e-4, high", "low = 0.0, high", "keys.optim.dense_rate.low = 0.0: must be above 0 where log = true"),
        ("high = 96, step", "high = 95, step", "keys.model.hidden.high = 95: must be low + a multiple of step = 32"),
        ("values = [1, 4]", "values = [1]", "keys.balancing.every.values = [1]: must be two or more, all different"),
        ("values = [1, 4]", "values = [4, 4]", "keys.balancing.every.values = [4, 4]: must be two or more"),
        ("values = [1, 4]", "values = [1, 4], low = 3", "unknown key 'keys.balancing.every.low'"),
        ('kind = "int"', 'kind = "whole"', "has kind = 'whole': choose one of 'float', 'int', 'one_of'"),
        ('kind = "median", startup', 'kind = "medain", startup', "'pruning' has kind = 'medain': choose one of"),
        ("startup = 3", "startup = 0", "pruning.startup = 0: must be at least 1"),
        ('"median", startup = 3, warmup = 1', '"hyperband", least = 9', "pruning.least = 9: a trial has only"),
        ('"model.hidden"', '"model.hiden"', "keys.model.hiden = 32 makes no config: with model.hiden=32: unknown key"),
        ("low = 32, high", "low = -64, high", "keys.model.hidden = -64 makes no config: with model.hidden=-64: model"),
        ('{ kind = "mgda" }', '{ kind = "mgad" }', 'keys.balancing.method = { kind = "mgad" } makes no config'),
        ('"model.hidden"', '"trainer.metric"', "must be none of what trials are judged by and on (trainer.metric)"),
        ('"model.hidden"', '"trainer"', "must be none of what trials are judged by and on (trainer.metric)"),
        ('"model.hidden"', '"dataset.split.kind"', "must be none of what trials are judged by and on (dataset.split)"),
        ('"model.hidden"', '"runtime.threads"', "no key of the process in which all trials run (runtime.threads)"),
        ('"model.hidden"', '"trainer.steps"', "toml: keys.trainer.steps = 'trainer.steps': must be apart from"),
        ('"model.hidden"', '"balancing"', "keys.balancing = 'balancing': must be apart from 'balancing.every'"),
        ('output = "', 'output = "s3://bucket/', "must be a folder here"),
        ('"trainer.steps=7"', '"trainer.stps=7"', "sweep.toml: settings trainer.stps=7: unknown key 'trainer.stps'"),
        ('"trainer.steps=7"', '"checkpoint.folder=x"', "checkpoint.folder = 'x': all trials would write there"),
    ],
)  # fmt: skip
def test_what_makes_no_sweep(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        sweep_of(tmp_path, (old, new))
    assert said in str(error.value)
    assert ": ." not in str(error.value)


def test_a_value_that_needs_another_keys_value_is_none_to_refuse(tmp_path: Path) -> None:
    # With the base's static weights, balancing.every = 4 would be refused.
    static = ('[{ kind = "mgda" }', '[{ kind = "static" }, { kind = "mgda" }')
    assert sweep_of(tmp_path, static).keys["balancing.every"].bounds == ("1", "4")


@pytest.mark.parametrize("file", sorted(Path("launch/sweeps").glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_sweeps_are_sweeps(file: Path) -> None:
    assert load_sweep(str(file)).config({}).dataset.tasks


VALUES = [
    True,
    False,
    0,
    -3,
    1e-05,
    1e16,
    0.1,
    "",
    'a "b" \\ \n\t\x7fé',
    [1, [2.5, "x"]],
    {"kind": "a", "b c": {"d": [{}]}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_toml_reads_back_what_was_written(value: Any) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value
    tree = {"top": value, "section": {"deeper": {"key": value}, "a.b": value, "kind of": {"x": value}}}
    assert tomllib.loads("\n".join(toml_lines(tree))) == tree


def test_what_toml_cannot_say() -> None:
    with pytest.raises(TypeError, match="None is no value of TOML"):
        toml_value(None)


# --- what Optuna does


def score(found: dict[str, str]) -> float:
    """A stub of a training: rates near 0.01 and wide towers are good."""
    rate, hidden = float(found["optim.dense_rate"]), int(found["model.hidden"])
    return 1 / (1 + abs(rate - 0.01)) + hidden / 1000 + (0.01 if found["balancing.every"] == "4" else 0)


def journal(folder: Path) -> Path:
    (folder / "out").mkdir(exist_ok=True)
    return folder / "out/study.jsonl"


def run_trials(study: Study, score: Callable[[dict[str, str]], float] = score, *, most: int = 1000) -> None:
    """Trials of ten steps and four validations, each of which gives a share of the score."""
    while most and (found := study.next()):
        most -= 1
        for step in (2, 5, 8):
            if study.report(step, 10, score(found[1]) * step / 10):
                study.end("pruned", steps=step)
                break
        else:
            study.end("complete", value=score(found[1]), steps=10)


def tried(study: Study) -> list[tuple[str, float | None, dict[str, str], int | None]]:
    return [(one.state, one.value, one.found, one.steps) for one in study.outcomes()]


def test_suggestions_are_of_the_seed_however_often_the_sweep_is_stopped(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, ("trials = 12", "trials = 16"))
    whole = Study(sweep, journal(tmp_path), VALIDATIONS)
    run_trials(whole)
    assert {state for state, *_ in tried(whole)} == {"complete", "pruned"}
    assert len({json.dumps(found) for _, _, found, _ in tried(whole)}) == 16
    again = tmp_path / "again"
    again.mkdir()
    for part in (1, 6, 10, 1000):
        run_trials(Study(sweep, journal(again), VALIDATIONS), most=part)
        stopped = Study(sweep, journal(again), VALIDATIONS)  # a trial that is begun and left
        if found := stopped.next():
            stopped.report(2, 10, score(found[1]) * 2 / 10)
    assert tried(Study(sweep, journal(again), VALIDATIONS)) == tried(whole)
    other = tmp_path / "other"
    other.mkdir()
    different = Study(sweep_of(tmp_path, ("trials = 12", "trials = 16\nseed = 1")), journal(other), VALIDATIONS)
    run_trials(different)
    assert tried(different)[0][2] != tried(whole)[0][2]


def test_a_trial_that_was_to_be_given_up_is_when_the_sweep_goes_on(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, pruning=MedianPruning(startup=1, warmup=0))
    study = Study(sweep, journal(tmp_path), VALIDATIONS)
    run_trials(study, most=1)
    study.next()
    assert not study.given_up
    assert study.report(2, 10, 0.0)
    study.took(2.0)
    stopped = Study(sweep, journal(tmp_path), VALIDATIONS)
    found = stopped.next()
    assert found is not None
    assert found[0] == 1
    assert stopped.given_up
    stopped.took(3.0)
    stopped.end("pruned", steps=2)
    assert (stopped.outcomes()[1].state, stopped.outcomes()[1].seconds) == ("pruned", 5.0)


def test_hyperband_stands_by_what_it_said_of_a_trial(tmp_path: Path) -> None:
    """It marks the rung that a trial has come to, and would let it go on when asked again."""
    sweep = sweep_of(tmp_path, pruning=HyperbandPruning(least=1, factor=2))
    study = Study(sweep, journal(tmp_path), VALIDATIONS)
    run_trials(study, lambda found: 0.5, most=6)
    told = []
    while study.next():
        gone = any(study.report(step, 10, 0.01) for step in (2, 5, 8))
        study = Study(sweep, journal(tmp_path), VALIDATIONS)  # the program was killed
        again = study.next()
        assert again is not None
        told.append((gone, study.given_up))
        study.end("failed")
    assert (True, True) in told
    assert all(before == after for before, after in told)


@pytest.mark.parametrize(
    ("pruning", "given_up_at"),
    [
        (NoPruning(), None),
        (MedianPruning(startup=2, warmup=0), 2),
        (MedianPruning(startup=2, warmup=1), 5),
        (MedianPruning(startup=3, warmup=0), None),
    ],
)
def test_a_bad_trial_is_given_up(tmp_path: Path, pruning: Pruning, given_up_at: int | None) -> None:
    study = Study(sweep_of(tmp_path, pruning=pruning), journal(tmp_path), VALIDATIONS)
    run_trials(study, lambda found: 0.5, most=2)
    study.next()
    steps = (step for step in (2, 5, 8) if study.report(step, 10, 0.01))
    assert next(steps, None) == given_up_at


def test_hyperband_gives_up_bad_trials_of_some_brackets(tmp_path: Path) -> None:
    study = Study(sweep_of(tmp_path, pruning=HyperbandPruning(least=1, factor=2)), journal(tmp_path), VALIDATIONS)
    run_trials(study, lambda found: 0.5, most=6)
    run_trials(study, lambda found: 0.01)
    bad = [(one.state, one.steps) for one in study.outcomes()[6:]]
    assert {("pruned", 2), ("complete", 10)} <= set(bad)


def test_what_a_killed_program_leaves_is_mended(tmp_path: Path) -> None:
    sweep, file = sweep_of(tmp_path), journal(tmp_path)
    run_trials(Study(sweep, file, VALIDATIONS), most=3)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code": 4, "wor')
    file.with_name("study.jsonl.lock").symlink_to("study.jsonl")
    study = Study(sweep, file, VALIDATIONS)
    assert len(study.outcomes()) == 3
    run_trials(study)
    assert len(Study(sweep, file, VALIDATIONS).outcomes()) == 12
    strange = (b"no json", b"[]", b"5", b"{}", b'{"op_code": 99, "worker_id": "x"}')
    for line in strange:  # what Optuna says of each is an exception of another type
        file.write_bytes(line + b"\n" + whole)
        with pytest.raises(UserError, match=r"study.jsonl' is damaged .*: give the sweep another output"):
            Study(sweep, file, VALIDATIONS)


def test_what_matters_is_told_once_there_is_something_to_say(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, ("trials = 12", "trials = 30"), pruning=NoPruning())
    study = Study(sweep, journal(tmp_path), VALIDATIONS)
    run_trials(study, lambda found: float(found["optim.dense_rate"]), most=9)
    assert study.importances() == {}
    run_trials(study, lambda found: float(found["optim.dense_rate"]))
    found = study.importances()
    assert max(found, key=found.__getitem__) == "optim.dense_rate"
    assert sum(found.values()) == pytest.approx(1)


# --- what comes of it


OUTCOMES = [
    Outcome(0, "complete", 0.2, {"optim.dense_rate": "0.001"}, 7, 60.0, ""),
    Outcome(1, "pruned", 0.9, {"optim.dense_rate": "0.1"}, 2, 6.0, ""),
    Outcome(2, "failed", None, {"optim.dense_rate": "0.05"}, None, 3.0, "the loss is no finite number"),
    Outcome(3, "complete", 0.25, {"optim.dense_rate": "0.0123456"}, 7, 90.0, ""),
    Outcome(4, "running", 0.3, {"optim.dense_rate": "0.02"}, None, 0.0, ""),
]
ONE_KEY = TEXT[: TEXT.index('"model.hidden"')]


def test_the_best_is_of_finished_trials(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(ONE_KEY.replace("OUTPUT", f"{tmp_path}/out"))
    sweep = load_sweep(str(tmp_path / "one.toml"))
    results = sweep_results(sweep, "recall@100", OUTCOMES, {"optim.dense_rate": 1.0})
    assert results["best"]["trial"] == 3
    assert results["best"]["run"] == str(tmp_path / "out/trial-0003")
    assert results["best"]["values"] == {"optim.dense_rate": 0.0123456}
    assert results["states"] == {"complete": 2, "pruned": 1, "failed": 1, "running": 1}
    assert json.loads(to_json(results)) == results
    shown = io.StringIO()
    Console(file=shown, width=80).print(sweep_tables(results))
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    assert lines[0] == "The best rate."
    assert "trial Recall@100 steps minutes values" in lines
    assert lines.index("3 .2500 7 1.5 dense_rate 0.01235") < lines.index("0 .2000 7 1.0 dense_rate 0.001")
    assert "trials: 2 complete, 1 pruned, 1 failed, 1 running" in lines
    assert "trial 2 failed: the loss is no finite number" in lines
    assert "as the best of 2" in shown.getvalue()
    assert sweep_results(sweep, "recall@100", OUTCOMES[1:3], {})["best"] is None


def test_names_are_as_long_as_it_takes() -> None:
    keys = ["optim.dense_rate", "model.hidden", "loss.hidden", "hidden"]
    assert short_names(keys) == dict(zip(keys, ["dense_rate", "model.hidden", "loss.hidden", "hidden"], strict=True))


def test_what_makes_trials_comparable_stays(tmp_path: Path) -> None:
    def go(*changes: tuple[str, str]) -> None:
        sweep = sweep_of(tmp_path, *changes)
        begin(sweep, sweep.config({}), "digest")

    (tmp_path / "out").mkdir()
    go()
    go(("trials = 12", "trials = 40\ntimeout_minutes = 5.0"), ("The best rate.", "The very best rate."))
    go(
        ("trainer.steps=7", "trainer.steps=7', 'evaluate.split=valid"),
        ('["trainer', "['trainer"),
        ('valid"]', "valid']"),
    )
    for change, named in (
        (("high = 1e-1", "high = 1.0"), "keys"),
        (("trials = 12", "trials = 12\nseed = 4"), "seed"),
        (("startup = 3", "startup = 4"), "pruning"),
        (("trainer.steps=7", "trainer.steps=8"), "trainer.steps"),
    ):
        with pytest.raises(UserError, match=rf"sweep.json' is of another sweep \({named} differ\)"):
            go(change)


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"optuna, which is not installed: pip install 'torchrec-mt\[optuna\]'"):
        main(["launch/sweeps/demo.toml"])
