"""The state Jacobian beside JAX and NumPy, taking turns in one process, and against the matrix product's rate.

pytest bench/test_jacobian.py --benchmark-json=FILE     (ratios and shares are in extra_info)
"""

import numpy as np
import pytest

import bptt
from bptt import _ceiling, _levels

CELLS = {"n=64 T=500": (64, 500), "n=128 T=200": (128, 200)}


def problem(n: int, T: int) -> tuple[bptt.RNN, np.ndarray]:
    rng = np.random.default_rng(n)
    return bptt.RNN.random(16, n, None, init="normal", rng=rng), rng.standard_normal((T, 16))


def with_numpy(rnn: bptt.RNN, x: np.ndarray):
    """P(k,t) by one product a step, the sum as one product at the end."""
    n = rnn.n

    def run():
        a = bptt.forward(rnn, x).activations
        D, P = 1 - a**2, np.empty((len(x), n, n))
        P[-1] = np.diag(D[-1])
        for k in range(len(x) - 1, 0, -1):
            P[k - 1] = P[k] @ rnn.W_R * D[k]
        return (P.reshape(len(x), n * n).T @ a[:-1]).reshape(n, n, n)

    return run


def with_jax(rnn: bptt.RNN, x: np.ndarray):
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    with jax.enable_x64(True):
        W_R, inputs = jnp.asarray(rnn.W_R), jnp.asarray(x @ rnn.W_I.T)

        def final(W, u):
            return jax.lax.scan(lambda a, u_t: (jnp.tanh(W @ a + u_t), None), jnp.zeros(rnn.n), u)[0]

        compiled = jax.jit(jax.jacrev(final)).lower(W_R, inputs).compile()
    return lambda: np.asarray(compiled(W_R, inputs))


@pytest.mark.parametrize("cell", CELLS)
def test_state_jacobian(benchmark, beside, cell):
    n, T = CELLS[cell]
    rnn, x = problem(n, T)
    runs = {
        "bptt": lambda: bptt.state_jacobian(rnn, x),
        "numpy": with_numpy(rnn, x),
        "jax": with_jax(rnn, x),
    }
    J = runs["bptt"]()
    for name in ("numpy", "jax"):
        # sums of T products of up to T factors, on states that rounding has parted by some eps
        np.testing.assert_allclose(runs[name](), J, rtol=0, atol=1e-12 * np.abs(J).max())
    beside(runs, 4 * T * n**3)
    benchmark.pedantic(runs["bptt"], rounds=10, warmup_rounds=1)


@pytest.mark.parametrize("n", [16, 64])
def test_recursion_online(benchmark, n):
    """J_t at every step: n^4 multiply-adds."""
    T = 200 if n == 16 else 20
    rnn, x = problem(n, T)

    def run():
        for J in bptt.state_jacobians(rnn, x):  # noqa: B007
            pass
        return J

    np.testing.assert_allclose(run(), bptt.state_jacobian(rnn, x), rtol=0, atol=1e-13)
    benchmark.pedantic(run, rounds=10, warmup_rounds=1)
    rate = 2 * n**4 * T / np.min(benchmark.stats.stats.data)
    ceiling = _ceiling.matrix_product("float64", _levels.resolve_threads(None))
    benchmark.extra_info["share of the matrix product"] = rate / ceiling
