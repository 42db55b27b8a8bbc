"""gradient_flow: its numbers are those of what it is made of, its verdict is right where the answer is known."""

import io
import re

import numpy as np
import pytest

import bptt
import support
from bptt._quantiles import median
from bptt.flow_table import scientific


def problem(n=8, T=120, *, seed=0, **choices):
    rng = np.random.default_rng(seed)
    rnn = support.network(n, 3, 4, seed=seed, **choices)
    return rnn, rng.standard_normal((T, 3)), support.targets(rng, rnn, (T,))


# What it is made of ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("form", support.STATES)
def test_one_sequence(form):
    rnn, x, y = problem(form=form)
    initial = np.linspace(-1, 1, 8)
    weights = np.linspace(0.1, 2, 120)
    flow = bptt.gradient_flow(rnn, x, y, initial=initial, weights=weights, stops=[120, 50], max_lag=40, k=3)
    run = bptt.forward(rnn, x, initial)
    assert flow.stops.tolist() == [50, 120]
    assert flow.sequences.tolist() == [0, 0]
    np.testing.assert_array_equal(flow.norms, bptt.chain_norms(rnn, run, stops=[50, 120], max_lag=40))
    wanted = bptt.contributions(rnn, run, y, weights=weights, stops=[50, 120], max_lag=40)
    np.testing.assert_array_equal(flow.contributions, wanted)
    spectrum = bptt.lyapunov_spectrum(rnn, run, k=3, warm_up=11)
    np.testing.assert_array_equal(flow.exponents, spectrum.exponents)
    np.testing.assert_array_equal(flow.standard_errors, spectrum.standard_errors)
    bounds = bptt.certificates(rnn, run)
    assert flow.certificates.scaled.rate == pytest.approx(bounds.scaled.rate, rel=1e-12)
    np.testing.assert_array_equal(flow.certificates.most, bounds.most)


def test_without_targets_the_contributions_are_those_to_the_state():
    rnn, x, _ = problem()
    rnn = rnn.replace(W_O=None, b_O=None)
    flow = bptt.gradient_flow(rnn, x, stops=[30], max_lag=29)
    run = bptt.forward(rnn, x)
    with np.errstate(divide="ignore"):
        a = np.log(np.linalg.norm(run.activations, axis=1))
    np.testing.assert_allclose(flow.contributions[0], flow.norms[0] + a[29::-1])
    assert not flow.of_error


def test_tokens_and_float32():
    rng = np.random.default_rng(0)
    rnn = support.network(9, 5, 5, dtype="float32")
    x, y = rng.integers(5, size=(2, 60))
    flow = bptt.gradient_flow(rnn, x, y)
    wanted = bptt.chain_norms(rnn, bptt.forward(rnn, x), stops=flow.stops, max_lag=59)
    np.testing.assert_array_equal(flow.norms, wanted)


# Verdicts where the answer is known -----------------------------------------------------------------------------------


def linear(W, T=300):
    """A linear network, whose chain is a power of W, and inputs that keep its state of order one."""
    n = len(W)
    return bptt.RNN(W, np.eye(n), activation="identity"), np.random.default_rng(0).standard_normal((T, n))


ROTATION = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))[0]


@pytest.mark.parametrize(
    ("W", "verdict", "rate", "proved"),
    [
        (0.9 * ROTATION, "vanishing", np.log(0.9), "vanishing"),
        (1.01 * ROTATION, "exploding", np.log(1.01), "exploding"),
        (ROTATION, "marginal", 0.0, None),
        (np.exp(1e-3) * ROTATION, "marginal", 1e-3, "exploding"),  # a factor e only after 1000 lags
        (np.diag(np.full(5, 2.0), 1) + 0.7 * np.eye(6), "transient growth, then decay", np.log(0.7), "vanishing"),
        (np.zeros((6, 6)), "vanishing", -np.inf, "vanishing"),
    ],
)
def test_verdicts(W, verdict, rate, proved):
    rnn, x = linear(W)
    flow = bptt.gradient_flow(rnn, x)
    assert flow.verdict == verdict
    # triangular W have powers of the lag beside their rate
    assert flow.exponents[0] == pytest.approx(rate, abs=1e-10 if verdict[0] != "t" else 0.05)
    assert (flow.certificates.vanishes, flow.certificates.explodes) == (proved == "vanishing", proved == "exploding")
    assert f"{proved} is proved" in str(flow) if proved else "is proved" not in str(flow)


