"""The sources of a gradient: an error of the network's own, a callable's, or gradients given from outside."""

from __future__ import annotations

import numpy as np

from bptt._arguments import Criterion
from bptt._columns import Columns, Segment
from bptt._kernel import LOSSES, Array
from bptt._memory import contiguous
from bptt._streams import Indices, Stream, Weights, pick, read
from bptt._sweep import Pull, Sweep, Window
from bptt._validate import Slices, numbers, shape
from bptt.network import RNN

CROSS_ENTROPY = LOSSES.index("cross_entropy")


class Targets:
    """A named error, with targets of every step or (``last``) of each sequence's last."""

    __slots__ = ("_columns", "_dtype", "_last", "_loss", "_weights", "_y", "total_weight")

    def __init__(
        self,
        rnn: RNN,
        columns: Columns,
        axes: int,
        loss: int,
        y: Array | Slices,
        last: bool,
        weights: Array | Slices | None,
    ) -> None:
        self.total_weight = 0.0
        self._columns, self._dtype, self._last, self._loss = columns, rnn.dtype, last, loss
        if last:
            y = np.broadcast_to(np.asarray(y), (columns.time, *y.shape))
        if loss == CROSS_ENTROPY:
            self._y: Stream = Indices("y", y, axes, columns, "m", rnn.m)
        else:
            self._y = Stream("y", y, axes, columns, rnn.dtype)
        self._weights = None if weights is None else Weights(weights, axes, columns, rnn.dtype)

    def pull(self, segment: Segment, window: Window) -> Pull:
        weights = None if self._weights is None else self._weights.read(segment)
        if self._last:
            ends = self._columns.ends(segment)
            if ends is None:
                return Pull()
            given, weights = weights, np.zeros(segment.columns, self._dtype)
            weights[ends] = 1 if given is None else given[ends]
        if weights is None:
            self.total_weight += segment.columns
        else:
            self.total_weight = self._columns.add(self.total_weight, weights)
        return Pull(self._loss, self._y.read(segment, weights), weights, None, None, np.empty(segment.columns))


class CallableError:
    """An error of the caller's: a function of a block of outputs and a block of targets, to E and dE/do."""

    __slots__ = ("_criterion", "_sweep", "_weights", "_y", "total_weight")

    def __init__(
        self, sweep: Sweep, criterion: Criterion, y: Array | Slices | None, weights: Array | Slices | None
    ) -> None:
        self.total_weight = 0.0
        self._criterion, self._sweep, self._y = criterion, sweep, y
        self._weights = None if weights is None else Weights(weights, sweep.axes, sweep.columns, sweep.rnn.dtype)

    def pull(self, segment: Segment, window: Window) -> Pull:
        sweep = self._sweep
        packed: Array = np.empty((segment.columns, sweep.rnn.m), sweep.rnn.dtype)
        sweep.outputs(segment, window, packed)
        o = sweep.columns.block(packed, segment)
        symbols = "L, B"
        if sweep.axes == 1:
            o, symbols = o[:, 0], "L"
        pair = self._criterion(o, None if self._y is None else read("y", self._y, segment.t0, segment.t1))
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TypeError(f"loss must return a pair (E, dE/do); got {type(pair).__name__}")
        E, d_outputs = numbers("E returned by loss", pair[0]), numbers("dE/do returned by loss", pair[1])
        shape("E returned by loss", E, symbols, o.shape[:-1])
        shape("dE/do returned by loss", d_outputs, f"{symbols}, m", o.shape)
        E, d_outputs = pick(E, sweep.axes, segment), pick(d_outputs, sweep.axes, segment)
        if self._weights is None:
            self.total_weight += segment.columns
        else:
            weights = self._weights.read(segment)
            self.total_weight = sweep.columns.add(self.total_weight, weights)
            met = weights > 0  # elsewhere there may stand nan
            E = np.multiply(weights, E, where=met, out=np.zeros(len(met)))
            d_outputs = np.multiply(weights[:, None], d_outputs, where=met[:, None], out=np.zeros(packed.shape))
        return Pull(d_outputs=contiguous(d_outputs, sweep.rnn.dtype), errors=E)


class Given:
    """Gradients from outside: dE/do_t, dE/d(state t), or neither."""

    __slots__ = ("_d_outputs", "_d_states", "total_weight")

    def __init__(self, sweep: Sweep, d_outputs: Array | None, d_states: Array | None) -> None:
        self.total_weight = 0.0
        axes, columns, dtype = sweep.axes, sweep.columns, sweep.rnn.dtype
        self._d_outputs = None if d_outputs is None else Stream("d_outputs", d_outputs, axes, columns, dtype)
        self._d_states = None if d_states is None else Stream("d_states", d_states, axes, columns, dtype)

    def pull(self, segment: Segment, window: Window) -> Pull:
        return Pull(
            d_outputs=None if self._d_outputs is None else self._d_outputs.read(segment),
            d_states=None if self._d_states is None else self._d_states.read(segment),
        )
