"""The executable specification: what the library computes, one equation a line, in NumPy alone.

    h_t = W_R a_{t-1} + W_I x_t + b_I + b_R      a_t = σ(h_t)      z_t = W_O r_t + b_O      o_t = softmax(z_t) or z_t

Nothing here is fast and nothing is checked. Every other implementation is tested against this page, and this page
against complex steps, finite differences, closed forms and high precision. `reference_microscope` continues it with
product chains, state Jacobians and Lyapunov exponents.

Shapes
------
A vector is the last axis. Time is the first axis of a whole sequence, and the sequences of a batch lie between if there
are any: x is (T, p) or (T, B, p), written (T, ..., p). What exists at t = 0 (h, a, D, δ) has T + 1 rows and is indexed
by the t of the mathematics; what does not (x, y, w, E, e) has T rows, and x[t-1] is x_t.

h[0] is the initial value in both forms, and D_0 = da_0/d(initial): diag σ'(h_0) in form "preactivation", the identity
in form "activation", whose initial value is a_0 itself. So dE/d(initial) = δ_1 W_R D_0 in both.

Complex weights and inputs pass through every activation, output and error as through analytic functions (a kink is
decided by the real part), so that a derivative is Im f(w + iε)/ε without cancellation (Squire and Trapp 1998).

Examples
--------
h_t = w h_{t-1} has dh_T/dw = T w^(T-1) h_0, and what reaches h_0 is w^T:

>>> network = Network(W_R=np.array([[0.5]]), W_I=np.zeros((1, 1)), activation="identity")
>>> x = np.zeros((3, 1))
>>> gradients = backward(network, x, forward(network, x, initial=np.array([8.0])), d_final=np.ones(1))
>>> gradients.W_R, gradients.initial
(array([[6.]]), array([0.125]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LN2 = float(np.log(2.0))
SLOPE = 0.01  # of leaky_relu below 0; elu's alpha is 1


# Activations ----------------------------------------------------------------------------------------------------------


class Activation(NamedTuple):
    """σ(h), σ'(h) and log|σ'(h)|, all from h: the a of a saturated unit has lost σ'."""

    sigma: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    log_derivative: Callable[[Array], Array]


def modulus(h: Array) -> Array:
    """|h| as an analytic function on each side of 0."""
    return np.where(h.real < 0, -h, h)


def negative_part(h: Array) -> Array:
    """min(h, 0), by the real part; where that is 0, h: there elu's two sides have one slope."""
    return np.where(h.real <= 0, h, 0)


def decay(h: Array) -> Array:
    """exp(-|h|), which cannot overflow."""
    return np.exp(-modulus(h))


def logistic(h: Array) -> Array:
    """1 / (1 + exp(-h)) without overflow on either side."""
    return np.where(h.real < 0, decay(h) / (1 + decay(h)), 1 / (1 + decay(h)))


def softplus(h: Array) -> Array:
    """log(1 + exp(h)) without overflow."""
    return np.where(h.real < 0, 0, h) + np.log1p(decay(h))


def softsign(h: Array) -> Array:
    """h / (1 + |h|), +-1 at infinity."""
    near: Array = np.where(np.isinf(h), np.sign(h.real) * 2.0**100, h)
    quotient: Array = near / (1 + modulus(near))
    return quotient


ACTIVATIONS = {
    "identity": Activation(
        sigma=lambda h: h,
        derivative=np.ones_like,
        log_derivative=np.zeros_like,
    ),
    "tanh": Activation(
        sigma=np.tanh,
        derivative=lambda h: 4 * decay(2 * h) / (1 + decay(2 * h)) ** 2,
        log_derivative=lambda h: 2 * (LN2 - modulus(h) - np.log1p(decay(2 * h))),
    ),
    "logistic": Activation(
        sigma=logistic,
        derivative=lambda h: decay(h) / (1 + decay(h)) ** 2,
        log_derivative=lambda h: -modulus(h) - 2 * np.log1p(decay(h)),
    ),
    "relu": Activation(
        sigma=lambda h: np.where(h.real <= 0, 0, h),
        derivative=lambda h: np.where(h.real <= 0, 0, np.ones_like(h)),
        log_derivative=lambda h: np.where(h.real <= 0, -np.inf, np.zeros_like(h)),
    ),
    "leaky_relu": Activation(
        sigma=lambda h: np.where(h.real <= 0, SLOPE * h, h),
        derivative=lambda h: np.where(h.real <= 0, SLOPE, np.ones_like(h)),
        log_derivative=lambda h: np.where(h.real <= 0, float(np.log(SLOPE)), np.zeros_like(h)),
    ),
    "elu": Activation(
        sigma=lambda h: np.where(h.real <= 0, np.expm1(negative_part(h)), h),
        derivative=lambda h: np.exp(negative_part(h)),
        log_derivative=negative_part,
    ),
    "softplus": Activation(
        sigma=softplus,
        derivative=logistic,
        log_derivative=lambda h: -softplus(-h),
    ),
    "softsign": Activation(
        sigma=softsign,
        derivative=lambda h: 1 / (1 + modulus(h)) ** 2,
        log_derivative=lambda h: -2 * np.log1p(modulus(h)),
    ),
}


