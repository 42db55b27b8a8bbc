"""Medians and ranges of logarithms, some of them of nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bptt._kernel import Array


def quantiles(logs: Array) -> tuple[Array, Array, Array]:
    """Median, least and largest of each column without its nan."""
    return median(logs), np.fmin.reduce(logs, initial=np.nan), np.fmax.reduce(logs, initial=np.nan)


def median(logs: Array, weights: npt.ArrayLike = 1) -> Array:
    """Of each column without its nan, rows counting by integer weights; of two middle ones, one -inf, that is -inf."""
    logs = np.vstack([logs, np.full(logs.shape[1], np.nan)])  # one at least
    counts = np.where(np.isnan(logs), 0, np.append(np.broadcast_to(weights, len(logs) - 1), 0)[:, None])
    order = np.argsort(logs, axis=0)
    below = np.cumsum(np.take_along_axis(counts, order, axis=0), axis=0)
    middle = [np.argmax(2 * below >= below[-1], axis=0), np.argmax(2 * below > below[-1], axis=0)]
    lower, upper = np.take_along_axis(logs, np.take_along_axis(order, np.array(middle), axis=0), axis=0)
    return np.asarray((lower + upper) / 2)
