"""The caller's arrays, read and converted segment by segment: the whole of them is never copied."""

from __future__ import annotations

from contextvars import ContextVar

import numpy as np

from bptt import _levels
from bptt._columns import Columns, Segment
from bptt._kernel import Array, Ordered
from bptt._memory import contiguous
from bptt._validate import Slices

_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)


#: Steps before the first of what is read here, of a sequence of which it is a part.
STEPS_BEFORE: ContextVar[int] = ContextVar("steps before", default=0)


def place(segment: Segment, column: int) -> str:
    t, b = segment.locate(column)
    return f"at step t = {t + STEPS_BEFORE.get()} of sequence b = {b} (steps count from 1, sequences from 0)"


def read(name: str, source: Array | Slices, t0: int, t1: int) -> Array:
    """Steps t0+1 .. t1 of an array of steps; what is read piece by piece may come otherwise than was announced."""
    block = source[t0:t1]
    if isinstance(block, np.ndarray) and isinstance(source, np.ndarray):
        return block
    block = np.asarray(block)
    wanted = (t1 - t0, *source.shape[1:])
    if (block.shape, block.dtype) != (wanted, source.dtype):
        short = block.ndim == len(wanted) and block.shape[0] < wanted[0] and block.shape[1:] == wanted[1:]
        step = t0 + 1 + (block.shape[0] if short else 0)
        raise ValueError(
            f"{name} {'ends before' if short else 'changes at'} step t = {step} (steps count from 1): steps "
            f"{t0 + 1}..{t1} must have shape {wanted} and {source.dtype}; got {block.shape} and "
            f"{block.dtype}"
        )
    return block


def pick(block: Array, axes: int, segment: Segment) -> Array:
    """The columns of a segment from its block (L, B, ...), or (L, ...) unbatched."""
    tail = block.shape[axes:]
    if segment.order is None:
        return block.reshape(segment.columns, *tail)
    if not block.flags.c_contiguous:
        return block[segment.where()]
    columns: Array = np.empty((segment.columns, *tail), block.dtype)
    _levels.kernel().pick(block, segment.order, segment.counts, columns)
    return columns


class Stream:
    """An array of shape (T, B, ...), or (T, ...) unbatched, read as the packed columns of a segment.

    What is read has shape (C, ...), the dtype asked for, and lies contiguous: a view of the source where it can be.
    """

    __slots__ = ("_flat", "axes", "dtype", "name", "size", "source")

    def __init__(
        self,
        name: str,
        source: Array | Slices,
        axes: int,
        columns: Columns,
        dtype: np.dtype[np.generic],
    ) -> None:
        self.name, self.source, self.axes, self.size, self.dtype = name, source, axes, columns.size, dtype
        self._flat = None
        if isinstance(source, np.ndarray) and columns.order is None and source.dtype == dtype:
            flags = source.flags
            if flags.c_contiguous and flags.aligned:
                self._flat = source.reshape(columns.time * columns.size, *source.shape[axes:])

    def columns(self, segment: Segment) -> Array:
        """The columns as they are in the source: any dtype, perhaps strided."""
        if self._flat is not None:
            return self._flat[segment.first - self.size : segment.end - self.size]
        return pick(read(self.name, self.source, segment.t0, segment.t1), self.axes, segment)

    def read(self, segment: Segment, weights: Array | None = None) -> Array:
        """The columns of a segment; where a weight is 0 their values do not matter."""
        if self._flat is not None:
            return self._flat[segment.first - self.size : segment.end - self.size]
        return contiguous(self.columns(segment), self.dtype)


class Inputs(Stream):
    """Inputs that are numbers: of a ragged batch as they lie, for the kernel to find the columns."""

    __slots__ = ()

    def given(self, segment: Segment) -> Array | Ordered:
        if segment.order is None:
            return self.read(segment)
        return Ordered(contiguous(read(self.name, self.source, segment.t0, segment.t1), self.dtype), segment.order)


class Weights(Stream):
    """Step weights: finite and not negative."""

    __slots__ = ()

    def __init__(self, source: Array | Slices, axes: int, columns: Columns, dtype: np.dtype[np.generic]) -> None:
        super().__init__("weights", source, axes, columns, dtype)

    def read(self, segment: Segment, weights: Array | None = None) -> Array:
        weights = super().read(segment)
        if not (np.minimum.reduce(weights) >= 0 and np.maximum.reduce(weights) < np.inf):  # nan fails both
            column = int(np.argmin((weights >= 0) & (weights < np.inf)))
            raise ValueError(f"weights must be finite and >= 0; got {weights[column]!s} {place(segment, column)}")
        return weights


class Indices(Stream):
    """Tokens or target classes: integers in 0 .. limit-1."""

    __slots__ = ("limit", "symbol")

    def __init__(self, name: str, source: Array | Slices, axes: int, columns: Columns, symbol: str, limit: int) -> None:
        super().__init__(name, source, axes, columns, _INT32)
        self.symbol, self.limit = symbol, limit

    def read(self, segment: Segment, weights: Array | None = None) -> Array:
        given = self.columns(segment)
        if weights is not None:
            given = np.where(weights != 0, given, 0)
        indices = given
        if self._flat is None:
            indices = contiguous(given, _INT32 if np.can_cast(given.dtype, _INT32) else _INT64)  # uint64 may turn < 0
        column = _levels.kernel().find_outside(indices, self.limit)
        if column >= 0:
            wanted = f"{self.name} must be in 0..{self.symbol}-1 with {self.symbol} = {self.limit}"
            raise ValueError(f"{wanted}; got {given[column]} {place(segment, column)}")
        return indices if indices.dtype == _INT32 else indices.astype(_INT32)
