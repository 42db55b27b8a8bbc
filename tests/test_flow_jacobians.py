"""gradient_flow of cells known by their Jacobians, and of errors known by their derivatives."""

import io

import numpy as np
import pytest

import bptt
from support import network, problem


def jacobians_of(rnn, run):
    """W_R D_k for k = 1 .. T-1: of the states from t = 1 on."""
    d = 1 - run.activations[1:] ** 2
    return rnn.W_R * d[:-1, None, :]


def test_jacobians_of_a_network_flow_as_the_network():
    rnn = network(8)
    x = np.random.default_rng(0).standard_normal((120, 3))
    run = bptt.forward(rnn, x)
    J = jacobians_of(rnn, run)
    of_network = bptt.gradient_flow(rnn, x, stops=[50, 120], max_lag=30)
    flow = bptt.gradient_flow(jacobians=J, stops=[49, 119], max_lag=30)
    np.testing.assert_allclose(flow.norms, of_network.norms, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(flow.contributions, flow.norms)
    np.testing.assert_allclose(flow.exponents, of_network.exponents, rtol=0, atol=1e-12)
    assert (flow.verdict, flow.of_error, flow.certificates) == (of_network.verdict, False, None)


def test_derivatives_in_place_of_targets():
    """The squared error of a linear readout, as targets and as what it asks of the states."""
    for form in ("activation", "preactivation"):
        rng, rnn, x, y = problem(output="linear", form=form, readout=form)
        lengths, initial = np.array([12, 5, 2, 9]), rng.standard_normal((4, rnn.n))
        outputs = bptt.forward(rnn, x, initial, lengths=lengths).outputs
        d_states = 2 * (outputs - y) @ rnn.W_O
        d_states[5:, 1] = np.nan  # beyond the length
        arguments = {"lengths": lengths, "initial": initial, "stops": [3, 5, 9]}
        by_targets = bptt.gradient_flow(rnn, x, y, **arguments)
        flow = bptt.gradient_flow(rnn, x, d_states=d_states, **arguments)
        assert flow.of_error
        np.testing.assert_allclose(flow.contributions, by_targets.contributions, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(flow.norms, by_targets.norms)


def test_an_error_of_jacobians_reaches_back_through_them():
    rng = np.random.default_rng(0)
    chains = [rng.standard_normal((T, 4, 4)) / 2 for T in (20, 2, 12)]
    pulls = [rng.standard_normal((len(M), 4)) for M in chains]
    flow = bptt.gradient_flow(jacobians=chains, d_states=pulls, stops=[5, 12], max_lag=6)
    assert flow.sequences.tolist() == [0, 0, 2, 2]
    assert flow.stops.tolist() == [5, 12, 5, 12]
    for row, b, t in zip(flow.contributions, flow.sequences, flow.stops, strict=True):
        g = pulls[b][t - 1]
        for lag, log in enumerate(row):
            if lag > t:
                assert np.isnan(log)
                continue
            assert log == pytest.approx(np.log(np.linalg.norm(g)), abs=1e-12)
            if lag < t:
                g = g @ chains[b][t - lag - 1]


@pytest.mark.parametrize("of_error", [False, True])
def test_table_and_figure_of_jacobians(of_error):
    rng = np.random.default_rng(0)
    J = rng.standard_normal((30, 4, 4)) / 4
    flow = bptt.gradient_flow(jacobians=J, d_states=J[:, 0] if of_error else None)
    table = str(flow)
    assert "Verdict           vanishing" in table
    assert "Lyapunov exponents" in table
    assert "Bounds" not in table
    flow.plot().savefig(io.BytesIO(), dpi=30)


J, D = np.zeros((9, 4, 4)), np.zeros((9, 4))
RNN, X = network(4), np.zeros((9, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"jacobians": J, "rnn": RNN}, TypeError, "jacobians must be given alone, or with d_states"),
        ({"jacobians": J, "lengths": [9]}, TypeError, "jacobians must be given alone, or with d_states"),
        ({"jacobians": J[0]}, ValueError, r"jacobians must have shape \(T, n, n\) with n >= 1; got \(4, 4\)"),
        ({"jacobians": [J, J[:, :3, :3]]}, ValueError, "jacobians must be of one n in all sequences; got n = 4, 3"),
        ({"jacobians": 3.0}, ValueError, r"jacobians must have shape \(T, n, n\) with n >= 1; got \(\)"),
        ({"jacobians": []}, ValueError, r"jacobians must have shape \(T, n, n\) with n >= 1; got \(0,\)"),
        (
            {"jacobians": [J, np.full((9, 4, 4), np.inf)]},
            ValueError,
            r"jacobians\[1\] must be finite; jacobians\[1\]\[0\] is not",
        ),
        ({"jacobians": [J[:2], J[:1]]}, ValueError, "a sequence of at least 3 steps; the longest has 2"),
        ({"jacobians": np.full((9, 4, 4), np.nan)}, ValueError, r"jacobians must be finite; jacobians\["),
        ({"jacobians": [J, J], "d_states": D}, ValueError, "of as many sequences as jacobians, 2; got 1"),
        ({"jacobians": J, "d_states": D[:8]}, ValueError, r"d_states must have shape \(T, n\) with T = 9, n = 4"),
        ({"jacobians": J, "d_states": D + np.nan}, ValueError, "d_states must be finite; those of sequence b = 0"),
        (
            {"rnn": RNN, "x": X, "d_states": D[:, :3]},
            ValueError,
            r"d_states must have shape \(T, n\) with T = 9, n = 4",
        ),
        ({"rnn": RNN, "x": X, "d_states": D + np.inf}, ValueError, "d_states must be finite; those of sequence b = 0"),
        ({"rnn": RNN, "x": X, "y": np.zeros(9, int), "d_states": D}, TypeError, "takes the place of y; got both"),
        ({}, TypeError, "rnn must be a bptt.RNN, or jacobians= given in its place; got NoneType"),
        ({"rnn": RNN}, TypeError, "x must be given with rnn"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        bptt.gradient_flow(**arguments)
