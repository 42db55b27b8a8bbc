"""Chains, their norms, contributions and per-step gradients: against the specification, laws and closed forms."""

import _thread
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bptt
import support
from bptt import _levels, chain, reference, reference_microscope
from bptt._compression import compressed

LN2 = np.log(2)
EPS = np.finfo(float).eps

#: Logs of norms against the specification's: relative errors that add up over 40 steps, each some n eps.
TOLERANCE = 1e-11


def problem(n=6, T=40, *, dtype="float64", gain=1.2, seed=0, **choices):
    rng = np.random.default_rng(seed)
    rnn = support.network(n, 3, 4, gain=gain, dtype=dtype, seed=seed, **choices)
    x, y = rng.standard_normal((T, 3)), support.targets(rng, rnn, (T,))
    return rnn, x, y, bptt.forward(rnn, x, rng.standard_normal(n))


def specified(rnn, trajectory):
    """The specification's chain along the very states of a trajectory, and its a and g."""
    h, a = (
        np.concatenate([first[None], rest]).astype(float)
        for first, rest in (
            (trajectory.initial, trajectory.preactivations),
            (trajectory.activations[0], trajectory.activations[1:]),
        )
    )
    run = reference.Trajectory(h, a, np.array(len(h) - 1))
    return support.specification(rnn), run, reference_microscope.chain_of_network(support.specification(rnn), run)


def direct(rnn, net, run, y, weights=1.0):
    loss = "cross_entropy" if rnn.output == "softmax" else "squared_error"
    _, e = reference.errors(net, run, y, loss, weights)
    return reference.direct(net, reference.slopes(net, run)[1:], e)


def assert_logs(ours, wanted, tolerance=TOLERANCE):
    """The same numbers, exact zeros (-inf) and undefined places (nan)."""
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(wanted))
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(wanted))
    finite = np.isfinite(wanted)
    np.testing.assert_allclose(ours[finite], wanted[finite], rtol=1e-14, atol=tolerance)


# Against the specification --------------------------------------------------------------------------------------------

STOPS = (40, 0, 13, 13, 39, 7, 1)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 17])
@pytest.mark.parametrize("form", support.STATES)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_all_agree_with_the_specification(n, form, activation):
    rnn, _, y, trajectory = problem(n, form=form, activation=activation, readout=form, seed=n)
    net, run, chain = specified(rnn, trajectory)
    for order in (2, "fro"):
        wanted = reference_microscope.chain_norms(chain, STOPS, 45, order)
        if form == "activation":  # there is no h_0
            wanted[range(len(STOPS)), STOPS] = np.nan
        assert_logs(bptt.chain_norms(rnn, trajectory, stops=STOPS, max_lag=45, ord=order), wanted)

    stops = [t for t in STOPS if t]
    g = direct(rnn, net, run, y)
    ours = bptt.contributions(rnn, trajectory, y, stops=stops, max_lag=45)
    assert_logs(ours, reference_microscope.contributions(chain, run.a, g, stops, 45))
    gradients = bptt.per_step_gradients(rnn, trajectory, y, stops=[*stops, 0])
    for t, gradient in zip(stops, gradients, strict=False):
        wanted = reference_microscope.per_step_gradient(net, run, g, t)
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-13 * np.abs(wanted).max())
    assert not gradients[-1].any()

    P = bptt.product_chain(rnn, trajectory, 3, -9)
    wanted = reference_microscope.product_chain(chain, 3, 32)
    np.testing.assert_allclose(np.ldexp(P.mantissa, P.exponent - wanted.exponent), wanted.mantissa, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [33, 100])
def test_wide_networks_agree_with_the_specification(kernel, monkeypatch, n):
    monkeypatch.setattr(_levels, "kernel", lambda: kernel)
    rnn, _, y, trajectory = problem(n)
    net, run, chain = specified(rnn, trajectory)
    for order in (2, "fro"):
        ours = bptt.chain_norms(rnn, trajectory, stops=[40, 20], ord=order, max_lag=15)
        assert_logs(ours, reference_microscope.chain_norms(chain, [40, 20], 15, order))
    ours = bptt.contributions(rnn, trajectory, y, max_lag=15)
    assert_logs(ours, reference_microscope.contributions(chain, run.a, direct(rnn, net, run, y), range(1, 41), 15))


