"""Lyapunov exponents: the sum rule, known spectra, steps of any spread, and errors that are right."""

import mpmath as mp
import numpy as np
import pytest

import bptt
from bptt import _levels, reference
from bptt._bundles import zero_rows
from support import CURVED

EPS = np.finfo(float).eps
FORMS = ("activation", "preactivation")

#: Newman (1986) for n = 8, s² = 1/8 (mathematics of the article's root: products of independent Gaussian matrices).
NEWMAN = [-0.065088, -0.141569, -0.231755, -0.341569, -0.481755, -0.674902, -0.981755, -1.674902]


def random_network(rng, n, gain, **choices):
    """Weights N(0, gain²/n), one input."""
    return bptt.RNN(gain * rng.standard_normal((n, n)) / np.sqrt(n), rng.standard_normal((n, 1)), **choices)


def volume_growth(rnn, trajectory):
    """The right side of the sum rule: (T-1) log|det W_R| + Σ_t Σ_i log σ'(h_ti), t = 1 .. T-1."""
    h = trajectory.preactivations[:-1].astype(float)
    log_derivative = reference.ACTIVATIONS[rnn.activation].log_derivative(h)
    return len(h) * np.linalg.slogdet(rnn.W_R.astype(float))[1] + log_derivative.sum(), np.abs(log_derivative).sum()


# Known answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("gain", [0.8, 3.0, 10.0])
@pytest.mark.parametrize("activation", CURVED)
def test_sum_rule(level, activation, gain, dtype):
    """Exact at every finite T; at gain 10 tanh saturates beyond what float32 (and 1 - a²) can tell from 1."""
    rng = np.random.default_rng(1)
    n, T = 16, 80
    if activation in ("elu", "leaky_relu", "softplus"):
        gain = min(gain, 3.0)  # the states must not leave float32
    rnn = random_network(rng, n, gain, activation=activation).astype(dtype)
    trajectory = bptt.forward(rnn, rng.standard_normal((T, 1)), rng.standard_normal(n))
    spectrum = bptt.lyapunov_spectrum(rnn, trajectory)
    wanted, size = volume_growth(rnn, trajectory)
    assert int(spectrum.ends[-1]) == T - 1
    assert abs(spectrum.exponents.sum() * (T - 1) - wanted) < 1e-10 * (abs(wanted) + size)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 64])
def test_sum_rule_at_every_size(kernel, n):
    """Kernels in pieces of 1, 7 and all steps; the basis that comes out is orthonormal."""
    rng = np.random.default_rng(n)
    steps = 21
    W, log_d = 2 * rng.standard_normal((n, n)) / np.sqrt(n), -rng.exponential(2, (steps, n))
    wanted = steps * np.linalg.slogdet(W)[1] + log_d.sum()
    logs = []
    for piece in (1, 7, steps):
        Q, log_r = basis(n, n), np.empty(n)
        logs.append(np.zeros(n))
        for i in range(0, steps, piece):
            kernel.grow(W, log_d[i : i + piece], Q, log_r, False, 1)
            logs[-1] += log_r
            np.testing.assert_allclose(Q[:, :n] @ Q[:, :n].T, np.eye(n), rtol=0, atol=1e-13)
        assert abs(logs[-1].sum() - wanted) < 1e-11 * np.abs(log_d).sum()
    for cut in logs[:-1]:
        np.testing.assert_allclose(cut, logs[-1], rtol=0, atol=1e-9 * steps)


def test_newman_spectrum_within_its_standard_errors(level):
    rng = np.random.default_rng(2)
    n, T = 8, 1000 if level == "reference" else 50_000
    jacobians = rng.standard_normal((T, n, n)) / np.sqrt(n)
    spectrum = bptt.lyapunov_spectrum(jacobians=jacobians)
    with mp.workdps(20):  # each step's log r_ii is the logarithm of a chi variable
        deviations = [float(mp.sqrt(mp.psi(1, mp.mpf(n - i) / 2) / 4 / T)) for i in range(n)]
    assert (np.abs(spectrum.exponents - NEWMAN) < 4 * spectrum.standard_errors).all()
    assert (np.abs(spectrum.exponents - NEWMAN) < 4 * np.array(deviations)).all()
    # of 31 (22) degrees of freedom, a standard error is right to about 13 (15) % of itself
    np.testing.assert_allclose(spectrum.standard_errors, deviations, rtol=0.6)