def test_growth_that_is_proved_to_end_is_transient():
    """Within 100 steps the exponent is above 0; the eigenvalue is 0.99."""
    rnn, x = linear(np.array([[0.99, 1.0], [0.0, 0.99]]), 100)
    flow = bptt.gradient_flow(rnn, x)
    assert flow.exponents[0] > 2 * flow.standard_errors[0] and flow.certificates.vanishes
    assert flow.verdict == "transient growth, then decay"
    assert "until the decay that is proved" in str(flow)


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
def test_medians_are_numpys(rows):
    logs = np.random.default_rng(rows).standard_normal((rows, 40))
    logs[logs < -1] = -np.inf
    logs[logs > 1] = np.nan
    logs[0, np.isnan(logs).all(axis=0)] = 0
    np.testing.assert_array_equal(median(logs), np.nanmedian(logs, axis=0))
    assert np.isnan(median(np.full((rows, 3), np.nan))).all()


def test_the_horizon_is_the_median_of_how_far_each_error_reaches():
    """Also where the largest contributions come from other lags at each step."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN(4 * rng.standard_normal((10, 10)) / 10**0.5, np.eye(10))
    flow = bptt.gradient_flow(rnn, rng.standard_normal((800, 10)), stops=range(201, 801, 7))
    least = flow.contributions.max(axis=1, keepdims=True) + np.log(0.01)
    reaches = 200 - np.argmax((flow.contributions > least)[:, ::-1], axis=1)
    assert flow.horizon == np.sort(reaches)[(len(reaches) - 1) // 2] > 60


def test_where_nothing_is_farther_back_the_horizon_is_said_to_be_all():
    rnn, x = linear(ROTATION, 100)
    flow = bptt.gradient_flow(rnn, x)  # a_0 = 0 contributes nothing
    assert flow.horizon == 98
    assert "98 steps: farther back there are no contributions" in str(flow)


def test_the_horizon_of_a_geometric_decay():
    # contributions to h_t: 0.9^lag times |a_{k-1}| = 1: more than 1 % up to lag 43
    rnn = bptt.RNN([[0.9]], [[1.0]], activation="identity")
    x = np.full((300, 1), 0.1)
    flow = bptt.gradient_flow(rnn, x, initial=[1.0])
    assert flow.horizon == 43
    assert bptt.gradient_flow(rnn, x, initial=[1.0], fraction=0.5).horizon == 6
    assert bptt.gradient_flow(rnn, x, initial=[1.0], max_lag=20).horizon == 20
    assert "Horizon           beyond the 20 lags" in str(bptt.gradient_flow(rnn, x, initial=[1.0], max_lag=20))


def test_error_without_weight_and_dead_units_are_no_numbers_and_no_warnings():
    rnn, x, y = problem(activation="relu")
    flow = bptt.gradient_flow(rnn, x, y, weights=np.zeros(120))
    assert np.isnan(flow.contributions).all()
    assert flow.horizon == 0
    dead = bptt.gradient_flow(rnn.replace(b_R=np.full(8, -100.0)), x, y)
    assert np.isneginf(dead.exponents).all()
    assert dead.verdict == "vanishing"
    assert "all directions die" in str(dead)
    for each in (flow, dead):
        each.plot().savefig(io.BytesIO(), dpi=30)


# What people see ------------------------------------------------------------------------------------------------------


def test_the_table():
    rnn, x, y = problem(20, activation="tanh")
    flow = bptt.gradient_flow(rnn, x, y)
    text = str(flow)
    assert f"Verdict           {flow.verdict}" in text
    assert re.search(rf"Horizon           {flow.horizon} steps", text)
    rows = re.findall(r"^ +(\d+) +(\S+) +(\S+) +(\S+) +(\S+)$", text, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [0, 1, 2, 5, 10, 20, 50, 100, 119]
    for lag, middle, low, high, _ in rows:
        column = np.exp(flow.norms[:, int(lag)])
        column = np.sort(column[~np.isnan(column)])
        for shown, number in ((middle, column[(len(column) - 1) // 2]), (low, column[0]), (high, column[-1])):
            assert float(shown) == pytest.approx(number, rel=0.06)
    assert repr(flow) == f"Flow({flow.verdict}, horizon={flow.horizon}, largest exponent {flow.exponents[0]:.4g})"


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (0.0, "1.0e+00"),
        (np.log(9.96), "1.0e+01"),
        (-1e6 * np.log(10), "1.0e-1000000"),
        (np.log(3.4e-12), "3.4e-12"),
        (-np.inf, "0"),
        (np.nan, "-"),
    ],
)
def test_numbers_beyond_float64_are_written(log, text):
    assert scientific(log) == text


def test_the_figure(tmp_path):
    rnn, x, y = problem(20)
    flow = bptt.gradient_flow(rnn, x, y)
    figure = flow.plot()
    norms, map_, bar, exponents = figure.axes
    middle = norms.lines[0]
    np.testing.assert_allclose(middle.get_ydata(), np.array(median(flow.norms)) / np.log(10))
    assert figure.get_suptitle() == f"{flow.verdict.capitalize()}: the gradient reaches back {flow.horizon} steps"
    shares = map_.collections[0].get_array()
    assert shares.shape[0] == len(flow.stops)
    assert shares.max() == 0  # the largest of each row
    assert sum(len(points.lines[0].get_xdata()) for points in exponents.containers) == 20
    assert bar.get_ylabel() == "share of the largest"
    figure.savefig(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_all_kinds_are_drawn():
    rng = np.random.default_rng(0)
    for B, gain in ((1, 0.5), (3, 3.0)):
        rnn = bptt.RNN.random(3, 6, None, gain=gain, init="normal")
        bptt.gradient_flow(rnn, rng.standard_normal((40, B, 3))).plot().savefig(io.BytesIO(), dpi=30)
    rnn, x = linear(ROTATION, 12)
    bptt.gradient_flow(rnn, x, max_lag=1).plot().savefig(io.BytesIO(), dpi=30)


@pytest.mark.parametrize("W", [np.zeros((6, 6)), -np.eye(6)])
def test_figures_of_nothing_say_so(W):
    """Factors that are zero, and relu units that are all off."""
    rnn = bptt.RNN(W, np.eye(6), activation="relu")
    figure = bptt.gradient_flow(rnn, np.ones((20, 6)) * -1).plot()
    figure.savefig(io.BytesIO(), dpi=30)
    norms, _, _, exponents = figure.axes
    assert [text.get_text() for text in norms.texts] == ["zero from lag 1 on"]
    assert [text.get_text() for text in exponents.texts] == ["all directions die"]
    assert norms.lines[0].get_marker() == "o"  # one point alone is seen


def test_a_horizon_at_the_first_step_is_not_beyond_it():
    flow = bptt.gradient_flow(bptt.RNN([[0.9]], [[1.0]], activation="identity"), np.ones((5, 1)), initial=[1.0])
    assert flow.horizon == 4
    assert "4 steps: farther back there are no contributions" in str(flow)
    figure = flow.plot()
    assert figure.get_suptitle().endswith("the gradient reaches back 4 steps")
    assert "horizon = 4" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_proof_is_named_beside_a_marginal_rate():
    for factor, what in ((0.998, "decays"), (1.002, "grows")):
        rnn = bptt.RNN(factor * np.eye(2), np.ones((2, 1)), activation="identity")
        flow = bptt.gradient_flow(rnn, np.ones((1000, 1)))
        assert flow.verdict == "marginal"
        assert f"that it {what} in the end is proved" in str(flow)


def test_rows_without_an_error_are_not_drawn():
    rnn, x, _ = problem()
    figure = bptt.gradient_flow(rnn, x, np.array(1)).plot()  # a target of the last step
    assert figure.axes[1].collections[0].get_array().shape[0] == 1
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["120"]


# Bad input ------------------------------------------------------------------------------------------------------------

RNN = support.network()
X, Y = np.zeros((10, 3)), np.zeros(10, int)


@pytest.mark.parametrize(
    ("arguments", "changes", "error", "message"),
    [
        ((3, X), {}, TypeError, "rnn must be a bptt.RNN, or jacobians= given in its place; got int"),
        ((RNN.replace(W_O=None, b_O=None), X, Y), {}, ValueError, "rnn must have a readout W_O to have errors"),
        ((RNN, X[:, :2]), {}, ValueError, "x must have shape (T, B, p) or (T, p) with p = 3; got (10, 2)"),
        ((RNN, X[:2]), {}, ValueError, "x must have a sequence of at least 3 steps; the longest has 2"),
        ((RNN, X, Y[:9]), {}, ValueError, "y must have shape (T,) with T = 10"),
        ((RNN, X, Y + 4), {}, ValueError, "y must be in 0..m-1 with m = 4; got 4"),
        ((RNN, X, Y), {"loss": lambda o, y: (o, y)}, TypeError, "loss must be the name of an error"),
        ((RNN, X), {"stops": [11]}, ValueError, "stops must be steps in 1..T with T = 10, or from -10 to -1; got 11"),
        ((RNN, X), {"stops": [0, 5]}, ValueError, "stops must be steps in 1..T with T = 10, or from -10 to -1; got 0"),
        ((RNN, X), {"stops": [1, 1]}, ValueError, "stops must hold a step after the first; got [1, 1]"),
        ((RNN, X), {"stops": []}, ValueError, "stops must hold a step after the first; got []"),
        ((RNN, X), {"max_lag": 0}, ValueError, "max_lag must be an integer >= 1; got 0"),
        ((RNN, X), {"k": 7}, ValueError, "k must be in 1..n with n = 6; got 7"),
        ((RNN, X), {"fraction": 1.0}, ValueError, "fraction must lie between 0 and 1; got 1.0"),
        ((RNN, X), {"fraction": -1}, ValueError, "fraction must lie between 0 and 1; got -1"),
        ((RNN, X), {"fraction": "a"}, TypeError, "fraction must be a number; got str"),
        ((RNN, X), {"cond_limit": -1}, ValueError, "cond_limit must be >= 1; got -1"),
        ((RNN, X), {"cond_limit": 0}, ValueError, "cond_limit must be >= 1; got 0"),
    ],
)  # fmt: skip
def test_bad_input(arguments, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        bptt.gradient_flow(*arguments, **changes)


def test_states_that_are_not_finite_are_named():
    rnn = bptt.RNN([[1e200]], [[1.0]], activation="relu")
    with pytest.raises(FloatingPointError, match="t = 3"):
        bptt.gradient_flow(rnn, np.ones((10, 1)))


def test_an_error_without_targets_is_refused():
    for options in ({"loss": "squared_error"}, {"weights": np.ones(len(X))}):
        with pytest.raises(TypeError, match="give y too"):
            bptt.gradient_flow(RNN, X, **options)
    with pytest.raises(ValueError, match=r"jacobians must have shape \(T, n, n\) with n >= 1"):
        bptt.gradient_flow(jacobians=np.zeros((3, 0, 0)))
    with pytest.raises(ValueError, match="cond_limit must be >= 1; got 0"):
        bptt.gradient_flow(jacobians=np.zeros((3, 2, 2)), cond_limit=0)


def test_a_flow_of_nothing_says_so():
    rnn = bptt.RNN(np.zeros((2, 2)), np.zeros((2, 1)), np.zeros((1, 2)), output="linear")
    flow = bptt.gradient_flow(rnn, np.zeros((20, 1)), np.zeros((20, 1)))
    assert "none: all contributions are zero" in str(flow)
    assert flow.plot().get_suptitle() == "Vanishing: all contributions are zero"


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("size", [1, 300, 360, 400, 1e5])
def test_an_error_of_saturated_states_is_the_same_however_it_is_given(size):
    """Slopes of 1e-700 and less are no number of float64; their products with an error are looked at all the same."""
    rnn = bptt.RNN([[2.0]], [[size]], W_O=[[1.0]], output="linear")
    x, y = np.ones((6, 1)), np.zeros((6, 1))
    named = bptt.gradient_flow(rnn, x, y)
    given = bptt.gradient_flow(rnn, x, d_states=2 * bptt.forward(rnn, x).outputs)
    assert np.isfinite(named.contributions[-1, :-1]).all()
    np.testing.assert_allclose(given.contributions, named.contributions, rtol=1e-15, atol=1e-13)
    assert given.horizon == named.horizon
    assert str(given) == str(named)


@pytest.mark.usefixtures("level")
def test_an_error_that_is_tiny_beside_saturated_states():
    """Neither is the product of 1e-250 with a slope of 1e-100, which needs no exponent of its own."""
    rnn = bptt.RNN([[2.0]], [[115.0]], W_O=[[1.0]], output="linear")
    x, y, weights = np.ones((6, 1)), np.zeros((6, 1)), np.full(6, 1e-250)
    tiny = bptt.contributions(rnn, bptt.forward(rnn, x), y, weights=weights)
    plain = bptt.contributions(rnn, bptt.forward(rnn, x), y)
    np.testing.assert_allclose(tiny, plain + np.log(1e-250), rtol=1e-14)


@pytest.mark.parametrize("of", ["weights", "d_states", "jacobians"])
def test_an_error_at_few_steps_is_looked_at(of):
    """Wherever the steps that are looked at by default happen to lie."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(3, 16, 5, gain=0.95, activation="identity", rng=rng)
    x, y, where = rng.standard_normal((400, 3)), rng.integers(5, size=400), [101, 251]
    weights = np.zeros(400)
    weights[np.array(where) - 1] = 1
    arguments = {"rnn": rnn, "x": x, "y": y, "weights": weights}
    if of != "weights":
        d_states = weights[:, None] * rng.standard_normal((400, 16))
        arguments = {"rnn": rnn, "x": x, "d_states": d_states}
    if of == "jacobians":
        arguments = {"jacobians": np.broadcast_to(rnn.W_R, (400, 16, 16)), "d_states": d_states}
    flow = bptt.gradient_flow(**arguments)
    there = np.flatnonzero(np.isfinite(flow.contributions[:, 0]))
    assert flow.stops[there].tolist() == where
    asked = bptt.gradient_flow(**arguments, stops=where, max_lag=200)
    np.testing.assert_allclose(flow.contributions[there], asked.contributions, atol=1e-12)
    assert flow.horizon == asked.horizon > 20
    assert "all contributions are zero" not in str(flow)


