"""Section 5 of the article, exploding gradients: Theorem 3, Lemma 3, Theorem 4."""

from __future__ import annotations

import numpy as np

from bptt._kernel import Array
from bptt.chain import contributions
from bptt.network import RNN
from bptt.scaled import log_norms
from bptt.theorems.enclosure import EPS, ROUNDING, Enclosure, less, normalised
from bptt.theorems.modes import Theorem3, follow
from bptt.theorems.run import LAGS, Run
from bptt.theorems.statement import Counterexample, Finding, Statement
from bptt.theorems.trend import diverges, times
from bptt.theorems.verdict import SILENT, Claim, Truth

ONE = Enclosure(1.0)
LN2, TINY = float(np.log(2.0)), float(np.finfo(np.float64).tiny)

#: How far back the smallest singular value of P(k,T) is followed.
INVERSE_LAGS = 16

# How each is judged ---------------------------------------------------------------------------------------------------


def gradient_diverges(run: Run) -> tuple[Truth, Array]:
    """Whether ‖∂E_t/∂W_R‖ tends to infinity, as the run shows it, and the last of these gradients.

    Among the steps with an error, that is: where g_t = 0 the gradient is 0 and says nothing.
    """
    with_error = np.flatnonzero(run.g.any(axis=1)) + 1
    if not with_error.size:
        return Truth.FAILS, np.zeros((run.n, run.n))
    stops = [int(with_error[i]) for i in times(0, len(with_error) - 1)]
    gradients = run.gradients(stops)
    return diverges(log_norms(gradients.reshape(len(stops), -1))), gradients[-1]


def theorem_3(run: Run) -> Finding:
    last = int(np.flatnonzero(run.g.any(axis=1)).max(initial=0)) + 1  # the last t with an error
    if not run.linear or last < 2:
        claim = Claim(Truth.of(run.linear and last >= 2), Truth.NOT_APPLICABLE)
        return Finding(claim, claim, {})
    modes = run.spectrum
    theorem = follow(run.rnn, run.g[last - 1], min(last - 1, LAGS), modes)
    diverging, gradient = gradient_diverges(run)
    printed, cosine = as_printed(theorem, run.g[last - 1], diverging, gradient)
    evidence = {
        "ln |λ_j|": theorem.predicted_rate,
        "measured rate": theorem.measured_rate,
        "cosine of right and left q_j": cosine,
        "‖Σ_k λ_j^{t-k} a_{k-1}‖ / Σ_k ‖λ_j^{t-k} a_{k-1}‖": cancellation(run, theorem.eigenvalue, last),
        "arg λ_j": float(np.angle(theorem.eigenvalue)),
        "sine of the angle of g_t P(1,t) to left q_j": float(theorem.sines[-1]),
        "ln ‖∂E_t/∂W_R‖, last t": float(log_norms(gradient.reshape(1, -1))[0]),
    }
    return Finding(printed, Claim(leads(theorem), follows(run, theorem)), evidence)


def as_printed(theorem: Theorem3, g: Array, diverging: Truth, gradient: Array) -> tuple[Claim, float]:
    """The printed claim, whose q_i are right eigenvectors, and the cosine between its q_j and the true one."""
    modes = theorem.spectrum
    values, d = modes.eigenvalues, modes.left @ g
    apart = np.abs(np.subtract.outer(values, values))[~np.eye(len(values), dtype=bool)]
    distinct = Truth.HOLDS if apart.min(initial=np.inf) > 2 * modes.error else Truth.UNDECIDED
    j = int(np.argmax(np.abs(d) > ROUNDING * len(d) * EPS * modes.condition * np.abs(d).max()))
    if values[j].imag != 0:  # then λ_j > 1 says nothing
        return Claim(Truth.FAILS, diverging), np.nan
    hypothesis = Truth.all(distinct, less(ONE, Enclosure(float(values[j].real), modes.error)))
    if len(theorem.mode) != 1:
        return Claim(hypothesis, diverging), np.nan
    q, true = modes.right[:, j].real, theorem.basis[0]
    cosine = float(abs(q @ true))
    direction = Truth.UNDECIDED
    if 1 - cosine <= ROUNDING * len(d) * EPS * modes.condition:
        direction = Truth.HOLDS
    elif np.linalg.norm(true @ gradient) > np.linalg.norm(q @ gradient):
        direction = Truth.FAILS
    return Claim(hypothesis, Truth.all(diverging, direction)), cosine


