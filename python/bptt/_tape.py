"""The states of a call, kept as far as its memory goes and computed again where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bptt._budget import Budget
from bptt._columns import Columns, Segment
from bptt._kernel import Array
from bptt._memory import aligned
from bptt._sweep import Sweep, Window


class Tape:
    """Runs forward through a sequence, and hands out its segments with their states, the last first.

    One storage of rows holds the boundaries kept, and after them the window taped: its states follow the boundary at
    its beginning, its pre-activations (where they are kept) follow its states.

    Attributes
    ----------
    initial : array of shape (B, ld) or None
        h_0 by rank, in form "preactivation".
    final : array of shape (B, n)
        The state after each sequence's last step, by rank: whole once all segments were handed out.
    rows : array of shape (R, ld)
        The storage.
    nbytes : int
        Of it.
    """

    __slots__ = (
        "_budget",
        "_columns",
        "_ends",
        "_first",
        "_last",
        "_n",
        "_pieces",
        "final",
        "initial",
        "keep_h",
        "nbytes",
        "rows",
    )

    def __init__(
        self,
        columns: Columns,
        budget: Budget,
        n: int,
        dtype: np.dtype[Any],
        *,
        keep_h: bool,
        form: str,
        rows: Array | None = None,
    ) -> None:
        self._columns, self._budget, self._n, self.keep_h = columns, budget, n, keep_h
        size = columns.size
        whole = size + columns.total * (2 if keep_h else 1)
        count = min(size + budget.rows, whole)
        self.rows = aligned(count, n, dtype) if rows is None or len(rows) < count else rows
        self.initial = aligned(size, n, dtype) if form == "preactivation" else None
        self.nbytes = self.rows.nbytes
        self._ends = columns.finals()
        # Where all states are kept and no step is missing, all views of the storage are known beforehand.
        self._first = self.rows[:size]
        self._last = (self._first if self.initial is None else self.initial)[:, :n]
        self._pieces: list[tuple[Segment, Window]] | None = None
        if columns.order is None and budget.rows >= budget.units * budget.costs.unit:
            self._pieces = []
            for t in range(0, columns.steps, budget.most):
                segment = columns.segment(t, min(t + budget.most, columns.steps))
                a, h = self._window(segment, 0, 0, columns.steps)
                self._pieces.append((segment, (a, h)))
                self._last = (a if self.initial is None or h is None else h)[-size:, :n]

    def backward(
        self, sweep: Sweep, initial: Array | None, tick: Callable[[int], None] | None
    ) -> Iterator[tuple[Segment, Window]]:
        """The segments with their states. ``tick`` hears of every piece of steps run forward."""
        sweep.begin(initial, self._first, self.initial)
        if self._pieces is not None:
            for segment, window in self._pieces:
                sweep.forward(segment, window)
                if tick:
                    tick(segment.t1 - segment.t0)
            self.final = self._last.copy()
            yield from reversed(self._pieces)
            return
        columns, budget = self._columns, self._budget
        size, unit, most = columns.size, columns.unit, budget.most
        self.final = self._last.copy()
        depth = 0  # of the boundary that the next move begins at
        for tape, start, stop in budget.schedule():
            t0, t1 = start * unit, min(stop * unit, columns.steps)
            base = depth * size
            if tape:
                depth -= 1
                pieces = range(t0, t1, most)
                for t in pieces:
                    segment = columns.segment(t, min(t + most, t1))
                    window = self._window(segment, base, t0, t1)
                    sweep.forward(segment, window)
                    self._gather(segment, window)
                    if tick:
                        tick(segment.t1 - segment.t0)
                if pieces:
                    yield segment, window
                for t in reversed(pieces[:-1]):
                    segment = columns.segment(t, min(t + most, t1))
                    yield segment, self._window(segment, base, t0, t1)
                continue
            depth += 1
            kept = base + size
            fit = (budget.rows - depth * size) // budget.costs.unit * unit
            for t in range(t0, t1, min(most, fit)):
                segment = columns.segment(t, min(t + min(most, fit), t1))
                window = self._window(segment, base, segment.t0, segment.t1)
                sweep.forward(segment, window)
                reached = int(segment.counts[-2])
                self.rows[kept : kept + reached] = window[0][-reached:]
                base = kept
                if tick:
                    tick(segment.t1 - segment.t0)

    def _window(self, segment: Segment, base: int, t0: int, t1: int) -> Window:
        """The rows of a segment in a window over the steps t0 .. t1 whose boundary lies at row ``base``."""
        columns, rows = self._columns, self.rows
        shift = base - columns.start(t0)
        a = rows[shift + segment.before : shift + segment.end]
        if not self.keep_h:
            return a, None
        shift += columns.start(t1 + 1) - columns.start(t0 + 1)
        return a, rows[shift + segment.first : shift + segment.end]

    def _gather(self, segment: Segment, window: Window) -> None:
        a, h = window
        if self.initial is None:
            states = a[segment.first - segment.before :]
        else:
            assert h is not None
            states = h
        first, last = int(segment.counts[-1]), int(segment.counts[1])  # ranks of the sequences that end here
        if isinstance(self._ends, slice):
            self.final[first:] = states[len(states) - (last - first) :, : self._n]
        elif first < last:
            self.final[first:last] = states.take(self._ends[first:last] - segment.first, 0)[:, : self._n]
