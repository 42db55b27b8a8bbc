"""Row vectors through a chain: ‖v P(k,t)‖ of a network and of any Jacobians."""

import numpy as np
import pytest

import bptt
from support import problem

STOPS = np.array([9, 4, -1, 0])


@pytest.fixture
def run():
    rng, rnn, x, _ = problem()
    return rng, rnn, bptt.forward(rnn, x[:, 0])


def test_against_the_products_themselves(level, run):
    rng, rnn, trajectory = run
    vectors = rng.standard_normal((4, rnn.n))
    logs = bptt.chain_norms(rnn, trajectory, vectors=vectors, stops=STOPS, max_lag=6)
    assert logs.shape == (4, 7)
    for row, t, v in zip(logs, STOPS % 13, vectors, strict=True):
        for lag, log in enumerate(row):
            if t - lag < 1:
                assert np.isnan(log)
            else:
                P = bptt.product_chain(rnn, trajectory, int(t - lag), int(t)).to_array()
                assert log == pytest.approx(np.log(np.linalg.norm(v @ P)), abs=1e-12)


def test_of_jacobians(level, run):
    rng, _, _ = run
    J, vectors = rng.standard_normal((12, 5, 5)), rng.standard_normal((4, 5)) * 1e-100
    logs = bptt.chain_norms(jacobians=J, vectors=vectors, stops=STOPS, max_lag=20)
    for row, t, v in zip(logs, STOPS % 13, vectors, strict=True):
        for lag, log in enumerate(row):
            if lag > t:
                assert np.isnan(log)
                continue
            assert log == pytest.approx(np.log(np.linalg.norm(v)), rel=1e-14)
            if lag < t:
                v = v @ J[t - lag - 1]


def test_a_contribution_is_a_vector_times_an_activation(run):
    """(g_t P(k,t))^T a_{k-1}^T, for the direct part g_t of the error."""
    rng, rnn, trajectory = run
    y = rng.integers(rnn.m, size=12)
    _, g = bptt.errors(rnn, trajectory, y)
    logs = bptt.chain_norms(rnn, trajectory, vectors=g[3:], stops=np.arange(4, 13), max_lag=3)
    before = np.arange(4, 13)[:, None] - np.arange(4) - 1
    with np.errstate(divide="ignore"):  # a_0 is 0
        logs += np.log(np.linalg.norm(trajectory.activations[before], axis=-1))
    wanted = bptt.contributions(rnn, trajectory, y, stops=np.arange(4, 13), max_lag=3)
    assert np.allclose(logs, wanted, rtol=0, atol=1e-12)


def test_a_vector_of_zeros_stays_one(run):
    _, rnn, trajectory = run
    logs = bptt.chain_norms(rnn, trajectory, vectors=np.zeros((1, rnn.n)), stops=[5], max_lag=4)
    assert np.array_equal(logs, np.full((1, 5), -np.inf))


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (np.zeros((3, 6)), ValueError, r"vectors must have shape \(S, n\) with S = 4, n = 6; got \(3, 6\)"),
        (np.zeros((4, 5)), ValueError, r"vectors must have shape \(S, n\)"),
        (np.full((4, 6), np.inf), ValueError, "vectors must be finite"),
        (np.zeros((4, 6), complex), TypeError, "vectors must hold real numbers"),
    ],
)
def test_bad_vectors(run, vectors, error, message):
    _, rnn, trajectory = run
    with pytest.raises(error, match=message):
        bptt.chain_norms(rnn, trajectory, vectors=vectors, stops=STOPS)
