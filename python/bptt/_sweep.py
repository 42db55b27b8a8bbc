"""One call's way over the segments: forward through time, and back."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from bptt import _levels
from bptt._arguments import Extent, Nonfinite
from bptt._columns import Columns, Segment, block_steps, equal, present, segment_steps
from bptt._kernel import Array, Ordered, Sums
from bptt._streams import Indices, Inputs, place
from bptt._validate import Slices
from bptt.network import RNN

Window = tuple[Array, Array | None]  # rows t0 .. t1 of a and, where h is kept, rows t0+1 .. t1 of h


class States(NamedTuple):
    """The rows of all steps from t = 0 on."""

    a: Array
    h: Array | None  # the block of t = 0 is h_0 in form "preactivation", else 0

    def window(self, segment: Segment) -> Window:
        h = self.h
        return self.a[segment.before : segment.end], None if h is None else h[segment.first : segment.end]


def readout_rows(rnn: RNN, segment: Segment, window: Window) -> Array:
    """r_t0+1 .. r_t1 (C, ld): what the readout reads."""
    a, h = window
    if rnn.readout == "activation":
        return a[segment.first - segment.before :]
    assert h is not None
    return h


class Pull(NamedTuple):
    """What pulls on a segment: the arguments of `Kernel.backward` that say so."""

    loss: int = -1
    y: Array | None = None
    weights: Array | None = None
    d_outputs: Array | None = None
    d_states: Array | None = None
    errors: Array | None = None  # w_t E_t: for the kernel to write, or there already where loss is -1


class Source(Protocol):
    """Where the gradient comes from. Asked once for each segment, the last one first."""

    total_weight: float  # the sum of w_t over the steps met so far

    def pull(self, segment: Segment, window: Window) -> Pull: ...


class Sweep:
    """What the segments of one call share. Each works on a window of states, wherever that lies."""

    __slots__ = (
        "_latest",
        "axes",
        "columns",
        "kernel",
        "network",
        "nonfinite",
        "rnn",
        "threads",
        "tokens",
        "warning",
        "x",
    )

    def __init__(
        self,
        rnn: RNN,
        x: Array | Slices,
        extent: Extent,
        lengths: Array | None,
        nonfinite: Nonfinite,
        threads: int | None,
    ) -> None:
        self.threads = _levels.resolve_threads(threads)
        self.kernel = _levels.kernel()
        self.rnn, self.axes = rnn, extent.axes
        self.tokens = x.dtype.kind != "f"
        self.network = rnn._network(self.tokens)
        size = extent.size
        if lengths is not None:
            size = present(size, int(np.add.reduce(lengths)), int(np.maximum.reduce(lengths)))
        p = 1 if self.tokens else rnn.p
        grid = segment_steps(rnn.n, p, rnn.m, size, rnn.dtype, lengths is not None)
        if lengths is None:
            self.columns = equal(extent.time, extent.size, grid, rnn.n)
        else:
            self.columns = Columns(extent.time, extent.size, lengths, grid, block_steps(rnn.n, extent.size))
        self.x: Indices | Inputs
        if self.tokens:
            self.x = Indices("x", x, extent.axes, self.columns, "p", rnn.p)
        else:
            self.x = Inputs("x", x, extent.axes, self.columns, rnn.dtype)
        self._latest: tuple[Segment, Array | Ordered] | None = None
        self.nonfinite = nonfinite
        self.warning = ""  # to be given at the end of the call

    def inputs(self, segment: Segment) -> Array | Ordered:
        """x_t0+1 .. x_t1 (C, p). The way back begins with the segment that the way forth ended with."""
        if self._latest is None or self._latest[0] is not segment:
            self._latest = None  # not two of them at a time
            x = self.x
            self._latest = segment, x.given(segment) if isinstance(x, Inputs) else x.read(segment)
        return self._latest[1]

    def begin(self, initial: Array | None, a: Array, h: Array | None) -> None:
        """Fill in the rows of t = 0; h is needed in form "preactivation"."""
        n, columns = self.rnn.n, self.columns
        state = a if self.rnn.form == "activation" else h
        for rows in (a, h):
            if rows is not None:
                rows.fill(0)
        if initial is not None:
            assert state is not None
            state[:, :n] = columns.sort(initial)
        if self.rnn.form == "preactivation":
            assert h is not None
            self.kernel.activate(self.network.activation, h, a, None, None)

    def outputs(self, segment: Segment, window: Window, o: Array) -> None:
        """Write o_t0+1 .. o_t1 (C, m)."""
        unit = self.columns.unit * self.columns.size
        self.kernel.outputs(self.network, readout_rows(self.rnn, segment, window), o, unit, self.threads)

    def forward(self, segment: Segment, window: Window) -> None:
        a, h = window
        column = self.kernel.forward(self.network, self.inputs(segment), segment.counts, a, h, self.threads)
        if column >= 0:
            self._not_finite(f"the state is not finite: first {place(segment, column)}")

    def backward(
        self,
        segment: Segment,
        window: Window,
        pull: Pull,
        carry: Array,
        sums: tuple[Sums, ...],
        more: bool,
        d_x: Array | None,
    ) -> None:
        a, h = window
        column = self.kernel.backward(
            self.network,
            pull.loss,
            self.inputs(segment),
            segment.counts,
            a,
            h if self.rnn.readout == "preactivation" else None,
            pull.y,
            pull.weights,
            pull.d_outputs,
            pull.d_states,
            carry,
            None if pull.loss < 0 else pull.errors,
            sums,
            more,
            d_x,
            None,
            self.threads,
        )
        if column >= 0:
            self._not_finite(f"the gradient dE/dh_t is not finite: going back, first {place(segment, column)}")

    def _not_finite(self, message: str) -> None:
        if self.nonfinite == "raise":
            raise FloatingPointError(message)
        if self.nonfinite == "warn" and not self.warning:
            self.warning = message
