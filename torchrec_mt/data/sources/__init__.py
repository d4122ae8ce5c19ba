"""Where raw tables come from: plain files, public data sets, a synthetic shop. Each ends as a folder of raw tables."""

import json
from dataclasses import asdict
from pathlib import Path

from torchrec_mt.data.sources.bundlerec import BundleRec, write_bundlerec
from torchrec_mt.data.sources.complete_journey import CompleteJourney, write_complete_journey
from torchrec_mt.data.sources.files import Files
from torchrec_mt.data.sources.synthetic_shop import SyntheticShop, write_synthetic_shop
from torchrec_mt.errors import UserError

Source = Files | SyntheticShop | BundleRec | CompleteJourney


def materialise(source: Source, folder: Path) -> tuple[Path, str]:
    """The folder of a source's raw tables, made in `folder` where they do not lie ready; and the source as text.

    Making them again from an unchanged source does nothing.

    Raises:
        UserError: files that are missing or are not what the source needs.
    """
    match source:
        case Files(root=root):
            if not Path(root).is_dir():
                raise UserError(f"dataset.source.root = '{root}' is no folder")
            return Path(root), "files"
        case SyntheticShop():
            write_synthetic_shop(source, folder)
        case BundleRec():
            write_bundlerec(source, folder)
        case CompleteJourney():
            write_complete_journey(source, folder)
    return folder, json.dumps(asdict(source), sort_keys=True)
