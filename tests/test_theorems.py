"""The article's statements: the errata with their numbers, the verdicts' logic, and what a caller may do wrong."""

import copy
import json
import pickle

import numpy as np
import pytest
from typer.testing import CliRunner

import bptt
from bptt import theorems
from bptt.character_model import CharacterModel
from bptt.cli import app
from bptt.text import Vocabulary
from bptt.theorems import Claim, Truth
from bptt.theorems.enclosure import Enclosure, less, singular_values, spectrum
from bptt.theorems.trend import diverges, vanishes

EPS = np.finfo(float).eps
LINEAR = {"activation": "identity", "form": "preactivation", "output": "linear"}


def article_network(seed=0, n=4, **choices):
    """n = 4 hidden units and T = 6 steps, the case in which the article's formulas are compared."""
    rng = np.random.default_rng(seed)
    rnn = bptt.RNN(
        rng.standard_normal((n, n)) / np.sqrt(n),
        rng.standard_normal((n, 3)),
        rng.standard_normal((2, n)),
        b_R=rng.standard_normal(n),
        form="preactivation",
        **choices,
    )
    return rnn, rng.standard_normal((6, 3)), rng.integers(2, size=6), rng.standard_normal(n)


def judged(name, *arguments, **options):
    return theorems.statement(name).check(*arguments, **options)


# What is printed, refuted ---------------------------------------------------------------------------------------------


def test_the_statements_are_the_article_s():
    names = (
        "Lemma 1, Lemma 2, Theorem 1, Equation 3, Theorem 2, Section 4.2, Section 4.3, Theorem 3, Lemma 3, Theorem 4"
    )
    assert [statement.name for statement in theorems.STATEMENTS] == names.split(", ")
    right = {statement.name for statement in theorems.STATEMENTS if not statement.counterexamples}
    assert right == {"Lemma 1", "Section 4.3"}


@pytest.mark.parametrize("statement", theorems.STATEMENTS, ids=lambda statement: statement.name)
def test_counterexamples_refute_what_is_printed_and_not_what_is_true(statement):
    verdicts = statement.refutations()
    assert len(verdicts) == len(statement.counterexamples)
    for verdict in verdicts:
        assert (verdict.hypothesis, verdict.conclusion) == (Truth.HOLDS, Truth.FAILS)
        assert verdict.printed.truth is Truth.FAILS
        assert verdict.corrected.conclusion is not Truth.FAILS
        assert verdict.corrected.stands


def test_counterexamples_are_computed_and_not_stored():
    """A counterexample made harmless is none: the verdict follows the network."""
    sign = theorems.statement("Theorem 2").counterexamples[0]
    verdict = judged("Theorem 2", sign.rnn.replace(W_R=-sign.rnn.W_R / 6), sign.x, sign.y, initial=sign.initial)
    assert verdict.printed.truth is Truth.HOLDS
    nilpotent = theorems.statement("Theorem 4").counterexamples[0]
    W_R = nilpotent.rnn.W_R + nilpotent.rnn.W_R.T
    verdict = judged("Theorem 4", nilpotent.rnn.replace(W_R=W_R), nilpotent.x, nilpotent.y, initial=nilpotent.initial)
    assert verdict.printed.truth is Truth.HOLDS
    assert verdict.corrected.truth is Truth.HOLDS


# Section 3: the derivative --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("activation", ["tanh", "logistic", "softplus", "identity"])
def test_theorem_1_with_hv_is_off_and_with_kronecker_is_right(seed, activation):
    """Of the size of √(n-1) = 1.73, which the error of a single term is exactly."""
    rnn, x, _, initial = article_network(seed, activation=activation)
    theorem = theorems.theorem_1(rnn, x, initial=initial)
    assert 1.2 < theorem.printed_error < 2.5
    assert theorem.corrected_error < 1e-9  # of central differences: step² and eps / step
    first = theorems.theorem_1(rnn, x, initial=initial, step=1)
    assert abs(first.printed_error - np.sqrt(3)) < 1e-9
    exact = bptt.state_jacobian(rnn, x, initial=initial).reshape(4, 16)
    assert np.abs(theorem.corrected - exact).max() <= 50 * EPS * np.abs(exact).max()


