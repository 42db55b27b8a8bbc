"""The executable specification, continued: where the gradient of one sequence goes.

    P(k,t) = (W_R D_{t-1}) (W_R D_{t-2}) ... (W_R D_k) = ∂h_t/∂h_k,   P(t,t) = I      (article Thm 1, order corrected)
    dh_t/dW_R = Σ_k P(k,t) ⊗ a_{k-1}^T                                                (article Thm 1, corrected)

Shapes and indices are those of `reference`, without a batch: h is (T + 1, n). As h[0] is the initial value in both
forms, P(0,t) = ∂h_t/∂(initial) in both. A product leaves the range of float64 within some hundred steps, so every
product is a mantissa with a binary exponent and every norm a natural logarithm, where -inf is an exact zero.

Examples
--------
A thousand steps of -3I, whose only eigenvalue is below 1 and whose product is not:

>>> from bptt import reference
>>> network = reference.Network(W_R=-3 * np.eye(2), W_I=np.zeros((2, 1)), activation="identity")
>>> trajectory = reference.forward(network, np.zeros((1000, 1)), initial=np.zeros(2))
>>> P = product_chain(chain_of_network(network, trajectory), 0, 1000)
>>> bool(np.isclose(log_norm(P, 2), 1000 * np.log(3), rtol=1e-14))
True
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bptt.reference import ACTIVATIONS, LN2, Array, Network, Trajectory, slopes

EPS = float(np.finfo(float).eps)
TINY = float(np.finfo(float).tiny)


# Product chains -------------------------------------------------------------------------------------------------------


class Scaled(NamedTuple):
    """mantissa * 2**exponent, one exponent for the whole array."""

    mantissa: Array
    exponent: int


class Chain(NamedTuple):
    """The steps ∂h_{r+1}/∂h_r = W_r diag(d_r * 2**e_r), r = 0 .. T-1: P(k,t) is the product of steps t-1 down to k."""

    W: Array  # (T, n, n)
    d: Array  # (T, n)
    e: Array  # (T, n), whole numbers in float64, which no saturation overflows


def chain_of_network(network: Network, trajectory: Trajectory) -> Chain:
    """W_R D_r, with σ' as 2**(log2 σ') where it is too small for float64: tanh at h = 400 has 4e^-800, not 0."""
    D = slopes(network, trajectory)[:-1]
    log2 = ACTIVATIONS[network.activation].log_derivative(trajectory.h[:-1]) / LN2
    small = (D < TINY) & (log2 > -np.inf)
    d, e = np.frexp(D)
    e = np.where(small, np.floor(log2), e)
    d[small] = np.exp2(log2[small] - e[small])
    return Chain(np.broadcast_to(network.W_R, (len(d), *network.W_R.shape)), d, e)


def chain_of_jacobians(jacobians: Array) -> Chain:
    """The same of any cell's step Jacobians (T, n, n)."""
    _, top = np.frexp(np.abs(jacobians).max(axis=(1, 2), keepdims=True))
    W = np.ldexp(jacobians, -top)
    return Chain(W, np.ones(W.shape[:2]), np.broadcast_to(top[..., 0], W.shape[:2]).astype(float))


def identity(chain: Chain) -> Scaled:
    """P(t,t)."""
    return Scaled(np.eye(chain.d.shape[1]), 0)


def scale(mantissa: Array, exponent: Array) -> Array:
    """mantissa * 2**exponent, 0 where that is too small."""
    return np.asarray(np.ldexp(mantissa, np.clip(exponent, -5000, 5000).astype(int)))


def rescaled(mantissa: Array, exponent: Array) -> Scaled:
    """mantissa * 2**exponent, one exponent a column, with one exponent in all and its largest element in [1/2, 1)."""
    nonzero = mantissa != 0
    if not nonzero.any():
        return Scaled(mantissa, 0)
    top = int((np.frexp(mantissa)[1] + exponent)[nonzero].max())
    return Scaled(scale(mantissa, exponent - top), top)


def times(P: Scaled, chain: Chain, r: int) -> Scaled:
    """P W_r D_r, of a matrix or of a row vector P."""
    return rescaled(P.mantissa @ chain.W[r] * chain.d[r], P.exponent + chain.e[r])


def product_chain(chain: Chain, start: int, stop: int) -> Scaled:
    """P(start, stop)."""
    P = identity(chain)
    for r in range(stop - 1, start - 1, -1):
        P = times(P, chain, r)
    return P


