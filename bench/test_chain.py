"""Chains and contributions beside NumPy and JAX, taking turns in one process, and against the matrix product's rate.

pytest bench/test_chain.py --benchmark-json=FILE     (ratios and shares are in extra_info)
"""

import numpy as np
import pytest

import bptt
from bptt import _ceiling, _levels

N, T = 64, 100_000


def problem(n: int, steps: int) -> tuple[bptt.RNN, bptt.Trajectory]:
    rng = np.random.default_rng(n)
    rnn = bptt.RNN.random(16, n, 10, init="normal", gain=1.5, rng=rng)
    return rnn, bptt.forward(rnn, rng.standard_normal((steps, 16)))


def with_numpy(rnn: bptt.RNN, slopes: np.ndarray, ord: int | str):
    """The loop that anyone would write, its product rescaled at every step."""

    def run():
        P, log, logs = np.eye(rnn.n), 0.0, np.empty(len(slopes) + 1)
        logs[0] = np.log(np.linalg.norm(P, ord))
        for lag, d in enumerate(slopes, 1):
            P = P @ rnn.W_R * d
            norm = np.linalg.norm(P, ord)
            log += np.log(norm)
            P /= norm
            logs[lag] = log
        return logs

    return run


def with_jax(rnn: bptt.RNN, slopes: np.ndarray, ord: int | str):
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    with jax.enable_x64(True):
        W, D = jnp.asarray(rnn.W_R), jnp.asarray(slopes)

        def chain(W, D):
            def step(carry, d):
                P, log = carry
                P = P @ W * d
                norm = jnp.linalg.norm(P, ord)
                log = log + jnp.log(norm)
                return (P / norm, log), log

            P = jnp.eye(len(W))
            first = jnp.log(jnp.linalg.norm(P, ord))
            return jnp.concatenate([first[None], jax.lax.scan(step, (P, 0.0 * first), D)[1]])

        compiled = jax.jit(chain).lower(W, D).compile()
    return lambda: np.asarray(compiled(W, D))


@pytest.mark.parametrize("ord", ["fro", 2])
def test_chain_norms(benchmark, beside, ord):
    """One chain of 100,000 factors, the norms of all its lags; the share counts products of n x n, which are spared."""
    rnn, trajectory = problem(N, T)
    slopes = (1 - np.tanh(trajectory.preactivations) ** 2)[-2::-1]  # D_{T-1} .. D_1
    runs = {
        "bptt": lambda: bptt.chain_norms(rnn, trajectory, stops=[T], max_lag=T - 1, ord=ord)[0],
        "numpy": with_numpy(rnn, slopes, ord),
        "jax": with_jax(rnn, slopes, ord),
    }
    logs = runs["bptt"]()
    for name in ("numpy", "jax"):
        # relative errors of norms, each some eps and the sum of 10^5 of them; logarithms of up to 10^5
        np.testing.assert_allclose(runs[name](), logs, rtol=1e-12, atol=1e-9)
    beside(runs, 2 * T * N**3)
    benchmark.pedantic(runs["bptt"], rounds=3)


@pytest.mark.parametrize("n", [16, 64, 128, 256])
def test_contributions(benchmark, n):
    """All stops and all lags of 1000 steps: 2 n^2 operations a pair."""
    steps = 1000
    rnn, trajectory = problem(n, steps)
    y = np.random.default_rng(0).integers(10, size=steps)
    logs = bptt.contributions(rnn, trajectory, y)
    _, g = bptt.errors(rnn, trajectory, y)
    for k, t in ((2, 1000), (400, 500), (999, 1000)):
        v = g[t - 1] @ bptt.product_chain(rnn, trajectory, k, t)
        wanted = v.log_norm() + np.log(np.linalg.norm(trajectory.activations[k - 1]))
        assert abs(logs[t - 1, t - k] - wanted) < 1e-10  # a thousand roundings of n eps
    benchmark.pedantic(lambda: bptt.contributions(rnn, trajectory, y), rounds=5, warmup_rounds=1)
    rate = n * n * steps * (steps - 1) / np.min(benchmark.stats.stats.data)
    ceiling = _ceiling.matrix_product("float64", _levels.resolve_threads(None))
    benchmark.extra_info["share of the matrix product"] = rate / ceiling