def test_theorem_1_term_by_term():
    rnn, x, _, initial = article_network(activation="tanh")
    theorem = theorems.theorem_1(rnn, x, initial=initial)
    run = bptt.forward(rnn, x, initial)
    assert theorem.t == 6
    np.testing.assert_array_equal(theorem.activations, run.activations[:6])
    slopes = 1 / np.cosh(run.preactivations) ** 2
    P = np.eye(4)
    for k in range(6, 0, -1):  # later factors on the left: each earlier one comes in from the right
        np.testing.assert_allclose(theorem.chains[k - 1], P, rtol=0, atol=20 * EPS * np.abs(P).max())
        np.testing.assert_array_equal(theorem.kronecker[k - 1], np.kron(np.eye(4), run.activations[k - 1]))
        assert (theorem.HV[k - 1].reshape(4, 4, 4) == run.activations[k - 1]).all()
        np.testing.assert_allclose(theorem.terms[k - 1], np.kron(P, run.activations[k - 1]), atol=20 * EPS)
        if k > 1:
            P = P @ (rnn.W_R * slopes[k - 2])
    np.testing.assert_allclose(theorem.printed, (theorem.chains @ theorem.HV).sum(axis=0))
    middle = theorems.theorem_1(rnn, x, initial=initial, step=-3)
    assert (middle.t, len(middle.terms)) == (4, 4)
    assert middle.corrected_error < 1e-9


def test_the_order_of_the_product_matters_unless_the_factors_commute():
    rnn, x, y, initial = article_network()
    name = "with I ⊗ aᵀ, factors in ascending order"
    assert judged("Theorem 1", rnn, x, y, initial=initial).evidence[name] > 0.1
    assert judged("Theorem 1", rnn.replace(activation="identity"), x, y, initial=initial).evidence[name] < 100 * EPS


@pytest.mark.parametrize("name", ["Lemma 2", "Theorem 1"])
def test_hv_is_right_for_one_unit(name):
    rnn, x, y, initial = article_network(n=1)
    assert judged(name, rnn, x, y, initial=initial).printed.truth is Truth.HOLDS


def test_lemma_1_holds_and_its_proof_has_the_wrong_last_factor():
    rnn, x, y, initial = article_network()
    verdict = judged("Lemma 1", rnn, x, y, initial=initial)
    assert verdict.printed.truth is Truth.HOLDS
    assert verdict.evidence["relative error"] < 10 * EPS
    assert verdict.evidence["with the proof's ∂h_{t-1}/∂W_R"] > 0.1


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_remark_after_lemma_1(n):
    """h_2 = W_R² h_0: printed are 2 W_R h_0 and h_1, which are the derivatives along V = I, and whole for n = 1."""
    rng = np.random.default_rng(n)
    W_R, h_0 = rng.standard_normal((n, n)), rng.standard_normal(n)
    rnn = bptt.RNN(W_R, np.zeros((n, 1)), **LINEAR)
    J = bptt.state_jacobian(rnn, np.zeros((2, 1)), initial=h_0).reshape(n, n * n)
    true = np.kron(np.eye(n), W_R @ h_0) + W_R @ np.kron(np.eye(n), h_0)
    np.testing.assert_allclose(J, true, atol=20 * EPS * np.abs(true).max())
    np.testing.assert_allclose(J @ np.eye(n).ravel(), 2 * W_R @ h_0, atol=100 * EPS * np.abs(true).max())
    assert (J.size == n) == (n == 1)


def test_the_remark_after_theorem_1():
    """n = 1 and tanh: no polynomial in w, as it takes two values and stays bounded."""

    def derivative(w):
        scalar = bptt.RNN([[w]], [[0.0]], form="preactivation")
        return bptt.state_jacobian(scalar, np.zeros((3, 1)), initial=[1.0]).item()

    assert derivative(0.0) == 0.0
    assert derivative(1.0) > 1.3
    assert [derivative(w) for w in (1e2, 1e3, 1e6)] == [1.0] * 3


@pytest.mark.parametrize("t", [1, 2, 7])
def test_equation_3_is_t_times_too_large(t):
    rnn, x, y, initial = article_network()
    x, y = np.resize(x, (t, 3)), np.resize(y, t)
    verdict = judged("Equation 3", rnn, x, y, initial=initial)
    assert abs(verdict.evidence["printed / true"] - t) < 100 * EPS * t
    assert verdict.printed.truth is Truth.of(t == 1)
    assert verdict.corrected.truth is Truth.HOLDS


