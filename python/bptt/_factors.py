"""The factors of a chain P(k,t) = M_{t-1} M_{t-2} ... M_k, as a level takes them, some steps at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from bptt import _arguments, _levels
from bptt._kernel import ACTIVATIONS, Array, Factors
from bptt._memory import aligned, contiguous
from bptt._progress import Tick
from bptt._validate import numbers
from bptt.network import RNN
from bptt.results import Trajectory
from bptt.scaled import normalised

_FLOAT64 = np.dtype(np.float64)
_LN2 = float(np.log(2.0))

#: A slope below this comes with an exponent, and none below the other (h = 10**11): exponents of many steps add up.
_LEAST_SLOPE, _LEAST_LOG2 = 2.0**-512, -(2.0**40)

#: Floating-point operations and bytes of one piece: milliseconds, between which Ctrl-C is heard.
_FLOP, _BYTES = 500_000_000, 1 << 20


class Chain(Protocol):
    """M_k for k = least .. steps - 1."""

    n: int
    steps: int  # T
    least: int

    def factors(self, first: int, end: int) -> Factors: ...


class NetworkChain:
    """M_k = W_R D_k, in float64 whatever the network's dtype, D_k from h_k."""

    def __init__(self, rnn: RNN, trajectory: Trajectory) -> None:
        self.n, self.steps = rnn.n, trajectory._columns.steps
        self.least = 1 if rnn.form == "activation" else 0  # in form "activation" there is no h_0
        self._W = contiguous(rnn.W_R, _FLOAT64)
        self._h = trajectory._h[:, : rnn.n]
        self._activation = ACTIVATIONS.index(rnn.activation)
        self._kernel = _levels.kernel()

    def factors(self, first: int, end: int) -> Factors:
        d, e = self.slopes(np.arange(first, end))
        rows = aligned(len(d), self.n, _FLOAT64)
        rows[:] = 0
        rows[:, : self.n] = d
        if e is not None:
            powers = np.zeros(rows.shape, np.int64)
            powers[:, : self.n] = e
            e = powers
        return Factors(self._W, rows, e, first)

    def slopes(self, t: Array) -> tuple[Array, Array | None]:
        """The diagonals of D_t = d * 2**e, (len(t), n); e is None where float64 holds them all."""
        h = self._h[t].astype(np.float64)
        if not np.isfinite(h).all():
            first = int(np.asarray(t)[int(np.argmin(np.isfinite(h).all(axis=1)))])
            raise FloatingPointError(f"the trajectory must be finite; its state at t = {first} is not")
        d = np.empty_like(h)
        self._kernel.activate(self._activation, h, None, d, None)
        small = d < _LEAST_SLOPE
        if not small.any():
            return d, None
        log_d = np.empty_like(h)
        self._kernel.activate(self._activation, h, None, None, log_d)
        small &= log_d > -np.inf  # what is left is 0 and means it
        if not small.any():
            return d, None
        log2 = np.maximum(log_d[small] / _LN2, _LEAST_LOG2)
        e = np.zeros(h.shape, np.int64)
        e[small] = np.floor(log2)
        d[small] = np.exp2(log2 - e[small])
        return d, e

    def times_slopes(self, rows: Array, t: Array) -> tuple[Array, Array]:
        """rows[i] D_t[i] = mantissas * 2**exponents, (len(t), n) and (len(t),), where float64 would not hold it too."""
        mantissas, powers = np.frexp(rows)
        d, e = self.slopes(t)
        return normalised(mantissas * d, powers if e is None else powers + e)


class JacobianChain:
    """M_k as given: the step Jacobians of any cell."""

    least = 0

    def __init__(self, jacobians: Any, name: str = "jacobians") -> None:
        self._M = numbers(name, jacobians)
        sizes = self._M.shape
        if len(sizes) != 3 or sizes[1] != sizes[2] or not sizes[1]:
            raise ValueError(f"{name} must have shape (T, n, n) with n >= 1; got {sizes}")
        self.steps, self.n = sizes[:2]
        together = max(1, _BYTES // (8 * self.n**2))
        for begin in range(0, self.steps, together):
            finite = np.isfinite(self._M[begin : begin + together]).all(axis=(1, 2))
            if not finite.all():
                raise ValueError(f"{name} must be finite; {name}[{begin + int(np.argmin(finite))}] is not")

    def factors(self, first: int, end: int) -> Factors:
        return Factors(contiguous(self._M[first:end], _FLOAT64), None, None, first)


def network_chain(rnn: Any, trajectory: Any, instead: str = "") -> NetworkChain:
    """The chain of a network along a trajectory of one sequence, both checked."""
    _arguments.network(rnn, instead=instead)
    extent = _arguments.trajectory(rnn, trajectory)
    if extent.axes == 2:
        raise ValueError(
            f"trajectory must be of one sequence, from x of shape (T, p) or (T,); got one of a batch, B = {extent.size}"
        )
    _arguments.finite_recurrence(rnn)
    return NetworkChain(rnn, trajectory)


def pieces(chain: Chain, least: int, end: int, rows: int, tick: Tick | None) -> Iterator[Factors]:
    """The factors k = end - 1, ..., least in pieces, for as many rows. ``tick`` hears of each that was met."""
    row = 8 * chain.n * (1 if isinstance(chain, NetworkChain) else chain.n)
    count = max(1, min(_FLOP // (2 * chain.n**2 * rows), _BYTES // row))
    for stop in range(end, least, -count):
        begin = max(least, stop - count)
        yield chain.factors(begin, stop)
        if tick:
            tick(stop - begin)
