"""The way back through the segments, and what it gathers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bptt import _levels
from bptt._columns import Columns, Segment
from bptt._kernel import Array, Sums
from bptt._memory import aligned
from bptt._sweep import Source, Sweep, Window
from bptt.network import RNN
from bptt.results import Gradients, layout


class Adjoint:
    """The sums of a gradient over the segments taken so far, and what the next one gets from its future.

    Attributes
    ----------
    columns : Columns
        Of the batch; another of as many sequences may take their place before `begin`.
    value : float
        The sum of w_t E_t.
    nbytes : int
        Of the storage.
    """

    __slots__ = ("_carry", "_d_x", "_flat", "_more", "_parts", "_same_order", "_sums", "columns", "nbytes", "value")

    def __init__(self, columns: Columns, rnn: RNN, *, tokens: bool) -> None:
        n, p, m = rnn.n, rnn.p, rnn.m
        self.columns = columns
        self._carry = aligned(columns.size, n, rnn.dtype)
        b_R, b_I, b_O = rnn.b_R is not None, rnn.b_I is not None, rnn.b_O is not None
        self._parts = layout(n, p, m, b_R, b_I, b_O)
        self._same_order = not tokens and not (b_R and b_I)
        shapes: list[tuple[int, ...] | None] = [(n, n), (p, n) if tokens else (n, p), (m, n) if m else None]
        shapes += [(n,) if b_R or b_I else None, (m,) if b_O else None]
        stops = np.cumsum([0 if shape is None else math.prod(shape) for shape in shapes]).tolist()
        parts = _levels.kernel().best_parts(n, columns.size)
        # One array for all sums of a part: scaled and rounded as one.
        self._flat: list[Array] = [np.empty(stops[-1]) for _ in range(parts)]
        sums: list[list[Any]] = [
            [
                None if shape is None else flat[stop - math.prod(shape) : stop].reshape(shape)
                for stop, shape in zip(stops, shapes, strict=True)
            ]
            for flat in self._flat
        ]
        self._sums = tuple(Sums(*part) for part in sums)
        self.nbytes = self._carry.nbytes + sum(flat.nbytes for flat in self._flat)

    def begin(self, sweep: Sweep, d_final: Array | None, wrt_inputs: bool) -> None:
        """At the end of time, with nothing gathered."""
        self.value = 0.0
        self._more = False
        self._carry.fill(0)
        if d_final is not None:
            self._carry[:, : sweep.rnn.n] = self.columns.sort(d_final)
        self._d_x: Array | None = None
        if wrt_inputs:
            self._d_x = np.empty((self.columns.total, sweep.rnn.p), sweep.rnn.dtype)

    def take(self, sweep: Sweep, source: Source, segment: Segment, window: Window) -> None:
        """Go back through a segment."""
        pull = source.pull(segment, window)
        d_x = self._d_x
        if d_x is not None:
            d_x = d_x[segment.first - self.columns.size : segment.end - self.columns.size]
        sweep.backward(segment, window, pull, self._carry, self._sums, self._more, d_x)
        self._more = True
        if pull.errors is not None:
            self.value = self.columns.add(self.value, pull.errors)

    def gradients(self, sweep: Sweep, factor: float, h_0: Array | None, final: Array | None = None) -> Gradients:
        """The gradient times ``factor``; h_0 by rank is needed in form "preactivation"."""
        columns, dtype = self.columns, self._carry.dtype
        if not self._more:
            for flat in self._flat:
                flat.fill(0)
        parts = self._flat if self._same_order else [self._in_order(sweep)]
        vector: Array = np.empty(len(parts[0]), dtype)
        if not sweep.kernel.scale(parts, factor, vector, sweep.threads):
            sweep._not_finite("the gradient of the weights is not finite")
        if h_0 is not None:
            self._through_first_state(sweep, h_0)
        initial: Array = np.empty((columns.size, sweep.rnn.n), dtype)
        sweep.kernel.scale((self._carry,), factor, initial, sweep.threads)
        if columns.order is not None:
            initial = columns.unsort(initial)
            final = None if final is None else columns.unsort(final)
        d_x, self._d_x = self._d_x, None
        if d_x is not None:
            d_x = columns.unpack(d_x, 1)
            d_x *= factor
        if sweep.axes == 1:
            initial = initial[0]
            d_x = None if d_x is None else d_x[:, 0]
            final = None if final is None else final[0]
        return Gradients(vector, self._parts, initial, d_x, final)

    def _in_order(self, sweep: Sweep) -> Array:
        """The sums in the order of `RNN.ravel`: W_I by rows, the kernel's one bias for two where there are both."""
        total = self._flat[0]
        for part in self._flat[1:]:  # in place: of tokens these may be large, and one copy is enough
            with np.errstate(over="ignore", invalid="ignore"):  # heard of when they are scaled
                total += part
        W_R, W_I, W_O, b, b_O = self._sums[0]
        both = "b_R" in self._parts and "b_I" in self._parts
        arrays = [W_R, W_I.T if sweep.tokens else W_I, W_O, b, b if both else None, b_O]
        return np.concatenate([array.ravel() for array in arrays if array is not None])

    def _through_first_state(self, sweep: Sweep, h_0: Array) -> None:
        """From dE/da_0 to dE/dh_0; of a sequence without a step, dE/dh_0 is what came for its final state."""
        columns = self.columns
        stepping = columns.start(2) - columns.size if columns.steps else 0
        if not stepping:
            return
        slopes = np.empty_like(h_0[:stepping])
        sweep.kernel.activate(sweep.network.activation, h_0[:stepping], None, slopes, None)
        self._carry[:stepping] *= slopes
