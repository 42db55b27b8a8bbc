"""Where the rest of the sum over k of P(k,t) ⊗ v_k^T falls below the bound on the rounding of what is there.

A chain that vanishes leaves most of a long sum below that. To see it, not all rows of P(k,t) need be moved on: a few
random combinations g P of them, g with independent N(0, 1) entries, tell as much. The root mean square of the lengths
of 8 of them is below 1/30 of P's Frobenius norm with a probability of at most (8 / 30^2 / 2)^4 / 4! < 2e-11 at each k.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from bptt._bundles import zero_rows
from bptt._kernel import Array, Bundles, Factors, Kernel

PROBES, _MARGIN = 8, 30.0
_UNIT = float(np.finfo(float).eps) / 2
_HALF_PLACE = 2.0**-55  # of a number: adding less leaves it as it is
_LEAST_SLOPE = 2.0**-512  # that a factor may have; larger slopes only make the norms larger
_SINGLE = float(np.finfo(np.float32).eps) / 2
_HELD = 60 * np.log(2.0)  # logs of numbers, and of products of two, that float32 holds, and what is small beside them
_GONE = -760.0  # the log of a norm at which every number of P is 0 in float64, and stays 0
_LATEST = 4  # steps whose rounding is asked for; that of more would not be much larger


@lru_cache(8)
def _combinations(n: int) -> Array:
    """g of n rows, the same at every call."""
    return np.random.default_rng(0).standard_normal((PROBES, n))


def rounding(own: Array, W: Array, d: Array, v: Array, kernel: Kernel, threads: int) -> Array:
    """The bound on the rounding of J(i,a,b) / own_i, or less, whatever i and a: as many numbers b as v_k has.

    ::

        n u sum_k (|P(k+1,t)| |W_R D_k|)(i,a) |v_k(b)| / own_i        (Higham 2002, eq. 3.13, one product a step)

    over some of the latest k; d and v as in `Kernel.jacobian_by_chain`, ``own`` P(t,t)'s diagonal. Rows where that is
    0 are left out: they stay 0.
    """
    n, alive = len(own), own != 0
    some = slice(None) if alive.all() else alive
    P = zero_rows(n, n)
    latest = range(len(d) - 1, max(0, len(d) - 1 - _LATEST), -1)
    least = np.zeros((len(latest), n))
    W_moduli = np.abs(W)
    for j, k in enumerate(latest):
        if not j:  # P(t,t) is diagonal
            P[:, :n] = W * d[k]
            least[j] = np.abs(P[some, :n]).min(axis=0, initial=np.inf)
            continue
        moduli = np.abs(P)  # moved on by the kernel: the threads of another library would go on spinning beside its own
        kernel.jacobian_by_chain(W_moduli, d[k : k + 1], None, moduli, None, False, 0, threads)
        least[j] = moduli[some, :n].min(axis=0, initial=np.inf)
        if j + 1 < len(latest):
            kernel.jacobian_by_chain(W, d[k : k + 1], None, P, None, False, 0, threads)
    room: Array = np.einsum("ka,kb->ab", least, np.abs(v[[k - 1 for k in latest]])).min(axis=0)
    return n * _UNIT * room


def half_a_place(own: Array, J: Array) -> Array:
    """What may be added to any J(i,a,b) / own_i so far without changing a bit of it: as many numbers b as v_k has."""
    with np.errstate(over="ignore"):
        least: Array = np.min([np.abs(J[i]).min(axis=0) / np.abs(own[i]) for i in np.flatnonzero(own)], axis=0)
    return _HALF_PLACE * least


def steps_that_matter(
    P: Array, room: Array, W: Array, pieces: Iterable[tuple[int, Array, Array | None]], kernel: Kernel, threads: int
) -> tuple[int, int]:
    """The steps after which the moduli of P(k,t) ⊗ v_k^T, over all k then left, sum to less than room(b) for all i, a.

    And how many of them float64 is needed for: after these the bound on float32's rounding, n 2^-24 times the sum of
    |P(k+1,t)| |W_R D_k| ⊗ |v_k^T|, is less than that too, and float32 holds the numbers.

    W is finite; P is P(k,t) of the first k (the largest) that is left; the pieces are a step, d and v of
    `Kernel.jacobian_by_chain`, the latest steps first.
    """
    n = P.shape[1]
    exponent = int(np.frexp(np.abs(P).max())[1])
    rows, exponents = zero_rows(PROBES, n), np.full(PROBES, exponent, np.int64)
    rows[:, :n] = np.einsum("gi,ij->gj", _combinations(len(P)), np.ldexp(P, -exponent))
    latest = np.log(np.linalg.norm(rows, axis=1)) + exponent * np.log(2.0)

    # logs, of the latest step first: of P(k,t)'s norm, at the most, and of what v_k makes of the room
    sizes: list[Array] = []
    sources: list[Array] = []
    slope = 0.0  # the largest
    for _, d, v in pieces:
        assert v is not None
        steps = len(d)
        slopes = zero_rows(steps, n)
        slopes[:, :n] = d
        if d.min() < _LEAST_SLOPE:
            slopes[:, :n] = np.where(d > 0, np.maximum(d, _LEAST_SLOPE), 0)
        slope = max(slope, d.max())
        logs = np.empty((PROBES, steps + 1))
        bundles = Bundles(np.full(PROBES, steps), steps + 1, rows, exponents)
        kernel.advance(Factors(W, slopes, None, 0), bundles, logs, None, None, threads)
        logs[:, 0] = latest
        latest = logs[:, steps]
        most = logs[:, :steps].max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            sizes.append(most + np.log(_MARGIN * np.sqrt(np.square(np.exp(logs[:, :steps] - most)).mean(axis=0))))
            of_room = -np.log(room[v]) if v.ndim == 1 else np.log(np.fmax.reduce(np.abs(v) / room, axis=1, initial=0))
            sources.append(of_room[::-1])  # -inf where v_k = 0, which takes no room, even of none
        if latest.max() < _GONE:
            break
    size, source = np.concatenate(sizes), np.concatenate(sources)
    matter = _until_below_1(size + source)
    growth = np.log(np.linalg.norm(W, axis=0).max() * slope) if slope else -np.inf
    moved = np.maximum(size, growth + np.append(size[:1], size[:-1]))  # |P(k+1,t)| |W_R D_k|, row by column
    exact = _until_below_1(np.log(n * _SINGLE) + moved + source)
    if exact < matter:
        P_norms, v_moduli = size[exact:matter], source[exact:matter] + np.log(room.max())
        if max(growth, P_norms.max(), v_moduli.max(), -P_norms.min(), -np.log(room.min())) > _HELD:
            exact = matter
    return matter, exact


def _until_below_1(logs: Array) -> int:
    """The number of steps after which the rest of the sum of exp(logs) is at most 1; nan counts as 0."""
    with np.errstate(over="ignore"):
        rest = np.cumsum(np.fmax(np.exp(logs), 0)[::-1])
    return int(np.count_nonzero(~(rest <= 1)))
