"""Sums over very many steps, and gradients that fade below the range of normal numbers."""

import numpy as np
import pytest

import bptt
from support import network, targets

STEPS = 200_000
EPS = float(np.finfo(np.float32).eps)


def same_states(steps):
    """A network whose states cost no rounding, so that float32 and float64 differ by their backward passes alone.

    a_t = relu(x_t) with inputs that are small multiples of 1/8: W_R = 0, but its gradient is not. What is left to
    differ is the rounding of each step's error and of the sums.
    """
    rng = np.random.default_rng(0)
    n, m = 8, 5
    weights = {"W_R": np.zeros((n, n)), "W_I": np.eye(n), "W_O": rng.integers(-8, 9, size=(m, n)) / 16}
    return bptt.RNN(**weights, activation="relu"), rng.integers(-4, 9, size=(steps, n)) / 8, rng.integers(m, size=steps)


@pytest.mark.parametrize("memory", [None, "2 MB"])
def test_float32_sums_do_not_lose_digits_with_length(memory):
    """Sums are float64 from block to block: the error relative to the gradient stays at one block's.

    One float32 sum over T steps would lose eps sqrt(T) to eps T, which is 5e-5 to 2e-2 at the longest.
    """
    rnn, x, y = same_states(STEPS)
    single = rnn.astype(np.float32)
    errors = []
    for steps in (STEPS // 100, STEPS // 10, STEPS):
        arguments = (x[:steps], y[:steps])
        value, gradients = bptt.value_and_grad(single, *arguments, memory=memory)
        exact, wanted = bptt.value_and_grad(rnn, *arguments)
        assert np.array_equal(bptt.forward(single, x[:300]).activations, bptt.forward(rnn, x[:300]).activations)
        scale = np.linalg.norm(wanted.ravel())
        errors.append(np.linalg.norm(gradients.ravel() - wanted.ravel()) / scale)
        assert value == pytest.approx(exact, rel=4 * EPS)
    assert errors[-1] <= 2 * errors[0]
    assert errors[-1] <= 8 * EPS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_that_fade_to_nothing(dtype):
    """delta falls by 10 a step, through the subnormal numbers to 0: exact while normal, 0 below, and nothing else."""
    steps = 400
    eye = np.eye(5)
    rnn = bptt.RNN(0.1 * eye, eye, eye, activation="identity", output="linear").astype(dtype)
    x = np.zeros((steps, 5))
    weights = np.eye(steps)[-1]
    _, gradients = bptt.value_and_grad(rnn, x, np.ones((steps, 5)), weights=weights, wrt_inputs=True, nonfinite="raise")
    wanted = -2 * np.float64(rnn.W_R[0, 0]) ** np.arange(steps - 1, -1, -1)
    found = gradients.x[:, 0].astype(np.float64)
    normal = np.abs(wanted) >= 100 * np.finfo(dtype).tiny
    assert 30 < normal.sum() < steps
    # each of up to 320 products is rounded
    np.testing.assert_allclose(found[normal], wanted[normal], rtol=330 * np.finfo(dtype).eps)
    assert np.abs(found[~normal]).max() <= 100 * np.finfo(dtype).tiny
    assert not found[: 400 - 330].any()
    assert not gradients.initial.any()


def test_subnormal_deltas_among_normal_sums():
    """Whether what is subnormal is flushed or not: it is far below the last digit of every sum."""
    rng = np.random.default_rng(0)
    rnn = network(gain=0.05, dtype="float32")
    x, steps = rng.standard_normal((3000, 3)), np.arange(3000)
    y = targets(rng, rnn, 3000)
    weights = (steps % 500 == 499).astype(float)  # between them delta fades away
    _, single = bptt.value_and_grad(rnn, x, y, weights=weights)
    _, double = bptt.value_and_grad(rnn.astype(np.float64), x, y, weights=weights)
    assert np.linalg.norm(single.ravel() - double.ravel()) <= 1e-5 * np.linalg.norm(double.ravel())


def test_the_caller_keeps_its_subnormal_numbers():
    """Flushing, where a kernel does it, ends with the kernel's call."""
    rnn, x, y = same_states(600)
    bptt.value_and_grad(rnn, x, y)
    smallest = np.nextafter(np.float32(0), np.float32(1))
    assert smallest * np.float32(1) > 0
