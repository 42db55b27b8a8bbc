"""Matrices times a power of two: products that cannot overflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bptt._kernel import Array
from bptt._memory import read_only
from bptt._validate import integer, numbers

#: The norms in which chains are measured: spectral (the largest singular value) and Frobenius.
Order = Literal[2, "fro"]

_LN2 = float(np.log(2.0))


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class ScaledMatrix:
    """mantissa * 2**exponent: a matrix, or a vector, whose numbers need not fit float64.

    ``@`` multiplies with another one or with an array. Products of two numbers that are under 2.2e-308 times that of
    the factors' largest count as 0, and so does what is that small beside the largest number of a mantissa.

    Parameters
    ----------
    mantissa : array of shape (rows, columns) or (rows,)
        Real numbers. They are copied and brought to a largest modulus in [1/2, 1).
    exponent : int
        Within 2**1000 of 0.

    Attributes
    ----------
    mantissa : float64 array
    exponent : int
    shape : tuple of int

    Examples
    --------
    >>> import math
    >>> P = ScaledMatrix([[0.0, 3.0], [3.0, 0.0]])
    >>> for _ in range(12):
    ...     P = P @ P
    >>> P
    ScaledMatrix((2, 2), largest 0.502 * 2**6493)
    >>> round(P.log_norm() / math.log(3), 6)
    4096.0
    """

    mantissa: Array
    exponent: int = 0

    __array_ufunc__ = None  # array @ P is ours to say

    def __post_init__(self) -> None:
        mantissa = _matrix("mantissa", self.mantissa)
        exponent = integer("exponent", self.exponent)
        if abs(exponent) > 2**1000:
            raise ValueError("exponent must lie within 2**1000 of 0: else the logarithm fits no float")
        largest = np.abs(mantissa).max(initial=0.0)
        if largest:
            top = int(np.frexp(largest)[1])
            mantissa, exponent = np.ldexp(mantissa, -top), exponent + top
        object.__setattr__(self, "mantissa", read_only(mantissa))
        object.__setattr__(self, "exponent", exponent if largest else 0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mantissa.shape

    def __matmul__(self, other: ScaledMatrix | npt.ArrayLike) -> ScaledMatrix:
        right = _factor(other)
        if self.shape[-1] != right.shape[0] or len(self.shape) == len(right.shape) == 1:
            raise ValueError(
                f"the factors of @ must be matrices, or one a vector, that fit; got {self.shape} and {right.shape}"
            )
        return ScaledMatrix(self.mantissa @ right.mantissa, self.exponent + right.exponent)

    def __rmatmul__(self, other: npt.ArrayLike) -> ScaledMatrix:
        return _factor(other) @ self

    def log_norm(self, ord: Order = 2) -> float:
        """The natural logarithm of a norm; -inf where all numbers are zero.

        Parameters
        ----------
        ord : {2, "fro"}
            Spectral or Frobenius; for a vector both are Euclidean.
        """
        norm = np.linalg.norm(self.mantissa, norm_order(ord) if self.mantissa.ndim == 2 else None)
        return float(np.log(norm)) + self.exponent * _LN2 if norm else -np.inf

    def to_array(self) -> Array:
        """The numbers as float64; those under its range become subnormal or 0.

        Raises
        ------
        OverflowError
            The largest number is beyond the range of float64.
        """
        if self.exponent > 1024:
            raise OverflowError(
                f"the largest number is at least 2**{self.exponent - 1:.16g} and float64 ends below 2**1024: "
                "use mantissa and exponent, or log_norm()"
            )
        return np.ldexp(self.mantissa, max(self.exponent, -5000))

    def __repr__(self) -> str:
        largest = np.abs(self.mantissa).max(initial=0)
        return f"ScaledMatrix({self.shape}, largest {largest:.3g} * 2**{self.exponent:.16g})"


def _matrix(name: str, value: npt.ArrayLike) -> Array:
    array = numbers(name, value).astype(np.float64)
    if not 1 <= array.ndim <= 2:
        raise ValueError(f"{name} must have shape (rows, columns) or (rows,); got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


def _factor(other: ScaledMatrix | npt.ArrayLike) -> ScaledMatrix:
    return other if isinstance(other, ScaledMatrix) else ScaledMatrix(_matrix("the other factor of @", other))


def norm_order(ord: object) -> Order:
    """The argument ``ord``, or a ValueError."""
    if isinstance(ord, str) and ord == "fro":
        return "fro"
    if isinstance(ord, (int, np.integer)) and not isinstance(ord, bool) and ord == 2:
        return 2
    raise ValueError(f"ord must be 2 or 'fro'; got {ord!r}")


def normalised(rows: Array, exponents: Array | int = 0) -> tuple[Array, Array]:
    """rows * 2**exponents (number by number, or row by row), with one exponent a row and a largest modulus in [1/2, 1).

    Returns
    -------
    mantissas : array of shape (R, n)
    exponents : int64 array of shape (R,)
        0 for a row of zeros.
    """
    mantissas, powers = np.frexp(rows)
    least = np.iinfo(np.int64).min // 2
    powers = np.where(mantissas != 0, powers + np.asarray(exponents, np.int64), least)
    top = powers.max(axis=1)
    top[top == least] = 0
    return np.ldexp(mantissas, np.maximum(powers - top[:, None], -5000)), top


def log_norms(rows: Array, exponents: Array | int = 0) -> Array:
    """The log of the Euclidean norm of each row times 2**exponents, (R,); -inf for zeros."""
    mantissas, top = normalised(rows, exponents)
    with np.errstate(divide="ignore"):
        logs: Array = np.log(np.linalg.norm(mantissas, axis=1)) + top * _LN2
    return logs
