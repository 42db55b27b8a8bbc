"""Truncated backpropagation through time: errors flow k2 steps back, once every k1 steps.

At t = k1, 2 k1, ... and at the end the errors of the steps since the last such t are differentiated, their gradient
followed back over the steps t-k2+1 .. t and no further (Williams and Peng 1990, BPTT(h; h')):

    sum over t of    dE_(t-k1, t]/dtheta,    the state at t - k2 held constant
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bptt import _arguments
from bptt._arguments import REDUCTIONS, Criterion, Extent, Nonfinite, Reduction
from bptt._kernel import Array
from bptt._progress import Progress, meter, part
from bptt._progress import check as check_progress
from bptt._streams import STEPS_BEFORE, read
from bptt._validate import choice, integer, steps
from bptt.gradient import forward, value_and_grad
from bptt.network import RNN
from bptt.results import Gradients


class TruncatedRun:
    """Truncated BPTT along a stream that need not end: an iterator over its blocks, for training.

    Each item is the value of one block and its gradient, which flows back ``k2`` steps from the block's end, so beyond
    its beginning where the block is shorter. Between items the network may be replaced: set ``rnn``.

    Parameters
    ----------
    rnn : RNN
        With a readout.
    blocks : iterable of pairs (x, y)
        Consecutive steps: x of shape (K, B, p), or integer (K, B), and y of shape (K, B), or (K, B, m), as in
        `value_and_grad`, or all without B. K, the k1 of the definition, is 1 .. k2 and may change.
    k2 : int
        How many steps back errors flow, at least 1.
    initial : array of shape (B, n), optional
        The state before the first block; None is zero.
    loss, reduction, nonfinite, threads
        As in `value_and_grad`; "mean" is over the steps of a block.

    Attributes
    ----------
    rnn : RNN
        The network of the next item.
    state : array of shape (B, n) or None
        After the last block: the ``initial`` of a run that goes on.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `value_and_grad`, some not before the block that they are about.

    Notes
    -----
    ``Gradients.initial`` of an item is by the state at which its errors stop. From there all states are computed anew
    for every item, so that a gradient is exact where the network was replaced, too. No more than k2 inputs are held.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> def stream():
    ...     while True:
    ...         x = rng.integers(4, size=(8, 16))
    ...         yield x, (x + 1) % 4
    >>> run = bptt.TruncatedRun(bptt.RNN.random(4, 16, 4), stream(), k2=32)
    >>> values = []
    >>> for value, gradients in run:
    ...     values.append(value)
    ...     run.rnn = run.rnn.unravel(run.rnn.ravel() - 0.5 * gradients.ravel())
    ...     if len(values) == 50:
    ...         break
    >>> values[-1] < 0.5 * values[0]
    True
    """

    def __init__(
        self,
        rnn: RNN,
        blocks: Iterable[tuple[Any, Any]],
        *,
        k2: int,
        initial: npt.ArrayLike | None = None,
        loss: str | Criterion | None = None,
        reduction: Reduction = "mean",
        nonfinite: Nonfinite = "warn",
        threads: int | None = None,
    ) -> None:
        _arguments.network(rnn, readout=True)
        _arguments.loss(rnn, loss)
        choice("reduction", reduction, REDUCTIONS)
        choice("nonfinite", nonfinite, _arguments.NONFINITE)
        self.rnn, self.state = rnn, initial
        self._blocks, self._k2 = iter(blocks), integer("k2", k2, 1)
        self._arguments: dict[str, Any] = {
            "loss": loss,
            "reduction": reduction,
            "nonfinite": nonfinite,
            "threads": threads,
        }
        self._shape = _shape(rnn)
        self._steps = 0  # taken so far
        self._before = initial  # the state before ...
        self._past: Array | None = None  # ... these inputs, which the next gradient may flow back over

    def __iter__(self) -> Iterator[tuple[float, Gradients]]:
        return self

    def __next__(self) -> tuple[float, Gradients]:
        block = next(self._blocks)
        try:
            if not (isinstance(block, (tuple, list)) and len(block) == 2):
                raise TypeError(f"blocks must be pairs (x, y); got {type(block).__name__}")
            return self._take(*block)
        except BaseException:
            self._blocks = iter(())  # what would follow is not what goes on from the last state
            raise

    def _take(self, x: Any, y: Any, weights: Any = None, memory: int | str | None = None) -> tuple[float, Gradients]:
        rnn, past, before = self.rnn, self._past, self._before
        _arguments.network(rnn, readout=True)
        if _shape(rnn) != self._shape:
            raise ValueError(f"rnn must stay of one shape and form along a run, {self._shape}; got {_shape(rnn)}")
        x, extent = _arguments.inputs(rnn, x)
        if not 1 <= extent.time <= self._k2:
            raise ValueError(f"x must have 1..k2 steps with k2 = {self._k2}; got {extent.time}")
        y = _each_step("y", y, extent)
        weights = None if weights is None else _arguments.weights(weights, extent)
        window, targets, step_weights = x, y, weights
        if past is not None and len(past):
            if (past.shape[1:], past.dtype) != (x.shape[1:], x.dtype):
                raise ValueError(
                    f"x must go on as it began, with {past.dtype} of shape {past.shape[1:]} at each step; "
                    f"got {x.dtype} of shape {x.shape[1:]}"
                )
            if (gone := len(past) + extent.time - self._k2) > 0:
                before = forward(rnn, past[:gone], before, nonfinite="ignore").final
                past = past[gone:]
            window = np.concatenate([past, x[0 : extent.time]])
            step_weights = np.zeros((len(window), *extent.sizes[1:]), rnn.dtype)
            step_weights[len(past) :] = 1 if weights is None else weights[0 : extent.time]
            if y is not None:
                targets = np.zeros((len(window), *y.shape[1:]), y.dtype)
                targets[len(past) :] = y[0 : extent.time]
        outer = STEPS_BEFORE.set(self._steps + extent.time - window.shape[0])
        try:
            result = value_and_grad(
                rnn, window, targets, weights=step_weights, initial=before, memory=memory, **self._arguments
            )
        finally:
            STEPS_BEFORE.reset(outer)
        self._steps += extent.time
        # What the next block, of one step at least, can still reach.
        length = window.shape[0]
        reach = max(length + 1 - self._k2, 0)
        if reach:
            before = forward(rnn, window[0:reach], before, nonfinite="ignore").final
        self._before, self._past = before, np.array(window[reach:length])
        self.state = result[1].final
        return result


def _shape(rnn: RNN) -> str:
    return f"n = {rnn.n}, p = {rnn.p}, m = {rnn.m}, {rnn.dtype}, form={rnn.form!r}"


def truncated_value_and_grad(
    rnn: RNN,
    x: npt.ArrayLike,
    y: Any,
    *,
    k1: int,
    k2: int,
    loss: str | Criterion | None = None,
    weights: npt.ArrayLike | None = None,
    initial: npt.ArrayLike | None = None,
    reduction: Reduction = "mean",
    nonfinite: Nonfinite = "warn",
    threads: int | None = None,
    memory: int | str | None = None,
    progress: Progress = False,
) -> tuple[float, Gradients]:
    """The error and its truncated gradient: errors flow ``k2`` steps back, one gradient every ``k1`` steps.

    ::

        sum over t = k1, 2 k1, ..., T of dE_(t-k1, t]/dtheta, the state at t - k2 held constant

    With k2 >= T it is the gradient of `value_and_grad`.

    Parameters
    ----------
    rnn, x, loss, weights, initial, reduction, nonfinite, threads
        As in `value_and_grad`.
    y
        As in `value_and_grad`, of every step.
    k1 : int
        Steps between two gradients, at least 1; the last stretch may be shorter.
    k2 : int
        Steps that errors flow back, counted from the end of their stretch; at least k1.
    memory : int or str, optional
        As in `value_and_grad`, for the states of k2 steps; x and y of these are held beside it.
    progress
        As in `forward`.

    Returns
    -------
    value : float
        The same as without truncation.
    gradients : Gradients
        With the state to go on from, ``final``. ``initial`` has what reached the initial value.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `value_and_grad`.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rnn = bptt.RNN.random(3, 16, 5)
    >>> x, y = rng.standard_normal((100, 4, 3)), rng.integers(5, size=(100, 4))
    >>> value, gradients = bptt.truncated_value_and_grad(rnn, x, y, k1=10, k2=30)
    >>> abs(value - bptt.value_and_grad(rnn, x, y)[0]) < 1e-12
    True
    """
    _arguments.network(rnn, readout=True)
    inputs, extent = _arguments.inputs(rnn, x)
    k1 = integer("k1", k1, 1)
    k2 = integer("k2", k2, k1)
    error = _arguments.loss(rnn, loss)
    if y is not None or not callable(error):
        y = _each_step("y", y, extent)
        _arguments.targets(rnn, y, error, extent)
    step_weights = None if weights is None else _arguments.weights(weights, extent)
    choice("reduction", reduction, REDUCTIONS)
    check_progress(progress)
    if k2 >= extent.time:
        return value_and_grad(
            rnn,
            x,
            y,
            loss=loss,
            weights=weights,
            initial=initial,
            reduction=reduction,
            nonfinite=nonfinite,
            threads=threads,
            memory=memory,
            progress=progress,
        )

    # Until k2 steps are over nothing is cut off, so that one gradient does for all stretches.
    stops = [*range(k2 // k1 * k1, extent.time, k1), extent.time]
    run = TruncatedRun(
        rnn, (), k2=k2, initial=initial, loss=loss, reduction="sum", nonfinite=nonfinite, threads=threads
    )
    value = total_weight = 0.0
    flat: Array = np.zeros(rnn.size)
    d_initial: Array | None = None
    start = 0
    with meter(progress, lambda: extent.time) as tick:
        for stop in stops:
            block = None if step_weights is None else np.asarray(step_weights[start:stop])
            total_weight += (stop - start) * extent.size if block is None else float(block.sum(dtype=np.float64))
            part, gradients = run._take(
                read("x", inputs, start, stop),
                None if y is None else read("y", y, start, stop),
                weights=block,
                memory=memory,
            )
            value += part
            flat += gradients.ravel()
            if d_initial is None:  # later ones are by a state that is held constant
                d_initial = gradients.initial
            if tick:
                tick(stop - start)
            start = stop
    factor = 1.0
    if reduction == "mean":
        factor = 1 / total_weight if total_weight else 0.0
    assert d_initial is not None
    vector = (flat * factor).astype(rnn.dtype)
    return value * factor, replace(gradients, _vector=vector, initial=d_initial * rnn.dtype.type(factor))


@dataclass(frozen=True)
class TruncationBias:
    """How far a truncated gradient of all weights is from the full one.

    Attributes
    ----------
    relative_error : float
        The norm of their difference by that of the full one; nan where that is 0.
    angle : float
        Between them, in radians, 0 .. pi; nan where one is 0.
    """

    relative_error: float
    angle: float


def truncation_bias(
    rnn: RNN,
    x: npt.ArrayLike,
    y: Any,
    *,
    k1: int,
    k2: int,
    loss: str | Criterion | None = None,
    weights: npt.ArrayLike | None = None,
    initial: npt.ArrayLike | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    progress: Progress = False,
) -> TruncationBias:
    """What truncation does to the gradient: its relative error and the angle it turns by.

    Parameters
    ----------
    rnn, x, y, k1, k2, loss, weights, initial, threads, memory, progress
        As in `truncated_value_and_grad`.

    Returns
    -------
    TruncationBias

    Raises
    ------
    TypeError, ValueError
        As in `truncated_value_and_grad`.

    Examples
    --------
    A scalar that remembers its first input for ever, and an error at the end that wants it back:

    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[1.0]], [[1.0]], [[1.0]], activation="identity", output="linear")
    >>> x, y, weights = np.eye(50)[:, :1], np.zeros((50, 1)), np.eye(50)[-1]
    >>> bptt.truncation_bias(rnn, x, y, k1=5, k2=10, weights=weights).relative_error > 0.5
    True
    """
    arguments: dict[str, Any] = {
        "loss": loss,
        "weights": weights,
        "initial": initial,
        "threads": threads,
        "memory": memory,
    }
    check_progress(progress)
    with meter(progress, lambda: 2000) as tick:
        _, truncated = truncated_value_and_grad(rnn, x, y, k1=k1, k2=k2, **arguments, progress=part(tick, 1000))
        _, full = value_and_grad(rnn, x, y, **arguments, progress=part(tick, 1000))
    mine, theirs = truncated.ravel().astype(np.float64), full.ravel().astype(np.float64)
    lengths = float(np.linalg.norm(mine)), float(np.linalg.norm(theirs))
    error = float(np.linalg.norm(mine - theirs)) / lengths[1] if lengths[1] else math.nan
    if not all(lengths):
        return TruncationBias(error, math.nan)
    u, v = mine / lengths[0], theirs / lengths[1]
    # Kahan's: an arc cosine would lose half the digits of a small angle.
    return TruncationBias(error, 2 * math.atan2(float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v))))


def _each_step(name: str, value: Any, extent: Extent) -> Any:
    """Targets of every step: as an array or a store of slices."""
    if value is None:
        return None
    array = steps(name, value)
    if array.shape[: extent.axes] != extent.sizes:
        raise ValueError(f"{name} must have one entry a step, shape ({extent.symbols}, ...); got {array.shape}")
    return array
