"""Chains: every wrong argument is named before any work, and results that cannot be are refused."""

import re
import warnings

import numpy as np
import pytest

import bptt
import support

RNN = support.network()
X = np.zeros((10, 3))
Y = np.zeros(10, int)
RUN = bptt.forward(RNN, X)
BATCH = bptt.forward(RNN, np.zeros((10, 2, 3)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, RUN, 1, 2), TypeError, "rnn must be a bptt.RNN; got NoneType"),
        ((RNN, X, 1, 2), TypeError, "trajectory must be a bptt.Trajectory, as forward gives; got ndarray"),
        ((RNN, BATCH, 1, 2), ValueError, "must be of one sequence, from x of shape (T, p) or (T,); got one of a batch"),
        ((RNN.replace(form="preactivation"), RUN, 1, 2), ValueError, "trajectory must be of this network"),
        ((RNN, RUN, 0, 2), ValueError, "start must be a step in 1..T with T = 10, or from -10 to -1; got 0"),
        ((RNN, RUN, 1, 11), ValueError, "stop must be a step in 1..T with T = 10, or from -10 to -1; got 11"),
        ((RNN, RUN, 1, -11), ValueError, "stop must be a step in 1..T with T = 10, or from -10 to -1; got -11"),
        ((RNN, RUN, 1.0, 2), TypeError, "start must be an integer; got float"),
        ((RNN, RUN, 3, 2), ValueError, "start must not come after stop; got the steps 3 and 2"),
    ],
)  # fmt: skip
def test_product_chain(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        bptt.product_chain(*arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"stops": [1, 11]}, ValueError, "steps in 0..T with T = 10, or from -11 to -1; got 11"),
        ({"stops": [-12]}, ValueError, "got -12"),
        ({"stops": [1.0]}, TypeError, "stops must hold integers (steps); got float64"),
        ({"stops": 3}, ValueError, "stops must have shape (S,); got ()"),
        ({"max_lag": -1}, ValueError, "max_lag must be an integer >= 0; got -1"),
        ({"max_lag": 2.5}, TypeError, "max_lag must be an integer; got float"),
        ({"memory": 100}, ValueError, "so few that the result fits memory = 100; 10 stops with 11 lags"),
        ({"max_lag": 10**7}, ValueError, "10 stops with 10000001 lags take 800,000,080 bytes"),
        ({"memory": "12 parsecs"}, ValueError, "memory must be a number of bytes or a text like '16 MB'"),
        ({"threads": 0}, ValueError, "threads"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", ["chain_norms", "contributions"])
def test_stops_and_lags(function, changes, error, message):
    changes = {"memory": "500 MB", **changes}
    more = (Y,) if function == "contributions" else ()
    with pytest.raises(error, match=re.escape(message)):
        getattr(bptt, function)(RNN, RUN, *more, **changes)


@pytest.mark.parametrize("ord", [1, "2", None, True, np.inf, np.ones(2)])
def test_norms_are_two(ord):
    with pytest.raises(ValueError, match="ord must be 2 or 'fro'; got"):
        bptt.chain_norms(RNN, RUN, ord=ord)


@pytest.mark.parametrize(
    ("jacobians", "error", "message"),
    [
        (np.zeros((5, 2, 3)), ValueError, "jacobians must have shape (T, n, n) with n >= 1; got (5, 2, 3)"),
        (np.zeros((2, 2)), ValueError, "got (2, 2)"),
        (np.zeros((5, 0, 0)), ValueError, "got (5, 0, 0)"),
        (np.zeros((5, 2, 2), complex), TypeError, "jacobians must hold real numbers"),
    ],
)
def test_jacobians(jacobians, error, message):
    with pytest.raises(error, match=re.escape(message)):
        bptt.chain_norms(jacobians=jacobians)


@pytest.mark.parametrize("function", [bptt.chain_norms, bptt.lyapunov_spectrum, bptt.gradient_flow])
def test_what_takes_jacobians_says_so(function):
    for arguments in ((), (np.ones((5, 2, 2)),)):
        with pytest.raises(TypeError, match="rnn must be a bptt.RNN, or jacobians= given in its place; got"):
            function(*arguments)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 9])
def test_jacobians_that_are_not_finite_are_named(bad, n):
    jacobians = np.ones((50, n, n))
    jacobians[17, -1, 0] = bad
    with pytest.raises(ValueError, match=re.escape("jacobians must be finite; jacobians[17] is not")):
        bptt.chain_norms(jacobians=jacobians, stops=[2], progress=lambda *_: pytest.fail("after work"))


