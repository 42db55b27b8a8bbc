"""Medians and ranges of logarithms, some of them of nothing."""

from __future__ import annotations

import numpy as np

from bptt._kernel import Array


def quantiles(logs: Array) -> tuple[Array, Array, Array]:
    """Median, least and largest of each column without its nan: numbers of the column itself, -inf among them."""
    sizes = np.count_nonzero(~np.isnan(logs), axis=0)
    ordered = np.sort(np.vstack([logs, np.full(logs.shape[1], np.nan)]), axis=0)  # nan last, and one at least
    columns = np.arange(logs.shape[1])
    return tuple(
        ordered[place, columns] for place in (np.maximum(sizes - 1, 0) // 2, 0 * sizes, np.maximum(sizes - 1, 0))
    )


def median(logs: Array) -> Array:
    return quantiles(logs)[0]
