"""What goes wrong around the programs: one message, the right exit code, no traceback, nothing lost."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.indexes import main as indexes
from torchrec_mt.mine import main as mine
from torchrec_mt.prepare import main as prepare
from torchrec_mt.train import main as train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


def arguments(root: Path, *overrides: str) -> list[str]:
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *overrides])]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.epoch=3", "unknown key 'trainer.epoch'"),
        ("dataset.path=nowhere", "no prepared dataset at 'nowhere': run `torchrec-mt prepare`"),
        ("reader.batch_size=2", "reader.batch_size = 2 is smaller than the number of tasks"),
        ("balancing.weights={serach=1.0}", "names 'serach', which is no trained task"),
        ('balancing.method={kind="metabalance",target="serach"}', "balancing.method.target is 'serach', which is no"),
        ('balancing.method={kind="metabalance"}', "balancing.method.target"),
        ('balancing.method={kind="upgard"}', "balancing.method"),
        ("balancing.every=5", 'balancing.every = 5: must be as by default: method "static" does not look'),
        ('sharding.tables={tokns="row_wise"}', "'tokns'"),
        ("runtime.device=cuda", "torch sees no CUDA device"),
        ("dataset.tables.tokens.dim=30", "tables.tokens.dim"),
        ("dataset.entities.product.features.brand.column=x", "(dataset.entities.product.features.brand.column differ)"),
        ("trainer.metric=recall@5", "trainer.metric = 'recall@5' is none of"),
    ],
)
def test_train_refuses(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    if "cuda" in override:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    command = [*arguments(root, "trainer.steps=2", override), "--output", str(tmp_path / "run")]
    assert exit_code_of(lambda: train(command)) == 2
    assert message in said(capsys)


def test_a_folder_that_is_not_ours(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert exit_code_of(lambda: train([*arguments(root), "--output", str(tmp_path)])) == 2
    assert "no run folder of ours" in said(capsys)
    assert exit_code_of(lambda: evaluate([str(tmp_path)])) == 2
    assert "is no run folder" in said(capsys)
    place = f"--set=dataset.path={tmp_path}"
    assert exit_code_of(lambda: prepare([*FILES, place])) == 2
    assert str(tmp_path) in said(capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_is_not_judged_on_another_dataset(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"--set=dataset.path={tmp_path / 'shop'}"
    assert prepare([*FILES, place]) == 0
    assert train([*FILES, place, "--set=trainer.steps=2", "--output", str(tmp_path / "run")]) == 0
    other = "--set=dataset.source.seed=5"
    assert prepare([*FILES, place, other]) == 0
    capsys.readouterr()
    assert exit_code_of(lambda: evaluate([str(tmp_path / "run")])) == 2
    assert "was trained on another state of the dataset" in said(capsys)


def test_a_slice_by_a_column_that_is_not_there(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train([*arguments(root, "trainer.steps=2"), "--output", str(run)]) == 0
    capsys.readouterr()
    assert exit_code_of(lambda: evaluate([str(run), "--slices", "brand, colour"])) == 2
    assert "'colour' is no column to cut slices by" in said(capsys)
    assert not (run / "evaluation").exists()
    assert exit_code_of(lambda: evaluate([str(run), "--slices", "brand, product.price"])) == 0
    output = capsys.readouterr().out
    assert "target product_brand: " in output
    assert "target product_price: q1 (" in output
    names = {"metrics.json", "anchors.parquet", "samples.json", "report.html"}
    assert {file.name for file in (run / "evaluation").iterdir()} == names


def test_a_path_through_a_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert exit_code_of(lambda: train([*arguments(root), "--output", str(tmp_path / "file" / "run")])) == 2
    assert str(tmp_path / "file") in said(capsys)


def test_a_loss_that_is_not_finite_stops_the_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments(root, "optim.dense_rate=1e30", "trainer.log_every=1"), "--output", str(tmp_path / "run")]
    assert exit_code_of(lambda: train(command)) == 1
    assert "lower optim.table_rate or optim.dense_rate" in said(capsys)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A real file system of a few megabytes."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size", ["200k", "900k"])
def test_no_room_on_the_disk_to_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    with small_disk(tmp_path / "disk", size):
        assert exit_code_of(lambda: prepare([*FILES, f"--set=dataset.path={tmp_path / 'disk/shop'}"])) == 2
        text = said(capsys).lower()
        assert "no room" in text or "no space" in text
        assert not (tmp_path / "disk/shop").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_no_room_on_the_disk_to_train(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", "600k"):
        command = [*arguments(root, "trainer.steps=4"), "--output", str(tmp_path / "disk/run")]
        assert exit_code_of(lambda: train(command)) == 2
        text = said(capsys).lower()
        assert "no room" in text or "no space" in text


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A folder on which nobody may write, root included."""
    bound = subprocess.run(["mount", "--bind", str(path), str(path)], capture_output=True, check=False)
    if bound.returncode:
        pytest.skip("no right to mount here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_no_right_to_write(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*arguments(root, "trainer.steps=2"), "--output", str(tmp_path / "run")]
    assert train(command) == 0
    with read_only(tmp_path):
        programs = {
            "metrics.json": lambda: evaluate([str(tmp_path / "run"), "--set=evaluate.max_anchors=20"]),
            "run": lambda: train([*command, "--overwrite"]),
            "new": lambda: train([*command[:-1], str(tmp_path / "new")]),
            "indexes.json": lambda: indexes([str(tmp_path / "run"), "--task=search", "--set=evaluate.max_anchors=5"]),
            "mined": lambda: mine([str(tmp_path / "run"), "--depth=5", "--per-anchor=2"]),
        }
        for name, program in programs.items():
            capsys.readouterr()
            assert exit_code_of(program) == 2, name
            text = said(capsys)
            assert "read-only" in text
            assert str(tmp_path / "run") in text or name in text or ".run.partial-" in text
    assert not list(tmp_path.glob(".run.*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_no_room_on_the_disk_to_evaluate(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*arguments(root, "trainer.steps=2"), "--output", str(tmp_path / "run")]) == 0
    with small_disk(tmp_path / "disk", "8m"):
        run = shutil.copytree(tmp_path / "run", tmp_path / "disk/run")
        (run / "evaluation").mkdir()
        with contextlib.suppress(OSError), (tmp_path / "disk/filler").open("wb") as filler:
            while True:
                filler.write(bytes(1 << 12))
                filler.flush()
        capsys.readouterr()
        assert exit_code_of(lambda: evaluate([str(run), "--set=evaluate.max_anchors=20"])) == 2
        assert "anchors-test-20-anchors.parquet': no space left on the disk" in said(capsys)
        assert not list((run / "evaluation").iterdir())


@pytest.mark.parametrize(("name", "why"), [("r" * 300, "too long"), ("a\0b", "NUL")])
def test_a_path_that_cannot_be(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    output = str(tmp_path / name)
    assert exit_code_of(lambda: train([*arguments(root, "trainer.steps=2"), "--output", output])) == 2
    assert why in said(capsys)
    path = output.replace("\0", "\\u0000")
    assert exit_code_of(lambda: train([*FILES, f'--set=dataset.path="{path}"', "--output", str(tmp_path / "new")])) == 2
    assert why in said(capsys)
    assert not list(tmp_path.iterdir())