@pytest.mark.parametrize("batched", [False, True])
def test_an_error_that_is_not_finite_is_no_error_of_zero(batched):
    rnn = bptt.RNN.random(3, 4, 2, output="linear")
    x, y = np.zeros((300, 3)), np.ones((300, 2))
    y[4, 1] = np.nan
    arguments = (x[:, None], y[:, None]) if batched else (x, y)
    with pytest.raises(FloatingPointError, match="the error is not finite: first at step t = 5 of sequence b = 0"):
        bptt.gradient_flow(rnn, *arguments)
    trajectory = bptt.forward(rnn, x)
    for call in (bptt.contributions, bptt.per_step_gradients):
        with pytest.raises(FloatingPointError, match="the gradient of the error by the state at t = 5 is not finite"):
            call(rnn, trajectory, y)
        call(rnn, trajectory, y, stops=[4, 6])  # which do not meet it
    weights = np.ones(300)
    weights[4] = 0  # then its target does not matter
    assert not np.isnan(bptt.contributions(rnn, trajectory, y, weights=weights, stops=[5, 6])[:, :5]).any()
    with pytest.raises(FloatingPointError, match="first at step t = 1 of"):
        bptt.gradient_flow(rnn.replace(W_O=np.full((2, 4), np.nan)), x, np.ones((300, 2)))


def test_an_exponent_of_any_size_takes_a_line():
    rng = np.random.default_rng(1)
    rnn = bptt.RNN(rng.standard_normal((2, 2)) * 10, rng.standard_normal((2, 1)), activation="elu")
    x = rng.standard_normal((250, 1))
    flow = bptt.gradient_flow(rnn, x)  # pytest makes an error of an overflow
    assert flow.exponents[-1] < -1e100
    assert max(map(len, str(flow).splitlines())) < 130


def test_weights_that_are_not_finite_are_named_before_any_work():
    rnn = bptt.RNN.random(2, 3, 4)
    for W_R in (np.full((3, 3), np.nan), np.diag([1.0, np.inf, 0.0])):
        with pytest.raises(ValueError, match="rnn must have finite weights W_R"):
            bptt.gradient_flow(rnn.replace(W_R=W_R), np.zeros((20, 2)))
