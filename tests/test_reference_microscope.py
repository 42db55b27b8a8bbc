"""The microscope's specification: chains, contributions and state Jacobians against complex steps and known answers."""

import math

import numpy as np
import pytest

from bptt import reference
from bptt import reference_microscope as microscope

FORMS = ("activation", "preactivation")
EPS = np.finfo(float).eps
INF = np.inf


def random_run(rng, n=4, T=6, gain=1.0, **choices):
    """A network without readout, an input, and its trajectory."""
    net = reference.Network(
        W_R=gain * rng.normal(size=(n, n)) / np.sqrt(n), W_I=rng.normal(size=(n, 3)), b_R=rng.normal(size=n), **choices
    )
    x, initial = rng.normal(size=(T, 3)), rng.normal(size=n)
    return net, x, reference.forward(net, x, initial)


def autonomous_run(W_R, T, initial, **choices):
    """No input, no bias."""
    net = reference.Network(np.asarray(W_R, dtype=float), np.zeros((len(W_R), 1)), **choices)
    return net, reference.forward(net, np.zeros((T, 1)), np.asarray(initial, dtype=float))


def naive_chain(net, trajectory, k, t):
    """P(k,t) as a plain product: each factor to the left of the earlier ones."""
    D = reference.slopes(net, trajectory)
    P = np.eye(len(net.W_R))
    for r in range(k, t):
        P = net.W_R @ np.diag(D[r]) @ P
    return P


def value(P):
    return np.ldexp(P.mantissa, P.exponent)


def assert_close(ours, wanted, eps=200):
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=eps * EPS * np.abs(wanted).max())


# Product chains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_chain_is_the_product_with_later_factors_on_the_left(activation, form):
    net, _, trajectory = random_run(np.random.default_rng(1), activation=activation, form=form)
    chain = microscope.chain_of_network(net, trajectory)
    for t in range(7):
        for k in range(t + 1):
            assert_close(value(microscope.product_chain(chain, k, t)), naive_chain(net, trajectory, k, t))


def test_chain_norms_by_lag():
    net, _, trajectory = random_run(np.random.default_rng(2))
    chain = microscope.chain_of_network(net, trajectory)
    for order in (2, "fro"):
        norms = microscope.chain_norms(chain, [6, 2, 0], 4, order)
        for i, t in enumerate([6, 2, 0]):
            for lag in range(5):
                if lag > t:
                    assert np.isnan(norms[i, lag])
                else:
                    wanted = np.log(np.linalg.norm(naive_chain(net, trajectory, t - lag, t), order))
                    assert abs(norms[i, lag] - wanted) < 100 * EPS


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_a_long_chain_keeps_its_range(factor):
    T = 5000
    jacobians = np.broadcast_to(factor * np.eye(2), (T, 2, 2))
    P = microscope.product_chain(microscope.chain_of_jacobians(jacobians), 0, T)
    # each of T products rounds its mantissa by at most eps/2, and so does the sum's last step to 34539
    assert abs(microscope.log_norm(P, 2) - T * math.log(factor)) < T * EPS + 34539 * 2 * EPS
    assert 0.5 <= P.mantissa[0, 0] < 1


def test_the_derivative_of_a_saturated_unit_is_small_and_not_zero():
    """tanh held at h = 400: σ' = 4 e^-800 / (1 + e^-800)², far below float64's range."""
    net, trajectory = autonomous_run([[400.0]], 4, [1.0], form="activation")
    assert (trajectory.h[1:] == 400).all()
    norms = microscope.chain_norms(microscope.chain_of_network(net, trajectory), [4], 3)
    wanted = [lag * (math.log(400) + 2 * math.log(2) - 800) for lag in range(4)]
    np.testing.assert_allclose(norms[0], wanted, rtol=4 * EPS)


def test_an_exact_zero_is_minus_infinity():
    net, trajectory = autonomous_run(np.eye(2), 5, [-1.0, -1.0], activation="relu", form="preactivation")
    chain = microscope.chain_of_network(net, trajectory)
    np.testing.assert_array_equal(microscope.chain_norms(chain, [5], 2), [[0, -INF, -INF]])
    contributions = microscope.contributions(chain, trajectory.a, np.ones((5, 2)), [5], 1)
    np.testing.assert_array_equal(contributions, [[-INF, -INF]])


def test_article_theorem_2_is_false_of_eigenvalues():
    """W = -3I: λ_1 = -3, ‖W^10‖ = 59049. And ρ(W_R) = 0, relu, a held state: ‖P‖₂ = √2 1.5^m."""
    net, trajectory = autonomous_run(-3 * np.eye(3), 10, np.ones(3), activation="identity")
    norms = microscope.chain_norms(microscope.chain_of_network(net, trajectory), [10], 10)
    np.testing.assert_allclose(norms[0], np.arange(11) * np.log(3), rtol=4 * EPS)

    W_R, T = 1.5 * np.array([[1.0, -1.0], [1.0, -1.0]]), 50
    net = reference.Network(W_R, np.eye(2), activation="relu", form="preactivation")
    trajectory = reference.forward(net, np.tile([-0.5, -2.5], (T, 1)), np.array([1.0, -1.0]))
    np.testing.assert_array_equal(trajectory.h, np.tile([1.0, -1.0], (T + 1, 1)))
    norms = microscope.chain_norms(microscope.chain_of_network(net, trajectory), [T], T)
    np.testing.assert_allclose(norms[0, 1:], 0.5 * np.log(2) + np.arange(1, T + 1) * np.log(1.5), rtol=4 * EPS)


