"""Config files: merging, overrides, round trip, and what a mistake says."""

import importlib
import json
import re
from pathlib import Path

import pytest

from torchrec_mt.config import apply_overrides, check_config, check_keys, config_to_json, load_config
from torchrec_mt.errors import UserError, exit_code_of
from torchrec_mt.schema import GroupPairs, TextFeature

LAUNCH = Path("launch")
DEMO = LAUNCH / "demo.toml"


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_config_loads(file: Path) -> None:
    overlay = file.read_text().startswith("# Overlay of demo.toml")
    config = load_config([DEMO, file] if overlay else [file])
    assert config.dataset.tasks


def test_a_config_survives_the_run_folder() -> None:
    config = load_config([DEMO])
    assert check_config(json.loads(config_to_json(config)), where="run") == config


def test_kinds_become_their_classes() -> None:
    config = load_config([DEMO])
    assert isinstance(config.dataset.entities["query"].features["text"], TextFeature)
    assert config.dataset.entities["query"].features["text"].columns == ("text",)
    pairs = config.dataset.tasks["complement"].pairs
    assert isinstance(pairs, GroupPairs)
    assert pairs.direction == "forward"


def test_files_merge_left_to_right_and_flags_win(tmp_path: Path) -> None:
    overlay = tmp_path / "small.toml"
    overlay.write_text("[trainer]\nsteps = 7\n[reader]\nbatch_size = 64\n")
    config = load_config([DEMO, overlay], ["reader.batch_size=32", "dataset.name=mine", "trainer.metric='mrr@10'"])
    assert (config.trainer.steps, config.reader.batch_size) == (7, 32)
    assert (config.dataset.name, config.trainer.metric) == ("mine", "mrr@10")
    assert config.trainer.validations == load_config([DEMO]).trainer.validations


