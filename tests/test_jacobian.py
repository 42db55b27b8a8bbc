"""The derivative of the state: chain, recursion and complex steps agree; what vanishes, explodes and is refused."""

import tracemalloc
import warnings

import numpy as np
import pytest

import bptt
from bptt import _levels, jacobian, reference
from bptt import reference_microscope as microscope
from bptt._bundles import zero_rows
from bptt._columns import segment_steps
from bptt._rest import half_a_place, rounding, steps_that_matter
from support import ACTIVATIONS, network, relative_error, specification

EPS = np.finfo(float).eps
FORMS = ("activation", "preactivation")
WRT = ("W_R", "W_I", "b_R", "initial")
METHODS = ("chain", "recursion")


def run(rnn, x, initial):
    net = specification(rnn)
    x = reference.one_hot(x, rnn.p) if np.asarray(x).dtype.kind == "i" else x
    return net, x, reference.forward(net, x, initial)


def complex_steps(rnn, x, initial, wrt, size=1e-100):
    """d(state t)/d(wrt) for t = 0 .. T, without cancellation."""
    net = specification(rnn)
    point = initial if wrt == "initial" else getattr(net, wrt)
    stepped = np.zeros((len(x) + 1, rnn.n, *point.shape))
    for i in np.ndindex(point.shape):
        moved = point.astype(complex)
        moved[i] += 1j * size
        if wrt == "initial":
            states = reference.states(net, reference.forward(net, x, moved))
        else:
            states = reference.states(net, reference.forward(net._replace(**{wrt: moved}), x, initial))
        stepped[(slice(None), slice(None), *i)] = states.imag / size
    return stepped


# Against what it must be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrt", WRT)
@pytest.mark.parametrize("activation", ["tanh", "logistic", "softplus"])
def test_chain_recursion_and_complex_step_agree(level, activation, wrt, form):
    rng = np.random.default_rng(0)
    T, n = 9, 5
    rnn = network(n=n, activation=activation, form=form)
    x, initial = rng.standard_normal((T, rnn.p)), rng.standard_normal(n)
    stepped = complex_steps(rnn, x, initial, wrt)
    online = list(bptt.state_jacobians(rnn, x, wrt=wrt, initial=initial))
    assert len(online) == T + 1
    for t in range(T + 1):
        # sums of at most 10 products of 10 factors of order one
        size = np.abs(stepped[t]).max()
        np.testing.assert_allclose(online[t], stepped[t], rtol=0, atol=100 * EPS * size)
        for method in METHODS:
            J = bptt.state_jacobian(rnn, x, wrt=wrt, step=t, method=method, initial=initial)
            assert J.dtype == np.float64
            assert J.flags.c_contiguous
            np.testing.assert_allclose(J, stepped[t], rtol=0, atol=100 * EPS * size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 3, 7, 8, 9, 12, 15, 16, 17, 31, 33])
def test_every_size_of_network_and_more_steps_than_a_block(n, method):
    rng = np.random.default_rng(n)
    T = 150 if method == "chain" or n < 20 else 10
    rnn = network(n=n, gain=0.98)
    x, initial = rng.standard_normal((T, rnn.p)), rng.standard_normal(n)
    net, x, trajectory = run(rnn, x, initial)
    for wrt in WRT:
        wanted = microscope.state_jacobian_by_chain(net, x, trajectory, wrt, T)
        mine = bptt.state_jacobian(rnn, x, wrt=wrt, method=method, initial=initial)
        # products of up to T factors, each off by some eps and by what sigma'' makes of the states' rounding
        assert relative_error(mine, wanted) < 1e-11


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(level, activation):
    rng = np.random.default_rng(2)
    rnn = network(n=6, activation=activation)
    x = rng.standard_normal((12, rnn.p))
    net, _, trajectory = run(rnn, x, np.zeros(6))
    for wrt in WRT:
        wanted = microscope.state_jacobian_by_chain(net, x, trajectory, wrt, 12)
        for method in METHODS:
            assert relative_error(bptt.state_jacobian(rnn, x, wrt=wrt, method=method), wanted) < 1e-13


