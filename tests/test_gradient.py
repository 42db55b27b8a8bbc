"""`value_and_grad`: the reference's numbers, in every form that the arguments may take."""

import dataclasses

import numpy as np
import pytest

import bptt
from support import LENGTHS, PARTS, STATES, TOLERANCE, B, M, N, P, T, assert_gradients, expected, problem, targets

pytestmark = pytest.mark.usefixtures("level")


@pytest.mark.parametrize("form", STATES)
@pytest.mark.parametrize("readout", STATES)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("grid")
def test_value_and_gradients_are_the_references(form, readout, lengths, dtype):
    rng, rnn, x, y = problem(form=form, readout=readout, dtype=dtype)
    options = {"initial": rng.standard_normal((B, N)), "weights": rng.uniform(size=(T, B)), "lengths": lengths}
    value, gradients = bptt.value_and_grad(rnn, x, y, **options, reduction="sum", wrt_inputs=True)
    error, wanted = expected(rnn, x, y, **options)
    assert isinstance(value, float)
    assert abs(value - error) < TOLERANCE[dtype] * error
    assert_gradients(gradients, wanted, tolerance=TOLERANCE[dtype])
    assert {getattr(gradients, name).dtype for name in PARTS} == {np.dtype(dtype)}
    final = bptt.forward(rnn, x, options["initial"], lengths=lengths).final
    assert np.array_equal(gradients.final, final)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_divides_by_the_weights_of_the_valid_steps(lengths, weighted):
    rng, rnn, x, y = problem()
    weights = rng.uniform(size=(T, B)) if weighted else None
    valid = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else lengths)
    total = valid.sum() if weights is None else weights[valid].sum()
    options = {"lengths": lengths, "weights": weights, "wrt_inputs": True}
    value, gradients = bptt.value_and_grad(rnn, x, y, **options)
    error, wanted = bptt.value_and_grad(rnn, x, y, **options, reduction="sum")
    assert value == pytest.approx(error / total, rel=1e-14)
    assert_gradients(gradients, wanted, factor=1 / total, tolerance=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("nothing", ["no time", "no lengths", "no weights"])
def test_nothing_to_err_about(reduction, nothing):
    _, rnn, x, y = problem()
    options = {"no time": {}, "no lengths": {"lengths": [0] * B}, "no weights": {"weights": np.zeros((T, B))}}[nothing]
    if nothing == "no time":
        x, y = x[:0], y[:0]
    value, gradients = bptt.value_and_grad(rnn, x, y, **options, reduction=reduction, wrt_inputs=True)
    assert value == 0
    for name in PARTS:
        assert not getattr(gradients, name).any(), name
    assert gradients.x.shape == x.shape


@pytest.mark.parametrize("form", STATES)
def test_no_time(form):
    rng, rnn, x, _ = problem(form=form)
    initial, d_final = rng.standard_normal((2, B, N))
    trajectory = bptt.forward(rnn, x[:0], initial)
    assert trajectory.preactivations.shape == (0, B, N)
    assert trajectory.outputs.shape == (0, B, M)
    assert np.array_equal(trajectory.states, initial[None])
    assert np.array_equal(trajectory.final, initial)
    gradients = bptt.backward(rnn, x[:0], trajectory, d_final=d_final, wrt_inputs=True)
    assert np.array_equal(gradients.initial, d_final)
    assert not gradients.W_R.any()
    assert gradients.x.shape == (0, B, P)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("grid")
def test_targets_of_the_last_steps_only(loss, lengths, weighted):
    rng, rnn, x, _ = problem()
    y = targets(rng, rnn, (B,), loss)
    weights = rng.uniform(size=(T, B)) if weighted else np.ones((T, B))
    last = np.arange(1, T + 1)[:, None] == (np.full(B, T) if lengths is None else lengths)
    everywhere = np.broadcast_to(y, (T, *y.shape))
    wanted_value, wanted = bptt.value_and_grad(rnn, x, everywhere, loss=loss, weights=weights * last, lengths=lengths)
    options = {"loss": loss, "lengths": lengths, "weights": weights if weighted else None}
    value, gradients = bptt.value_and_grad(rnn, x, y, **options)
    assert value == pytest.approx(wanted_value, rel=1e-14)
    assert_gradients(gradients, wanted, tolerance=1e-14)
    trajectory = bptt.forward(rnn, x, lengths=lengths)
    E, g = bptt.errors(rnn, trajectory, y, loss=loss, weights=options["weights"])
    wanted_E, wanted_g = bptt.errors(rnn, trajectory, everywhere, loss=loss, weights=weights * last)
    assert np.array_equal(E, wanted_E)
    assert np.array_equal(g, wanted_g)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_where_a_weight_is_zero_y_is_not_read(loss):
    rng, rnn, x, _ = problem()
    y = targets(rng, rnn, (T, B), loss)
    weights = (rng.random((T, B)) < 0.5).astype(float)
    spoilt = np.where(weights if y.ndim == 2 else weights[..., None], y, -999 if loss == "cross_entropy" else np.nan)
    mine, theirs = (
        bptt.value_and_grad(rnn, x, given.astype(y.dtype), weights=weights, loss=loss) for given in (spoilt, y)
    )
    assert mine[0] == theirs[0]
    assert np.array_equal(mine[1].ravel(), theirs[1].ravel())
    trajectory = bptt.forward(rnn, x)
    mine, theirs = (
        bptt.errors(rnn, trajectory, given, weights=weights, loss=loss) for given in (spoilt.astype(y.dtype), y)
    )
    assert np.array_equal(mine[0], theirs[0])
    assert np.array_equal(mine[1], theirs[1])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.usefixtures("grid")
def test_beyond_a_length_nothing_is_read(tokens, loss):
    rng, rnn, x, _ = problem()
    y = targets(rng, rnn, (T, B), loss)
    if tokens:
        x = rng.integers(P, size=(T, B))
    beyond = np.arange(T)[:, None] >= LENGTHS
    spoilt_x, spoilt_y, weights = x.copy(), y.copy(), np.ones((T, B))
    spoilt_x[beyond] = 10**6 if tokens else np.nan
    spoilt_y[beyond] = 10**6 if loss == "cross_entropy" else np.nan
    weights[beyond] = np.nan
    options = {"lengths": LENGTHS, "loss": loss, "wrt_inputs": not tokens}
    value, gradients = bptt.value_and_grad(rnn, spoilt_x, spoilt_y, weights=weights, **options)
    wanted_value, wanted = bptt.value_and_grad(rnn, x, y, **options)
    assert value == wanted_value
    assert np.array_equal(gradients.ravel(), wanted.ravel())
    if not tokens:
        assert not gradients.x[beyond].any()


def test_weights_of_booleans_are_a_mask():
    rng, rnn, x, y = problem()
    mask = rng.random((T, B)) < 0.5
    mine, theirs = (bptt.value_and_grad(rnn, x, y, weights=weights) for weights in (mask, mask.astype(float)))
    assert mine[0] == theirs[0]


def test_unbatched_is_a_batch_of_one():
    rng, rnn, x, y = problem()
    initial = rng.standard_normal((B, N))
    for lengths in (None, 8):
        one = {"initial": initial[0], "lengths": lengths, "wrt_inputs": True, "weights": np.linspace(0, 1, T)}
        two = {**one, "initial": initial[:1], "lengths": None if lengths is None else [lengths]}
        two["weights"] = one["weights"][:, None]
        value, gradients = bptt.value_and_grad(rnn, x[:, 0], y[:, 0], **one)
        wanted_value, wanted = bptt.value_and_grad(rnn, x[:, :1], y[:, :1], **two)
        assert value == wanted_value
        assert np.array_equal(gradients.ravel(), wanted.ravel())
        assert np.array_equal(gradients.initial, wanted.initial[0])
        assert np.array_equal(gradients.x, wanted.x[:, 0])
        assert np.array_equal(gradients.final, wanted.final[0])
        mine = bptt.forward(rnn, x[:, 0], initial[0], lengths=lengths)
        theirs = bptt.forward(rnn, x[:, :1], initial[:1], lengths=two["lengths"])
        for name in ("preactivations", "activations", "states", "outputs"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)[:, 0]), name
        assert np.array_equal(mine.final, theirs.final[0])
        assert mine.lengths == theirs.lengths[0]
        for E, wanted_E in zip(bptt.errors(rnn, mine, y[:, 0]), bptt.errors(rnn, theirs, y[:, :1]), strict=True):
            assert np.array_equal(E, wanted_E[:, 0])
        assert bptt.value_and_grad(rnn, x[:, 0], 2)[0] == bptt.value_and_grad(rnn, x[:, :1], [2])[0]


