"""Numbers with a bound on their rounding error, and comparisons that respect it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bptt._kernel import Array
from bptt.theorems.verdict import Truth

EPS = float(np.finfo(np.float64).eps)

#: c of the margins c n eps: the backward errors of LAPACK's decompositions stay below it by a factor of ten.
ROUNDING = 16.0


class Enclosure(NamedTuple):
    """A number that is within ``error`` of ``value``."""

    value: float
    error: float = 0.0

    def times(self, factor: float) -> Enclosure:
        """With a factor that is known to a rounding or two, as the product itself is."""
        value = self.value * factor
        return Enclosure(value, self.error * abs(factor) + 4 * EPS * abs(value))


def less(a: Enclosure, b: Enclosure) -> Truth:
    """a < b, unless the errors leave both possible."""
    if a.value + a.error < b.value - b.error:
        return Truth.HOLDS
    if a.value - a.error >= b.value + b.error:
        return Truth.FAILS
    return Truth.UNDECIDED


def margin(W: Array) -> float:
    """c n eps ‖W‖: what rounding may do to the singular values of an n × n matrix."""
    return ROUNDING * len(W) * EPS * float(np.linalg.norm(W))


def normalised(W: Array) -> tuple[Array, int]:
    """W without a power of two, so that squares neither overflow nor vanish, and the exponent of that power."""
    top = int(np.frexp(np.abs(W).max())[1])
    return np.ldexp(W, -top), top


def singular_values(W: Array) -> tuple[Enclosure, Enclosure]:
    """The largest and the smallest."""
    V, top = normalised(W)
    values = np.linalg.svd(V, compute_uv=False)
    largest, smallest = (Enclosure(*np.ldexp((value, margin(V)), top).tolist()) for value in (values[0], values[-1]))
    return largest, smallest


class Spectrum(NamedTuple):
    """Eigenvalues by decreasing modulus, with eigenvectors on both sides.

    W right[:, i] = λ_i right[:, i] and left[i] W = λ_i left[i], with left right = I: the coordinates of a row vector g
    along the rows of ``left`` are g right, and those of a column v along the columns of ``right`` are left v.
    """

    eigenvalues: Array  # (n,)
    right: Array  # (n, n), columns of length 1
    left: Array  # (n, n), rows; zeros where W is defective as far as can be told
    condition: float  # ‖left‖ ‖right‖, inf if defective
    error: float  # of every eigenvalue


def spectrum(W: Array) -> Spectrum:
    """Eigenvalues and eigenvectors, with what rounding may have done to them.

    Computed eigenvalues are those of W + E, ‖E‖ <= c n eps ‖W‖, so each is within cond ‖E‖ of one of W's (Bauer and
    Fike 1960), and within (2‖W‖ + ‖E‖)^(1-1/n) ‖E‖^(1/n) (Elsner 1985), which needs no eigenvectors.
    """
    V, top = normalised(W)
    values, right = np.linalg.eig(V)
    order = np.lexsort((-values.imag, -values.real, -np.abs(values)))
    values, right = values[order], right[:, order]
    with np.errstate(all="ignore"):
        try:
            left = np.linalg.inv(right)
            condition = float(np.linalg.norm(left, 2) * np.linalg.norm(right, 2))
        except np.linalg.LinAlgError:
            left, condition = np.zeros_like(right), np.inf
    if not condition < 1 / EPS:
        left, condition = np.zeros_like(right), np.inf
    n, E, norm = len(V), margin(V), float(np.linalg.norm(V))
    elsner = (2 * norm + E) ** (1 - 1 / n) * E ** (1 / n)
    scale = float(np.ldexp(1.0, top))
    return Spectrum(values * scale, right, left, condition, min(condition * E, elsner) * scale if norm else 0.0)
