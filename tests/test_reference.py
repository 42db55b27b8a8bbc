"""The executable specification itself: against 40 digits, complex steps, finite differences and closed forms."""

import mpmath as mp
import numpy as np
import pytest

from bptt import reference

FORMS = ("activation", "preactivation")
PROBLEMS = (("softmax", "cross_entropy"), ("softmax", "squared_error"), ("linear", "squared_error"))
WEIGHTS = ("W_R", "W_I", "W_O", "b_R", "b_I", "b_O")
EPS = np.finfo(float).eps
TINY = np.finfo(float).tiny


def random_network(rng, n, p, m, **choices):
    shapes = ((n, n), (n, p), (m, n), (n,), (n,), (m,))
    return reference.Network(*(0.6 * rng.normal(size=shape) for shape in shapes), **choices)


def random_targets(rng, loss, shape, m):
    return rng.integers(0, m, shape) if loss == "cross_entropy" else rng.normal(size=(*shape, m))


def assert_close(ours, wanted, eps):
    """Within so many eps of the largest number of the array."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=eps * EPS * np.abs(wanted).max(initial=0))


def complex_step(function, array, step=1e-100):
    """The gradient of a real function of an array."""
    gradient = np.zeros(array.shape)
    for i in np.ndindex(array.shape):
        moved = array.astype(complex)
        moved[i] += 1j * step
        gradient[i] = np.imag(function(moved)) / step
    return gradient


# Against 40 digits, by another program --------------------------------------------------------------------------------

MP_SIGMA = {
    "identity": lambda h: h,
    "tanh": mp.tanh,
    "logistic": lambda h: 1 / (1 + mp.exp(-h)),
    "relu": lambda h: max(h, mp.mpf(0)),
    "leaky_relu": lambda h: h if h > 0 else mp.mpf(reference.SLOPE) * h,
    "elu": lambda h: h if h > 0 else mp.expm1(h),
    "softplus": lambda h: mp.log1p(mp.exp(h)),
    "softsign": lambda h: h / (1 + abs(h)),
}


def mp_total_error(net, loss, arrays, y, w):
    """E of one sequence from the article's sentences, scalar by scalar; arrays are nested lists of mpf."""
    W_R, W_I, W_O, b_R, b_I, b_O, initial, x = arrays
    sigma = MP_SIGMA[net.activation]
    a = initial if net.form == "activation" else [sigma(v) for v in initial]
    E = mp.mpf(0)
    for t, x_t in enumerate(x):
        h = [mp.fdot(W_R[i], a) + mp.fdot(W_I[i], x_t) + b_R[i] + b_I[i] for i in range(len(W_R))]
        a = [sigma(v) for v in h]
        r = a if net.readout == "activation" else h
        o = [mp.fdot(W_O[i], r) + b_O[i] for i in range(len(W_O))]
        if net.output == "softmax":
            total = sum(mp.exp(v) for v in o)
            o = [mp.exp(v) / total for v in o]
        if loss == "cross_entropy":
            E -= w[t] * mp.log(o[y[t]])
        else:
            E += w[t] * sum((o_i - y_i) ** 2 for o_i, y_i in zip(o, y[t], strict=True))
    return E


