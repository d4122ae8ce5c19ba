"""What lies at the output before preparation: nothing, the wanted dataset, one to replace, or what is not ours."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torchrec_mt.data.dataset import MANIFEST, Manifest, PreparedDataset
from torchrec_mt.errors import UserError

_PARTS = ("entities", "store", "vocabulary", "pairs", "frequencies", "known", "negatives", "truth")
"""What any version wrote, for datasets whose manifest does not list its files."""


@dataclass(frozen=True)
class Earlier:
    """The dataset that is wanted, if it lies there; else, if one is to be replaced, why."""

    dataset: PreparedDataset | None = None
    why: str = ""


def check_output(output: Path) -> None:
    """Refuses an output that is no folder of ours.

    Raises:
        UserError: something else lies there, or the path is no name of a folder.
    """
    if output.name in ("", ".."):
        raise UserError(f"dataset.path = '{output}' names no folder of its own, as 'prepared/shop' does")
    if _is_free(output) or _is_ours(output):
        return
    raise UserError(
        f"'{output}' exists and is not a prepared dataset (no {MANIFEST} of one); nothing was touched: "
        f"choose another output folder or remove it yourself"
    )


def look(output: Path, fingerprint: str, *, needs_check: bool) -> Earlier:
    """The dataset already at `output`, if it is whole and was made from the same input; reads its manifest only.

    Args:
        needs_check: the permutation check is asked for, so a dataset without it does not do.

    Raises:
        UserError: something else lies at `output`, or beside the dataset's own files in a dataset to be replaced.
    """
    check_output(output)
    if _is_free(output):
        return Earlier()
    try:
        dataset = PreparedDataset.open(output)
    except (UserError, TypeError):
        why = "the dataset that was there is of another format"
        _refuse_strangers(output, ())
    else:
        why = _why_anew(dataset, fingerprint, needs_check=needs_check)
        if not why:
            return Earlier(dataset)
        _refuse_strangers(output, dataset.manifest.files)
    return Earlier(why=why)


def written_files(folder: Path) -> dict[str, int]:
    """Path inside the folder -> size of every file, but hidden ones."""
    files = ((path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file())
    return {
        name.as_posix(): path.stat().st_size
        for name, path in sorted(files)
        if not any(part.startswith(".") for part in name.parts)
    }


def _is_free(output: Path) -> bool:
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def _is_ours(output: Path) -> bool:
    try:
        raw = json.loads((output / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(raw, dict) and {"format", "fingerprint", "digest"} <= raw.keys()


def _why_anew(dataset: PreparedDataset, fingerprint: str, *, needs_check: bool) -> str:
    """Why a dataset does not do; empty if it does."""
    manifest = dataset.manifest
    if manifest.fingerprint != fingerprint:
        return "the declaration or the source files have changed"
    if not manifest.files:
        return "its manifest does not list its files"
    for name, size in manifest.files.items():
        path = dataset.path / name
        if not path.is_file():
            return f"'{path}' was missing"
        if path.stat().st_size != size:
            return f"'{path}' had {path.stat().st_size} bytes, not {size}"
    if needs_check and not all(
        "real_pairs" in task.notes for name, task in manifest.tasks.items() if _from_groups(manifest, name)
    ):
        return "it was prepared without the permutation check"
    return ""


def _from_groups(manifest: Manifest, task: str) -> bool:
    declared = manifest.declaration["tasks"]
    return isinstance(declared, dict) and declared[task]["pairs"]["kind"] == "groups"


def _refuse_strangers(output: Path, files: Iterable[str]) -> None:
    """A dataset is replaced as a whole folder, so nothing else may lie in it."""
    listed = {output / name for name in files}
    if listed:
        known = listed | {parent for path in listed for parent in path.parents} | {output / MANIFEST}
        found = [path for path in output.rglob("*") if path not in known and path.parent in {output, *known}]
    else:
        found = [path for path in output.iterdir() if path.name not in (*_PARTS, MANIFEST)]
    if found:
        shown = ", ".join(f"'{path.relative_to(output)}'" for path in sorted(found)[:5])
        raise UserError(
            f"'{output}' is to be replaced, but holds what preparation did not write: {shown}"
            f"{' and more' if len(found) > 5 else ''}; nothing was touched: move it away or choose another folder"
        )
