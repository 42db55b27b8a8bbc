"""A network on one input, and what several statements ask about it, computed once and in float64."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from bptt import reference
from bptt._kernel import Array
from bptt.certificates import SLOPES, certificates
from bptt.chain import chain_norms, per_step_gradients
from bptt.gradient import errors, forward
from bptt.network import RNN
from bptt.scaled import log_norms
from bptt.theorems.enclosure import EPS, ROUNDING, Enclosure, Spectrum, less, singular_values, spectrum
from bptt.theorems.trend import times
from bptt.theorems.verdict import Truth

#: Identities between derivatives are looked at after this many steps, along this many random directions in W_R: they
#: are true at every step or at none, and a long product would add nothing but rounding.
IDENTITY_STEPS, DIRECTIONS = 8, 4

#: What derivatives may grow to there (they are compared by their squares).
LARGEST = 1e70

#: Products P(k,t) are looked at for this many t, and lags up to this one.
STOPS, LAGS = 8, 1000


class Run:
    """One sequence through a network, with its errors.

    Attributes
    ----------
    rnn : RNN
        In float64.
    trajectory : Trajectory
    T, n : int
    a : array of shape (T + 1, n)
        a_0 .. a_T.
    slopes : array of shape (T + 1, n)
        σ'(h_1) .. σ'(h_T) in rows 1 .. T; row 0 is 0, as no statement asks for it.
    g : array of shape (T, n)
        g_t = ∂E_t/∂h_t in row t - 1.
    """

    def __init__(
        self, rnn: RNN, x: npt.ArrayLike, y: npt.ArrayLike, *, initial: npt.ArrayLike | None, loss: str | None
    ) -> None:
        if not isinstance(rnn, RNN):
            raise TypeError(f"rnn must be a bptt.RNN; got {type(rnn).__name__}")
        self.rnn = rnn.astype(np.float64)
        self.trajectory = forward(self.rnn, x, initial, nonfinite="raise")
        self.a = self.trajectory.activations
        if self.a.ndim != 2 or len(self.a) == 1:
            raise ValueError(
                f"x must be one sequence of T >= 1 steps, of shape (T, p) with p = {rnn.p}, or (T,) of tokens; "
                f"got {np.shape(x)}"
            )
        self.T, self.n = len(self.a) - 1, rnn.n
        self.y, self.loss = y, loss
        _, self.g = errors(self.rnn, self.trajectory, y, loss=loss)
        derivative = reference.ACTIVATIONS[rnn.activation].derivative
        self.slopes = np.concatenate([np.zeros((1, self.n)), derivative(self.trajectory.preactivations)])

    # The network ------------------------------------------------------------------------------------------------------

    @property
    def linear(self) -> bool:
        """σ = Id."""
        return self.rnn.activation == "identity"

    @property
    def gamma(self) -> float:
        """sup |σ'| over the reals."""
        return SLOPES[self.rnn.activation][0]

    @cached_property
    def _singular_values(self) -> tuple[Enclosure, Enclosure]:
        return singular_values(self.rnn.W_R)

    @property
    def norm(self) -> Enclosure:
        """‖W_R‖₂."""
        return self._singular_values[0]

    @property
    def sigma_min(self) -> Enclosure:
        """The smallest singular value of W_R."""
        return self._singular_values[1]

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of W_R."""
        return spectrum(self.rnn.W_R)

    @property
    def radius(self) -> Enclosure:
        """ρ(W_R)."""
        return Enclosure(float(np.abs(self.spectrum.eigenvalues[0])), self.spectrum.error)

    @cached_property
    def least_slope(self) -> Enclosure:
        """min |σ'(h_{t,i})| over the factors of the longest product, t = 1 .. T - 1."""
        least = float(self.slopes[1:-1].min(initial=np.inf))
        return Enclosure(least, 8 * EPS * least if np.isfinite(least) else 0.0)

    @cached_property
    def certificate(self) -> tuple[Enclosure, float]:
        """η = ‖S W_R S⁻¹‖₂ γ and cond(S), for S = I if that gives η < 1 or no S does, else for the best S found."""
        one, plain = Enclosure(1.0), self.norm.times(self.gamma)
        if less(plain, one) is Truth.HOLDS or less(self.radius.times(self.gamma), one) is Truth.FAILS:
            return plain, 1.0
        scaled = certificates(self.rnn).scaled
        if scaled.scale is None:
            return plain, 1.0
        W = scaled.scale[:, None] * self.rnn.W_R / scaled.scale
        return singular_values(W)[0].times(self.gamma), scaled.constant

    @cached_property
    def condition_of_slopes(self) -> Array:
        """How much more uncertain σ'(h_t) is than h_t, in the places of `slopes`: 1 + |h σ''(h) / σ'(h)| at most."""
        if self.rnn.activation in ("identity", "relu", "leaky_relu"):
            return np.ones_like(self.slopes)
        h = np.concatenate([np.zeros((1, self.n)), self.trajectory.preactivations])
        return np.asarray(1 + 2 * np.abs(h) * (1 - self.slopes))

    # Its products -----------------------------------------------------------------------------------------------------

    def factor(self, t: int) -> Array:
        """W_R D_t, 1 <= t <= T."""
        product: Array = self.rnn.W_R * self.slopes[t]
        return product

    @cached_property
    def stops(self) -> list[int]:
        """Some t, the last one T."""
        return sorted({1 + round(i * (self.T - 1) / STOPS) for i in range(1, STOPS + 1)})

    @cached_property
    def max_lag(self) -> int:
        return min(self.T - 1, LAGS)

    @cached_property
    def log_products(self) -> Array:
        """ln ‖P(t-l, t)‖₂ for each stop t in a row and l = 0 .. max_lag; nan where there is no such step."""
        return chain_norms(self.rnn, self.trajectory, stops=self.stops, max_lag=self.max_lag)

    @cached_property
    def last_log_products(self) -> Array:
        """ln ‖P(T-l, T)‖₂ for all lags l = 0 .. T - 1."""
        norms = chain_norms(self.rnn, self.trajectory, stops=[self.T], max_lag=self.T - 1)
        return np.asarray(norms[0])

    @cached_property
    def growth(self) -> tuple[int, Array]:
        """k_0, the first step of a contribution (else 1), and ln ‖P(k_0,t)‖₂ at some t from k_0 to T (`trend`)."""
        k = self.first_source or 1
        stops = times(k, self.T)
        norms = chain_norms(self.rnn, self.trajectory, stops=stops, max_lag=self.T - k)
        return k, norms[np.arange(len(stops)), np.array(stops) - k]

    @cached_property
    def log_sources(self) -> Array:
        """ln ‖a_{t-l-1}‖₂, the other factor of ‖F(t-l, t)‖, in the places of `log_products`; nan where t - l < 1."""
        k = np.subtract.outer(self.stops, np.arange(self.max_lag + 1))
        return np.where(k < 1, np.nan, log_norms(self.a)[np.maximum(k - 1, 0)])

    def rounding(self, logs: Array) -> Array:
        """What rounding may add to logarithms of norms of products, or of bounds on them, for the lags 0 .. in columns.

        A product of two n × n matrices loses n² eps of its norm in the norm of the bound; `chain_norms` is right to
        1e-12; and a logarithm has the relative precision of any number.
        """
        steps = np.arange(1, logs.shape[-1] + 1)
        size = np.where(np.isfinite(logs), np.abs(logs), 0.0)
        return ROUNDING * EPS * (self.n**2 * steps + size) + 2e-12

    @cached_property
    def first_source(self) -> int | None:
        """The first k with a_{k-1} ≠ 0, not more than LAGS steps before T: F(k,t) = 0 for all t if there is none."""
        nonzero = np.flatnonzero(self.a[:-1].any(axis=1)) + 1
        recent = nonzero[nonzero > self.T - LAGS]
        return int(recent[0]) if recent.size else None

    def gradients(self, stops: list[int]) -> Array:
        """∂E_t/∂W_R at some steps, (len(stops), n, n); inf where a number in it is beyond the range of float64."""
        try:
            return per_step_gradients(self.rnn, self.trajectory, self.y, loss=self.loss, stops=stops)
        except OverflowError:
            if len(stops) == 1:
                return np.full((1, self.n, self.n), np.inf)
            return np.concatenate([self.gradients([t]) for t in stops])

    # Derivatives, without any of the formulas -------------------------------------------------------------------------

    @cached_property
    def identity_step(self) -> int:
        """The t at which identities are looked at: not so late that squares overflow."""
        _, error = self.tangents
        fits = (error[1 : IDENTITY_STEPS + 1] < LARGEST).all(axis=(1, 2))
        return max(1, int(np.argmin(np.append(fits, False))))

    @cached_property
    def error_step(self) -> int | None:
        """The t at which identities about E_t are looked at: one where g_t ≠ 0, if there is any."""
        early = np.flatnonzero(self.g[: self.identity_step].any(axis=1)) + 1
        return int(early[-1]) if early.size else self._first_error

    @cached_property
    def _first_error(self) -> int | None:
        with_error = self.g.any(axis=1)
        return int(np.argmax(with_error)) + 1 if with_error.any() else None

    @cached_property
    def directions(self) -> Array:
        """V (DIRECTIONS, n, n) of independent N(0, 1): the root mean square of J V over them is that of J's entries."""
        return np.random.default_rng(0).standard_normal((DIRECTIONS, self.n, self.n))

    @cached_property
    def tangents(self) -> tuple[Array, Array]:
        """dh_t/dW_R along each direction, and a bound on the rounding of any way to it: (t + 1, DIRECTIONS, n) each.

        By complex steps through σ along the states that are there (Squire and Trapp 1998): a chaotic network, whose
        perturbed runs part ways with rounding alone, can be judged too.
        """
        W, V = self.rnn.W_R, self.directions
        last = max(min(self.T, IDENTITY_STEPS), self._first_error or 1)
        step = 1e-20
        u, size, error = (np.zeros((last + 1, *V.shape[:2])) for _ in range(3))
        allowed = ROUNDING * self.n * EPS
        with np.errstate(all="ignore"):
            for t in range(1, last + 1):
                scale = max(1.0, float(np.abs(u[t - 1]).max()))  # an imaginary part stays small beside the real one
                a = self.moved_activations(t - 1, step / scale * u[t - 1])
                moved = (W + 1j * step / scale * V) @ a[..., None]
                u[t] = scale / step * moved.imag[..., 0]
                absolute = np.abs(self.factor(t - 1)).T
                direct = np.abs(V) @ np.abs(self.a[t - 1])
                size[t] = direct + size[t - 1] @ absolute
                error[t] = error[t - 1] @ absolute
                error[t] += allowed * (direct + (size[t - 1] * self.condition_of_slopes[t - 1]) @ absolute)
                error[t] += self.n * scale * np.finfo(np.float64).tiny / step
        return u, error

    def moved_activations(self, t: int, dh: Array) -> Array:
        """a_t + i σ'(h_t) dh for small dh, by a complex step: of its real part, the trajectory knows every digit."""
        a = np.broadcast_to(self.a[t], dh.shape).astype(complex)
        if t > 0:  # a_0 is given
            h = self.trajectory.preactivations[t - 1]
            a.imag = reference.ACTIVATIONS[self.rnn.activation].sigma(h + 1j * dh).imag
        return a
