"""train -> mine -> train on what was mined, on the debug shop; and what mining refuses."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.shop import FILES, debug_config, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.mined import MinedFolder
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import exit_code_of
from torchrec_mt.mine import main as mine
from torchrec_mt.retrieval.encode import anchors_of, encode
from torchrec_mt.runs import RunFolder
from torchrec_mt.train import main as train
from torchrec_mt.training.trained import load_run_model

TASKS = {"search": ("query", "product"), "similar": ("product", "product"), "complement": ("product", "product")}
DEPTH, PER_ANCHOR, MARGIN = 400, 5, 0.05


def arguments(root: Path, *overrides: str) -> list[str]:
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *overrides])]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, mined."""
    path = tmp_path_factory.mktemp("mined") / "run"
    assert train([*arguments(root, "trainer.steps=20", "trainer.validations=1"), "--output", str(path)]) == 0
    how = ["--depth", str(DEPTH), "--per-anchor", str(PER_ANCHOR), "--margin", str(MARGIN)]
    assert mine([str(path), *how]) == 0
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def vectors(root: Path, run: Path, dataset: PreparedDataset, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Anchors of a task and the catalogue, by the run's best model, float64."""
    config = debug_config(root)
    with runtime(config.runtime) as here:
        model = load_run_model(
            RunFolder.open(str(run)),
            dataset,
            config.dataset,
            config.model,
            config.loss,
            config.sharding,
            config.checkpoint,
            runtime=here,
        )
        collator, entity = Collator(dataset), TASKS[task][0]
        anchors, products = (np.arange(dataset.manifest.entities[name].count) for name in (entity, "product"))
        anchor_ND = encode(model, collator, entity, anchors, side=anchors_of(task), device=here.device)
        return anchor_ND.double().numpy(), encode(
            model, collator, "product", products, device=here.device
        ).double().numpy()


@pytest.mark.parametrize("task", list(TASKS))
def test_what_is_mined(root: Path, run: Path, task: str) -> None:
    """Every anchor of the task, walked one by one in float64."""
    dataset = prepared_debug_shop(root)
    links, known = MinedFolder.open(run / "mined").of_task(dataset, task), dataset.known_candidates(task)
    anchor_ND, candidate_ND = vectors(root, run, dataset, task)
    trained = dataset.anchor_frequencies(task) > 0
    found = 0
    for row in range(len(trained)):
        mined_L, known_L = (x.of(np.array([row]))[1] for x in (links, known))
        found += len(mined_L)
        assert len(mined_L) <= PER_ANCHOR
        assert trained[row] or len(mined_L) == 0
        assert not set(mined_L) & set(known_L)
        assert TASKS[task][0] != "product" or row not in mined_L
        if not trained[row]:
            continue
        score_N = candidate_ND @ anchor_ND[row]
        if TASKS[task][0] == "product":
            score_N[row] = -np.inf
        limit = score_N[known_L].mean() - MARGIN
        assert (score_N[mined_L] <= limit + 1e-5).all()
        ranked = np.argsort(-score_N, kind="stable")[:DEPTH]
        good = [one for one in ranked if one not in known_L and score_N[one] <= limit][:PER_ANCHOR]
        # float32 scores may swap neighbours: as many and as high, if not the same.
        assert abs(len(good) - len(mined_L)) <= 1
        both = min(len(good), len(mined_L))
        np.testing.assert_allclose(np.sort(score_N[good])[-both:], np.sort(score_N[mined_L])[-both:], atol=1e-4)
    assert found > trained.sum(), "few were found, so little was looked at"
    about = json.loads((run / "mined/mined.json").read_text())
    assert about["tasks"][task]["negatives"] == found
    assert about["settings"] == {"depth": DEPTH, "per_anchor": PER_ANCHOR, "margin": MARGIN}


def test_training_takes_what_was_mined(root: Path, run: Path, tmp_path: Path) -> None:
    sources = f'[{{kind="in_batch"}}, {{kind="uniform", count=64}}, {{kind="mined", path="{run / "mined"}", count=3}}]'
    overrides = [f"negatives.sources={sources}", "trainer.steps=12", "trainer.validations=1", "trainer.log_every=1"]
    assert train([*arguments(root, *overrides), "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if line["kind"] == "train"]
    assert len(losses) == 12
    assert all(math.isfinite(line[f"loss/{task}"]) for line in losses for task in TASKS)
    # A run that was trained on mined negatives is mined again like any other, also elsewhere.
    assert mine([str(tmp_path / "run"), "--output", str(tmp_path / "second"), "--json"]) == 0
    assert set(MinedFolder.open(tmp_path / "second").about["tasks"]) == set(TASKS)


def test_mining_again_gives_the_same_and_says_so_as_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--depth", str(DEPTH), "--per-anchor", str(PER_ANCHOR), "--margin", str(MARGIN)]
    assert mine([str(run), *how, "--output", str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "mined/mined.json").read_text())
    for task in TASKS:
        part = f"{task}/candidates.values.npy"
        assert (tmp_path / "again" / part).read_bytes() == (run / "mined" / part).read_bytes()


def test_two_ranks_mine_the_same_and_one_of_them_speaks(run: Path, tmp_path: Path) -> None:
    """Each mines for half of the anchors; tables whole on some rank, or last bits of vectors would differ."""
    how = ["--depth", str(DEPTH), "--per-anchor", str(PER_ANCHOR), "--margin", str(MARGIN)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "torchrec_mt.mine", str(run), *how, "--set=sharding.default=table_wise"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "two")], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("mined: ") == done.stdout.count("hard negatives") == 1
    alone, two = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (run / "mined", tmp_path / "two")
    )
    assert two == alone


@pytest.mark.parametrize(
    "how",
    [
        ["--depth", "0"],
        ["--depth", "5", "--per-anchor", "6"],
        ["--per-anchor", "0"],
        ["--margin", "2.5"],
        ["--margin", "nan"],
    ],
)
def test_settings_that_make_no_sense(run: Path, capsys: pytest.CaptureFixture[str], how: list[str]) -> None:
    assert exit_code_of(lambda: mine([str(run), *how])) == 2
    assert "needs 100000 >= --depth >= --per-anchor >= 1 and a --margin from -2 to 2" in said(capsys)


def test_what_is_no_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        mine([str(run), "--depth", "deep"])
    assert stopped.value.code == 2
    assert "invalid int value: 'deep'" in said(capsys)


def test_folders_that_are_not_ours(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert exit_code_of(lambda: mine([str(run), "--output", str(tmp_path)])) == 2
    assert "exists and holds no mined negatives" in said(capsys)
    assert exit_code_of(lambda: mine([str(run), "--output", str(tmp_path / "notes.txt")])) == 2
    assert "exists and holds no mined negatives" in said(capsys)
    assert exit_code_of(lambda: mine([str(run), "--output", str(tmp_path / "notes.txt" / "deep")])) == 2
    assert "notes.txt" in said(capsys)
    assert exit_code_of(lambda: mine([str(tmp_path)])) == 2
    assert "is no run folder" in said(capsys)
    assert exit_code_of(lambda: mine([str(tmp_path / "nowhere")])) == 2
    assert "nowhere" in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_without_a_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "mined"))
    assert exit_code_of(lambda: mine([str(tmp_path / "run")])) == 2
    assert "no checkpoint under" in said(capsys)
    assert not (tmp_path / "run/mined").exists()


def test_mined_from_another_state_of_the_dataset(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "mined", tmp_path / "mined")
    mark = tmp_path / "mined/mined.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"digest": "another"}))
    source = f'negatives.sources=[{{kind="in_batch"}}, {{kind="mined", path="{tmp_path / "mined"}"}}]'
    command = [*arguments(root, source, "trainer.steps=2"), "--output", str(tmp_path / "run")]
    assert exit_code_of(lambda: train(command)) == 2
    assert "was mined from another state of the dataset" in said(capsys)
    shutil.rmtree(tmp_path / "mined")
    assert exit_code_of(lambda: train(command)) == 2
    assert "run `torchrec-mt mine RUN` and name the folder that it writes" in said(capsys)


def test_a_run_of_another_state_of_the_dataset(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("mined"))
    (tmp_path / "run/dataset.json").write_text('{"digest": "another"}')
    assert exit_code_of(lambda: mine([str(tmp_path / "run")])) == 2
    assert "was trained on another state of the dataset" in said(capsys)