def leads(theorem: Theorem3) -> Truth:
    """The hypothesis: |λ_j| > 1, larger than all after it, with c_i = 0 before it and a basis of eigenvectors."""
    modes, mode = theorem.spectrum, theorem.mode
    if not mode:
        return Truth.UNDECIDED if modes.condition == np.inf else Truth.FAILS
    modulus = Enclosure(abs(theorem.eigenvalue), modes.error)
    later = [i for i in range(mode[0] + 1, len(modes.eigenvalues)) if i not in mode]
    largest_later = Enclosure(float(np.abs(modes.eigenvalues[later]).max(initial=0.0)), modes.error)
    known = Truth.UNDECIDED if theorem.coefficients[: mode[0]].any() or theorem.rounding[0] > 1e-3 else Truth.HOLDS
    return Truth.all(less(ONE, modulus), less(largest_later, modulus), known)


def follows(run: Run, theorem: Theorem3) -> Truth:
    """The conclusion: g P(k,t) is its leading mode but for what the others add, which ∂E_t/∂W_R has as predicted."""
    if not theorem.mode:
        return Truth.NOT_APPLICABLE
    if (theorem.deviations > theorem.remainders + theorem.rounding).any():
        return Truth.FAILS
    t, j = run.error_step, theorem.mode[0]
    assert t is not None
    modes = theorem.spectrum
    powers = t - np.arange(1, t + 1)
    measured = modes.right[:, j] @ run.gradients([t])[0]
    c = run.g[t - 1] @ modes.right
    predicted = c[j] * (modes.eigenvalues[j] ** powers @ run.a[:t])
    size = np.abs(c) @ np.linalg.norm(modes.left, axis=1)
    reach = (np.abs(modes.eigenvalues[0]) ** powers * (powers + 1)) @ np.abs(run.a[:t]).sum(axis=1)
    relative = run.n**1.5 * modes.condition**3 + abs(np.log(size)) + TINY / size  # g_t = e^x comes with |x| eps
    allowed = ROUNDING * EPS * relative * size * reach
    apart = np.abs(measured - predicted).max()
    if not (np.isfinite(apart) and np.isfinite(allowed)) or theorem.rounding[0] > 1e-3:
        return Truth.UNDECIDED
    return Truth.of(bool(apart <= allowed))


def cancellation(run: Run, eigenvalue: complex, t: int) -> float:
    """‖Σ_k λ_j^{t-k} a_{k-1}‖ / Σ_k ‖λ_j^{t-k} a_{k-1}‖: 0 where contributions grow and their sum does not."""
    parts = (eigenvalue ** -np.arange(t, dtype=float))[:, None] * run.a[:t]
    return float(np.linalg.norm(parts.sum(axis=0)) / np.linalg.norm(parts, axis=1).sum())


def lemma_3(run: Run) -> Finding:
    A, top = normalised(run.rnn.W_R)
    smallest = float(np.abs(run.spectrum.eigenvalues).min())
    v = np.linalg.svd(A)[2][-1]
    others = (np.eye(run.n), A, A.T, *run.directions)
    ratios = [np.linalg.norm(A @ B, 2) / np.linalg.norm(B, 2) for B in (np.outer(v, v), *others) if B.any()]
    least = float(np.ldexp(min(ratios), top))
    printed = Truth.of(smallest - run.spectrum.error <= least + run.sigma_min.error)
    if printed is Truth.HOLDS and run.spectrum.error > 1e-3 * run.norm.value:
        printed = Truth.UNDECIDED
    corrected = Truth.of(least >= run.sigma_min.value - run.sigma_min.error)
    evidence = {"λ*(W_R)": smallest, "σ_min(W_R)": run.sigma_min.value, "least ‖AB‖ / ‖B‖, A = W_R": least}
    return Finding(Claim(Truth.HOLDS, printed), Claim(Truth.HOLDS, corrected), evidence)


def theorem_4(run: Run) -> Finding:
    if run.T < 2:  # no factor
        return Finding(SILENT, SILENT, {})
    slope = run.least_slope.value
    above, below = run.norm.times(slope), run.sigma_min.times(slope)
    diverging, gradient = gradient_diverges(run)
    evidence = {
        "‖W_R‖₂ min |σ'|": above.value,
        "σ_min(W_R) min |σ'|": below.value,
        "ln ‖∂E_t/∂W_R‖, last t": float(log_norms(gradient.reshape(1, -1))[0]),
        "min |σ'|": slope,
    }
    return Finding(
        printed=Claim(less(ONE, above), diverging),
        corrected=Claim(less(ONE, below), every_row_grows(run, below)),
        evidence=evidence,
    )