# Section 4: vanishing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_theorem_2_sign(n):
    """W_R = -3I: λ_1 = -3 is below 1/γ = 1, and ‖W_R^10‖ = 59049."""
    rnn = bptt.RNN(-3 * np.eye(n), np.zeros((n, 1)), np.ones((1, n)), **LINEAR)
    run = bptt.forward(rnn, np.zeros((11, 1)), np.ones(n))
    np.testing.assert_array_equal(bptt.product_chain(rnn, run, 1, 11).to_array(), 59049 * np.eye(n))
    verdict = judged("Theorem 2", rnn, np.zeros((11, 1)), np.zeros((11, 1)), initial=np.ones(n))
    assert verdict.evidence["λ_1 γ"] == -3
    assert verdict.evidence["T - k_0"] == 10
    assert abs(verdict.evidence["ln ‖P(k_0,T)‖₂"] - np.log(59049)) < 1e-12
    assert (verdict.hypothesis, verdict.conclusion) == (Truth.HOLDS, Truth.FAILS)


def test_theorem_2_modulus():
    """ρ(W_R) = 0, and ‖P‖₂ = √2 · 1.5^m after m factors, for ever."""
    verdict = theorems.statement("Theorem 2").refutations()[1]
    example = theorems.statement("Theorem 2").counterexamples[1]
    np.testing.assert_array_equal(example.x, np.tile([-0.5, -2.5], (50, 1)))
    np.testing.assert_array_equal(example.rnn.W_R @ example.rnn.W_R, 0)
    run = bptt.forward(example.rnn, example.x, example.initial)
    np.testing.assert_array_equal(run.states, np.tile([1.0, -1.0], (51, 1)))
    m = np.arange(1, 50)
    norms = bptt.chain_norms(example.rnn, run, stops=[50], max_lag=49)[0, 1:]
    np.testing.assert_allclose(norms, np.log(2) / 2 + m * np.log(1.5), atol=2e-12)  # what chain_norms promises
    assert abs(verdict.evidence["ln ‖P(k_0,T)‖₂"] - (np.log(2) / 2 + 49 * np.log(1.5))) < 1e-10
    assert verdict.evidence["ρ(W_R) γ"] < 1e-7


def test_theorem_2_corrected_sees_through_a_triangle():
    """‖W_R‖₂ = 10, ρ = 1/2: a scaling proves what the norm cannot."""
    rnn = bptt.RNN([[0.5, 10.0], [0.0, 0.5]], np.eye(2), np.eye(2), output="linear")
    verdict = judged("Theorem 2", rnn, np.ones((50, 2)), np.zeros((50, 2)))
    assert verdict.evidence["‖W_R‖₂ γ"] > 10
    assert verdict.evidence["η"] < 1 < verdict.evidence["cond(S)"]
    assert verdict.corrected.truth is Truth.HOLDS


def test_section_4_2_is_the_reverse():
    """h held at 1 by h_t = h_{t-1}/2 + 1/2: ‖F(k,20)‖ = 2^(k-20)."""
    verdict = theorems.statement("Section 4.2").refutations()[0]
    assert abs(verdict.evidence["ln Σ_{k=1,2,3} ‖F(k,T)‖"] - np.log(7 * 2.0**-19)) < 1e-11
    assert abs(verdict.evidence["ln Σ_{k=T-2..T} ‖F(k,T)‖"] - np.log(1.75)) < 1e-11


def test_section_4_2_says_the_right_thing_where_only_old_activations_exist():
    """An input in the first step and no other, no bias: then the old steps are all there is."""
    rnn = bptt.RNN([[0.5]], [[1.0]], [[1.0]], activation="relu", output="linear", b_R=[-0.1])
    x = np.zeros((20, 1))
    x[0] = 0.4
    verdict = judged("Section 4.2", rnn, x, np.ones((20, 1)))
    assert verdict.corrected.truth is Truth.HOLDS
    assert verdict.printed.truth is Truth.FAILS  # 0 > 0 is not so: relu has forgotten the old steps too