def test_scalar_power(level):
    """h_t = w h_{t-1}: dh_t/dw = t w^(t-1) h_0 and dh_t/dh_0 = w^t."""
    w, h_0 = 1.25, 3.0
    rnn = bptt.RNN([[w]], [[1.0]], activation="identity", form="preactivation")
    for t in (0, 1, 2, 9, 100):
        for method in METHODS:
            by_w, by_h_0 = (
                bptt.state_jacobian(rnn, np.zeros((100, 1)), wrt=wrt, step=t, method=method, initial=[h_0]).item()
                for wrt in ("W_R", "initial")
            )
            np.testing.assert_allclose([by_w, by_h_0], [t * w ** (t - 1) * h_0, w**t], rtol=4 * (t + 1) * EPS)


@pytest.mark.parametrize("form", FORMS)
def test_backpropagation_is_the_sum_of_g_t_times_the_jacobian(level, form):
    rng = np.random.default_rng(3)
    T = 8
    rnn = network(form=form)
    x, g, initial = rng.standard_normal((T, rnn.p)), rng.standard_normal((T, rnn.n)), rng.standard_normal(rnn.n)
    gradients = bptt.backward(rnn, x, bptt.forward(rnn, x, initial), d_states=g)
    for wrt in WRT:
        jacobians = list(bptt.state_jacobians(rnn, x, wrt=wrt, initial=initial))
        total = sum(np.tensordot(g[t - 1], jacobians[t], 1) for t in range(1, T + 1))
        assert relative_error(total, getattr(gradients, wrt)) < 1e-13


def test_tokens_are_one_hot_inputs(level):
    rng = np.random.default_rng(4)
    rnn = network(p=7)
    tokens = rng.integers(7, size=80).astype(np.int16)
    for wrt in WRT:
        for method in METHODS:
            mine = bptt.state_jacobian(rnn, tokens, wrt=wrt, method=method)
            np.testing.assert_allclose(
                mine, bptt.state_jacobian(rnn, np.eye(7)[tokens], wrt=wrt, method=method), rtol=0, atol=4 * EPS
            )
    assert not bptt.state_jacobian(rnn, np.full(80, 2), wrt="W_I")[:, :, 3:].any()


@pytest.mark.parametrize("method", METHODS)
def test_a_float32_network_is_differentiated_along_its_own_states_in_float64(level, method):
    rng = np.random.default_rng(5)
    rnn = network(n=9, dtype="float32")
    x = rng.standard_normal((40, rnn.p))
    trajectory = bptt.forward(rnn, x)
    J = np.zeros((9, 9, 9))
    h, a = trajectory.preactivations.astype(float), trajectory.activations.astype(float)
    D = np.concatenate([np.ones((1, 9)), reference.ACTIVATIONS["tanh"].derivative(h)])
    for t in range(1, 41):
        J = np.multiply.outer(np.eye(9), a[t - 1]) + np.tensordot(rnn.W_R.astype(float) * D[t - 1], J, 1)
    J = (D[40] * J.T).T
    assert relative_error(bptt.state_jacobian(rnn, x, method=method), J) < 1e-13


def test_negative_steps_count_from_the_end(level):
    rnn, x = network(), np.random.default_rng(6).standard_normal((5, 3))
    for step in range(6):
        np.testing.assert_array_equal(
            bptt.state_jacobian(rnn, x, step=step), bptt.state_jacobian(rnn, x, step=step - 6)
        )
    np.testing.assert_array_equal(bptt.state_jacobian(rnn, x, step=0, wrt="initial"), np.eye(6))
    np.testing.assert_array_equal(bptt.state_jacobian(rnn, x[:0]), np.zeros((6, 6, 6)))


def test_no_inputs(level):
    rnn = bptt.RNN([[0.5]], np.zeros((1, 0)), activation="identity")
    for method in METHODS:
        assert bptt.state_jacobian(rnn, np.zeros((4, 0)), wrt="W_I", method=method).shape == (1, 1, 0)
        assert bptt.state_jacobian(rnn, np.zeros((4, 0)), wrt="b_R", method=method).item() == 1.875


