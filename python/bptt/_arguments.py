"""The arguments of a call on a network, checked in O(1) (lengths in O(B)) before any work.

Values inside x, y and weights are checked later, as they are read (`_streams`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from bptt._kernel import LOSSES, Array
from bptt._validate import Slices, as_array, choice, flag, in_brackets, number_dtype, numbers, shape, symbolic
from bptt._validate import steps as each_step
from bptt.network import RNN
from bptt.results import Trajectory

Criterion = Callable[[Array, Any], tuple[npt.ArrayLike, npt.ArrayLike]]

Nonfinite = Literal["warn", "raise", "ignore"]
Reduction = Literal["mean", "sum"]

NONFINITE = get_args(Nonfinite)
REDUCTIONS = get_args(Reduction)


class Extent(NamedTuple):
    """How many steps and sequences a call is about."""

    axes: int  # that count columns: 2, (T, B), or 1 unbatched, (T,)
    time: int  # T
    size: int  # B

    @property
    def symbols(self) -> str:
        return "T, B" if self.axes == 2 else "T"

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.time, self.size)[: self.axes]


def network(rnn: Any, *, readout: bool = False, instead: str = "") -> None:
    """Raise unless it is a network. ``instead`` names the argument that could be given in its place."""
    if not isinstance(rnn, RNN):
        place = f", or {instead}= given in its place" if instead else ""
        raise TypeError(f"rnn must be a bptt.RNN{place}; got {type(rnn).__name__}")
    if readout and rnn.W_O is None:
        raise ValueError("rnn must have a readout W_O to have errors; got W_O = None")


def finite_recurrence(rnn: RNN) -> None:
    """Raise unless W_R, the matrix of every chain, is finite."""
    if not np.isfinite(rnn.W_R).all():
        raise ValueError("rnn must have finite weights W_R")


def inputs(rnn: RNN, x: Any, *, one: bool = False) -> tuple[Array | Slices, Extent]:
    """Numbers (T, B, p) or (T, p), tokens (T, B) or (T,); with ``one`` the latter: of one sequence."""
    array = each_step("x", x)
    dtype, sizes = array.dtype, array.shape
    most = 1 if one else 2
    if dtype.kind in "iu":
        axes = len(sizes)
        if not 1 <= axes <= most:
            wanted = "(T,), one sequence," if one else "(T, B) or (T,)"
            raise ValueError(f"x must have shape {wanted} where it holds tokens (integers); got {sizes}")
    elif dtype.kind == "f" and dtype.itemsize in (4, 8):
        axes = len(sizes) - 1
        if not 1 <= axes <= most or sizes[-1] != rnn.p:
            wanted = "(T, p), one sequence," if one else "(T, B, p) or (T, p)"
            raise ValueError(f"x must have shape {wanted} with p = {rnn.p}; got {sizes}")
    else:
        raise TypeError(f"x must hold float32, float64 or integers (tokens); got {dtype}")
    size = sizes[1] if axes == 2 else 1
    if not size:
        raise ValueError(f"x must have shape (T, B, ...) with B >= 1; got {sizes}")
    return array, Extent(axes, sizes[0], size)


def trajectory(rnn: RNN, value: Any) -> Extent:
    if not isinstance(value, Trajectory):
        raise TypeError(f"trajectory must be a bptt.Trajectory, as forward gives; got {type(value).__name__}")
    dtype = value._a.dtype
    if dtype != rnn.dtype:
        raise TypeError(f"trajectory must have the network's dtype {rnn.dtype}; got {dtype}")
    if (value._n, value._form) != (rnn.n, rnn.form):
        raise ValueError(
            f"trajectory must be of this network, with n = {rnn.n} and form={rnn.form!r}; "
            f"got n = {value._n} and form={value._form!r}"
        )
    columns = value._columns
    return Extent(2 if value._batched else 1, columns.time, columns.size)


def loss(rnn: RNN, value: Any) -> int | Criterion:
    """The number of a named error, or the callable."""
    if value is None:
        value = "cross_entropy" if rnn.output == "softmax" else "squared_error"
    elif callable(value):
        criterion: Criterion = value
        return criterion
    elif not isinstance(value, str):
        raise TypeError(f"loss must be None, a callable or one of {', '.join(map(repr, LOSSES))}; got {value!r}")
    index = LOSSES.index(choice("loss", value, LOSSES))
    if value == "cross_entropy" and rnn.output == "linear":
        raise ValueError("loss='cross_entropy' needs output='softmax'; got a network with output='linear'")
    return index


def named_loss(rnn: RNN, value: Any) -> int:
    """The number of a named error, where a callable will not do."""
    if callable(found := loss(rnn, value)):
        raise TypeError("loss must be the name of an error here, not a callable")
    return found


def targets(rnn: RNN, y: Any, loss: int | Criterion, extent: Extent) -> tuple[Array | Slices | None, bool]:
    """The targets, and whether they are of the last steps only."""
    if callable(loss):
        if y is None:
            return None, False
        array = each_step("y", y)
        if array.shape[: extent.axes] != extent.sizes:
            shape("y", array, f"{extent.symbols}, ...", (*extent.sizes, None))
        return array, False
    array, sizes = each_step("y", y), extent.sizes
    by_class = LOSSES[loss] == "cross_entropy"
    if not by_class:
        number_dtype("y", array.dtype)
        sizes = *sizes, rnn.m
    elif array.dtype.kind not in "iu":
        raise TypeError(f"y must hold integers (classes) for the cross-entropy; got {array.dtype}")
    if array.shape == sizes:
        return array, False
    if array.shape != sizes[1:]:
        symbols = extent.symbols if by_class else f"{extent.symbols}, m"
        wanted, only = symbolic(symbols, sizes), in_brackets(symbols[3:])
        raise ValueError(f"y must have shape {wanted}, or {only} for targets of the last steps only; got {array.shape}")
    return as_array("y", array[0 : sizes[1]]) if sizes[1:] else array, True


def weights(value: Any, extent: Extent) -> Array | Slices:
    array = each_step("weights", value)
    number_dtype("weights", array.dtype, "biuf")
    shape("weights", array, extent.symbols, extent.sizes)
    return array


def lengths(value: Any, extent: Extent) -> Array | None:
    if value is None:
        return None
    array = as_array("lengths", value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths must hold integers; got {array.dtype}")
    shape("lengths", array, "B" if extent.axes == 2 else "", extent.sizes[1:])
    array = array.reshape(extent.size)
    if np.minimum.reduce(array) < 0 or np.maximum.reduce(array) > extent.time:
        b = int(np.argmax((array < 0) | (array > extent.time)))
        raise ValueError(f"lengths must be in 0..T with T = {extent.time}; got {array[b]} for sequence b = {b}")
    return array.astype(np.int64)


def wrt_inputs(value: Any, x: Array | Slices) -> None:
    if flag("wrt_inputs", value) and x.dtype.kind != "f":
        raise TypeError(f"wrt_inputs=True needs an x of numbers: tokens have no gradient; got x of {x.dtype}")


def rows(name: str, value: Any, rnn: RNN, extent: Extent) -> Array:
    """A state for each sequence, (B, n)."""
    array = numbers(name, value)
    shape(name, array, "B, n" if extent.axes == 2 else "n", (*extent.sizes[1:], rnn.n))
    return array.reshape(extent.size, rnn.n)


def steps(name: str, value: Any, extent: Extent, symbol: str, size: int) -> Array:
    """Numbers for each step, (T, B, size) or (T, size)."""
    array = numbers(name, value)
    shape(name, array, f"{extent.symbols}, {symbol}", (*extent.sizes, size))
    return array