@pytest.mark.parametrize(("gain", "positive"), [(0.5, False), (3.0, True)])
def test_section_4_3_is_answered_by_the_lyapunov_spectrum(gain, positive):
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(1, 30, 1, init="normal", gain=gain, output="linear", rng=rng)
    arguments = rnn, np.zeros((400, 1)), np.zeros((400, 1))
    verdict = judged("Section 4.3", *arguments, initial=rng.standard_normal(30))
    assert (verdict.evidence["λ_1"] > 3 * verdict.evidence["its standard error"]) == positive
    assert (verdict.evidence["λ_1"] < -3 * verdict.evidence["its standard error"]) != positive
    assert abs(verdict.evidence["λ_1"] - verdict.evidence["ln ‖P(1,T)‖₂ / (T-1)"]) < 0.03  # they differ by O(1/T)
    assert abs(verdict.evidence["Σ λ_i"] - verdict.evidence["ln |det W_R| + mean Σ ln |σ'|"]) < 1e-10
    assert verdict.printed.truth is Truth.NOT_APPLICABLE
    assert verdict.corrected.truth is Truth.HOLDS


# Section 5: exploding -------------------------------------------------------------------------------------------------


def linear(W_R):
    return bptt.RNN(W_R, np.zeros((len(W_R), 1)), activation="identity")


@pytest.mark.parametrize("W_R", [[[2.0, 1.0], [0.0, 0.5]], [[-3.0, 1.0], [0.0, 2.0]], [[0.5, 0.0], [4.0, 1.5]]])
def test_theorem_3_real(W_R):
    theorem = theorems.theorem_3(linear(W_R), [1.0, 0.7], steps=200)
    largest = max(np.diag(W_R), key=abs)
    assert theorem.eigenvalue == pytest.approx(largest, abs=10 * EPS)
    assert theorem.measured_rate == pytest.approx(np.log(abs(largest)), abs=1e-13)
    left = np.array([W_R[0][0] - W_R[1][1], W_R[0][1]]) if not W_R[1][0] else np.array([W_R[1][0], 1.0])
    assert np.abs(np.cross([*left, 0], [*theorem.directions[-1], 0])).max() < 1e-13
    assert theorem.sines[-1] < 1e-13
    assert (theorem.deviations <= theorem.remainders + theorem.rounding).all()
    assert theorem.remainders[0] > 1e-3 > theorem.remainders[-1]


@pytest.mark.parametrize("angle", [0.3, 1.0, 2.5])
def test_theorem_3_complex_pair(angle):
    """1.1 e^{±i angle}: the rate is ln 1.1, and the vector turns by the angle in the plane of its left eigenvectors."""
    c, s = 1.1 * np.cos(angle), 1.1 * np.sin(angle)
    W_R = np.array([[c, -s, 2.0], [s, c, -1.0], [0.0, 0.0, 0.5]])
    g = np.array([1.0, 0.0, 1.0])
    theorem = theorems.theorem_3(linear(W_R), g, steps=100)
    assert theorem.mode == (0, 1)
    assert abs(theorem.measured_rate - np.log(1.1)) < 1e-13
    assert theorem.sines[-1] < 1e-13
    # a left eigenvector by hand, for 1.1 e^{i angle}: (1, i, z)
    z = (2 - 1j) / (1.1 * np.exp(1j * angle) - 0.5)
    plane = np.linalg.qr(np.array([[1, 0, z.real], [0, 1, z.imag]]).T)[0]
    v = theorem.directions[-1]
    assert np.linalg.norm(v - plane @ (plane.T @ v)) < 1e-12
    for m, log_norm, direction in zip(theorem.lags, theorem.log_norms, theorem.directions, strict=True):
        np.testing.assert_allclose(np.exp(log_norm) * direction, g @ np.linalg.matrix_power(W_R, m), rtol=1e-11)
    assert (theorem.deviations <= theorem.remainders + theorem.rounding).all()


def test_theorem_3_later_modes_and_none():
    """c_1 = 0 exactly: the second mode leads. A defective W_R has no modes, and g = 0 none that leads."""
    theorem = theorems.theorem_3(linear(np.diag([3.0, 2.0, 0.5])), [0.0, 1.0, 1.0])
    assert theorem.mode == (1,)
    assert abs(theorem.measured_rate - np.log(2)) < 1e-13
    for W_R, g in ((np.array([[2.0, 1.0], [0.0, 2.0]]), [1.0, 1.0]), (np.eye(2), [0.0, 0.0])):
        theorem = theorems.theorem_3(linear(W_R), g)
        assert theorem.mode == ()
        assert np.isnan(theorem.measured_rate)
        assert str(theorem) == "Theorem 3: no mode leads"


