"""Lyapunov exponents: at which rates small changes of the state grow or decay, direction by direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bptt import _levels
from bptt._bundles import zero_rows
from bptt._factors import JacobianChain, network_chain
from bptt._kernel import ACTIVATIONS, Array
from bptt._memory import contiguous
from bptt._progress import Progress, meter
from bptt._progress import check as check_progress
from bptt._validate import generator, integer
from bptt.network import RNN
from bptt.results import Trajectory

_FLOAT64 = np.dtype(np.float64)

_WINDOWS = 256  # by default, at least where there are so many steps
_BATCHES = 32  # at most: of 10 to 30, more gain little (Schmeiser 1982)
_FLOP = 2_000_000_000  # of one piece: some tens of milliseconds, after which Ctrl-C is heard
_FAR = 20  # factors of 2, by which a column of W_R is so small that its scale is given to its slopes: these know no end
_BYTES = 16 << 20  # of the Jacobians that are looked at together


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Lyapunov:
    """Lyapunov exponents along a trajectory, made by `lyapunov_spectrum`. All are natural logarithms per step.

    Attributes
    ----------
    exponents : array of shape (k,)
        Mean growth rate of each direction, in the order of the QR: decreasing, where the run is long enough. -inf for a
        direction that is dead.
    standard_errors : array of shape (k,)
        Of the exponents, by batch means: they allow for correlations in time, where these are short beside a
        batch. nan where the exponent is -inf, or the run has fewer than two windows.
    local : array of shape (windows, k)
        The same mean over each window alone: finite-time (local) exponents.
    history : array of shape (windows, k)
        The same mean over all steps up to the end of each window: how the exponents have converged. The last row is
        ``exponents``.
    ends : integer array of shape (windows,)
        Steps from the end of the warm-up to the end of each window.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> spectrum = bptt.lyapunov_spectrum(jacobians=np.tile(np.diag([2.0, 0.5]), (100, 1, 1)))
    >>> bool(abs(spectrum.exponents.sum()) < 1e-12)
    True
    """

    exponents: Array
    standard_errors: Array
    local: Array
    history: Array
    ends: Array

    def __repr__(self) -> str:
        k, steps = len(self.exponents), int(self.ends[-1])
        return f"Lyapunov(k={k}, steps={steps}, largest {self.exponents[0]:.4g} ± {self.standard_errors[0]:.1g})"


def lyapunov_spectrum(
    rnn: RNN | None = None,
    trajectory: Trajectory | None = None,
    *,
    jacobians: npt.ArrayLike | None = None,
    k: int | None = None,
    warm_up: int = 0,
    window: int | None = None,
    rng: int | np.random.Generator | None = 0,
    threads: int | None = None,
    progress: Progress = False,
) -> Lyapunov:
    """Lyapunov exponents of a network along its inputs, or of a product of given Jacobians.

    The mean over the steps of log diag R in J_L ... J_2 J_1 Q_0 = Q R (Benettin 1980), with J_t = ∂h_{t+1}/∂h_t =
    W_R D_t, t = 1 .. T-1, the same in both forms. log sigma' enters as it is, computed from h in float64 also for
    float32 networks, so that saturated units count for what they are. At every finite T the exponents of a whole
    spectrum add up to log|det W_R| plus the mean of sum_i log sigma'(h_ti).

    The largest exponent decides whether ∂h_t/∂h_k vanishes (< 0) or explodes (> 0) as t - k grows, and at which rate.

    Parameters
    ----------
    rnn : RNN
    trajectory : Trajectory
        Of one sequence, T steps.
    jacobians : array of shape (T, n, n), optional
        Instead of a network and its trajectory: the step Jacobians of any other cell, finite; jacobians[t] is
        ∂h_{t+1}/∂h_t, and all T count. What is below 4 n eps of its row cannot be told from 0 in them.
    k : int, optional
        How many exponents, 1 .. n: the first k cost about k/n of all. None: all n.
    warm_up : int
        Steps at the beginning in which the directions align and nothing is counted, 0 .. L-1 for L steps. One that dies
        in them starts anew after them.
    window : int, optional
        Steps of each window of ``local`` and ``history``, at least 1; the last may be shorter. None: L / 256.
    rng : int, numpy.random.Generator or None
        For the random orthogonal Q_0.
    threads, progress
        As in `forward`.

    Returns
    -------
    Lyapunov

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        The trajectory is of a batch or has no step that counts, jacobians are not square or not finite, k, warm_up or
        window is out of range.
    FloatingPointError
        A state of the trajectory is not finite.

    Notes
    -----
    Within a window the product is kept triangular by elimination with the largest pivots, which leads to the same R as
    a QR at every step (Rutishauser's Treppeniteration). Steps are taken together while the growth rates stay within
    12 nats, so that the least is right to eps e^12. A direction is dead where a step maps it to zero, exactly (relu) or
    within rounding; it is -inf from the window on in which it died. Of a network no more directions live than the
    numerical rank of W_R, whatever the units of its rows and columns are. A product that vanishes after several steps
    only (a nilpotent matrix in a general basis) is, in float64, one of small numbers.

    The largest exponent is right whatever the others are: its direction is carried alone too. Of the others, where
    something cancels in W_R, a step whose rates spread over s nats leaves what is right to eps e^s, and from 36 nats on
    no digit. Where all of it does (minors that are exactly zero, as of matrices with equal columns, sparse, triangular
    or integer ones) and units are saturated, they may be off by nats, finite where they should be -inf, or the reverse;
    their sum is off by less. Numbers below 2.2e-308 count as 0.

    Examples
    --------
    A linear network has the logarithms of its eigenvalues' moduli:

    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[0.9, 1.0], [0.0, 0.5]], [[1.0], [1.0]], activation="identity")
    >>> trajectory = bptt.forward(rnn, np.zeros((2000, 1)))
    >>> spectrum = bptt.lyapunov_spectrum(rnn, trajectory, warm_up=1000)
    >>> spectrum
    Lyapunov(k=2, steps=999, largest -0.1054 ± 0)
    >>> np.exp(spectrum.exponents).round(12)
    array([0.9, 0.5])
    """
    steps: _Steps
    if jacobians is None:
        steps = _Network(rnn, trajectory)
    elif rnn is not None or trajectory is not None:
        raise TypeError("jacobians must be given alone, without rnn and trajectory")
    else:
        steps = _Jacobians(jacobians)
    n, count = steps.n, steps.count
    k = n if k is None else integer("k", k, 1)
    if k > n:
        raise ValueError(f"k must be in 1..n with n = {n}; got {k}")
    warm_up = integer("warm_up", warm_up, 0)
    if warm_up >= count:
        raise ValueError(f"warm_up must leave a step that counts, of the {count} there are; got {warm_up}")
    counted = count - warm_up
    window = max(1, counted // _WINDOWS) if window is None else min(integer("window", window, 1), counted)
    directions = generator("rng", rng)

    check_progress(progress)
    kernel, team = _levels.kernel(), _levels.resolve_threads(threads)
    Q = zero_rows(k, n)
    Q[:, :n] = np.linalg.qr(directions.standard_normal((k, n)).T)[0].T  # the same first ones for every k
    Q[steps.rank :] = 0
    leading = zero_rows(1, n)
    leading[:] = Q[:1]
    piece = max(1, _FLOP // (3 * n * n * k))

    def growth(begin: int, end: int) -> Array:
        total, log_r, alone = np.zeros(k), np.empty(k), np.zeros(1)
        for first in range(begin, end, piece):
            matrices, log_d = steps.between(first, min(first + piece, end))
            kernel.grow(matrices, log_d, Q, log_r, steps.rank < n, team)
            total += log_r
            if k > 1:
                kernel.grow(matrices, log_d, leading, log_r[:1], steps.rank < n, team)
                alone += log_r[:1]
            if tick:
                tick(min(piece, end - first))
        return _lead(total, alone[0]) if k > 1 else total

    ends = np.append(np.arange(window, counted, window), counted)
    lengths = np.diff(ends, prepend=0)
    with meter(progress, lambda: count) as tick:
        growth(0, warm_up)
        _replace_dead(Q[: steps.rank, :n], directions)
        leading[:] = np.where(leading.any(), leading, Q[:1])
        rates = np.array(
            [growth(warm_up + end - length, warm_up + end) for end, length in zip(ends, lengths, strict=True)]
        )
    history = np.cumsum(rates, axis=0) / ends[:, None]
    errors = _standard_errors(rates[lengths == window] / window)
    errors[np.isneginf(history[-1])] = np.nan  # also of what died in a last window that is shorter
    return Lyapunov(history[-1], errors, rates / lengths[:, None], history, ends)


def _replace_dead(Q: Array, rng: np.random.Generator) -> None:
    """Random directions, orthogonal to the others, for those that died before anything counts."""
    dead = ~Q.any(axis=1)
    if dead.any():
        new = rng.standard_normal((np.count_nonzero(dead), Q.shape[1]))
        Q[dead] = np.linalg.qr(np.vstack([Q[~dead], new]).T)[0].T[np.count_nonzero(~dead) :]


def _lead(rates: Array, largest: float) -> Array:
    """The rates of a basis with the first as its vector has it alone; what that changes is the last one's, for the sum.

    From the first direction nothing is ever taken away, so that alone it keeps digits that are lost among the others.
    """
    alive = np.flatnonzero(np.isfinite(rates))
    if len(alive) > 1 and alive[0] == 0 and np.isfinite(largest):
        rates[alive[-1]] += rates[0] - largest
    rates[0] = largest
    return rates


def _standard_errors(local: Array) -> Array:
    """Of the mean of equal windows, from means over batches of them (the windows left over are the first)."""
    windows, k = local.shape
    errors = np.full(k, np.nan)
    if windows < 2:
        return errors
    batches = min(max(2, math.isqrt(windows)), _BATCHES)
    size = windows // batches
    alive = np.isfinite(local[-1])
    means = local[windows - batches * size :, alive].reshape(batches, size, -1).mean(axis=1)
    scale = np.maximum(np.abs(means).max(axis=0), 1)  # of rates like 1e194 no square fits float64
    errors[alive] = (means / scale).std(axis=0, ddof=1) * scale / math.sqrt(batches)
    return errors


def _rank(W: Array) -> int:
    """The numerical rank, whatever the units of rows and columns are."""
    for axis in (1, 0):
        W = np.ldexp(W, -np.frexp(np.abs(W).max(axis=axis, keepdims=True))[1])
    return int(np.linalg.matrix_rank(W))


class _Steps(Protocol):
    n: int
    count: int
    rank: int  # at most so many directions survive a step

    def between(self, begin: int, end: int) -> tuple[Array, Array | None]:
        """``matrices`` and ``log_d`` of `Kernel.grow` for steps begin .. end - 1, from 0."""
        ...


class _Network:
    """W_R D_t for t = 1 .. T-1."""

    def __init__(self, rnn: Any, trajectory: Any) -> None:
        chain = network_chain(rnn, trajectory, instead="jacobians")
        self.n, self.count = chain.n, max(0, chain.steps - 1)
        if not self.count:
            raise ValueError(f"trajectory must have T >= 2 steps; got T = {chain.steps}")
        W = contiguous(rnn.W_R, _FLOAT64)
        self.rank = _rank(W)
        sizes = np.abs(W).max(axis=0)
        below = np.frexp(sizes)[1] - np.frexp(sizes.max())[1]
        below[below > -_FAR] = 0
        self._W, self._log_columns = np.ldexp(W, -below), below * math.log(2)
        self._log_columns[sizes == 0] = -np.inf
        self._h = trajectory._h[1:, : self.n]
        self._activation = ACTIVATIONS.index(rnn.activation)

    def between(self, begin: int, end: int) -> tuple[Array, Array]:
        h = self._h[begin:end].astype(np.float64)
        if not np.isfinite(h).all():
            t = begin + 1 + int(np.argmin(np.isfinite(h).all(axis=1)))
            raise FloatingPointError(f"the trajectory must be finite; its state at t = {t} is not")
        log_d = np.empty_like(h)
        _levels.kernel().activate(self._activation, h, None, None, log_d)
        log_d += self._log_columns
        return self._W, log_d


class _Jacobians:
    """The step Jacobians of any cell."""

    def __init__(self, jacobians: Any) -> None:
        self._chain = JacobianChain(jacobians)
        self.n, self.count = self._chain.n, self._chain.steps
        self.rank = self.n
        if not self.count:
            raise ValueError("jacobians must have shape (T, n, n) with T >= 1; got T = 0")

    def between(self, begin: int, end: int) -> tuple[Array, None]:
        return self._chain.factors(begin, end).matrices, None