@pytest.mark.usefixtures("level")
def test_float32_networks_are_computed_in_float64_from_their_h():
    # |h| up to 60: 1 - a² is 0 in float32 beyond 9 and in float64 beyond 19
    rnn, _, y, trajectory = problem(12, gain=10.0, dtype="float32", activation="tanh")
    trajectory = bptt.forward(rnn, 10 * np.random.default_rng(0).standard_normal((40, 3)).astype("float32"))
    assert np.abs(trajectory.preactivations).max() > 20
    net, run, chain = specified(rnn, trajectory)
    for order in (2, "fro"):
        wanted = reference_microscope.chain_norms(chain, [40], 39, order)
        assert_logs(bptt.chain_norms(rnn, trajectory, stops=[40], max_lag=39, ord=order), wanted)
    ours = bptt.contributions(rnn, trajectory, y, stops=[40])
    assert np.isfinite(ours[0, :39]).all()  # a_0 = 0 contributes nothing
    assert_logs(ours, reference_microscope.contributions(chain, run.a, direct(rnn, net, run, y), [40], 40))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("output", ["softmax", "linear"])
def test_weights_and_targets_of_the_last_step(output):
    rnn, _, y, trajectory = problem(output=output)
    net, run, chain = specified(rnn, trajectory)
    weights = np.random.default_rng(1).random(40)
    weights[10] = 0
    g = direct(rnn, net, run, y, weights)
    ours = bptt.contributions(rnn, trajectory, y, weights=weights)
    assert np.isneginf(ours[10, :11]).all()
    assert_logs(ours, reference_microscope.contributions(chain, run.a, g, range(1, 41), 40))

    last = bptt.contributions(rnn, trajectory, y[-1])
    assert np.isneginf(last[:-1, 0]).all()
    assert_logs(last[-1:], bptt.contributions(rnn, trajectory, y, stops=[40]))


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("form", support.STATES)
@pytest.mark.parametrize("activation", support.ACTIVATIONS)
def test_per_step_gradients_sum_to_the_gradient(form, activation):
    rnn, x, y, _ = problem(9, form=form, activation=activation, gain=0.9)
    gradients = bptt.per_step_gradients(rnn, bptt.forward(rnn, x), y)
    _, whole = bptt.value_and_grad(rnn, x, y, reduction="sum")
    np.testing.assert_allclose(gradients.sum(axis=0), whole.W_R, rtol=0, atol=1e-12 * np.abs(whole.W_R).max())


@pytest.mark.usefixtures("level")
def test_a_per_step_gradient_equals_the_complex_step():
    rnn, x, y, trajectory = problem(5, T=12)
    net = support.specification(rnn)
    gradient = bptt.per_step_gradients(rnn, trajectory, y, stops=[9])[0]
    for i in range(5):
        for j in range(5):
            W = net.W_R.astype(complex)
            W[i, j] += 1e-30j
            run = reference.forward(net._replace(W_R=W), x, trajectory.initial)
            E, _ = reference.errors(net._replace(W_R=W), run, y, "cross_entropy")
            assert abs(E[8].imag / 1e-30 - gradient[i, j]) < 1e-13 * np.abs(gradient).max()


