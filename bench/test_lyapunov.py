"""Lyapunov spectra beside a NumPy loop with a QR at every step, taking turns in one process.

pytest bench/test_lyapunov.py --benchmark-json=FILE     (ratios are in extra_info)
"""

import numpy as np
import pytest

import bptt
from bptt import bench

STEPS = 10_000
SHORT = 300  # of NumPy's loop, whose steps all take equally long
NETWORKS = {
    "orthogonal": ("orthogonal", 1.0),
    "gain 0.9": ("normal", 0.9),
    "gain 2": ("normal", 2.0),
    "gain 10": ("normal", 10.0),
}


def problem(n: int, network: str) -> tuple[bptt.RNN, bptt.Trajectory]:
    rng = np.random.default_rng(n)
    init, gain = NETWORKS[network]
    rnn = bptt.RNN.random(1, n, None, init=init, gain=gain, rng=rng)
    return rnn, bptt.forward(rnn, 0.3 * rng.standard_normal((STEPS + 1, 1)), rng.standard_normal(n))


def with_numpy(rnn: bptt.RNN, trajectory: bptt.Trajectory, k: int, steps: int) -> np.ndarray:
    D = 1 - trajectory.activations[1 : steps + 1] ** 2
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((k, rnn.n)).T)[0]
    total = np.zeros(k)
    for d in D:
        Q, r = np.linalg.qr(rnn.W_R @ (d[:, None] * Q))
        total += np.log(np.abs(np.diag(r)))
    return total / steps


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("n", "k"), [(32, 32), (128, 128), (128, 10)])
def test_spectrum(benchmark, n, k, network):
    rnn, trajectory = problem(n, network)
    short = bptt.forward(rnn, 0.3 * np.random.default_rng(0).standard_normal((SHORT + 1, 1)))
    mine, theirs = bptt.lyapunov_spectrum(rnn, short, k=k).exponents, with_numpy(rnn, short, k, SHORT)
    # a QR of columns knows the least of a saturated step (gain 10) to no digit: the larger half is compared
    half = (k + 1) // 2
    np.testing.assert_allclose(mine[:half], theirs[:half], rtol=0, atol=1e-6)
    seconds = bench._alternate(
        {
            "bptt": lambda: bptt.lyapunov_spectrum(rnn, trajectory, k=k),
            "numpy": lambda: with_numpy(rnn, trajectory, k, SHORT),
        },
        5.0,
    )
    benchmark.extra_info |= {
        "microseconds a step": seconds["bptt"] / STEPS * 1e6,
        "times as fast as numpy": seconds["numpy"] / SHORT / (seconds["bptt"] / STEPS),
    }
    benchmark.pedantic(bptt.lyapunov_spectrum, (rnn, trajectory), {"k": k}, rounds=2)
