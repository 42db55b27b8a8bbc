"""The way back through the segments, and what it gathers."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from bptt._columns import Segment
from bptt._kernel import Array, Sums
from bptt._memory import aligned
from bptt._sweep import Source, Sweep, Window
from bptt.results import Gradients

Part = tuple[slice, tuple[int, ...]]


class Adjoint:
    """The sums of the gradient over the segments taken so far, and what the next one gets from its future.

    Attributes
    ----------
    value : float
        The sum of w_t E_t.
    """

    __slots__ = ("_carry", "_d_x", "_flat", "_parts", "_source", "_sums", "_sweep", "value")

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
        m, b, b_O = sweep.rnn.m, network.b is not None, network.b_O is not None
        self._parts = layout(n, p, m, b, b_O, sweep.tokens)
        # One array for all sums: cleared, scaled and rounded as one.
        self._flat: Array = np.zeros(n * n + n * p + m * n + n * b + m * b_O)
        self._sums = Sums(*split(self._flat, self._parts))

    def take(self, segment: Segment, window: Window) -> None:
        """Go back through a segment."""
        sweep = self._sweep
        pull = self._source.pull(segment, window)
        size = sweep.columns.size
        d_x = None if self._d_x is None else self._d_x[segment.first - size : segment.end - size]
        sweep.backward(segment, window, pull, self._carry, self._sums, d_x)
        if pull.errors is not None:
            self.value = sweep.columns.add(self.value, pull.errors)

    def gradients(self, factor: float, h_0: Array | None, final: Array | None = None) -> Gradients:
        """The gradient times ``factor``; h_0 by rank is needed in form "preactivation". To be called once."""
        sweep = self._sweep
        rnn, columns = sweep.rnn, sweep.columns
        flat, d_x = self._flat, self._d_x
        if factor != 1:
            flat *= factor
        W_R, W_I, W_O, b, b_O = self._sums
        if rnn.dtype != flat.dtype:
            with np.errstate(over=sweep.nonfinite):  # NumPy's words for it are the same
                W_R, W_I, W_O, b, b_O = split(flat.astype(rnn.dtype), self._parts)
        if sweep.tokens:
            W_I = np.ascontiguousarray(W_I.T)
        if d_x is not None:
            d_x = columns.unpack(d_x, 1)
            d_x *= factor
        last = None if final is None else columns.unsort(final)
        b_R = b if rnn.b_R is not None else None
        b_I = b if rnn.b_I is not None else None
        if b_R is not None and b_I is not None:
            b_I = b_I.copy()
        initial = columns.unsort(self._initial(h_0) * rnn.dtype.type(factor))
        if sweep.axes == 1:
            initial = initial[0]
            d_x = None if d_x is None else d_x[:, 0]
            last = None if last is None else last[0]
        return Gradients(W_R, W_I, W_O, b_R, b_I, b_O, initial, d_x, last)

    def _initial(self, h_0: Array | None) -> Array:
        """dE/d(initial value) by rank: of sequences without a step, what came for their final state."""
        rnn, columns = self._sweep.rnn, self._sweep.columns
        if rnn.form == "preactivation" and columns.steps:
            assert h_0 is not None
            stepping = slice(columns.start(2) - columns.size)  # the sequences that have a step
            slopes = np.empty_like(h_0[stepping])
            self._sweep.kernel.activate(self._sweep.network.activation, h_0[stepping], None, slopes, None)
            self._carry[stepping] *= slopes
        return self._carry[:, : rnn.n]


@cache
def layout(n: int, p: int, m: int, b: bool, b_O: bool, tokens: bool) -> tuple[Part | None, ...]:
    """Where in one vector the five sums of `Sums` lie, and their shapes; None for one that is not wanted."""
    shapes = (n, n), (p, n) if tokens else (n, p), (m, n) if m else None, (n,) if b else None, (m,) if b_O else None
    parts: list[Part | None] = []
    stop = 0
    for shape in shapes:
        start = stop
        stop += math.prod(shape) if shape else 0
        parts.append((slice(start, stop), shape) if shape else None)
    return tuple(parts)


def split(flat: Array, parts: tuple[Part | None, ...]) -> list[Any]:
    return [None if part is None else flat[part[0]].reshape(part[1]) for part in parts]
