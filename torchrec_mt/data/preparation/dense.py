"""Dense features of one entity: numbers, standardised over all entities, and vectors, taken as they are."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mt.errors import UserError
from torchrec_mt.schema import NumberFeature, VectorFeature


def standardise(
    key: str, values: pa.ChunkedArray, ids: pa.ChunkedArray, feature: NumberFeature
) -> tuple[np.ndarray, float, float]:
    """float32 numbers with mean 0 and deviation 1 in order of rows, and the mean and deviation they had; null gives 0.

    Raises:
        UserError: NaN, infinite, not above -1 under a logarithm, or beyond float32.
    """
    null = values.is_null().to_numpy()
    raw = values.fill_null(0.0).to_numpy().astype(np.float64)
    bad = ~np.isfinite(raw)
    _refuse(key, feature.column, bad, raw, ids, "is not finite; mend the row or store null")
    if feature.transform == "log1p":
        _refuse(key, feature.column, ~null & (raw <= -1), raw, ids, "is not above -1, as transform = 'log1p' needs")
        raw = np.log1p(raw)
    beyond = np.abs(raw) > np.finfo(np.float32).max
    _refuse(key, feature.column, beyond, raw, ids, "does not fit into float32; mend the row or store null")
    known = raw[~null]
    mean = float(known.mean()) if len(known) else 0.0
    deviation = float(known.std()) if len(known) else 0.0
    deviation = deviation if deviation > 0 and np.isfinite(deviation) else 1.0
    return np.where(null, 0.0, (raw - mean) / deviation).astype(np.float32), mean, deviation


def _refuse(key: str, column: str, bad: np.ndarray, raw: np.ndarray, ids: pa.ChunkedArray, why: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{key}: column '{column}' of entity '{ids[first].as_py()}' is {raw[first]}: it {why} ({bad.sum()} rows)"
        )


def vectors(key: str, values: pa.ChunkedArray, ids: pa.Array, feature: VectorFeature) -> tuple[pa.ListArray, int]:
    """list<float32> of exactly `dim` finite numbers per row, and how many rows are null: those become zeros.

    Raises:
        UserError: a vector of another length, or a number in it that is null, NaN or infinite.
    """
    array = values.combine_chunks()
    array = array.cast(pa.list_(array.type.value_type))
    missing = array.is_null().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(array).fill_null(feature.dim).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != feature.dim)
    where = f"{key}: column '{feature.column}' of entity"
    if len(wrong):
        first = int(wrong[0])
        found = f"{lengths[first]} numbers"
        raise UserError(f"{where} '{ids[first].as_py()}' is {found}, but dim = {feature.dim} ({len(wrong)} such rows)")
    given = array.flatten()
    numbers = given.cast(pa.float32(), safe=False).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        found, row = given[int(bad[0])].as_py(), int(np.flatnonzero(~missing)[int(bad[0]) // feature.dim])
        raise UserError(
            f"{where} '{ids[row].as_py()}' holds {'null' if found is None else found}; "
            f"a vector holds finite numbers only (of float32)"
        )
    filled = np.zeros((len(array), feature.dim), np.float32)
    filled[~missing] = numbers.reshape(-1, feature.dim)
    offsets = pa.array(np.arange(len(array) + 1) * feature.dim, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(filled.reshape(-1))), int(missing.sum())
