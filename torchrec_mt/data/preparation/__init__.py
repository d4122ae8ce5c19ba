"""Preparation: raw tables and a schema in, a prepared dataset out."""

from torchrec_mt.data.preparation.check import check_schema
from torchrec_mt.data.preparation.earlier import check_output
from torchrec_mt.data.preparation.pipeline import PreparedResult, prepare
from torchrec_mt.data.preparation.sources import relative_paths

__all__ = ["PreparedResult", "check_output", "check_schema", "prepare", "relative_paths"]
