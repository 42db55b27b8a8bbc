"""Directions that die: a Lyapunov exponent of -inf where the product is singular, and only there."""

import warnings

import numpy as np
import pytest

import bptt
from support import CURVED


def test_dead_relu_directions_are_minus_infinity_and_the_others_go_on(level):
    """Unit 2 never fires and the others always do: what is left is W_R without it."""
    rng = np.random.default_rng(8)
    W_R = rng.uniform(0.1, 0.3, size=(4, 4))
    W_R[1] *= -1
    rnn = bptt.RNN(W_R, np.zeros((4, 1)), activation="relu", form="preactivation")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trajectory = bptt.forward(rnn, np.zeros((400, 1)), [1.0, -1.0, 1.0, 1.0])
        assert (np.sign(trajectory.preactivations) == [1, -1, 1, 1]).all()
        spectrum = bptt.lyapunov_spectrum(rnn, trajectory, warm_up=200)
    alive = np.delete(np.delete(W_R, 1, axis=0), 1, axis=1)
    np.testing.assert_array_equal(np.isneginf(spectrum.exponents), [False, False, False, True])
    np.testing.assert_allclose(spectrum.exponents[:3].sum(), np.linalg.slogdet(alive)[1], rtol=1e-9)
    np.testing.assert_allclose(spectrum.exponents[0], np.log(np.abs(np.linalg.eigvals(alive)).max()), rtol=1e-9)
    assert np.isneginf(spectrum.local[:, 3]).all()
    assert np.isneginf(spectrum.history[:, 3]).all()
    assert np.isnan(spectrum.standard_errors[3])
    assert np.isfinite(spectrum.standard_errors[:3]).all()


def test_a_network_whose_units_all_die(level):
    rnn = bptt.RNN(0.5 * np.eye(3), np.ones((3, 1)), activation="relu")
    x = np.ones((30, 1))
    x[20] = -100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectrum = bptt.lyapunov_spectrum(rnn, bptt.forward(rnn, x))
    assert np.isneginf(spectrum.exponents).all()
    np.testing.assert_allclose(spectrum.local[:20], np.log(0.5), rtol=1e-12)
    assert np.isneginf(spectrum.local[20:]).all()
    assert np.isneginf(bptt.lyapunov_spectrum(jacobians=np.zeros((5, 2, 2))).exponents).all()


@pytest.mark.parametrize(("n", "rank"), [(2, 1), (5, 3), (16, 15), (40, 20)])
def test_a_singular_matrix_is_an_answer(level, n, rank):
    rng = np.random.default_rng(n)
    W_R = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n)) / n
    rnn = bptt.RNN(W_R, np.zeros((n, 1)))
    trajectory = bptt.forward(rnn, np.zeros((50, 1)), rng.standard_normal(n))
    for exponents in (
        bptt.lyapunov_spectrum(rnn, trajectory).exponents,
        bptt.lyapunov_spectrum(jacobians=np.tile(W_R, (20, 1, 1))).exponents,
    ):
        assert np.isneginf(exponents[rank:]).all()
        assert (exponents[:rank] > -20).all()
    assert (bptt.lyapunov_spectrum(rnn, trajectory, k=rank).exponents > -20).all()


def singular(rng, n):
    """A matrix that is singular up to rounding, and its rank."""
    W = rng.standard_normal((n, n))
    i, j = rng.choice(n, 2, replace=False)
    kind = rng.integers(5)
    if kind == 0:
        W[:, i] = 0
    elif kind == 1:
        W[:, i] = W[:, j]
    elif kind == 2:
        W[i] = W[j]
    elif kind == 3:
        W[i] = 0
    else:
        rank = int(rng.integers(1, n))
        return rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n)), rank
    return W, n - 1


@pytest.mark.parametrize("activation", CURVED)
def test_as_many_directions_live_as_the_rank_is(level, activation):
    """Also in the shortest runs, and where slopes are many nats apart."""
    for seed in range(30 if level == "reference" else 150):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 8))
        W, rank = singular(rng, n)
        rnn = bptt.RNN(W, np.eye(n), activation=activation)
        trajectory = bptt.forward(rnn, 3 * rng.standard_normal((int(rng.integers(2, 4)), n)))
        exponents = bptt.lyapunov_spectrum(rnn, trajectory).exponents
        np.testing.assert_array_equal(np.isfinite(exponents), np.arange(n) < rank, f"seed {seed}")


