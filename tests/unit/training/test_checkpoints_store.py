"""Which checkpoints stay, which is loaded, what is refused, and saving in the background. One rank."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError
from torchrec_mt.training.checkpoints.commit import DamagedCheckpointError
from torchrec_mt.training.checkpoints.files import Files
from torchrec_mt.training.checkpoints.layout import checksum
from torchrec_mt.training.checkpoints.staging import Staging
from torchrec_mt.training.checkpoints.store import CheckpointStore


class Kept:
    """A store of one tensor that holds the step."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(str(folder))
        self.store = CheckpointStore(folder, keep=keep)
        self.row_D = torch.zeros(5)

    def save(self, step: int, **named: Any) -> None:
        self.store.save(step, {"row": torch.full((5,), float(step))}, state={"step": step}, rank_state={}, **named)

    def newest(self) -> int | None:
        loaded = self.store.load_newest({"row": self.row_D})
        if loaded is None:
            return None
        assert loaded.state == {"step": loaded.step}
        assert torch.equal(self.row_D, torch.full((5,), float(loaded.step)))
        return loaded.step

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def kept(here: Runtime, tmp_path: Path) -> Iterator[Kept]:
    one = Kept(tmp_path / "checkpoints")
    yield one
    one.store.close()


def test_nothing_there(kept: Kept) -> None:
    assert kept.newest() is None
    assert kept.store.steps() == []
    with pytest.raises(UserError, match=r"no checkpoint at .*step-0000000007': train first"):
        kept.store.load({"row": kept.row_D}, step=7)
    with pytest.raises(UserError, match="is marked 'best'"):
        kept.store.load({"row": kept.row_D}, mark="best")


def test_the_newest_and_the_marked_stay(kept: Kept) -> None:
    for step, marks in ((1, ()), (2, ("best",)), (3, ()), (4, ("first",)), (5, ()), (6, ()), (7, ())):
        kept.save(step, marks=marks)
    assert kept.store.steps() == [7, 6, 4, 2]
    kept.save(8, marks=("best",))
    assert kept.store.steps() == [8, 7, 4]
    assert kept.folders() == ["step-0000000004", "step-0000000007", "step-0000000008"]
    assert kept.store.load({"row": kept.row_D}, mark="first").step == 4
    assert kept.store.load({"row": kept.row_D}, mark="best").step == 8
    assert kept.store.load({"row": kept.row_D}, step=7).step == 7


def test_the_last_saved_is_the_newest_whatever_its_step(kept: Kept) -> None:
    for step in (10, 20, 15):
        kept.save(step)
    assert kept.newest() == 15
    assert kept.store.steps() == [15, 20]


def test_a_step_again_takes_the_place_of_the_first(kept: Kept) -> None:
    kept.save(3)
    kept.store.save(3, {"other": torch.ones(2)}, state={}, rank_state={})
    assert kept.store.load_newest({"other": torch.zeros(2)}) is not None
    assert kept.folders() == ["step-0000000003"]
    assert len(list((kept.folder / "step-0000000003").iterdir())) == 4


def test_a_damaged_one_is_none_of_those_kept(kept: Kept) -> None:
    kept.save(1)
    kept.save(2)
    [data] = (kept.folder / "step-0000000002").glob("*.safetensors")
    data.write_bytes(data.read_bytes()[:-1])
    assert kept.newest() == 1
    kept.save(3)
    assert kept.store.steps() == [3, 1]
    (kept.folder / "step-0000000003/checkpoint.json").write_text("{}")
    kept.save(4)
    assert kept.folders() == ["step-0000000001", "step-0000000004"]


def test_leftovers_go_and_what_is_not_ours_stays(kept: Kept) -> None:
    kept.save(1)
    for name in (".step-0000000002.partial-abc", "step-0000000002", "step-0000000001", "mine"):
        (kept.folder / name).mkdir(exist_ok=True)
        (kept.folder / name / "rank-00000.abc.safetensors").write_bytes(b"half")
    assert kept.store.steps() == [1]
    assert kept.newest() == 1
    kept.save(2)
    assert kept.folders() == ["mine", "step-0000000001", "step-0000000002"]
    assert len(list((kept.folder / "step-0000000001").iterdir())) == 4


