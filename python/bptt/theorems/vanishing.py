"""Section 4 of the article, vanishing gradients: Theorem 2, section 4.2, section 4.3."""

from __future__ import annotations

import numpy as np

from bptt import reference
from bptt._kernel import Array
from bptt.certificates import Bound
from bptt.lyapunov import lyapunov_spectrum
from bptt.network import RNN
from bptt.scaled import log_norms
from bptt.theorems.enclosure import EPS, ROUNDING, Enclosure, less
from bptt.theorems.run import Run
from bptt.theorems.statement import Counterexample, Finding, Statement
from bptt.theorems.trend import vanishes
from bptt.theorems.verdict import SILENT, Claim, Truth

ONE = Enclosure(1.0)

# How each is judged ---------------------------------------------------------------------------------------------------


def theorem_2(run: Run) -> Finding:
    first = run.spectrum.eigenvalues[0]
    # of an eigenvalue that is not real the article's inequality can only mean the modulus
    lambda_1 = Enclosure(float(first.real if first.imag == 0 else abs(first)), run.spectrum.error)
    eta, condition = run.certificate
    allowed = bound(run, run.max_lag + 1)
    k, norms = run.growth
    evidence = {
        "λ_1 γ": lambda_1.value * run.gamma,
        "‖W_R‖₂ γ": run.norm.value * run.gamma,
        "T - k_0": run.T - k,
        "ln ‖P(k_0,T)‖₂": float(norms[-1]),
        "ρ(W_R) γ": run.radius.value * run.gamma,
        "η": eta.value,
        "cond(S)": condition,
        "largest ln (‖P(k,t)‖₂ / (cond(S) η^{t-k}))": float(np.nanmax(run.log_products - allowed)),  # nan: 0 within 0
    }
    return Finding(
        printed=Claim(less(lambda_1.times(run.gamma), ONE), contributions_vanish(run)),
        corrected=Claim(less(eta, ONE), Truth.of(not (run.log_products > allowed + run.rounding(allowed)).any())),
        evidence=evidence,
    )


def bound(run: Run, count: int) -> Array:
    """ln (cond(S) η^l), which ‖P(t-l, t)‖₂ cannot exceed, for the lags l = 0 .. count - 1."""
    eta, condition = run.certificate
    return Bound(eta.value + eta.error, condition).log_at(np.arange(count))


def contributions_vanish(run: Run) -> Truth:
    """Whether F(k_0,t) tends to 0: by theory where that decides it, else as the run shows it."""
    if run.first_source is None or less(run.certificate[0], ONE) is Truth.HOLDS:
        return Truth.HOLDS
    if run.linear:  # F(k,t) = W_R^{t-k} ⊗ a_{k-1}ᵀ
        return less(run.radius, ONE)
    return vanishes(run.growth[1])


def section_4_2(run: Run) -> Finding:
    if run.T < 6:  # the first three steps and the last three are not apart
        return Finding(SILENT, SILENT, {})
    sources = log_norms(run.a)[:-1]
    sizes = run.last_log_products + sources[::-1]  # ln ‖F(T-l, T)‖, l = 0 .. T - 1
    old, recent = (float(np.logaddexp.reduce(three)) for three in (sizes[-3:], sizes[:3]))
    eta, _ = run.certificate
    vanishing = less(eta, ONE)
    conclusion = Truth.NOT_APPLICABLE
    if vanishing is Truth.HOLDS:
        tails = np.logaddexp.accumulate(sizes[::-1])[::-1]  # ln Σ_{l' >= l} ‖F(T-l', T)‖
        allowed = bound(run, run.T) - np.log1p(-eta.value - eta.error) + sources.max()
        conclusion = Truth.of(bool((tails <= allowed + run.rounding(allowed)).all()))
    evidence = {
        "ln Σ_{k=1,2,3} ‖F(k,T)‖": old,
        "ln Σ_{k=T-2..T} ‖F(k,T)‖": recent,
        "η": eta.value,
        "T": run.T,
    }
    return Finding(
        printed=Claim(contributions_vanish(run), Truth.of(old > recent)),
        corrected=Claim(vanishing, conclusion),
        evidence=evidence,
    )


