"""The level `reference`: the Protocol of `_kernel` in NumPy, on the equations of `reference`.

It is what every other level must agree with, and it runs everywhere. Arrays of either precision come in and go out; the
arithmetic between is float64. ``threads`` is accepted and ignored: one thread is what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bptt import reference
from bptt._kernel import ACTIVATIONS, FORMS, LOSSES, OUTPUTS, READOUTS, Array, Network, Ordered, Sums
from bptt._kernel_reference_chain import accumulate as accumulate
from bptt._kernel_reference_chain import advance as advance
from bptt._kernel_reference_jacobian import jacobian_by_chain as jacobian_by_chain
from bptt._kernel_reference_jacobian import jacobian_by_recursion as jacobian_by_recursion
from bptt._kernel_reference_lyapunov import grow as grow

# σ' where only a was stored: good enough for a gradient, not for a logarithm (`reference.ACTIVATIONS` starts from h).
DERIVATIVE_FROM_A: dict[str, Callable[[Array], Array]] = {
    "identity": np.ones_like,
    "tanh": lambda a: 1 - a**2,
    "logistic": lambda a: a * (1 - a),
    "relu": lambda a: np.where(a <= 0, 0.0, 1.0),
    "leaky_relu": lambda a: np.where(a <= 0, reference.SLOPE, 1.0),
    "elu": lambda a: np.where(a <= 0, 1 + a, 1.0),
    "softplus": lambda a: -np.expm1(-a),
    "softsign": lambda a: (1 - np.abs(a)) ** 2,
}


@np.errstate(all="ignore")
def forward(network: Network, x: Array | Ordered, counts: Array, a: Array, h: Array | None, threads: int) -> int:
    x = _in_order(x, counts)
    net, n = _specification(network, x), len(network.W_R)
    sigma = reference.ACTIVATIONS[net.activation].sigma
    for columns, rows, previous in _steps(counts):
        h_t = reference.preactivation(net, a[previous, :n], _inputs(net, x[columns]))
        a[rows, :n] = sigma(h_t)
        if h is not None:
            h[columns, :n] = h_t
    stored = a[counts[0] :, :n] if h is None else np.hstack([a[counts[0] :, :n], h[:, :n]])
    return int(_not_finite(stored)[0])


@np.errstate(all="ignore")
def outputs(network: Network, r: Array, o: Array, unit: int, threads: int) -> None:
    net, n = _specification(network), len(network.W_R)
    o[:] = reference.prediction(net, reference.readout_argument(net, r[:, :n].astype(float)))


@np.errstate(all="ignore")
def direct(
    network: Network,
    loss: int,
    a: Array,
    h: Array | None,
    y: Array,
    weights: Array | None,
    errors: Array,
    g: Array,
    threads: int,
) -> None:
    net, n = _specification(network), len(network.W_R)
    errors[:], e = _errors(net, loss, _readout_states(net, a, h), y, weights)
    g[:, :n] = reference.direct(net, _derivative(net, a, h), e)


@np.errstate(all="ignore")
def best_parts(n: int, size: int) -> int:
    return 1


@np.errstate(all="ignore")
def backward(
    network: Network,
    loss: int,
    x: Array | Ordered,
    counts: Array,
    a: Array,
    h: Array | None,
    y: Array | None,
    weights: Array | None,
    d_outputs: Array | None,
    d_states: Array | None,
    carry: Array,
    errors: Array | None,
    sums: tuple[Sums, ...],
    more: bool,
    d_x: Array | None,
    delta: Array | None,
    threads: int,
) -> int:
    x = _in_order(x, counts)
    net, n = _specification(network, x), len(network.W_R)
    a_t = a[counts[0] :]
    D = _derivative(net, a_t, h)
    own = D if net.form == "activation" else np.ones_like(D)
    deltas = np.zeros_like(D)  # of g_t until its step comes
    total = sums[0]
    if not more:
        for array in (array for part in sums for array in part if array is not None):
            array.fill(0)

    if loss != -1 or d_outputs is not None:
        r = _readout_states(net, a_t, h)
        if loss != -1:
            assert errors is not None
            assert y is not None
            errors[:], e = _errors(net, loss, r, y, weights)
        else:
            assert d_outputs is not None
            o = reference.prediction(net, reference.readout_argument(net, r))
            e = reference.through_prediction(net, o, d_outputs)
        deltas += reference.direct(net, D, e)
        _add(total.W_O, reference.outer_sum(e, r))
        _add(total.b_O, reference.vector_sum(e))
    if d_states is not None:
        deltas += d_states * own

    d_state = carry[:, :n].astype(float)
    for i, (columns, _, previous) in reversed(list(enumerate(_steps(counts), start=1))):
        going_on, delta_t = counts[i + 1], deltas[columns]
        delta_t[:going_on] += d_state[:going_on] * D[columns][:going_on]
        delta_t[going_on:] += d_state[going_on : counts[i]] * own[columns][going_on:]
        d_state[: counts[i]] = delta_t @ net.W_R

        x_t = _inputs(net, x[columns])
        _add(total.W_R, reference.outer_sum(delta_t, a[previous, :n]))
        _add(total.W_I, reference.outer_sum(x_t, delta_t) if _are_tokens(x) else reference.outer_sum(delta_t, x_t))
    _add(total.b, reference.vector_sum(deltas))
    carry[: counts[1], :n] = d_state[: counts[1]]
    if d_x is not None:
        d_x[:] = deltas @ net.W_I
    if delta is not None:
        delta[:, :n] = deltas
    return int(_not_finite(deltas.astype(carry.dtype))[-1])


@np.errstate(all="ignore")
def activate(activation: int, h: Array, a: Array | None, d: Array | None, log_d: Array | None) -> None:
    functions = reference.ACTIVATIONS[ACTIVATIONS[activation]]
    for out, function in zip((a, d, log_d), functions, strict=True):
        if out is not None:
            out[...] = function(h.astype(float))


@np.errstate(all="ignore")
def add_units(values: Array, unit: int, total: float) -> float:
    for begin in reversed(range(0, len(values), unit)):
        total += float(values[begin : begin + unit].sum())
    return total


@np.errstate(all="ignore")
def scale(values: Sequence[Array], factor: float, scaled: Array, threads: int) -> bool:
    scaled[...] = np.sum(values, axis=0)[..., : scaled.shape[-1]].astype(float) * factor
    return bool(np.isfinite(scaled).all())


def arrange(lengths: Array) -> tuple[Array, Array, Array, Array]:
    order, ascending = np.argsort(-lengths, kind="stable"), np.sort(lengths)
    prefix = np.concatenate(([0], np.cumsum(ascending + 1)))
    B, longest_first = len(lengths), ascending[::-1]
    shorter = np.searchsorted(ascending, longest_first)
    return order, ascending, prefix, prefix[shorter] + longest_first * (B - shorter) + np.arange(B)


def count_present(ascending: Array, t0: int, counts: Array) -> None:
    counts[:] = len(ascending) - np.searchsorted(ascending, np.arange(t0, t0 + len(counts)), side="left")


def pick(block: Array, order: Array, counts: Array, columns: Array) -> None:
    columns[...] = _in_order(Ordered(block, order), counts)


def find_outside(indices: Array, limit: int) -> int:
    outside = (indices < 0) | (indices >= limit)
    return int(np.argmax(outside)) if outside.any() else -1


def _in_order(x: Array | Ordered, counts: Array) -> Array:
    if not isinstance(x, Ordered):
        return x
    return np.concatenate([step[x.order[:count]] for step, count in zip(x.block, counts[1:-1], strict=True)])


def _are_tokens(x: Array) -> bool:
    return x.ndim == 1


def _specification(network: Network, x: Array | None = None) -> reference.Network:
    """The network as `reference` takes it. Without x, W_I is not going to be read."""
    n = len(network.W_R)
    W_I, W_O, b, b_O = network.W_I, network.W_O, network.b, network.b_O
    return reference.Network(
        W_R=network.W_R.astype(float),
        W_I=(W_I[:, :n].T if x is not None and _are_tokens(x) else W_I).astype(float),
        W_O=None if W_O is None else W_O.astype(float),
        b_R=None if b is None else b.astype(float),
        b_O=None if b_O is None else b_O.astype(float),
        activation=ACTIVATIONS[network.activation],
        form=FORMS[network.form],
        readout=READOUTS[network.readout],
        output=OUTPUTS[network.output],
    )


def _steps(counts: Array) -> list[tuple[slice, slice, slice]]:
    """For t = t0+1 .. t1: the columns of step t, their rows of a_t, and the rows of a_{t-1} that they continue."""
    begin = np.cumsum(counts) - counts
    return [
        (
            slice(begin[i] - counts[0], begin[i] - counts[0] + counts[i]),
            slice(begin[i], begin[i] + counts[i]),
            slice(begin[i - 1], begin[i - 1] + counts[i]),
        )
        for i in range(1, len(counts) - 1)
    ]


def _inputs(net: reference.Network, x: Array) -> Array:
    return reference.one_hot(x, net.W_I.shape[1]) if _are_tokens(x) else x


def _derivative(net: reference.Network, a: Array, h: Array | None) -> Array:
    n = len(net.W_R)
    if h is None:
        return DERIVATIVE_FROM_A[net.activation](a[:, :n].astype(float))
    return reference.ACTIVATIONS[net.activation].derivative(h[:, :n].astype(float))


def _readout_states(net: reference.Network, a: Array, h: Array | None) -> Array:
    r = a if net.readout == "activation" else h
    assert r is not None
    return r[:, : len(net.W_R)].astype(float)


def _errors(net: reference.Network, loss: int, r: Array, y: Array, weights: Array | None) -> tuple[Array, Array]:
    w = np.ones(len(r)) if weights is None else weights.astype(float)
    return reference.weighted_error(net, LOSSES[loss], reference.readout_argument(net, r), y, w)


def _add(total: Array | None, part: Array) -> None:
    if total is not None:
        total += part


def _not_finite(rows: Array) -> Array:
    """The numbers of the rows that hold anything not finite; [-1] if none does."""
    found = np.flatnonzero(~np.isfinite(rows).all(axis=-1))
    return found if found.size else np.array([-1])