@pytest.mark.parametrize("form", FORMS)
def test_linear_network_has_the_logarithms_of_the_eigenvalues(level, form):
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    rnn = bptt.RNN(basis * [1.5, -1.0, 0.5, 0.2] @ basis.T, np.zeros((4, 1)), activation="identity", form=form)
    trajectory = bptt.forward(rnn, np.zeros((200, 1)))
    exact = np.log([1.5, 1.0, 0.5, 0.2])
    # a symmetric matrix: aligned to rounding after the warm-up
    for k in (1, 2, 3, 4):
        spectrum = bptt.lyapunov_spectrum(rnn, trajectory, k=k, warm_up=100)
        np.testing.assert_allclose(spectrum.exponents, exact[:k], rtol=0, atol=1e-11)
        assert (spectrum.standard_errors < 1e-11).all()


def test_scalar_network(level):
    rnn = bptt.RNN([[-0.7]], [[1.0]])
    trajectory = bptt.forward(rnn, np.random.default_rng(4).standard_normal((50, 1)))
    spectrum = bptt.lyapunov_spectrum(rnn, trajectory)
    wanted, _ = volume_growth(rnn, trajectory)
    np.testing.assert_allclose(spectrum.exponents, [wanted / 49], rtol=20 * EPS)


@pytest.mark.parametrize("gain", [0.5, 0.9])
def test_random_network_below_one_has_the_spectral_radius_of_what_was_drawn(level, gain):
    """Without input the states decay to 0, where D is I: λ_1 = ln ρ(W_R), from both sides like (log cond) / T."""
    rng = np.random.default_rng(5)
    rnn = random_network(rng, 40, gain)
    trajectory = bptt.forward(rnn, np.zeros((2500, 1)), rng.standard_normal(40))
    spectrum = bptt.lyapunov_spectrum(rnn, trajectory, k=2, warm_up=500)
    values, vectors = np.linalg.eig(rnn.W_R)
    bound = np.log(np.linalg.cond(vectors)) / 1999
    assert abs(spectrum.exponents[0] - np.log(np.abs(values).max())) < bound


@pytest.mark.parametrize(("gain", "mean_field"), [(1.5, 0.0652), (2, 0.1547), (3, 0.3102), (5, 0.5324), (10, 0.8564)])
def test_random_network_above_one_approaches_the_mean_field(gain, mean_field):
    """λ_1 = ln(g √⟨φ'²⟩) for n → ∞; networks of n = 1000 lie up to .02 below, which here (n = 400) may be .05."""
    rng = np.random.default_rng(6)
    rnn = random_network(rng, 400, gain)
    trajectory = bptt.forward(rnn, np.zeros((1000, 1)), rng.standard_normal(400))
    spectrum = bptt.lyapunov_spectrum(rnn, trajectory, k=1, warm_up=200)
    error = 3 * spectrum.standard_errors[0]
    assert -0.05 - error < spectrum.exponents[0] - mean_field < 0.02 + error


# Against the reference ------------------------------------------------------------------------------------------------


def basis(n, k, seed=0):
    """A random orthonormal basis as a level takes it."""
    Q = zero_rows(k, n)
    Q[:, :n] = np.linalg.qr(np.random.default_rng(seed).standard_normal((k, n)).T)[0].T
    return Q