def section_4_3(run: Run) -> Finding:
    if run.T < 2:  # no factor
        return Finding(SILENT, SILENT, {})
    lyapunov = lyapunov_spectrum(run.rnn, run.trajectory)
    steps = run.T - 1
    slopes = reference.ACTIVATIONS[run.rnn.activation].log_derivative(run.trajectory.preactivations[:-1])
    volume = float(np.linalg.slogdet(run.rnn.W_R)[1]) + float(slopes.sum()) / steps
    most = float(np.log(run.norm.value)) + float(slopes.max(axis=1).mean())
    first = int(np.argmax(lyapunov.exponents))
    largest, total = float(lyapunov.exponents[first]), float(lyapunov.exponents.sum())
    evidence = {
        "λ_1": largest,
        "its standard error": float(lyapunov.standard_errors[first]),
        "ln ‖P(1,T)‖₂ / (T-1)": float(run.last_log_products[-1]) / steps,
        "positive exponents": int((lyapunov.exponents > 0).sum()),
        "Σ λ_i": total,
        "ln |det W_R| + mean Σ ln |σ'|": volume,
    }
    bounded = Truth.of(largest == -np.inf or largest <= most + ROUNDING * EPS * (run.n**2 + abs(most)))
    alike = sum_rule(run, total, volume)
    if alike is Truth.FAILS and np.ptp(slopes, axis=1).max() > -np.log(EPS):
        alike = Truth.UNDECIDED  # a step spread so far leaves no digit of what cancels in W_R
    return Finding(SILENT, Claim(Truth.HOLDS, Truth.all(bounded, alike)), evidence)


def sum_rule(run: Run, total: float, volume: float) -> Truth:
    """Whether the exponents add up to the growth of volumes, where W_R is not singular as far as rounding lets tell."""
    if run.sigma_min.value <= 1e3 * run.sigma_min.error:
        return Truth.HOLDS  # volumes vanish, and no exponent says how fast
    if volume == -np.inf:
        return Truth.of(total == -np.inf)
    # a step changes ln |det| by n eps cond(W_R) a row, saturated or not; lyapunov_spectrum is right to eps e^12
    steps = ROUNDING * run.n**2 * EPS * (run.norm.value / run.sigma_min.value + abs(volume))
    return Truth.of(bool(abs(total - volume) <= steps + run.n * EPS * np.exp(12)))


# What each says -------------------------------------------------------------------------------------------------------


def held(W_R: Array, state: Array, activation: str, steps: int) -> tuple[RNN, Array, Array]:
    """A network that an input holds in one state: W_I = I and x = h - W_R σ(h)."""
    a = reference.ACTIVATIONS[activation].sigma(state)
    rnn = RNN(
        W_R, np.eye(len(state)), np.eye(1, len(state)), activation=activation, form="preactivation", output="linear"
    )
    return rnn, np.tile(state - W_R @ a, (steps, 1)), np.zeros((steps, 1))


THEOREM_2 = Statement(
    name="Theorem 2",
    printed="""\
λ_1 the eigenvalue of W_R of largest absolute value, ‖diag σ'(·)‖ ≤ γ. If λ_1 < 1/γ, then F(k_0,t)
→ 0 as t → ∞ for every fixed k_0.""",
    corrected="""\
‖F(k,t)‖ ≤ (‖W_R‖₂ γ)^{t-k} ‖a_{k-1}‖: if ‖W_R‖₂ < 1/γ, then F(k_0,t) → 0. More generally, with
any diagonal S > 0 and η = ‖S W_R S⁻¹‖₂ γ,
    ‖P(k,t)‖₂ ≤ cond(S) η^{t-k},
so that η < 1 for a single S is enough; S = I is the theorem. η is never below ρ(W_R) γ.""",
    why="""\
P(k,t) has t - k factors W_R D_r, ‖D_r‖₂ ≤ γ, and ‖P ⊗ aᵀ‖ = ‖P‖ ‖a‖: that is the bound. S
commutes with every D_r, so S P(k,t) S⁻¹ is the product of (S W_R S⁻¹) D_r, and ‖P‖ ≤ ‖S⁻¹‖ ‖S P
S⁻¹‖ ‖S‖ gives the second.
An eigenvalue says less than it seems to:
  sign     W_R = -3, σ = Id: λ_1 = -3 < 1, and |W_R^m| = 3^m, 59049 for m = 10.
  modulus  W_R = 1.5 [[1,-1],[1,-1]], relu: W_R² = 0, so ρ(W_R) = 0. The constant input (-0.5, -2.5) holds the state at
           h = (1,-1), exactly in binary. There D = diag(1,0), W_R D = 1.5 [[1,0],[1,0]], and ‖(W_R D)^m‖₂ = √2 · 1.5^m.
The printed proof takes ‖W_R‖ ≤ λ_1, where ‖W_R‖ ≥ ρ(W_R) is true, and raises ‖σ(h)‖ to the power
t - k; it enters once. For σ = Id alone, ρ(W_R) < 1 is enough (and necessary).""",
    judge=theorem_2,
    counterexamples=(
        Counterexample(
            "sign: W_R = -3, σ = Id",
            RNN([[-3.0]], [[1.0]], [[1.0]], activation="identity", form="preactivation", output="linear"),
            np.zeros((11, 1)),
            np.zeros((11, 1)),
            np.array([1.0]),
        ),
        Counterexample(
            "modulus: ρ(W_R) = 0, relu, held at h = (1, -1)",
            *held(1.5 * np.array([[1.0, -1.0], [1.0, -1.0]]), np.array([1.0, -1.0]), "relu", 50),
            np.array([1.0, -1.0]),
        ),
    ),
)

