"""Section 3 of the article, the derivative of the state: Lemma 1, Lemma 2, Theorem 1, equation (3)."""

from __future__ import annotations

import numpy as np

from bptt import reference
from bptt._kernel import Array
from bptt.chain import product_chain
from bptt.checking import relative_error
from bptt.network import RNN
from bptt.theorems.enclosure import EPS, ROUNDING
from bptt.theorems.run import Run
from bptt.theorems.statement import Counterexample, Finding, Statement
from bptt.theorems.verdict import SILENT, Claim, Truth

# How each is judged ---------------------------------------------------------------------------------------------------


def kronecker(V: Array, v: Array) -> Array:
    """(I ⊗ vᵀ) vec V = V v, for each V."""
    product: Array = V @ v
    return product


def hv(V: Array, v: Array) -> Array:
    """HV(v) vec V, for each V: all rows of HV(v) are vᵀ again and again, so all n results are Σ_b V[b] v."""
    total = (V @ v).sum(axis=-1, keepdims=True)
    return np.broadcast_to(total, V.shape[:2])


def identity(claimed: Array, true: Array, error: Array) -> Claim:
    """The claim, under no hypothesis, that two results are one; they are if they agree within rounding."""
    apart = np.abs(claimed - true)
    if not (np.isfinite(apart).all() and np.isfinite(error).all()):
        return Claim(Truth.HOLDS, Truth.UNDECIDED)
    return Claim(Truth.HOLDS, Truth.of(bool((apart <= error).all())))


def lemma_1(run: Run) -> Finding:
    t, V = run.identity_step, run.directions
    u, error = run.tangents
    direct, jacobian = kronecker(V, run.a[t - 1]), run.factor(t - 1).T
    total = direct + u[t - 1] @ jacobian
    partial = direct + (kronecker(V, run.a[t - 2]) @ jacobian if t > 1 else 0)
    lemma = identity(total, u[t], error[t])
    evidence = {
        "relative error": relative_error(total, u[t]),
        "with the proof's ∂h_{t-1}/∂W_R": relative_error(partial, u[t]),
        "t": t,
    }
    return Finding(lemma, lemma, evidence)


def lemma_2(run: Run) -> Finding:
    t, V = run.identity_step, run.directions
    u, error = run.tangents
    carried = u[t - 1] @ run.factor(t - 1).T
    printed, corrected = (block(V, run.a[t - 1]) + carried for block in (hv, kronecker))
    evidence = {
        "relative error with HV": relative_error(printed, u[t]),
        "with I ⊗ aᵀ": relative_error(corrected, u[t]),
        "t": t,
    }
    return Finding(identity(printed, u[t], error[t]), identity(corrected, u[t], error[t]), evidence)


def theorem_1(run: Run) -> Finding:
    t, V = run.identity_step, run.directions
    u, error = run.tangents
    printed, corrected, ascending = (np.zeros_like(u[t]) for _ in range(3))
    wrong_order = np.eye(run.n)  # (W_R D_k) ... (W_R D_{t-1})
    for k in range(t, 0, -1):
        P = product_chain(run.rnn, run.trajectory, k, t)
        chain = np.ldexp(P.mantissa, np.clip(P.exponent, -5000, 5000))
        wrong_order = run.factor(k) @ wrong_order if k < t else wrong_order
        printed += hv(V, run.a[k - 1]) @ chain.T
        corrected += kronecker(V, run.a[k - 1]) @ chain.T
        ascending += kronecker(V, run.a[k - 1]) @ wrong_order.T
    evidence = {
        "relative error with HV": relative_error(printed, u[t]),
        "with I ⊗ aᵀ": relative_error(corrected, u[t]),
        "with I ⊗ aᵀ, factors in ascending order": relative_error(ascending, u[t]),
        "t": t,
    }
    return Finding(identity(printed, u[t], error[t]), identity(corrected, u[t], error[t]), evidence)


