"""Certificates: bounds on ‖P(k,t)‖ by a constant and a rate^(t-k), from the weights and the range of σ' alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bptt import _arguments
from bptt._factors import NetworkChain, network_chain
from bptt._kernel import Array
from bptt._validate import number, numbers
from bptt.network import RNN
from bptt.results import Trajectory

#: (largest, least) |sigma'| over the reals.
SLOPES = {
    "identity": (1.0, 1.0),
    "tanh": (1.0, 0.0),
    "logistic": (0.25, 0.0),
    "relu": (1.0, 0.0),
    "leaky_relu": (1.0, 0.01),
    "elu": (1.0, 0.0),
    "softplus": (1.0, 0.0),
    "softsign": (1.0, 0.0),
}

#: The least number that has all digits.
_NORMAL = float(np.finfo(float).tiny)

#: Binary exponents up to which numbers can be squared, scaled by S as far as it may go.
_SQUARED = 150

#: A rate within so many n eps of 1 is not told from 1.
_MARGIN = 10

#: The norms (sum_i sigma_i^p)^(1/p) that lead to the spectral one, and the evaluations that each may cost: most of them
#: up to n = 512. The last lies within a factor n^(1/p) of the spectral norm.
_POWERS = (16, 256, 4096)
_FLOP, _EVALUATIONS = 4e9, (5, 30)

#: A better rate than this factor is worth a larger constant.
_WORTH = 1 - 1e-9

_STEPS = 4096  # looked at together
_ROUNDS = 100  # of iterations for a scaling
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True, eq=False)
class Bound:
    """A bound by a power of the lag.

    Attributes
    ----------
    rate : float
        A step's factor.
    constant : float
        inf where this rate has none, but every larger one has.
    scale : array of shape (n,) or None
        The diagonal of S where the bound is that of S M S^-1; None is the identity.
    """

    rate: float
    constant: float = 1.0
    scale: Array | None = field(default=None, repr=False)

    def log_at(self, lags: npt.ArrayLike) -> Array:
        """log(constant * rate**lag) for lags >= 0 of any shape; inf where there is no constant."""
        lags = numbers("lags", lags)
        if not (lags >= 0).all():
            raise ValueError(f"lags must be >= 0; got {lags[~(lags >= 0)][0]}")
        if np.isinf(self.constant):
            return np.full(lags.shape, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log(self.constant) + np.where(lags > 0, lags * np.log(self.rate), 0.0))


@dataclass(frozen=True, eq=False)
class Certificates:
    """Bounds on P(k,t) = ∂h_t/∂h_k, made by `certificates`; D = diag sigma'(h), slopes |sigma'| in [least, most].

    Attributes
    ----------
    most, least : array of shape (n,)
        Gamma and Delta: the largest and least |sigma'| of each unit, along the trajectories, or over the reals.
    norm : Bound
        (a) ‖P‖ <= ‖W_R Gamma‖^(t-k) (Pascanu 2013, §2.1; article Thm 2, its eigenvalue put right).
    absolute : Bound
        (b) The spectral radius of |W_R| Gamma, entry by entry: catches triangular W_R. Where that matrix is reducible
        there may be powers of the lag beside it, and the constant is inf.
    scaled : Bound
        (c) inf over diagonal S > 0 of ‖S W_R Gamma S^-1‖, the constant cond(S) at most the limit: at least as sharp as
        (a), and as (b) where the limit allows.
    radius : float
        The spectral radius of W_R Gamma: no bound of this kind has a lower rate than this.
    expanding : Bound
        ‖g P‖ >= sigma_min(W_R Delta)^(t-k) ‖g‖ for every row vector g (article Thm 4, corrected).
    expanding_scaled : Bound
        sup over diagonal S > 0 of sigma_min(S W_R Delta S^-1), the constant 1 / cond(S); looked for where it may exceed
        1 (it is at most the least modulus of an eigenvalue of W_R Delta), else ``expanding``.
    vanishes : bool
        Whether one of the first three proves that ‖P‖ decays exponentially.
    explodes : bool
        Whether one of the last two proves that ‖g P‖ grows exponentially for every g.

    Notes
    -----
    A rate within 10 n eps of 1 proves nothing either way.
    """

    most: Array = field(repr=False)
    least: Array = field(repr=False)
    norm: Bound
    absolute: Bound
    scaled: Bound
    radius: float
    expanding: Bound
    expanding_scaled: Bound

    @property
    def vanishes(self) -> bool:
        return min(self.norm.rate, self.absolute.rate, self.scaled.rate) < 1 - self._margin

    @property
    def explodes(self) -> bool:
        return max(self.expanding.rate, self.expanding_scaled.rate) > 1 + self._margin

    @property
    def _margin(self) -> float:
        return _MARGIN * len(self.most) * _EPS


def certificates(rnn: RNN, trajectory: Trajectory | None = None, *, cond_limit: float = 1e6) -> Certificates:
    """Bounds on how ‖∂h_t/∂h_k‖ decays or grows with t - k, from the weights and the range of sigma' alone.

    Parameters
    ----------
    rnn : RNN
    trajectory : Trajectory, optional
        Of one sequence: then the bounds use the slopes that each unit takes along it, and hold along it. None: those
        that sigma' takes over the reals, and the bounds hold for all inputs.
    cond_limit : float
        The largest cond(S) that the scaled bounds may use, >= 1, and 1e100 at most: float64 leaves no room for more.
        Their infimum need not be attained.

    Returns
    -------
    Certificates

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `product_chain`; the trajectory is too short to have a factor W_R D.

    Notes
    -----
    log‖S M S^-1‖ is convex in log S. It is minimised, from the scaling by the Perron vectors of |M|, through the smooth
    norms (sum_i sigma_i^p)^(1/p) of growing p, by L-BFGS-B. Whatever S comes out, its bound is one; of wide networks
    (n > 512) the search ends early.

    Examples
    --------
    A triangular W_R, whose norm is 3.05 and whose chains vanish for all inputs:

    >>> import bptt
    >>> bounds = bptt.certificates(bptt.RNN([[0.5, 3.0], [0.0, 0.5]], [[1.0], [1.0]]))
    >>> round(bounds.norm.rate, 2), bounds.absolute.rate, round(bounds.scaled.rate, 4), bounds.vanishes
    (3.08, 0.5, 0.5, True)
    """
    limit = cond_limit_of(cond_limit)
    if trajectory is None:
        _arguments.network(rnn)
        _arguments.finite_recurrence(rnn)
        most, least = (np.full(rnn.n, slope) for slope in SLOPES[rnn.activation])
    else:
        most, least = slope_range(network_chain(rnn, trajectory))
    return bounds(rnn, most, least, limit)


def cond_limit_of(value: float) -> float:
    """The argument ``cond_limit``, as far as it goes."""
    return min(number("cond_limit", value, finite=False, least=1), 1e100)


def slope_range(chain: NetworkChain) -> tuple[Array, Array]:
    """The largest and least |sigma'| of each unit in the factors of a chain."""
    if chain.steps <= chain.least:
        raise ValueError(f"trajectory must have T >= {chain.least + 1} steps; got T = {chain.steps}")
    most, least = np.zeros(chain.n), np.full(chain.n, np.inf)
    for first in range(chain.least, chain.steps, _STEPS):
        d, e = chain.slopes(np.arange(first, min(first + _STEPS, chain.steps)))
        slopes = d if e is None else np.ldexp(d, np.maximum(e, -5000))
        least = np.minimum(least, _below(slopes).min(axis=0))
        most = np.maximum(most, np.where(d > 0, _above(slopes), 0).max(axis=0))
    return most, least


