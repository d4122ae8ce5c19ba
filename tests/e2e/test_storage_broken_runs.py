"""Runs at a URL that end badly: where the batch goes that broke them, and what is left where one replaces another."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.faulty import no_number
from tests.object_store import Fault, Proxy, make_bucket, only_here, s3_behind_proxy
from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.runs import PARTS
from torchrec_mt.storage import fetch, file_system
from torchrec_mt.train import main as train

Machine = Callable[[str], None]


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with s3_behind_proxy() as running:
        make_bucket(running, "shop")
        yield running


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


@pytest.fixture
def machine(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Changes over to a machine of this name: it has a cache of its own."""
    proxy.forget()
    return lambda name: only_here(monkeypatch, proxy, tmp_path / name)


def command(root: Path, run: str, *more: str) -> list[str]:
    settings = [*debug_overrides(root), "trainer.steps=8", "trainer.validations=1", "trainer.validation_anchors=20"]
    return [*FILES, *(f"--set={one}" for one in [*settings, "checkpoint.every=4"]), "--output", run, *more]


def objects(folder: str) -> set[str]:
    return set(file_system("s3://shop")[0].find(f"shop/{folder}"))


@pytest.mark.parametrize(("step", "place"), [(3, "runs/early.offending_batch"), (6, "runs/late/offending_batch")])
def test_the_batch_that_broke_it_is_where_the_run_is(
    root: Path, machine: Machine, capsys: pytest.CaptureFixture[str], step: int, place: str
) -> None:
    """Beside it before its first checkpoint, with which it takes its place."""
    run = "s3://shop/" + place.removesuffix("offending_batch")[:-1]
    machine("training")
    try:
        no_number(step, 0, 0)
        assert exit_code_of(lambda: train(command(root, run))) == 1
    finally:
        patch.stopall()
    assert f"the loss at step {step} is no finite number" in (said := capsys.readouterr().err)
    assert f"the batch is in 's3://shop/{place}'" in said
    assert objects(place) == {f"shop/{place}/rank-0.pt"}
    saved = torch.load(io.BytesIO(file_system(run)[0].cat_file(f"shop/{place}/rank-0.pt")), weights_only=True)
    assert saved["step"] == step
    machine("going on")
    if step == 3:
        assert objects(run.removeprefix("s3://shop/") + "/") == set(), "nothing is in the way of another try"
        assert train(command(root, run)) == 0
    else:
        assert f"`torchrec-mt train --resume {run}` goes on from it" in said
        assert train(["--resume", run]) == 0
        machine("looking")
        assert (fetch(run, parts=PARTS) / "offending_batch/rank-0.pt").is_file()


def test_a_batch_that_cannot_be_written_hides_nothing(
    root: Path, machine: Machine, capsys: pytest.CaptureFixture[str], proxy: Proxy
) -> None:
    machine("training")
    proxy.faults = [Fault("PUT", "offending_batch", 403)]
    try:
        no_number(2, 0, 0)
        assert exit_code_of(lambda: train(command(root, "s3://shop/runs/refused"))) == 1
    finally:
        patch.stopall()
    assert "the batch cannot be kept ('s3://shop/runs/refused.offending_batch" in (said := capsys.readouterr().err)
    assert "lower optim.table_rate" in said


def test_what_is_left_where_a_run_fails_to_replace_another(
    root: Path, machine: Machine, capsys: pytest.CaptureFixture[str], proxy: Proxy
) -> None:
    run = "s3://shop/runs/replaced"
    machine("earlier")
    assert train(command(root, run)) == 0
    machine("later")
    proxy.faults = [Fault("PUT", "runs/replaced/metrics.jsonl", 403)]
    assert exit_code_of(lambda: train(command(root, run, "--overwrite"))) == 2
    said = capsys.readouterr().err
    assert "all of it lies in '" in said
    assert not [name for name in objects("runs/replaced") if "/checkpoints/" in name], "the earlier run's are gone"
    machine("reading")
    assert exit_code_of(lambda: evaluate([run])) == 2
    assert f"'{run}' is being written, or its writer was stopped" in capsys.readouterr().err
    machine("again")
    assert train(command(root, run)) == 0
    assert evaluate([run, "--set=evaluate.max_anchors=20"]) == 0