@pytest.mark.usefixtures("level")
def test_contributions_are_the_norms_of_the_terms_that_sum_to_a_per_step_gradient():
    rnn, _, y, trajectory = problem(7)
    _, g = bptt.errors(rnn, trajectory, y)
    a, t = trajectory.activations, 33
    terms = []
    for k in range(1, t + 1):
        v = g[t - 1] @ bptt.product_chain(rnn, trajectory, k, t)
        terms.append(np.outer(v.to_array(), a[k - 1]))
    logs = bptt.contributions(rnn, trajectory, y, stops=[t], max_lag=t - 1)[0, ::-1]
    for ord in (2, "fro"):
        np.testing.assert_allclose(logs, [np.log(np.linalg.norm(term, ord)) for term in terms], rtol=0, atol=TOLERANCE)
    gradient = bptt.per_step_gradients(rnn, trajectory, y, stops=[t])[0]
    np.testing.assert_allclose(sum(terms), gradient, rtol=0, atol=1e-13 * np.abs(gradient).max())


@pytest.mark.usefixtures("level")
def test_chains_multiply():
    rnn, _, _, trajectory = problem(6)
    P, Q, R = (bptt.product_chain(rnn, trajectory, *steps) for steps in ((17, 40), (5, 17), (5, 40)))
    product = P @ Q
    np.testing.assert_allclose(np.ldexp(product.mantissa, product.exponent - R.exponent), R.mantissa, atol=1e-13)
    same = bptt.product_chain(rnn, trajectory, 8, 8)
    np.testing.assert_array_equal(same.to_array(), np.eye(6))
    assert R.log_norm("fro") == pytest.approx(
        bptt.chain_norms(rnn, trajectory, stops=[40], ord="fro")[0, 35], abs=1e-12
    )


@pytest.mark.usefixtures("level")
def test_jacobians_given_are_the_network_s_own():
    rnn, _, _, trajectory = problem(6, form="preactivation")
    h = np.concatenate([trajectory.initial[None], trajectory.preactivations])[:-1]
    jacobians = rnn.W_R * (1 - np.tanh(h) ** 2)[:, None, :]
    for ord in (2, "fro"):
        own = bptt.chain_norms(rnn, trajectory, ord=ord)
        assert_logs(bptt.chain_norms(jacobians=jacobians, ord=ord), own)
        assert_logs(bptt.chain_norms(jacobians=jacobians[::1, ::1].astype(">f8"), ord=ord), own)
        assert_logs(
            bptt.chain_norms(jacobians=1e-200 * jacobians, ord=ord), own - 200 * np.log(10) * np.arange(41), 1e-9
        )


@pytest.mark.parametrize("n", [5, 24, 33])
def test_the_number_of_threads_changes_no_bit(kernel, monkeypatch, n):
    monkeypatch.setattr(_levels, "kernel", lambda: kernel)
    monkeypatch.setattr(_levels, "resolve_threads", lambda threads: threads or 1)
    rnn, _, y, trajectory = problem(n, T=90)

    def results(threads):
        yield bptt.product_chain(rnn, trajectory, 2, 88, threads=threads).mantissa
        yield bptt.chain_norms(rnn, trajectory, stops=[90, 89, 40], ord=2, threads=threads)
        yield bptt.chain_norms(rnn, trajectory, stops=[90], ord=2, threads=threads)
        yield bptt.chain_norms(rnn, trajectory, stops=[90, 89, 40], ord="fro", threads=threads)
        yield bptt.contributions(rnn, trajectory, y, threads=threads)
        yield bptt.per_step_gradients(rnn, trajectory, y, stops=range(20, 90, 3), threads=threads)

    one = list(results(1))
    for threads in (2, 3):
        for mine, theirs in zip(results(threads), one, strict=True):
            np.testing.assert_array_equal(mine, theirs)


