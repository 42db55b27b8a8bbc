"""Whether the rest of the sum over k of P(k,t) ⊗ v_k^T can still change a bit of it.

A chain that vanishes leaves most of a long sum below the last place of what is there. To see that, not all rows of
P(k,t) need be moved on: a few random combinations g P of them, g with independent N(0, 1) entries, tell as much. The
root mean square of the lengths of six of them is below 1e-6 of P's Frobenius norm with a probability of at most
(6e-12 / 2)^3 / 3! < 5e-36 at each k.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bptt._bundles import zero_rows
from bptt._kernel import Array, Bundles, Factors, Kernel

_PROBES, _MARGIN = 6, 1e6
_HALF_PLACE = 2.0**-55  # of a number: adding less leaves it as it is
_LEAST_SLOPE = 2.0**-512  # that a factor may have; larger slopes only make the norms larger


def cannot_matter(
    P: Array, J: Array, W: Array, pieces: Iterable[tuple[Array, Array]], kernel: Kernel, threads: int
) -> bool:
    """Whether J stays as it is, bit for bit, when P(k,t) ⊗ v_k^T is added for all k that are left.

    P is P(k,t) of the first k (the largest) that is left; the pieces are d and v of `Kernel.jacobian_by_chain`, the
    latest steps first.
    """
    n, q = len(J), J.shape[-1]
    moving = np.flatnonzero(P.any(axis=1))  # a row that is 0 stays 0
    room = _HALF_PLACE * np.min([np.abs(J[i]).min(axis=0) for i in moving], axis=0)

    exponent = int(np.frexp(np.abs(P).max())[1])
    rows, exponents = zero_rows(_PROBES, n), np.full(_PROBES, exponent, np.int64)
    rows[:, :n] = np.random.default_rng(0).standard_normal((_PROBES, n)) @ np.ldexp(P, -exponent)
    latest = np.log(np.linalg.norm(rows, axis=1)) + exponent * np.log(2.0)

    used = np.zeros(q)
    for d, v in pieces:
        steps = len(d)
        slopes = zero_rows(steps, n)
        slopes[:, :n] = np.where(d > 0, np.maximum(d, _LEAST_SLOPE), 0)
        logs = np.empty((_PROBES, steps + 1))
        bundles = Bundles(np.full(_PROBES, steps), steps + 1, rows, exponents)
        if kernel.advance(Factors(W, slopes, None, 0), bundles, logs, None, None, threads) >= 0:
            return False
        logs[:, 0] = latest
        # the norm of P(k,t) at the most, for the k of v's rows, which are in order of time
        norms = _MARGIN * np.sqrt(np.exp(2 * logs[:, steps - 1 :: -1]).mean(axis=0)) + np.finfo(float).tiny
        used += np.bincount(v, norms, q) if v.ndim == 1 else norms @ np.abs(v)
        if not (used <= room).all():
            return False
        latest = logs[:, steps]
    return True
