"""The doctor: every finding from injected facts, dying children, and one honest look at this installation."""

import errno
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from torchrec_mt import checkup, doctor
from torchrec_mt.checkup import GB, Build, Check, Child, Commands, Distribution

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = Commands(python="py", root=Path("/repo"))
INSTALL_CPU = "cd /repo && py -m pip install -r requirements/cpu.txt"
INSTALL_CUDA = "cd /repo && py -m pip install -r requirements/cuda.txt"
REPLACE_CPU = f"py -m pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu && {INSTALL_CPU}"
REPLACE_CUDA = f"py -m pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu torch && {INSTALL_CUDA}"
STUB = Distribution("1.8.0", requires=("fbgemm-gpu-cpu",))
OK = Check(name="python", status="ok", detail="3.11")
WARNING = Check(name="disk", status="warning", detail="3.0 GB free", remedy="du " + "x" * 200)
ERROR = Check(name="versions", status="error", detail="not installed: torch", remedy=INSTALL_CPU)


def installed(**versions: str) -> dict[str, Distribution]:
    return {name.replace("_", "-"): Distribution(version) for name, version in versions.items()}


CPU_SET = installed(torch="2.13.0+cpu", torchrec="1.8.0", fbgemm_gpu_cpu="1.8.0")
CUDA_SET = installed(torch="2.13.0", torchrec="1.8.0", fbgemm_gpu="1.8.0")


@pytest.mark.parametrize("version", [(3, 10), (3, 12), (4, 11)])
def test_another_python_is_an_error(version: tuple[int, int]) -> None:
    check = checkup.check_python(version)
    assert (check.status, check.remedy) == ("error", "rm -r .venv && make install PYTHON=python3.11")
    assert check.detail == f"{version[0]}.{version[1]}, but only 3.11 is supported"


def test_the_tested_python_is_ok() -> None:
    assert checkup.check_python((3, 11)) == Check(name="python", status="ok", detail="3.11")


@pytest.mark.parametrize(
    "distributions",
    [CPU_SET, CPU_SET | {"fbgemm-gpu": STUB}, CPU_SET | installed(torch="2.13.0"), CUDA_SET],
    ids=["no stub", "stub", "default torch", "cuda"],
)
def test_a_working_trio_is_ok(distributions: dict[str, Distribution]) -> None:
    check = checkup.check_trio(distributions, COMMANDS)
    assert (check.status, check.remedy) == ("ok", None)
    assert "torchrec 1.8.0" in check.detail


@pytest.mark.parametrize(
    ("distributions", "detail", "remedy"),
    [
        ({}, "not installed: torch, torchrec, fbgemm-gpu-cpu", INSTALL_CPU),
        (
            {"fbgemm-gpu": STUB} | installed(torch="2.13.0", torchrec="1.8.0"),
            "not installed: fbgemm-gpu-cpu",
            INSTALL_CPU,
        ),
        (installed(torch="2.13.0", fbgemm_gpu="1.8.0"), "not installed: torchrec", INSTALL_CUDA),
        (CPU_SET | installed(fbgemm_gpu_cpu="1.9.0"), "fbgemm-gpu-cpu 1.9.0 are not known to work", INSTALL_CPU),
        (CPU_SET | installed(torch="2.14.1+cpu"), "known: torch 2.13.0, torchrec 1.8.0, fbgemm 1.8.0", INSTALL_CPU),
        (CUDA_SET | installed(torchrec="1.7.0"), "torchrec 1.7.0, fbgemm-gpu 1.8.0 are not known", INSTALL_CUDA),
        (CUDA_SET | CPU_SET, "both ship the module fbgemm_gpu", REPLACE_CPU),
        (CUDA_SET | installed(torch="2.13.0+cpu"), "does not load on a CPU build of torch", REPLACE_CPU),
    ],
)
def test_a_trio_that_cannot_work_is_an_error(distributions: dict[str, Distribution], detail: str, remedy: str) -> None:
    check = checkup.check_trio(distributions, COMMANDS)
    assert check.status == "error"
    assert detail in check.detail
    assert check.remedy == remedy


def test_without_a_repository_the_remedy_names_the_trio() -> None:
    check = checkup.check_trio({}, Commands(python="/a b/py", root=None))
    assert check.remedy == "'/a b/py' -m pip install --no-deps torch==2.13.0 torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0"


