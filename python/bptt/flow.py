"""How far back the gradient of a network reaches, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bptt import _arguments
from bptt._arguments import Extent
from bptt._columns import Columns
from bptt._factors import JacobianChain, NetworkChain
from bptt._kernel import Array
from bptt._memory import aligned
from bptt._progress import Progress, part
from bptt._progress import check as check_progress
from bptt._quantiles import median
from bptt._survey import STAGE, Survey
from bptt._validate import numbers, shape
from bptt.certificates import Certificates, bounds, cond_limit_of, slope_range
from bptt.chain import contributions
from bptt.gradient import errors, forward
from bptt.network import RNN
from bptt.results import Trajectory
from bptt.scaled import log_norms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["vanishing", "exploding", "marginal", "transient growth, then decay"]


@dataclass(frozen=True, eq=False, repr=False)
class Flow:
    """How the gradient of a network flows back, made by `gradient_flow`: ``print(flow)`` is a table, `plot` a figure.

    A row stands for a step t of a sequence b, a column for a lag t - k. Logarithms are natural.

    Attributes
    ----------
    norms : array of shape (R, L + 1), L the smaller of max_lag and the last stop - 1
        log ‖P(k,t)‖_2, P(k,t) = ∂h_t/∂h_k: `chain_norms`.
    contributions : array of shape (R, L + 1)
        Log norm of the contribution of step k to ∂(w_t E_t)/∂W_R: `contributions`; or, without an error, to ∂h_t/∂W_R:
        ‖P(k,t)‖_2 ‖a_{k-1}‖_2. Of a cell known by its Jacobians, ‖g_t P(k,t)‖_2 with g_t = ∂E/∂h_t, the direct part; or
        ``norms``. nan where k < 1, or no error enters at t.
    of_error : bool
        Which of the two.
    stops, sequences : integer array of shape (R,)
        t and b of each row.
    exponents, standard_errors : array of shape (k,)
        Lyapunov exponents per step, from the largest on: medians over the sequences, each counting by its steps; -inf
        for a direction that dies, if at a single step. The errors are of the noise and of what the sequences differ by,
        not of a trend: growth that ends after the sequences do is in the exponents.
    by_sequence : array of shape (S, k)
        Those of each sequence that has rows.
    certificates : Certificates or None
        For all inputs along which the slopes stay in the range seen here. None of a cell known by its Jacobians.
    fraction : float
        Of the largest contribution, at which the horizon lies.
    verdict : str
        "vanishing", "exploding", "marginal" or "transient growth, then decay"; see Notes.
    horizon : int
        The largest lag at which, in the median (of logarithms) over the rows that have it, a contribution there or
        farther back exceeds ``fraction`` of the largest of its row; 0 if all are zero.

    Notes
    -----
    With λ the largest exponent and a tolerance of 2 standard errors, but at least 1 / L (a factor e over the lags
    looked at), the verdict is exploding where λ is above the tolerance, or transient growth if the certificates prove
    that it ends; marginal where |λ| is within the tolerance; and else transient growth where the median over the rows
    of ‖P‖ exceeds 2 at some lag, or vanishing.
    """

    norms: Array
    contributions: Array
    of_error: bool
    stops: Array
    sequences: Array
    exponents: Array
    standard_errors: Array
    by_sequence: Array
    certificates: Certificates | None
    fraction: float

    @property
    def verdict(self) -> Verdict:
        rate, tolerance = self.exponents[0], max(2 * np.nan_to_num(self.standard_errors[0]), 1 / self._max_lag)
        if -tolerance <= rate <= tolerance:
            return "marginal"
        if rate > tolerance and not self._ends:
            return "exploding"
        grows = rate > tolerance or np.nanmax(median(self.norms)) > np.log(2)
        return "transient growth, then decay" if grows else "vanishing"

    @property
    def horizon(self) -> int:
        farthest = np.fmax.accumulate(self._relative()[:, ::-1], axis=1)[:, ::-1]  # the largest there or farther back
        above = np.flatnonzero(median(farthest) > np.log(self.fraction))
        return int(above.max(initial=0))

    def plot(self) -> Figure:
        """One figure: norms and bounds against the lag, contributions against t and lag, the Lyapunov exponents.

        Returns
        -------
        matplotlib.figure.Figure
            To show in a notebook, or to save: ``flow.plot().savefig("flow.png")``.
        """
        from bptt.flow_figure import draw

        return draw(self)

    def __repr__(self) -> str:
        return f"Flow({self.verdict}, horizon={self.horizon}, largest exponent {self.exponents[0]:.4g})"

    def __str__(self) -> str:
        from bptt.flow_table import write

        return write(self)

    @property
    def _max_lag(self) -> int:
        return int(self.norms.shape[1]) - 1

    @property
    def _reaches_on(self) -> bool:
        """Whether the horizon lies beyond the lags looked at."""
        return bool(self.horizon == self._max_lag < self.stops.max() - 1)

    @property
    def _ends(self) -> bool:
        """Whether all growth is proved to end."""
        return self.certificates is not None and self.certificates.vanishes

    def _relative(self) -> Array:
        """Log of each contribution by the largest of its row; of zeros by zero too."""
        largest = np.fmax.reduce(self.contributions, axis=1, keepdims=True)
        return np.asarray(self.contributions - np.where(np.isneginf(largest), 0, largest))


def gradient_flow(
    rnn: RNN | None = None,
    x: npt.ArrayLike | None = None,
    y: npt.ArrayLike | None = None,
    *,
    jacobians: npt.ArrayLike | list[Array] | None = None,
    d_states: npt.ArrayLike | list[Array] | None = None,
    initial: npt.ArrayLike | None = None,
    lengths: npt.ArrayLike | None = None,
    loss: str | None = None,
    weights: npt.ArrayLike | None = None,
    stops: npt.ArrayLike | None = None,
    max_lag: int | None = None,
    k: int | None = None,
    fraction: float = 0.01,
    cond_limit: float = 1e6,
    threads: int | None = None,
    progress: Progress = False,
) -> Flow:
    """How far back the gradient of a network reaches: whether it vanishes or explodes, how fast, and what proves it.

    Parameters
    ----------
    rnn : RNN
    x, initial, lengths
        As in `forward`: one sequence, or a batch of them whose results are pooled. Sequences of fewer than 3 steps are
        left out.
    y, loss, weights : optional
        As in `errors`. Without an error, the contributions are those to the state's gradient instead of the error's.
    jacobians : array of shape (T, n, n), or list of such, optional
        In place of a network and its inputs: the step Jacobians of any other cell, as in `chain_norms`, of one sequence
        or of several.
    d_states : array of shape (T, B, n), optional
        In place of y: the direct derivatives of any error by the states, as in `backward`. With jacobians, of shape
        (T, n), or a list of such.
    stops : integer array, optional
        The steps t that are looked at, 1 .. T of the longest sequence, not the first alone; negative ones count from
        each sequence's own end, where -1 is its last; in a shorter sequence those it has, and without any it is left
        out. None: 8 to 64 of each sequence, evenly spaced, its last among them, and as many of those at which an error
        enters.
    max_lag : int, optional
        The largest lag, at least 1, as far as there are stops so late. None: 200, or T - 1.
    k : int, optional
        How many Lyapunov exponents, 1 .. n. None: 64, or n. The first tenth of each sequence (rounded down) does not
        count.
    fraction : float
        See ``Flow.horizon``; in (0, 1).
    cond_limit : float
        As in `certificates`.
    threads, progress
        As in `forward`.

    Returns
    -------
    Flow

    Raises
    ------
    TypeError, ValueError
        As in `forward`, `errors`, `chain_norms` and `certificates`; no sequence has 3 steps; d_states are not finite.
    FloatingPointError
        A state, or the gradient of an error by it, is not finite.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rnn = bptt.RNN.random(3, 16, 5, gain=0.8)
    >>> flow = bptt.gradient_flow(rnn, rng.standard_normal((500, 4, 3)), rng.integers(5, size=(500, 4)))
    >>> flow.verdict, flow.certificates.vanishes, 5 < flow.horizon < 20
    ('vanishing', True, True)
    """
    limit = cond_limit_of(cond_limit)
    if jacobians is not None:
        others = (rnn, x, y, initial, lengths, loss, weights)
        if any(argument is not None for argument in others):
            raise TypeError("jacobians must be given alone, or with d_states; network, inputs and error are not theirs")
        check_progress(progress)
        options = {"stops": stops, "max_lag": max_lag, "k": k, "fraction": fraction}
        return _of_jacobians(jacobians, d_states, options, threads, progress)
    _arguments.network(rnn, readout=y is not None, instead="jacobians")
    assert rnn is not None
    _arguments.finite_recurrence(rnn)
    for name, argument in (("loss", loss), ("weights", weights)):
        if y is None and argument is not None:
            raise TypeError(f"{name} is of an error, which has targets: give y too")
    if x is None:
        raise TypeError("x must be given with rnn; got None")
    _, extent = _arguments.inputs(rnn, x)
    if d_states is not None:
        if y is not None:
            raise TypeError("d_states takes the place of y; got both")
        d_states = _arguments.steps("d_states", d_states, extent, "n", rnn.n).reshape(extent.time, extent.size, rnn.n)
    error = None if y is None else _Error(rnn, y, loss, weights, extent)
    given = _arguments.lengths(lengths, extent)
    steps = np.full(extent.size, extent.time) if given is None else given
    survey = Survey("x", rnn.n, steps, threads, stops=stops, max_lag=max_lag, k=k, fraction=fraction)
    check_progress(progress)
    pulls = None
    if d_states is not None:
        for b in survey.sequences.tolist():
            _finite(d_states[: steps[b], b], b)
        pulls = (d_states != 0).any(axis=2)

    trajectory = forward(rnn, x, initial, lengths=lengths, nonfinite="raise", threads=threads)
    if y is not None:  # what is wrong in its numbers is said by step and sequence
        pulls = _steps_of(*errors(rnn, trajectory, y, loss=loss, weights=weights), extent)
    slopes = []
    with survey.meter(progress) as tick:
        for b, run in zip(survey.sequences.tolist(), _sequences(trajectory, survey.sequences), strict=True):
            chain = NetworkChain(rnn, run)
            of_error = None if pulls is None else np.flatnonzero(pulls[: steps[b], b]) + 1
            t, norms = survey.look(b, tick, of_error, rnn=rnn, trajectory=run)
            if error is not None:
                arguments = error.of_sequence(b, int(steps[b]))
                options_of = {**arguments, "stops": t, "max_lag": survey.lags, "loss": loss, "threads": threads}
                terms = contributions(rnn, run, **options_of, progress=part(tick, STAGE))
            else:
                if d_states is not None:
                    g, powers = d_states[t - 1, b].astype(np.float64), np.zeros(len(t))
                    if rnn.form == "activation":
                        g, powers = chain.times_slopes(g, t)
                    norms = survey.carried(g, t, rnn=rnn, trajectory=run) + powers[:, None] * np.log(2)
                terms = norms + _log_activations(run, t, survey.lags)
            survey.contribute(terms)
            slopes.append(slope_range(chain))
    return Flow(
        **survey.results(),
        of_error=y is not None or d_states is not None,
        certificates=bounds(rnn, np.max(slopes, axis=0)[0], np.min(slopes, axis=0)[1], limit),
    )


def _of_jacobians(
    jacobians: Any, d_states: Any, options: dict[str, Any], threads: int | None, progress: Progress
) -> Flow:
    chains = _list("jacobians", jacobians, 3)
    names = ["jacobians"] if len(chains) == 1 else [f"jacobians[{b}]" for b in range(len(chains))]
    sizes = [JacobianChain(M, name).n for M, name in zip(chains, names, strict=True)]  # which checks them
    n = sizes[0]
    if len(set(sizes)) > 1:
        raise ValueError(f"jacobians must be of one n in all sequences; got n = {', '.join(map(str, sizes))}")
    pulls = None
    if d_states is not None:
        pulls = _list("d_states", d_states, 2)
        if len(pulls) != len(chains):
            raise ValueError(f"d_states must be of as many sequences as jacobians, {len(chains)}; got {len(pulls)}")
        for b, (M, d) in enumerate(zip(chains, pulls, strict=True)):
            shape("d_states", d, "T, n", (len(M), n))
            _finite(d, b)
    steps = np.array([len(M) for M in chains])
    survey = Survey("jacobians", n, steps, threads, **options)
    with survey.meter(progress) as tick:
        for b in survey.sequences.tolist():
            of_error = None if pulls is None else np.flatnonzero(pulls[b].any(axis=1)) + 1
            t, norms = survey.look(b, tick, of_error, jacobians=chains[b])
            if pulls is not None:
                norms = survey.carried(pulls[b][t - 1], t, jacobians=chains[b])
            survey.contribute(norms)
    return Flow(**survey.results(), of_error=pulls is not None, certificates=None)


def _list(name: str, value: Any, axes: int) -> list[Array]:
    """The arrays of a list of them, or the one given."""
    many = isinstance(value, (list, tuple)) and len(value) > 0 and np.ndim(value[0]) == axes
    return [numbers(name, array) for array in (value if many else [value])]


def _steps_of(E: Array, g: Array, extent: Extent) -> Array:
    """At which steps an error enters, (T, B), from what `errors` gives."""
    g = g.reshape(extent.time, extent.size, g.shape[-1])
    finite = np.isfinite(g).all(axis=2)
    if not finite.all():
        t, b = np.argwhere(~finite)[0]
        raise FloatingPointError(
            f"the gradient of the error is not finite: first at step t = {t + 1} of sequence b = {b} "
            "(steps count from 1, sequences from 0)"
        )
    return np.asarray((g != 0).any(axis=2) | (E.reshape(finite.shape) != 0))


def _finite(d: Array, b: int) -> None:
    if not np.isfinite(d).all():
        raise ValueError(f"d_states must be finite; those of sequence b = {b} are not")


class _Error:
    """The arguments of `errors` for one sequence of a batch."""

    def __init__(self, rnn: RNN, y: Any, loss: Any, weights: Any, extent: Extent) -> None:
        index = _arguments.named_loss(rnn, loss)
        self._y, self._last = _arguments.targets(rnn, y, index, extent)
        self._weights = None if weights is None else _arguments.weights(weights, extent)
        self._batched = extent.axes == 2

    def of_sequence(self, b: int, steps: int) -> dict[str, Any]:
        if not self._batched:
            return {"y": self._y, "weights": self._weights}
        assert self._y is not None
        y = np.asarray(self._y[b : b + 1])[0] if self._last else np.asarray(self._y[0:steps])[:, b]
        return {"y": y, "weights": None if self._weights is None else np.asarray(self._weights[0:steps])[:, b]}


def _sequences(trajectory: Trajectory, which: Array) -> Iterator[Trajectory]:
    """Some sequences of a batch, each as if it had been run alone."""
    if not trajectory._batched:
        yield trajectory
        return
    lengths = np.asarray(trajectory.lengths)
    a, h = trajectory.activations, trajectory.preactivations
    first = trajectory.initial if trajectory._form == "preactivation" else np.zeros_like(trajectory.initial)
    for b in which:
        T, n = int(lengths[b]), trajectory._n
        rows = aligned(T + 1, n, a.dtype), aligned(T + 1, n, a.dtype)
        rows[0][:, :n] = a[: T + 1, b]
        rows[1][0, :n], rows[1][1:, :n] = first[b], h[:T, b]
        columns = Columns(T, 1, None, trajectory._columns.grid)
        yield Trajectory(*rows, None, n, trajectory._form, columns, False)


def _log_activations(run: Trajectory, stops: Array, lags: int) -> Array:
    """log ‖a_{k-1}‖ for k = t - lag; nan where k < 1."""
    k = stops[:, None] - np.arange(lags + 1)
    logs = log_norms(np.asarray(run.activations, np.float64))
    return np.where(k >= 1, logs[np.maximum(k, 1) - 1], np.nan)