def equation_3(run: Run) -> Finding:
    t = run.error_step
    if t is None:  # no error depends on a state
        return Finding(SILENT, SILENT, {})
    true, error = error_tangents(run, t)
    gradient = run.gradients([t])[0]
    corrected = np.tensordot(run.directions, gradient, 2)
    printed = t * corrected
    evidence = {
        "printed / true": float(np.linalg.norm(printed) / np.linalg.norm(true)),
        "relative error without the sum": relative_error(corrected, true),
        "t": t,
    }
    return Finding(identity(printed, true, error), identity(corrected, true, error), evidence)


def error_tangents(run: Run, t: int) -> tuple[Array, Array]:
    """dE_t along each direction, by a complex step through readout, output and error, and a bound on its rounding."""
    rnn, u, bound = run.rnn, run.tangents[0][t], run.tangents[1][t]
    weights = (rnn.W_R, rnn.W_I, rnn.W_O, rnn.b_R, rnn.b_I, rnn.b_O)
    network = reference.Network(*weights, rnn.activation, rnn.form, rnn.readout, rnn.output)
    reads_a = rnn.readout == "activation"
    loss = run.loss or ("cross_entropy" if rnn.output == "softmax" else "squared_error")
    y = np.asarray(run.y)
    y = y[t - 1] if y.ndim == (1 if loss == "cross_entropy" else 2) else y  # else a target of the last step only

    step = 1e-20 / max(1.0, float(np.abs(u).max()))
    r = run.moved_activations(t, step * u) if reads_a else run.trajectory.preactivations[t - 1] + 1j * step * u
    z = reference.readout_argument(network, r)
    E, _ = reference.error(network, loss, z, np.broadcast_to(y, (len(u), *y.shape)))

    # ∂E_t/∂z_t is a few rounded terms of size 2√E for squared errors, else 1, of a z_t that is a sum of n + 1
    squared = 2 * np.sqrt(np.abs(E)) if loss == "squared_error" else 0.0
    W_O: Array = np.abs(np.asarray(network.W_O))
    z_size = 1 + (W_O @ np.abs(r.real[0])).max() + np.abs(z.real).max()
    uncertain = squared + z_size * (2 if rnn.output == "linear" else 2 + squared)
    slopes = run.slopes[t] * run.condition_of_slopes[t] if reads_a else np.ones(rnn.n)
    reach = (np.abs(u) * slopes @ W_O.T).sum(axis=-1)
    return E.imag / step, bound @ np.abs(run.g[t - 1]) + ROUNDING * (rnn.n + rnn.m) * EPS * uncertain * reach


# What each says -------------------------------------------------------------------------------------------------------

# One step of h_1 = W_R a_0 from a_0 = (1, 2), read out as h_1[0].
ONE_STEP = Counterexample(
    "n = 2, one step, σ = Id, a_0 = (1, 2)",
    RNN(np.eye(2), np.zeros((2, 1)), [[1.0, 0.0]], activation="identity", form="preactivation", output="linear"),
    np.zeros((1, 1)),
    np.zeros((1, 1)),
    np.array([1.0, 2.0]),
)

LEMMA_1 = Statement(
    name="Lemma 1",
    printed="dh_t/dW_R = ∂h_t/∂W_R + ∂h_t/∂h_{t-1} · dh_{t-1}/dW_R, where ∂/∂W_R varies W_R alone and holds h_{t-1}.",
    corrected="""\
The lemma as it stands, with the total derivative dh_{t-1}/dW_R as its last factor. Its proof
prints ∂h_{t-1}/∂W_R there, which by the remark is another thing. Of the remark's example, h_t =
W_R h_{t-1}, the true derivatives are
    dh_2/dW_R = I ⊗ (W_R h_0)ᵀ + W_R (I ⊗ h_0ᵀ),      ∂h_2/∂W_R = I ⊗ h_1ᵀ.""",
    why="""\
h_t = f(W_R, h_{t-1}) is a function of two arguments, both of which depend on W_R: the chain rule
is the lemma. In the remark's example move W_R to W_R + sV: the derivative of (W_R + sV)² h_0 at s
= 0 is V W_R h_0 + W_R V h_0, and V v = (I ⊗ vᵀ) vec V. The remark prints dh_2/dW_R = 2 W_R h_0
and ∂h_2/∂W_R = h_1, n numbers where n·n² belong. They are what comes out along the one direction
V = I, and the whole derivative for n = 1 only.""",
    judge=lemma_1,
)

