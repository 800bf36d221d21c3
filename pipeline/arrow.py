"""Views of Arrow columns as numpy arrays and bytes, without a Python object per row."""

import copyreg
import hashlib
from collections.abc import Callable
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def _schema_reduced(schema: pa.Schema) -> tuple[Callable[[pa.Buffer], pa.Schema], tuple[pa.Buffer]]:
    return pa.ipc.read_schema, (schema.serialize(),)


copyreg.pickle(pa.Schema, _schema_reduced)  # else names and nullability of list elements are lost (pyarrow 26)


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one contiguous array."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def utf8_view(column: pa.Array | pa.ChunkedArray) -> tuple[memoryview, NDArray[np.int64]]:
    """Return the UTF-8 bytes of a string column and where each row begins.

    Args:
        column: N strings without nulls, any string type.

    Returns:
        The bytes of all rows, one after the other, and N + 1 offsets into them, beginning with 0.
    """
    array = one_array(column).cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    if len(array) == 0:
        return memoryview(b""), np.zeros(1, np.int64)
    content = array.buffers()[2]
    view = memoryview(content)[int(offsets[0]) : int(offsets[-1])] if content is not None else memoryview(b"")
    return view, offsets - offsets[0]


def fixed_size_list(values_ND: NDArray[np.generic], type: pa.DataType) -> pa.Array:
    """Return N vectors as a fixed-size list array that shares their memory.

    Args:
        values_ND: C-contiguous.
        type: a fixed_size_list of D elements.
    """
    flat = pa.array(values_ND.reshape(-1), type=type.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=type)


def fixed_size_binary(rows_NB: NDArray[np.uint8]) -> pa.Array:
    """Return N rows of B bytes as a fixed-size binary array."""
    rows = np.ascontiguousarray(rows_NB)
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)])


def vectors_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.generic]:
    """Return a fixed-size list column as an (N, D) array."""
    array = one_array(column)
    width = cast(int, array.type.list_size)
    return cast("NDArray[np.generic]", array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width))


def dequantised(rows: pa.Table, stored: str) -> NDArray[np.float32]:
    """Return the vectors of a Part as float32; of `binary` the signs, 1 and -1."""
    if stored == "binary":
        column = rows["embedding"].cast(pa.binary())
        bits = np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(rows.num_rows, -1)
        return np.where(np.unpackbits(bits, axis=1) == 1, np.float32(1), np.float32(-1))
    vectors_ND = vectors_of(rows["embedding"]).astype(np.float32, copy=False)
    return vectors_ND * rows["scale"].to_numpy()[:, None] if stored == "int8" else vectors_ND


def hash_strings(strings: pa.Array) -> pa.Array:
    """Return 128 bits of SHA-256 per string, as N × fixed_size_binary(16).

    Args:
        strings: N strings without nulls.
    """
    content, offsets_N1 = utf8_view(strings)
    sha256, ends = hashlib.sha256, offsets_N1.data
    digests = b"".join(sha256(content[ends[row] : ends[row + 1]]).digest()[:16] for row in range(len(strings)))
    return fixed_size_binary(np.frombuffer(digests, np.uint8).reshape(-1, 16))
