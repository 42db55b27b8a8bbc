"""Long chains in fewer rows: what is below the rounding of a product need not be carried on."""

from __future__ import annotations

import numpy as np

from bptt._bundles import zero_rows
from bptt._kernel import Array, Bundles, Factors
from bptt.scaled import normalised

_EPS = float(np.finfo(float).eps)

#: Exponents of rows that differ by more than this are not brought together.
_SPREAD = 400


def compressed(P: Bundles, before: Bundles, factors: Factors, leads: Array | None) -> tuple[Bundles, Array | None]:
    """One matrix P = P' M as the few rows C = U^T P, whose products have the same norms: ‖C X‖ = ‖P X‖ for every X.

    U are as many left singular vectors as it takes for ‖(P - U C) e_j‖_inf <= n u ‖|P'| |M| e_j‖_inf in each column j,
    the bound of what rounding has done to the largest number of that column anyhow (Higham 2002, eq. 3.13). Rows do not
    meet under multiplication from the right, and every column keeps a scale of its own: a unit that is coupled to no
    other is kept, however small it is beside the others.

    Parameters
    ----------
    P, before : Bundles
        P and P' = P(k+1,t), one bundle each.
    factors : Factors
        M alone.
    leads
        As in `Kernel.advance`; a left singular vector u of P is the one U^T u of C.

    Returns
    -------
    bundles, leads
        Of C; of P, where there is nothing to be saved.
    """
    n = factors.matrices.shape[-1]
    M, shift = _matrix(factors)
    alive = P.rows[:, :n].any(axis=1)
    if not alive.any():
        return P._replace(rows=zero_rows(1, n), exponents=P.exponents[:1]), leads
    top = int(P.exponents[alive].max())
    mine, theirs = P.exponents - top, before.exponents + shift - top
    if max(np.abs(mine[alive]).max(), np.abs(theirs[alive]).max()) > _SPREAD:
        return P, leads
    matrix = np.ldexp(P.rows[:, :n], np.where(alive, mine, 0)[:, None])
    earlier = np.ldexp(before.rows[alive, :n], theirs[alive, None])
    limits = n * _EPS / 2 * (np.abs(earlier) @ np.abs(M)).max(axis=0)
    U, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    low, r = 0, len(sizes)  # so many suffice, so many do not
    while r - low > 1:
        middle = (low + r) // 2
        rest = matrix - U[:, :middle] @ (U[:, :middle].T @ matrix)
        low, r = (low, middle) if (np.abs(rest) <= limits).all() else (middle, r)
    if r == len(matrix):
        return P, leads
    rows = zero_rows(r, n)
    rows[:, :n], exponents = normalised(U[:, :r].T @ matrix)
    if leads is not None:
        turned = zero_rows(1, n)
        turned[0, :r] = leads[0, : len(U)] @ U[:, :r]
        leads = turned
    return P._replace(rows=rows, exponents=exponents + top), leads


def _matrix(factors: Factors) -> tuple[Array, int]:
    """M / 2**shift with a largest modulus in [1/2, 1)."""
    M = factors.matrices.reshape(factors.matrices.shape[-2:])
    shift = 0
    if factors.d is not None:
        n = len(M)
        e = np.zeros(n, np.int64) if factors.e is None else factors.e[0, :n]
        shift = int(e.max())
        M = M * np.ldexp(factors.d[0, :n], np.maximum(e - shift, -5000))
    more = int(np.frexp(np.abs(M).max())[1])
    return np.ldexp(M, -more), shift + more
