"""Laws that need no reference: what must hold between the library's own answers."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bptt
from bptt import reference
from support import ACTIVATIONS, LENGTHS, STATES, B, M, N, P, T, assert_gradients, network, problem

pytestmark = pytest.mark.usefixtures("level")

EPS = float(np.finfo(float).eps)
SMOOTH = ("identity", "tanh", "logistic", "softplus")

# Each law compares sums of at most T * B * n = 288 products that are added in another order, behind T = 12 contracting
# steps: some thousand roundings, each of half an eps of something no larger than the norm of the whole.
CLOSE = 1000 * EPS


def pull_back(rnn, x, initial, upstream, **options):
    trajectory = bptt.forward(rnn, x, initial, **options)
    return bptt.backward(rnn, x, trajectory, *upstream, wrt_inputs=True)


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("form", STATES)
@pytest.mark.parametrize("readout", STATES)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_adjoint_identity(activation, form, readout, lengths):
    """<v, J u> = <J^T v, u>: J u by central differences of all that forward gives, u a change of all that it takes."""
    rng, rnn, x, _ = problem(activation=activation, form=form, readout=readout)
    initial = rng.standard_normal((B, N))
    d_weights, d_x, d_initial = rng.standard_normal(rnn.size), rng.standard_normal(x.shape), rng.standard_normal((B, N))
    v = rng.standard_normal((T, B, M)), rng.standard_normal((T, B, N)), rng.standard_normal((B, N))

    def results(step):
        moved = rnn.unravel(rnn.ravel() + step * d_weights)
        trajectory = bptt.forward(moved, x + step * d_x, initial + step * d_initial, lengths=lengths)
        return trajectory.outputs, trajectory.states[1:], trajectory.final

    gradients = pull_back(rnn, x, initial, v, lengths=lengths)
    adjoint = [gradients.ravel() @ d_weights, (gradients.x * d_x).sum(), (gradients.initial * d_initial).sum()]
    step = EPS ** (1 / 3)  # where rounding, EPS / step, and truncation, step**2, are alike
    tangent = [
        (part * (ahead - behind) / (2 * step)).sum()
        for part, ahead, behind in zip(v, results(step), results(-step), strict=True)
    ]
    # The terms, not their sums: those may cancel. Third derivatives of T steps: 100 for the constant of step**2.
    scale = sum(np.linalg.norm(part) for part in (*v, *adjoint))
    assert abs(sum(adjoint) - sum(tangent)) <= 100 * step**2 * scale


@given(cut=st.integers(0, T), seed=st.integers(0, 2**32 - 1), form=st.sampled_from(STATES), tokens=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_time_may_be_split_anywhere(cut, seed, form, tokens):
    """Two calls, the state carried from the first to the second and its gradient back, are one."""
    rng, rnn, x, y = problem(seed, form=form)
    if tokens:
        x = rng.integers(P, size=(T, B))
    initial = rng.standard_normal((B, N))
    whole = bptt.value_and_grad(rnn, x, y, initial=initial, reduction="sum")
    first = bptt.forward(rnn, x[:cut], initial)
    value, late = bptt.value_and_grad(rnn, x[cut:], y[cut:], initial=first.final, reduction="sum")
    early = bptt.backward(rnn, x[:cut], first, d_final=late.initial)
    early_value, direct = bptt.value_and_grad(rnn, x[:cut], y[:cut], initial=initial, reduction="sum")
    assert value + early_value == pytest.approx(whole[0], rel=CLOSE)
    assert np.array_equal(late.final, whole[1].final)
    assert np.allclose(late.ravel() + early.ravel() + direct.ravel(), whole[1].ravel(), rtol=0, atol=CLOSE * 10)
    assert np.allclose(early.initial + direct.initial, whole[1].initial, rtol=0, atol=CLOSE)


@given(seed=st.integers(0, 2**32 - 1), ragged=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_batch_does_not_matter(seed, ragged):
    rng, rnn, x, y = problem(seed)
    lengths = rng.integers(T + 1, size=B) if ragged else np.full(B, T)
    initial, order = rng.standard_normal((B, N)), rng.permutation(B)
    value, gradients = bptt.value_and_grad(rnn, x, y, initial=initial, lengths=lengths, wrt_inputs=True)
    moved_value, moved = bptt.value_and_grad(
        rnn, x[:, order], y[:, order], initial=initial[order], lengths=lengths[order], wrt_inputs=True
    )
    assert moved_value == pytest.approx(value, rel=CLOSE)
    assert np.allclose(moved.ravel(), gradients.ravel(), rtol=0, atol=CLOSE)
    assert np.allclose(moved.initial, gradients.initial[order], rtol=0, atol=CLOSE)
    assert np.allclose(moved.x, gradients.x[:, order], rtol=0, atol=CLOSE)


@given(seed=st.integers(0, 2**32 - 1), form=st.sampled_from(STATES), readout=st.sampled_from(STATES))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_ragged_batch_is_its_sequences_one_by_one(seed, form, readout):
    rng, rnn, x, y = problem(seed, form=form, readout=readout)
    lengths, initial = rng.integers(T + 1, size=B), rng.standard_normal((B, N))
    options = {"reduction": "sum", "wrt_inputs": True}
    value, gradients = bptt.value_and_grad(rnn, x, y, initial=initial, lengths=lengths, **options)
    alone = [bptt.value_and_grad(rnn, x[:n, b], y[:n, b], initial=initial[b], **options) for b, n in enumerate(lengths)]
    assert sum(error for error, _ in alone) == pytest.approx(value, rel=CLOSE)
    assert np.allclose(sum(part.ravel() for _, part in alone), gradients.ravel(), rtol=0, atol=10 * CLOSE)
    for b, (_, part) in enumerate(alone):
        assert np.allclose(part.initial, gradients.initial[b], rtol=0, atol=CLOSE)
        assert np.allclose(part.final, gradients.final[b], rtol=0, atol=CLOSE)
        assert np.allclose(part.x, gradients.x[: lengths[b], b], rtol=0, atol=CLOSE)
        assert not gradients.x[lengths[b] :, b].any()


def test_padding_changes_no_bit():
    """Of two batches with the same lengths, one on longer arrays."""
    _, rnn, x, y = problem()
    lengths = np.array([3, 5, 0, 4])
    mine = bptt.value_and_grad(rnn, x, y, lengths=lengths, reduction="sum")
    theirs = bptt.value_and_grad(rnn, x[:5], y[:5], lengths=lengths, reduction="sum")
    assert mine[0] == theirs[0]
    assert np.array_equal(mine[1].ravel(), theirs[1].ravel())
    equal = bptt.value_and_grad(rnn, x, y, lengths=[5] * B, reduction="sum")  # all alike, and shorter than x
    wanted = bptt.value_and_grad(rnn, x[:5], y[:5], reduction="sum")
    assert equal[0] == wanted[0]
    assert np.array_equal(equal[1].ravel(), wanted[1].ravel())
    trajectory = bptt.forward(rnn, x, lengths=[5] * B)
    assert not trajectory.activations[6:].any()
    assert np.array_equal(trajectory.final, bptt.forward(rnn, x[:5]).final)


@pytest.mark.parametrize("output", ["softmax", "linear"])
def test_linear_in_the_upstream_gradients(output):
    rng, rnn, x, _ = problem(output=output)
    initial = rng.standard_normal((B, N))
    shapes = (T, B, M), (T, B, N), (B, N)
    one, two = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))
    both = [3 * u - 2 * v for u, v in zip(one, two, strict=True)]
    first, second, sums = (pull_back(rnn, x, initial, upstream) for upstream in (one, two, both))
    for name in ("ravel", "initial", "x"):
        u, v, w = (g.ravel() if name == "ravel" else getattr(g, name) for g in (first, second, sums))
        assert np.linalg.norm(3 * u - 2 * v - w) <= CLOSE * (3 * np.linalg.norm(u) + 2 * np.linalg.norm(v)), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("readout", STATES)
def test_the_forms_are_one_network(activation, readout):
    """Form (1) from h_0 is form (G) from a_0 = sigma(h_0); dE/dh_0 is dE/da_0 D_0."""
    rng, rnn, x, y = problem(activation=activation, readout=readout)
    pre = rnn.replace(form="preactivation")
    h_0 = rng.standard_normal((B, N))
    trajectory = bptt.forward(pre, x, h_0)
    a_0 = trajectory.activations[0]
    assert np.array_equal(bptt.forward(rnn, x, a_0).preactivations, trajectory.preactivations)
    value, gradients = bptt.value_and_grad(pre, x, y, initial=h_0, wrt_inputs=True)
    wanted_value, wanted = bptt.value_and_grad(rnn, x, y, initial=a_0, wrt_inputs=True)
    assert value == wanted_value
    assert_gradients(gradients, wanted, tolerance=0.0, parts=("W_R", "W_I", "W_O", "b_R", "b_I", "b_O", "x"))
    D_0 = reference.ACTIVATIONS[activation].derivative(h_0)
    assert np.allclose(gradients.initial, wanted.initial * D_0, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_readouts_are_one_network_where_sigma_is_the_identity(activation):
    _, rnn, x, y = problem(activation=activation)
    values = [bptt.value_and_grad(rnn.replace(readout=readout), x, y)[0] for readout in STATES]
    assert (values[0] == values[1]) == (activation == "identity")


def test_tokens_are_one_hot_inputs():
    rng, rnn, _, y = problem()
    tokens = rng.integers(P, size=(T, B))
    value, gradients = bptt.value_and_grad(rnn, tokens, y)
    wanted_value, wanted = bptt.value_and_grad(rnn, np.eye(P)[tokens], y)
    assert value == pytest.approx(wanted_value, rel=CLOSE)
    assert np.allclose(gradients.ravel(), wanted.ravel(), rtol=0, atol=CLOSE)


def test_the_gradient_of_identity_in_closed_form():
    """n = 1, sigma = Id, no input: h_t = w^t h_0, so dh_t/dw = t w^(t-1) h_0 and dh_t/dh_0 = w^t."""
    w, steps = 0.9, 50
    rnn = bptt.RNN([[w]], np.zeros((1, 0)), activation="identity")
    x = np.zeros((steps, 0))
    trajectory = bptt.forward(rnn, x, [2.0])
    assert np.allclose(trajectory.states[:, 0], 2 * w ** np.arange(steps + 1), rtol=100 * EPS, atol=0)
    gradients = bptt.backward(rnn, x, trajectory, d_final=[1.0])
    assert gradients.W_R[0, 0] == pytest.approx(2 * steps * w ** (steps - 1), rel=100 * EPS)
    assert gradients.initial[0] == pytest.approx(w**steps, rel=100 * EPS)


def test_the_network_that_holds_a_kink_exactly():
    """W_R has spectral radius 0, but relu holds h = (1, -1) for ever, and P grows by 1.5 a step."""
    rnn = bptt.RNN(1.5 * np.array([[1, -1], [1, -1]]), np.eye(2), activation="relu", form="preactivation")
    x = np.tile([-0.5, -2.5], (20, 1))
    trajectory = bptt.forward(rnn, x, [1.0, -1.0])
    assert np.array_equal(trajectory.states, np.tile([1.0, -1.0], (21, 1)))
    gradients = bptt.backward(rnn, x, trajectory, d_final=[1.0, 0.0])
    assert np.array_equal(gradients.initial, [1.5**20, 0.0])


def test_network_helper_contracts():
    """The tolerances of these files rest on it."""
    for seed in range(5):
        assert np.linalg.norm(network(N, P, M, seed=seed).W_R, 2) == pytest.approx(0.9)