SECTION_4_2 = Statement(
    name="Section 4.2",
    printed="""\
When gradients vanish, ∂E_t/∂W_R for large t is not affected much by the new inputs; what remains
in it are the first few summands, k = 1, 2, 3.""",
    corrected="""\
The reverse. F(k_0,t) carries a_{k_0-1}, the activation before step k_0: what vanishes from the
gradient at t are the OLD steps, and the recent ones remain. If η < 1 (Theorem 2), all steps up to
k together contribute at most
    Σ_{k' ≤ k} ‖F(k',t)‖ ≤ cond(S) η^{t-k} / (1-η) · max ‖a‖,
while the last step contributes ‖F(t,t)‖ = ‖a_{t-1}‖ undiminished: learning reaches back about
1/ln(1/η) steps.""",
    why="""\
In F(k,t) it is k that says which step's activation the weights acted on; t only says where the
error is. Theorem 2 holds k fixed and lets t grow: the step recedes into the past, and its
contribution goes to 0. The bound is Theorem 2's, summed as a geometric series. The term that the
article's remark keeps, σ(h_{t-1}), is the most recent of all, k = t.""",
    judge=section_4_2,
    counterexamples=(
        Counterexample(
            "W_R = 1/2, σ = Id, held at h = 1",
            *held(np.array([[0.5]]), np.array([1.0]), "identity", 20),
            np.array([1.0]),
        ),
    ),
)

SECTION_4_3 = Statement(
    name="Section 4.3",
    printed="What happens when gradient vanishing doesn't happen? COMING UP.",
    corrected="""\
The Lyapunov exponents λ_1 ≥ ... ≥ λ_n of the product along the trajectory decide: ‖P(k,t)‖ grows
like e^{λ_1 (t-k)}.
    λ_1 < 0: contributions vanish at that rate.   λ_1 ≈ 0: marginal, they neither vanish nor explode exponentially.
    λ_1 > 0: they explode, for every g_t that is not in the directions of the smaller exponents.
Directions of both kinds coexist: some λ_i > 0 beside some λ_j < 0. A non-normal W_R can let ‖P‖
grow first and decay later. On T steps, with P(1,T) Q_0 = Q R and λ_i = ln |R_ii| / (T-1),
    Σ_i λ_i = ln |det W_R| + mean_t Σ_i ln |σ'(h_{t,i})|,   λ_1 ≤ ln ‖W_R‖₂ + mean_t max_i ln |σ'(h_{t,i})|.""",
    why="""\
|R_ii| ≤ ‖R‖₂ = ‖P(1,T)‖₂, at most the product of the ‖W_R‖₂ ‖D_t‖₂; Π_i |R_ii| = |det
P(1,T)| is the product of the determinants. That the exponents converge and are the growth rates
of ‖P‖ in the directions of a fixed flag is the theorem of Oseledets (1968), for stationary
inputs. Where the exponents must be, the certificates say: λ_1 ≤ ln η (Theorem 2), and λ_n ≥ ln
(σ_min(W_R) min |σ'|) (Theorem 4).""",
    judge=section_4_3,
)