def test_theorem_3_the_total_can_cancel():
    """h_0 = 1, h_1 = -λ, then 0: each contribution grows like λ^(t-1), and their sum is exactly 0 for t ≥ 2."""
    verdict = theorems.statement("Theorem 3").refutations()[0]
    assert verdict.evidence["‖Σ_k λ_j^{t-k} a_{k-1}‖ / Σ_k ‖λ_j^{t-k} a_{k-1}‖"] == 0
    assert verdict.evidence["ln ‖∂E_t/∂W_R‖, last t"] == -np.inf
    assert abs(verdict.evidence["measured rate"] - np.log(2)) < 1e-14
    assert verdict.corrected.truth is Truth.HOLDS


def test_theorem_3_right_eigenvectors_are_right_for_a_symmetric_matrix():
    rnn = bptt.RNN([[1.5, 0.5], [0.5, 1.0]], np.zeros((2, 1)), [[1.0, 0.3]], **LINEAR)
    verdict = judged("Theorem 3", rnn, np.zeros((60, 1)), np.ones((60, 1)), initial=[1.0, 0.0])
    assert abs(verdict.evidence["cosine of right and left q_j"] - 1) < 10 * EPS
    assert verdict.printed.truth is Truth.HOLDS
    assert verdict.corrected.truth is Truth.HOLDS
    turned = theorems.statement("Theorem 3").refutations()[1]
    assert abs(turned.evidence["cosine of right and left q_j"] - 3 / np.sqrt(13)) < 10 * EPS


def test_lemma_3():
    evidence = theorems.statement("Lemma 3").refutations()[0].evidence
    golden = (np.sqrt(5) - 1) / 2
    assert evidence["λ*(W_R)"] == 1
    assert abs(evidence["σ_min(W_R)"] - golden) < 10 * EPS
    assert abs(evidence["least ‖AB‖ / ‖B‖, A = W_R"] - golden) < 10 * EPS
    rnn, x, y, _ = article_network()
    diagonal = rnn.replace(W_R=np.diag([3.0, -0.5, 1.0, 2.0]))
    assert judged("Lemma 3", diagonal, x, y).printed.truth is Truth.HOLDS


def test_theorem_4():
    """W_R = [[0, 3], [0, 0]], σ = Id: ‖W_R‖ = 3, its eigenvalues and its square are 0."""
    verdict = theorems.statement("Theorem 4").refutations()[0]
    assert verdict.evidence["‖W_R‖₂ min |σ'|"] == 3
    assert verdict.evidence["σ_min(W_R) min |σ'|"] == 0
    example = theorems.statement("Theorem 4").counterexamples[0]
    np.testing.assert_array_equal(np.linalg.eigvals(example.rnn.W_R), 0)  # the 2-norm is no eigenvalue
    run = bptt.forward(example.rnn, example.x, example.initial)
    norms = bptt.chain_norms(example.rnn, run, stops=[20], max_lag=19)[0]
    np.testing.assert_array_equal(norms[2:], -np.inf)


def test_theorem_4_corrected_explodes_and_the_total_cancels():
    cancelling = theorems.statement("Theorem 3").counterexamples[0]
    verdict = judged("Theorem 4", cancelling.rnn, cancelling.x, cancelling.y, initial=cancelling.initial)
    assert verdict.evidence["σ_min(W_R) min |σ'|"] == 2
    assert verdict.corrected.truth is Truth.HOLDS
    assert verdict.printed.truth is Truth.FAILS


