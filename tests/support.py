"""What several test files need: problems, and what the reference says of them."""

from __future__ import annotations

import numpy as np

import bptt
from bptt import reference
from bptt.network import WEIGHTS

ACTIVATIONS = ("identity", "tanh", "logistic", "relu", "leaky_relu", "elu", "softplus", "softsign")
CURVED = tuple(activation for activation in ACTIVATIONS if activation not in ("identity", "relu"))
STATES = ("activation", "preactivation")  # forms and readouts have the same two names
PARTS = (*WEIGHTS, "initial", "x")

#: Relative error (Frobenius) of a level against the float64 reference, in contracting networks with T <= 300: some
#: thousand eps of float64 and some hundred of float32, for sums of T * B rounded products of states rounded T times.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}


def network(n=6, p=3, m=4, *, gain=0.9, dtype="float64", seed=0, both_biases=True, **choices) -> bptt.RNN:
    """A contracting network with every weight present."""
    rng = np.random.default_rng(seed)
    rnn = bptt.RNN.random(p, n, m, gain=gain, dtype=dtype, rng=rng, **choices)
    biases = {name: 0.3 * rng.standard_normal(len(weight)) for name, weight in (("b_R", rnn.W_R), ("b_O", rnn.W_O))}
    if both_biases:
        biases["b_I"] = 0.3 * rng.standard_normal(n)
    return rnn.replace(**biases)


T, B, N, P, M = 12, 4, 6, 3, 5
LENGTHS = np.array([7, 12, 0, 9])


def problem(seed=0, **choices):
    """A generator, a network of N units, inputs (T, B, P) and targets of every step."""
    rng = np.random.default_rng(seed)
    rnn = network(N, P, M, **choices)
    return rng, rnn, rng.standard_normal((T, B, P)), targets(rng, rnn, (T, B))


def targets(rng, rnn, sizes, loss=None):
    """Targets of every step for the network's own error, or for ``loss``."""
    if (loss or ("cross_entropy" if rnn.output == "softmax" else "squared_error")) == "cross_entropy":
        return rng.integers(rnn.m, size=sizes)
    return rng.standard_normal((*sizes, rnn.m))


def specification(rnn: bptt.RNN) -> reference.Network:
    weights = (None if (weight := getattr(rnn, name)) is None else weight.astype(float) for name in WEIGHTS)
    return reference.Network(*weights, rnn.activation, rnn.form, rnn.readout, rnn.output)


def expected(rnn, x, y, *, loss=None, weights=1.0, lengths=None, initial=None):
    """`reference.value_and_grad` with ``reduction="sum"``, on the same arguments."""
    x = np.asarray(x)
    u = reference.one_hot(x, rnn.p) if x.dtype.kind in "iu" else x.astype(float)
    if initial is None:
        initial = np.zeros((*u.shape[1:-1], rnn.n))
    loss = loss or ("cross_entropy" if rnn.output == "softmax" else "squared_error")
    return reference.value_and_grad(specification(rnn), u, y, loss, initial, weights, lengths)


def assert_gradients(mine: bptt.Gradients, theirs, *, tolerance: float, factor: float = 1.0, parts=PARTS) -> None:
    for name in parts:
        gradient, wanted = getattr(mine, name), getattr(theirs, name)
        if gradient is None:
            assert name == "x" or wanted is None, name
            continue
        assert gradient.shape == wanted.shape, name
        assert relative_error(gradient, factor * wanted) <= tolerance, name


def relative_error(mine, theirs) -> float:
    """Frobenius; the absolute error where theirs is 0."""
    scale = np.linalg.norm(theirs)
    return float(np.linalg.norm(np.subtract(mine, theirs)) / (scale or 1.0))