def _above(numbers: Array) -> Array:
    """Numbers that were rounded into float64's range, as bounds from above: among subnormal ones that matters."""
    return np.where(numbers < _NORMAL, np.nextafter(numbers, 1), numbers)


def _below(numbers: Array) -> Array:
    return np.where(numbers < _NORMAL, np.nextafter(numbers, 0), numbers)


def bounds(rnn: RNN, most: Array, least: Array, cond_limit: float) -> Certificates:
    """The certificates of a network whose slopes lie in a range."""
    W = rnn.W_R.astype(np.float64)
    M, unit = _in_units(W, most)
    absolute = np.abs(M)
    s, irreducible = _perron_scaling(absolute)
    radius, of_moduli = _radii(W, most)
    S, of_scaled = np.exp(s), Bound(0.0)
    perron = replace(of_moduli, constant=np.inf)
    if irreducible:
        of_scaled = _times(Bound(_spectral_norm(S[:, None] * absolute / S)), unit)
    # Vectors with components beyond float64's digits are not known so well that S would do what it should.
    if irreducible and of_scaled.rate <= perron.rate * (1 + 1e-9):
        perron = Bound(perron.rate, _cond(s), S)
    return Certificates(
        most=most,
        least=least,
        norm=_times(Bound(_spectral_norm(M)), unit),
        absolute=perron,
        scaled=_times(_scaled_norm(M, s, cond_limit), unit),
        radius=radius.rate,
        **_expanding(*_in_units(W, least), cond_limit),
    )


