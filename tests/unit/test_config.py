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
            "tasks.x.pairs' has no kind: choose one",
        ),
        ("dataset.tasks.search.pairs.roles.S=bad", "pairs.roles.S' = 'bad': input should be 'negative' or 'ignore'"),
        ("runtime.device=tpu", "'runtime.device' = 'tpu'"),
        ("trainer.log_every=0", "trainer.log_every = 0: must be at least 1"),
        ("model.temperature.initial=0", "model.temperature.initial = 0.0: must be above 0 and within"),
        ("negatives.sources=[{kind='uniform', count=0}]", "count = 0: must be at least 1"),
        ("modell.dim=3", "unknown key 'modell'"),
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