def test_theorem_4_corrected_along_a_saturating_trajectory():
    """Any trajectory is that of some inputs: W_R four times an orthogonal matrix, h between -1 and 1."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(4, 4, 1, gain=4.0, rng=rng, output="linear", form="preactivation").replace(W_I=np.eye(4))
    h = rng.uniform(-1, 1, (21, 4))
    x = h[1:] - np.tanh(h[:-1]) @ rnn.W_R.T
    verdict = judged("Theorem 4", rnn, x, np.zeros((20, 1)), initial=h[0])
    least = 4 * (1 - np.tanh(np.abs(h[1:-1]).max()) ** 2)
    assert abs(verdict.evidence["σ_min(W_R) min |σ'|"] - least) < 1e-3  # rounding too grows 3-fold a step
    assert least > 1
    assert verdict.corrected.truth is Truth.HOLDS


# Logic and rounding ---------------------------------------------------------------------------------------------------

H, F, U, N = Truth.HOLDS, Truth.FAILS, Truth.UNDECIDED, Truth.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("hypothesis", "conclusion", "truth", "stands"),
    [
        (H, H, H, True),
        (H, F, F, False),
        (H, U, U, False),
        (U, H, U, True),
        (U, F, U, True),
        (F, F, N, True),
        (N, N, N, True),
    ],
)
def test_what_a_network_says_of_a_claim(hypothesis, conclusion, truth, stands):
    claim = Claim(hypothesis, conclusion)
    assert (claim.truth, claim.stands) == (truth, stands)


def test_all_of_several():
    assert Truth.all(H, H) is H
    assert Truth.all(H, U, F) is F
    assert Truth.all(H, U) is U


def test_inequalities_within_rounding_are_undecided():
    assert less(Enclosure(1.0, 0.1), Enclosure(1.2)) is H
    assert less(Enclosure(1.0, 0.3), Enclosure(1.2)) is U
    assert less(Enclosure(1.5, 0.3), Enclosure(1.2)) is F
    rnn, x, y, _ = article_network()
    orthogonal = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    for factor, wanted in ((1, U), (1 + 4 * EPS, U), (1 - 4 * EPS, U), (1 + 1e-12, F), (1 - 1e-12, H)):
        verdict = judged("Theorem 2", rnn.replace(W_R=factor * orthogonal), x, y)
        assert verdict.corrected.hypothesis is wanted, factor
        expands = judged("Theorem 4", rnn.replace(W_R=factor * orthogonal, activation="identity"), x, y).corrected
        assert expands.hypothesis is {H: F, F: H, U: U}[wanted], factor


@pytest.mark.parametrize("n", [2, 3, 6])
def test_enclosures_contain_what_they_enclose(n):
    """Known spectra, hidden by a change of basis that is exact up to rounding."""
    rng = np.random.default_rng(n)
    for _ in range(100):
        U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
        values = np.sort(10.0 ** rng.uniform(-12, 2, n))[::-1]
        largest, smallest = singular_values(U * values @ V)
        assert abs(largest.value - values[0]) <= largest.error
        assert abs(smallest.value - values[-1]) <= smallest.error
        jordan = rng.uniform(-2, 2) * np.eye(n) + np.eye(n, k=1)  # an orthogonal change of basis adds n eps at most
        found = spectrum(U @ jordan @ U.T)
        assert (np.abs(found.eigenvalues - jordan[0, 0]) <= found.error).all()
        assert found.error < 2  # of a Jordan block, eps^(1/n) is all that can be had
        diagonal = np.diag(rng.uniform(-2, 2, n))
        found = spectrum(U @ diagonal @ U.T)
        wanted = sorted(np.diag(diagonal), key=abs, reverse=True)
        assert np.abs(found.eigenvalues - wanted).max() <= found.error < 1e-12


def test_limits_are_read_with_a_clear_margin():
    steps = np.arange(9.0)
    assert (vanishes(-steps), diverges(-steps)) == (H, F)
    assert (vanishes(steps), diverges(steps)) == (F, H)
    assert (vanishes(0 * steps), diverges(0 * steps)) == (F, F)
    assert (vanishes(-0.1 * steps), diverges(0.1 * steps)) == (U, U)
    assert vanishes(np.where(steps < 4, 0, -np.inf)) is H
    assert (vanishes(steps[:8]), diverges(steps[:8])) == (U, U)
    assert (vanishes(np.where(steps < 8, steps, np.nan)), diverges(np.full(9, np.inf))) == (U, U)


# Callers --------------------------------------------------------------------------------------------------------------


def test_check_is_the_statements_in_order():
    rnn, x, y, initial = article_network()
    verdicts = theorems.check(rnn, x, y, initial=initial)
    assert [verdict.statement for verdict in verdicts] == list(theorems.STATEMENTS)
    for verdict in verdicts:
        alone = verdict.statement.check(rnn, x, y, initial=initial)
        assert alone.evidence == pytest.approx(verdict.evidence, nan_ok=True)
        assert (alone.printed, alone.corrected) == (verdict.printed, verdict.corrected)


def test_networks_of_every_kind_can_be_checked():
    """float32, tokens, both forms, a target of the last step only, a given loss, one step."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(5, 6, 5, dtype="float32", gain=0.9, rng=rng)
    for arguments, options in (
        ((rnn, rng.integers(5, size=30), rng.integers(5, size=30)), {}),
        ((rnn, rng.integers(5, size=30), 3), {}),
        ((rnn, rng.standard_normal((30, 5)), rng.standard_normal((30, 5))), {"loss": "squared_error"}),
        ((rnn.replace(form="preactivation", readout="preactivation"), rng.integers(5, size=1), [2]), {}),
    ):
        assert all(verdict.corrected.stands for verdict in theorems.check(*arguments, **options))