# Kernels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "q"), [(1, 1), (5, 3), (8, 8), (9, 17), (24, 5), (64, 33), (100, 1)])
@pytest.mark.parametrize("source", ["numbers", "tokens", None])
def test_levels_agree_and_threads_change_no_bit(kernel, source, n, q):
    rng = np.random.default_rng(n)
    L = 150  # more than a block
    W, d = np.linalg.qr(rng.standard_normal((n, n)))[0], rng.uniform(0.8, 1.2, (L, n))  # P stays in float32's range
    v = {"numbers": rng.standard_normal((L, q)), "tokens": rng.integers(q, size=L, dtype=np.int32), None: None}[source]
    start = rng.standard_normal((n, n))
    columns = n * q if source else n

    def by_chain(module, threads, single=0):
        P, J = zero_rows(n, n), np.full((n, n, q), np.nan if source else 0.0)
        P[:, :n] = start
        for piece, more in ((slice(20, None), False), (slice(0, 20), True)):  # 130 steps, more than a block, and 20
            d_piece, v_piece = d[piece], None if v is None else v[piece]
            few = min(single, len(d_piece))
            assert module.jacobian_by_chain(W, d_piece, v_piece, P, J if source else None, more, few, threads)
        return P[:, :n], J

    def by_recursion(module, threads, steps):
        J = zero_rows(columns, n)
        J[:, :n] = np.resize(start, (columns, n))
        for i in range(0, L, steps):
            assert (
                module.jacobian_by_recursion(W, d[i : i + steps], v if v is None else v[i : i + steps], J, threads)
                == -1
            )
        return J[:, :n]

    wanted = by_chain(_levels.load("reference"), 1)
    mine = by_chain(kernel, 1)
    for ours, theirs in zip(mine, wanted, strict=True):
        assert relative_error(ours, theirs) < 1e-13
    for single in (1, 15, 140):  # of each piece, if it has so many
        for ours, theirs in zip(by_chain(kernel, 1, single), wanted, strict=True):
            assert relative_error(ours, theirs) < 150 * np.finfo(np.float32).eps / 2  # a place of P a step
    few = 150 if n * n * columns < 10**6 else 2
    L = few
    moved = by_recursion(kernel, 1, L)
    assert relative_error(moved, by_recursion(_levels.load("reference"), 1, L)) < 1e-13
    for threads in (2, 3):
        for ours, again in zip(mine, by_chain(kernel, threads), strict=True):
            assert ours.tobytes() == again.tobytes()
        assert moved.tobytes() == by_recursion(kernel, threads, L).tobytes()
        assert moved.tobytes() == by_recursion(kernel, threads, 1).tobytes()


# Vanishing and exploding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_vanishes_is_zero_in_silence(level, method):
    rnn = network(gain=0.2)
    x = np.random.default_rng(7).standard_normal((1500, rnn.p))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        J = bptt.state_jacobian(rnn, x, wrt="initial", method=method)
        assert not J.any()
        last, whole = (bptt.state_jacobian(rnn, x[-steps:], method=method) for steps in (200, 1500))
    # the states of the two runs agree to rounding after some tens of steps, and so does all that has not vanished
    assert relative_error(last, whole) < 1e-13


