"""Files and folders that a URL names (s3://bucket/folder, or what fsspec knows), kept in step with local copies."""

from torchrec_mt.storage.client import StorageError, explained, file_system, is_url, lacks_bucket, whole
from torchrec_mt.storage.mirror import fetch, fetch_output, push
from torchrec_mt.storage.output import Output, local_copy, push_back

__all__ = [
    "Output",
    "StorageError",
    "explained",
    "fetch",
    "fetch_output",
    "file_system",
    "is_url",
    "lacks_bucket",
    "local_copy",
    "push",
    "push_back",
    "whole",
]
