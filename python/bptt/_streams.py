"""The caller's arrays, read and converted segment by segment: the whole of them is never copied."""

from __future__ import annotations

import numpy as np

from bptt._columns import Columns, Segment
from bptt._kernel import Array
from bptt._memory import contiguous

_INT32 = np.dtype(np.int32)
_UNSIGNED = {np.dtype(f"{kind}{size}"): np.dtype(f"u{size}") for kind in "iu" for size in (1, 2, 4, 8)}


def place(segment: Segment, column: int) -> str:
    t, b = segment.locate(column)
    return f"at step t = {t} of sequence b = {b} (steps count from 1, sequences from 0)"


def pick(block: Array, axes: int, segment: Segment) -> Array:
    """The columns of a segment from its block (L, B, ...), or (L, ...) unbatched."""
    tail = block.shape[axes:]
    if segment.where is None:
        return block.reshape(segment.columns, *tail)
    return block[segment.where] if axes == 2 else block[segment.where[0]]


class Stream:
    """An array of shape (T, B, ...), or (T, ...) unbatched, read as the packed columns of a segment.

    What is read has shape (C, ...), the dtype asked for, and lies contiguous: a view of the source where it can be.
    """

    __slots__ = ("_flat", "axes", "dtype", "size", "source")

    def __init__(self, source: Array, axes: int, columns: Columns, dtype: np.dtype[np.generic]) -> None:
        self.source, self.axes, self.size, self.dtype = source, axes, columns.size, dtype
        flags = source.flags
        direct = columns.order is None and source.dtype == dtype and flags.c_contiguous and flags.aligned
        self._flat = source.reshape(columns.time * columns.size, *source.shape[axes:]) if direct else None

    def columns(self, segment: Segment) -> Array:
        """The columns as they are in the source: any dtype, perhaps strided."""
        if self._flat is not None:
            return self._flat[segment.first - self.size : segment.end - self.size]
        block = np.asarray(self.source[segment.t0 : segment.t1])
        return pick(block, self.axes, segment)

    def read(self, segment: Segment, weights: Array | None = None) -> Array:
        """The columns of a segment; where a weight is 0 their values do not matter."""
        columns = self.columns(segment)
        return columns if self._flat is not None else contiguous(columns, self.dtype)


class Weights(Stream):
    """Step weights: finite and not negative."""

    __slots__ = ()

    def read(self, segment: Segment, weights: Array | None = None) -> Array:
        weights = super().read(segment)
        if not (np.minimum.reduce(weights) >= 0 and np.maximum.reduce(weights) < np.inf):  # nan fails both
            column = int(np.argmin((weights >= 0) & (weights < np.inf)))
            raise ValueError(f"weights must be finite and >= 0; got {weights[column]!s} {place(segment, column)}")
        return weights


class Indices(Stream):
    """Tokens or target classes: integers in 0 .. limit-1."""

    __slots__ = ("limit", "name", "symbol")

    def __init__(self, source: Array, axes: int, columns: Columns, name: str, symbol: str, limit: int) -> None:
        super().__init__(source, axes, columns, _INT32)
        self.name, self.symbol, self.limit = name, symbol, limit

    def read(self, segment: Segment, weights: Array | None = None) -> Array:
        indices = self.columns(segment)
        if weights is not None:
            indices = np.where(weights != 0, indices, 0)
        if not indices.dtype.isnative:
            indices = indices.astype(indices.dtype.newbyteorder("="))
        if np.maximum.reduce(indices.view(_UNSIGNED[indices.dtype])) >= self.limit:  # what is negative is huge there
            column = int(np.argmax((indices < 0) | (indices >= self.limit)))
            wanted = f"{self.name} must be in 0..{self.symbol}-1 with {self.symbol} = {self.limit}"
            raise ValueError(f"{wanted}; got {indices[column]} {place(segment, column)}")
        return contiguous(indices, _INT32)