@pytest.mark.parametrize("wrt", WRT)
@pytest.mark.parametrize("method", METHODS)
def test_what_leaves_the_range_is_said(level, method, wrt):
    """h = 4 a - 3 holds a = 1, and dh_t/d(wrt) = (1 + 4 + ... + 4^(t-1)) v, or 4^t: beyond float64 at t = 513."""
    rnn = bptt.RNN([[4.0]], [[1.0]], activation="relu")
    arguments = {"wrt": wrt, "method": method, "initial": [1.0]}
    J = bptt.state_jacobian(rnn, np.full((500, 1), -3.0), **arguments).item()
    v = {"W_R": 1, "W_I": -3, "b_R": 1, "initial": 3}[wrt]
    np.testing.assert_allclose(J, v * 4.0**500 / 3, rtol=4 * EPS)

    x = np.full((700, 1), -3.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        bptt.state_jacobian(rnn, x, nonfinite="raise", **arguments)
    with pytest.warns(RuntimeWarning, match=f"the derivative of the state by {wrt} is not finite") as caught:
        assert not np.isfinite(bptt.state_jacobian(rnn, x, **arguments)).any()
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bptt.state_jacobian(rnn, x, nonfinite="ignore", **arguments)


def test_states_that_are_not_finite_are_said_once(level):
    rnn = bptt.RNN([[4.0]], [[1.0]], activation="identity")
    for method in METHODS:
        with pytest.warns(RuntimeWarning, match="the state is not finite: first at step t = 513") as caught:
            bptt.state_jacobian(rnn, np.ones((700, 1)), method=method)
        assert len(caught) == 1


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_nothing_is_left_out_where_states_are_not_finite(level, monkeypatch, activation):
    monkeypatch.setattr(jacobian, "_FLOP", 1)  # so that it would be asked
    rnn = bptt.RNN([[4.0]], [[1.0]], activation=activation)
    x = np.ones((700, 1))
    x[-10:] = np.inf if activation == "identity" else np.nan
    for wrt in ("W_R", "W_I", "b_R"):
        assert not np.isfinite(bptt.state_jacobian(rnn, x, wrt=wrt, nonfinite="ignore")).any()


def test_the_first_step_that_is_not_finite_is_named(level):
    """4^t leaves the range of float64 at t = 512, and b_R's derivative, their sum, with it."""
    rnn = bptt.RNN([[4.0]], [[1.0]])
    jacobians = bptt.state_jacobians(rnn, np.zeros((600, 1)), wrt="initial")
    with pytest.warns(RuntimeWarning, match="not finite: first at step t = 512"):
        values = [J.item() for J in jacobians]
    assert values[511] == 4.0**511
    assert values[512] == np.inf
    with pytest.raises(FloatingPointError, match="by initial is not finite at step t = 600"):
        bptt.state_jacobian(rnn, np.zeros((600, 1)), wrt="initial", nonfinite="raise")
    assert bptt.state_jacobian(rnn, np.zeros((600, 1)), wrt="initial", step=511) == 4.0**511


# The rest of a long sum -----------------------------------------------------------------------------------------------


def rounding_of_the_sum(rnn, x, wrt):
    """n u sum_k |P(k+1,t)| |W_R D_k| |v_k^T|: what the rounding of its products may have done to the derivative.

    And a place of sum_k |P(k,t)| |v_k^T|, by which sums in another order differ.
    """
    net, x, trajectory = run(rnn, x, np.zeros(rnn.n))
    D, v = reference.slopes(net, trajectory), microscope.sources(x, trajectory, wrt)
    P = np.diag(D[-1]) if rnn.form == "activation" else np.eye(rnn.n)
    bound = 0.0
    for k in range(len(x) - 1, 0, -1):
        M = rnn.W_R * D[k]
        bound += rnn.n * EPS / 2 * (np.abs(P) @ np.abs(M))[:, :, None] * np.abs(v[k - 1])
        bound += EPS * np.abs(P)[:, :, None] * np.abs(v[k])
        P = P @ M
    return bound


def spied_on(monkeypatch):
    """What it is answered how many steps matter, each time that it is asked."""
    answers = []

    def spy(*arguments):
        answers.append(steps_that_matter(*arguments))
        return answers[-1]

    monkeypatch.setattr(jacobian, "steps_that_matter", spy)
    return answers


def check_that_no_bit_is_left_out(monkeypatch, rnn, x):
    """The sum ends before the first step, and is that over all of them."""
    monkeypatch.setattr(jacobian, "_FLOP", 1)
    answers = spied_on(monkeypatch)
    mine = bptt.state_jacobian(rnn, x, wrt="W_I")
    assert answers[-1][0] == 0
    monkeypatch.setattr(jacobian, "steps_that_matter", lambda *arguments: (len(x), len(x)))
    assert mine.tobytes() == bptt.state_jacobian(rnn, x, wrt="W_I").tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["tanh", "elu", "relu"])
