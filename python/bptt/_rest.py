"""Whether the rest of the sum over k of P(k,t) ⊗ v_k^T is above the bound on the rounding of what is there.

A chain that vanishes leaves most of a long sum below that. To see it, not all rows of P(k,t) need be moved on: a few
random combinations g P of them, g with independent N(0, 1) entries, tell as much. The root mean square of the lengths
of 12 of them is below 1/300 of P's Frobenius norm with a probability of at most (12 / 300^2 / 2)^6 / 6! < 2e-28 at each
k.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bptt._bundles import zero_rows
from bptt._kernel import Array, Bundles, Factors, Kernel

PROBES, _MARGIN = 12, 300.0
_UNIT = float(np.finfo(float).eps) / 2
_HALF_PLACE = 2.0**-55  # of a number: adding less leaves it as it is
_LEAST_SLOPE = 2.0**-512  # that a factor may have; larger slopes only make the norms larger
_LATEST = 5  # steps whose rounding is asked for; that of more would not be much larger


def rounding(own: Array, W: Array, d: Array, v: Array, kernel: Kernel, threads: int) -> Array:
    """The bound on the rounding of J(i,a,b) / own_i, or less, whatever i and a: as many numbers b as v_k has.

    ::

        n u sum_k (|P(k+1,t)| |W_R D_k|)(i,a) |v_k(b)| / own_i        (Higham 2002, eq. 3.13, one product a step)

    over some of the latest k; d and v as in `Kernel.jacobian_by_chain`, ``own`` P(t,t)'s diagonal. Rows where that is
    0 are left out: they stay 0.
    """
    n, alive = len(own), own != 0
    P = zero_rows(n, n)
    P[range(n), range(n)] = alive
    latest = range(len(d) - 1, max(0, len(d) - 1 - _LATEST), -1)
    least = np.zeros((len(latest), n))
    for j, k in enumerate(latest):
        moduli = np.abs(P)  # moved on by the kernel: the threads of another library would go on spinning beside its own
        kernel.jacobian_by_chain(np.abs(W), d[k : k + 1], None, moduli, None, threads)
        kernel.jacobian_by_chain(W, d[k : k + 1], None, P, None, threads)
        least[j] = moduli[alive, :n].min(axis=0, initial=np.inf)
    room: Array = np.einsum("ka,kb->ab", least, np.abs(v[[k - 1 for k in latest]])).min(axis=0)
    return n * _UNIT * room


def half_a_place(own: Array, J: Array) -> Array:
    """What may be added to any J(i,a,b) / own_i so far without changing a bit of it: as many numbers b as v_k has."""
    with np.errstate(over="ignore"):
        least: Array = np.min([np.abs(J[i]).min(axis=0) / np.abs(own[i]) for i in np.flatnonzero(own)], axis=0)
    return _HALF_PLACE * least


def cannot_matter(
    P: Array, room: Array, W: Array, pieces: Iterable[tuple[Array, Array]], kernel: Kernel, threads: int
) -> bool:
    """Whether the sum of the moduli of P(k,t) ⊗ v_k^T over all k that are left is below room(b), whatever i and a.

    P is P(k,t) of the first k (the largest) that is left; the pieces are d and v of `Kernel.jacobian_by_chain`, the
    latest steps first.
    """
    q, n = len(room), P.shape[1]
    exponent = int(np.frexp(np.abs(P).max())[1])
    rows, exponents = zero_rows(PROBES, n), np.full(PROBES, exponent, np.int64)
    g = np.random.default_rng(0).standard_normal((PROBES, len(P)))
    rows[:, :n] = np.einsum("gi,ij->gj", g, np.ldexp(P, -exponent))
    latest = np.log(np.linalg.norm(rows, axis=1)) + exponent * np.log(2.0)

    used = np.zeros(q)
    for d, v in pieces:
        steps = len(d)
        slopes = zero_rows(steps, n)
        slopes[:, :n] = np.where(d > 0, np.maximum(d, _LEAST_SLOPE), 0)
        logs = np.empty((PROBES, steps + 1))
        bundles = Bundles(np.full(PROBES, steps), steps + 1, rows, exponents)
        if kernel.advance(Factors(W, slopes, None, 0), bundles, logs, None, None, threads) >= 0:
            return False
        logs[:, 0] = latest
        # the norm of P(k,t) at the most, for the k of v's rows, which are in order of time
        norms = _MARGIN * np.sqrt(np.exp(2 * logs[:, steps - 1 :: -1]).mean(axis=0)) + np.finfo(float).tiny
        used += np.bincount(v, norms, q) if v.ndim == 1 else np.einsum("k,kb->b", norms, np.abs(v))
        if not (used <= room).all():
            return False
        latest = logs[:, steps]
    return True
