"""Certificates: the bounds hold, are as sharp as they say, and prove only what is so."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bptt
import support
from bptt.certificates import SLOPES

EPS = np.finfo(float).eps


def network(W, **choices):
    W = np.asarray(W, float)
    return bptt.RNN(W, np.eye(len(W)), **choices)


def matrix(kind, n, rng):
    W = rng.standard_normal((n, n)) / np.sqrt(n)
    if kind == "triangular":
        W = np.triu(W)
    elif kind == "nilpotent":
        W = np.triu(W, 1)
    elif kind == "singular":
        W[:, 0] = W[:, -1]
    elif kind == "badly scaled":
        d = 10 ** rng.uniform(-3, 3, n)
        W = d[:, None] * W / d
    elif kind == "sparse":
        W *= rng.random((n, n)) < 2 / n
    return W


KINDS = ("dense", "triangular", "nilpotent", "singular", "badly scaled", "sparse")


@settings(max_examples=60, deadline=None)
@example("sparse", 7, "identity", 0.3, 270)  # singular, and by its computed singular values not quite
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 7),
    activation=st.sampled_from(support.ACTIVATIONS),
    gain=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_no_chain_is_above_or_below_its_bounds(kind, n, activation, gain, seed):
    rng = np.random.default_rng(seed)
    rnn = network(gain * matrix(kind, n, rng), activation=activation)
    trajectory = bptt.forward(rnn, rng.standard_normal((30, n)), nonfinite="raise")
    norms = bptt.chain_norms(rnn, trajectory, stops=[30], max_lag=29)[0]
    lags = np.arange(30)
    slack = 1e-12 + 30 * 100 * n * EPS  # in logarithms, of 29 products and the bound's own rounding
    for seen in (None, trajectory):
        c = bptt.certificates(rnn, seen)
        for bound in (c.norm, c.absolute, c.scaled):
            assert (norms <= bound.log_at(lags) + slack).all()
            assert bound.constant >= 1
        assert c.radius <= c.scaled.rate * (1 + 1e-9) + 1e-12
        assert c.scaled.rate <= c.norm.rate
        for _ in range(3):
            g = rng.standard_normal(n)
            for lag in (1, 10, 29):
                size = (g @ bptt.product_chain(rnn, trajectory, 30 - lag, 30)).log_norm() - np.log(np.linalg.norm(g))
                for bound in (c.expanding, c.expanding_scaled):
                    assert size >= bound.log_at(np.array(lag)) - slack


def test_radius_of_a_defective_matrix_is_computed_to_its_own_accuracy():
    c = bptt.certificates(network([[0.5, 1.0], [0.0, 0.5]]))
    assert c.radius == pytest.approx(0.5, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_the_scaled_bound_is_the_sharpest(n, seed):
    rng = np.random.default_rng(seed)
    c = bptt.certificates(network(rng.standard_normal((n, n))))
    assert c.scaled.rate <= c.norm.rate
    assert c.scaled.rate <= c.absolute.rate * (1 + 1e-9)  # W is irreducible with probability 1
    assert np.isfinite(c.absolute.constant)


@pytest.mark.parametrize("seed", range(6))
def test_the_scaled_bound_is_the_infimum(seed):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((2, 2))
    s = np.exp(np.linspace(-6, 6, 20001))  # of diag(1, s): what a common factor does cancels
    M = np.stack([np.full_like(s, W[0, 0]), W[0, 1] / s, W[1, 0] * s, np.full_like(s, W[1, 1])], -1).reshape(-1, 2, 2)
    infimum = np.linalg.norm(M, 2, axis=(1, 2)).min()
    assert bptt.certificates(network(W)).scaled.rate == pytest.approx(infimum, rel=1e-5)  # the grid's and the search's


def test_the_scaled_bound_of_matrices_that_have_a_known_one():
    rng = np.random.default_rng(0)
    symmetric = rng.standard_normal((9, 9))
    symmetric += symmetric.T
    radius = np.abs(np.linalg.eigvalsh(symmetric)).max()
    d = 10 ** rng.uniform(-2, 2, 9)
    for W in (symmetric, d[:, None] * symmetric / d):
        assert bptt.certificates(network(W)).scaled.rate == pytest.approx(radius, rel=1e-6)
    positive = rng.random((9, 9))
    c = bptt.certificates(network(positive))
    assert c.scaled.rate == pytest.approx(c.radius, rel=1e-9)
    assert c.absolute.rate == pytest.approx(c.radius, rel=1e-12)
    S = c.scaled.scale
    assert c.scaled.constant == pytest.approx(S.max() / S.min())
    assert np.linalg.norm(S[:, None] * positive / S, 2) == pytest.approx(c.scaled.rate, rel=1e-12)


def test_a_scaling_that_is_not_attained_stays_within_its_limit():
    W = [[0.5, 3.0], [0.0, 0.5]]
    for limit in (1, 10, 1e3, 1e9):
        c = bptt.certificates(network(W), cond_limit=limit)
        assert 1 <= c.scaled.constant <= limit * (1 + 1e-9)
        assert c.scaled.rate == pytest.approx(0.5 + 1.5 / limit, rel=0.1) or limit == 1
        assert np.isinf(c.absolute.constant)
        assert c.absolute.rate == 0.5
    assert c.vanishes
    assert not c.explodes


def test_expanding_maps_are_proved_to_expand():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    c = bptt.certificates(network(1.5 * Q, activation="identity"))
    assert c.explodes
    assert c.expanding.rate == pytest.approx(1.5)
    d = 10 ** rng.uniform(-2, 2, 6)
    c = bptt.certificates(network(1.5 * d[:, None] * Q / d, activation="identity"))
    assert c.expanding.rate < 1
    assert c.expanding_scaled.rate == pytest.approx(1.5, rel=1e-4)
    assert c.expanding_scaled.constant == pytest.approx(d.min() / d.max(), rel=0.1)
    assert c.explodes


@pytest.mark.parametrize(
    ("W", "why"),
    [
        ([[0.0, 3.0], [0.0, 0.0]], "its norm is 3, its square 0 (article Thm 4)"),
        ([[1.0, 1.0], [0.0, 1.0]], "grows like the lag"),
    ],
)
def test_what_does_not_explode_is_not_said_to(W, why):
    assert not bptt.certificates(network(W, activation="identity")).explodes, why


def test_nothing_is_proved_at_exactly_one():
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 20)))[0]
    for activation in ("identity", "tanh"):
        c = bptt.certificates(network(Q, activation=activation))
        assert not c.vanishes
        assert not c.explodes


def test_the_spectral_radius_alone_proves_nothing():
    # rho(W) = 0, and a relu network that stays where ‖P‖ grows like 1.5^lag (mathematics: article Thm 2 is false)
    rnn = network(1.5 * np.array([[1.0, -1.0], [1.0, -1.0]]), activation="relu")
    trajectory = bptt.forward(rnn, np.tile([-0.5, -2.5], (40, 1)), [1.0, 0.0])
    np.testing.assert_array_equal(trajectory.preactivations, np.tile([1.0, -1.0], (40, 1)))
    norms = bptt.chain_norms(rnn, trajectory, stops=[40], max_lag=39)[0]
    np.testing.assert_allclose(norms[1:], np.log(2) / 2 + np.arange(1, 40) * np.log(1.5), rtol=1e-13)
    for c in (bptt.certificates(rnn), bptt.certificates(rnn, trajectory)):
        assert c.radius < 1e-7 or c.radius == pytest.approx(1.5)  # with Gamma, the unit that is dead is gone
        assert not c.vanishes


@pytest.mark.parametrize("activation", support.ACTIVATIONS)
def test_the_slopes_over_the_reals_are_those_of_the_activation(activation):
    rnn = network(np.eye(1), activation=activation)
    x = np.concatenate([np.linspace(-800, 800, 4001), [0.0, 1e-9, -1e-9]])[:, None]
    trajectory = bptt.forward(rnn.replace(W_R=[[0.0]]), x)
    seen, over_reals = bptt.certificates(rnn, trajectory), bptt.certificates(rnn)
    assert seen.most[0] <= over_reals.most[0]
    assert seen.least[0] >= over_reals.least[0]
    assert seen.most[0] == pytest.approx(over_reals.most[0], abs=1e-8)
    assert seen.least[0] == pytest.approx(over_reals.least[0], abs=2e-6)  # softsign' at 800
    assert set(SLOPES) == set(support.ACTIVATIONS)


def test_bad_input():
    rnn = network(np.eye(2))
    with pytest.raises(TypeError, match="rnn must be a bptt.RNN; got int"):
        bptt.certificates(3)
    with pytest.raises(ValueError, match=re.escape("cond_limit must be >= 1; got 0.5")):
        bptt.certificates(rnn, cond_limit=0.5)
    with pytest.raises(ValueError, match="trajectory must be of one sequence"):
        bptt.certificates(rnn, bptt.forward(rnn, np.zeros((4, 2, 2))))
    with pytest.raises(ValueError, match="trajectory must have T >= 2 steps; got T = 1"):
        bptt.certificates(rnn, bptt.forward(rnn, np.zeros((1, 2))))


@pytest.mark.parametrize("power", [-1020, -665, -532, -333, 333, 515, 1010])
def test_weights_of_any_scale(power):
    """The rates are homogeneous, and squares of such weights are not in float64's range."""
    rng = np.random.default_rng(0)
    for W in (np.ones((4, 4)), rng.standard_normal((5, 5)), np.triu(rng.standard_normal((4, 4)))):
        plain, scaled = bptt.certificates(network(W)), bptt.certificates(network(np.ldexp(W, power)))
        for name in ("norm", "absolute", "scaled", "expanding"):
            rate = getattr(scaled, name).rate
            assert np.ldexp(rate, -power) == pytest.approx(getattr(plain, name).rate, rel=1e-6, abs=1e-12)
        assert scaled.scaled.rate >= scaled.radius * (1 - 1e-12)
        assert scaled.scaled.rate <= scaled.norm.rate
        assert scaled.vanishes == (power < 0)
    growing = network(np.ldexp(np.eye(3), power), activation="identity")
    assert bptt.certificates(growing).explodes == (power > 0)


