"""TorchX components and launch files: what TorchX accepts, what a component starts, what each scheduler is asked."""

import configparser
import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from torchx.runner import get_runner
from torchx.runner.config import apply, load_sections
from torchx.schedulers import get_scheduler_factories
from torchx.specs import AppDef
from torchx.specs.builders import materialize_appdef
from torchx.specs.file_linter import get_fn_docstring, validate
from torchx.specs.finder import get_component

from torchrec_mt import cli
from torchrec_mt.config import load_config

COMPONENTS = sorted(Path("components").glob("*.py"))
OVERLAYS = sorted(Path("launch/overlays").glob("*.toml"))
SETTINGS = sorted(Path("launch/torchx").glob("*.ini"))
GOLDEN = Path("tests/golden/torchx")
RANKED = ("train", "evaluate", "export", "mine")
REQUIRED = {
    "prepare": ["--config", "launch/demo.toml,launch/debug.toml"],
    "plan": ["--config", "launch/demo.toml,launch/debug.toml", "--cluster", "2x8xH100-80GB"],
    "train": ["--config", "launch/demo.toml,launch/debug.toml"],
    "evaluate": ["--run", "runs/demo"],
    "export": ["--run", "runs/demo"],
    "mine": ["--run", "runs/demo"],
    "compare": ["--first", "runs/a", "--second", "runs/b"],
}
EXTRA = {
    "plan": ["--set=dataset.name=a b", "--json"],
    "prepare": ["launch/overlays/cpu.toml", "--set=dataset.name=a b", "--permutation-check"],
    "train": [
        "launch/overlays/gpu_2x8.toml",
        "--set=trainer.epochs=2",
        "--set=dataset.name=a b",
        "--output",
        "runs/$x",
    ],
    "evaluate": ["--set=evaluate.split=valid", "--set=runtime.device=cpu", "--slices=product.brand,price"],
    "export": ["--task=search", "--model=last", "--set=runtime.device=cpu"],
    "mine": ["--depth=50", "--set=runtime.device=cpu"],
    "compare": ["--metric=recall@10", "--task=search"],
}


def app_of(program: str, *arguments: str) -> AppDef:
    """What `torchx run components/PROGRAM.py:PROGRAM ARGUMENTS` makes."""
    component = get_component(f"components/{program}.py:{program}")
    return materialize_appdef(component.fn, [*REQUIRED[program], *arguments])


def command_of(app: AppDef) -> list[str]:
    """The words of the program's command line, as a shell reads them; of the launcher too, where there is one."""
    role = app.roles[0]
    return shlex.split(role.args[1]) if role.entrypoint == "bash" else [role.entrypoint, *role.args]


@pytest.mark.parametrize("file", COMPONENTS, ids=lambda file: file.stem)
def test_torchx_accepts_the_component_and_shows_its_help(file: Path) -> None:
    assert validate(str(file), file.stem) == []
    component = get_component(f"{file}:{file.stem}")
    assert component.validation_errors == []
    short, arguments = get_fn_docstring(component.fn)
    assert "TIP" not in short
    assert all(text.strip() for text in arguments.values()), arguments


def test_components_are_of_programs_that_exist() -> None:
    assert {file.stem for file in COMPONENTS} == REQUIRED.keys()
    assert cli.PROGRAMS.keys() >= REQUIRED.keys()


@pytest.mark.parametrize("program", REQUIRED)
def test_the_program_reads_what_the_component_starts(program: str) -> None:
    """The slow twin: the program's own parser takes the command line word by word."""
    words = command_of(app_of(program, "--", *EXTRA[program]))
    at = words.index("-m")
    assert words[at + 1] == f"torchrec_mt.{program}"
    parser = importlib.import_module(words[at + 1]).build_parser()
    given = parser.parse_args(words[at + 2 :])
    assert given == parser.parse_args([*twin(program), *EXTRA[program]])
    assert words[:1] == (["torchrun"] if program in RANKED else ["python"])


def twin(program: str) -> list[str]:
    """What a person types for the same: positional arguments without their names and commas."""
    named = zip(REQUIRED[program][::2], REQUIRED[program][1::2], strict=True)
    words = [[name, value] if name == "--cluster" else value.split(",") for name, value in named]
    return [word for part in words for word in part]


@pytest.mark.parametrize("program", RANKED)
def test_sizes_and_retries_reach_the_role(program: str) -> None:
    sizes = ["-j", "2x8", "--cpu", "64", "--gpu", "8", "--memMB", "480000", "--max_retries", "3", "--env", "A=1,B=2"]
    role = app_of(program, *sizes, "--rdzv_port", "29999", "--mounts", "type=volume,src=runs,dst=/runs").roles[0]
    assert (role.num_replicas, role.min_replicas, role.max_retries) == (2, 2, 3)
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (64, 8, 480000)
    assert (role.env["A"], role.env["B"]) == ("1", "2")
    assert role.port_map == {"c10d": 29999}
    assert [(mount.src, mount.dst_path) for mount in role.mounts] == [("runs", "/runs")]
    words = shlex.split(role.args[1])
    asked = dict(zip(words[1::2], words[2::2], strict=False))
    assert (asked["--nnodes"], asked["--nproc_per_node"], asked["--rdzv_backend"]) == ("2", "8", "c10d")
    assert asked["--rdzv_endpoint"].endswith(":29999")


def test_an_experiment_has_no_second_run() -> None:
    component = get_component("components/compare.py:compare")
    app = materialize_appdef(component.fn, ["--first", "launch/grids/demo_methods.toml", "--", "--jobs", "2"])
    assert command_of(app)[-3:] == ["launch/grids/demo_methods.toml", "--jobs", "2"]