def grown(kernel, matrices, log_d, k, threads=1):
    Q, log_r = basis(matrices.shape[-1], k), np.empty(k)
    kernel.grow(matrices, log_d, Q, log_r, False, threads)
    return log_r, Q


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0, 2000.0])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (5, 3), (8, 8), (17, 17), (33, 10), (50, 50)])
def test_levels_agree_whatever_the_spread_and_threads_change_no_bit(kernel, n, k, spread):
    """tanh of |h| up to 1000 has slopes of e^-2000: where σ' itself would be 0, its logarithm is not."""
    rng = np.random.default_rng(n)
    W, log_d = rng.standard_normal((n, n)) / np.sqrt(n), -spread * rng.random((12, n))
    log_r, Q = grown(kernel, W, log_d, k)
    wanted, Q_wanted = grown(_levels.load("reference"), W, log_d, k)
    # steps taken together may lose eps e^12 = 4e-11 each, times the growth of elimination
    np.testing.assert_allclose(log_r, wanted, rtol=1e-13, atol=1e-9)
    if spread <= 3:  # a basis is determined up to signs, as far as rounding does not decide
        np.testing.assert_allclose(np.abs((Q[:, :n] * Q_wanted[:, :n]).sum(axis=1)), 1, rtol=0, atol=1e-7)
    for threads in (2, 3):
        again, Q_again = grown(kernel, W, log_d, k, threads)
        assert (again.tobytes(), Q_again.tobytes()) == (log_r.tobytes(), Q.tobytes())


@pytest.mark.parametrize(("n", "k"), [(3, 3), (16, 16), (33, 12), (72, 72)])
def test_levels_agree_on_given_jacobians(kernel, n, k):
    """With scales from 10^-150 to 10^150: sixteen of them in a product would leave float64."""
    rng = np.random.default_rng(n)
    scale = 10.0 ** rng.uniform(-150, 150, 20)
    jacobians = scale[:, None, None] * rng.standard_normal((20, n, n))
    log_r, _ = grown(kernel, jacobians, None, k)
    np.testing.assert_allclose(log_r, grown(_levels.load("reference"), jacobians, None, k)[0], rtol=0, atol=1e-9)
    for threads in (2, 3):
        assert grown(kernel, jacobians, None, k, threads)[0].tobytes() == log_r.tobytes()


def test_the_exact_product(kernel):
    """log diag R of the whole product, with as many digits as it takes."""
    rng = np.random.default_rng(7)
    n, steps = 4, 6
    W, log_d = rng.standard_normal((n, n)), -60 * rng.random((steps, n))
    log_r, _ = grown(kernel, W, log_d, n)
    with mp.workdps(400):
        P = mp.matrix(basis(n, n)[:, :n].T)
        for log in log_d:
            P = mp.matrix(W) * mp.diag([mp.exp(mp.mpf(v)) for v in log]) * P
        exact = [float(mp.log(abs(mp.qr(P)[1][i, i]))) for i in range(n)]
    np.testing.assert_allclose(log_r, exact, rtol=0, atol=1e-11)


def test_steep_steps_that_undo_each_other(level):
    """diag(1, ε), diag(ε, 1) by turns: ε after each two steps, though each step leaves one direction ε of the other."""
    epsilon = 2.0**-500
    jacobians = np.array([np.diag([1, epsilon] if t % 2 else [epsilon, 1]) for t in range(100)])
    rnn = bptt.RNN(np.eye(2), np.eye(2))
    h = 173.0 * np.array([[1.0, 0.0] if t % 2 else [0.0, 1.0] for t in range(102)])  # tanh'(173) = 4 e^-346
    trajectory = bptt.forward(rnn, h - np.vstack([np.zeros(2), np.tanh(h[:-1])]))
    spectrum = bptt.lyapunov_spectrum(rnn, trajectory)
    wanted, _ = volume_growth(rnn, trajectory)
    np.testing.assert_allclose(spectrum.exponents.sum() * 101, wanted, rtol=1e-12)
    assert np.abs(np.diff(spectrum.exponents)) < 10
    if level != "reference":  # elimination tells small rows from rounding, where a QR of columns cannot
        exponents = bptt.lyapunov_spectrum(jacobians=jacobians).exponents
        np.testing.assert_allclose(exponents, [np.log(epsilon) / 2] * 2, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-160, 1e-20, 1e-3, 1e10, 1e150])