def test_jacobians_stand_alone():
    with pytest.raises(TypeError, match="jacobians must be given alone, without rnn and trajectory"):
        bptt.chain_norms(RNN, jacobians=np.zeros((5, 2, 2)))


@pytest.mark.usefixtures("level")
def test_weights_that_are_not_finite_are_named():
    W = RNN.W_R.copy()
    W[2, 3] = np.nan
    rnn = RNN.replace(W_R=W)
    for function in (
        lambda: bptt.chain_norms(rnn, RUN),
        lambda: bptt.product_chain(rnn, RUN, 5, 5),
        lambda: bptt.lyapunov_spectrum(rnn, RUN),
        lambda: bptt.certificates(rnn),
    ):
        with pytest.raises(ValueError, match="rnn must have finite weights W_R"):
            function()


@pytest.mark.parametrize("function", ["contributions", "per_step_gradients"])
@pytest.mark.parametrize(
    ("arguments", "changes", "error", "message"),
    [
        ((RNN.replace(W_O=None, b_O=None), RUN, Y), {}, ValueError, "rnn must have a readout W_O to have errors"),
        ((RNN, BATCH, np.zeros((10, 2), int)), {}, ValueError, "trajectory must be of one sequence"),
        ((RNN, RUN, Y[:9]), {}, ValueError, "y must have shape (T,) with T = 10"),
        ((RNN, RUN, Y + 0.5), {}, TypeError, "y must hold integers (classes) for the cross-entropy; got float64"),
        ((RNN, RUN, Y + 4), {}, ValueError, "y must be in 0..m-1 with m = 4; got 4"),
        ((RNN, RUN, Y), {"loss": "hinge"}, ValueError, "loss must be one of 'cross_entropy', 'squared_error'"),
        ((RNN, RUN, Y), {"loss": lambda o, y: (o, y)}, TypeError, "loss must be the name of an error here"),
        ((RNN, RUN, Y), {"weights": np.ones(9)}, ValueError, "weights must have shape (T,) with T = 10; got (9,)"),
        ((RNN, RUN, Y), {"weights": -np.ones(10)}, ValueError, "weights must be finite and >= 0; got -1.0"),
    ],
)  # fmt: skip
def test_errors(function, arguments, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        getattr(bptt, function)(*arguments, **changes)


def test_per_step_gradients_say_what_memory_they_need():
    rnn = support.network(100)
    run = bptt.forward(rnn, np.zeros((1000, 3)))
    with pytest.raises(
        ValueError, match=re.escape("fits memory = '50 MB'; 1000 stops with n = 100 take 80,000,000 bytes")
    ):
        bptt.per_step_gradients(rnn, run, np.zeros(1000, int), memory="50 MB")


@pytest.mark.usefixtures("level")
def test_a_per_step_gradient_beyond_float64_is_refused():
    rnn = bptt.RNN([[10.0]], [[1.0]], [[1.0]], activation="identity", output="linear")
    x, y = np.zeros((700, 1)), np.ones((700, 1))
    x[:2, 0] = 1, -10  # a_1 = 1, and nothing after it
    run = bptt.forward(rnn, x)
    with pytest.raises(OverflowError, match="the gradient at t = 650 is beyond the range of float64: contributions"):
        bptt.per_step_gradients(rnn, run, y, stops=[650, 5])
    logs = bptt.contributions(rnn, run, y, stops=[650])[0]
    assert logs[648] == pytest.approx(np.log(2) + 648 * np.log(10))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("n", [1, 3])
def test_steps_before_anything_happens_add_nothing_however_large_their_chains(n):
    """P(1,500) is 1e499, and a_0 .. a_399 are zero: infinity times 0 it must not become."""
    rnn = bptt.RNN(10 * np.eye(n), np.ones((n, 1)), np.eye(1, n), activation="identity", output="linear")
    x, y = np.zeros((500, 1)), np.zeros((500, 1))
    x[399] = 1
    run = bptt.forward(rnn, x)
    gradient = bptt.per_step_gradients(rnn, run, y, stops=[500])[0]
    np.testing.assert_allclose(gradient, 2e201 * np.eye(n)[:, :1] * np.ones(n), rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrt in ("W_R", "W_I"):
            by_chain = bptt.state_jacobian(rnn, x, wrt=wrt)
            np.testing.assert_allclose(by_chain, bptt.state_jacobian(rnn, x, wrt=wrt, method="recursion"), rtol=1e-12)
            assert by_chain.max() == pytest.approx(1e101 if wrt == "W_R" else 1e100)
        assert not bptt.state_jacobian(rnn, x[:399]).any()