@pytest.mark.parametrize("program", ["prepare", "plan", "compare"])
def test_sizes_and_retries_of_a_single_process(program: str) -> None:
    sizes = ["--cpu", "16", "--memMB", "64000", "--max_retries", "1", "--env", "A=1"]
    role = app_of(program, *sizes, "--mounts", "type=bind,src=/srv,dst=/workspace/data,readonly").roles[0]
    assert (role.num_replicas, role.max_retries, role.env["A"]) == (1, 1, "1")
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (16, 0, 64000)
    assert [(mount.src_path, mount.dst_path, mount.read_only) for mount in role.mounts] == [
        ("/srv", "/workspace/data", True)
    ]


@pytest.mark.parametrize("program", REQUIRED)
def test_defaults_suffice_for_the_demo_and_ask_for_no_gpu(program: str) -> None:
    role = app_of(program).roles[0]
    assert role.resource.gpu == 0
    assert role.resource.memMB >= 2048  # dist.ddp's own 1024 is too little to import torch on two ranks
    assert role.max_retries == 0


def test_one_machine_may_go_on_where_two_began() -> None:
    role = app_of("train", "-j", "1:2x1").roles[0]
    assert (role.min_replicas, role.num_replicas) == (1, 2)
    assert " --nnodes 1:2 --nproc_per_node 1 " in role.args[1]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.stem)
@pytest.mark.parametrize("base", sorted(Path("launch").glob("*.toml")), ids=lambda file: file.stem)
def test_every_overlay_loads_on_every_config(base: Path, overlay: Path) -> None:
    first = [Path("launch/demo.toml")] if base.stem == "debug" else []
    config = load_config([*first, base, overlay])
    over = tomllib.loads(overlay.read_text())
    assert config.runtime.device == over["runtime"]["device"]
    assert config.runtime.timeout_minutes == over["runtime"]["timeout_minutes"]


@pytest.mark.parametrize("overlay", sorted(Path("launch/overlays").glob("gpu_*.toml")), ids=lambda file: file.stem)
def test_a_step_has_as_many_pairs_on_any_number_of_gpus(overlay: Path) -> None:
    machines, ranks = map(int, overlay.stem.removeprefix("gpu_").split("x"))
    config = load_config(["launch/demo.toml", overlay])
    assert machines * ranks * config.reader.batch_size == 8192


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda file: file.stem)
def test_settings_name_what_exists(settings: Path) -> None:
    read = configparser.ConfigParser()
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(settings)
    scheduler = read["cli:run"]["scheduler"]
    assert scheduler == settings.stem
    options = dict(get_scheduler_factories()[scheduler](session_name="_").run_opts())
    assert not read.has_section(scheduler) or set(read[scheduler]) <= options.keys()
    components = [section for section in read.sections() if section.startswith("component:")]
    for section in components:
        component = get_component(section.removeprefix("component:"))
        assert set(read[section]) <= set(get_fn_docstring(component.fn)[1]), section
    # Containers see nothing of this machine but what is mounted.
    if scheduler in ("local_docker", "kubernetes", "aws_batch"):
        assert len(components) == len(COMPONENTS)
        assert all("mounts" in read[section] for section in components)
    files = [re.search(r"--config (\S+)", line) for line in settings.read_text().splitlines()]
    named = [file for found in files if found for file in found[1].split(",")]
    assert named
    assert load_config(named).dataset.tasks


def request_of(info: Any) -> str:
    """What the scheduler would be asked, in its own form; local_cwd's has paths of this machine, so as JSON."""
    if info._scheduler != "local_cwd":
        return f"{info}\n"
    here = json.dumps(str(Path.cwd()))[1:-1]
    return json.dumps(dataclasses.asdict(info.request), indent=1).replace(here, "CWD") + "\n"


@pytest.mark.parametrize(
    ("program", "settings"),
    [("train", file) for file in SETTINGS]
    + [("prepare", Path("launch/torchx/kubernetes.ini")), ("evaluate", Path("launch/torchx/slurm.ini"))],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_requests_are_golden(
    program: str, settings: Path, monkeypatch: pytest.MonkeyPatch, update_golden: bool
) -> None:
    """Dry runs: nothing is submitted, no daemon and no network are asked."""
    monkeypatch.setenv("TORCHXCONFIG", str(settings))
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("PATH", "")  # no sinfo, no nvidia-smi: the same on every machine
    monkeypatch.delenv("LOGLEVEL", raising=False)
    monkeypatch.delenv("TORCHX_PARENT_RUN_ID", raising=False)
    monkeypatch.setattr("torchx.schedulers.ids.random_uint64", lambda: 2**63)
    options: dict[str, Any] = {}
    apply(settings.stem, options)
    with get_runner(component_defaults=load_sections("component")) as runner:
        arguments = [*REQUIRED[program], "--", *EXTRA[program]]
        component = f"components/{program}.py:{program}"
        info = runner.dryrun_component(component, arguments, settings.stem, cfg=options, workspace=None)
    file = GOLDEN / f"{settings.stem}_{program}.txt"
    found = request_of(info)
    if update_golden:
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda file: file.stem)
def test_the_command_line_reads_the_settings(settings: Path) -> None:
    """`torchx run --dryrun` with TORCHXCONFIG as the only setting, as docs/operations.md tells."""
    tools = Path(sys.executable).parent
    command = [str(tools / "torchx"), "run", "--dryrun", "components/train.py:train", "--config", "launch/demo.toml"]
    environment = os.environ | {"TORCHXCONFIG": str(settings), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{settings.stem}://torchx/" in done.stdout
    assert "torchrec_mt.train" in done.stdout