LEMMA_2 = Statement(
    name="Lemma 2",
    printed="dh_t/dW_R = HV(σ(h_{t-1})) + W_R σ'(h_{t-1}) dh_{t-1}/dW_R.",
    corrected="dh_t/dW_R = I ⊗ a_{t-1}ᵀ + W_R D_{t-1} dh_{t-1}/dW_R,   D_{t-1} = diag σ'(h_{t-1}),   dh_0/dW_R = 0.",
    why="""\
By Lemma 1. The direct part moves W_R alone: the derivative of (W_R + sV) a_{t-1} is V a_{t-1} =
(I ⊗ a_{t-1}ᵀ) vec V, vec by rows. Row i of W_R acts on h_{t,i} alone, so a_{t-1}ᵀ stands in the
diagonal blocks and nowhere else. HV puts it in all n² blocks, as if every weight fed every unit:
off by √(n-1) times the true matrix in Frobenius norm, right for n = 1. The other factor is
∂h_t/∂h_{t-1} = W_R diag σ'(h_{t-1}); the diag is missing in print, and is taken for granted in
the verdict on what is printed. The proofs for t = 1 and 2 write σ(h_0) for I ⊗ σ(h_0)ᵀ, and x_0
for x_1.""",
    judge=lemma_2,
    counterexamples=(ONE_STEP,),
)

THEOREM_1 = Statement(
    name="Theorem 1",
    printed="""\
dh_t/dW_R = Σ_{k=1}^{t-1} (Π_{r=k+1}^{t} W_R diag σ'(h_{r-1})) · HV(σ(h_{k-1})) + HV(σ(h_{t-1})),
HV(v) the n × n grid of blocks vᵀ. The order of the product is not said.""",
    corrected="""\
dh_t/dW_R = Σ_{k=1}^{t} F(k,t),   F(k,t) = P(k,t) (I ⊗ a_{k-1}ᵀ) = P(k,t) ⊗ a_{k-1}ᵀ,
P(k,t) = (W_R D_{t-1}) (W_R D_{t-2}) ... (W_R D_k),   P(t,t) = I: later factors stand on the left.""",
    why="""\
By induction on Lemma 2: dh_1/dW_R = I ⊗ a_0ᵀ = F(1,1); and W_R D_{t-1} P(k,t-1) = P(k,t) turns
the sum up to t - 1 into the terms k < t of the sum up to t, to which Lemma 2 adds F(t,t) = I ⊗
a_{t-1}ᵀ. The new factor is multiplied from the left. With HV in place of I ⊗ aᵀ every term is
wrong, except for n = 1. In ascending order the product is another matrix unless the factors
commute, as they do for σ = Id.
The remark after the theorem says that this is a polynomial in W_R if W_R is a scalar: it is not,
for h_r and with it σ'(h_r) depend on W_R too, unless σ = Id.""",
    judge=theorem_1,
    counterexamples=(ONE_STEP,),
)

EQUATION_3 = Statement(
    name="Equation 3",
    printed="∂E_t/∂W_R = Σ_{k=1}^{t} ∂E_t/∂h_t · dh_t/dW_R.",
    corrected="∂E_t/∂W_R = ∂E_t/∂h_t · dh_t/dW_R = Σ_{k=1}^{t} (g_t P(k,t))ᵀ a_{k-1}ᵀ,   g_t = ∂E_t/∂h_t.",
    why="""\
E_t depends on W_R through h_t alone: one application of the chain rule, no sum. No k occurs in
the summand that is printed, so that the sum is t times what it should be. The sum over k belongs
into dh_t/dW_R, where Theorem 1 has it; each of its terms is then of rank one. And E_t is a
scalar: its derivative is a linear map from R^{n×n} to R, a matrix 1 × n², not to R^n as section
3.2 has it.""",
    judge=equation_3,
    counterexamples=(
        Counterexample(
            "n = 1, two steps of h_t = h_{t-1}, h_0 = 1",
            RNN([[1.0]], [[0.0]], [[1.0]], activation="identity", form="preactivation", output="linear"),
            np.zeros((2, 1)),
            np.zeros((2, 1)),
            np.array([1.0]),
        ),
    ),
)