def _in_units(W: Array, slopes: Array) -> tuple[Array, int]:
    """W diag(slopes) = M 2**unit such that the squares of M fit float64."""
    W, first = _normalised(W)
    slopes, second = _normalised(slopes)
    M, third = _normalised(W * slopes)
    return M, first + second + third


def _normalised(M: Array) -> tuple[Array, int]:
    largest = int(np.frexp(np.abs(M).max())[1])
    exponent = largest - min(max(largest, -_SQUARED), _SQUARED)  # no farther, or small numbers beside it are lost
    return np.ldexp(M, -exponent), exponent


def _times(bound: Bound, unit: int, *, below: bool = False) -> Bound:
    """The bound times 2**unit, a bound still where it leaves float64's range."""
    with np.errstate(over="ignore"):
        rate = np.ldexp(bound.rate, unit)
    if below:
        return replace(bound, rate=min(float(_below(rate)), float(np.finfo(float).max)))
    return replace(bound, rate=float(_above(rate)) if bound.rate else 0.0)


def _expanding(M: Array, unit: int, cond_limit: float) -> dict[str, Bound]:
    rate = _least_singular_value(M)
    plain = _times(Bound(rate), unit, below=True)
    # sigma_min(S M S^-1) = 1/‖S M^-1 S^-1‖ is at most the least |eigenvalue|: up to 1 that proves nothing
    if rate == 0 or _times(Bound(float(np.abs(np.linalg.eigvals(M)).min())), unit).rate <= 1:
        return {"expanding": plain, "expanding_scaled": plain}
    inverse = np.linalg.inv(M)
    scale = _scaled_norm(inverse, _perron_scaling(np.abs(inverse))[0], cond_limit).scale
    if scale is None:
        return {"expanding": plain, "expanding_scaled": plain}
    scaled = Bound(_least_singular_value(scale[:, None] * M / scale), 1 / _cond(np.log(scale)), scale)
    return {"expanding": plain, "expanding_scaled": _times(scaled, unit, below=True)}


def _scaled_norm(M: Array, start: Array, cond_limit: float) -> Bound:
    """inf_S ‖S M S^-1‖ over diagonal S > 0 with cond(S) <= cond_limit, from S = exp(start)."""
    from scipy.optimize import minimize

    n, most = len(M), np.log(cond_limit) / 2
    best = Bound(_spectral_norm(M))
    if n == 1 or best.rate == 0 or most == 0:
        return best

    def smooth(s: Array, power: float) -> tuple[float, Array]:
        nonlocal best
        A = np.exp(s)[:, None] * M * np.exp(-s)
        squares, V = np.linalg.eigh(A.T @ A)
        rate = float(np.sqrt(squares[-1]))
        if rate < _WORTH * best.rate:
            best = Bound(rate, _cond(s), np.exp(s))
        kept = squares > _EPS**2 * squares[-1]  # what is not kept has no weight
        squares, V = squares[kept], V[:, kept]
        weights = (squares / squares[-1]) ** (power / 2)
        total = weights.sum()
        slope = ((A @ V) ** 2 / squares - V**2) @ (weights / total)
        return float(np.log(rate) + np.log(total) / power), slope

    s = np.clip(start - (start.max() + start.min()) / 2, -most, most)
    options = {"maxfun": int(np.clip(_FLOP / n**3, *_EVALUATIONS))}
    for power in _POWERS:
        s = minimize(smooth, s, (power,), "L-BFGS-B", jac=True, bounds=[(-most, most)] * n, options=options).x
    return best


