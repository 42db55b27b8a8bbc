"""The way back through the segments, and what it gathers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bptt._columns import Segment
from bptt._kernel import Array, Sums
from bptt._memory import aligned
from bptt._sweep import Source, States, Sweep, Window
from bptt.results import Gradients

Shape = tuple[int, ...]


class Adjoint:
    """The sums of the gradient over the segments taken so far, and what the next one gets from its future.

    Attributes
    ----------
    value : float
        The sum of w_t E_t.
    """

    __slots__ = ("_carry", "_d_x", "_flat", "_shapes", "_source", "_sums", "_sweep", "value")

    def __init__(self, sweep: Sweep, source: Source, d_final: Array | None, wrt_inputs: bool) -> None:
        self._sweep, self._source = sweep, source
        self.value = 0.0
        columns, network = sweep.columns, sweep.network
        n, p = sweep.rnn.W_I.shape
        self._carry = aligned(columns.size, n, sweep.rnn.dtype)
        self._carry.fill(0)
        if d_final is not None:
            self._carry[:, :n] = columns.sort(d_final)
        self._d_x: Array | None = np.empty((columns.total, p), sweep.rnn.dtype) if wrt_inputs else None
        self._shapes: list[Shape | None] = [(n, n), (p, n) if sweep.tokens else (n, p)]
        self._shapes += [None if weight is None else weight.shape for weight in (network.W_O, network.b, network.b_O)]
        # One array for all sums: cleared, scaled and rounded as one.
        self._flat: Array = np.zeros(sum(math.prod(shape) for shape in self._shapes if shape is not None))
        self._sums = Sums(*split(self._flat, self._shapes))

    def take(self, segment: Segment, window: Window) -> None:
        """Go back through a segment."""
        sweep = self._sweep
        pull = self._source.pull(segment, window)
        size = sweep.columns.size
        d_x = None if self._d_x is None else self._d_x[segment.first - size : segment.end - size]
        sweep.backward(segment, window, pull, self._carry, self._sums, d_x)
        if pull.errors is not None:
            self.value += float(np.add.reduce(pull.errors))

    def gradients(self, factor: float, states: States, *, final: bool) -> Gradients:
        """The gradient times ``factor``, with the final states where asked for. To be called once, at the end."""
        sweep = self._sweep
        rnn, columns = sweep.rnn, sweep.columns
        flat, d_x = self._flat, self._d_x
        if factor != 1:
            flat *= factor
        if rnn.dtype != flat.dtype:
            with np.errstate(over=sweep.nonfinite):  # NumPy's word for it is the same
                flat = flat.astype(rnn.dtype)
        W_R, W_I, W_O, b, b_O = split(flat, self._shapes)
        if sweep.tokens:
            W_I = np.ascontiguousarray(W_I.T)
        if d_x is not None:
            d_x = columns.unpack(d_x, 1)
            d_x *= factor
        ends = states.a if rnn.form == "activation" else states.h
        last = None
        if final:
            assert ends is not None
            last = columns.unsort(ends[columns.finals(), : rnn.n].copy())
        unbatched = sweep.axes == 1
        initial = columns.unsort(self._initial(states) * rnn.dtype.type(factor))
        return Gradients(
            W_R,
            W_I,
            W_O,
            b if rnn.b_R is not None else None,
            (b.copy() if rnn.b_R is not None else b) if rnn.b_I is not None else None,
            b_O,
            initial[0] if unbatched else initial,
            d_x[:, 0] if unbatched and d_x is not None else d_x,
            last[0] if unbatched and last is not None else last,
        )

    def _initial(self, states: States) -> Array:
        """dE/d(initial value) by rank: of sequences without a step, what came for their final state."""
        rnn, columns = self._sweep.rnn, self._sweep.columns
        if rnn.form == "preactivation" and columns.steps:
            assert states.h is not None
            stepping = slice(columns.start(2) - columns.size)  # the sequences that have a step
            slopes = np.empty_like(states.h[stepping])
            self._sweep.kernel.activate(self._sweep.network.activation, states.h[stepping], None, slopes, None)
            self._carry[stepping] *= slopes
        return self._carry[:, : rnn.n]


def split(flat: Array, shapes: Sequence[Shape | None]) -> list[Any]:
    """Consecutive parts of a vector, in these shapes; None for None."""
    parts: list[Array | None] = []
    stop = 0
    for shape in shapes:
        if shape is None:
            parts.append(None)
        else:
            start, stop = stop, stop + math.prod(shape)
            parts.append(flat[start:stop].reshape(shape))
    return parts