def test_another_format_is_refused_and_left_alone(kept: Kept) -> None:
    kept.save(1)
    file = kept.folder / "step-0000000001/checkpoint.json"
    body = json.loads(file.read_text()) | {"format": 2}
    del body["xxh3_128"]
    body["xxh3_128"] = checksum((json.dumps(body, indent=1) + "\n").encode())
    file.write_text(json.dumps(body, indent=1) + "\n")
    with pytest.raises(
        UserError, match=r"checkpoint\.json' was written by another version \(this one reads format 1\)"
    ):
        kept.newest()
    for step in (2, 3, 4):
        kept.save(step)
    assert kept.folders() == [f"step-000000000{step}" for step in (1, 3, 4)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"row": torch.zeros(6)}, r"holds 'row' as torch\.float32 \[5\], and torch\.float32 \[6\] is wanted"),
        ({"row": torch.zeros(5).half()}, r"and torch\.float16 \[5\] is wanted"),
        ({"row": torch.zeros(5), "new": torch.zeros(1)}, "holds no 'new'"),
        ({}, "also holds 'row'"),
    ],
)
def test_another_model_is_refused(kept: Kept, wanted: dict[str, Tensor], message: str) -> None:
    kept.save(1)
    kept.save(2)
    with pytest.raises(UserError, match=message) as caught:
        kept.store.load_newest(wanted)
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_part_may_be_loaded(kept: Kept) -> None:
    kept.store.save(1, {"a": torch.ones(2), "b": torch.ones(3)}, state={}, rank_state={})
    found = torch.zeros(2)
    kept.store.load_newest({"a": found}, partial=True)
    assert found.tolist() == [1, 1]