def test_a_long_and_wide_network_can_be_checked():
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(8, 64, 4, gain=1.2, init="normal", rng=rng)
    verdicts = theorems.check(rnn, rng.standard_normal((1000, 8)), rng.integers(4, size=1000))
    assert all(verdict.corrected.stands for verdict in verdicts)


def test_verdicts_travel():
    rnn, x, y, _ = article_network()
    verdicts = theorems.check(rnn, x, y)
    for again in (pickle.loads(pickle.dumps(verdicts)), copy.deepcopy(verdicts)):
        assert [str(verdict) for verdict in again] == [str(verdict) for verdict in verdicts]


def test_wrong_arguments():
    rnn, x, y, _ = article_network()
    with pytest.raises(TypeError, match="rnn must be a bptt.RNN; got int"):
        theorems.check(3, x, y)
    with pytest.raises(ValueError, match=r"x must be one sequence of T >= 1 steps, .* got \(6, 1, 3\)"):
        theorems.check(rnn, x[:, None], y[:, None])
    with pytest.raises(ValueError, match=r"x must be one sequence of T >= 1 steps, .* got \(0, 3\)"):
        theorems.check(rnn, x[:0], y[:0])
    with pytest.raises(ValueError, match="readout"):
        theorems.check(rnn.replace(W_O=None), x, y)
    with pytest.raises(ValueError, match=r"y must have shape \(T,\)"):
        theorems.check(rnn, x, y[:3])
    with pytest.raises(FloatingPointError):
        theorems.check(rnn, np.where(np.arange(6)[:, None] == 2, np.nan, x), y)
    with pytest.raises(ValueError, match="name must be one of Lemma 1, .* got 'Theorem 5'"):
        theorems.statement("Theorem 5")

    with pytest.raises(TypeError, match="rnn must be a bptt.RNN"):
        theorems.theorem_1(None, x)
    with pytest.raises(ValueError, match="one sequence"):
        theorems.theorem_1(rnn, x[:, None])
    for step in (0, 7, -7):
        with pytest.raises(ValueError, match=f"step must be .*; got {step}"):
            theorems.theorem_1(rnn, x, step=step)
    with pytest.raises(TypeError, match="step must be an integer"):
        theorems.theorem_1(rnn, x, step=1.5)

    with pytest.raises(ValueError, match="activation='identity'"):
        theorems.theorem_3(rnn, np.ones(4))
    with pytest.raises(ValueError, match=r"g must have shape \(n,\) with n = 4; got \(3,\)"):
        theorems.theorem_3(rnn.replace(activation="identity"), np.ones(3))
    with pytest.raises(ValueError, match="steps must be an integer >= 1; got 0"):
        theorems.theorem_3(rnn.replace(activation="identity"), np.ones(4), steps=0)


