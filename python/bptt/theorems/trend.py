"""Limits, as far as a run of T steps can show them."""

from __future__ import annotations

import numpy as np

from bptt._kernel import Array
from bptt.theorems.verdict import Truth

#: Looked at: the start and eight more times, evenly over the run.
TIMES = 9

#: What must have been lost or gained from the first half of the run to its last eighths: a factor of ten.
CLEAR = float(np.log(10.0))


def times(first: int, last: int) -> list[int]:
    """The steps to look at; fewer than TIMES if the run is too short to tell anything."""
    return sorted({round(t) for t in np.linspace(first, last, TIMES)})


def vanishes(log_norms: Array) -> Truth:
    """Whether norms tend to 0: the last ones are below a tenth of what the first half had, or no smaller than it.

    A reading, not a proof: what happens after T, the run does not know. But 0 stays 0 in a product.
    """
    change = _change(log_norms)
    if change is None:
        return Truth.UNDECIDED
    return Truth.HOLDS if change <= -CLEAR else Truth.FAILS if change >= 0 else Truth.UNDECIDED


def diverges(log_norms: Array) -> Truth:
    """Whether norms tend to infinity: the last ones are above ten times what the first half had, or not above it."""
    change = _change(log_norms)
    if change is None:
        return Truth.UNDECIDED
    return Truth.HOLDS if change >= CLEAR else Truth.FAILS if change <= 0 else Truth.UNDECIDED


def _change(log_norms: Array) -> float | None:
    """ln (largest of the last two / largest of the first half); None of a run too short."""
    if len(log_norms) < TIMES or np.isnan(log_norms).any():
        return None
    early, late = float(log_norms[: TIMES // 2 + 1].max()), float(log_norms[-2:].max())
    return -np.inf if late == -np.inf else late - early
