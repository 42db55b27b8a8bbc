"""Theorem 3 as an object: how g W_R^m grows for σ = Id, and in which direction, predicted and measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bptt import _validate
from bptt._kernel import Array
from bptt.chain import product_chain
from bptt.gradient import forward
from bptt.network import RNN
from bptt.theorems.enclosure import EPS, ROUNDING, Spectrum, spectrum

#: How many lags are measured.
SAMPLES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Theorem3:
    """How a row vector g fares under the powers of W_R, as `theorem_3` found it.

    With the LEFT eigenvectors, q_i W_R = λ_i q_i, and g = Σ_i c_i q_i, exactly g W_R^m = Σ_i c_i λ_i^m q_i. The leading
    mode j, the first with c_j ≠ 0, is one real eigenvalue or a complex pair, and outgrows those after it.

    Attributes
    ----------
    spectrum : Spectrum
        Eigenvalues of W_R by decreasing modulus, right and left eigenvectors.
    coefficients : array of shape (n,)
        c.
    mode : tuple of int
        The numbers, from 0, of the leading mode's one or two eigenvalues. Empty if there is none: g or λ_j is 0, or W_R
        has no basis of eigenvectors.
    lags : integer array of shape (L,)
        m.
    directions : array of shape (L, n)
        g W_R^m / ‖g W_R^m‖, measured: a product of the Jacobians of a trajectory.
    log_norms : array of shape (L,)
        ln ‖g W_R^m‖, measured.
    """

    spectrum: Spectrum
    coefficients: Array
    mode: tuple[int, ...]
    lags: Array
    directions: Array
    log_norms: Array

    @property
    def eigenvalue(self) -> complex:
        """λ_j, of a pair the one with positive imaginary part; nan without a mode."""
        return complex(self.spectrum.eigenvalues[self.mode[0]]) if self.mode else complex(np.nan)

    @property
    def predicted_rate(self) -> float:
        """ln |λ_j| per step."""
        return float(np.log(np.abs(self.eigenvalue)))

    @property
    def measured_rate(self) -> float:
        """Growth of the coordinate c_j(m) of g W_R^m from the first lag to the last, natural log per step."""
        if not self.mode or len(self.lags) < 2:
            return np.nan
        coordinates = log(np.abs(self.directions @ self.spectrum.right[:, self.mode[0]])) + self.log_norms
        return float((coordinates[-1] - coordinates[0]) / (self.lags[-1] - self.lags[0]))

    @property
    def basis(self) -> Array:
        """array of shape (1 or 2, n): orthonormal, of the line of q_j or of the plane in which a pair turns."""
        q = self.spectrum.left[list(self.mode[:1])]
        rows: Array = np.concatenate([q.real, q.imag])[: len(self.mode)]
        return np.linalg.svd(rows, full_matrices=False)[2]

    @property
    def sines(self) -> Array:
        """array of shape (L,): sines of the angles between g W_R^m and that line or plane."""
        if not self.mode:
            return np.full(len(self.lags), np.nan)
        off = self.directions - self.directions @ self.basis.T @ self.basis
        return np.asarray(np.linalg.norm(off, axis=1))

    @property
    def deviations(self) -> Array:
        """array of shape (L,): ‖g W_R^m - (the leading mode of it)‖ / ‖c_j λ_j^m q_j‖."""
        if not self.mode:
            return np.full(len(self.lags), np.nan)
        j = self.mode[0]
        turned = np.exp(1j * (np.angle(self.coefficients[j]) + self.lags * np.angle(self.eigenvalue)))
        q = self.spectrum.left[j] / np.linalg.norm(self.spectrum.left[j])
        leading = len(self.mode) * (turned[:, None] * q).real
        logs = self.log_norms - self.lags * self.predicted_rate - np.log(self._sizes[j])
        with np.errstate(over="ignore"):
            return np.asarray(np.linalg.norm(np.exp(logs)[:, None] * self.directions - leading, axis=1))

    @property
    def remainders(self) -> Array:
        """array of shape (L,): Σ_i ‖c_i λ_i^m q_i‖ / ‖c_j λ_j^m q_j‖ over the other modes: bounds the deviations."""
        if not self.mode:
            return np.full(len(self.lags), np.nan)
        others = np.delete(np.arange(len(self.coefficients)), self.mode)
        logs = log(np.abs(self.spectrum.eigenvalues[others])) - self.predicted_rate
        with np.errstate(over="ignore"):
            growth = np.exp(self.lags[:, None] * logs + log(self._sizes[others]))
        return np.asarray(growth.sum(axis=1) / self._sizes[self.mode[0]])

    @property
    def rounding(self) -> Array:
        """array of shape (L,): what rounding may add to the deviations.

        Much, if the eigenvectors are nearly dependent, or if modes larger than λ_j, absent from g, come in by rounding.
        """
        if not self.mode:
            return np.full(len(self.lags), np.nan)
        # Each of m products is off by n eps ‖W_R‖ times the powers before and after it, ‖W_R^s‖ <= cond |λ_1|^s, and
        # ‖W_R‖_F <= √n cond |λ_1|; the modes themselves are those of a matrix as near as that. And e^x has |x| eps.
        n, j = len(self.coefficients), self.mode[0]
        share = self._sizes.sum() / self._sizes[j]
        growth = log(np.abs(self.spectrum.eigenvalues[0])) - self.predicted_rate
        with np.errstate(over="ignore"):
            powers = (self.lags + 1) * np.exp(self.lags * growth) * self.spectrum.condition**3 * n**1.5 * share
        return np.asarray(ROUNDING * EPS * (powers + np.abs(self.log_norms) + self.lags * abs(self.predicted_rate)))

    @property
    def _sizes(self) -> Array:
        """‖c_i q_i‖."""
        return np.asarray(np.abs(self.coefficients) * np.linalg.norm(self.spectrum.left, axis=1))

    def __str__(self) -> str:
        if not self.mode:
            return "Theorem 3: no mode leads"
        kind = "a complex pair, turning in its plane" if len(self.mode) == 2 else "real"
        return (
            f"Theorem 3: |λ_j| = {abs(self.eigenvalue):.6g} ({kind}), rate {self.predicted_rate:.6g} predicted, "
            f"{self.measured_rate:.6g} measured; sine of the angle to its left eigenvector {self.sines[-1]:.1e} after "
            f"{self.lags[-1]} steps"
        )


def theorem_3(rnn: RNN, g: npt.ArrayLike, *, steps: int = 50) -> Theorem3:
    """Follow g W_R^m, the error's row vector g_t P(t-m,t) for σ = Id, and compare with the eigenvalues (article Thm 3).

    Parameters
    ----------
    rnn : RNN
        With ``activation="identity"``. Computed in float64.
    g : array of shape (n,)
        ∂E_t/∂h_t.
    steps : int
        The largest lag m, at least 1.

    Returns
    -------
    Theorem3

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong kind or shape, or the network is not linear.

    Examples
    --------
    W_R turns by a radian a step and grows by 1.1; a mode of size 0.5 dies out:

    >>> import bptt
    >>> import numpy as np
    >>> c, s = 1.1 * np.cos(1.0), 1.1 * np.sin(1.0)
    >>> rnn = bptt.RNN([[c, -s, 2.0], [s, c, 0.0], [0.0, 0.0, 0.5]], np.zeros((3, 1)), activation="identity")
    >>> theorem = bptt.theorems.theorem_3(rnn, [1.0, 0.0, 1.0])
    >>> round(theorem.measured_rate / np.log(1.1), 9).item()
    1.0
    >>> theorem.mode, bool(theorem.sines[-1] < 1e-12)
    ((0, 1), True)
    """
    if not isinstance(rnn, RNN):
        raise TypeError(f"rnn must be a bptt.RNN; got {type(rnn).__name__}")
    if rnn.activation != "identity":
        raise ValueError(f"rnn must have activation='identity', which Theorem 3 is about; got {rnn.activation!r}")
    row = _validate.numbers("g", g).astype(np.float64)
    _validate.shape("g", row, "n", (rnn.n,))
    if not np.isfinite(row).all():
        raise ValueError("g must be finite")
    return follow(
        rnn.astype(np.float64), row, _validate.integer("steps", steps, 1), spectrum(rnn.W_R.astype(np.float64))
    )


def follow(rnn: RNN, g: Array, steps: int, modes: Spectrum) -> Theorem3:
    """`theorem_3` with the spectrum at hand."""
    c = g @ modes.right if np.isfinite(modes.condition) else np.zeros(rnn.n)
    lags = np.unique(np.linspace(1, steps, min(SAMPLES, steps)).round().astype(int))
    trajectory = forward(rnn, np.zeros((steps + 1, rnn.p)))
    directions, log_norms = [], []
    for m in lags:
        v = g @ product_chain(rnn, trajectory, 1, 1 + int(m))
        directions.append(v.mantissa / (np.linalg.norm(v.mantissa) or 1.0))
        log_norms.append(v.log_norm())
    return Theorem3(modes, c, leading_mode(modes, c), lags, np.array(directions), np.array(log_norms))


def log(norms: Array) -> Array:
    """ln, with -inf for 0 and no warning."""
    with np.errstate(divide="ignore"):
        return np.log(norms)


def leading_mode(modes: Spectrum, c: Array) -> tuple[int, ...]:
    """The first eigenvalue with a coefficient beyond rounding, and its conjugate."""
    sizes = np.abs(c) * np.linalg.norm(modes.left, axis=1)
    most = sizes.max()
    present = np.flatnonzero(sizes > (ROUNDING * len(c) * EPS * modes.condition * most if most else 0.0))
    if not present.size or modes.eigenvalues[present[0]] == 0:
        return ()
    j = int(present[0])
    if modes.eigenvalues[j].imag == 0:
        return (j,)
    conjugate = int(np.argmin(np.abs(modes.eigenvalues - modes.eigenvalues[j].conj())))
    return (j, conjugate) if modes.eigenvalues[j].imag > 0 else (conjugate, j)