# The command ----------------------------------------------------------------------------------------------------------


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["theorems", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_alone():
    output = run()
    for statement in theorems.STATEMENTS:
        assert output.count(statement.name) >= max(1, len(statement.counterexamples))
    assert output.count("fails") == sum(len(statement.counterexamples) for statement in theorems.STATEMENTS)


def test_the_command_in_json(tmp_path):
    facts = json.loads(run("--json"))
    assert facts["stands"] is True
    answers = {fact["name"]: fact for fact in facts["statements"]}
    assert answers["Theorem 4"]["printed"] == {"hypothesis": "holds", "conclusion": "fails", "truth": "fails"}
    assert answers["Theorem 4"]["evidence"]["‖W_R‖₂ min |σ'|"] == 3
    assert answers["Theorem 4"]["evidence"]["ln ‖∂E_t/∂W_R‖, last t"] is None  # -inf, which JSON lacks


def test_the_command_on_models(tmp_path):
    rnn, x, y, initial = article_network()
    rnn.save(tmp_path / "any.safetensors")
    wanted = {verdict.statement.name: verdict for verdict in theorems.check(rnn, x[:5], y[:5], initial=initial)}
    np.savez(tmp_path / "input.npz", x=x, y=y, initial=initial)
    options = ("--npz", tmp_path / "input.npz", "--steps", 5, "--json")
    facts = json.loads(run(tmp_path / "any.safetensors", *options))
    for fact in facts["statements"]:
        verdict = wanted[fact["name"]]
        assert fact["printed"]["truth"] == verdict.printed.truth
        assert fact["evidence"] == {
            name: pytest.approx(value) if np.isfinite(value) else None for name, value in verdict.evidence.items()
        }
    np.savez(tmp_path / "last.npz", x=x, y=y[-1])
    run(tmp_path / "any.safetensors", "--npz", tmp_path / "last.npz")
    assert "random inputs" in " ".join(run(tmp_path / "any.safetensors").split())  # wherever the line was broken
    assert "Σ_{k=1}^{t} F(k,t)" in run(tmp_path / "any.safetensors", "--explain", "THEOREM_1")

    text = tmp_path / "text.txt"
    text.write_text("abcba" * 40)
    CharacterModel.random(Vocabulary.of("abc"), 8).save(tmp_path / "characters.safetensors")
    assert "text.txt" in run(tmp_path / "characters.safetensors", "--text", text)


def test_the_command_fails_if_a_corrected_statement_does(monkeypatch):
    """Which none does: so one is made up."""
    lemma = theorems.STATEMENTS[8]
    judge = lemma.judge
    object.__setattr__(lemma, "judge", lambda run: judge(run)._replace(corrected=Claim(H, F)))
    try:
        assert "does NOT hold" in run(code=1)
        run("--explain", "lemma-3", code=1)
        assert json.loads(run("--json", code=1))["stands"] is False
    finally:
        object.__setattr__(lemma, "judge", judge)


def test_wrong_use_of_the_command(tmp_path):
    rnn, x, _, _ = article_network()
    rnn.save(tmp_path / "model.safetensors")
    (tmp_path / "text.txt").write_text("abc")
    np.savez(tmp_path / "x.npz", x=x)
    for arguments, message in (
        (("--text", tmp_path / "text.txt"), "name one"),
        (("--explain", "theorem 9"), "name must be one of"),
        ((tmp_path / "none.safetensors",), "No such file"),
        ((tmp_path / "model.safetensors", "--text", tmp_path / "text.txt"), "no model of characters"),
        ((tmp_path / "model.safetensors", "--text", "a", "--npz", "b"), "choose one"),
        ((tmp_path / "model.safetensors", "--npz", tmp_path / "text.txt"), "is no .npz file"),
        ((tmp_path / "model.safetensors", "--npz", tmp_path / "x.npz"), "must hold an array y; it holds x"),
    ):
        assert message in run(*arguments, code=2)


def test_elu_at_its_kink_and_modes_without_a_leader():
    rnn = bptt.RNN([[0, 1.0], [0, 0]], np.zeros((2, 1)), np.ones((1, 2)), activation="elu", output="linear")
    verdicts = theorems.check(rnn, np.zeros((2, 1)), np.zeros((2, 1)), initial=[0.0, 1.0])
    assert not [v for v in verdicts if v.corrected.truth is theorems.Truth.FAILS]
    nilpotent = bptt.RNN([[0.0, 3], [0, 0]], np.zeros((2, 1)), activation="identity")
    assert theorems.theorem_3(nilpotent, [1.0, 1.0]).mode == ()
    with pytest.raises(ValueError, match="g must be finite"):
        theorems.theorem_3(nilpotent, [np.nan, 1.0])
