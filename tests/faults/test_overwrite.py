"""`train --overwrite`: the earlier run stays until the new one is worth having; what is not ours is never touched."""

import json
from pathlib import Path

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.train import main as train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is evaluated; tests leave it as it is."""
    path = tmp_path_factory.mktemp("overwrite") / "run"
    assert train([*arguments(root, "trainer.steps=2"), "--output", str(path)]) == 0
    (path / "evaluation").mkdir()
    (path / "evaluation/metrics.json").write_text("{}")
    return path


def arguments(root: Path, *overrides: str) -> list[str]:
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *overrides])]


def content(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["trainer.metric=recall@5"], 2, "trainer.metric = 'recall@5' is none of"),
        (["trainer.metric=find/recall@10"], 2, "trainer.metric = 'find/recall@10' is none of"),
        (["balancing.weights={serach=1.0}"], 2, "names 'serach'"),
        (["loss.tasks={serach={kind='bce'}}"], 2, "names 'serach'"),
        (["optim.dense_rate=1e30", "trainer.log_every=1", "trainer.validations=1"], 1, "lower optim.table_rate"),
        (["optim.dense_rate=1e30", "trainer.steps=1", "optim.schedule.warmup_steps=0"], 1, "are no finite numbers"),
    ],
)
def test_a_failure_leaves_the_earlier_run(
    root: Path, run: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], code: int, message: str
) -> None:
    before = content(run)
    command = [*arguments(root, "trainer.steps=20", *overrides), "--output", str(run), "--overwrite"]
    assert exit_code_of(lambda: train(command)) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert content(run) == before
    assert not list(run.parent.glob(".run.*"))
    if "the batch is in" in said:
        assert f"'{run}.offending_batch'" in said
        assert (run.with_name("run.offending_batch") / "rank-0.pt").is_file()


def test_the_mined_negatives_in_use_are_not_replaced(root: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    mined = f"negatives.sources=[{{kind='in_batch'}}, {{kind='mined', path='{run}/mined'}}]"
    assert exit_code_of(lambda: train([*arguments(root, mined), "--output", str(run), "--overwrite"])) == 2
    assert "which this training takes: give another --output" in capsys.readouterr().err
    assert content(run) == before


def test_a_new_run_takes_the_place(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*arguments(root, "trainer.steps=4", "trainer.validations=2"), "--output", str(run)]
    assert train(command) == 0
    (run / "evaluation").mkdir()
    (run / ".config.json.partial-77").write_text("a killed program's")
    (tmp_path / ".run.partial-killed").mkdir()
    assert train([*command, "--overwrite", "--set=trainer.steps=6"]) == 0
    assert [child.name for child in tmp_path.iterdir()] == ["run"]
    files = ["config.json", "dataset.json", "environment.json", "held.json", "metrics.jsonl", "plan.json"]
    files += ["model.json", "training.json"]
    assert sorted(child.name for child in run.iterdir()) == sorted([*files, "checkpoints", "tensorboard", "vocabulary"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [3, 6]
    assert json.loads((run / "training.json").read_text())["run"] == str(run)
    assert evaluate([str(run), "--set=evaluate.max_anchors=50"]) == 0


def test_checkpoints_in_a_folder_of_their_own(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are replaced with their run, and never those of another."""
    folder = tmp_path / "kept"
    command = arguments(root, "trainer.steps=2", "trainer.validations=1", f"checkpoint.folder={folder}")
    assert train([*command, f"--output={tmp_path / 'run'}"]) == 0
    before = content(folder)
    for flags in ([], ["--overwrite"]):
        assert exit_code_of(lambda flags=flags: train([*command, f"--output={tmp_path / 'other'}", *flags])) == 2
        assert f"checkpoint.folder = '{folder}' holds checkpoints of another run" in capsys.readouterr().err
    assert content(folder) == before
    assert train([*command, "--set=trainer.steps=3", f"--output={tmp_path / 'run'}", "--overwrite"]) == 0
    assert [path.name for path in folder.iterdir()] == ["step-0000000003"]


@pytest.mark.parametrize("machine", [None, "{}", '{"versions": {}}'])
def test_a_config_json_alone_makes_no_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: str | None
) -> None:
    for name, text in {"config.json": '{"hf": 1}', "model.safetensors": "precious", ".git/HEAD": "ref"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    if machine is not None:
        (tmp_path / "environment.json").write_text(machine)
    before = content(tmp_path)
    for flags in ([], ["--overwrite"]):
        assert exit_code_of(lambda flags=flags: train([*arguments(root), "--output", str(tmp_path), *flags])) == 2
        assert "is no run folder of ours" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_run_with_somebody_s_file_in_it(root: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "thesis.tex").write_text("years of work")
    try:
        assert exit_code_of(lambda: train([*arguments(root), "--output", str(run), "--overwrite"])) == 2
        assert "move it away first (thesis.tex)" in capsys.readouterr().err
        assert (run / "thesis.tex").read_text() == "years of work"
        assert (run / "evaluation/metrics.json").exists()
    finally:
        (run / "thesis.tex").unlink()