def log_norm(P: Scaled, order: Literal[2, "fro"] | None = None) -> float:
    """Natural log of a matrix's spectral (2) or Frobenius ("fro") norm; of a vector's Euclidean norm (None)."""
    return log(np.linalg.norm(P.mantissa, order)) + P.exponent * LN2


def log(norm: np.floating[Any]) -> float:
    """log 0 = -inf, which is an answer and no reason for a warning."""
    return float(np.log(norm)) if norm > 0 else -np.inf


def chain_norms(chain: Chain, stops: Sequence[int], max_lag: int, order: Literal[2, "fro"] = 2) -> Array:
    """log ‖P(t-l, t)‖ in row i and column l, for t = stops[i] and lags l = 0 .. max_lag; nan where l > t."""
    norms = np.full((len(stops), max_lag + 1), np.nan)
    for i, t in enumerate(stops):
        P = identity(chain)
        for lag in range(min(t, max_lag) + 1):
            P = times(P, chain, t - lag) if lag else P
            norms[i, lag] = log_norm(P, order)
    return norms


# Contributions --------------------------------------------------------------------------------------------------------


def contributions(chain: Chain, a: Array, g: Array, stops: Sequence[int], max_lag: int) -> Array:
    """log norm of (g_t P(k,t))^T a_{k-1}^T, the contribution (k,t) of ∂(w_t E_t)/∂W_R.

    g is (T, n) from `reference.direct`. Row i, column l: t = stops[i] and k = t - l; nan where k < 1.
    """
    norms = np.full((len(stops), max_lag + 1), np.nan)
    for i, t in enumerate(stops):
        u = rescaled(g[t - 1], np.zeros(g.shape[1]))
        for lag in range(min(t - 1, max_lag) + 1):
            u = times(u, chain, t - lag) if lag else u
            norms[i, lag] = log_norm(u) + log(np.linalg.norm(a[t - lag - 1]))
    return norms


def per_step_gradient(network: Network, trajectory: Trajectory, g: Array, t: int) -> Array:
    """∂(w_t E_t)/∂W_R = Σ_{k=1}^t (g_t P(k,t))^T a_{k-1}^T."""
    D = slopes(network, trajectory)
    gradient = np.zeros(network.W_R.shape)
    gP = g[t - 1]
    for k in range(t, 0, -1):
        gradient += np.outer(gP, trajectory.a[k - 1])
        gP = gP @ network.W_R * D[k - 1]
    return gradient


# The state Jacobian ---------------------------------------------------------------------------------------------------


def sources(x: Array, trajectory: Trajectory, wrt: str) -> Array:
    """v_t of the direct derivative ∂h_t/∂(wrt) = I ⊗ v_t^T: (T, n), (T, p) or (T,)."""
    T = len(x)
    return {"W_R": trajectory.a[:-1], "W_I": x, "b_R": np.ones(T), "initial": np.zeros(T)}[wrt]


def initial_jacobian(n: int, v: Array, wrt: str) -> Array:
    """dh_0/d(wrt)."""
    return np.eye(n) if wrt == "initial" else np.zeros((n, n, *v.shape[1:]))


def of_state(network: Network, D_t: Array, J_t: Array) -> Array:
    """d(state)/d(wrt): D_t dh_t/d(wrt) in form "activation"."""
    return (D_t * J_t.T).T if network.form == "activation" else J_t


def state_jacobian_by_chain(network: Network, x: Array, trajectory: Trajectory, wrt: str, t: int) -> Array:
    """d(state t)/d(wrt) = [D_t] (Σ_{k=1}^t P(k,t) ⊗ v_k^T + P(0,t) dh_0/d(wrt)), (n, *shape of wrt)."""
    D, v = slopes(network, trajectory), sources(x, trajectory, wrt)
    n = len(network.W_R)
    P = np.eye(n)
    J = np.zeros((n, n, *v.shape[1:]))
    for k in range(t, 0, -1):
        J += np.multiply.outer(P, v[k - 1])
        P = P @ network.W_R * D[k - 1]
    return of_state(network, D[t], J + np.tensordot(P, initial_jacobian(n, v, wrt), 1))


