"""Arrays as the kernel and the caller see them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from bptt._kernel import Array, row_length

_LINE = 64  # bytes: rows begin on cache lines, which are also the widest registers


def aligned(rows: int, n: int, dtype: np.dtype[Any]) -> Array:
    """Uninitialised rows of n numbers, each row on a line: array of shape (rows, row_length(n))."""
    itemsize = dtype.itemsize
    row = row_length(n, itemsize)
    size = rows * row
    raw: Array = np.empty(size + _LINE // itemsize, dtype)
    # Five times faster than raw.ctypes.data.
    address = ctypes.addressof(ctypes.c_char.from_buffer(raw))  # type: ignore[arg-type]
    skip = -address % _LINE // itemsize
    return raw[skip : skip + size].reshape(rows, row)


def contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """The array itself where a kernel can read it, else a copy in ``dtype``. What float32 cannot hold becomes inf."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype, order="C")


def read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view
