"""Kernel, reference and finite differences compared: is this the gradient of this network on this machine?"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bptt import _arguments, _levels, reference
from bptt._kernel import LOSSES, Array
from bptt._progress import Progress, Tick, meter
from bptt._progress import check as check_progress
from bptt._validate import as_array, generator
from bptt.gradient import forward, value_and_grad
from bptt.network import RNN, WEIGHTS
from bptt.results import Gradients, Trajectory

#: Largest relative error of a kernel: 4500 eps of float64, 840 eps of float32. One step of the states is off by about
#: sqrt(n) eps; a gradient, taken on the kernel's own states, by some hundred eps where T is some hundred.
KERNEL_TOLERANCE = {"float64": 1e-12, "float32": 1e-4}

#: Largest relative error of the reference's gradient, on top of what is doubtful in a difference quotient.
DIFFERENCE_TOLERANCE = 1e-6

_STEPS = tuple(10.0**-k for k in range(3, 13))
_ROUNDING = 100 * float(np.finfo(float).eps)  # what is allowed to the T steps of states of order 1 that E comes from


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of a report.

    Attributes
    ----------
    name : str
        "h" and "a" (each step from the one before), "E" (the value), or what a gradient is taken by.
    shape : tuple of int
    norm : float
        Of the reference's array (Frobenius).
    kernel : float
        Relative error of the kernel, norm(kernel - reference) / norm(reference).
    kernel_tolerance : float
    difference : float or None
        Relative error of the reference's gradient along a random direction v with independent N(0, 1) entries,
        abs(dE - <gradient, v>) / norm(gradient), dE by central differences. None for what is no gradient.
    difference_tolerance : float or None
        1e-6 and what truncation and rounding may do to dE: more, the smaller a gradient is beside E, and the more a
        network magnifies what is done to it.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    kernel: float
    kernel_tolerance: float
    difference: float | None = None
    difference_tolerance: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the errors are within their tolerances."""
        if self.difference is None or self.difference_tolerance is None:
            return self.kernel <= self.kernel_tolerance
        return self.kernel <= self.kernel_tolerance and self.difference <= self.difference_tolerance


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Whether kernel, reference and finite differences agree, as `check` found. ``print`` shows a table.

    Attributes
    ----------
    level : str
        Of the kernel.
    dtype : str
        Of the network.
    comparisons : tuple of Comparison
    passed : bool
        Whether all errors are within their tolerances.
    """

    level: str
    dtype: str
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    def __str__(self) -> str:
        head = ("", "shape", "norm", "kernel", "allowed", "differences", "allowed", "")
        lines = [head, *(_cells(comparison) for comparison in self.comparisons)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        verdict = "agree" if self.passed else "DISAGREE"
        title = f"Kernel {self.level} in {self.dtype}, reference and finite differences {verdict}. Relative errors:"
        return "\n".join([title, *table])


def _cells(comparison: Comparison) -> tuple[str, ...]:
    numbers = (
        comparison.norm,
        comparison.kernel,
        comparison.kernel_tolerance,
        comparison.difference,
        comparison.difference_tolerance,
    )
    shape = "x".join(map(str, comparison.shape))
    texts = ("" if number is None else f"{number:.1e}" for number in numbers)
    return comparison.name, shape, *texts, "ok" if comparison.passed else "WRONG"


def check(
    rnn: RNN,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    loss: str | None = None,
    weights: npt.ArrayLike | None = None,
    lengths: npt.ArrayLike | None = None,
    initial: npt.ArrayLike | None = None,
    rng: int | np.random.Generator | None = 0,
    progress: Progress = False,
) -> CheckReport:
    """Compare the kernel with the float64 reference, and the reference with central finite differences.

    Each step of the kernel's states is compared with the reference's step from the same state, and the kernel's
    gradient with the reference's on the same states: so a chaotic network, in which two correct programs part ways, can
    be checked too. A difference quotient is taken along one random direction for each weight, with the step in which
    truncation and rounding leave the least to doubt. That is some tens of runs of the reference, each of about 0.05 ms
    a time step for a small network.

    Parameters
    ----------
    rnn, x, y, loss, weights, lengths, initial
        As in `value_and_grad`; the loss is a named one.
    rng : int, numpy.random.Generator or None
        For the directions.
    progress
        As in `forward`.

    Returns
    -------
    CheckReport

    Raises
    ------
    TypeError, ValueError
        As in `value_and_grad`.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN.random(3, 8, 5, gain=0.9)
    >>> generator = np.random.default_rng(1)
    >>> x, y = generator.standard_normal((30, 2, 3)), generator.integers(5, size=(30, 2))
    >>> report = bptt.check(rnn, x, y)
    >>> report.passed
    True
    >>> print(report)  # doctest: +ELLIPSIS
    Kernel ... in float64, reference and finite differences agree. Relative errors:
    ...
    """
    _arguments.network(rnn, readout=True)
    x = as_array("x", x)
    _, extent = _arguments.inputs(rnn, x)
    error = _arguments.named_loss(rnn, loss)
    directions = generator("rng", rng)
    check_progress(progress)
    y = as_array("y", y)
    _, last = _arguments.targets(rnn, y, error, extent)
    tokens = x.dtype.kind != "f"
    value, gradients = value_and_grad(
        rnn, x, y, loss=loss, weights=weights, lengths=lengths, initial=initial, reduction="sum",
        wrt_inputs=not tokens,
    )  # fmt: skip
    trajectory = forward(rnn, x, initial, lengths=lengths, nonfinite="ignore")
    states = _states(trajectory)

    def rounded(array: npt.ArrayLike) -> Array:
        """In float64, but the numbers that the kernel got."""
        return np.asarray(array).astype(rnn.dtype).astype(float)

    weights64: list[Any] = [None if (weight := getattr(rnn, name)) is None else rounded(weight) for name in WEIGHTS]
    w = np.ones(extent.sizes) if weights is None else rounded(weights)
    case = _Case(
        network=reference.Network(*weights64, *rnn._choices().values()),
        x=np.where(states.valid[1:], reference.one_hot(x, rnn.p) if tokens else rounded(x), 0),
        y=np.broadcast_to(y, (extent.time, *y.shape)) if last else y,
        loss=LOSSES[error],
        initial=rounded(trajectory.initial),
        weights=np.where(states.last[1:, ..., 0], w, 0) if last else w,
        lengths=states.lengths,
    )
    with meter(progress, lambda: 3 + len(WEIGHTS)) as tick:  # the kernel, the weights, initial and x
        kernel = _kernel_errors(case, states, value, gradients)
        if tick:
            tick(1)
        differences = _difference_errors(case, [name for name in kernel if hasattr(gradients, name)], directions, tick)
    allowed = KERNEL_TOLERANCE[rnn.dtype.name]
    comparisons = (
        Comparison(name, shape, norm, error, allowed, *differences.get(name, ()))
        for name, (shape, norm, error) in kernel.items()
    )
    return CheckReport(_levels.level(), rnn.dtype.name, tuple(comparisons))


class _Case(NamedTuple):
    """The arguments of `reference.value_and_grad`."""

    network: reference.Network
    x: Array
    y: Array
    loss: str
    initial: Array
    weights: Array
    lengths: Array

    def value(self) -> float:
        run = reference.forward(self.network, self.x, self.initial, self.lengths)
        return float(reference.errors(self.network, run, self.y, self.loss, self.weights)[0].sum())

    def parameter(self, name: str) -> Array:
        array: Array = getattr(self.network if name in WEIGHTS else self, name)
        return array

    def moved(self, name: str, by: Array) -> _Case:
        """The case with ``by`` added to a weight, the initial value or x."""
        changed: dict[str, Any] = {name: self.parameter(name) + by}
        return self._replace(network=self.network._replace(**changed)) if name in WEIGHTS else self._replace(**changed)


def _states(trajectory: Trajectory) -> reference.Trajectory:
    """The kernel's own states, as the reference takes them: h_0 is the initial value in both forms."""
    h = np.concatenate([trajectory.initial[None], trajectory.preactivations])
    return reference.Trajectory(h.astype(float), trajectory.activations.astype(float), np.asarray(trajectory.lengths))