@pytest.mark.parametrize(
    ("found", "status", "detail"),
    [
        ({"numpy": "2.4.6", "rich": "15.0.0"}, "ok", "2 distributions as pinned"),
        ({"numpy": "2.4.6+local", "rich": "15.0.0"}, "ok", "2 distributions as pinned"),
        ({"numpy": "2.3.0", "rich": "15.0.0"}, "warning", "numpy 2.3.0 (pinned 2.4.6)"),
        ({"numpy": "2.3.0"}, "error", "not installed: rich 15.0.0"),
    ],
)
def test_pins(found: dict[str, str], status: str, detail: str) -> None:
    pins = {"torch": "2.13.0", "numpy": "2.4.6", "rich": "15.0.0"}  # torch is the trio's business
    check = checkup.check_pins(installed(**found), pins, "cpu", COMMANDS)
    assert (check.status, check.detail) == (status, detail)
    assert check.remedy == (None if status == "ok" else INSTALL_CPU)


def test_pins_are_not_compared_where_there_are_none() -> None:
    assert checkup.check_pins({}, None, "cpu", COMMANDS).status == "ok"


@pytest.fixture
def fake_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a torch and torchrec that load, and an fbgemm_gpu with the given body, before the real ones in a child."""

    def write(fbgemm: str) -> None:
        (tmp_path / "torch.py").write_text(
            "class cuda:\n    is_available = staticmethod(lambda: True)\n    device_count = staticmethod(lambda: 1)\n"
            "    get_device_name = staticmethod(lambda i: 'H100')\ndef get_num_threads(): return 7\n"
        )
        (tmp_path / "torchrec.py").write_text("")
        (tmp_path / "fbgemm_gpu.py").write_text(fbgemm)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


SYMBOL = "/venv/fbgemm_gpu_py.so: undefined symbol: _ZN3c104impl3cow"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (f"raise OSError({SYMBOL!r})", f"OSError: {SYMBOL}"),
        # A symbol bound on first use ends the process, past every `except`.
        (
            f"import os; os.write(2, b'python: symbol lookup error: {SYMBOL}'); os._exit(127)",
            f"python: symbol lookup error: {SYMBOL}",
        ),
        ("import os; os.kill(os.getpid(), 11)", "killed by signal 11 (Segmentation fault): it said nothing"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ],
    ids=["raises", "symbol lookup error", "crashes", "lacks a module"],
)
def test_an_fbgemm_that_dies_takes_only_the_child_along(
    body: str, complaint: str, fake_modules: Callable[[str], None]
) -> None:
    fake_modules(body)
    check = checkup.check_import(doctor.run_child(doctor.IMPORT), OK, "cpu", COMMANDS)
    assert check == Check(name="import", status="error", detail=complaint, remedy=REPLACE_CPU)


def test_a_wrong_trio_and_the_import_it_breaks_have_one_remedy() -> None:
    check = checkup.check_import(Child(1, "", f"OSError: {SYMBOL}\n"), ERROR, "cpu", COMMANDS)
    assert (check.status, check.remedy) == ("error", ERROR.remedy)


def test_a_page_of_a_symbol_is_cut() -> None:
    assert len(Child(1, "", "undefined symbol: " + "x" * 5000).complaint) == 300


def test_with_a_dying_fbgemm_the_other_checks_are_still_made(
    fake_modules: Callable[[str], None], tmp_path: Path
) -> None:
    fake_modules(f"raise OSError({SYMBOL!r})")
    status = {check.name: check.status for check in doctor.examine(tmp_path, ROOT)}
    names = ["python", "versions", "pins", "import", "devices", "cores", "memory", "disk", "loopback"]
    assert list(status) == names
    assert status["import"] == "error"
    assert status["python"] == "ok"


def test_the_child_reports_devices_and_threads(fake_modules: Callable[[str], None]) -> None:
    fake_modules("")
    child = doctor.run_child(doctor.IMPORT)
    assert json.loads(child.stdout) == {"cuda": ["H100"], "threads": 7}
    assert checkup.check_import(child, OK, "cpu", COMMANDS).status == "ok"


def test_a_child_that_hangs_is_ended() -> None:
    script = "import sys, time; print('waiting for rank 1', file=sys.stderr, flush=True); time.sleep(60)"
    child = doctor.run_child(script, seconds=1)
    assert child.code is None
    assert child.complaint == "no answer in time; last line: waiting for rank 1"
    assert checkup.check_rendezvous(child).remedy == "export GLOO_SOCKET_IFNAME=lo"


@pytest.mark.parametrize(
    ("cuda", "driver", "build", "status", "remedy"),
    [
        ([], False, "cpu", "ok", None),
        (["H100", "H100"], True, "cuda", "ok", None),
        (["H100"], True, "cpu", "warning", REPLACE_CUDA),
        ([], True, "cpu", "warning", REPLACE_CUDA),
        ([], True, "cuda", "warning", "nvidia-smi   # says what is wrong"),
    ],
)
def test_devices(cuda: list[str], driver: bool, build: Build, status: str, remedy: str | None) -> None:
    check = checkup.check_devices(cuda, driver, build, COMMANDS)
    assert (check.status, check.remedy) == (status, remedy)
    if cuda:
        assert f"{len(cuda)} x CUDA (H100)" in check.detail


@pytest.mark.parametrize(
    ("threads", "status", "remedy"),
    [(None, "ok", None), (2, "ok", None), (3, "warning", "export OMP_NUM_THREADS=2")],
)
def test_cores(threads: int | None, status: str, remedy: str | None) -> None:
    check = checkup.check_cores(2, threads)
    assert (check.status, check.remedy) == (status, remedy)


@pytest.mark.parametrize(("available", "status"), [(2 * GB, "ok"), (2 * GB - 1, "warning"), (0, "warning")])
def test_memory(available: int, status: str) -> None:
    assert checkup.check_memory(available).status == status


@pytest.mark.parametrize(
    ("free", "status"),
    [(5 * GB, "ok"), (5 * GB - 1, "warning"), (1 * GB, "warning"), (1 * GB - 1, "error"), (0, "error")],
)
def test_disk(free: int, status: str) -> None:
    check = checkup.check_disk(Path("/some where"), free)
    assert check.status == status
    assert (check.remedy is None) == (status == "ok")
    assert check.remedy is None or "'/some where'" in check.remedy


def test_a_loopback_that_is_down_is_an_error() -> None:
    check = checkup.check_port(OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"))
    assert (check.status, check.remedy) == ("error", "ip link set lo up")
    assert "Cannot assign requested address" in check.detail


def test_a_port_of_this_machine_can_be_bound() -> None:
    port = doctor.free_port()
    assert isinstance(port, int)
    assert checkup.check_port(port).status == "ok"


@pytest.mark.slow
def test_ranks_that_cannot_meet_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    check = checkup.check_rendezvous(doctor.run_child(doctor.RENDEZVOUS, str(doctor.free_port()), "10"))
    assert (check.status, check.remedy) == ("error", "export GLOO_SOCKET_IFNAME=lo")


@pytest.mark.parametrize(
    ("checks", "code"), [([OK], 0), ([OK, WARNING], 0), ([OK, WARNING, ERROR], 1)], ids=["ok", "warning", "error"]
)
def test_exit_code_and_json(
    checks: list[Check], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda folder, root: checks)
    assert doctor.main(["--json"]) == code
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["ok"] is (code == 0)
    assert printed["checks"] == [
        {"name": c.name, "status": c.status, "detail": c.detail, "remedy": c.remedy} for c in checks
    ]
    assert captured.err == ""


@pytest.mark.parametrize("rich", [True, False])
def test_every_remedy_is_printed_in_one_piece(
    rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda folder, root: [OK, WARNING, ERROR])
    if not rich:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert f"warning: disk: 3.0 GB free\n  to mend it: {WARNING.remedy}\n" in out
    assert f"error: versions: not installed: torch\n  to mend it: {INSTALL_CPU}\n" in out
    assert "python" in out


def test_pins_are_read_by_normalised_name(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text(
        "# a==1\ntorch==2.13.0\nJinja2==3.1.6\nibis-framework[duckdb]==12.0.0\na_B.c==1 ; x\n"
    )
    expected = {"torch": "2.13.0", "jinja2": "3.1.6", "ibis-framework": "12.0.0", "a-b-c": "1"}
    assert doctor.read_pins(tmp_path / "base.txt") == expected


def test_the_requirement_sets_pin_the_trio_that_works() -> None:
    trio = checkup.WORKING_TRIOS[-1]
    base, cpu, cuda = (doctor.read_pins(ROOT / "requirements" / f"{name}.txt") for name in ("base", "cpu", "cuda"))
    assert (base["torch"], base["torchrec"]) == (trio["torch"], trio["torchrec"])
    assert cpu == {"fbgemm-gpu-cpu": trio["fbgemm"]}
    assert cuda == {"fbgemm-gpu": trio["fbgemm"]}
    stub = tomllib.loads((ROOT / "requirements/stubs/fbgemm-gpu/pyproject.toml").read_text())["project"]
    assert stub["version"] == trio["fbgemm"]
    assert stub["dependencies"] == [f"fbgemm-gpu-cpu=={trio['fbgemm']}"]


def test_this_installation_is_healthy() -> None:
    program = [sys.executable, "-m", "torchrec_mt.doctor", "--json"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    printed = json.loads(done.stdout)
    assert [check for check in printed["checks"] if check["status"] == "error"] == []
    assert (done.returncode, printed["ok"]) == (0, True)
    assert printed["checks"][-1]["name"] == "gloo"
