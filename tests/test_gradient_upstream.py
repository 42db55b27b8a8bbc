"""Gradients from outside: callables, `backward`, and `errors`, which is where they come from."""

import numpy as np
import pytest

import bptt
from bptt import reference
from support import LENGTHS, STATES, B, M, N, T, assert_gradients, problem, relative_error, specification, targets

pytestmark = pytest.mark.usefixtures("level")


def cross_entropy(o, y):
    """What the network itself does, by way of dE/do."""
    picked = np.take_along_axis(o, y[..., None], -1)[..., 0]
    d = np.zeros_like(o)
    np.put_along_axis(d, y[..., None], -1 / np.maximum(picked, 1e-300)[..., None], -1)
    return -np.log(np.maximum(picked, 1e-300)), d


@pytest.mark.parametrize("output", ["softmax", "linear"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("grid")
def test_a_callable_is_like_the_named_error_it_computes(output, lengths, weighted):
    rng, rnn, x, y = problem(output=output)
    weights = np.maximum(rng.uniform(-1, 1, size=(T, B)), 0) if weighted else None
    criterion = cross_entropy if output == "softmax" else (lambda o, y: (((o - y) ** 2).sum(-1), 2 * (o - y)))
    options = {"lengths": lengths, "weights": weights, "wrt_inputs": True}
    value, gradients = bptt.value_and_grad(rnn, x, y, loss=criterion, **options)
    wanted_value, wanted = bptt.value_and_grad(rnn, x, y, **options)
    assert value == pytest.approx(wanted_value, rel=1e-13)
    assert_gradients(gradients, wanted, tolerance=1e-12)


@pytest.mark.usefixtures("grid")
def test_what_a_callable_gets():
    _, rnn, x, y = problem()
    outputs = bptt.forward(rnn, x, lengths=LENGTHS).outputs
    seen = []

    def criterion(o, block):
        seen.append((o.copy(), block))
        beyond = ~o.any(axis=-1)
        return np.where(beyond, np.nan, 1.0), np.where(beyond[..., None], np.nan, np.zeros_like(o))

    value, gradients = bptt.value_and_grad(rnn, x, y, loss=criterion, lengths=LENGTHS, reduction="sum")
    assert value == LENGTHS.sum()  # what is returned for steps beyond a length is ignored
    assert not gradients.ravel().any()
    assert np.array_equal(np.concatenate([o for o, _ in reversed(seen)]), outputs)  # last block first
    assert np.array_equal(np.concatenate([block for _, block in reversed(seen)]), y)


def test_a_callable_unbatched_or_without_targets():
    _, rnn, x, _ = problem()

    def entropy(o, y):
        assert o.shape == (T, M)
        assert y is None
        return -(o * np.log(o)).sum(-1), -np.log(o) - 1

    value, gradients = bptt.value_and_grad(rnn, x[:, 0], None, loss=entropy)
    assert value == pytest.approx(entropy(bptt.forward(rnn, x[:, 0]).outputs, None)[0].mean(), rel=1e-13)
    assert gradients.initial.shape == (N,)


@pytest.mark.parametrize("form", STATES)
@pytest.mark.parametrize("readout", STATES)
@pytest.mark.parametrize("output", ["softmax", "linear"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.usefixtures("grid")
def test_backward_is_the_references(form, readout, output, lengths):
    rng, rnn, x, _ = problem(form=form, readout=readout, output=output)
    initial, d_final = rng.standard_normal((2, B, N))
    d_states, d_outputs = rng.standard_normal((T, B, N)), rng.standard_normal((T, B, M))
    trajectory = bptt.forward(rnn, x, initial, lengths=lengths)
    net = specification(rnn)
    run = reference.forward(net, x, initial, lengths)
    o = reference.prediction(net, reference.readout_argument(net, reference.readout_states(net, run)))
    e = reference.through_prediction(net, o, d_outputs)
    for upstream, specified in (
        ((d_outputs, None, None), (e, None, None)),
        ((None, d_states, None), (None, d_states, None)),
        ((None, None, d_final), (None, None, d_final)),
        ((d_outputs, d_states, d_final), (e, d_states, d_final)),
    ):
        gradients = bptt.backward(rnn, x, trajectory, *upstream, wrt_inputs=True)
        assert_gradients(gradients, reference.backward(net, x, run, *specified), tolerance=1e-12)
    assert not bptt.backward(rnn, x, trajectory).ravel().any()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_value_and_grad_is_forward_errors_backward(lengths):
    _, rnn, x, y = problem(output="linear")
    trajectory = bptt.forward(rnn, x, lengths=lengths)
    d_outputs = 2 * (trajectory.outputs - y)
    gradients = bptt.backward(rnn, x, trajectory, d_outputs, wrt_inputs=True)
    value, wanted = bptt.value_and_grad(rnn, x, y, lengths=lengths, reduction="sum", wrt_inputs=True)
    E, _ = bptt.errors(rnn, trajectory, y)
    assert E.sum() == pytest.approx(value, rel=1e-14)
    assert_gradients(gradients, wanted, tolerance=1e-13)


@pytest.mark.parametrize(
    ("output", "loss"), [("softmax", "cross_entropy"), ("softmax", "squared_error"), ("linear", None)]
)
@pytest.mark.parametrize("readout", STATES)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.usefixtures("grid")
def test_errors_are_the_references(output, loss, readout, lengths):
    rng, rnn, x, _ = problem(output=output, readout=readout)
    y, weights = targets(rng, rnn, (T, B), loss), rng.uniform(size=(T, B))
    E, g = bptt.errors(rnn, bptt.forward(rnn, x, lengths=lengths), y, loss=loss, weights=weights)
    net = specification(rnn)
    run = reference.forward(net, x, np.zeros((B, N)), lengths)
    wanted_E, e = reference.errors(net, run, y, loss or "squared_error", weights)
    assert E.shape == (T, B)
    assert g.shape == (T, B, N)
    assert relative_error(E, wanted_E) < 1e-13
    assert relative_error(g, reference.direct(net, reference.slopes(net, run)[1:], e)) < 1e-13