@pytest.mark.parametrize(("output", "loss"), PROBLEMS)
@pytest.mark.parametrize("readout", FORMS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_error_and_gradient_to_high_precision(activation, form, readout, output, loss):
    rng = np.random.default_rng(1)
    n, p, m, T = 2, 1, 2, 3
    net = random_network(rng, n, p, m, activation=activation, form=form, readout=readout, output=output)
    x, initial, w = rng.normal(size=(T, p)), rng.normal(size=n), rng.random(T)
    y = random_targets(rng, loss, (T,), m)
    E, gradients = reference.value_and_grad(net, x, y, loss, initial, w)

    arrays = [*net[:6], initial, x]
    names = (*WEIGHTS, "initial", "x")
    with mp.workdps(40):
        exact = [mp.matrix(v).tolist() if v.ndim == 2 else [mp.mpf(u) for u in v] for v in arrays]
        step = mp.mpf(10) ** -15  # central difference: an error of 1e-30
        assert abs(E - mp_total_error(net, loss, exact, y, w)) <= 20 * EPS * abs(E)
        for name, array, entries in zip(names, arrays, exact, strict=True):
            wanted = np.zeros(array.shape)
            for index in np.ndindex(array.shape):
                row, i = (entries, index[0]) if array.ndim == 1 else (entries[index[0]], index[1])
                kept, ends = row[i], []
                for sign in (1, -1):
                    row[i] = kept + sign * step
                    ends.append(mp_total_error(net, loss, exact, y, w))
                row[i] = kept
                wanted[index] = (ends[0] - ends[1]) / (2 * step)
            assert_close(getattr(gradients, name), wanted, 100)


# Against complex steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("output", "loss"), PROBLEMS)
@pytest.mark.parametrize("readout", FORMS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradient_of_a_ragged_batch_is_the_complex_step(activation, form, readout, output, loss):
    rng = np.random.default_rng(2)
    n, p, m, T, B = 4, 3, 3, 5, 4
    net = random_network(rng, n, p, m, activation=activation, form=form, readout=readout, output=output)
    x, initial, w = rng.normal(size=(T, B, p)), rng.normal(size=(B, n)), rng.random((T, B))
    y = random_targets(rng, loss, (T, B), m)
    w[2, 0] = 0
    lengths = np.array([5, 0, 3, 1])
    _, gradients = reference.value_and_grad(net, x, y, loss, initial, w, lengths)

    def total(net, x, initial):
        return reference.errors(net, reference.forward(net, x, initial, lengths), y, loss, w)[0].sum()

    for name in WEIGHTS:
        stepped = complex_step(lambda v, name=name: total(net._replace(**{name: v}), x, initial), getattr(net, name))
        assert_close(getattr(gradients, name), stepped, 100)
    assert_close(gradients.initial, complex_step(lambda v: total(net, x, v), initial), 100)
    assert_close(gradients.x, complex_step(lambda v: total(net, v, initial), x), 100)


@pytest.mark.parametrize("output", ["softmax", "linear"])
@pytest.mark.parametrize("form", FORMS)
def test_upstream_gradients_are_those_of_any_error(form, output):
    rng = np.random.default_rng(3)
    n, p, m, T, B = 4, 3, 3, 5, 4
    net = random_network(rng, n, p, m, activation="softplus", form=form, output=output)
    x, initial, lengths = rng.normal(size=(T, B, p)), rng.normal(size=(B, n)), np.array([5, 0, 3, 1])
    d_outputs, d_states, d_final = rng.normal(size=(T, B, m)), rng.normal(size=(T, B, n)), rng.normal(size=(B, n))

    def total(net, x, initial):
        trajectory = reference.forward(net, x, initial, lengths)
        states = reference.states(net, trajectory)
        z = reference.readout_argument(net, reference.readout_states(net, trajectory))
        along = (d_states * states[1:]).sum(-1) + (d_outputs * reference.prediction(net, z)).sum(-1)
        within = np.arange(1, T + 1)[:, None] <= lengths
        return along[within].sum() + (d_final * states[lengths, np.arange(B)]).sum()

    trajectory = reference.forward(net, x, initial, lengths)
    z = reference.readout_argument(net, reference.readout_states(net, trajectory))
    e = reference.through_prediction(net, reference.prediction(net, z), d_outputs)
    gradients = reference.backward(net, x, trajectory, e, d_states, d_final)
    for name in WEIGHTS:
        stepped = complex_step(lambda v, name=name: total(net._replace(**{name: v}), x, initial), getattr(net, name))
        assert_close(getattr(gradients, name), stepped, 100)
    assert_close(gradients.initial, complex_step(lambda v: total(net, x, v), initial), 100)
    assert_close(gradients.x, complex_step(lambda v: total(net, v, initial), x), 100)


def test_gradient_is_the_finite_difference_along_a_random_direction():
    rng = np.random.default_rng(4)
    net = random_network(rng, 12, 3, 4)
    net = net._replace(W_R=net.W_R / 4)  # contracting: the third derivative stays moderate
    x, initial, y = rng.normal(size=(30, 2, 3)), rng.normal(size=(2, 12)), rng.integers(0, 4, (30, 2))
    _, gradients = reference.value_and_grad(net, x, y, "cross_entropy", initial)
    direction = [rng.normal(size=v.shape) for v in net[:6]]
    slope = sum((g * d).sum() for g, d in zip(gradients[:6], direction, strict=True))
    step = 1e-5
    ends = []
    for sign in (1, -1):
        moved = reference.Network(*(v + sign * step * d for v, d in zip(net[:6], direction, strict=True)), *net[6:])
        ends.append(reference.value_and_grad(moved, x, y, "cross_entropy", initial)[0])
    # step²/6 of the third derivative, some hundred times the first here, and eps/step of E, about the first derivative
    assert abs((ends[0] - ends[1]) / (2 * step) - slope) < 1e-8 * abs(slope)


# Closed forms and laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_scalar_power(form):
    """h_t = w h_{t-1}: dh_T/dw = T w^{T-1} h_0 and dh_T/dh_0 = w^T."""
    w, h_0, T = 0.75, 2.0, 20
    net = reference.Network(np.array([[w]]), np.zeros((1, 1)), activation="identity", form=form)
    x = np.zeros((T, 1))
    trajectory = reference.forward(net, x, np.array([h_0]))
    gradients = reference.backward(net, x, trajectory, d_final=np.ones(1))
    assert_close(gradients.W_R, [[T * w ** (T - 1) * h_0]], 2 * T)
    assert_close(gradients.initial, [w**T], 2 * T)


@pytest.mark.parametrize("form", FORMS)
def test_linear_network(form):
    """h_T = W^T h_0 + Σ_k W^{T-k} V x_k: dE/dV = Σ_k (g W^{T-k})^T x_k^T and dE/dh_0 = g W^T."""
    rng = np.random.default_rng(5)
    n, p, T = 4, 3, 7
    W, V, x, g = rng.normal(size=(n, n)), rng.normal(size=(n, p)), rng.normal(size=(T, p)), rng.normal(size=n)
    net = reference.Network(W, V, activation="identity", form=form)
    gradients = reference.backward(net, x, reference.forward(net, x, np.zeros(n)), d_final=g)
    powers = [g @ np.linalg.matrix_power(W, T - k) for k in range(1, T + 1)]
    assert_close(gradients.W_I, sum(np.outer(u, v) for u, v in zip(powers, x, strict=True)), 200)
    assert_close(gradients.x, np.array(powers) @ V, 200)
    assert_close(gradients.initial, g @ np.linalg.matrix_power(W, T), 200)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_the_forms_agree(activation):
    """Form 1 from h_0 is form G from a_0 = σ(h_0); dE/dh_0 = dE/da_0 D_0."""
    rng = np.random.default_rng(6)
    net = random_network(rng, 4, 3, 3, activation=activation)
    x, h_0, y = rng.normal(size=(5, 2, 3)), rng.normal(size=(2, 4)), rng.integers(0, 3, (5, 2))
    sigma, derivative, _ = reference.ACTIVATIONS[activation]
    E_G, G = reference.value_and_grad(net, x, y, "cross_entropy", sigma(h_0))
    E_1, one = reference.value_and_grad(net._replace(form="preactivation"), x, y, "cross_entropy", h_0)
    assert E_1 == E_G
    for name in (*WEIGHTS, "x"):
        np.testing.assert_array_equal(getattr(one, name), getattr(G, name))
    np.testing.assert_array_equal(one.initial, G.initial * derivative(h_0))


def test_a_batch_is_its_sequences_and_nothing_beyond_a_length_or_a_zero_weight_is_read():
    rng = np.random.default_rng(7)
    T, B, p, m = 5, 4, 3, 3
    net = random_network(rng, 4, p, m, output="linear")
    x, initial, w = rng.normal(size=(T, B, p)), rng.normal(size=(B, 4)), rng.random((T, B))
    y, lengths = rng.normal(size=(T, B, m)), np.array([5, 0, 3, 1])
    w[1, 0] = 0
    y[1, 0] = np.nan
    alone = [
        reference.value_and_grad(net, x[:T_b, b], y[:T_b, b], "squared_error", initial[b], w[:T_b, b])
        for b, T_b in enumerate(lengths)
    ]
    for b, T_b in enumerate(lengths):
        x[T_b:, b], y[T_b:, b], w[T_b:, b] = np.nan, np.nan, np.inf
    E, gradients = reference.value_and_grad(net, x, y, "squared_error", initial, w, lengths)
    assert_close(E, sum(E_b for E_b, _ in alone), 20)
    for name in WEIGHTS:
        assert_close(getattr(gradients, name), sum(getattr(G, name) for _, G in alone), 20)
    for b, T_b in enumerate(lengths):
        assert_close(gradients.initial[b], alone[b][1].initial, 20)
        assert_close(gradients.x[:T_b, b], alone[b][1].x, 20)
        assert (gradients.x[T_b:, b] == 0).all()


def test_no_steps_and_absent_weights():
    rng = np.random.default_rng(8)
    net = random_network(rng, 4, 3, 2)
    E, gradients = reference.value_and_grad(net, np.zeros((0, 3)), np.zeros(0, int), "cross_entropy", np.ones(4))
    assert E == 0
    for name, weights in zip(WEIGHTS, net[:6], strict=True):
        np.testing.assert_array_equal(getattr(gradients, name), np.zeros_like(weights))
    np.testing.assert_array_equal(gradients.initial, np.zeros(4))

    bare = net._replace(W_O=None, b_R=None, b_O=None)
    x = rng.normal(size=(3, 3))
    gradients = reference.backward(bare, x, reference.forward(bare, x, np.ones(4)), d_final=np.ones(4))
    assert gradients.W_O is gradients.b_R is gradients.b_O is None
    assert gradients.b_I.shape == (4,)


def mp_softmax_error(loss, z, y):
    """E and dE/dz to 60 digits."""
    with mp.workdps(60):
        powers = [mp.exp(mp.mpf(v)) for v in z]
        o = [v / mp.fsum(powers) for v in powers]
        if loss == "cross_entropy":
            return float(-mp.log(o[y])), [float(o_i - (i == y)) for i, o_i in enumerate(o)]
        d = [2 * (o_i - mp.mpf(y_i)) for o_i, y_i in zip(o, y, strict=True)]
        e = [o_i * (d_i - mp.fdot(d, o)) for d_i, o_i in zip(d, o, strict=True)]
        return float(mp.fsum(v**2 for v in d) / 4), [float(v) for v in e]


@pytest.mark.parametrize("z", [(0.3, -1.0, 0.5), (30.0, 0.0, -20.0), (-300.0, 0.0, -20.0), (1e4, 0.0, -1e4)])
def test_softmax_errors_keep_their_digits_where_a_class_is_nearly_certain(z):
    net = reference.Network(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((3, 1)))
    for target in range(3):
        E, e = mp_softmax_error("cross_entropy", z, target)
        E_t, e_t = reference.error(net, "cross_entropy", np.array([z]), np.array([target]))
        # log of 1 + small: absolutely; exp of an argument of size |z| has |z| eps of relative error
        np.testing.assert_allclose(E_t, [E], rtol=4 * EPS, atol=4 * EPS)
        np.testing.assert_allclose(e_t[0], e, rtol=4 * EPS * (2 + np.ptp(z)))
    y = (0.2, 0.5, 0.4)
    E, e = mp_softmax_error("squared_error", z, y)
    E_t, e_t = reference.error(net, "squared_error", np.array([z]), np.array([y]))
    np.testing.assert_allclose(E_t, [E], rtol=4 * EPS * (2 + np.ptp(z)))
    np.testing.assert_allclose(e_t[0], e, rtol=8 * EPS * (2 + np.ptp(z)), atol=TINY)


def test_an_error_of_weight_zero_is_zero_even_of_a_state_that_is_not_finite():
    net = reference.Network(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((3, 1)))
    z, y, w = np.array([[np.nan, 0.0, 1.0], [0.0, 0.0, 0.0]]), np.array([1, 1]), np.array([0.0, 2.0])
    E, e = reference.weighted_error(net, "cross_entropy", z, y, w)
    np.testing.assert_allclose(E, [0, 2 * np.log(3)], rtol=4 * EPS)
    np.testing.assert_allclose(e, [[0, 0, 0], [2 / 3, -4 / 3, 2 / 3]], rtol=4 * EPS)
