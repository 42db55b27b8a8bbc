"""The reference's Lyapunov exponents: the sum rule, Newman's spectrum, steep steps and dead directions."""

import mpmath as mp
import numpy as np
import pytest

from bptt import reference
from bptt import reference_microscope as microscope

EPS = np.finfo(float).eps


def random_basis(rng, n):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


@pytest.mark.parametrize("form", ["activation", "preactivation"])
@pytest.mark.parametrize("gain", [0.8, 3.0, 10.0])
@pytest.mark.parametrize("activation", ["tanh", "logistic", "elu", "leaky_relu", "softplus", "softsign"])
def test_sum_rule(activation, gain, form):
    """Σ_i λ_i = log|det W_R| + mean Σ_i log σ'(h_i); at gain 10 tanh saturates, elu and softplus run away to 10^100."""
    rng = np.random.default_rng(1)
    n, T = 16, 120
    W_R = gain * rng.normal(size=(n, n)) / np.sqrt(n)
    net = reference.Network(W_R, rng.normal(size=(n, 2)), activation=activation, form=form)
    trajectory = reference.forward(net, rng.normal(size=(T, 2)), rng.normal(size=n))
    chain = microscope.chain_of_network(net, trajectory)
    growth = microscope.lyapunov_growth(chain, random_basis(rng, n), start=1)
    log_derivative = reference.ACTIVATIONS[activation].log_derivative(trajectory.h[1:T])
    wanted = (T - 1) * np.linalg.slogdet(W_R)[1] + log_derivative.sum()
    assert growth.shape == (T - 1, n)
    assert abs(growth.sum() - wanted) < 1e-11 * np.abs(growth).sum()


def test_newman_spectrum_of_gaussian_factors():
    """λ_i = ½ [ln(2 s²) + ψ((n-i+1)/2)]; each step's log r_ii is the log of a χ, of variance ψ'((n-i+1)/2) / 4."""
    rng = np.random.default_rng(2)
    n, T = 8, 2000
    exact = [-0.065088, -0.141569, -0.231755, -0.341569, -0.481755, -0.674902, -0.981755, -1.674902]
    chain = microscope.chain_of_jacobians(rng.normal(size=(T, n, n)) / np.sqrt(n))
    growth = microscope.lyapunov_growth(chain, np.eye(n))
    with mp.workdps(20):
        variances = [float(mp.psi(1, mp.mpf(n - i) / 2)) / 4 for i in range(n)]
    assert (np.abs(growth.mean(axis=0) - exact) < 3.5 * np.sqrt(np.divide(variances, T))).all()
    # the sample variance of T numbers is within 5 of its standard errors, sqrt(kurtosis / T) < 2 / sqrt(T) here
    np.testing.assert_allclose(growth.var(axis=0), variances, rtol=10 / np.sqrt(T))


def test_linear_network_has_the_logarithms_of_the_eigenvalues():
    rng = np.random.default_rng(3)
    basis = random_basis(rng, 4)
    eigenvalues = np.array([1.5, -1.0, 0.5, 0.2])
    net = reference.Network(basis * eigenvalues @ basis.T, np.zeros((4, 1)), activation="identity")
    trajectory = reference.forward(net, np.zeros((100, 1)), np.ones(4))
    growth = microscope.lyapunov_growth(microscope.chain_of_network(net, trajectory), random_basis(rng, 4))
    # a symmetric matrix: converged like (1/1.5)^(2t), below rounding after a hundred steps
    np.testing.assert_allclose(growth[-1], np.log(np.abs(eigenvalues)), atol=20 * EPS)
    leading = microscope.lyapunov_growth(microscope.chain_of_network(net, trajectory), random_basis(rng, 4)[:, :2])
    np.testing.assert_allclose(leading[-1], np.log([1.5, 1.0]), atol=20 * EPS)


@pytest.mark.parametrize("spread", [3.0, 40.0, 900.0])
def test_steps_of_any_spread_agree_with_the_qr_of_the_exact_product(spread):
    """log r_ii summed over the steps is log diag R of the whole product, here with as many digits as it takes."""
    rng = np.random.default_rng(4)
    n, T = 4, 5
    W = rng.normal(size=(T, n, n))
    e = np.floor(spread / np.log(2) * rng.uniform(-1, 0, size=(T, n)))
    Q = random_basis(rng, n)
    growth = microscope.lyapunov_growth(microscope.Chain(W, np.ones((T, n)), e), Q)
    with mp.workdps(int(3 * T * spread) + 50):
        P = mp.matrix(Q)
        for r in range(T):
            P = mp.matrix(W[r]) * mp.diag([mp.mpf(2) ** int(v) for v in e[r]]) * P
        exact = [float(mp.log(abs(mp.qr(P)[1][i, i]))) for i in range(n)]
    np.testing.assert_allclose(growth.sum(axis=0), exact, rtol=0, atol=1e-12 * (1 + spread))