def test_small_rows_and_columns_are_no_singularity(level, scale):
    """diag(1, r, 1) A diag(s, 1, 1), against a QR of the exact product."""
    rng = np.random.default_rng(3)
    n, T = 3, 4
    W = rng.standard_normal((n, n)) * [scale, 1, 1]
    if level != "reference":  # elimination tells small rows from rounding, where a QR of columns cannot
        W[1] *= scale
    rnn = bptt.RNN(W, np.eye(n), activation="identity")
    with mp.workdps(2000):
        P = mp.matrix(basis(n, n)[:, :n].T)
        for _ in range(T):
            P = mp.matrix(W) * P
        exact = [float(mp.log(abs(mp.qr(P)[1][i, i]))) / T for i in range(n)]
    exponents = bptt.lyapunov_spectrum(rnn, bptt.forward(rnn, np.zeros((T + 1, n)))).exponents
    np.testing.assert_allclose(exponents, exact, rtol=0, atol=1e-12 * (1 + np.abs(np.log(scale))))


# Windows, histories, errors -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chaotic():
    rng = np.random.default_rng(9)
    rnn = random_network(rng, 8, 2.5)
    return rnn, bptt.forward(rnn, 0.3 * rng.standard_normal((601, 1)), rng.standard_normal(8))


def log_slopes(trajectory):
    return reference.ACTIVATIONS["tanh"].log_derivative(trajectory.preactivations[:-1].astype(float))


def test_given_jacobians_are_those_of_the_network(level, chaotic):
    rnn, trajectory = chaotic
    jacobians = rnn.W_R * np.exp(log_slopes(trajectory))[:, None, :]
    mine, theirs = bptt.lyapunov_spectrum(rnn, trajectory), bptt.lyapunov_spectrum(jacobians=jacobians)
    # what has been multiplied into one matrix is known to eps times the whole range of the slopes
    np.testing.assert_allclose(mine.exponents, theirs.exponents, rtol=0, atol=1e-7)


def test_local_exponents_and_history_are_means_over_windows(level, chaotic):
    rnn, trajectory = chaotic
    whole = bptt.lyapunov_spectrum(rnn, trajectory, window=600)
    assert whole.local.shape == whole.history.shape == (1, 8)
    assert np.isnan(whole.standard_errors).all()
    for window, count in ((None, 300), (7, 86), (180, 4), (5000, 1)):
        spectrum = bptt.lyapunov_spectrum(rnn, trajectory, window=window)
        lengths = np.diff(spectrum.ends, prepend=0)
        assert len(lengths) == count
        assert lengths.sum() == 600
        assert (lengths[:-1] == (window or 2)).all()
        np.testing.assert_allclose(lengths @ spectrum.local / 600, spectrum.exponents, rtol=0, atol=1e-13)
        np.testing.assert_allclose(
            np.cumsum(lengths[:, None] * spectrum.local, axis=0), spectrum.history * spectrum.ends[:, None], atol=1e-10
        )
        np.testing.assert_array_equal(spectrum.history[-1], spectrum.exponents)
        np.testing.assert_allclose(spectrum.exponents, whole.exponents, rtol=0, atol=1e-9)


def test_the_first_exponents_are_those_of_the_whole_spectrum(kernel, chaotic):
    rnn, trajectory = chaotic
    Q, log_r = basis(8, 8), np.empty(8)
    first, log_r_first = zero_rows(3, 8), np.empty(3)
    first[:] = Q[:3]
    kernel.grow(rnn.W_R, log_slopes(trajectory), Q, log_r, False, 1)
    kernel.grow(rnn.W_R, log_slopes(trajectory), first, log_r_first, False, 1)
    np.testing.assert_allclose(log_r_first, log_r[:3], rtol=0, atol=1e-8)


