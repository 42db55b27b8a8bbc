"""Rows that move through a chain: which steps they start from, how many go together, where their norms are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bptt._factors import Chain, pieces
from bptt._kernel import Array, Bundles, Factors
from bptt._memory import aligned
from bptt._progress import Tick
from bptt._validate import as_array, integer, memory_size

_FLOAT64 = np.dtype(np.float64)

#: Numbers in the rows that go together: they and the matrix stay in a near cache.
NUMBERS = 1 << 16


def zero_rows(count: int, n: int) -> Array:
    """Rows of zeros as a level stores them, (count, ld)."""
    rows = aligned(count, n, _FLOAT64)
    rows[:] = 0
    return rows


def identities(count: int, n: int) -> tuple[Array, Array]:
    """The rows and exponents of P(t, t) for ``count`` bundles."""
    rows = zero_rows(count * n, n)
    rows.reshape(count, n, -1)[:, range(n), range(n)] = 1
    return rows, np.zeros(count * n, np.int64)


def step(name: str, value: Any, least: int, most: int) -> int:
    """A step t in least .. most; negative ones count from the end."""
    given = integer(name, value)
    t = given + most + 1 if given < 0 else given
    if not least <= t <= most:
        last = least - most - 1
        raise ValueError(f"{name} must be a step in {least}..T with T = {most}, or from {last} to -1; got {given}")
    return t


def steps(name: str, values: Any, least: int, most: int) -> Array:
    """Steps in least .. most, as they are given: negative ones, which count from the end, stay negative."""
    array = as_array(name, values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers (steps); got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (S,); got {array.shape}")
    last = least - most - 1
    outside = (array < last) | ((array >= 0) & (array < least)) | (array > most)
    if outside.any():
        bad = array[outside][0]
        raise ValueError(f"{name} must be steps in {least}..T with T = {most}, or from {last} to -1; got {bad}")
    return array.astype(np.int64)


class Stops:
    """The steps t that a result has a row for. The kernel meets them in order; `given` puts a result back."""

    def __init__(self, T: int, stops: Any, max_lag: Any = None) -> None:
        if stops is None:
            self.t: Array = np.arange(1, T + 1)
        else:
            given = steps("stops", stops, 0, T)
            self.t = np.where(given < 0, given + T + 1, given)
        self._order = None
        if (np.diff(self.t) < 0).any():
            self._order = np.argsort(self.t, kind="stable")
            self.t = self.t[self._order]
        self.lags = 1 + (int(self.t.max(initial=0)) if max_lag is None else integer("max_lag", max_lag, 0))

    def __len__(self) -> int:
        return len(self.t)

    def table(self, memory: Any) -> Array:
        """Nan for every stop and lag."""
        limit, size = memory_size("memory", memory), 8 * len(self) * self.lags
        if size > limit:
            raise ValueError(
                f"stops and max_lag must be so few that the result fits memory = {memory!r}; "
                f"{len(self)} stops with {self.lags} lags take {size:,} bytes"
            )
        return np.full((len(self), self.lags), np.nan)

    def sort(self, rows: Array) -> Array:
        """What belongs to the stops given, in the order in which the kernel meets them."""
        return rows if self._order is None else np.asarray(rows[self._order])

    def given(self, result: Array) -> Array:
        """The rows of a result in the order in which the stops were given."""
        if self._order is None:
            return result
        inverse = np.empty_like(self._order)
        inverse[self._order] = np.arange(len(self))
        return np.asarray(result[inverse])

    def groups(self, most: int) -> Iterator[slice]:
        """Stops that go together: with factors in common, and at most so many."""
        apart = set((np.flatnonzero(self.t[1:] - self.lags + 1 >= self.t[:-1]) + 1).tolist())
        start = 0
        for i in range(1, len(self) + 1):
            if i == len(self) or i - start == most or i in apart:
                yield slice(start, i)
                start = i

    def work(self, most: int, least: int) -> int:
        """How many factors the groups meet, down to k = least."""
        ends = ((int(self.t[group][0]), int(self.t[group][-1])) for group in self.groups(most))
        return sum(max(0, last - max(least, first - self.lags + 1)) for first, last in ends)


def walk(chain: Chain, bundles: Bundles, least: int, tick: Tick | None) -> Iterator[Factors]:
    """The factors that some bundle meets, down to k = least, the last first. ``tick`` hears of each that was met."""
    first = max(least, int(bundles.stops[0]) - bundles.lags + 1)
    return pieces(chain, first, int(bundles.stops[-1]), len(bundles.rows), tick)
