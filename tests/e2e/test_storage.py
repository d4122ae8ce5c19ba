"""prepare -> train -> evaluate -> mine -> compare with data and runs on S3, each on another machine; as on a disk."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import Fault, Proxy, contents, make_bucket, only_here, s3_behind_proxy
from tests.raw_shop import make_schema, write_raw
from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from tests.tiny_run import StoppedError, stopping
from torchrec_mt.compare import main as compare
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import prepare, relative_paths
from torchrec_mt.data.preparation.sources import all_sources, describe_files
from torchrec_mt.data.sources import materialise
from torchrec_mt.data.sources.files import Files
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.mine import main as mine
from torchrec_mt.prepare import main as prepare_program
from torchrec_mt.runs import PARTS
from torchrec_mt.storage import fetch, file_system, push
from torchrec_mt.train import main as train
from torchrec_mt.training.checkpoints.commit import read_commit
from torchrec_mt.training.checkpoints.files import Files as CheckpointFiles
from torchrec_mt.twins import main as twins

DATA, RUN = "s3://shop/prepared/debug", "s3://shop/runs/one"
SHORT = ("trainer.steps=12", "trainer.validations=2", "trainer.validation_anchors=50", "checkpoint.every=4")
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


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


@pytest.fixture
def machine(proxy: Proxy, machines: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Changes over to a machine of this name: it has a cache of its own."""
    proxy.forget()

    def change(name: str) -> None:
        only_here(monkeypatch, proxy, machines / name)

    return change


@pytest.fixture(scope="module")
def remote(root: Path, proxy: Proxy, machines: Path) -> dict[str, Any]:
    """The debug shop prepared on one machine, a short run trained on another and to its end on a third."""
    printed: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        only_here(patch, proxy, machines / "preparing")
        proxy.faults = [Fault("PUT", "prepared/debug/pairs", 503, 2), Fault("PUT", "prepared/debug/store", "refuse", 2)]
        assert prepare_program(arguments(root, f"dataset.path={DATA}")) == 0
        only_here(patch, proxy, machines / "training")
        proxy.faults = [Fault("GET", "manifest.json", 500), Fault("GET", "prepared/debug/store", "cut", 2)]
        proxy.faults += [Fault("PUT", "checkpoints/step-0000000004/rank", 429, 2), Fault("GET", "list-type", 503)]
        proxy.faults += [Fault("PUT", "checkpoints/step-0000000006/checkpoint.json", "refuse", 2)]
        with stopping("term", 8):
            assert train([*arguments(root, f"dataset.path={DATA}", *SHORT), "--output", RUN]) == 0
        printed["faults left"] = sum(fault.times for fault in proxy.faults)
        only_here(patch, proxy, machines / "resuming")
        proxy.faults = [Fault("GET", "checkpoints/step-0000000008/rank", "cut"), Fault("HEAD", "checkpoints", 500, 2)]
        proxy.faults += [Fault("POST", "delete", 503), Fault("GET", "checkpoints/step-0000000008/state", "cut")]
        assert train(["--resume", RUN]) == 0
        printed["faults left"] += sum(fault.times for fault in proxy.faults)
    return printed