@pytest.mark.parametrize("n", [2, 5, 16, 64])
def test_as_many_directions_live_as_the_rank_of_given_jacobians_is(level, n):
    """One singular step, alone or before others that are not."""
    for seed in range(5 if level == "reference" or n == 64 else 60):
        rng = np.random.default_rng(seed)
        W, rank = singular(rng, n)
        J = np.concatenate([[W * 10.0 ** -rng.uniform(0, 3, n)], rng.standard_normal((seed % 3, n, n))])
        alive = np.isfinite(bptt.lyapunov_spectrum(jacobians=J).exponents)
        np.testing.assert_array_equal(alive, np.arange(n) < rank, f"seed {seed}")


def rank_modulo(A, p=2**31 - 1):
    """Of an integer matrix: the rank, unless p divides a minor."""
    rows = [[int(value) % p for value in row] for row in A]
    rank = 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, p)
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] * inverse
            rows[i] = [(a - factor * b) % p for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


@pytest.mark.parametrize(("activation", "off"), [("relu", 0), ("leaky_relu", 1)])
def test_as_many_directions_live_as_the_rank_of_a_product_is(level, activation, off):
    """Units that are off and a singular W_R together: of integer weights the rank of the product is known exactly."""
    for seed in range(40 if level == "reference" else 400):
        rng = np.random.default_rng(seed)
        n, T = int(rng.integers(2, 8)), int(rng.integers(2, 9))
        W = rng.integers(-9, 10, (n, n))
        i, j = rng.choice(n, 2, replace=False)
        if seed % 3 == 0:
            W[:, i] = W[:, j]
        elif seed % 3 == 1:
            W[:, i] = 0
        else:
            W[i] = W[j]
        if seed % 2:
            W *= rng.random((n, n)) < 0.5
        rnn = bptt.RNN(W / 8, np.eye(n), activation=activation)
        trajectory = bptt.forward(rnn, 3 * rng.standard_normal((T, n)) + 1)
        product = np.eye(n, dtype=object)
        for h in trajectory.preactivations[:-1]:
            product = (W.astype(object) * np.where(h > 0, 100, off)) @ product
        exponents = bptt.lyapunov_spectrum(rnn, trajectory).exponents
        assert np.isfinite(exponents).sum() == rank_modulo(product), f"seed {seed}"
        k = max(1, n - 1)
        first = bptt.lyapunov_spectrum(rnn, trajectory, k=k).exponents
        np.testing.assert_array_equal(np.isfinite(first), np.isfinite(exponents[:k]), f"seed {seed}")


@pytest.mark.parametrize("N", [[[3, -9], [1, -3]], [[6, -9], [4, -6]], [[10, -20], [5, -10]], [[0, 1], [0, 0]]])
def test_a_nilpotent_matrix_kills_everything(level, N):
    """(1, 1/3) is no floating-point number: N times N's image is what 3 - 9/3 leaves of rounding, and nothing else."""
    rnn = bptt.RNN(N, np.eye(2), activation="identity")
    for T in (2, 3, 20):
        of_jacobians = bptt.lyapunov_spectrum(jacobians=np.tile(np.array(N, float), (T, 1, 1)))
        of_network = bptt.lyapunov_spectrum(rnn, bptt.forward(rnn, np.ones((T + 1, 2))))
        assert np.isneginf([of_jacobians.exponents, of_network.exponents]).all()


def test_what_dies_in_the_last_window_has_no_standard_error():
    J = np.ones((10, 1, 1))
    J[-1] = 0
    spectrum = bptt.lyapunov_spectrum(jacobians=J, window=4)
    assert spectrum.exponents[0] == -np.inf
    assert np.isnan(spectrum.standard_errors[0])


@pytest.mark.usefixtures("level")
def test_what_dies_in_the_warm_up_does_not_count():
    jacobians = np.full((1000, 1, 1), 1.02)
    jacobians[5] = 0
    spectrum = bptt.lyapunov_spectrum(jacobians=jacobians, warm_up=6)
    assert spectrum.exponents == pytest.approx(np.log(1.02))
    assert np.isneginf(bptt.lyapunov_spectrum(jacobians=jacobians, warm_up=5).exponents)

    rnn = bptt.RNN(np.diag([0.9, 0.8, 0.7]), np.eye(3), activation="relu")
    x = np.ones((1000, 3))
    x[4, 1:] = -100
    run = bptt.forward(rnn, x)
    for k in (1, 2, 3):
        spectrum = bptt.lyapunov_spectrum(rnn, run, k=k, warm_up=200)
        assert spectrum.exponents == pytest.approx(np.log([0.9, 0.8, 0.7])[:k], abs=1e-2)
        spectrum = bptt.lyapunov_spectrum(rnn, run, k=k)
        assert np.isneginf(spectrum.exponents).tolist() == [False, True, True][:k]