def state_jacobians_by_recursion(network: Network, x: Array, trajectory: Trajectory, wrt: str) -> Iterator[Array]:
    """d(state t)/d(wrt) for t = 0 .. T, by J_t = I ⊗ v_t^T + W_R D_{t-1} J_{t-1} (article Lemma 2, corrected; RTRL)."""
    D, v = slopes(network, trajectory), sources(x, trajectory, wrt)
    n = len(network.W_R)
    J = initial_jacobian(n, v, wrt)
    yield of_state(network, D[0], J)
    for t in range(1, len(x) + 1):
        J = np.multiply.outer(np.eye(n), v[t - 1]) + np.tensordot(network.W_R * D[t - 1], J, 1)
        yield of_state(network, D[t], J)


# Lyapunov exponents ---------------------------------------------------------------------------------------------------


def lyapunov_growth(chain: Chain, Q: Array, start: int = 0) -> Array:
    """log r_ii of the QR at every step from `start` on, (T - start, k): the exponents are its mean over time.

    Q is the orthonormal basis (n, k) carried along. A dead direction is -inf from then on, and the basis goes on
    without it.
    """
    growth = np.full((len(chain.d) - start, Q.shape[1]), -np.inf)
    alive = np.arange(Q.shape[1])
    for r in range(start, len(chain.d)):
        Q, log_r1, kept = graded_qr(chain.d[r], chain.e[r], Q)
        alive = alive[kept]
        Q, r2, kept = gram_schmidt(chain.W[r] @ Q, np.abs(chain.W[r]) @ np.abs(Q))
        alive = alive[kept]
        growth[r - start, alive] = log_r1[kept] + np.log(r2)
    return growth


def graded_qr(d: Array, e: Array, Q: Array) -> tuple[Array, Array, Array]:
    """Q1, log diag R1 and the numbers of the columns that are not dead, of diag(d * 2**e) Q = Q1 R1, whatever the e.

    Gaussian elimination whose pivots are the largest in D Q gives D Q = M (D U), by rows of U: the multipliers M are at
    most 1, so their QR is harmless, and the spread stays in the pivots of D U, of which only logarithms are wanted.
    Slopes within 8 nats are multiplied in, so that rounding is told from what is small as elsewhere: relu kills.
    """
    log_d = np.log(np.abs(d), out=np.full(len(d), -np.inf), where=d != 0) + e * LN2
    live = log_d > -np.inf
    top = log_d.max()
    if (log_d[live] >= top - 8).all():
        D = np.zeros((len(d), 1))
        D[live, 0] = np.exp(log_d[live] - top)
        Q1, r, numbers = gram_schmidt(D * Q)
        return Q1, np.log(r) + top, numbers
    U = d[:, None] * Q
    M = np.zeros_like(U)
    log_pivots = np.zeros(Q.shape[1])
    kept = []
    left = np.arange(len(U))  # the rows that have not been a pivot
    for j in range(Q.shape[1]):
        candidates = left[U[left, j] != 0]
        if candidates.size == 0:
            continue
        p = candidates[np.argmax(np.log2(np.abs(U[candidates, j])) + e[candidates])]
        ratio = U[left, j] / U[p, j]
        M[left, j] = scale(ratio, e[left] - e[p])
        U[left] -= np.where(left == p, 0, ratio)[:, None] * U[p]
        log_pivots[j] = np.log(np.abs(U[p, j])) + e[p] * LN2
        left = left[left != p]
        kept.append(j)
    Q1, r, _ = gram_schmidt(M[:, kept])
    return Q1, np.log(r) + log_pivots[kept], np.array(kept, int)


def gram_schmidt(A: Array, summed: Array | None = None) -> tuple[Array, Array, Array]:
    """Q, diag R and the numbers of the columns that are not dead, of A = Q R.

    A column that is those before it times c, within n eps of what was summed up to it and to c times these, is dead:
    what is left is rounding. `summed` are the moduli behind the sums that A's own numbers are; None: A is as it is.
    """
    sizes = np.linalg.norm(A if summed is None else summed, axis=0)
    Q = np.zeros((len(A), 0))
    R = np.zeros((0, 0))
    kept: list[int] = []
    for j in range(A.shape[1]):
        v = A[:, j] - Q @ (Q.T @ A[:, j])
        v = v - Q @ (Q.T @ v)  # twice is enough
        norm = np.linalg.norm(v)
        u = Q.T @ A[:, j]
        c = np.linalg.solve(R, u)
        if norm > len(A) * EPS * (sizes[j] + np.abs(c) @ sizes[kept]):
            Q = np.column_stack([Q, v / norm])
            R = np.block([[R, u[:, None]], [np.zeros((1, len(R))), norm]])
            kept.append(j)
    return Q, np.diag(R).copy(), np.array(kept, int)