def _kernel_errors(
    case: _Case, states: reference.Trajectory, value: float, gradients: Gradients
) -> dict[str, tuple[tuple[int, ...], float, float]]:
    """Shape, norm and relative error of all that the kernel computes, against the reference on the same states."""
    network, valid = case.network, states.valid[1:]
    h = reference.preactivation(network, states.a[:-1], case.x)
    a = reference.ACTIVATIONS[network.activation].sigma(states.h[1:])
    E, e = reference.errors(network, states, case.y, case.loss, case.weights)
    exact = reference.backward(network, case.x, states, e)
    pairs = {
        "h": (states.h[1:], np.where(valid, h, 0)),
        "a": (states.a[1:], np.where(valid, a, 0)),
        "E": (np.asarray(value), E.sum()),
        **{name: (getattr(gradients, name), getattr(exact, name)) for name in (*WEIGHTS, "initial", "x")},
    }
    # Of a gradient that is zero but for rounding, rounding is all there is to compare.
    least = np.finfo(float).eps * max(
        float(np.linalg.norm(theirs)) for mine, theirs in pairs.values() if mine is not None
    )

    def error(mine: Array, theirs: Array) -> float:
        return _ratio(float(np.linalg.norm(np.subtract(mine, theirs))), max(float(np.linalg.norm(theirs)), least))

    return {
        name: (theirs.shape, float(np.linalg.norm(theirs)), error(mine, theirs))
        for name, (mine, theirs) in pairs.items()
        if mine is not None
    }


