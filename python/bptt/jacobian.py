"""The derivative of the state by the weights, whole: what backpropagation only ever multiplies by a vector."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bptt import _arguments
from bptt._arguments import NONFINITE, Extent, Nonfinite
from bptt._bundles import step as step_number
from bptt._bundles import zero_rows
from bptt._columns import Segment
from bptt._kernel import Array, Ordered
from bptt._memory import aligned, contiguous
from bptt._progress import Progress, Tick, meter
from bptt._progress import check as check_progress
from bptt._rest import PROBES, half_a_place, rounding, steps_that_matter
from bptt._sweep import Sweep
from bptt._validate import Slices, choice, memory_size
from bptt.network import RNN

Wrt = Literal["W_R", "W_I", "b_R", "initial"]
Method = Literal["chain", "recursion"]

_FLOAT64 = np.dtype(np.float64)

#: Floating-point operations of one piece of steps: a millisecond or two, between which Ctrl-C is heard.
_FLOP = 100_000_000
_BLOCK = 104  # steps that the kernel sums together (cpp/kernel/jacobian.cpp)

#: What P(k,t) must have come down to, beside P(t,t), before it is asked how much of a long sum matters where the answer
#: depends on the sum so far; and by how much more before it is asked again.
_SMALL, _SMALLER = 2.0**-60, 2.0**-10

#: Of P(t,t), that float32 may be used at all.
_LARGE_SLOPE = 2.0**-20


def state_jacobian(
    rnn: RNN,
    x: npt.ArrayLike,
    *,
    wrt: Wrt = "W_R",
    step: int = -1,
    method: Method = "chain",
    initial: npt.ArrayLike | None = None,
    nonfinite: Nonfinite = "warn",
    memory: int | str = "1 GB",
    threads: int | None = None,
    progress: Progress = False,
) -> Array:
    """d(state t)/d(wrt), the total derivative of one state (article Thm 1, corrected).

    ::

        dh_t/dW_R = sum_{k=1}^t P(k,t) ⊗ a_{k-1}^T    P(k,t) = (W_R D_{t-1}) ... (W_R D_k)    D_t = diag sigma'(h_t)

    with x_k for a_{k-1} where wrt is W_I, 1 where it is b_R; dh_t/d(initial) is P(1,t) W_R in form "activation" and
    P(1,t) W_R D_0 in form "preactivation". The state is h_t in form "preactivation"; in form "activation" it is a_t,
    whose derivative is D_t times that of h_t. The states are the network's own, in its dtype; the derivative along them
    is in float64.

    Parameters
    ----------
    rnn : RNN
    x : array of shape (T, p), or integer array of shape (T,)
        Inputs of one sequence, as in `forward`.
    wrt : {"W_R", "W_I", "b_R", "initial"}
        What to differentiate by. b_I acts where b_R acts: its derivative is the same.
    step : int
        t in 0 .. T; negative ones count from the end, where -1 is T. The network is run up to there, and its states may
        part from those of a longer run in the last digit.
    method : {"chain", "recursion"}
        The sum above from its last term back, n^2 (n + q) multiply-adds a step where v_k = a_{k-1}, x_k or 1 has q
        numbers, and as long as the rest is above the bound on its rounding (the earliest steps in float32, if the bound
        on what that rounds is below it too); or J_k = I ⊗ v_k^T + W_R D_{k-1} J_{k-1}
        from k = 1 on (article Lemma 2, corrected; real-time recurrent learning, Williams 1989), n^3 q multiply-adds a
        step. They agree to rounding while P and J stay in the range of float64: what falls below 2.2e-308 on the way
        is 0 from there on. The chain keeps all states, the recursion a segment of them.
    initial : array of shape (n,), optional
        As in `forward`.
    nonfinite : {"warn", "raise", "ignore"}
        As in `forward`, and where the derivative leaves the range of float64. One that vanishes becomes 0 in silence.
    memory : int or str
        The most that the result may take, in bytes or as "16 MB" or "16 MiB".
    threads, progress
        As in `forward`.

    Returns
    -------
    float64 array of shape (n, *shape of wrt)
        [i, a, b] is the derivative of number i of the state by W[a, b].

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `forward`; x is a batch, step is not in 0 .. T, or the result takes more than ``memory``.

    Examples
    --------
    A scalar linear network, h_t = w h_{t-1}, has dh_t/dw = t w^(t-1) h_0:

    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[0.5]], [[1.0]], activation="identity")
    >>> bptt.state_jacobian(rnn, np.zeros((3, 1)), initial=[8.0]).item()
    6.0
    """
    inputs, extent = _sequence(rnn, x)
    choice("wrt", wrt, get_args(Wrt))
    t = step_number("step", step, 0, extent.time)
    choice("method", method, get_args(Method))
    run = _Run(rnn, inputs, extent, t, wrt, initial, nonfinite, memory, threads)
    check_progress(progress)
    with meter(progress, lambda: t) as tick:
        if method == "chain":
            J = run.chain(tick)
        else:
            for J in run.recursion(max(1, 10 * _FLOP // max(1, 2 * rnn.n**3 * run.q)), tick):  # noqa: B007
                pass  # the last is wanted
    if run.sweep.warning:
        warnings.warn(run.sweep.warning, RuntimeWarning, stacklevel=2)
    return np.ascontiguousarray(J)


def state_jacobians(
    rnn: RNN,
    x: npt.ArrayLike,
    *,
    wrt: Wrt = "W_R",
    initial: npt.ArrayLike | None = None,
    nonfinite: Nonfinite = "warn",
    memory: int | str = "1 GB",
    threads: int | None = None,
) -> Iterator[Array]:
    """d(state t)/d(wrt) for t = 0, 1, ..., T, one after another as the sequence is read (real-time recurrent learning).

    ::

        J_t = I ⊗ v_t^T + W_R D_{t-1} J_{t-1}        v_t = a_{t-1}, x_t or 1        (article Lemma 2, corrected)

    n^3 q multiply-adds a step for q numbers in v_t, and memory that does not grow with T.

    Parameters
    ----------
    rnn, x, wrt, initial, nonfinite, threads
        As in `state_jacobian`.
    memory : int or str
        The most that one J_t may take.

    Yields
    ------
    float64 array of shape (n, *shape of wrt)
        The caller's own.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `state_jacobian`, at the call for its arguments and in the loop for the values in them.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[0.5]], [[1.0]], activation="identity")
    >>> [J.item() for J in bptt.state_jacobians(rnn, np.zeros((3, 1)), initial=[8.0])]
    [0.0, 8.0, 8.0, 6.0]
    """
    inputs, extent = _sequence(rnn, x)
    choice("wrt", wrt, get_args(Wrt))
    return _online(_Run(rnn, inputs, extent, extent.time, wrt, initial, nonfinite, memory, threads))


def _sequence(rnn: Any, x: Any) -> tuple[Array | Slices, Extent]:
    _arguments.network(rnn)
    return _arguments.inputs(rnn, x, one=True)


def _online(run: _Run) -> Iterator[Array]:
    warned = False
    for J in run.recursion(1):
        if run.sweep.warning and not warned:
            warnings.warn(run.sweep.warning, RuntimeWarning, stacklevel=2)
            warned = True
        yield J


class _Run:
    """A run of the network over its first ``steps`` inputs, and the derivative along it."""

    def __init__(
        self,
        rnn: RNN,
        inputs: Array | Slices,
        extent: Extent,
        steps: int,
        wrt: Wrt,
        initial: Any,
        nonfinite: Nonfinite,
        memory: Any,
        threads: int | None,
    ) -> None:
        self.rnn, self.steps, self.wrt = rnn, steps, wrt
        self.initial = None if initial is None else _arguments.rows("initial", initial, rnn, extent)
        choice("nonfinite", nonfinite, NONFINITE)
        n = self.n = rnn.n
        self.shape = {"W_R": (n, n), "W_I": (n, rnn.p), "b_R": (n,), "initial": (n,)}[wrt]
        self.q = math.prod(self.shape) // n
        size = 8 * n * n * self.q
        if size > memory_size("memory", memory):
            raise ValueError(
                f"wrt={wrt!r} must give a result that fits memory = {memory!r}; "
                f"one of shape {(n, *self.shape)} takes {size:,} bytes"
            )
        self.sweep = Sweep(rnn, inputs, extent, np.array([steps]), nonfinite, threads)
        self.W = contiguous(rnn.W_R, _FLOAT64)

    def chain(self, tick: Tick | None) -> Array:
        """d(state at the last step)/d(wrt), by the sum over k from that step back."""
        n, sweep = self.n, self.sweep
        a, h = self._rows(self.steps + 1), self._rows(self.steps + 1)
        sweep.begin(self.initial, a[:1], h[:1])
        for segment in sweep.columns.segments():
            sweep.forward(segment, (a[segment.t0 : segment.t1 + 1], h[segment.t0 + 1 : segment.t1 + 1]))
        P, own = zero_rows(n, n), np.ones(n) * self._own_slopes(h[-1], self.steps)
        np.fill_diagonal(P, own)
        end = middle = self._silent(a)  # steps up to `end` do not matter, and for those up to `middle` float32 will do
        J = None if self.wrt == "initial" else (np.empty if end < self.steps else np.zeros)((n, n, self.q))
        moving = slice(None) if own.all() else own != 0
        room: Array | None = None  # of what does not matter, where that depends on the sum so far
        if J is not None and own.any() and self.steps > self._piece(n):
            pieces = self._back(a, h, self.steps, PROBES)
            _, d, v = latest = next(pieces)
            assert v is not None
            tokens = v.ndim == 1  # most are not among the latest steps
            room = np.zeros(self.q) if tokens else rounding(own, self.W, d, v, sweep.kernel, sweep.threads)
            if not np.isfinite(own.sum() + room.sum() + self.W.sum()):  # nothing can be left out
                room = None
            elif room.all():
                rest = itertools.chain([latest], pieces)
                rows = np.eye(n)[moving]
                matter, exact = steps_that_matter(rows, room, self.W, rest, sweep.kernel, sweep.threads)
                room, end = None, max(end, self.steps - matter)
                if own[moving].min() > _LARGE_SLOPE:
                    middle = self.steps - exact
        finite, small = True, _SMALL
        for begin, d, v in self._back(a, h, self.steps, n):
            more = begin + len(d) < self.steps
            first = max(begin, end)
            d, v = d[first - begin :], None if v is None else v[first - begin :]
            single = min(max(0, middle - first), len(d))
            finite = sweep.kernel.jacobian_by_chain(self.W, d, v, P, J, more, single, sweep.threads)
            if tick:
                tick(len(d))
            if begin <= end or not np.abs(P).max():  # it has underflowed, and so would all that is left
                break
            if room is None or J is None:
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                rows = P[moving, :n] / own[moving, None]
            size = np.abs(rows).max()
            if size < small:
                least = np.maximum(room, half_a_place(own, J))
                pieces = self._back(a, h, begin, PROBES)
                if not steps_that_matter(rows, least, self.W, pieces, sweep.kernel, sweep.threads)[0]:
                    break
                small = _SMALLER * size
        if J is None:
            J = P[:, :n]
            finite = bool(np.isfinite(J).all())
        if not finite:
            sweep._not_finite(f"the derivative of the state by {self.wrt} is not finite at step t = {self.steps}")
        return J.reshape(n, *self.shape)

    def _silent(self, a: Array) -> int:
        """How many steps go before the first v_k that is not zero: there P may overflow, and nothing comes of it."""
        for segment in self.sweep.columns.segments():
            v = self._sources(segment, a[segment.t0 : segment.t1])
            if v is None or v.ndim == 1:
                return 0
            if (heard := v.any(axis=1)).any():
                return segment.t0 + int(np.argmax(heard))
        return self.steps

    def _piece(self, rows: int) -> int:
        """Steps between two of which Ctrl-C is heard."""
        return max(1, _FLOP // (2 * rows * self.n * (self.n + self.q)) // _BLOCK) * _BLOCK

    def _back(self, a: Array, h: Array, end: int, rows: int) -> Iterator[tuple[int, Array, Array | None]]:
        """Steps t+1 .. of every piece from ``end`` back to the first: t, the diagonals of D_t .., and v_{t+1} .. .

        To move ``rows`` rows on by a piece takes a millisecond or two.
        """
        count = self._piece(rows)
        for segment in self.sweep.columns.segments_backward():
            if segment.t0 >= end:
                continue
            before = slice(segment.t0, min(segment.t1, end))
            d, v = self._slopes(h[before], segment.t0), self._sources(segment, a[before])
            for j in range(len(d), 0, -count):
                i = max(0, j - count)
                yield segment.t0 + i, d[i:j], None if v is None else v[i:j]

    def recursion(self, most: int, tick: Tick | None = None) -> Iterator[Array]:
        """d(state t)/d(wrt) by the recursion, for t = 0 and after every ``most`` steps or fewer."""
        n, sweep = self.n, self.sweep
        turned = zero_rows(n if self.wrt == "initial" else n * self.q, n)  # a row for each weight
        if self.wrt == "initial":
            turned[range(n), range(n)] = 1

        def result(h: Array, t: int) -> Array:
            with np.errstate(over="ignore", invalid="ignore"):  # said where it is found
                return (turned[:, :n] * self._own_slopes(h, t)).T.reshape(n, *self.shape)

        a, h = self._rows(1), self._rows(1)
        sweep.begin(self.initial, a, h)
        yield result(h[0], 0)
        found = False
        for segment in sweep.columns.segments():
            steps = segment.t1 - segment.t0
            last = a[-1], h[-1]
            a, h = self._rows(steps + 1), self._rows(steps + 1)
            a[0], h[0] = last
            sweep.forward(segment, (a, h[1:]))
            d, v = self._slopes(h[:-1], segment.t0), self._sources(segment, a[:-1])
            for i in range(0, steps, most):
                j = min(i + most, steps)
                v_ij = None if v is None else v[i:j]
                bad = sweep.kernel.jacobian_by_recursion(self.W, d[i:j], v_ij, turned, sweep.threads)
                if bad >= 0 and not found:
                    found, t = True, segment.t0 + i + bad + 1
                    sweep._not_finite(f"the derivative of the state by {self.wrt} is not finite: first at step t = {t}")
                if tick:
                    tick(j - i)
                yield result(h[j], segment.t0 + j)

    def _rows(self, count: int) -> Array:
        return aligned(count, self.n, self.rnn.dtype)

    def _slopes(self, h: Array, t: int) -> Array:
        """The diagonals of D_t, D_{t+1}, ..., one for each row of h; D_0 is that of the form's own initial value."""
        h = h[:, : self.n].astype(np.float64)
        d = np.empty_like(h)
        self.sweep.kernel.activate(self.sweep.network.activation, h, None, d, None)
        if t == 0 and self.rnn.form == "activation":
            d[0] = 1
        return d

    def _own_slopes(self, h: Array, t: int) -> Array | float:
        """d(state t)/dh_t."""
        return self._slopes(h[None], t)[0] if self.rnn.form == "activation" else 1.0

    def _sources(self, segment: Segment, a: Array) -> Array | None:
        """v_k for the steps k of a segment; a_{k-1} is given."""
        if self.wrt == "W_R":
            return a[:, : self.n].astype(np.float64)
        if self.wrt == "W_I":
            x = self.sweep.inputs(segment)
            assert not isinstance(x, Ordered)  # which is of many sequences
            return x if self.sweep.tokens else contiguous(x, _FLOAT64)
        return np.ones((len(a), 1)) if self.wrt == "b_R" else None