@pytest.mark.parametrize("scale", [1e10, 1e34, 1e40, 1e75])
def test_no_bound_from_a_scaling_that_is_not_known_well(scale):
    rnn = network(np.array([[0.5, scale], [0.1 / scale, 0.5]]), activation="identity")
    run = bptt.forward(rnn, np.zeros((30, rnn.p)))
    c, norms = bptt.certificates(rnn, run), bptt.chain_norms(rnn, run, stops=[-1], max_lag=20)[0]
    for bound in (c.norm, c.absolute, c.scaled):
        assert (norms <= bound.log_at(np.arange(21)) + 1e-6).all()
    assert np.isfinite(c.absolute.constant) == (scale < 1e30)


def test_bounds_from_above_do_not_underflow():
    """Slopes of 1e-1300 are above 0, and so is the bound."""
    rnn = network([[1e3]], activation="tanh")
    run = bptt.forward(rnn.replace(W_I=[[1.0]], b_R=[0.0]), np.full((5, 1), 500.0))
    c, norms = bptt.certificates(rnn, run), bptt.chain_norms(rnn, run, stops=[-1], max_lag=3)[0]
    assert np.isfinite(norms).all()
    for bound in (c.norm, c.absolute, c.scaled):
        assert (norms <= bound.log_at(np.arange(4))).all()
    assert (c.absolute.log_at([0, 3]) >= norms[[0, 3]]).all()  # a list does too
    dead = bptt.certificates(network(np.zeros((2, 2))))
    assert dead.norm.rate == dead.absolute.rate == dead.scaled.rate == 0


