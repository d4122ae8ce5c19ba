"""`torchrec-mt prepare` given what it cannot use: refused before anything is written."""

from pathlib import Path

import pytest

from tests.shop import FILES
from torchrec_mt.errors import exit_code_of
from torchrec_mt.prepare import main as prepare


def refused(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert exit_code_of(lambda: prepare([*FILES, *(f"--set={override}" for override in overrides)])) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset.tables.tokens.dim=30", "tables.tokens.dim"),
        ("dataset.source.test_share=0.2", "dataset.split.test_from"),
        ("dataset.name=../../etc", "dataset.name = '../../etc'"),
        ("dataset.name=", "dataset.name = ''"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    assert said in refused(capsys, f"dataset.path={tmp_path / 'shop'}", override)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/", ".", ".."])
def test_a_path_that_names_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "here").mkdir()
    configs = [str(Path(file).resolve()) for file in FILES]
    monkeypatch.chdir(tmp_path / "here")
    assert exit_code_of(lambda: prepare([*configs, f"--set=dataset.path={path}"])) == 2
    assert "names no folder of its own" in capsys.readouterr().err
    assert [found.name for found in tmp_path.rglob("*")] == ["here"]


def test_a_slash_at_the_end_and_a_mended_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*FILES, f"--set=dataset.path={tmp_path}/shop/", "--set=dataset.source.events=5000"]
    assert prepare(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "shop.raw"]
    assert prepare(command) == 0
    spoilt = tmp_path / "shop/pairs/search/train.parquet"
    spoilt.write_bytes(b"PAR1")
    capsys.readouterr()
    assert prepare(command) == 0
    assert f"prepared anew: '{spoilt}' had 4 bytes" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("source", ["synthetic_shop", "files"])
def test_a_path_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    assert prepare([*FILES, f"--set=dataset.path={tmp_path}/shop", "--set=dataset.source.events=5000"]) == 0
    files = [f"dataset.source={{kind='files', root='{tmp_path}/shop.raw'}}"] if source == "files" else []
    capsys.readouterr()
    said = refused(capsys, "dataset.path=/proc/none/shop", "dataset.source.events=5000", *files)
    assert "dataset.path" in said
    assert "/proc/none/shop" in said