def every_row_grows(run: Run, factor: Enclosure) -> Truth:
    """‖g P(k,t)‖ >= factor^{t-k} ‖g‖: for the run's own g_t, and for the g that grows least."""
    least = max(factor.value - factor.error, 0.0)
    if least == 0.0:
        return Truth.HOLDS
    steepest = run.norm.value * float(np.abs(run.slopes[1:-1]).max())
    a_product = np.log(least) - ROUNDING * run.n**2 * EPS * steepest / least
    lags = np.arange(run.max_lag + 1)
    stops = [t for t in run.stops if run.g[t - 1].any()]
    grown = contributions(run.rnn, run.trajectory, run.y, loss=run.loss, stops=stops, max_lag=run.max_lag)
    sources = run.log_sources[[run.stops.index(t) for t in stops]]
    allowed = grown[:, :1] + a_product * lags + (sources - sources[:, :1])  # nan, which is no bound, if a_{t-1} = 0
    least_rows = smallest_growth(run)
    allowed_rows = a_product * np.arange(1, len(least_rows) + 1)
    return Truth.of(
        not (grown < allowed - run.rounding(allowed)).any()
        and not (least_rows < allowed_rows - run.rounding(allowed_rows)).any()
    )


def smallest_growth(run: Run) -> Array:
    """ln min_g ‖g P(T-l,T)‖ / ‖g‖ for l = 1, 2, ...: the smallest singular values, as norms of the inverse products.

    The product itself has lost them to its largest one after some steps.
    """
    inverse: Array = np.eye(run.n)
    exponent, logs = 0, []
    for t in range(run.T - 1, max(0, run.T - 1 - INVERSE_LAGS), -1):
        try:
            inverse = np.linalg.solve(run.factor(t), inverse)
        except np.linalg.LinAlgError:
            break
        if not np.isfinite(inverse).all():
            break
        inverse, shift = normalised(inverse)
        exponent += shift
        logs.append(-float(np.log(np.linalg.norm(inverse, 2))) - exponent * LN2)
    return np.array(logs)


# What each says -------------------------------------------------------------------------------------------------------

LINEAR = {"activation": "identity", "form": "preactivation", "output": "linear"}


def cancelling(eigenvalue: float, steps: int) -> Counterexample:
    """h_0 = 1, h_1 = -λ, then 0: contributions λ^{t-1} and -λ^{t-1}, and no others."""
    x = np.zeros((steps, 1))
    x[:2, 0] = -2 * eigenvalue, eigenvalue**2
    return Counterexample(
        f"cancellation: n = 1, λ = {eigenvalue:g}, h_0 = 1, h_1 = -{eigenvalue:g}, then 0",
        RNN([[eigenvalue]], [[1.0]], [[1.0]], **LINEAR),
        x,
        np.full((steps, 1), -0.5),
        np.array([1.0]),
    )


THEOREM_3 = Statement(
    name="Theorem 3",
    printed="""\
σ = Id; W_R has n distinct eigenvalues λ_1 > ... > λ_n in decreasing order of absolute values,
with eigenvectors q_i; ∂E_t/∂h_t = Σ_i c_i q_i with c_{j'} = 0 for all j' < j; λ_j > 1. Then
∂E_t/∂W_R grows exponentially along q_j as t → ∞.""",
    corrected="""\
σ = Id; W_R has a basis of LEFT eigenvectors, q_i W_R = λ_i q_i; the row vector g_t = Σ_i c_i q_i;
c_{j'} = 0 for j' < j and c_j ≠ 0 (over all t: bounded away from 0); |λ_j| > 1, and |λ_j| > |λ_i|
for all i > j. Then every contribution grows:
    g_t W_R^m = c_j λ_j^m q_j + O(|λ_{j+1}|^m),
at the rate ln |λ_j| and in the direction of q_j. A complex pair λ_j, λ_{j+1} leads together: g_t
W_R^m is 2 Re (c_j λ_j^m q_j) up to O(|λ_{j+2}|^m), of the same rate, turning by arg λ_j a step in
the plane of Re q_j and Im q_j. The component of ∂E_t/∂W_R along the mode is c_j Σ_k λ_j^{t-k}
a_{k-1}ᵀ: the total grows too unless that sum cancels.""",
    why="""\
P(k,t) = W_R^{t-k}, and g_t multiplies it from the left: g W_R^m = Σ_i c_i λ_i^m q_i needs q_i W_R
= λ_i q_i. The column eigenvectors r_i are the other basis, q_i r_j = 0 for i ≠ j; both are the
same, but for conjugation, for a normal W_R only. What the modes i ≠ j add is at most
Σ_{i≠j} |c_i| |λ_i|^m ‖q_i‖. And (∂E_t/∂W_R)ᵀ is Σ_k a_{k-1} (g_t W_R^{t-k}), whose product with
r_j is c_j Σ_k λ_j^{t-k} a_{k-1}.
Signs: λ_j = -3 explodes as 3 does, and λ_1 > ... > λ_n need not be the order of the absolute
values.
Direction: W_R = [[2, 1], [0, 1/2]] has q_1 = (1,0) as a column; rows tend to (3,2)/√13.
Cancellation: n = 1, h_0 = 1, h_1 = -λ, then 0. The two contributions are λ^{t-1} and -λ^{t-1}
times g_t: each explodes, the sum is 0 for t ≥ 2.""",
    judge=theorem_3,
    counterexamples=(
        cancelling(2.0, 12),
        Counterexample(
            "direction: W_R = [[2, 1], [0, 1/2]]",
            RNN([[2.0, 1.0], [0.0, 0.5]], np.zeros((2, 1)), [[1.0, 1.0]], **LINEAR),
            np.zeros((20, 1)),
            np.zeros((20, 1)),
            np.array([1.0, 0.0]),
        ),
    ),
)