@pytest.mark.parametrize("k", [1, 20, 50])
def test_the_largest_is_that_of_a_vector_whatever_is_lost_beside_it(level, k):
    """A sparse singular reservoir far in saturation: of most other directions float64 keeps no digit."""
    rng = np.random.default_rng(5)
    n, T = 50, 300
    W = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.05) * 6.3
    rnn = bptt.RNN(W, 10 * rng.standard_normal((n, 3)))
    trajectory = bptt.forward(rnn, rng.standard_normal((T, 3)))
    moduli = np.abs(trajectory.preactivations[:-1])
    v = np.linalg.qr(np.random.default_rng(0).standard_normal((k, n)).T)[0][:, 0]
    growth = 0.0
    for log_d in 2 * (np.log(2) - moduli - np.log1p(np.exp(-2 * moduli))):
        logs = log_d + np.log(np.abs(v), out=np.full(n, -np.inf), where=v != 0)
        v = W @ (np.sign(v) * np.exp(logs - logs.max()))
        growth += logs.max() + np.log(np.linalg.norm(v))
        v /= np.linalg.norm(v)
    for window in (None, 7, T):
        found = bptt.lyapunov_spectrum(rnn, trajectory, k=k, window=window).exponents[0]
        assert found == pytest.approx(growth / (T - 1), abs=1e-9)


def test_the_warm_up_is_not_counted(level, chaotic):
    rnn, trajectory = chaotic
    late = bptt.lyapunov_spectrum(rnn, trajectory, warm_up=240)
    whole = bptt.lyapunov_spectrum(rnn, trajectory, window=240)
    assert int(late.ends[-1]) == 360
    np.testing.assert_allclose(late.exponents * 360, (whole.exponents - 0.4 * whole.local[0]) * 600, atol=1e-9)


def test_the_start_is_random_but_repeatable(chaotic):
    rnn, trajectory = chaotic
    same = [bptt.lyapunov_spectrum(rnn, trajectory, rng=rng).exponents for rng in (1, np.random.default_rng(1))]
    np.testing.assert_array_equal(*same)
    other = bptt.lyapunov_spectrum(rnn, trajectory, rng=2).exponents
    assert (other != same[0]).any()
    np.testing.assert_allclose(other.sum(), same[0].sum(), rtol=1e-10)  # the sum rule does not care


def test_forms_agree(level):
    rng = np.random.default_rng(10)
    rnn = random_network(rng, 9, 1.5)
    x, h_0 = rng.standard_normal((60, 1)), rng.standard_normal(9)
    one = rnn.replace(form="preactivation")
    mine = bptt.lyapunov_spectrum(rnn, bptt.forward(rnn, x, np.tanh(h_0)))
    theirs = bptt.lyapunov_spectrum(one, bptt.forward(one, x, h_0))
    np.testing.assert_allclose(mine.exponents, theirs.exponents, rtol=0, atol=1e-9)


def test_standard_errors_are_what_the_exponents_scatter_by():
    """Independent factors: the exponents of 300 runs, in units of their own standard errors, scatter by 1."""
    rng = np.random.default_rng(11)
    n, T, runs = 3, 400, 300
    exact = [(mp.log(2 / mp.mpf(n)) + mp.digamma(mp.mpf(n - i) / 2)) / 2 for i in range(n)]
    z = []
    for _ in range(runs):
        spectrum = bptt.lyapunov_spectrum(jacobians=rng.standard_normal((T, n, n)) / np.sqrt(n))
        z.append((spectrum.exponents - np.array(exact, float)) / spectrum.standard_errors)
    # Student's t of 19 degrees of freedom has a deviation of 1.06; of 300 samples it is known to 4 %
    np.testing.assert_allclose(np.std(z, axis=0), 1.06, rtol=0.15)


