"""The way back through the segments, and what it gathers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bptt._columns import Columns, Segment
from bptt._kernel import Array, Network, Sums
from bptt._memory import aligned
from bptt._sweep import Source, Sweep, Window
from bptt.results import Gradients, layout


class Adjoint:
    """The sums of a gradient over the segments taken so far, and what the next one gets from its future.

    Attributes
    ----------
    value : float
        The sum of w_t E_t.
    nbytes : int
        Of the storage.
    """

    __slots__ = ("_carry", "_columns", "_d_x", "_flat", "_sums", "_tokens", "nbytes", "value")

    def __init__(self, columns: Columns, network: Network, p: int, *, tokens: bool) -> None:
        n = len(network.W_R)
        self._columns, self._tokens = columns, tokens
        self._carry = aligned(columns.size, n, network.W_R.dtype)
        shapes: list[tuple[int, ...] | None] = [(n, n), (p, n) if tokens else (n, p)]
        shapes += [None if weight is None else weight.shape for weight in (network.W_O, network.b, network.b_O)]
        stops = np.cumsum([0 if shape is None else math.prod(shape) for shape in shapes]).tolist()
        # One array for all sums: cleared, scaled and rounded as one.
        self._flat: Array = np.empty(stops[-1])
        sums: list[Any] = [
            None if shape is None else self._flat[stop - math.prod(shape) : stop].reshape(shape)
            for stop, shape in zip(stops, shapes, strict=True)
        ]
        self._sums = Sums(*sums)
        self.nbytes = self._carry.nbytes + self._flat.nbytes

    def begin(self, sweep: Sweep, d_final: Array | None, wrt_inputs: bool) -> None:
        """At the end of time, with nothing gathered."""
        columns = self._columns
        self.value = 0.0
        self._flat.fill(0)
        self._carry.fill(0)
        if d_final is not None:
            self._carry[:, : sweep.rnn.n] = columns.sort(d_final)
        self._d_x: Array | None = np.empty((columns.total, sweep.rnn.p), sweep.rnn.dtype) if wrt_inputs else None

    def take(self, sweep: Sweep, source: Source, segment: Segment, window: Window) -> None:
        """Go back through a segment."""
        pull = source.pull(segment, window)
        size = self._columns.size
        d_x = None if self._d_x is None else self._d_x[segment.first - size : segment.end - size]
        sweep.backward(segment, window, pull, self._carry, self._sums, d_x)
        if pull.errors is not None:
            self.value = self._columns.add(self.value, pull.errors)

    def gradients(self, sweep: Sweep, factor: float, h_0: Array | None, final: Array | None = None) -> Gradients:
        """The gradient times ``factor``; h_0 by rank is needed in form "preactivation"."""
        rnn, columns = sweep.rnn, self._columns
        flat, dtype = self._flat, rnn.W_R.dtype
        if self._tokens or (rnn.b_R is not None and rnn.b_I is not None):
            flat = self._in_order(rnn.b_R is not None and rnn.b_I is not None)
        if dtype == flat.dtype:
            vector = flat * factor
        else:
            with np.errstate(over=sweep.nonfinite):  # NumPy's words for it are the same
                vector = np.multiply(flat, factor, np.empty(len(flat), dtype), casting="same_kind")
        last = None if final is None else columns.unsort(final)
        initial = columns.unsort(self._initial(sweep, h_0) * factor)
        d_x, self._d_x = self._d_x, None
        if d_x is not None:
            d_x = columns.unpack(d_x, 1)
            d_x *= factor
        if sweep.axes == 1:
            initial = initial[0]
            d_x = None if d_x is None else d_x[:, 0]
            last = None if last is None else last[0]
        parts = layout(*rnn.W_I.shape, rnn.m, rnn.b_R is not None, rnn.b_I is not None, rnn.b_O is not None)
        return Gradients(vector, parts, initial, d_x, last)

    def _in_order(self, both_biases: bool) -> Array:
        """The sums in the order of `RNN.ravel`: W_I by rows, the kernel's one bias for two where there are both."""
        W_R, W_I, W_O, b, b_O = self._sums
        arrays = [W_R, W_I.T if self._tokens else W_I, W_O, b, b if both_biases else None, b_O]
        return np.concatenate([array.ravel() for array in arrays if array is not None])

    def _initial(self, sweep: Sweep, h_0: Array | None) -> Array:
        """dE/d(initial value) by rank: of sequences without a step, what came for their final state."""
        columns = self._columns
        if sweep.rnn.form == "preactivation" and columns.steps:
            assert h_0 is not None
            stepping = slice(columns.start(2) - columns.size)  # the sequences that have a step
            slopes = np.empty_like(h_0[stepping])
            sweep.kernel.activate(sweep.network.activation, h_0[stepping], None, slopes, None)
            self._carry[stepping] *= slopes
        return self._carry[:, : sweep.rnn.n]
