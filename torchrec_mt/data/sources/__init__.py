"""Where raw tables come from: plain files, public data sets, made-up shops. Each ends as a folder of raw tables."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import assert_never

from torchrec_mt.data.sources.bundlerec import BundleRec, write_bundlerec
from torchrec_mt.data.sources.complete_journey import CompleteJourney, write_complete_journey
from torchrec_mt.data.sources.files import Files
from torchrec_mt.data.sources.icecat import Icecat, write_icecat
from torchrec_mt.data.sources.planted_shop import PlantedShop, write_planted_shop
from torchrec_mt.data.sources.synthetic_shop import SyntheticShop, check_synthetic_shop, write_synthetic_shop
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema, TimeSplit
from torchrec_mt.storage import fetch, is_url

Source = Files | SyntheticShop | PlantedShop | BundleRec | CompleteJourney | Icecat


def check_truth(source: Source, schema: Schema) -> None:
    """Refuses a split whose test is not the period that the source's own truth is of: its oracle would be wrong.

    Raises:
        UserError: names the moments to give.
    """
    if not isinstance(source, SyntheticShop) or all(task.truth is None for task in schema.tasks.values()):
        return
    check_synthetic_shop(source)
    found = schema.split.test_from if isinstance(schema.split, TimeSplit) else None
    wanted = source.test_from.isoformat()
    if not _same_moment(found, source.test_from):
        raise UserError(
            f"dataset.split.test_from: {'not given' if found is None else repr(found)}, but the truth of this "
            f"synthetic shop is of the period from {wanted} on (by dataset.source.days and test_share): "
            f"split by kind = 'time' with valid_from and test_from = '{wanted}', or remove the tasks' truth"
        )


def _same_moment(found: str | float | None, wanted: datetime) -> bool:
    try:
        return isinstance(found, str) and datetime.fromisoformat(found) == wanted
    except ValueError:
        return False


def materialise(source: Source, folder: Path, paths: Sequence[str]) -> tuple[Path, str]:
    """The folder of a source's raw tables, made in `folder` where they do not lie ready; and the source as text.

    Making them again from an unchanged source does nothing.

    Args:
        paths: what is read of them, relative to the folder: all that is fetched where it is a URL.

    Raises:
        UserError: files that are missing or are not what the source needs.
    """
    match source:
        case Files(root=root) if is_url(root):
            return fetch(root, parts=paths), "files"
        case Files(root=root):
            if not Path(root).is_dir():
                raise UserError(f"dataset.source.root = '{root}' is no folder")
            return Path(root), "files"
        case SyntheticShop():
            write_synthetic_shop(source, folder)
        case PlantedShop():
            write_planted_shop(source, folder)
        case BundleRec():
            write_bundlerec(source, folder)
        case CompleteJourney():
            write_complete_journey(source, folder)
        case Icecat():
            write_icecat(source, folder)
        case _:
            assert_never(source)
    return folder, json.dumps(asdict(source), sort_keys=True)