LEMMA_3 = Statement(
    name="Lemma 3",
    printed="A, B square, λ*(A) the smallest modulus of A's eigenvalues. Then ‖AB‖ ≥ λ*(A) ‖B‖ in the 2-norm.",
    corrected="‖AB‖ ≥ σ_min(A) ‖B‖, σ_min(A) the smallest SINGULAR value of A; the same for a diagonal A.",
    why="""\
‖A B v‖ ≥ σ_min(A) ‖B v‖ for every v; take the v for which ‖B v‖ = ‖B‖ ‖v‖. Equality for B = v vᵀ
with ‖A v‖ = σ_min(A), so no larger number will do, and λ*(A) ≥ σ_min(A), with equality for a
normal A.
A = [[1, 1], [0, 1]] has λ* = 1 and σ_min = (√5 - 1)/2 = 0.618...""",
    judge=lemma_3,
    counterexamples=(
        Counterexample(
            "W_R = [[1, 1], [0, 1]] as A",
            RNN([[1.0, 1.0], [0.0, 1.0]], np.zeros((2, 1)), [[1.0, 0.0]], **LINEAR),
            np.zeros((1, 1)),
            np.zeros((1, 1)),
            np.array([1.0, 1.0]),
        ),
    ),
)

THEOREM_4 = Statement(
    name="Theorem 4",
    printed="""\
"May be wrong!!! WILL CHECK!!!"  For any ε > 0: if ‖W_R‖ ≥ (1+ε) / λ*(diag σ'(·)), then
‖∂E_t/∂W_R‖ → ∞ as t → ∞.""",
    corrected="""\
If σ_min(W_R) · min_{t,i} |σ'(h_{t,i})| ≥ 1+ε along the trajectory, then for EVERY row vector g
    ‖g P(k,t)‖ ≥ (1+ε)^{t-k} ‖g‖:
every contribution (k,t) with a_{k-1} ≠ 0 and g_t ≠ 0 explodes. (The minimum over all reals is 0
for tanh, logistic, relu, elu, softplus and softsign: the hypothesis can hold along a trajectory
only.) Their sum ∂E_t/∂W_R can still cancel.""",
    why="""\
‖g W_R D_r‖ ≥ ‖g W_R‖ min |σ'| ≥ σ_min(W_R) min |σ'| ‖g‖, t - k times.
The printed theorem is wrong: W_R = [[0, 3], [0, 0]], σ = Id has ‖W_R‖ = 3 and W_R² = 0, so every
P(k,t) with t - k ≥ 2 is 0. Its proof takes ‖W_R X‖ ≥ ‖W_R‖ ‖X‖, which no lemma gives: Lemma 3
bounds a product by σ_min of one factor and the norm of the other. It takes the 2-norm for the
largest |eigenvalue|; it is the largest singular value. And "it's enough to prove it for
∂h_t/∂W_R" is false: g_t may vanish, or lie where ∂h_t/∂W_R does not grow, and the terms of the
sum may cancel, as in Theorem 3's counterexample.
What ‖W_R‖ does say is the converse: ‖P(k,t)‖ → ∞ needs ‖W_R‖₂ γ > 1, by Theorem 2.""",
    judge=theorem_4,
    counterexamples=(
        Counterexample(
            "W_R = [[0, 3], [0, 0]], σ = Id",
            RNN([[0.0, 3.0], [0.0, 0.0]], np.zeros((2, 1)), [[1.0, 1.0]], **LINEAR),
            np.zeros((20, 1)),
            np.full((20, 1), -1.0),
            np.array([1.0, 1.0]),
        ),
    ),
)