def test_steep_steps_that_undo_each_other():
    """diag(1, ε), diag(ε, 1) by turns: ε² after two steps, though each step leaves one direction ε of the other."""
    T, e = 100, -500.0
    exponents = np.where(np.arange(T)[:, None] % 2 == [0, 1], 0.0, e)
    chain = microscope.Chain(np.broadcast_to(np.eye(2), (T, 2, 2)), np.ones((T, 2)), exponents)
    growth = microscope.lyapunov_growth(chain, random_basis(np.random.default_rng(5), 2))
    np.testing.assert_allclose(growth.sum(axis=0), [T / 2 * e * np.log(2)] * 2, rtol=1e-12)


def test_dead_relu_directions_are_minus_infinity_and_the_others_go_on():
    """Unit 2 never fires and the others always do: what is left is W_R without it."""
    rng = np.random.default_rng(6)
    W_R = rng.uniform(0.1, 0.3, size=(4, 4))
    W_R[1] *= -1
    net = reference.Network(W_R, np.zeros((4, 1)), activation="relu", form="preactivation")
    trajectory = reference.forward(net, np.zeros((200, 1)), np.array([1.0, -1.0, 1.0, 1.0]))
    assert (np.sign(trajectory.h) == [1, -1, 1, 1]).all()
    growth = microscope.lyapunov_growth(microscope.chain_of_network(net, trajectory), random_basis(rng, 4))
    assert np.isneginf(growth[:, 3]).all()
    alive = np.delete(np.delete(W_R, 1, axis=0), 1, axis=1)
    # volume of the three that live; the largest by itself
    np.testing.assert_allclose(growth[-1, :3].sum(), np.linalg.slogdet(alive)[1], rtol=20 * EPS)
    np.testing.assert_allclose(growth[-1, 0], np.log(np.abs(np.linalg.eigvals(alive)).max()), rtol=20 * EPS)


def test_a_singular_matrix_is_an_answer():
    rng = np.random.default_rng(7)
    n, rank = 5, 3
    W_R = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n))
    net = reference.Network(W_R, np.zeros((n, 1)), activation="tanh")
    trajectory = reference.forward(net, np.zeros((50, 1)), rng.normal(size=n))
    growth = microscope.lyapunov_growth(microscope.chain_of_network(net, trajectory), random_basis(rng, n))
    assert np.isneginf(growth[:, rank:]).all()
    assert (growth[:, :rank] > -20).all()
    zero = microscope.lyapunov_growth(microscope.chain_of_jacobians(np.zeros((3, 2, 2))), np.eye(2))
    assert np.isneginf(zero).all()


def test_gram_schmidt_keeps_its_basis_orthonormal_where_columns_are_nearly_parallel():
    n = 8
    hilbert = 1 / (np.arange(n)[:, None] + np.arange(n) + 1.0)  # condition number 1.5e10
    Q, r, kept = microscope.gram_schmidt(hilbert)
    np.testing.assert_allclose(Q.T @ Q, np.eye(n), rtol=0, atol=n * EPS)
    np.testing.assert_allclose(Q @ np.triu(Q.T @ hilbert), hilbert, rtol=0, atol=n * EPS)
    np.testing.assert_array_equal(kept, np.arange(n))
    assert (r > 0).all()


def test_a_dead_column_is_found_however_close_those_before_it_are():
    """A Gaussian matrix of rank n - 1; chance makes the first n - 1 columns nearly parallel in some of 500."""
    for seed in range(500):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 20))
        W, Q = rng.normal(size=(n, n)), random_basis(rng, n)
        W[:, 0] = W[:, -1]
        _, _, kept = microscope.gram_schmidt(W @ Q, np.abs(W) @ np.abs(Q))
        np.testing.assert_array_equal(kept, np.arange(n - 1), f"seed {seed}")


def test_units_that_are_there_or_not_are_a_projection():
    rng = np.random.default_rng(8)
    Q = random_basis(rng, 4)
    live = np.array([1.0, 0.0, 1.0, 1.0])
    Q1, log_r, kept = microscope.graded_qr(0.5 * live, np.full(4, 3.0), Q)
    np.testing.assert_array_equal(kept, [0, 1, 2])
    assert (Q1[1] == 0).all()
    wanted = np.linalg.qr(4 * live[:, None] * Q)[1]
    np.testing.assert_allclose(log_r, np.log(np.abs(np.diag(wanted)[:3])), rtol=0, atol=20 * EPS)
