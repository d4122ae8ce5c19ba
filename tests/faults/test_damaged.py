"""A damaged file of our own folders: one message that names it and the remedy, exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.config import apply_overrides
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.mine import main as mine
from torchrec_mt.train import main as train

Damage = Callable[[Path], object]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def scramble(file: Path) -> None:
    """Magic bytes at both ends stay."""
    data = bytearray(file.read_bytes())
    data[4:-8] = b"\xa5" * (len(data) - 12)
    file.write_bytes(data)


def without(text: str, instead: str = "") -> Damage:
    return lambda file: file.write_text(file.read_text().replace(text, instead))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with mined negatives."""
    path = tmp_path_factory.mktemp("damaged") / "run"
    overrides = (f"--set={override}" for override in [*debug_overrides(root), "trainer.steps=2"])
    assert train([*FILES, *overrides, "--output", str(path)]) == 0
    assert mine([str(path), "--depth=10", "--per-anchor=2"]) == 0
    return path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def shop(root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(root / "debug", tmp_path / "shop")


def refused(program: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert exit_code_of(program) == 2
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text
    return text.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", cut, "config.json' is damaged"),
        ("config.json", lambda file: file.write_bytes(b"\xff\xfe"), "config.json' is damaged"),
        ("config.json", lambda file: file.write_text("[1, 2]"), "config.json' is damaged (it holds no object)"),
        ("config.json", Path.unlink, "is no run folder"),
        ("dataset.json", cut, "dataset.json' is damaged"),
        ("dataset.json", empty, "dataset.json' is damaged"),
        ("dataset.json", Path.unlink, "another state of the dataset"),
    ],
)
def test_a_run(run: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage, message: str) -> None:
    damage(run / name)
    said = refused(lambda: evaluate([str(run)]), capsys)
    assert message in said
    assert "train" in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim=16", "is of another model; load it with its own config"),
        ("dataset.tables.tokens.dim=16", "rows of width 16, the checkpoint's 4,146 of width 64: take the dataset and"),
    ],
)
def test_a_model_of_another_shape(run: Path, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(apply_overrides(config, [override])))
    assert message in refused(lambda: evaluate([str(run)]), capsys)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("manifest.json", cut, "manifest.json' is damaged"),
        ("manifest.json", without('"tasks"', '"tusks"'), "manifest.json' is damaged"),
        ("manifest.json", lambda file: file.write_text("[]"), "manifest.json' is damaged"),
        ("pairs/search/train.parquet", cut, "train.parquet' is damaged"),
        ("pairs/search/train.parquet", empty, "train.parquet' is damaged"),
        ("pairs/search/train.parquet", scramble, "train.parquet' is damaged"),
        ("pairs/search/train.parquet", Path.unlink, "train.parquet' is missing"),
        ("pairs/search/valid.parquet", cut, "valid.parquet' is damaged"),
        ("frequencies/search/candidates.parquet", cut, "candidates.parquet' is damaged"),
        ("known/search/candidates.values.npy", cut, "candidates.values.npy' is damaged"),
        ("known/search/candidates.offsets.npy", Path.unlink, "candidates.offsets.npy' is missing"),
        ("store/product/title.values.npy", empty, "title.values.npy' is damaged"),
        ("store/product/title.values.npy", scramble, "title.values.npy' is damaged"),
    ],
)
def test_a_prepared_dataset(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage, message: str
) -> None:
    damage(shop / name)
    place = [f"--set=dataset.path={shop}", "--set=trainer.steps=1", "--set=runtime.threads=1"]
    said = refused(lambda: train([*FILES, *place, "--output", str(tmp_path / "run")]), capsys)
    assert message in said
    assert "prepare again" in said


@pytest.mark.parametrize("name", ["entities/product.parquet", "vocabulary/category.parquet"])
@pytest.mark.parametrize("damage", [cut, scramble])
def test_a_prepared_dataset_that_is_judged_on(
    run: Path, shop: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage
) -> None:
    damage(shop / name)
    said = refused(lambda: evaluate([str(run), f"--set=dataset.path={shop}"]), capsys)
    assert f"{Path(name).name}' is damaged" in said
    assert "prepare again" in said
    assert not list(run.glob("evaluation/*"))


@pytest.mark.parametrize("name", ["mined.json", "search/candidates.values.npy", "search/candidates.offsets.npy"])
@pytest.mark.parametrize("damage", [cut, empty])
def test_mined_negatives(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage
) -> None:
    damage(run / "mined" / name)
    mined = f"negatives.sources=[{{kind='in_batch'}}, {{kind='mined', path='{run / 'mined'}'}}]"
    overrides = [f"--set={override}" for override in [*debug_overrides(root), "trainer.steps=1", mined]]
    said = refused(lambda: train([*FILES, *overrides, "--output", str(tmp_path / "new")]), capsys)
    assert "is damaged" in said
    assert "mine again" in said