@pytest.mark.parametrize("absent", [("b_R",), ("b_I",), ("b_R", "b_I"), ("b_O",), ("b_R", "b_I", "b_O")])
def test_absent_weights_have_no_gradient(absent):
    _, rnn, x, y = problem()
    rnn = rnn.replace(**dict.fromkeys(absent))
    _, gradients = bptt.value_and_grad(rnn, x, y, reduction="sum")
    assert_gradients(gradients, expected(rnn, x, y)[1], tolerance=1e-12)
    assert {name for name in PARTS if getattr(gradients, name) is None} == {*absent, "x"}
    assert gradients.ravel().shape == (rnn.size,)
    assert np.array_equal(rnn.unravel(gradients.ravel()).W_O, gradients.W_O)


def test_no_two_gradients_share_memory():
    _, rnn, x, y = problem()
    _, gradients = bptt.value_and_grad(rnn, x, y, wrt_inputs=True)
    before = gradients.b_R.copy()
    gradients.b_I[:] = 7
    assert np.array_equal(gradients.b_R, before)


def test_norm_and_clip_are_over_the_weights():
    _, rnn, x, y = problem()
    _, gradients = bptt.value_and_grad(rnn, x, y, wrt_inputs=True)
    norm = np.linalg.norm(gradients.ravel())
    assert gradients.norm() == pytest.approx(norm, rel=1e-14)
    assert gradients.clip(2 * norm) is gradients
    clipped = gradients.clip(norm / 3)
    assert clipped.norm() == pytest.approx(norm / 3, rel=1e-14)
    assert np.allclose(3 * clipped.ravel(), gradients.ravel(), rtol=1e-14, atol=0)
    assert clipped.initial is gradients.initial
    assert clipped.x is gradients.x
    assert clipped.final is gradients.final


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e30), ("float64", 1e200), ("float64", 1e-200)])
def test_a_norm_whose_square_is_out_of_range(dtype, scale):
    _, rnn, x, y = problem(dtype=dtype)
    _, gradients = bptt.value_and_grad(rnn, x, y)
    scaled = dataclasses.replace(gradients, _vector=gradients._vector * scale)
    assert scaled.norm() == pytest.approx(scale * gradients.norm(), rel=1e-6)
    assert scaled.W_R.dtype == dtype