# The network ----------------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """The weights, real or complex, and the four choices: fields and order are those of `bptt.RNN`."""

    W_R: Array
    W_I: Array
    W_O: Array | None = None
    b_R: Array | None = None
    b_I: Array | None = None
    b_O: Array | None = None
    activation: str = "tanh"
    form: str = "activation"
    readout: str = "activation"
    output: str = "softmax"


class Trajectory(NamedTuple):
    """A run of a network, zero beyond each sequence's length."""

    h: Array  # (T + 1, ..., n)
    a: Array  # (T + 1, ..., n)
    lengths: Array  # (...)

    @property
    def t(self) -> Array:
        """The t of each row, shaped to be compared with the lengths."""
        return np.arange(len(self.h)).reshape(-1, *[1] * self.lengths.ndim)

    @property
    def valid(self) -> Array:
        """Whether row t lies within the sequence, (T + 1, ..., 1)."""
        return np.expand_dims(self.t <= self.lengths, -1)

    @property
    def last(self) -> Array:
        """Whether row t is the sequence's final one, (T + 1, ..., 1)."""
        return np.expand_dims(self.t == self.lengths, -1)


def one_hot(index: Array, size: int) -> Array:
    """Unit vectors: tokens as inputs, class indices as targets."""
    return np.where(index[..., None] == np.arange(size), 1.0, 0.0)


def preactivation(network: Network, a: Array, x: Array) -> Array:
    """h_t = W_R a_{t-1} + W_I x_t + b_I + b_R (article's equations 1, G1, R1)."""
    h: Array = a @ network.W_R.T + x @ network.W_I.T
    for b in (network.b_R, network.b_I):
        h = h if b is None else h + b
    return h


def forward(network: Network, x: Array, initial: Array, lengths: Array | None = None) -> Trajectory:
    """Run over x (T, ..., p) from initial (..., n), which is a_0 in form "activation", h_0 in form "preactivation"."""
    sigma = ACTIVATIONS[network.activation].sigma
    lengths = np.full(x.shape[1:-1], len(x)) if lengths is None else np.asarray(lengths)
    h = [initial]
    a = [initial if network.form == "activation" else sigma(initial)]
    for t in range(1, len(x) + 1):
        valid = (t <= lengths)[..., None]
        h.append(np.where(valid, preactivation(network, a[t - 1], x[t - 1]), 0))
        a.append(np.where(valid, sigma(h[t]), 0))
    return Trajectory(np.stack(h), np.stack(a), lengths)


def states(network: Network, trajectory: Trajectory) -> Array:
    """The form's own states, (T + 1, ..., n)."""
    return trajectory.a if network.form == "activation" else trajectory.h


def readout_states(network: Network, trajectory: Trajectory) -> Array:
    """r_1 .. r_T, (T, ..., n): a_t (article's G2, R2) or h_t (its equation 2)."""
    return (trajectory.a if network.readout == "activation" else trajectory.h)[1:]


def readout_argument(network: Network, r: Array) -> Array:
    """z_t = W_O r_t + b_O."""
    assert network.W_O is not None
    z = r @ network.W_O.T
    return z if network.b_O is None else z + network.b_O


def log_sum_exp(z: Array) -> Array:
    """log sum_i exp(z_i) without overflow, (..., 1)."""
    top = z.real.max(axis=-1, keepdims=True)
    return np.asarray(top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True)))


def prediction(network: Network, z: Array) -> Array:
    """o_t = softmax(z_t) or z_t."""
    return np.exp(z - log_sum_exp(z)) if network.output == "softmax" else z


# Errors ---------------------------------------------------------------------------------------------------------------


def through_prediction(network: Network, o: Array, d_o: Array) -> Array:
    """dE/dz_t from dE/do_t: dE/do_t (diag o_t - o_t o_t^T) for a softmax, dE/do_t for a linear output.

    A constant added to dE/do_t changes nothing; without the likeliest class's entry nothing cancels where o_t ~ 1.
    """
    if network.output == "linear":
        return d_o
    d = d_o - np.take_along_axis(d_o, o.real.argmax(axis=-1, keepdims=True), axis=-1)
    return np.asarray(o * (d - (o * d).sum(axis=-1, keepdims=True)))


def error(network: Network, loss: str, z: Array, y: Array) -> tuple[Array, Array]:
    """E_t and dE_t/dz_t: cross-entropy -log o_t[y_t] with integers y (...), or squared error sum_i (o_i - y_i)^2."""
    o = prediction(network, z)
    if loss == "cross_entropy":
        E = log_sum_exp(z - np.take_along_axis(z, y[..., None], axis=-1))
        target = one_hot(y, z.shape[-1])
        others = o * (1 - target)
        return E[..., 0], others - target * others.sum(axis=-1, keepdims=True)  # o - target, uncancelled where o_y ~ 1
    return ((o - y) ** 2).sum(axis=-1), through_prediction(network, o, 2 * (o - y))