@pytest.mark.parametrize("wrt", ["W_R", "W_I", "b_R"])
def test_what_is_left_out_of_a_long_sum_is_below_its_rounding(level, monkeypatch, wrt, activation, form):
    rng = np.random.default_rng(12)
    rnn = network(n=12, activation=activation, gain=0.8, form=form)
    x = rng.standard_normal((900, rnn.p))
    monkeypatch.setattr(jacobian, "_FLOP", 1)  # a piece is no more than a block of steps
    answers = spied_on(monkeypatch)
    mine = bptt.state_jacobian(rnn, x, wrt=wrt).reshape(rnn.n, rnn.n, -1)
    (matter, exact), *again = answers
    assert 20 < exact < matter < 800 or activation == "relu"  # where sums of zeros may be left, and all is added
    assert not again or activation == "relu"
    monkeypatch.setattr(jacobian, "steps_that_matter", lambda *arguments: (900, 900))
    whole = bptt.state_jacobian(rnn, x, wrt=wrt).reshape(mine.shape)
    assert np.all(np.abs(mine - whole) <= rounding_of_the_sum(rnn, x, wrt))


def test_what_is_left_out_of_a_sum_over_tokens_changes_no_bit(level, monkeypatch):
    rnn = network(n=12, p=4, gain=0.8)
    tokens = np.random.default_rng(12).integers(4, size=900)
    check_that_no_bit_is_left_out(monkeypatch, rnn, tokens)


def test_what_vanishes_may_come_back(level):
    """200 steps of decay by e^-100, and before them 200 of growth: all of it, none of it or too little comes back."""
    rng = np.random.default_rng(13)
    n = 5
    kernel, P = _levels.kernel(), 1e-30 * rng.standard_normal((n, n))
    room = np.full(n, 2.0**-55)
    W = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for growth, comes_back in ((1.0, True), (0.7, True), (0.4, False), (-1.0, False)):
        d = np.exp(np.repeat([growth, -0.5], 200))[:, None] * np.ones(n)  # in order of time
        v = rng.standard_normal((400, n))
        for cut in (400, 130, 1):  # into pieces
            pieces = [(j := max(0, i - cut), d[j:i], v[j:i]) for i in range(400, 0, -cut)]
            steps, _ = steps_that_matter(P, room, W, pieces, kernel, 1)
            assert steps > 390 if comes_back else steps == 0
            before = np.prod(d[::-1].max(axis=1)[: steps - 1]) if steps else 0  # of the last step that matters
            assert not comes_back or before * 1e-30 > 1e-4 * room[0]


def test_a_source_that_has_not_been_met_matters_however_late(level):
    rng = np.random.default_rng(14)
    n = 5
    kernel, P, W = _levels.kernel(), 1e-200 * rng.standard_normal((n, n)), 0.5 * np.eye(n)
    J = rng.uniform(1, 2, (n, n, 4))
    J[:, :, 3] = 0
    own = np.ones(n)
    d = np.ones((50, n))
    tokens = rng.integers(3, size=50, dtype=np.int32)
    assert steps_that_matter(P, half_a_place(own, J), W, [(0, d, tokens)], kernel, 1)[0] == 0
    assert steps_that_matter(P, half_a_place(own, J), W, [(0, d, np.eye(4)[tokens])], kernel, 1)[0] == 0
    tokens[7] = 3
    assert steps_that_matter(P, half_a_place(own, J), W, [(0, d, tokens)], kernel, 1)[0] > 40
    assert steps_that_matter(P, half_a_place(own, J), W, [(0, d, np.eye(4)[tokens])], kernel, 1)[0] > 40
    J[:, :, 3] = 1
    J[2] = 0  # what a dead unit's derivative is
    assert steps_that_matter(P, half_a_place(own, J), W, [(0, d, tokens)], kernel, 1)[0] > 40
    own[2] = 0
    assert steps_that_matter(P[own > 0], half_a_place(own, J), W, [(0, d, tokens)], kernel, 1)[0] == 0


