"""What enters from outside: each function returns its argument as the library uses it, or raises.

A wrong kind of object or dtype is a TypeError, a wrong shape, range or name a ValueError.
"""

from __future__ import annotations

import operator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bptt._kernel import Array


def as_array(name: str, value: Any) -> Array:
    if value is None:
        raise TypeError(f"{name} must be an array; got None")
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must have no masked entries: what stands for them is yours to say")
    try:
        return np.asarray(value)
    except ValueError as error:  # nested lists of unequal lengths
        raise ValueError(f"{name} is no rectangular array: {error}") from None


class Slices(Protocol):
    """An array that is read slice by slice along its first axis, such as a dataset of HDF5 or Zarr."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, steps: slice, /) -> npt.ArrayLike: ...


def steps(name: str, value: Any) -> Array | Slices:
    """An array of steps: as it is where it lies outside memory, to be read slice by slice; else by `as_array`."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__dlpack__"):
        return as_array(name, value)
    if (
        isinstance(getattr(value, "dtype", None), np.dtype)
        and hasattr(value, "shape")
        and hasattr(value, "__getitem__")
    ):
        slices: Slices = value
        return slices
    return as_array(name, value)


def numbers(name: str, value: Any, kinds: str = "iuf") -> Array:
    """An array of real numbers that is cast to float32 or float64 without a question."""
    array = as_array(name, value)
    number_dtype(name, array.dtype, kinds)
    return array


def number_dtype(name: str, dtype: np.dtype[Any], kinds: str = "iuf") -> None:
    if dtype.kind not in kinds or (dtype.kind == "f" and dtype.itemsize not in (4, 8)):
        raise TypeError(f"{name} must hold real numbers (float32, float64 or integers); got {dtype}")


def shape(name: str, array: Array | Slices, symbols: str, sizes: tuple[int | None, ...]) -> None:
    """Raise unless the array has these sizes (None: any); ``symbols`` names them, such as ``"T, B, m"``."""
    if array.shape == sizes:
        return
    if len(array.shape) != len(sizes) or any(
        size not in (None, have) for size, have in zip(sizes, array.shape, strict=True)
    ):
        raise ValueError(f"{name} must have shape {symbolic(symbols, sizes)}; got {array.shape}")


def symbolic(symbols: str, sizes: tuple[int | None, ...]) -> str:
    """``(T, p) with p = 3``."""
    known = [f"{name} = {size}" for name, size in zip(symbols.split(", "), sizes, strict=False) if size is not None]
    return f"{in_brackets(symbols)} with {', '.join(known)}" if known else in_brackets(symbols)


def in_brackets(symbols: str) -> str:
    return f"({symbols},)" if symbols and "," not in symbols else f"({symbols})"


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def integer(name: str, value: Any, least: int | None = None) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be an integer >= {least}; got {number}")
    return number


def number(name: str, value: Any, *, finite: bool, least: int = 0) -> float:
    _real(name, value)
    if not value >= least or (finite and not value < np.inf):
        raise ValueError(f"{name} must be {'finite and ' if finite else ''}>= {least}; got {value}")
    return float(value)


def proper_fraction(name: str, value: Any) -> float:
    _real(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1; got {value}")
    return float(value)


def _real(name: str, value: Any) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")


def generator(name: str, value: Any) -> np.random.Generator:
    if value is None or isinstance(value, np.random.Generator):
        return np.random.default_rng(value)
    try:
        return np.random.default_rng(integer(name, value, 0))
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, a numpy.random.Generator or None; got {type(value).__name__}"
        ) from None


def precision(name: str, value: npt.DTypeLike) -> np.dtype[Any]:
    dtype = np.dtype(value)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{name} must be float32 or float64; got {dtype}")
    return dtype


_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def memory_size(name: str, value: Any) -> int:
    """Bytes, as an integer or a text such as "16 MB" (10**6) or "16 MiB" (2**20)."""
    if not isinstance(value, str):
        return integer(name, value, 0)
    amount, _, unit = value.strip().partition(" ")
    try:
        size = int(amount) if amount.isdecimal() and not unit else int(float(amount) * _UNITS[unit.strip()])
        if size < 0:
            raise ValueError
        return size
    except (KeyError, ValueError, OverflowError):
        raise ValueError(
            f"{name} must be a number of bytes or a text like '16 MB' or '16 MiB'; got {value!r}"
        ) from None