def weighted_error(network: Network, loss: str, z: Array, y: Array, w: Array) -> tuple[Array, Array]:
    """w_t E_t and e_t = d(w_t E_t)/dz_t: exactly 0 where w_t = 0, whatever stands in y there."""
    counts = w > 0
    E, e = error(network, loss, z, np.where(counts if y.ndim == w.ndim else counts[..., None], y, 0))
    return np.where(counts, w * E, 0), np.where(counts[..., None], w[..., None] * e, 0)


def errors(
    network: Network, trajectory: Trajectory, y: Array, loss: str, weights: Array | float = 1.0
) -> tuple[Array, Array]:
    """w_t E_t (T, ...) and e_t (T, ..., m) along a trajectory, weights (T, ...); 0 beyond a sequence's length."""
    z = readout_argument(network, readout_states(network, trajectory))
    return weighted_error(network, loss, z, y, np.where(trajectory.valid[1:, ..., 0], weights, 0))


# The gradient ---------------------------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """dE/d(each array of the network), None where it is absent, dE/d(initial) (..., n) and dE/dx (T, ..., p)."""

    W_R: Array
    W_I: Array
    W_O: Array | None
    b_R: Array | None
    b_I: Array | None
    b_O: Array | None
    initial: Array
    x: Array


def slopes(network: Network, trajectory: Trajectory) -> Array:
    """The diagonals of D_0 .. D_T, (T + 1, ..., n)."""
    D = ACTIVATIONS[network.activation].derivative(trajectory.h)
    if network.form == "activation":
        D[0] = 1
    return D


def direct(network: Network, D: Array, e: Array) -> Array:
    """g_t = d(w_t E_t)/dh_t: e_t W_O D_t where the readout reads a_t, e_t W_O where it reads h_t."""
    assert network.W_O is not None
    return e @ network.W_O * (D if network.readout == "activation" else 1)


def deltas(network: Network, D: Array, g: Array) -> Array:
    """δ_t = dE/dh_t = g_t + δ_{t+1} W_R D_t for t = T .. 0; δ_0 is dE/d(initial) (Pascanu 2013 eq. 5)."""
    delta = [g[-1]]
    for t in range(len(g) - 2, -1, -1):
        delta.append(g[t] + delta[-1] @ network.W_R * D[t])
    return np.stack(delta[::-1])


def outer_sum(u: Array, v: Array) -> Array:
    """Sum over steps and sequences of u_t^T v_t^T."""
    columns = int(np.prod(u.shape[:-1]))  # spelled out: there may be no units, as in x where there are no inputs
    return u.reshape(columns, u.shape[-1]).T @ v.reshape(columns, v.shape[-1])


def vector_sum(u: Array) -> Array:
    """Sum over steps and sequences of u_t."""
    return np.asarray(u.reshape(-1, u.shape[-1]).sum(axis=0))


def after_0(u: Array) -> Array:
    """u_1 .. u_T with a zero row for t = 0 before it."""
    return np.concatenate([np.zeros((1, *u.shape[1:])), u])


def backward(
    network: Network,
    x: Array,
    trajectory: Trajectory,
    e: Array | None = None,
    d_states: Array | None = None,
    d_final: Array | None = None,
) -> Gradients:
    """The exact gradient, from dE/dz_t (T, ..., m), dE/d(state t) (T, ..., n) and dE/d(final state) (..., n).

    States are the form's own. `through_prediction` makes dE/dz_t of dE/do_t.
    """
    D, valid = slopes(network, trajectory), trajectory.valid
    own = D if network.form == "activation" else np.ones_like(D)
    g = np.zeros_like(D)
    if e is None and network.W_O is not None:
        e = np.zeros((*x.shape[:-1], len(network.W_O)))
    if e is not None:
        e = np.where(valid[1:], e, 0)
        g = g + after_0(direct(network, D[1:], e))
    if d_states is not None:
        g = g + after_0(np.where(valid[1:], d_states * own[1:], 0))
    if d_final is not None:
        g = g + np.where(trajectory.last, d_final * own, 0)
    delta = deltas(network, D, g)
    return Gradients(
        W_R=outer_sum(delta[1:], trajectory.a[:-1]),
        W_I=outer_sum(delta[1:], np.where(valid[1:], x, 0)),
        W_O=None if e is None else outer_sum(e, readout_states(network, trajectory)),
        b_R=None if network.b_R is None else vector_sum(delta[1:]),
        b_I=None if network.b_I is None else vector_sum(delta[1:]),
        b_O=None if e is None or network.b_O is None else vector_sum(e),
        initial=delta[0],
        x=delta[1:] @ network.W_I,
    )


def value_and_grad(
    network: Network,
    x: Array,
    y: Array,
    loss: str,
    initial: Array,
    weights: Array | float = 1.0,
    lengths: Array | None = None,
) -> tuple[Any, Gradients]:
    """E = sum of w_t E_t over steps and sequences, and its gradient."""
    trajectory = forward(network, x, initial, lengths)
    E, e = errors(network, trajectory, y, loss, weights)
    return E.sum(), backward(network, x, trajectory, e)
