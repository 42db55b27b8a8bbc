"""Product chains along a trajectory: how large ∂h_t/∂h_k is, and what each step contributes to a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bptt import _arguments, _levels
from bptt._bundles import NUMBERS, Stops, identities, step, walk, zero_rows
from bptt._compression import compressed
from bptt._direct import Direct
from bptt._factors import Chain, JacobianChain, NetworkChain, network_chain, pieces
from bptt._kernel import Array, Bundles, Factors
from bptt._progress import Progress, Tick, meter
from bptt._progress import check as check_progress
from bptt._validate import memory_size, numbers, shape
from bptt.network import RNN
from bptt.results import Trajectory
from bptt.scaled import Order, ScaledMatrix, log_norms, norm_order, normalised

#: From this n on chains go one by one: a single P keeps the kernel busy, and only alone can it be compressed.
_ALONE = 32

#: The lag at which it first is; then at twice that, and so on.
_FIRST_COMPRESSION = 64

#: Gradients that are summed together: they stay in a near cache, and are enough columns for a matrix product.
_GRADIENTS = 12


def product_chain(
    rnn: RNN, trajectory: Trajectory, start: int, stop: int, *, threads: int | None = None, progress: Progress = False
) -> ScaledMatrix:
    """P(start, stop) = ∂h_stop/∂h_start = (W_R D_{stop-1}) (W_R D_{stop-2}) ... (W_R D_start), D_t = diag sigma'(h_t).

    The product of article Thm 1, its order put right: later factors stand on the left, and P(t, t) is the identity. In
    both forms h is the pre-activation. sigma' comes from h and everything is computed in float64, also for float32
    networks.

    Parameters
    ----------
    rnn : RNN
    trajectory : Trajectory
        Of one sequence, T steps.
    start, stop : int
        k and t of P(k, t), start <= stop, in 1 .. T (in form "preactivation" 0 .. T); negative ones count from the end,
        where -1 is T.
    threads, progress
        As in `forward`.

    Returns
    -------
    ScaledMatrix
        Of shape (n, n). Its largest singular value, Frobenius norm and row vectors g P are right to rounding; its small
        singular values are not, once they are below eps times the largest. On the way each row has an exponent of its
        own: of one row, numbers that part by more than a factor 1e308 leave the smaller as 0. Weights under 2.2e-308
        count as 0.

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        A step is out of range, start > stop, W_R is not finite, or the trajectory is of a batch.
    FloatingPointError
        A state on the way is not finite.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> import math
    >>> rnn = bptt.RNN([[0.0, 3.0], [3.0, 0.0]], [[1.0], [1.0]], activation="identity")
    >>> trajectory = bptt.forward(rnn, np.zeros((5000, 1)))
    >>> P = bptt.product_chain(rnn, trajectory, 1, -1)
    >>> round(P.log_norm() / math.log(3), 6)
    4999.0
    """
    chain = network_chain(rnn, trajectory)
    k, t = step("start", start, chain.least, chain.steps), step("stop", stop, chain.least, chain.steps)
    if k > t:
        raise ValueError(f"start must not come after stop; got the steps {k} and {t}")
    rows, exponents = identities(1, chain.n)
    bundles = Bundles(np.array([t]), t - k + 1, rows, exponents)
    check_progress(progress)
    kernel, team = _levels.kernel(), _levels.resolve_threads(threads)
    with meter(progress, lambda: t - k) as tick:
        for factors in walk(chain, bundles, k, tick):
            kernel.advance(factors, bundles, None, None, None, team)
    # Rows have exponents of their own; what is too small beside the largest number to fit float64 counts as zero.
    matrix = rows[:, : chain.n]
    top = int(exponents.max(where=matrix.any(axis=1), initial=0 if not matrix.any() else -(2**62)))
    return ScaledMatrix(np.ldexp(matrix, np.clip(exponents - top, -5000, 0)[:, None]), top)


def chain_norms(
    rnn: RNN | None = None,
    trajectory: Trajectory | None = None,
    *,
    jacobians: npt.ArrayLike | None = None,
    vectors: npt.ArrayLike | None = None,
    stops: npt.ArrayLike | None = None,
    max_lag: int | None = None,
    ord: Order = 2,
    memory: int | str = "1 GB",
    threads: int | None = None,
    progress: Progress = False,
) -> Array:
    """log ‖P(t - lag, t)‖ for chosen t and all lags, P as in `product_chain`.

    The norm of the contribution F(k, t) = P(k, t) ⊗ a_{k-1}^T of step k to dh_t/dW_R is ‖P(k, t)‖ ‖a_{k-1}‖
    (article Thm 1).

    Parameters
    ----------
    rnn, trajectory
        As in `product_chain`, or left out where ``jacobians`` is given.
    jacobians : array of shape (T, n, n), optional
        The step Jacobians of any other cell, finite: jacobians[k] is ∂h_{k+1}/∂h_k, and P(k, t) = jacobians[t-1] ...
        jacobians[k], k = 0 .. T.
    vectors : array of shape (S, n), optional
        A row vector v for each stop, finite: log ‖v P(t - lag, t)‖_2 instead, for about 1/n of the work.
    stops : integer array of shape (S,), optional
        The steps t, in 0 .. T, in any order; negative ones count from the end, where -1 is T. None: 1 .. T.
    max_lag : int, optional
        The largest lag, >= 0. None: the largest of the stops.
    ord : {2, "fro"}
        Spectral or Frobenius norm, of a P that is carried in as few rows as rounding allows: after some hundred steps
        far fewer than n, see Notes. The spectral norm comes from a power iteration that ends when a bound on its error
        does, or where that takes too long from the eigenvalues of P P^T: to a relative 1e-12 and a few n eps.
    memory : int or str
        The most that the result may take, in bytes or as "16 MB" or "16 MiB".
    threads, progress
        As in `forward`.

    Returns
    -------
    float64 array of shape (S, max_lag + 1)
        Natural logarithms; row i and column l belong to t = stops[i] and k = t - l. -inf where P is zero, nan where k
        is out of range (k < 1; in form "preactivation" and for jacobians k < 0). Numbers of a factor W_R or M under
        2.2e-308 count as 0, and so does what is that small beside the largest number of a factor or of a row of P.

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        A step is out of range, the trajectory is of a batch, W_R is not finite, jacobians are not square or not finite,
        vectors are not of shape (S, n) or not finite, or the result takes more than ``memory``.
    FloatingPointError
        A state on the way is not finite.

    Notes
    -----
    The directions of a long product part exponentially, by its Lyapunov exponents, so that its rows soon span fewer
    than n dimensions but for rounding. From n = 32 on, at the lags 64, 128, 256, ..., P = P' M is replaced by the rows
    C = U^T P of its first left singular vectors, as many as it takes for ‖(P - U C) e_j‖_inf <= n u ‖|P'| |M| e_j‖_inf
    in each column j: no more than the rounding of that column (Higham 2002, eq. 3.13). The norms of the products that
    follow are those of C.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[0.5]], [[1.0]], activation="identity")
    >>> trajectory = bptt.forward(rnn, np.zeros((4, 1)))
    >>> bptt.chain_norms(rnn, trajectory, stops=[4, 2]) / np.log(2)
    array([[ 0., -1., -2., -3., nan],
           [ 0., -1., nan, nan, nan]])
    """
    chain: Chain
    if jacobians is None:
        chain = network_chain(rnn, trajectory, instead="jacobians")
    elif rnn is not None or trajectory is not None:
        raise TypeError("jacobians must be given alone, without rnn and trajectory")
    else:
        chain = JacobianChain(jacobians)
    steps = Stops(chain.steps, stops, max_lag)
    spectral, n = norm_order(ord) == 2, chain.n
    norms = steps.table(memory)
    rows = None if vectors is None else _vectors(vectors, steps, n)
    check_progress(progress)
    team = _levels.resolve_threads(threads)
    if rows is not None:
        most = max(1, NUMBERS // n)
    else:
        most = 1 if n >= _ALONE else NUMBERS // n**2
        norms[steps.t >= chain.least, 0] = 0 if spectral else np.log(n) / 2
    with meter(progress, lambda: steps.work(most, chain.least)) as tick:
        if rows is not None:
            _vector_norms(chain, steps, most, rows, norms, team, tick)
            return steps.given(norms)
        for group in steps.groups(most):
            t = steps.t[group]
            leads = None
            if spectral:
                leads = zero_rows(len(t), n)
                leads[:, :n] = np.random.default_rng(0).standard_normal(n)
            bundles = Bundles(t, steps.lags, *identities(len(t), n))
            if len(t) == 1:
                _one_chain(chain, bundles, norms[group], leads, team, tick)
            else:
                for factors in walk(chain, bundles, chain.least, tick):
                    _levels.kernel().advance(factors, bundles, norms[group], None, leads, team)
    return steps.given(norms)


def _one_chain(
    chain: Chain, bundles: Bundles, norms: Array, leads: Array | None, threads: int, tick: Tick | None
) -> None:
    """The norms of one P along its lags. Its rows become dependent to rounding, and it goes on in fewer of them."""
    k = t = int(bundles.stops[0])
    least, due = max(chain.least, t - bundles.lags + 1), _FIRST_COMPRESSION

    def advance(end: int) -> None:
        for factors in pieces(chain, end, k, len(bundles.rows), tick):
            _levels.kernel().advance(factors, bundles, norms, None, leads, threads)

    while k > least:
        advance(goal := max(least, t - due))
        k, due = goal, 2 * due
        if k > least and len(bundles.rows) > 1:
            before = bundles._replace(rows=bundles.rows.copy(), exponents=bundles.exponents.copy())
            advance(k - 1)
            k -= 1
            bundles, leads = compressed(bundles, before, chain.factors(k, k + 1), leads)


def contributions(
    rnn: RNN,
    trajectory: Trajectory,
    y: npt.ArrayLike,
    *,
    stops: npt.ArrayLike | None = None,
    max_lag: int | None = None,
    loss: str | None = None,
    weights: npt.ArrayLike | None = None,
    memory: int | str = "1 GB",
    threads: int | None = None,
    progress: Progress = False,
) -> Array:
    """log ‖contribution of step k to ∂(w_t E_t)/∂W_R‖ for chosen t and all lags t - k.

    The contribution (k, t) is the rank-one matrix (g_t P(k, t))^T a_{k-1}^T, with g_t = ∂(w_t E_t)/∂h_t (`errors`) and
    P as in `product_chain`: its norm, spectral or Frobenius, is ‖g_t P(k, t)‖ ‖a_{k-1}‖. Over k = 1 .. t the
    contributions sum to `per_step_gradients` (Pascanu 2013 eq. 4).

    Parameters
    ----------
    rnn : RNN
        With a readout.
    trajectory : Trajectory
        Of one sequence, T steps.
    y, loss, weights
        As in `errors`.
    stops, max_lag, memory
        As in `chain_norms`.
    threads, progress
        As in `forward`.

    Returns
    -------
    float64 array of shape (S, max_lag + 1)
        Natural logarithms, as from `chain_norms`; defined for k >= 1.

    Raises
    ------
    TypeError, ValueError
        As in `errors` and `chain_norms`.
    FloatingPointError
        A state, or the gradient of an error by it, is not finite.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN.random(3, 16, 5, gain=0.8)
    >>> x, y = np.random.default_rng(0).standard_normal((50, 3)), np.zeros(50, int)
    >>> logs = bptt.contributions(rnn, bptt.forward(rnn, x), y, stops=[-1])
    >>> int(np.argmax(logs[0, :49])), bool(logs[0, 40] < logs[0, 0] - 5)
    (0, True)
    """
    chain, direct = _with_errors(rnn, trajectory, y, loss, weights)
    steps = Stops(chain.steps, stops, max_lag)
    logs = steps.table(memory)
    check_progress(progress)
    kernel, team, most = _levels.kernel(), _levels.resolve_threads(threads), max(1, NUMBERS // chain.n)
    with meter(progress, lambda: steps.work(most, 1)) as tick:
        for group in steps.groups(most):
            t, own = steps.t[group], logs[group]
            mantissas, exponents = direct.parts(t)
            there = t >= 1
            own[there, 0] = log_norms(mantissas[there], exponents[there, None])
            own[there, 0] += log_norms(_before(trajectory, t[there]))
            bundles = _row_vectors(chain, t, steps.lags, mantissas, exponents)
            for factors in walk(chain, bundles, 1, tick):
                offsets = log_norms(_before(trajectory, _range(factors)))
                kernel.advance(factors, bundles, own, offsets, None, team)
    return steps.given(logs)


def per_step_gradients(
    rnn: RNN,
    trajectory: Trajectory,
    y: npt.ArrayLike,
    *,
    stops: npt.ArrayLike | None = None,
    loss: str | None = None,
    weights: npt.ArrayLike | None = None,
    memory: int | str = "1 GB",
    threads: int | None = None,
    progress: Progress = False,
) -> Array:
    """∂(w_t E_t)/∂W_R for chosen t: what the error of each step alone asks of the recurrent weights (article eq. 3).

    Their sum over t = 1 .. T is dE/dW_R of `value_and_grad` with ``reduction="sum"``.

    Parameters
    ----------
    rnn, trajectory, y, loss, weights, threads, progress
        As in `contributions`.
    stops : integer array of shape (S,), optional
        As in `chain_norms`.
    memory : int or str
        The most that the result may take; it takes 8 S n^2 bytes.

    Returns
    -------
    float64 array of shape (S, n, n)

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `contributions`.
    OverflowError
        A gradient, or a product on the way to it, is beyond the range of float64; `contributions` has its logarithm.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN.random(3, 16, 5)
    >>> x, y = np.random.default_rng(0).standard_normal((50, 3)), np.zeros(50, int)
    >>> gradients = bptt.per_step_gradients(rnn, bptt.forward(rnn, x), y)
    >>> _, whole = bptt.value_and_grad(rnn, x, y, reduction="sum")
    >>> bool(np.allclose(gradients.sum(axis=0), whole.W_R))
    True
    """
    chain, direct = _with_errors(rnn, trajectory, y, loss, weights)
    steps = Stops(chain.steps, stops)
    n, limit, size = chain.n, memory_size("memory", memory), 8 * len(steps) * chain.n**2
    if size > limit:
        raise ValueError(
            f"stops must be so few that the result fits memory = {memory!r}; "
            f"{len(steps)} stops with n = {n} take {size:,} bytes"
        )
    check_progress(progress)
    kernel, team = _levels.kernel(), _levels.resolve_threads(threads)
    gradients = np.zeros((len(steps), n, n))
    with meter(progress, lambda: steps.work(_GRADIENTS, 1)) as tick:
        for group in steps.groups(_GRADIENTS):
            t, own = steps.t[group], gradients[group]
            mantissas, exponents = direct.parts(t)
            there = t >= 1
            with np.errstate(over="ignore", invalid="ignore"):
                g = np.ldexp(mantissas[there], np.clip(exponents[there], -5000, 5000)[:, None])
                own[there] = g[:, :, None] * _before(trajectory, t[there])[:, None, :]
            bundles = _row_vectors(chain, t, chain.steps + 1, mantissas, exponents)
            for factors in walk(chain, bundles, 1, tick):
                a = zero_rows(len(_range(factors)), n)
                a[:, :n] = _before(trajectory, _range(factors))
                kernel.accumulate(factors, bundles, a, own, team)
    finite = np.isfinite(gradients).all(axis=(1, 2))
    if not finite.all():
        t = steps.t[int(np.argmin(finite))]
        raise OverflowError(
            f"the gradient at t = {t} is beyond the range of float64: contributions() has its logarithm"
        )
    return steps.given(gradients)


def _vectors(vectors: Any, steps: Stops, n: int) -> Array:
    """By stop, as `Stops` has sorted them."""
    array = numbers("vectors", vectors)
    shape("vectors", array, "S, n", (len(steps), n))
    rows = steps.sort(array).astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("vectors must be finite")
    return rows


def _vector_norms(
    chain: Chain, steps: Stops, most: int, vectors: Array, norms: Array, threads: int, tick: Tick | None
) -> None:
    there = steps.t >= chain.least
    norms[there, 0] = log_norms(vectors[there])
    mantissas, exponents = normalised(vectors)
    for group in steps.groups(most):
        bundles = _row_vectors(chain, steps.t[group], steps.lags, mantissas[group], exponents[group])
        for factors in walk(chain, bundles, chain.least, tick):
            _levels.kernel().advance(factors, bundles, norms[group], None, None, threads)


def _with_errors(rnn: RNN, trajectory: Trajectory, y: Any, loss: Any, weights: Any) -> tuple[NetworkChain, Direct]:
    _arguments.network(rnn, readout=True)
    chain = network_chain(rnn, trajectory)
    return chain, Direct(rnn, trajectory, chain, y, loss, weights)


def _row_vectors(chain: Chain, t: Array, lags: int, mantissas: Array, exponents: Array) -> Bundles:
    rows = zero_rows(len(t), chain.n)
    rows[:, : chain.n] = mantissas
    return Bundles(t, lags, rows, exponents)


def _range(factors: Factors) -> Array:
    """The k of the factors of a network's chain."""
    assert factors.d is not None
    return np.arange(factors.first, factors.first + len(factors.d))


def _before(trajectory: Trajectory, t: Array) -> Array:
    """a_{t-1}, in float64."""
    return np.asarray(trajectory._a[t - 1, : trajectory._n], np.float64)