def _perron_scaling(A: Array) -> tuple[Array, bool]:
    """log √(u/v), u and v the left and right Perron vectors of A >= 0, and whether A is irreducible.

    Where it is not, a small multiple of the matrix of ones makes it so.
    """
    from scipy.linalg import eig
    from scipy.sparse.csgraph import connected_components

    n = len(A)
    irreducible = n == 1 or connected_components(A > 0, connection="strong", return_labels=False) == 1
    if not irreducible:
        A = A + 1e-9 * (A.sum() / n**2 + np.finfo(float).tiny)
    values, left, right = eig(A, left=True)
    at = int(np.argmax(values.real))
    u, v = np.abs(left[:, at].real), np.abs(right[:, at].real)
    return np.log(np.maximum(u, _EPS**2) / np.maximum(v, _EPS**2)) / 2, irreducible


def _radii(W: Array, slopes: Array) -> tuple[Bound, Bound]:
    """The spectral radius of M = W diag(slopes), and of |M| a number that is no less than it.

    Each strongly connected part is scaled for itself, by powers of two, so that its numbers fit float64 together.
    """
    from scipy.sparse.csgraph import connected_components

    mantissas, powers = np.frexp(W)
    of_slopes, shifts = np.frexp(slopes)
    mantissas, powers = mantissas * of_slopes, powers + shifts
    _, labels = connected_components(mantissas != 0, connection="strong")
    alone = np.bincount(labels)[labels] == 1
    found = [(abs(float(mantissas[i, i])),) * 2 + (int(powers[i, i]),) for i in np.flatnonzero(alone)]
    for label in np.unique(labels[~alone]):
        part = np.ix_(labels == label, labels == label)
        found.append(_radii_of_part(mantissas[part], powers[part]))
    pair = []
    for which in (0, 1):
        there = [(np.log2(each[which]) + each[2], each[which], each[2]) for each in found if each[which]]
        _, rate, unit = max(there, default=(0.0, 0.0, 0))
        pair.append(_times(Bound(float(rate)), unit))
    return pair[0], pair[1]


def _radii_of_part(mantissas: Array, powers: Array) -> tuple[float, float, int]:
    """The same of an irreducible matrix mantissas * 2**powers, both in units of 2**(the last)."""
    there = mantissas != 0
    logs = np.where(there, powers + 0.0, -np.inf)
    x = np.zeros(len(logs))
    if np.ptp(logs[there]) > _SQUARED:
        for _ in range(_ROUNDS):  # to where the largest number of every row is the same, as far as it goes
            x = (x + (logs + x).max(axis=1)) / 2
            x -= x.max()
    whole = x.round().astype(np.int64)
    powers = powers + whole - whole[:, None]
    unit = int(powers[there].max())
    M = np.ldexp(mantissas, np.maximum(powers - unit, -5000))
    absolute = np.where(there, np.maximum(np.abs(M), _NORMAL), 0.0)
    # rho(A) <= max_i (A z)_i / z_i for every z > 0 (Collatz 1942), with equality for the Perron vector.
    values, vectors = np.linalg.eig(absolute)
    z = np.abs(vectors[:, np.argmax(values.real)].real)
    z = np.maximum(z, _EPS**2 * z.max())
    bound = np.inf
    for _ in range(_ROUNDS):
        image = absolute @ z
        ratios = image / z
        bound = min(bound, float(ratios.max()))
        if ratios.max() <= ratios.min() * (1 + 1e-12):
            break
        z = np.sqrt(z) * np.sqrt(image)
        z /= z.max()
    return float(np.abs(np.linalg.eigvals(M)).max()), bound, unit


def _spectral_norm(M: Array) -> float:
    return float(np.linalg.norm(M, 2))


def _least_singular_value(M: Array) -> float:
    """No more than it, whatever the rounding: of a singular matrix 0."""
    values = np.linalg.svd(M, compute_uv=False)
    return float(max(values[-1] - len(M) * _EPS * values[0], 0.0))


def _cond(s: Array) -> float:
    """Of S = exp(s)."""
    return float(np.exp(s.max() - s.min()))