def test_standard_errors_allow_for_correlations_in_time():
    """Scalar factors whose logarithms are an AR(1) process: their mean scatters √((1+φ)/(1-φ)) = 4.4 times as much."""
    rng = np.random.default_rng(12)
    phi, T = 0.9, 20_000
    errors = []
    for _ in range(20):
        log = np.zeros(T)
        noise = rng.standard_normal(T)
        for t in range(1, T):
            log[t] = phi * log[t - 1] + noise[t]
        errors.append(bptt.lyapunov_spectrum(jacobians=np.exp(log)[:, None, None]).standard_errors[0])
    np.testing.assert_allclose(np.mean(errors), 1 / (1 - phi) / np.sqrt(T), rtol=0.1)


def test_results_speak_for_themselves(chaotic):
    rnn, trajectory = chaotic
    spectrum = bptt.lyapunov_spectrum(rnn, trajectory, k=3)
    assert repr(spectrum).startswith("Lyapunov(k=3, steps=600, largest 0.")
    with pytest.raises(AttributeError):
        spectrum.exponents = 0


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rnn": None}, TypeError, "rnn must be a bptt.RNN, or jacobians= given in its place; got NoneType"),
        ({"trajectory": None}, TypeError, "trajectory must be a bptt.Trajectory"),
        ({"jacobians": np.eye(2)[None]}, TypeError, "jacobians must be given alone"),
        ({"k": 0}, ValueError, "k must be an integer >= 1; got 0"),
        ({"k": 5}, ValueError, r"k must be in 1..n with n = 4; got 5"),
        ({"k": 2.0}, TypeError, "k must be an integer; got float"),
        ({"warm_up": -1}, ValueError, "warm_up must be an integer >= 0; got -1"),
        ({"warm_up": 9}, ValueError, "warm_up must leave a step that counts, of the 9 there are; got 9"),
        ({"window": 0}, ValueError, "window must be an integer >= 1; got 0"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
    ],
)
def test_bad_arguments(changes, error, message):
    rnn = bptt.RNN.random(2, 4, None)
    arguments = {"rnn": rnn, "trajectory": bptt.forward(rnn, np.zeros((10, 2))), **changes}
    with pytest.raises(error, match=message):
        bptt.lyapunov_spectrum(**arguments)


def test_bad_trajectories():
    rnn = bptt.RNN.random(2, 4, None)
    with pytest.raises(ValueError, match=r"trajectory must be of one sequence, .* B = 3"):
        bptt.lyapunov_spectrum(rnn, bptt.forward(rnn, np.zeros((10, 3, 2))))
    for T in (0, 1):
        with pytest.raises(ValueError, match=f"trajectory must have T >= 2 steps; got T = {T}"):
            bptt.lyapunov_spectrum(rnn, bptt.forward(rnn, np.zeros((T, 2))))
    x = np.zeros((10, 2))
    x[6, 1] = np.nan
    trajectory = bptt.forward(rnn, x, nonfinite="ignore")
    with pytest.raises(FloatingPointError, match="the trajectory must be finite; its state at t = 7 is not"):
        bptt.lyapunov_spectrum(rnn, trajectory)


@pytest.mark.parametrize(
    ("jacobians", "error", "message"),
    [
        (np.zeros((5, 2, 3)), ValueError, r"jacobians must have shape \(T, n, n\) with n >= 1; got \(5, 2, 3\)"),
        (np.zeros((2, 2)), ValueError, r"jacobians must have shape"),
        (np.zeros((5, 0, 0)), ValueError, r"jacobians must have shape"),
        (np.zeros((0, 2, 2)), ValueError, r"jacobians must have shape \(T, n, n\) with T >= 1; got T = 0"),
        (np.zeros((5, 2, 2), complex), TypeError, "jacobians must hold real numbers"),
        (np.full((5, 2, 2), np.nan), ValueError, r"jacobians must be finite; jacobians\[0\] is not"),
        (np.array([1.0, 1.0, np.inf])[:, None, None], ValueError, r"jacobians\[2\] is not"),
    ],
)
def test_bad_jacobians(jacobians, error, message):
    with pytest.raises(error, match=message):
        bptt.lyapunov_spectrum(jacobians=jacobians)
