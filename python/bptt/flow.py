"""How far back the gradient of a network reaches, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bptt import _arguments
from bptt._arguments import Extent
from bptt._bundles import Stops
from bptt._columns import Columns
from bptt._factors import NetworkChain
from bptt._kernel import Array
from bptt._memory import aligned
from bptt._validate import integer, number
from bptt.certificates import Certificates, bounds, cond_limit_of, slope_range
from bptt.chain import chain_norms, contributions
from bptt.gradient import errors, forward
from bptt.lyapunov import Lyapunov, lyapunov_spectrum
from bptt.network import RNN
from bptt.results import Trajectory
from bptt.scaled import log_norms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["vanishing", "exploding", "marginal", "transient growth, then decay"]

#: By default: the largest lag; the stops of all sequences together, the fewest and most of each, and the
#: multiply-adds they may cost; the exponents.
_MAX_LAG = 200
_STOPS, _STOPS_OF_EACH, _MULTIPLY_ADDS = 256, (8, 64), 1e11
_EXPONENTS = 64

#: Of the steps of a sequence, those in which the directions of its Lyapunov exponents align.
_WARM_UP = 0.1

_LN10 = float(np.log(10.0))


@dataclass(frozen=True, eq=False, repr=False)
class Flow:
    """How the gradient of a network flows back, made by `gradient_flow`: ``print(flow)`` is a table, `plot` a figure.

    A row stands for a step t of a sequence b, a column for a lag t - k. Logarithms are natural.

    Attributes
    ----------
    norms : array of shape (R, max_lag + 1)
        log ‖P(k,t)‖_2, P(k,t) = ∂h_t/∂h_k: `chain_norms`.
    contributions : array of shape (R, max_lag + 1)
        Log norm of the contribution of step k to ∂(w_t E_t)/∂W_R: `contributions`; or, without targets, to ∂h_t/∂W_R:
        ‖P(k,t)‖_2 ‖a_{k-1}‖_2.
    of_error : bool
        Which of the two.
    stops, sequences : integer array of shape (R,)
        t and b of each row.
    exponents, standard_errors : array of shape (k,)
        Lyapunov exponents per step, from the largest on: the means over the sequences, by their steps.
    certificates : Certificates
        For all inputs along which the slopes stay in the range seen here.
    fraction : float
        Of the largest contribution, at which the horizon lies.
    verdict : str
        "vanishing", "exploding", "marginal" or "transient growth, then decay"; see Notes.
    horizon : int
        The largest lag at which, in the median over the rows, a contribution exceeds ``fraction`` of the largest of its
        row.

    Notes
    -----
    With λ the largest exponent and a tolerance of 2 standard errors, but at least 1 / max_lag (a factor e over the lags
    looked at), the verdict is exploding where λ is above the tolerance, marginal where |λ| is within it, and else
    transient growth where the median over the rows of ‖P‖ exceeds 2 at some lag, or vanishing.
    """

    norms: Array
    contributions: Array
    of_error: bool
    stops: Array
    sequences: Array
    exponents: Array
    standard_errors: Array
    certificates: Certificates
    fraction: float

    @property
    def verdict(self) -> Verdict:
        rate, tolerance = self.exponents[0], max(2 * np.nan_to_num(self.standard_errors[0]), 1 / self._max_lag)
        if rate > tolerance:
            return "exploding"
        if rate >= -tolerance:
            return "marginal"
        return "transient growth, then decay" if median(self.norms).max() > np.log(2) else "vanishing"

    @property
    def horizon(self) -> int:
        above = np.flatnonzero(median(self._relative()) > np.log(self.fraction))
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
        return "\n\n".join((self._summary(), self._table(), self._exponents(), self._bounds()))

    @property
    def _max_lag(self) -> int:
        return int(self.norms.shape[1]) - 1

    def _relative(self) -> Array:
        """Log of each contribution by the largest of its row, of the rows that are not all zero."""
        rows = self.contributions[np.isfinite(self.contributions).any(axis=1)]
        return rows - np.nanmax(rows, axis=1, keepdims=True) if len(rows) else rows

    def _summary(self) -> str:
        rate, error = self.exponents[0].round(12), self.standard_errors[0].round(12)
        if np.isneginf(rate):
            pace = "all directions die"
        elif self.verdict == "marginal":
            pace = f"{rate:+.3g} ± {error:.1g} per step, no more than noise or a factor e over the lags"
        else:
            pace = f"{rate:+.3g} ± {error:.1g} per step, a factor e every {1 / abs(rate):.3g} steps"
        whose = "the error's" if self.of_error else "the state's"
        if self.horizon == self._max_lag:
            reach = f"beyond the {self._max_lag} lags looked at"
        else:
            reach = f"{self.horizon} steps: farther back are contributions under {self.fraction:.3g} of the largest"
        facts = f"Verdict           {self.verdict}\nLargest exponent  {pace}\nHorizon           {reach}"
        return f"{facts} (to {whose} gradient)"

    def _table(self) -> str:
        lags = [lag for lag in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if lag < self._max_lag] + [self._max_lag]
        columns = [*quantiles(self.norms), median(self._relative())]
        sequences = len(np.unique(self.sequences))
        of = "one sequence" if sequences == 1 else f"{sequences} sequences"
        head = f"Median and range over {len(self.stops)} steps t of {of}"
        lines = [head, "  lag     ‖∂h_t/∂h_k‖      least       most   contribution / largest"]
        for lag in lags:
            middle, low, high, share = (scientific(column[lag]) for column in columns)
            lines.append(f"{lag:5}   {middle:>13} {low:>10} {high:>10}   {share:>22}")
        return "\n".join(lines)

    def _exponents(self) -> str:
        shown = min(len(self.exponents), 8)
        pairs = zip(self.exponents[:shown], self.standard_errors[:shown], strict=True)
        numbers = "  ".join(f"{rate:+.4f} ± {error:.4f}" if np.isfinite(rate) else "-inf" for rate, error in pairs)
        return f"Lyapunov exponents (the largest {shown} of {len(self.exponents)} computed)\n  {numbers}"

    def _bounds(self) -> str:
        c = self.certificates
        proved = ": vanishing is proved" if c.vanishes else ": exploding is proved" if c.explodes else ""
        lines = [f"Bounds for all inputs with slopes in the range seen, Δ <= |σ'| <= Γ{proved}"]
        for name, sign, bound in (
            ("‖W_R Γ‖", "<=", c.norm),
            ("ρ(|W_R| Γ)", "<=", c.absolute),
            ("‖S W_R Γ S⁻¹‖", "<=", c.scaled),
            ("σ_min(W_R Δ)", ">=", c.expanding),
            ("σ_min(S W_R Δ S⁻¹)", ">=", c.expanding_scaled),
        ):
            if np.isinf(bound.constant):
                power = f"C(r) · r^lag for every r > {bound.rate:.4g}"
            else:
                power = f"{bound.constant:.3g} · {bound.rate:.4g}^lag"
            lines.append(f"  {name:19} ‖∂h_t/∂h_k‖ {sign} {power}")
        return "\n".join(lines)


def gradient_flow(
    rnn: RNN,
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
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
) -> Flow:
    """How far back the gradient of a network reaches: whether it vanishes or explodes, how fast, and what proves it.

    Parameters
    ----------
    rnn : RNN
    x, initial, lengths
        As in `forward`: one sequence, or a batch of them whose results are pooled. Sequences of fewer than 3 steps are
        left out.
    y, loss, weights : optional
        As in `errors`. Without y, the contributions are those to the state's gradient instead of the error's.
    stops : integer array, optional
        The steps t that are looked at, 1 .. T, as in `chain_norms`; in a shorter sequence those it has. None: 8 to 64
        of each sequence, evenly spaced, its last among them.
    max_lag : int, optional
        The largest lag, at least 1. None: 200, or T - 1.
    k : int, optional
        How many Lyapunov exponents, 1 .. n. None: 64, or n. The first tenth of each sequence does not count.
    fraction : float
        See ``Flow.horizon``; in (0, 1).
    cond_limit : float
        As in `certificates`.
    threads : int, optional
        As in `forward`.

    Returns
    -------
    Flow

    Raises
    ------
    TypeError, ValueError
        As in `forward`, `errors`, `chain_norms` and `certificates`; no sequence has 3 steps.
    FloatingPointError
        A state is not finite.

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
    _arguments.network(rnn, readout=y is not None)
    _, extent = _arguments.inputs(rnn, x)
    given = None if stops is None else Stops(extent.time, stops).t
    if given is not None and not (given.size and given[0] >= 1 and given[-1] >= 2):
        raise ValueError(f"stops must be steps in 1..T with T = {extent.time}, not all of them 1; got {stops!r}")
    most = _MAX_LAG if max_lag is None else integer("max_lag", max_lag, 1)
    exponents = min(rnn.n, _EXPONENTS) if k is None else integer("k", k, 1)
    if exponents > rnn.n:
        raise ValueError(f"k must be in 1..n with n = {rnn.n}; got {k}")
    if not 0 < number("fraction", fraction, finite=True) < 1:
        raise ValueError(f"fraction must lie between 0 and 1; got {fraction}")
    limit = cond_limit_of(cond_limit)

    trajectory = forward(rnn, x, initial, lengths=lengths, nonfinite="raise", threads=threads)
    error = None
    if y is not None:
        errors(rnn, trajectory, y, loss=loss, weights=weights)  # says what is wrong in them, by step and sequence
        error = _Error(rnn, y, loss, weights, extent)
    steps = np.atleast_1d(trajectory.lengths)
    long = np.flatnonzero(steps >= 3)
    if not long.size:
        raise ValueError(f"x must have a sequence of at least 3 steps; the longest has {steps.max()}")
    lags = min(most, int(steps.max() if given is None else given[-1]) - 1)
    count = min(_STOPS // len(long), int(_MULTIPLY_ADDS / (lags * rnn.n**3 * len(long))))

    norms, terms, stops_of, spectra, slopes = [], [], [], [], []
    for b, run in zip(long, _sequences(trajectory, long), strict=True):
        t = _evenly(int(steps[b]), int(np.clip(count, *_STOPS_OF_EACH))) if given is None else given[given <= steps[b]]
        norms.append(chain_norms(rnn, run, stops=t, max_lag=lags, threads=threads))
        if error is None:
            terms.append(norms[-1] + _log_activations(run, t, lags))
        else:
            arguments = error.of_sequence(int(b), int(steps[b]))
            terms.append(contributions(rnn, run, **arguments, stops=t, max_lag=lags, loss=loss, threads=threads))
        stops_of.append(t)
        warm_up = int(_WARM_UP * (steps[b] - 1))
        spectra.append(lyapunov_spectrum(rnn, run, k=exponents, warm_up=warm_up, threads=threads))
        slopes.append(slope_range(NetworkChain(rnn, run)))
    rates, standard_errors = _pooled(spectra)
    return Flow(
        norms=np.concatenate(norms),
        contributions=np.concatenate(terms),
        of_error=y is not None,
        stops=np.concatenate(stops_of),
        sequences=np.repeat(long, [len(t) for t in stops_of]),
        exponents=rates,
        standard_errors=standard_errors,
        certificates=bounds(rnn, np.max(slopes, axis=0)[0], np.min(slopes, axis=0)[1], limit),
        fraction=float(fraction),
    )


class _Error:
    """The arguments of `errors` for one sequence of a batch."""

    def __init__(self, rnn: RNN, y: Any, loss: Any, weights: Any, extent: Extent) -> None:
        index = _arguments.loss(rnn, loss)
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


def _evenly(T: int, count: int) -> Array:
    """About so many steps of 1 .. T, the last among them."""
    return np.unique(np.linspace(T / count, T, count).round().astype(np.int64).clip(1))


def _log_activations(run: Trajectory, stops: Array, lags: int) -> Array:
    """log ‖a_{k-1}‖ for k = t - lag; nan where k < 1."""
    k = stops[:, None] - np.arange(lags + 1)
    logs = log_norms(np.asarray(run.activations, np.float64))
    return np.where(k >= 1, logs[np.maximum(k, 1) - 1], np.nan)


def _pooled(spectra: list[Lyapunov]) -> tuple[Array, Array]:
    """The means over independent sequences, by the steps that counted, and their standard errors."""
    counted = np.array([spectrum.ends[-1] for spectrum in spectra], float)
    share = (counted / counted.sum())[:, None]
    rates = np.array([spectrum.exponents for spectrum in spectra])
    errors_of = np.array([spectrum.standard_errors for spectrum in spectra])
    return np.where(share > 0, share * rates, 0).sum(axis=0), np.sqrt(((share * errors_of) ** 2).sum(axis=0))


def quantiles(logs: Array) -> tuple[Array, Array, Array]:
    """Median, least and largest of each column without its nan: numbers of the column itself, -inf among them."""
    sizes = np.count_nonzero(~np.isnan(logs), axis=0)
    ordered = np.sort(np.vstack([logs, np.full(logs.shape[1], np.nan)]), axis=0)  # nan last, and one at least
    columns = np.arange(logs.shape[1])
    return tuple(
        ordered[place, columns] for place in (np.maximum(sizes - 1, 0) // 2, 0 * sizes, np.maximum(sizes - 1, 0))
    )


def median(logs: Array) -> Array:
    return quantiles(logs)[0]


def scientific(log: float) -> str:
    """exp(log) as 1.2e-34, however large or small."""
    if not np.isfinite(log):
        return "0" if log < 0 else str(log)
    exponent, fraction = divmod(log / _LN10, 1)
    digits = 10**fraction
    if round(digits, 1) >= 10:
        digits, exponent = 1.0, exponent + 1
    return f"{digits:.1f}e{int(exponent):+03d}"
