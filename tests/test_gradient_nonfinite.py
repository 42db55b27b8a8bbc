"""What is not finite is named by step and sequence, once."""

import warnings

import numpy as np
import pytest

import bptt
from support import ACTIVATIONS, B, M, N, P, T, problem

pytestmark = pytest.mark.usefixtures("level")

PLACE = r"at step t = 5 of sequence b = 2 \(steps count from 1, sequences from 0\)"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.usefixtures("grid")
def test_nan_in_x_is_named_by_step_and_sequence(bad, activation):
    _, rnn, x, y = problem(activation=activation)
    x[4, 2, 1] = bad
    if activation == "tanh" and bad == np.inf:
        x[4, 2] = [np.inf, np.inf, -np.inf]  # tanh(inf) is finite: only inf - inf is not
        rnn = rnn.replace(W_I=np.ones((N, P)))
    for call in (lambda **how: bptt.forward(rnn, x, **how), lambda **how: bptt.value_and_grad(rnn, x, y, **how)):
        with pytest.warns(RuntimeWarning, match=f"the state is not finite: first {PLACE}") as caught:
            call()
        assert len(caught) == 1
        assert caught[0].filename == __file__
        with pytest.raises(FloatingPointError, match=PLACE):
            call(nonfinite="raise")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(nonfinite="ignore")


def test_the_place_in_a_ragged_batch():
    _, rnn, x, _ = problem()
    lengths = [6, 12, 9, 12]  # the ranks are another order than the sequences
    x[4, 2], x[4, 0] = np.nan, 0
    with pytest.raises(FloatingPointError, match=PLACE):
        bptt.forward(rnn, x, lengths=lengths, nonfinite="raise")


@pytest.mark.parametrize(
    ("size", "t", "b", "bad"), [(9, 3, 4, np.inf), (9, 70, 8, np.nan), (16, 99, 0, np.nan), (1, 50, 0, np.inf)]
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ragged", [False, True])
def test_the_first_of_many_states_is_named(activation, ragged, size, t, b, bad):
    """Also where later states are finite again: relu of what an infinite state gives with weights below 0 is 0."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(3, 8, 5, activation=activation, rng=rng).replace(W_R=-np.ones((8, 8)), W_I=np.ones((8, 3)))
    x, y = rng.standard_normal((100, size, 3)), rng.integers(5, size=(100, size))
    x[t, b] = bad
    lengths = None
    if ragged:
        lengths = rng.integers(1, 100, size)
        lengths[b] = t + 1  # at its sequence's last step
    trajectory = bptt.forward(rnn, x, lengths=lengths, nonfinite="ignore")
    wrong = ~np.isfinite(trajectory.activations[1:]).all(axis=-1)
    assert wrong.any() == (np.isnan(bad) or activation not in ("tanh", "logistic", "softsign"))
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        bptt.value_and_grad(rnn, x, y, lengths=lengths)
    place = f"the state is not finite: first at step t = {t + 1} of sequence b = {b} "
    assert any(place in str(warning.message) for warning in met) == wrong.any()


@pytest.mark.usefixtures("grid")
def test_a_gradient_that_is_not_finite_is_named_going_back():
    rng, rnn, x, _ = problem(output="linear")
    y = rng.standard_normal((T, B, M))
    y[4, 2] = np.nan
    with pytest.warns(RuntimeWarning, match=f"the gradient dE/dh_t is not finite: going back, first {PLACE}") as caught:
        value, _ = bptt.value_and_grad(rnn, x, y)
    assert len(caught) == 1
    assert np.isnan(value)
    with pytest.raises(FloatingPointError, match=PLACE):
        bptt.value_and_grad(rnn, x, y, nonfinite="raise")
    trajectory = bptt.forward(rnn, x)
    with pytest.raises(FloatingPointError, match=PLACE):
        bptt.backward(rnn, x, trajectory, y, nonfinite="raise")
    with pytest.warns(RuntimeWarning, match=PLACE):
        bptt.backward(rnn, x, trajectory, y)


def test_explosion_is_found():
    rnn = bptt.RNN([[1e10]], [[1.0]], [[1.0]], activation="identity", output="linear")
    x = np.ones((100, 1))
    with pytest.raises(FloatingPointError, match="first at step t = 32"):
        bptt.forward(rnn, x, nonfinite="raise")


@pytest.mark.parametrize("nonfinite", ["warn", "raise", "ignore"])
def test_a_gradient_or_an_error_that_is_not_finite_is_said(nonfinite):
    """Though all states are finite, and every delta_t."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(4, 8, 5)
    x, y = rng.standard_normal((30, 2, 4)), rng.integers(5, size=(30, 2))
    x[4, 0, 0] = np.inf  # tanh saturates: delta is 0, and 0 inf is nan
    linear = bptt.RNN.random(4, 8, 5, output="linear", activation="identity")
    far = np.full((30, 2, 5), 1e200)
    for arguments, options, words in (
        ((rnn, x, y), {}, "the gradient of the weights is not finite"),
        ((linear, np.zeros((30, 2, 4)), far), {}, "the error is not finite"),
        ((rnn, np.zeros((30, 2, 4)), y), {"weights": np.full((30, 2), 1e308)}, "not finite"),
    ):
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            if nonfinite == "raise":
                with pytest.raises(FloatingPointError, match=words):
                    bptt.value_and_grad(*arguments, **options, nonfinite=nonfinite)
            else:
                bptt.value_and_grad(*arguments, **options, nonfinite=nonfinite)
        assert len(met) == (nonfinite == "warn")
        assert not met or words in str(met[0].message)


@pytest.mark.parametrize("size", [6, 8])
def test_infinite_sums_of_opposite_sign_are_no_matter_of_numpys(size):
    """A batch of 8 is summed in halves, one of which is inf here and the other -inf."""
    rnn = bptt.RNN(np.zeros((3, 3)), np.full((3, 2), 1e-6), activation="identity").astype("float32")
    x = np.full((10, size, 2), 1e300)
    d_states = np.full((10, size, 3), 3e38)
    d_states[:, size // 2 :] *= -1 / 3
    with np.errstate(over="ignore"):
        x = x.astype("float32").clip(-3e38, 3e38)
    trajectory = bptt.forward(rnn, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients = bptt.backward(rnn, x, trajectory, d_states=d_states, nonfinite="ignore")
        assert not np.isfinite(gradients.W_I).any()
        with pytest.raises(FloatingPointError, match="the gradient of the weights is not finite"):
            bptt.backward(rnn, x, trajectory, d_states=d_states, nonfinite="raise")