# Contributions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_contributions_are_rank_one_and_sum_to_the_gradient(form):
    rng = np.random.default_rng(3)
    T, m = 6, 3
    net, x, trajectory = random_run(rng, T=T, form=form)
    net = net._replace(W_O=rng.normal(size=(m, 4)))
    y, w = rng.integers(0, m, T), rng.random(T)
    _, e = reference.errors(net, trajectory, y, "cross_entropy", w)
    g = reference.direct(net, reference.slopes(net, trajectory)[1:], e)
    chain = microscope.chain_of_network(net, trajectory)
    norms = microscope.contributions(chain, trajectory.a, g, range(1, T + 1), T)
    steps = []
    for t in range(1, T + 1):
        parts = [np.outer(g[t - 1] @ naive_chain(net, trajectory, k, t), trajectory.a[k - 1]) for k in range(1, t + 1)]
        for k, part in enumerate(parts, start=1):
            assert abs(norms[t - 1, t - k] - np.log(np.linalg.norm(part))) < 100 * EPS
        assert np.isnan(norms[t - 1, t:]).all()
        steps.append(microscope.per_step_gradient(net, trajectory, g, t))
        assert_close(steps[-1], sum(parts))
    _, gradients = reference.value_and_grad(net, x, y, "cross_entropy", trajectory.h[0], w)
    assert_close(sum(steps), gradients.W_R)


def test_contributions_may_grow_and_cancel():
    """Against article Thm 3: n = 1, h_0 = 1, h_1 = -λ, then 0. Every contribution grows; for t ≥ 2 their sum is 0."""
    lam, T = 2.0, 8
    W_I, x = np.ones((1, 1)), np.zeros((T, 1))
    x[0], x[1] = -2 * lam, lam**2
    net = reference.Network(np.array([[lam]]), W_I, activation="identity")
    trajectory = reference.forward(net, x, np.array([1.0]))
    np.testing.assert_array_equal(trajectory.a[:4, 0], [1, -lam, 0, 0])
    g = np.ones((T, 1))
    norms = microscope.contributions(microscope.chain_of_network(net, trajectory), trajectory.a, g, [T], T - 1)
    np.testing.assert_allclose(norms[0, [T - 1, T - 2]], (T - 1) * np.log(lam), rtol=4 * EPS)
    for t in range(2, T + 1):
        assert microscope.per_step_gradient(net, trajectory, g, t) == 0


# The state Jacobian ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrt", ["W_R", "W_I", "b_R", "initial"])
def test_state_jacobian_by_chain_by_recursion_and_by_complex_step(wrt, form):
    net, x, trajectory = random_run(np.random.default_rng(4), form=form)
    recursion = list(microscope.state_jacobians_by_recursion(net, x, trajectory, wrt))
    assert len(recursion) == len(x) + 1
    point = trajectory.h[0] if wrt == "initial" else getattr(net, wrt)
    stepped = np.zeros((len(x) + 1, 4, *point.shape))
    for i in np.ndindex(point.shape):
        moved = point.astype(complex)
        moved[i] += 1e-100j
        if wrt == "initial":
            run = reference.forward(net, x, moved)
        else:
            run = reference.forward(net._replace(**{wrt: moved}), x, trajectory.h[0])
        stepped[(slice(None), slice(None), *i)] = np.imag(reference.states(net, run)) / 1e-100
    for t, J in enumerate(recursion):
        assert J.shape == (4, *point.shape)
        assert_close(J, stepped[t])
        assert_close(microscope.state_jacobian_by_chain(net, x, trajectory, wrt, t), stepped[t])


def test_theorem_1_corrected():
    """The direct derivative is I ⊗ a^T, with a^T in the diagonal blocks only, and vec is row-major."""
    net, x, trajectory = random_run(np.random.default_rng(5), form="preactivation")
    J = microscope.state_jacobian_by_chain(net, x, trajectory, "W_R", 6).reshape(4, 16)
    blocks = sum(
        naive_chain(net, trajectory, k, 6) @ np.kron(np.eye(4), trajectory.a[k - 1][None]) for k in range(1, 7)
    )
    assert_close(J, blocks)


def test_backpropagation_is_the_sum_of_g_t_times_the_state_jacobian():
    rng = np.random.default_rng(6)
    net, x, trajectory = random_run(rng, form="preactivation")
    d_states = rng.normal(size=(6, 4))
    gradients = reference.backward(net, x, trajectory, d_states=d_states)
    for wrt in ("W_R", "W_I", "b_R", "initial"):
        jacobians = list(microscope.state_jacobians_by_recursion(net, x, trajectory, wrt))
        assert_close(getattr(gradients, wrt), sum(np.tensordot(d_states[t - 1], jacobians[t], 1) for t in range(1, 7)))


def test_scalar_state_jacobian():
    """h_t = w h_{t-1}: dh_t/dw = t w^{t-1} h_0."""
    w, h_0, T = 1.25, 3.0, 9
    net, trajectory = autonomous_run([[w]], T, [h_0], activation="identity")
    for t, J in enumerate(microscope.state_jacobians_by_recursion(net, np.zeros((T, 1)), trajectory, "W_R")):
        np.testing.assert_allclose(J, [[[t * w ** (t - 1) * h_0]]], rtol=2 * T * EPS)