def _difference_errors(
    case: _Case, names: list[str], directions: np.random.Generator, tick: Tick | None
) -> dict[str, tuple[float, float]]:
    """Relative error of the reference's gradient along a random direction, and what is allowed."""
    value, gradients = reference.value_and_grad(*case)
    found = {}
    for name in names:
        gradient = getattr(gradients, name)
        norm = float(np.linalg.norm(gradient))
        direction = directions.standard_normal(gradient.shape)
        quotient, doubt = _difference(case, name, direction, _ROUNDING * (abs(float(value)) + norm))
        slope = float((gradient * direction).sum())
        found[name] = _ratio(abs(quotient - slope), norm), DIFFERENCE_TOLERANCE + _ratio(doubt, norm)
        if tick:
            tick(1)
    return found


def _difference(case: _Case, name: str, direction: Array, rounding: float) -> tuple[float, float]:
    """The central difference quotient in which the least is to be doubted, and how much.

    Doubtful are what the next smaller step changes (truncation) and ``rounding / step``. No gradient is asked.
    """

    def quotient(step: float) -> float:
        ahead, behind = (case.moved(name, sign * step * direction).value() for sign in (1, -1))
        return (ahead - behind) / (2 * step)

    best = (0.0, math.inf)
    this = quotient(_STEPS[0])
    for step, smaller in itertools.pairwise(_STEPS):
        if rounding / step >= best[1]:
            break
        following = quotient(smaller)
        best = min(best, (this, abs(this - following) + rounding / step), key=lambda pair: pair[1])
        this = following
    return best


def relative_error(mine: npt.ArrayLike, theirs: npt.ArrayLike) -> float:
    """norm(mine - theirs) / norm(theirs), 0 where both are 0 (Frobenius)."""
    return _ratio(float(np.linalg.norm(np.subtract(mine, theirs))), float(np.linalg.norm(theirs)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)
