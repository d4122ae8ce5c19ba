"""Raw tables that lie ready in a folder."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Files:
    """Your own tables: Parquet or CSV files under `root` (a folder or a URL), named by the schema's
    relative paths."""

    kind: Literal["files"]
    root: str