def test_another_kind_replaces_the_whole_choice() -> None:
    config = load_config([DEMO], ['dataset.source={kind="files", root="shop"}'])
    assert config.dataset.source.kind == "files"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.epoch=2", "unknown key 'trainer.epoch'"),
        ("trainer.epochs=many", "'trainer.epochs' = 'many': input should be a valid number"),
        ("dataset.split.kind=random", "'dataset.split' has kind = 'random': choose one of 'time', 'group'"),
        ("dataset.tasks.search.pairs.ancor=x", "unknown key 'dataset.tasks.search.pairs.ancor'"),
        (
            "dataset.entities.query.features.text.kind=image",
            "features.text' has kind = 'image': choose one",
        ),
        (
            'dataset.tasks.x={anchor="a", candidate="b", pairs={path="c"}}',
            "tasks.x.pairs' = {'path': 'c'} has no kind: choose one",
        ),
        ("dataset.tasks.search.pairs.roles.S=bad", "pairs.roles.S' = 'bad': input should be 'negative' or 'ignore'"),
        ("runtime.device=tpu", "'runtime.device' = 'tpu'"),
        ("trainer.log_every=0", "trainer.log_every = 0: must be at least 1"),
        ("model.temperature.initial=0", "model.temperature.initial = 0.0: must be above 0 and within"),
        ("negatives.sources=[{kind='uniform', count=0}]", "count = 0: must be at least 1"),
        ("modell.dim=3", "unknown key 'modell'"),
        ("loss.default=softmax", "'loss.default' = 'softmax' has no kind: choose one of 'softmax'"),
        ("reader", "is not of the form KEY=VALUE"),
    ],
)
def test_a_mistake_names_its_key(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([DEMO], [override])
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert message.count(";") <= 1, message


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("trainer.epoch=2", "did you mean 'trainer.epochs'?"),
        ("trainr.epochs=2", "did you mean 'trainer'?"),
        ("dataset.tasks.search.pairs.ancor=x", "did you mean 'dataset.tasks.search.pairs.anchor'?"),
        ("dataset.entities.query.features.text.colums=['a']", "features.text.columns'?"),
        ("balancing.method={kind='famo', decy=0.1}", "did you mean 'balancing.method.decay'?"),
        ("optim.ema={deca=0.9}", "did you mean 'optim.ema.decay'?"),
        ("trainer.batch_size=64", "did you mean 'reader.batch_size'?"),
        ("optim.lr=0.1", "known there are 'clip_norm', 'dense_rate'"),
    ],
)
def test_an_unknown_key_hints_at_the_nearest_known_one(override: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([DEMO], [override])
    assert hint in str(caught.value)


def test_what_is_known_in_a_section_is_listed_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config([DEMO], ["optim.lr=0.1", "optim.qqq=1"])
    assert str(caught.value).count("known there are") == 1


def test_a_mistake_is_told_of_the_place_where_it_was_written(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.toml"
    overlay.write_text("[trainer]\nlog_evry = 5\n")
    with pytest.raises(UserError) as caught:
        load_config([DEMO, overlay], ["trainer.epoch=2", "model.dim=64", "loss.default={temperature=1}"])
    of_flag, of_choice, of_files = sorted(str(caught.value).split("; "))[:3]
    assert of_flag.startswith("--set loss.default={temperature=1}: 'loss.default' = {'temperature': 1} has no kind")
    assert of_choice.startswith("--set trainer.epoch=2: unknown key 'trainer.epoch'")
    assert of_files.startswith(f"{DEMO}, {overlay}: unknown key 'trainer.log_evry'")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.dim=0", "--set model.dim=0: model.dim = 0: must be"),
        ("evaluate.metrics=['recal@10']", "--set evaluate.metrics=['recal@10']: evaluate.metrics: 'recal@10' is no"),
        ("trainer.epochs=many", "--set trainer.epochs=many: 'trainer.epochs' = 'many': input should be"),
        ("dataset.split.kind=random", "--set dataset.split.kind=random: 'dataset.split' has kind = 'random'"),
    ],
)
def test_a_wrong_value_of_a_flag_is_told_of_the_flag(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([DEMO], ["runtime.threads=1", override])
    assert str(caught.value).startswith(said)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(UserError) as caught:
        load_config([DEMO], [f"trainer.epochs='{'x' * 1000}'"])
    assert f"'trainer.epochs' = '{'x' * 79}...: input" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config file 'gone.toml'"):
        load_config(["gone.toml"])
    broken = tmp_path / "broken.toml"
    broken.write_text("[trainer\n")
    with pytest.raises(UserError, match="is not valid TOML"):
        load_config([broken])
    with pytest.raises(UserError, match="is a folder"):
        load_config([tmp_path])
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    with pytest.raises(UserError, match="key 'dataset' is missing"):
        load_config([empty])


KEYS = ("evaluate.*", "runtime.*", "dataset.path")


@pytest.mark.parametrize("override", ["evaluate.split=valid", "runtime.threads=1", "dataset.path=elsewhere"])
def test_a_finished_run_takes_what_can_still_matter(override: str) -> None:
    check_keys([override], KEYS)


@pytest.mark.parametrize(
    "override", ["model.dim=32", "trainer.epochs=3", "dataset.paths=x", "evaluate=1", "evaluated.x=1"]
)
def test_what_a_finished_run_has_settled_is_refused(override: str) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"the run has settled '{override.partition('=')[0]}', only evaluate.*")
    ):
        check_keys([override], KEYS)


@pytest.mark.parametrize("program", ["evaluate", "mine"])
def test_programs_of_a_finished_run_refuse_other_keys(program: str) -> None:
    module = importlib.import_module(f"torchrec_mt.{program}")
    assert exit_code_of(lambda: module.main(["no-run", "--set", "model.dim=32"])) == 2
    text = module.build_parser().format_help()
    assert "trainer.epochs" not in text
    assert "runtime.*" in text


def test_a_table_called_kind_is_no_tag() -> None:
    raw = {"dataset": {"tables": {"kind": {"dim": 4}, "word": {"dim": 8}}}}
    assert apply_overrides(raw, ["dataset.tables.kind.dim=16"]) == {
        "dataset": {"tables": {"kind": {"dim": 16}, "word": {"dim": 8}}}
    }