def test_what_is_below_rounding_is_below_it_in_every_number(level):
    rng = np.random.default_rng(15)
    n, kernel = 6, _levels.kernel()
    W, d, v = rng.standard_normal((n, n)), rng.uniform(0.1, 1, (20, n)), rng.standard_normal((20, 3))
    own = np.array([1, 0.5, 0, 1e-8, 1, 1])
    room = rounding(own, W, d, v, kernel, 1)
    alive = own > 0
    P, bound = np.diag(own), np.zeros((n, n, 3))
    for k in range(19, 0, -1):
        bound += n * EPS / 2 * (np.abs(P) @ np.abs(W) * d[k])[:, :, None] * np.abs(v[k - 1])
        P = P @ W * d[k]
    most = (bound[alive] / own[alive, None, None]).min(axis=(0, 1))
    assert np.all(room > 1e-3 * most)
    assert np.all(room <= most)
    W[0, 1:] = W[1:, 0] = 0  # a unit of its own
    assert not rounding(own, W, d, v, kernel, 1).any()


@pytest.mark.parametrize("case", ["one-hot", "shift", "silent end"])
def test_where_rounding_has_no_bound_a_place_of_the_sum_ends_it(level, monkeypatch, case):
    rng = np.random.default_rng(16)
    W_R = 0.85 * (np.roll(np.eye(12), 1, 0) if case == "shift" else np.linalg.qr(rng.standard_normal((12, 12)))[0])
    rnn = bptt.RNN(W_R, rng.standard_normal((12, 3)))
    x = np.eye(3)[rng.integers(3, size=2000)] if case == "one-hot" else rng.standard_normal((2000, 3))
    if case == "one-hot":
        x[-10:] = x[0]
    if case == "silent end":
        x[-10:] = 0
    check_that_no_bit_is_left_out(monkeypatch, rnn, x)


def test_what_is_small_beside_numbers_as_small_still_matters(level):
    """P(k,t) 100 steps back is e-196, and so is all of the second column's derivative."""
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    rnn = bptt.RNN(Q, [[4.0, 0.0], [4.0, 0.0]], form="preactivation")
    tokens = np.array([1] * 6000 + [0] * 100)
    for x in (tokens, np.eye(2)[tokens], np.eye(2)[tokens] * [1, 1e196]):
        chain, recursion = (bptt.state_jacobian(rnn, x, wrt="W_I", method=method) for method in METHODS)
        for column in (0, 1):
            assert relative_error(chain[..., column], recursion[..., column]) < 1e-12


