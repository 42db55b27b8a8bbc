"""`forward`, and the results of all calls: shapes, views, copies."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import bptt
from bptt import reference
from support import (
    LENGTHS,
    PARTS,
    STATES,
    TOLERANCE,
    B,
    N,
    problem,
    relative_error,
    specification,
)

pytestmark = pytest.mark.usefixtures("level")


@pytest.mark.parametrize("form", STATES)
@pytest.mark.parametrize("readout", STATES)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.usefixtures("grid")
def test_forward_is_the_references(form, readout, lengths):
    rng, rnn, x, _ = problem(form=form, readout=readout)
    initial = rng.standard_normal((B, N))
    trajectory = bptt.forward(rnn, x, initial, lengths=lengths)
    net = specification(rnn)
    run = reference.forward(net, x, initial, lengths)
    o = reference.prediction(net, reference.readout_argument(net, reference.readout_states(net, run)))
    wanted = {
        "preactivations": run.h[1:],
        "activations": run.a,
        "states": reference.states(net, run),
        "outputs": np.where(run.valid[1:], o, 0),
        "initial": initial,
        "final": reference.states(net, run)[run.lengths, np.arange(B)],
    }
    for name, array in wanted.items():
        mine = getattr(trajectory, name)
        assert mine.shape == array.shape, name
        assert relative_error(mine, array) < TOLERANCE["float64"], name
        assert not mine.flags.writeable, name
    assert np.array_equal(trajectory.lengths, run.lengths)


@pytest.mark.parametrize(("activation", "a_0"), [("tanh", 0.0), ("logistic", 0.5), ("softplus", np.log(2))])
def test_the_initial_value_is_by_default_the_zero_of_the_forms_own_state(activation, a_0):
    _, rnn, x, _ = problem(activation=activation)
    assert np.array_equal(bptt.forward(rnn, x).activations[0], np.zeros((B, N)))
    trajectory = bptt.forward(rnn.replace(form="preactivation"), x)
    assert np.array_equal(trajectory.states[0], np.zeros((B, N)))
    assert np.allclose(trajectory.activations[0], a_0, rtol=1e-15, atol=0)


def test_views_where_all_sequences_are_equally_long():
    _, rnn, x, _ = problem()
    trajectory = bptt.forward(rnn, x)
    for name in ("preactivations", "activations", "states", "outputs", "initial", "final"):
        assert np.shares_memory(getattr(trajectory, name), getattr(trajectory, name)), name


def test_rows_lie_on_lines_of_64_bytes():
    _, rnn, x, _ = problem()
    for trajectory in (bptt.forward(rnn, x), copy.deepcopy(bptt.forward(rnn, x)), bptt.forward(rnn.astype("f4"), x)):
        for rows in (trajectory._a, trajectory._h):
            assert rows.ctypes.data % 64 == 0
            assert rows.strides[0] % 64 == 0


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_results_pickle_and_copy(clone, lengths):
    rng, rnn, x, y = problem(form="preactivation")
    trajectory = bptt.forward(rnn, x, rng.standard_normal((B, N)), lengths=lengths)
    copied = clone(trajectory)
    for name in ("preactivations", "activations", "states", "outputs", "initial", "final", "lengths"):
        assert np.array_equal(getattr(copied, name), getattr(trajectory, name)), name
    d_final = rng.standard_normal((B, N))
    mine, theirs = (bptt.backward(rnn, x, run, d_final=d_final) for run in (copied, trajectory))
    assert np.array_equal(mine.W_R, theirs.W_R)
    _, gradients = bptt.value_and_grad(rnn, x, y, lengths=lengths, wrt_inputs=True)
    copied = clone(gradients)
    for name in (*PARTS, "final"):
        assert np.array_equal(getattr(copied, name), getattr(gradients, name)), name


def test_representations_are_short():
    _, rnn, x, y = problem()
    assert repr(bptt.forward(rnn, x)) == "Trajectory(T=12, B=4, n=6, m=5, float64)"
    assert repr(bptt.forward(rnn.replace(W_O=None, b_O=None), x[:, 0])) == "Trajectory(T=12, n=6, float64)"
    _, gradients = bptt.value_and_grad(rnn, x, y, wrt_inputs=True)
    assert repr(gradients) == (
        "Gradients(W_R (6, 6), W_I (6, 3), W_O (5, 6), b_R (6,), b_I (6,), b_O (5,), initial (4, 6), x (12, 4, 3), "
        "float64)"
    )


def test_results_are_frozen_and_compare_by_identity():
    _, rnn, x, y = problem()
    for result in (bptt.forward(rnn, x), bptt.value_and_grad(rnn, x, y)[1], bptt.check(rnn, x, y)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, dataclasses.fields(result)[0].name, 0)
    assert bptt.forward(rnn, x) != bptt.forward(rnn, x)
