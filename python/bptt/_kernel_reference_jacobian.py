"""The level `reference`, continued: the derivative of the state, by the chain and by the recursion."""

from __future__ import annotations

import numpy as np

from bptt._kernel import Array
from bptt.reference import one_hot


@np.errstate(all="ignore")
def jacobian_by_chain(
    W_R: Array, d: Array, v: Array | None, P: Array, J: Array | None, more: bool, single: int, threads: int
) -> bool:
    n = len(W_R)
    if J is not None and not more:
        J.fill(0)
    for k in range(len(d) - 1, -1, -1):
        dtype = np.float32 if k < single else np.float64
        p = P[:, :n].astype(dtype)
        if v is not None and J is not None:
            J += np.multiply.outer(p, _source(v, k, J.shape[-1]).astype(dtype))
        P[:, :n] = p @ W_R.astype(dtype) * d[k].astype(dtype)
    return J is None or bool(np.isfinite(J).all())


@np.errstate(all="ignore")
def jacobian_by_recursion(W_R: Array, d: Array, v: Array | None, J: Array, threads: int) -> int:
    n = len(W_R)
    bad = -1
    for k in range(len(d)):
        J[:, :n] = J[:, :n] * d[k] @ W_R.T
        if v is not None:
            J[:, :n] += np.kron(np.eye(n), _source(v, k, len(J) // n)).T
        if bad < 0 and not np.isfinite(J[:, :n]).all():
            bad = k
    return bad


def _source(v: Array, k: int, q: int) -> Array:
    """v_k as numbers."""
    return one_hot(v[k], q) if v.ndim == 1 else v[k]
