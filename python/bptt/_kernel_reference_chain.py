"""The level `reference`, continued: rows on their way through a chain, one factor after another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bptt._kernel import Array, Bundles, Factors
from bptt.scaled import normalised

LN2 = float(np.log(2.0))
LEAST = np.iinfo(np.int64).min // 2  # an exponent below all others


def advance(
    factors: Factors, bundles: Bundles, norms: Array | None, offsets: Array | None, leads: Array | None, threads: int
) -> None:
    n = factors.matrices.shape[-1]
    for k, moving in _walk(factors, bundles):
        if norms is None:
            continue
        for s in moving:
            own = _rows(bundles, s)
            matrix, exponents = bundles.rows[own, :n], bundles.exponents[own]
            top = exponents.max(where=matrix.any(axis=1), initial=LEAST)  # a row of zeros has none
            matrix = np.ldexp(matrix, np.clip(exponents - top, -5000, 0)[:, None])
            norm = np.linalg.norm(matrix, None if leads is None else 2)
            offset = 0.0 if offsets is None else offsets[k - factors.first]
            norms[s, bundles.stops[s] - k] = np.log(norm) + top * LN2 + offset if norm != 0 else -np.inf


def accumulate(factors: Factors, bundles: Bundles, a: Array, gradients: Array, threads: int) -> None:
    n = factors.matrices.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        for k, moving in _walk(factors, bundles):
            before = a[k - factors.first, :n]
            if not before.any():  # v may be beyond float64, and infinity times 0 is no number
                continue
            v = np.ldexp(bundles.rows[moving, :n], np.clip(bundles.exponents[moving], -5000, 5000)[:, None])
            gradients[moving] += v[:, :, None] * before


def _walk(factors: Factors, bundles: Bundles) -> Iterator[tuple[int, Array]]:
    """Every k, the last first, and the numbers of the bundles that its factor has moved."""
    n = factors.matrices.shape[-1]
    shared = factors.d is not None
    count = len(factors.d) if factors.d is not None else len(factors.matrices)
    for k in range(factors.first + count - 1, factors.first - 1, -1):
        i = k - factors.first
        lag = bundles.stops - k
        moving = np.flatnonzero((lag > 0) & (lag < bundles.lags))
        if moving.size:
            own = slice(_rows(bundles, moving[0]).start, _rows(bundles, moving[-1]).stop)
            W, shift = _scaled(factors.matrices if shared else factors.matrices[i])
            rows = bundles.rows[own, :n] @ W
            exponents = np.full(rows.shape, shift)
            if factors.d is not None:
                rows *= factors.d[i, :n]
            if factors.e is not None:
                exponents += factors.e[i, :n]
            bundles.rows[own, :n], moved = normalised(rows, exponents)
            bundles.exponents[own] += moved
        yield k, moving


def _rows(bundles: Bundles, s: int) -> slice:
    height = len(bundles.rows) // len(bundles.stops)
    return slice(s * height, (s + 1) * height)


def _scaled(matrix: Array) -> tuple[Array, int]:
    exponent = int(np.frexp(np.abs(matrix).max())[1])
    return np.ldexp(matrix, -exponent), exponent
