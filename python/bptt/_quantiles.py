"""Medians and ranges of logarithms, some of them of nothing."""

from __future__ import annotations

import numpy as np

from bptt._kernel import Array


def quantiles(logs: Array) -> tuple[Array, Array, Array]:
    """Median, least and largest of each column without its nan; of two middle ones, one of them -inf, that is -inf."""
    sizes = np.count_nonzero(~np.isnan(logs), axis=0)
    ordered = np.sort(np.vstack([logs, np.full(logs.shape[1], np.nan)]), axis=0)  # nan last, and one at least
    last, columns = np.maximum(sizes - 1, 0), np.arange(logs.shape[1])
    return (ordered[last // 2, columns] + ordered[sizes // 2, columns]) / 2, ordered[0], ordered[last, columns]


def median(logs: Array) -> Array:
    return quantiles(logs)[0]
