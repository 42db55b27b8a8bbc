"""How a batch lies in memory: sequences sorted by length, the columns (t, b) of one step after those of the last.

Row ``start(t) + j`` of a stored array belongs to step t and to the sequence of rank j (rank 0 is the longest). Arrays
of states begin with the block of t = 0; arrays of inputs, errors and the like begin with t = 1, B rows later.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np

from bptt import _levels
from bptt._kernel import Array, row_length
from bptt._memory import contiguous

_FLOAT64 = np.dtype(np.float64)
_STEPS = 4096
_BYTES = 32 << 20
_RAGGED_BYTES = 16 << 20
_FLOP = 30_000_000_000


@cache
def segment_steps(n: int, p: int, m: int, size: int, dtype: np.dtype[np.floating], ragged: bool = False) -> int:
    """Steps of a segment: the grid on which every call over this problem works, from t = 0.

    Long enough that what a call into the kernel costs (packed weights, memory of its own) is lost in it, short enough
    that Ctrl-C is heard soon. A whole number of the kernel's own blocks, unless it is shorter than one. Of a ragged
    batch a budget cannot keep less than a segment, so there they are shorter.
    """
    column = (2 * row_length(n, dtype.itemsize) + p + m) * dtype.itemsize
    flop = 6 * n * (n + p + m)
    steps = min(_STEPS, (_RAGGED_BYTES if ragged else _BYTES) // (column * size), _FLOP // (flop * size))
    block = block_steps(n, size)
    return steps // block * block or max(steps, 1)


@cache
def block_steps(n: int, size: int) -> int:
    """Steps of the blocks in which a level works where all sequences are present (block_columns in kernel/steps.hpp).

    A sum adds the blocks' parts one after the other, so time can be cut between blocks and no bit of it changes.
    """
    if size == 1 and 48 <= n <= 96:
        return 128
    return max((512 if n >= 1024 else 256) // size, 1)


def present(size: int, total: int, steps: int) -> int:
    """The size by which a ragged batch is cut into segments: the sequences at a step in the mean, or half of all."""
    return max(-(-total // max(steps, 1)), -(-size // 2))


class Segment:
    """Steps t0+1 .. t1 and where their columns are."""

    __slots__ = ("_where", "before", "counts", "end", "first", "order", "t0", "t1")

    def __init__(
        self, t0: int, t1: int, counts: Array, before: int, first: int, end: int, order: Array | None = None
    ) -> None:
        self.t0, self.t1 = t0, t1
        self.counts = counts  # columns at t0 .. t1 + 1
        self.before, self.first, self.end = before, first, end  # start(t0), start(t0 + 1), start(t1 + 1)
        self.order = order  # the sequence of each rank; None where all are present
        self._where: tuple[Array, Array] | None = None

    @property
    def columns(self) -> int:
        return self.end - self.first

    def where(self) -> tuple[Array, Array]:
        """t - t0 - 1 and b of each column."""
        if self._where is None:
            present = self.counts[1:-1]
            steps = np.repeat(np.arange(self.t1 - self.t0), present)
            ranks = np.arange(self.columns) - np.repeat(np.cumsum(present) - present, present)
            self._where = steps, ranks if self.order is None else self.order[ranks]
        return self._where

    def locate(self, column: int) -> tuple[int, int]:
        """The step t (from 1) and the sequence b (from 0) of a column."""
        step, sequence = (int(index[column]) for index in self.where())
        return self.t0 + 1 + step, sequence


@lru_cache(64)
def equal(time: int, size: int, grid: int, n: int) -> Columns:
    """The columns of sequences that are all as long as their array: one object for all calls of that shape."""
    return Columns(time, size, None, grid, block_steps(n, size))


class Columns:
    """The columns of a batch: ``size`` sequences of an array of ``time`` steps, the longest of ``steps`` steps."""

    __slots__ = (
        "_ascending",
        "_ends",
        "_finals",
        "_latest",
        "_prefix",
        "grid",
        "lengths",
        "order",
        "size",
        "steps",
        "time",
        "unit",
    )

    def __init__(self, time: int, size: int, lengths: Array | None, grid: int, block: int = 0) -> None:
        self.time, self.size, self.lengths, self.grid = time, size, lengths, grid
        self.steps = time
        self._latest: Segment | None = None  # the way back begins with the one that the way forth ended with
        self.order: Array | None = None  # the sequence of each rank; None where all are equally long
        if lengths is not None:
            self.steps = int(np.maximum.reduce(lengths))
            if int(np.minimum.reduce(lengths)) < self.steps:
                self.order, self._ascending, prefix, self._finals = _levels.kernel().arrange(lengths)
                # A step is found in lists without NumPy's overhead.
                self._ends: list[int] = self._ascending.tolist()
                self._prefix: list[int] = prefix.tolist()
        # Steps between the places where time can be cut and no sum changes: a level's blocks, all of them alike.
        self.unit = block if block and self.order is None and not grid % block else grid

    @property
    def total(self) -> int:
        """Columns of all steps from t = 1 on: the sum of the lengths."""
        return self.start(self.steps + 1) - self.size

    def start(self, t: int) -> int:
        """The first row of step t: the sum over the sequences of min(length + 1, t)."""
        if self.order is None:
            return self.size * t
        over = bisect_left(self._ends, t)  # sequences with length < t
        return self._prefix[over] + t * (self.size - over)

    def finals(self) -> slice | Array:
        """The row of each sequence's last step, by rank."""
        if self.order is None:
            return slice(self.size * self.steps, self.size * (self.steps + 1))
        return self._finals

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, (self.time, self.size, self.lengths, self.grid, self.unit)

    def segments(self) -> Iterator[Segment]:
        for t0 in range(0, self.steps, self.grid):
            yield self.segment(t0)

    def segments_backward(self) -> Iterator[Segment]:
        for t0 in range((self.steps - 1) // self.grid * self.grid, -1, -self.grid):
            yield self.segment(t0)

    def segment(self, t0: int, t1: int | None = None) -> Segment:
        """Steps t0+1 .. t1, or the one of the grid that begins at t0."""
        if t1 is None:
            t1 = min(t0 + self.grid, self.steps)
        latest = self._latest
        if latest is None or (latest.t0, latest.t1) != (t0, t1):
            latest = self._latest = self._full(t0, t1) if self.order is None else self._ragged(t0, t1, self.order)
        return latest

    def _full(self, t0: int, t1: int) -> Segment:
        counts = np.empty(t1 - t0 + 2, np.int64)
        counts.fill(self.size)
        if t1 == self.steps:
            counts[-1] = 0
        before = self.size * t0
        return Segment(t0, t1, counts, before, before + self.size, self.size * (t1 + 1))

    def _ragged(self, t0: int, t1: int, order: Array) -> Segment:
        counts: Array = np.empty(t1 - t0 + 2, np.int64)
        _levels.kernel().count_present(self._ascending, t0, counts)
        before = self.start(t0)
        return Segment(t0, t1, counts, before, before + int(counts[0]), self.start(t1 + 1), order)

    def ends(self, segment: Segment) -> slice | Array | None:
        """The columns of a segment at which a sequence ends, if there are any."""
        if self.order is None:
            return slice(segment.columns - self.size, None) if segment.t1 == self.steps else None
        assert self.lengths is not None
        steps, sequences = segment.where()
        ends = np.flatnonzero(steps + segment.t0 + 1 == self.lengths[sequences])
        return ends if len(ends) else None

    def add(self, total: float, values: Array) -> float:
        """The total and the values of a segment's columns: unit by unit, the last first, however time is cut."""
        return _levels.kernel().add_units(contiguous(values, _FLOAT64), self.unit * self.size, total)

    def block(self, packed: Array, segment: Segment) -> Array:
        """The packed columns of a segment as (L, B, ...), zero beyond a length: a view where no step is missing."""
        sizes = (segment.t1 - segment.t0, self.size, *packed.shape[1:])
        if segment.order is None:
            return packed.reshape(sizes)
        result = np.zeros(sizes, packed.dtype)
        result[segment.where()] = packed
        return result

    def sort(self, rows: Array) -> Array:
        """Rows (B, ...) of the sequences, by rank."""
        return rows if self.order is None else rows[self.order]

    def unsort(self, rows: Array) -> Array:
        """Rows (B, ...) by rank, in the order of the sequences."""
        if self.order is None:
            return rows
        result = np.empty_like(rows)
        result[self.order] = rows
        return result

    def unpack(self, packed: Array, since: int) -> Array:
        """Packed rows from step ``since`` (0 or 1) on as (time + 1 - since, B, ...): a view where none is missing."""
        tail = packed.shape[1:]
        if self.order is None and self.steps == self.time:
            return packed.reshape(self.time + 1 - since, self.size, *tail)
        result = np.zeros((self.time + 1 - since, self.size, *tail), packed.dtype)
        skip = self.size if since else 0
        if not since:
            result[0] = self.unsort(packed[: self.size])
        for segment in self.segments():
            block = self.block(packed[segment.first - skip : segment.end - skip], segment)
            result[segment.t0 + 1 - since : segment.t1 + 1 - since] = block
        return result
