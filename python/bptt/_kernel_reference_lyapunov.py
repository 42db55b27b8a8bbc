"""The level `reference`, continued: a QR at every step of a trajectory."""

from __future__ import annotations

import numpy as np

from bptt._kernel import Array
from bptt.reference import LN2
from bptt.reference_microscope import Chain, chain_of_jacobians, graded_qr, gram_schmidt


def grow(matrices: Array, log_d: Array | None, Q: Array, log_r: Array, singular: bool, threads: int) -> None:
    n = matrices.shape[-1]
    chain = chain_of_jacobians(matrices) if log_d is None else _chain(matrices, log_d)
    alive = np.flatnonzero(Q.any(axis=1))
    basis, log = Q[alive, :n].T, np.zeros(len(alive))
    for W, d, e in zip(*chain, strict=True):
        basis, log_r1, kept = graded_qr(d, e, basis)
        alive, log = alive[kept], log[kept] + log_r1
        basis, r2, kept = gram_schmidt(W @ basis, np.abs(W) @ np.abs(basis))
        alive, log = alive[kept], log[kept] + np.log(r2)
    Q[:], log_r[:] = 0, -np.inf
    Q[alive, :n], log_r[alive] = basis.T, log


def _chain(W: Array, log_d: Array) -> Chain:
    log2 = log_d / LN2
    e = np.floor(log2, out=np.zeros_like(log2), where=log2 > -np.inf)
    return Chain(np.broadcast_to(W, (len(log_d), *W.shape)), np.exp2(log2 - e), e)