# Chains in few rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "gain", "activation"),
    [("normal", 1.5, "tanh"), ("orthogonal", 1.0, "tanh"), ("normal", 1.2, "relu"), ("normal", 0.9, "softsign")],
)
def test_long_chains_keep_their_norms_in_few_rows(monkeypatch, init, gain, activation):
    rnn = bptt.RNN.random(3, 33, None, init=init, gain=gain, activation=activation, rng=3)
    trajectory = bptt.forward(rnn, np.random.default_rng(0).standard_normal((1200, 3)), nonfinite="raise")
    heights = []
    monkeypatch.setattr(chain, "compressed", lambda *args: heights.append(args[0]) or compressed(*args))
    few = [bptt.chain_norms(rnn, trajectory, stops=[1200], max_lag=1199, ord=ord) for ord in (2, "fro")]
    assert len(heights[-1].rows) < 12 < len(heights[0].rows) == 33
    monkeypatch.setattr(chain, "_FIRST_COMPRESSION", 10**9)
    all_rows = [bptt.chain_norms(rnn, trajectory, stops=[1200], max_lag=1199, ord=ord) for ord in (2, "fro")]
    for mine, theirs in zip(few, all_rows, strict=True):
        assert_logs(mine, theirs, 1e-10)  # a thousand roundings of 33 products in another order


def test_what_is_coupled_to_nothing_is_kept_however_small():
    # Two networks side by side: the second loses 30 orders of magnitude against the first, which then dies.
    rng = np.random.default_rng(0)
    T, n = 600, 20
    jacobians = np.zeros((T, 2 * n, 2 * n))
    jacobians[:, :n, :n] = rng.standard_normal((T, n, n)) / np.sqrt(n)
    jacobians[:, n:, n:] = 0.9 * rng.standard_normal((T, n, n)) / np.sqrt(n)
    order = rng.permutation(2 * n)  # and nobody knows which unit is of which
    jacobians[50, :n, :n] = 0
    norms = bptt.chain_norms(jacobians=jacobians[:, order][:, :, order], stops=[T])[0]
    first, second = (
        bptt.chain_norms(jacobians=part, stops=[T])[0] for part in (jacobians[:, :n, :n], jacobians[:, n:, n:])
    )
    assert second[T - 51] < first[T - 51] - 30
    assert_logs(norms, np.maximum(first, second), 1e-10)


def test_units_that_are_coupled_to_none_are_all_kept():
    rates = np.linspace(-3, 3, 40)
    jacobians = np.tile(np.diag(np.exp(rates)), (900, 1, 1))
    jacobians[100, 20:, 20:] = 0  # those that grow die late, with the decayed ones some 10^1000 below
    norms = bptt.chain_norms(jacobians=jacobians, stops=[900])[0]
    np.testing.assert_allclose(norms[:800], 3.0 * np.arange(800), rtol=1e-12)
    np.testing.assert_allclose(norms[800:], rates[19] * np.arange(800, 901), rtol=1e-12)


# Closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("level")
def test_a_scalar_linear_network():
    rnn = bptt.RNN([[-0.25]], [[1.0]], [[1.0]], activation="identity", output="linear", form="preactivation")
    trajectory = bptt.forward(rnn, np.zeros((30, 1)), [2.0])
    lags = np.arange(31)
    np.testing.assert_allclose(bptt.chain_norms(rnn, trajectory, stops=[30])[0], -2 * LN2 * lags, rtol=1e-15)
    # h_t = w^t h_0, so that with E_t = h_t^2 the contribution (k, t) is 2 h_t w^(t-k) h_{k-1}, the same for all k
    logs = bptt.contributions(rnn, trajectory, np.zeros((30, 1)), stops=[30])[0]
    np.testing.assert_allclose(logs[:30], np.log(2 * 4) + LN2 * -2 * (30 + 29), rtol=1e-14)


@pytest.mark.usefixtures("level")
def test_a_symmetric_linear_network_keeps_its_spectral_radius():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((8, 8))
    W += W.T
    rnn = bptt.RNN(W, np.zeros((8, 1)), activation="identity")
    norms = bptt.chain_norms(rnn, bptt.forward(rnn, np.zeros((100, 1))), stops=[100], max_lag=99)
    np.testing.assert_allclose(norms[0], np.arange(100) * np.log(np.abs(np.linalg.eigvalsh(W)).max()), atol=1e-11)


