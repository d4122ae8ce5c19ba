"""Bit for bit, from any layout into any other, from any number of ranks onto any other."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.pieces import DTYPES, LAYOUTS, any_bits, boxes, laid_out, same_bits
from tests.ranks import run_on_ranks
from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.training.checkpoints import layout as file_layout
from torchrec_mt.training.checkpoints.store import CheckpointStore

SHAPES: tuple[tuple[int, ...], ...] = ((23, 6), (40,), (7, 3, 5), (0, 8), (1, 1))
NAMES = {f"{dtype}{[*shape]}": (shape, dtype) for dtype in DTYPES for shape in SHAPES}
BLOCK = 50
"""Bytes of a block of rows: of some tensors several rows, of others one."""


@cache
def wholes() -> dict[str, Tensor]:
    tensors = {name: any_bits(shape, dtype, seed) for seed, (name, (shape, dtype)) in enumerate(NAMES.items())}
    return tensors | {"scalar": torch.tensor(2.5), "none": torch.zeros(0)}


def held(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor | Pieces]:
    rank, size = dist.get_rank(), dist.get_world_size()
    return {name: laid_out(tensor, layout if tensor.dim() else "plain", rank, size) for name, tensor in tensors.items()}


def load_as(store: CheckpointStore, step: int, layout: str) -> list[str]:
    """Names of tensors that did not come back as they were, or were changed outside of the rank's pieces."""
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {name: torch.zeros_like(tensor) for name, tensor in wholes().items()}
    loaded = store.load(held(found, layout), step=step)
    assert loaded.state == {"layout": LAYOUTS[step]}
    assert [state["rank"] for state in loaded.rank_states] == list(range(len(loaded.rank_states)))
    wrong = []
    for name, whole in wholes().items():
        wanted = torch.zeros_like(whole)
        spots = boxes(tuple(whole.shape), layout, rank, size) if whole.dim() else [((), ())]
        for begin, end in spots:
            box = tuple(slice(b, e) for b, e in zip(begin, end, strict=True))
            wanted[box] = whole[box]
        wrong += [] if same_bits(found[name], wanted) else [f"{layout} of {LAYOUTS[step]}: {name}"]
    return wrong


def round_trips(folder: str) -> list[str]:
    """Saves every layout; loads every saved one, also of the launches before, into every layout."""
    file_layout.BLOCK_BYTES = BLOCK
    mine = Path(folder) / str(dist.get_world_size())
    store = CheckpointStore(mine, keep=len(LAYOUTS))
    for step, layout in enumerate(LAYOUTS):
        store.save(
            step,
            held(wholes(), layout),
            state={"layout": layout},
            rank_state={"rank": dist.get_rank()},
            background=step % 2 == 1,
        )
    store.close()
    wrong = []
    for saved in sorted(Path(folder).iterdir()):
        store = CheckpointStore(saved, keep=1)
        pairs = [(step, layout) for step in range(len(LAYOUTS)) for layout in LAYOUTS]
        for step, layout in pairs if saved == mine else pairs[dist.get_world_size() - 1 :: 5]:
            wrong += [f"{saved.name} ranks, {what}" for what in load_as(store, step, layout)]
        store.close()
    return wrong


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[list[str]]]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, {size: run_on_ranks(size, round_trips, str(folder)) for size in (4, 2, 1)}


def test_every_bit_comes_back(saved: tuple[Path, dict[int, list[list[str]]]]) -> None:
    assert saved[1] == {size: [[]] * size for size in (4, 2, 1)}


def test_every_byte_is_saved_once(saved: tuple[Path, dict[int, list[list[str]]]]) -> None:
    wanted = sum(tensor.nbytes for tensor in wholes().values())
    for size in (4, 2, 1):
        for step, layout in enumerate(LAYOUTS):
            folder = saved[0] / str(size) / f"step-{step:010}"
            found = [read_plainly(file) for file in folder.glob("*.safetensors")]
            assert sum(tensor.nbytes for file in found for tensor in file.values()) == wanted, (size, layout)


def read_plainly(file: Path) -> dict[str, Tensor]:
    """Safetensors as its documentation has it: length, header, bytes without gaps."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    assert entries.pop("__metadata__") == {"format": "pt"}
    assert start % 8 == 0
    tensors, last = {}, 0
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        assert begin == last
        dtype = file_layout.DTYPES[entry["dtype"]]
        assert (start + begin) % dtype.itemsize == 0
        flat = torch.frombuffer(bytearray(data[start + begin : start + end]) or bytearray(8), dtype=dtype)
        tensors[name] = flat[: (end - begin) // dtype.itemsize].reshape(entry["shape"])
        last = end
    assert start + last == len(data)
    return tensors


def test_files_are_safetensors(saved: tuple[Path, dict[int, list[list[str]]]]) -> None:
    for size in (4, 2, 1):
        for step, layout in enumerate(LAYOUTS):
            folder = saved[0] / str(size) / f"step-{step:010}"
            for file in folder.glob("*.safetensors"):
                for key, tensor in read_plainly(file).items():
                    whole = wholes().get(key)
                    if whole is None:  # a piece: NAME[OFFSETS], where names end in brackets, too
                        name, offsets = key[:-1].rsplit("[", 1)
                        begin = [int(offset) for offset in offsets.split(",")]
                        whole = wholes()[name][tuple(slice(b, b + n) for b, n in zip(begin, tensor.shape, strict=True))]
                    assert same_bits(tensor, whole), (size, layout, key)