def test_a_norm_beyond_the_range_of_its_square_is_no_warning(level):
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(2, 64, None, gain=4.0, rng=rng).replace(W_I=np.full((64, 2), 20.0))
    x = np.zeros((575, 2))
    x[500:] = 0.3 * rng.standard_normal((75, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bptt.state_jacobian(rnn, x, wrt="b_R", nonfinite="ignore")
        x[-1] = np.inf
        bptt.state_jacobian(rnn, x, wrt="b_R", nonfinite="ignore", method="recursion")


def test_a_slope_that_comes_back_from_nearly_0_is_no_warning(level):
    rnn = bptt.RNN([[1000.0]], [[1.0]], activation="logistic")
    x = np.full((140, 1), -500.0)
    x[0], x[-1] = 0, -1200
    for wrt in WRT:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isfinite(bptt.state_jacobian(rnn, x, wrt=wrt)).all()


# Online ---------------------------------------------------------------------------------------------------------------


def test_online_jacobians_are_the_callers_own(level):
    rnn = network(n=4)
    x = np.random.default_rng(8).standard_normal((300, rnn.p))
    kept = list(bptt.state_jacobians(rnn, x))
    for t, J in enumerate(bptt.state_jacobians(rnn, x)):
        np.testing.assert_array_equal(J, kept[t])
        J[:] = np.nan
    for t in (0, 1, 150, 300):
        np.testing.assert_array_equal(kept[t], bptt.state_jacobian(rnn, x, step=t, method="recursion"))


def test_online_jacobians_take_no_memory_of_the_past():
    rnn = network(n=4)
    grid = segment_steps(rnn.n, rnn.p, rnn.m, 1, rnn.dtype)

    def peak(T):
        inputs = np.zeros((T, rnn.p))
        tracemalloc.start()
        for _ in bptt.state_jacobians(rnn, inputs, wrt="initial"):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(4 * grid) < 1.01 * peak(2 * grid)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [bptt.state_jacobian, bptt.state_jacobians])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rnn": "W"}, TypeError, "rnn must be a bptt.RNN; got str"),
        (
            {"x": np.zeros((5, 2, 3))},
            ValueError,
            r"x must have shape \(T, p\), one sequence, with p = 3; got \(5, 2, 3\)",
        ),
        ({"x": np.zeros((5, 2), int)}, ValueError, r"x must have shape \(T,\), one sequence, .*; got \(5, 2\)"),
        ({"x": np.zeros((5, 4))}, ValueError, r"x must have shape .* with p = 3; got \(5, 4\)"),
        ({"wrt": "W_O"}, ValueError, "wrt must be one of 'W_R', 'W_I', 'b_R', 'initial'; got 'W_O'"),
        ({"wrt": None}, TypeError, "wrt must be one of"),
        ({"initial": np.zeros(5)}, ValueError, r"initial must have shape \(n,\) with n = 6; got \(5,\)"),
        ({"nonfinite": "no"}, ValueError, "nonfinite must be one of"),
        (
            {"memory": "1 kB"},
            ValueError,
            r"wrt='W_R' must give a result that fits memory = '1 kB'; one of shape \(6, 6, 6\)",
        ),
        ({"memory": "much"}, ValueError, "memory must be a number of bytes or a text"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
    ],
)
def test_bad_arguments_of_both(function, changes, error, message):
    arguments = {"rnn": network(), "x": np.zeros((5, 3)), **changes}
    with pytest.raises(error, match=message):  # at the call: nothing is iterated
        function(arguments.pop("rnn"), arguments.pop("x"), **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"step": 6}, ValueError, r"step must be a step in 0..T with T = 5, or from -6 to -1; got 6"),
        ({"step": -7}, ValueError, "step must be"),
        ({"step": 1.0}, TypeError, "step must be an integer; got float"),
        ({"method": "rtrl"}, ValueError, "method must be one of 'chain', 'recursion'; got 'rtrl'"),
    ],
)
def test_bad_arguments_of_one_step(changes, error, message):
    with pytest.raises(error, match=message):
        bptt.state_jacobian(network(), np.zeros((5, 3)), **changes)


def test_a_token_out_of_range_is_found_when_it_is_read(level):
    tokens = np.array([0, 1, 2, 3])
    for method in METHODS:
        with pytest.raises(ValueError, match=r"x must be in 0..p-1 with p = 3; got 3 at step t = 4"):
            bptt.state_jacobian(network(), tokens, method=method)
        bptt.state_jacobian(network(), tokens, method=method, step=3)  # not read


def test_the_result_may_take_as_much_memory_as_is_allowed():
    rnn = network()
    bptt.state_jacobian(rnn, np.zeros((2, 3)), memory=6**3 * 8)
    with pytest.raises(ValueError, match="memory"):
        bptt.state_jacobian(rnn, np.zeros((2, 3)), memory=6**3 * 8 - 1)
    big = bptt.RNN(np.eye(700), np.ones((700, 1)))
    with pytest.raises(ValueError, match=r"one of shape \(700, 700, 700\) takes 2,744,000,000 bytes"):
        bptt.state_jacobian(big, np.zeros((2, 1)))