def test_newman_s_largest_exponent():
    # Gaussian factors of variance 1/8, n = 8: lambda_1 = (log(1/4) + psi(4)) / 2 (Newman 1986)
    T, count = 2000, 16
    jacobians = np.random.default_rng(0).standard_normal((count * T, 8, 8)) / np.sqrt(8)
    rates = bptt.chain_norms(jacobians=jacobians, stops=T * np.arange(1, count + 1), max_lag=T)[:, T] / T
    assert abs(rates.mean() - -0.065088) < 4 * rates.std(ddof=1) / np.sqrt(count)


@pytest.mark.parametrize(("power", "ord", "first"), [(-3, 2, 0.0), (3, "fro", LN2 / 2)])
def test_a_million_steps_of_a_thousandfold(power, ord, first):
    T, factor = 10**6, 10.0**power
    rnn = bptt.RNN([[0.0, -factor], [factor, 0.0]], [[0.0], [0.0]], activation="identity")
    trajectory = bptt.forward(rnn, np.zeros((T, 1)))
    norms = bptt.chain_norms(rnn, trajectory, stops=[T], max_lag=T - 1, ord=ord)
    np.testing.assert_allclose(norms[0], first + np.arange(T) * np.log(factor), rtol=1e-13, atol=1e-14)
    P = bptt.product_chain(rnn, trajectory, 1, T)
    assert P.log_norm(ord) == pytest.approx(norms[0, -1], rel=1e-13)


@pytest.mark.usefixtures("level")
def test_slopes_that_float64_does_not_hold():
    # tanh'(400) = 4 e^-800: every step of one unit, and beside a unit in its linear range
    rnn = bptt.RNN([[0.9]], [[1.0]])
    trajectory = bptt.forward(rnn, np.full((20, 1), 400.0))
    norms = bptt.chain_norms(rnn, trajectory, stops=[20], max_lag=19)[0]
    np.testing.assert_allclose(
        np.diff(norms), np.log(0.9) + 2 * (LN2 - trajectory.preactivations[18::-1, 0]), rtol=1e-14
    )

    rnn = bptt.RNN([[0.9, 0.1], [0.2, 0.5]], [[1.0], [0.0]])
    trajectory = bptt.forward(rnn, np.full((20, 1), 400.0))
    _, _, chain = specified(rnn, trajectory)
    wanted = reference_microscope.chain_norms(chain, [20], 19)
    assert_logs(bptt.chain_norms(rnn, trajectory, stops=[20], max_lag=19), wanted)


@pytest.mark.usefixtures("level")
def test_what_is_exactly_zero_is_minus_infinity():
    nilpotent = bptt.RNN([[0.0, 1e3, 0.0], [0.0, 0.0, 1e3], [0.0, 0.0, 0.0]], np.zeros((3, 1)), activation="identity")
    norms = bptt.chain_norms(nilpotent, bptt.forward(nilpotent, np.zeros((9, 1))), stops=[9])
    np.testing.assert_allclose(norms[0, :3], [0, np.log(1e3), np.log(1e6)], rtol=1e-14)
    assert np.isneginf(norms[0, 3:9]).all()
    assert bptt.product_chain(nilpotent, bptt.forward(nilpotent, np.zeros((9, 1))), 2, 9).log_norm() == -np.inf

    rnn, x, _, _ = problem(activation="relu")
    x[20] = -1e3 * np.linalg.lstsq(rnn.W_I, np.ones(6), rcond=None)[0]
    rnn = rnn.replace(b_I=np.where(np.arange(6) < 3, rnn.b_I, -1e6))  # half of the units never live
    trajectory = bptt.forward(rnn, x)
    dead = (trajectory.preactivations <= 0).all(axis=1)
    assert dead.any()
    t = 1 + int(np.flatnonzero(dead)[-1])
    norms = bptt.chain_norms(rnn, trajectory, stops=[40], max_lag=39)[0]
    assert np.isfinite(norms[: 40 - t]).all()
    assert np.isneginf(norms[40 - t :]).all()

    # A direction that had become negligible is all that is left when the others die.
    jacobians = np.tile(np.diag([2.0, 0.5]), (1500, 1, 1))
    jacobians[0, 0, 0] = 0
    norms = bptt.chain_norms(jacobians=jacobians, stops=[1500])[0]
    np.testing.assert_allclose(norms[[1499, 1500]], [1499 * LN2, -1500 * LN2])