@pytest.mark.parametrize("form", support.STATES)
@pytest.mark.parametrize("size", [356.0, 360.25, 366.0, 370.7, 371.1])
def test_bounds_hold_among_subnormal_slopes(form, size):
    """Such slopes have few digits: what bounds them from above is rounded up, what does from below is rounded down."""
    lags = np.arange(8)
    for weight in (0.7, 1.0, 1.37):
        rnn = bptt.RNN([[weight]], [[size]], form=form)
        run = bptt.forward(rnn, np.ones((10, 1)), initial=[size if form == "preactivation" else 0])
        c, norms = bptt.certificates(rnn, run), bptt.chain_norms(rnn, run, stops=[-1], max_lag=7)[0]
        assert 0 < c.most[0] < np.finfo(float).tiny
        for bound in (c.norm, c.absolute, c.scaled):
            assert (norms <= bound.log_at(lags) + 1e-11).all()
        for bound in (c.expanding, c.expanding_scaled):
            assert (norms >= bound.log_at(lags) - 1e-11).all()


@pytest.mark.parametrize(
    ("W", "radius"),
    [
        ([[0, 1e200], [1e-200, 0]], 1),
        ([[0, 1e300], [1e-300, 0]], 1),
        ([[1e-308, 1e308], [1e-300, 0.5]], 1e4),
        ([[0, 1e200, 0], [0, 0, 1e200], [1e-300, 0, 0]], 10 ** (100 / 3)),
        ([[0.5, 1e300, 1], [0, 0.25, 1e-300], [0, 1e300, 0.25]], 1.25),
        ([[0.5, 1e300], [0, 0.25]], 0.5),
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], 1),
    ],
)
def test_nothing_is_proved_from_numbers_that_do_not_fit_float64_together(W, radius):
    c = bptt.certificates(network(W, activation="identity"))
    assert c.absolute.rate == pytest.approx(radius, rel=1e-4)
    assert c.radius == pytest.approx(radius, rel=1e-4)
    assert c.vanishes == (radius < 1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 8), most=st.integers(0, 500), seed=st.integers(0, 10**6), sparse=st.booleans())
def test_radii_are_those_of_a_matrix_scaled_at_will(n, most, seed, sparse):
    """D M D^-1 has M's eigenvalues, to the last digit where D holds powers of two."""
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((n, n)) * (rng.random((n, n)) < (0.4 if sparse else 1))
    x = rng.integers(-most, most + 1, n)
    plain = bptt.certificates(network(M, activation="identity"))
    scaled = bptt.certificates(network(np.ldexp(M, x[:, None] - x), activation="identity"))
    slack = 1e-6 * np.linalg.norm(M)
    assert scaled.radius == pytest.approx(plain.radius, abs=slack)
    assert scaled.absolute.rate == pytest.approx(plain.absolute.rate, rel=1e-9)
    assert plain.absolute.rate == pytest.approx(np.abs(np.linalg.eigvals(np.abs(M))).max(), rel=1e-9, abs=1e-2)


def test_lags_are_not_negative():
    bound = bptt.certificates(bptt.RNN([[0.5]], [[1.0]])).norm
    for lags, error, message in (
        ([3, -1], ValueError, "lags must be >= 0; got -1"),
        ("3", TypeError, "lags must hold"),
    ):
        with pytest.raises(error, match=message):
            bound.log_at(lags)
