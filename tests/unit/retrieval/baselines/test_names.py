"""Naming rivals: on the command line, in the config, in the names of files."""

import json
from pathlib import Path

import pytest

from torchrec_mt.config import load_config
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.baselines.names import BASELINES, DEFAULTS, chosen
from torchrec_mt.retrieval.evaluator import EvaluateConfig


def test_names_have_commas_between_them() -> None:
    assert chosen("ease") == ["ease"]
    assert chosen("oracle, ease,als,ease") == ["oracle", "ease", "als"]
    assert chosen("") == []
    assert chosen("all") == list(BASELINES)


@pytest.mark.parametrize("text", ["eas", "ease,nothing", "all,ease", "EASE"])
def test_an_unknown_name_is_told_what_there_is(text: str) -> None:
    with pytest.raises(UserError, match=r"--baselines .*: unknown '\w+', choose from random, .*, oracle, or 'all'"):
        chosen(text)


def test_the_config_takes_every_name_and_no_other(tmp_path: Path) -> None:
    given = load_config(["launch/demo.toml"], [f"evaluate.baselines={json.dumps(BASELINES)}"])
    assert given.evaluate.baselines == BASELINES
    with pytest.raises(UserError, match=r"evaluate\.baselines.*'fast'.*'random'.*'oracle'"):
        load_config(["launch/demo.toml"], ['evaluate.baselines=["fast"]'])


def test_defaults_are_some_of_all_in_their_order() -> None:
    assert [name for name in BASELINES if name in DEFAULTS] == list(DEFAULTS)
    assert BASELINES[-2:] == ("fusion", "oracle"), "the table puts the model before these two"
    assert EvaluateConfig().baselines == DEFAULTS


def test_the_longest_file_name_fits() -> None:
    for left_out in BASELINES:
        names = tuple(name for name in BASELINES if name != left_out)
        config = EvaluateConfig(split="valid", max_anchors=1_000_000_000, baselines=names)
        assert len(config.file_name("last")) < 250
    assert EvaluateConfig(baselines=BASELINES).file_name("best") == "metrics-test-all-baselines.json"