def test_a_result_never_depends_on_the_order_of_the_stops():
    rnn, _, y, trajectory = problem(6)
    stops = np.array([-1, 3, 17, 3, -41, 29])
    t = np.where(stops < 0, stops + 41, stops)
    for function, arguments in ((bptt.chain_norms, ()), (bptt.contributions, (y,))):
        whole = function(rnn, trajectory, *arguments)
        some = function(rnn, trajectory, *arguments, stops=stops)
        np.testing.assert_allclose(some[t > 0], whole[t[t > 0] - 1], rtol=1e-12, atol=1e-12)
        assert np.isnan(some[t == 0]).all()
    some = bptt.per_step_gradients(rnn, trajectory, y, stops=stops[:4])
    np.testing.assert_allclose(some, bptt.per_step_gradients(rnn, trajectory, y)[t[:4] - 1], rtol=1e-12)


def test_nothing_to_do_is_done():
    rnn, _, y, trajectory = problem(6)
    assert bptt.chain_norms(rnn, trajectory, stops=[]).shape == (0, 1)
    assert bptt.contributions(rnn, trajectory, y, stops=[5], max_lag=0).shape == (1, 1)
    empty = bptt.forward(rnn, np.zeros((0, 3)))
    assert bptt.chain_norms(rnn, empty).shape == (0, 1)
    assert bptt.chain_norms(jacobians=np.zeros((0, 4, 4)), stops=[0]).tolist() == [[0.0]]


def test_one_sequence_shorter_than_its_array():
    rnn, x, y, _ = problem(6)
    whole, part = bptt.forward(rnn, x, lengths=25), bptt.forward(rnn, x[:25])
    np.testing.assert_array_equal(bptt.chain_norms(rnn, whole), bptt.chain_norms(rnn, part))
    np.testing.assert_array_equal(bptt.contributions(rnn, whole, y), bptt.contributions(rnn, part, y[:25]))


def memory(what: str) -> int:
    """Bytes of this process: resident now ("VmRSS") or at most since the peak was reset ("VmHWM")."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{what}:\s+(\d+)", status)[1])


def test_memory_does_not_grow_with_the_sequence():
    rng = np.random.default_rng(0)
    T, stops = 100_000, np.arange(1000, 100_001, 1000)
    rnn = bptt.RNN.random(3, 64, 4)
    trajectory = bptt.forward(rnn, rng.standard_normal((T, 3)))
    y = rng.integers(4, size=T)
    for run in (
        lambda: bptt.chain_norms(rnn, trajectory, stops=stops, max_lag=1000),
        lambda: bptt.chain_norms(rnn, trajectory, stops=stops, max_lag=1000, ord="fro"),
        lambda: bptt.contributions(rnn, trajectory, y, stops=stops, max_lag=1000),
    ):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = memory("VmRSS")
        result = run()
        assert memory("VmHWM") - before - result.nbytes < 64e6


def test_ctrl_c_ends_a_long_call():
    rnn = bptt.RNN.random(1, 64, None, activation="identity")  # orthogonal: all directions live on
    trajectory = bptt.forward(rnn, np.zeros((200_000, 1)))
    start = time.perf_counter()
    threading.Timer(0.3, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        bptt.chain_norms(rnn, trajectory, stops=[-1])
    assert time.perf_counter() - start < 2  # of the ten or so that the whole takes


def test_the_largest_and_least_numbers_of_float64(level):
    for number in (np.finfo(float).max, 1e308, 1e307, 1e-300, np.finfo(float).tiny):
        logs = bptt.chain_norms(jacobians=np.full((3, 1, 1), number), stops=[3])
        np.testing.assert_allclose(logs[0], np.arange(4) * np.log(number), rtol=1e-14)