@pytest.fixture(scope="module")
def local(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a disk."""
    run = tmp_path_factory.mktemp("local") / "run"
    assert train([*arguments(root, *SHORT), "--output", str(run)]) == 0
    return run


def arguments(root: Path, *overrides: str) -> list[str]:
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *overrides])]


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "ms/" not in key and "second" not in key} for line in lines]


def kept(run: str) -> dict[str, Any]:
    """By checkpoint of a run: its marks and the checksums of its tensors."""
    folder, found = CheckpointFiles(f"{run}/checkpoints"), {}
    for name in folder.names():
        commit = read_commit(folder, name)
        tensors = sorted(file.xxh3_128 for rank, file in commit.files.items() if rank.startswith("rank-"))
        found[name] = (commit.marks, tensors)
    return found


def objects(folder: str) -> dict[str, str]:
    """What lies below it in the bucket, each with its tag."""
    files = file_system(RUN)[0]
    files.invalidate_cache()
    return {name: about["ETag"] for name, about in files.find(f"shop/{folder}", detail=True).items()}


def test_the_same_dataset_run_and_judgement_as_on_a_disk(
    remote: dict[str, Any],
    local: Path,
    root: Path,
    tmp_path: Path,
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    proxy: Proxy,
) -> None:
    assert remote["faults left"] == 0
    machine("looking")
    assert PreparedDataset.open(DATA).manifest.digest == PreparedDataset.open(root / "debug").manifest.digest
    assert losses(fetch(RUN, parts=PARTS)) == losses(local)
    assert not (fetch(RUN, parts=PARTS) / "checkpoints").exists(), "they lie at the URL only"
    assert kept(RUN) == kept(str(local))
    machine("evaluating")
    proxy.faults = [Fault("GET", "runs/one/checkpoints/.*rank", "cut"), Fault("PUT", "evaluation", 503)]
    capsys.readouterr()
    assert evaluate([RUN, "--json"]) == 0
    far = json.loads(capsys.readouterr().out)
    assert evaluate([str(local), "--json"]) == 0
    near = json.loads(capsys.readouterr().out)
    assert far == near
    assert sum(fault.times for fault in proxy.faults) == 0

    machine("comparing")
    proxy.asked.clear()
    assert compare([RUN, str(local), "--json"]) == 0
    assert proxy.count("GET", "runs/one/evaluation/.*parquet") == 1
    assert proxy.count("GET", "runs/one/checkpoints") == 0, "more than is needed was fetched"
    compared = json.loads(capsys.readouterr().out)
    assert compared["tasks"]
    assert all(not row["difference"] for task in compared["tasks"].values() for row in task["metrics"].values())

    machine("mining")
    assert mine([RUN, "--json", "--depth=50"]) == 0
    far = json.loads(capsys.readouterr().out)
    assert mine([str(local), "--json", "--depth=50"]) == 0
    assert far == json.loads(capsys.readouterr().out)
    machine("training on what was mined")
    sources = f"negatives.sources=[{{kind='in_batch'}},{{kind='mined',path='{RUN}/mined',count=8}}]"
    command = arguments(root, f"dataset.path={DATA}", "trainer.steps=1", sources)
    assert train([*command, "--output", str(tmp_path / "run"), "--init-from", RUN]) == 0
    assert json.loads((tmp_path / "run/init.json").read_text())["run"] == RUN
    assert contents(fetch(f"{RUN}/mined")) == contents(local / "mined")


def test_twins_of_a_run_at_a_url(
    remote: dict[str, Any], local: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("twins")
    capsys.readouterr()
    assert twins([RUN, "--tasks", "search", "--json"]) == 0
    far = json.loads(capsys.readouterr().out)
    assert twins([str(local), "--tasks", "search", "--json"]) == 0
    near = json.loads(capsys.readouterr().out)
    assert far["tasks"] == near["tasks"]
    assert (far["run"], far["twins"]["search"]["run"]) == (RUN, f"{RUN}/twins/search")
    assert kept(f"{RUN}/twins/search") == kept(str(local / "twins/search"))
    there = objects("runs/one/twins")
    assert "shop/runs/one/twins/comparison.json" in there

    machine("twins again")
    assert twins([RUN, "--tasks", "search"]) == 0
    assert "twin of search: trained before, kept" in capsys.readouterr().err
    again = objects("runs/one/twins")
    assert {name for name in there if again.get(name) != there[name] and "/evaluation/" not in name} == set()
    assert not (fetch(RUN, parts=PARTS) / "twins/search").exists(), "twins are runs of their own"


def test_an_earlier_run_stays_unless_it_may_go(
    remote: dict[str, Any], root: Path, machine: Machine, capsys: pytest.CaptureFixture[str], proxy: Proxy
) -> None:
    machine("training again")
    command = [*arguments(root, f"dataset.path={DATA}", "trainer.steps=2", "trainer.validations=2"), "--output", RUN]
    assert exit_code_of(lambda: train(command)) == 2
    assert "holds an earlier run: give another --output, or --overwrite" in capsys.readouterr().err
    assert proxy.count("PUT") == proxy.count("DELETE") == 0
    # The first push must not fail, and until then the earlier run is as it was.
    before = objects("runs/one")
    proxy.faults = [Fault("HEAD", "checkpoints/step-0000000008/checkpoint.json", 403)]
    assert exit_code_of(lambda: train([*command, "--overwrite"])) == 2
    assert "no right to it, the server said 403" in capsys.readouterr().err
    assert objects("runs/one") == before
    # One that fails on the way is made up for at the end.
    proxy.faults = [Fault("PUT", "runs/one/metrics.jsonl", 403, after=1)]
    assert exit_code_of(lambda: train([*command, "--overwrite"])) == 0
    assert sum(fault.times for fault in proxy.faults) == 0
    assert "warning: not written now, but tried again later: 's3://shop/runs/one/" in capsys.readouterr().err
    machine("evaluating")  # it has a copy of the earlier run, and its judgement
    run = fetch(RUN, mark="config.json")
    assert json.loads((run / "training.json").read_text())["steps"] == 2
    assert not (run / "evaluation").exists()
    assert not file_system(RUN)[0].exists("shop/runs/one/mined")
    assert kept(RUN).keys() == {"step-0000000001", "step-0000000002"}


def test_the_next_try_of_a_job_goes_on_on_another_machine(
    remote: dict[str, Any], root: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a-job")
    settings = ("trainer.steps=6", "trainer.validations=1", "trainer.validation_anchors=50", "checkpoint.every=2")
    command = [*arguments(root, f"dataset.path={DATA}", *settings), "--output", "s3://shop/runs/tried"]
    machine("first try")
    with stopping("fail", 5), pytest.raises(StoppedError):
        train(command)
    machine("next try")
    assert train(command) == 0
    assert proxy.count("GET", "tried/checkpoints/step-0000000004/rank") > 0
    assert "step-0000000006" in kept("s3://shop/runs/tried")
    machine("looking")
    run = fetch("s3://shop/runs/tried", mark="config.json")
    assert json.loads((run / "training.json").read_text())["steps"] == 6


def test_two_ranks_of_a_machine_share_a_copy(
    remote: dict[str, Any], root: Path, machine: Machine, proxy: Proxy, machines: Path
) -> None:
    machine("two ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = arguments(root, f"dataset.path={DATA}", "trainer.steps=4", "trainer.validations=1")
    command = [*launch, "-m", "torchrec_mt.train", *settings, "--output", "s3://shop/runs/two", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["run"] == "s3://shop/runs/two"
    assert proxy.count("GET", "prepared/debug/manifest.json") == 1
    machine("two ranks again")
    command = [*launch, "-m", "torchrec_mt.train", "--resume", "s3://shop/runs/two", "--set=trainer.steps=6", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    machine("evaluating")
    assert json.loads((fetch("s3://shop/runs/two", mark="config.json") / "training.json").read_text())["steps"] == 6


def test_machines_that_train_together_share_nothing_else(
    remote: dict[str, Any], root: Path, machine: Machine, tmp_path: Path
) -> None:
    machine("of rank ")
    program = tmp_path / "train.py"
    program.write_text(
        "import os\nfrom torchrec_mt.errors import run_program\nfrom torchrec_mt.train import main\n"
        "os.environ['TORCHREC_MT_CACHE'] += os.environ['RANK']\nrun_program(main)\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    settings = arguments(root, f"dataset.path={DATA}", "trainer.steps=2", "trainer.validations=1")
    run = "s3://shop/runs/apart"
    for command in ([*settings, "--output", run], ["--resume", run, "--set=trainer.steps=4"]):
        done = subprocess.run([*launch, *command, "--json"], capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 4
    assert kept(run).keys() == {"step-0000000002", "step-0000000004"}


def test_where_nothing_can_be_written_nothing_is_trained(
    root: Path, machine: Machine, capsys: pytest.CaptureFixture[str], proxy: Proxy
) -> None:
    machine("nowhere")
    file_system("s3://shop/strange")[0].pipe_file("shop/strange/notes.txt", b"mine")
    for url, message in (
        ("s3://no-such-bucket/run", "there is no such bucket"),
        ("s3://shop/strange", "holds something else (no config.json, but notes.txt)"),
        ("s3://", "names nothing in a storage"),
    ):
        assert exit_code_of(partial(train, [*arguments(root, *SHORT), "--output", url])) == 2
        assert message in capsys.readouterr().err
    for program, given in ((evaluate, "s3://shop/none"), (mine, "s3://shop/none"), (compare, "s3://shop/none")):
        assert exit_code_of(partial(program, [given, *([given] if program is compare else [])])) == 2
        assert "'s3://shop/none' holds no config.json" in capsys.readouterr().err
    assert exit_code_of(lambda: train(arguments(root, "dataset.path=s3://shop/none"))) == 2
    assert "'s3://shop/none' holds no manifest.json" in capsys.readouterr().err


def test_raw_tables_by_url(tmp_path: Path, machine: Machine, proxy: Proxy) -> None:
    """The folder of raw tables as a URL, and single tables by URL; the same dataset, whatever machine prepares it."""
    machine("uploading")
    raw, schema = write_raw(tmp_path / "raw"), make_schema()
    push(raw, "s3://shop/raw")
    file_system("s3://shop/raw")[0].pipe_file("shop/raw/other/large.parquet", b"not asked for")
    expected = prepare(schema, name="tiny", raw=raw, output=tmp_path / "near").dataset
    for name in ("preparing", "preparing again"):
        machine(name)
        source = Files(kind="files", root="s3://shop/raw")
        copy, print_of_source = materialise(source, tmp_path / "unused", relative_paths(schema))
        assert not (copy / "other").exists()
        found = prepare(schema, name="tiny", raw=copy, output=tmp_path / "far", source_fingerprint=print_of_source)
        assert found.fresh == (name == "preparing"), "on another machine it is the same input"
        assert found.dataset.manifest.digest == expected.manifest.digest
        assert found.dataset.manifest.sources.keys() == expected.manifest.sources.keys()


@pytest.mark.parametrize("path", ["s3://shop/raw/products.parquet", "s3://shop/raw/prod*.parquet"])
def test_a_table_by_url(path: str, tmp_path: Path, machine: Machine) -> None:
    machine("uploading")
    raw = write_raw(tmp_path / "raw")
    push(raw, "s3://shop/raw")
    machine(f"reading {path[-12:-8]}")
    schema = make_schema()
    expected = prepare(schema, name="tiny", raw=raw, output=tmp_path / "near").dataset.manifest.digest
    schema = replace(schema, entities=schema.entities | {"product": replace(schema.entities["product"], path=path)})
    sources = all_sources(schema, raw)
    assert "s3://shop/raw/products.parquet" in describe_files(sources, raw)
    assert prepare(schema, name="tiny", raw=raw, output=tmp_path / "far").dataset.manifest.digest == expected