def test_what_cannot_be_saved(kept: Kept) -> None:
    with pytest.raises(ValueError, match="gives this back as something else"):
        kept.store.save(1, {}, state={"pair": (1, 2)}, rank_state={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.store.save(1, {}, state={}, rank_state={"best": float("nan")})
    with pytest.raises(ValueError, match="no rank holds some part of 'x'"):
        kept.store.save(1, {"x": Pieces((4,), torch.float32, [((0,), torch.ones(3))])}, state={}, rank_state={})
    with pytest.raises(ValueError, match=r"'x' is of torch\.complex64, which checkpoints do not hold"):
        kept.store.save(1, {"x": torch.ones(1, dtype=torch.complex64)}, state={}, rank_state={})
    halves = Pieces((2,), torch.float32, [((0,), torch.ones(1)), ((1,), torch.ones(1))])
    with pytest.raises(ValueError, match=r"one name in a file: \['x\[0\]', 'x\[1\]', 'x\[1\]'\]"):
        kept.store.save(1, {"x": halves, "x[1]": torch.ones(2)}, state={}, rank_state={})
    kept.save(1)
    assert kept.folders() == ["step-0000000001"]


def test_an_unknown_file_system(here: Runtime) -> None:
    with pytest.raises(UserError, match="'nowhere://x': nowhere:// is no kind of storage"):
        CheckpointStore("nowhere://x", keep=1)


def test_an_object_store(here: Runtime) -> None:
    kept = Kept("memory://bucket/run")
    for step in (1, 2, 2, 3):
        kept.save(step, background=step == 2)
    files = Files("memory://bucket/run")
    assert kept.newest() == 3
    assert files.names() == ["step-0000000002", "step-0000000003"]
    files.remove_file("step-0000000003/checkpoint.json")
    assert kept.newest() == 2
    kept.save(4)
    assert files.names() == ["step-0000000002", "step-0000000004"]
    kept.store.close()


def test_training_goes_on_while_a_save_runs(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is what there was when `save` was called; the next save waits; the same memory is used again."""
    may_write, write = threading.Event(), Files.write
    monkeypatch.setattr(Files, "write", lambda self, *given: may_write.wait(60) and write(self, *given))
    table_ND = torch.ones(6, 4)
    tensors = {"table": Pieces((6, 4), torch.float32, [((0, 0), table_ND[:, :2]), ((0, 2), table_ND[:, 2:])])}
    kept.store.save(1, tensors, state={}, rank_state={}, background=True)
    buffers = [buffer.data_ptr() for buffer in kept.store._staging._buffers.values()]
    table_ND.fill_(2)
    assert not kept.folder.exists() or not list(kept.folder.glob("step-*"))
    threading.Timer(0.1, may_write.set).start()
    kept.store.save(2, tensors, state={}, rank_state={}, background=True)
    assert [buffer.data_ptr() for buffer in kept.store._staging._buffers.values()] == buffers
    assert (kept.folder / "step-0000000001/checkpoint.json").exists()
    table_ND.fill_(3)
    kept.store.finish()
    for step in (1, 2):
        found_ND = torch.zeros(6, 4)
        kept.store.load({"table": found_ND}, step=step)
        assert found_ND.unique().tolist() == [step]


def test_a_late_tensor_may_change_once_its_copy_is_there(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    may_copy, copy = threading.Event(), np.copyto
    early_D, late_D = torch.ones(3), torch.ones(3)
    kept.store.reserve({"early": early_D, "late": late_D})

    def copyto(*given: Any) -> None:
        assert threading.current_thread() is threading.main_thread() or may_copy.wait(60)
        copy(*given)

    monkeypatch.setattr(np, "copyto", copyto)
    kept.store.save(
        1, {"early": early_D, "late": late_D}, state={}, rank_state={}, background=True, late=["late", "none"]
    )
    early_D.fill_(2)
    threading.Timer(0.1, may_copy.set).start()
    kept.store.finish_copy()
    assert may_copy.is_set()
    late_D.fill_(2)
    kept.store.finish_copy()  # nothing more to wait for
    kept.store.finish()
    kept.store.load_newest({"early": early_D, "late": late_D})
    assert [*early_D.tolist(), *late_D.tolist()] == [1] * 6


def test_a_late_copy_that_fails_ends_its_save(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise RuntimeError("the device is gone")

    def save(step: int) -> None:
        kept.store.save(step, {"row": kept.row_D}, state={"step": step}, rank_state={}, background=True, late=["row"])

    kept.save(0)
    with monkeypatch.context() as patch:
        patch.setattr(np, "copyto", fails)
        save(1)
        with pytest.raises(RuntimeError, match="the device is gone"):
            kept.store.finish_copy()
        with pytest.raises(RuntimeError, match="the device is gone"):
            kept.store.finish()
        save(2)
        with pytest.raises(RuntimeError, match="the device is gone"):
            kept.store.finish()
    assert kept.folders() == ["step-0000000000"]
    save(3)
    kept.store.finish_copy()
    kept.store.finish()
    assert kept.store.steps() == [3, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("late", [(), ("table",)])
def test_a_copy_from_a_gpu_is_of_what_its_stream_had_under_way(late: tuple[str, ...]) -> None:
    device = torch.device("cuda")
    table_ND = torch.zeros(200_000, 64, device=device)
    staging, factor_DD = Staging(), torch.eye(64, device=device)
    for step in (1.0, 2.0):
        for _ in range(20):
            table_ND = table_ND @ factor_DD  # keeps the stream busy
        table_ND.fill_(step)
        copy = staging.copy({"table": table_ND}, late=late)
        thread = threading.Thread(target=copy.finish)
        thread.start()
        thread.join()
        table_ND.fill_(-1.0)
        found = copy.tensors["table"]
        assert isinstance(found, Tensor)
        assert found.is_pinned()
        assert found.unique().tolist() == [step]


def test_a_failure_in_the_background_is_told_later(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    kept.save(1)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        kept.save(2, background=True)
        message = r"step 2 cannot be written under '.*checkpoints': rank 0 says .*No space left .*bytes are free there"
        with pytest.raises(UserError, match=message):
            kept.store.finish()
    kept.store.finish()
    assert kept.folders() == ["step-0000000001"]
    kept.save(3)
    assert kept.newest() == 3


def test_an_old_one_that_cannot_be_removed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*given: object) -> None:
        raise OSError(1, "Operation not permitted", "step-0000000001")

    kept.save(1)
    kept.save(2)
    with monkeypatch.context() as patch:
        patch.setattr(Files, "remove_file", stuck)
        with pytest.raises(UserError, match=r"of step 3 is written, but an older one .* cannot be removed .*step-0*1"):
            kept.save(3)
    assert kept.newest() == 3
    kept.save(4)
    assert kept.store.steps() == [4, 3]
