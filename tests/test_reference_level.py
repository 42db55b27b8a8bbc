"""The level `reference` agrees with the executable specification, in every detail of the Protocol."""

from itertools import pairwise

import numpy as np
import pytest

from bptt import _kernel, reference
from bptt import _kernel_reference as level

N, P, M = 5, 3, 4
LENGTHS = np.array([6, 6, 4, 3, 1, 0])  # longest first, as columns are packed
T, B = 6, len(LENGTHS)
FORMS = ("activation", "preactivation")
PROBLEMS = (("softmax", "cross_entropy"), ("softmax", "squared_error"), ("linear", "squared_error"))
EPS = np.finfo(float).eps


def random_network(rng, **choices):
    shapes = ((N, N), (N, P), (M, N), (N,), (N,), (M,))
    return reference.Network(*(0.6 * rng.normal(size=shape) for shape in shapes), **choices)


def counts_between(t0, t1):
    return np.array([np.count_nonzero(t <= LENGTHS) for t in range(t0, t1 + 2)])


def pack(array, t0, t1):
    """Columns of steps t0+1 .. t1 of a (T, B, ...) array."""
    return np.concatenate([array[t, : np.count_nonzero(t < LENGTHS)] for t in range(t0, t1)])


def unpack(columns, t0, t1, into):
    for t, c in zip(range(t0, t1), np.split(columns, np.cumsum(counts_between(t0, t1)[1:-1])[:-1]), strict=True):
        into[t, : len(c)] = c


def padded(rows, dtype=float):
    """Rows of n at their stored length; a level that reads beyond n meets nan."""
    rows = np.asarray(rows, dtype=dtype)
    out = np.full((len(rows), _kernel.row_length(N, rows.itemsize)), np.nan, dtype)
    out[:, :N] = rows
    return out


def packed_network(net, tokens=False, dtype=float):
    W_I = padded(net.W_I.T, dtype) if tokens else net.W_I.astype(dtype)
    b = None if net.b_R is None else (net.b_R + net.b_I).astype(dtype)
    return _kernel.Network(
        net.W_R.astype(dtype),
        W_I,
        None if net.W_O is None else net.W_O.astype(dtype),
        b,
        None if net.b_O is None else net.b_O.astype(dtype),
        _kernel.ACTIVATIONS.index(net.activation),
        _kernel.FORMS.index(net.form),
        _kernel.READOUTS.index(net.readout),
        _kernel.OUTPUTS.index(net.output),
    )


def empty_sums(network, tokens=False):
    """Where nothing has been written yet, nan."""
    return _kernel.Sums(
        np.full((N, N), np.nan),
        np.full((P, N) if tokens else (N, P), np.nan),
        None if network.W_O is None else np.full((M, N), np.nan),
        None if network.b is None else np.full(N, np.nan),
        None if network.b_O is None else np.full(M, np.nan),
    )


class Run:
    """A ragged batch through the level, segment by segment, as the facade drives it."""

    def __init__(self, net, x, initial, cuts=(0, 2, 5, 6), keep_h=True, dtype=float):
        self.net, self.dtype = net, dtype
        self.tokens = x.dtype.kind == "i"
        self.network = packed_network(net, self.tokens, dtype)
        self.segments = list(pairwise(cuts))
        a_0 = initial if net.form == "activation" else reference.ACTIVATIONS[net.activation].sigma(initial)
        last = padded(a_0, dtype)
        self.x, self.a, self.h, self.found = [], [], [], []
        for t0, t1 in self.segments:
            counts = counts_between(t0, t1)
            columns = int(counts[1:-1].sum())
            x_seg = pack(x, t0, t1).astype(np.int32 if self.tokens else dtype)
            a = np.concatenate([last[: counts[0]], padded(np.zeros((columns, N)), dtype)])
            h = padded(np.zeros((columns, N)), dtype) if keep_h else None
            self.found.append(level.forward(self.network, x_seg, counts, a, h, 1))
            last = a[len(a) - counts[-2] :]
            self.x.append(x_seg)
            self.a.append(a)
            self.h.append(h)

    def gathered(self, segments, width):
        out = np.zeros((T, B, width))
        for (t0, t1), columns in zip(self.segments, segments, strict=True):
            unpack(columns[:, :width], t0, t1, out)
        return out

    def states(self):
        a = [a[counts_between(*s)[0] :] for a, s in zip(self.a, self.segments, strict=True)]
        return self.gathered(a, N)

    def backward(self, loss=-1, y=None, weights=None, d_outputs=None, d_states=None, d_final=None):
        carry = padded(np.zeros((B, N)) if d_final is None else d_final, self.dtype)
        self.sums = empty_sums(self.network, self.tokens)
        errors, d_x, deltas = [], [], []
        for i in reversed(range(len(self.segments))):
            segment = self.segments[i]
            cut = [None if v is None else pack(v, *segment) for v in (y, weights, d_outputs, d_states)]
            for j in range(4):
                if cut[j] is not None:
                    cut[j] = cut[j].astype(np.int32 if cut[j].dtype.kind == "i" else self.dtype)
            columns = len(self.x[i])
            errors.insert(0, np.full((columns, 1), np.nan))
            d_x.insert(0, None if self.tokens else np.full((columns, P), np.nan, self.dtype))
            deltas.insert(0, padded(np.zeros((columns, N)), self.dtype))
            found = level.backward(
                self.network,
                loss,
                self.x[i],
                counts_between(*segment),
                self.a[i],
                self.h[i],
                *cut,
                carry,
                errors[0][:, 0] if loss != -1 else None,
                (self.sums,),
                i + 1 < len(self.segments),
                d_x[0],
                deltas[0],
                1,
            )
            assert found == -1
        self.errors = self.gathered(errors, 1)[..., 0] if loss != -1 else None
        self.d_x = None if self.tokens else self.gathered(d_x, P)
        self.deltas = self.gathered(deltas, N)
        self.carry = carry[:, :N]


def assert_close(ours, wanted, eps=EPS):
    """Within 100 roundings of the array's largest number: sums of at most 20 terms of order one, in another order."""
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=100 * eps * np.abs(wanted).max())


def random_problem(rng, output, loss):
    y = rng.integers(0, M, (T, B)) if loss == "cross_entropy" else rng.normal(size=(T, B, M))
    weights = rng.random((T, B))
    weights[1, 2] = 0
    if loss == "cross_entropy":
        y[1, 2] = -7
    else:
        y[1, 2] = np.nan
    return y, weights


def gradient_by_initial(net, initial, carry):
    if net.form == "activation":
        return carry
    return np.where((LENGTHS > 0)[:, None], carry * reference.ACTIVATIONS[net.activation].derivative(initial), carry)


def agrees(run, gradients, initial, eps=EPS):
    assert_close(run.sums.W_R, gradients.W_R, eps)
    assert_close(run.sums.W_I.T if run.tokens else run.sums.W_I, gradients.W_I, eps)
    assert_close(run.sums.W_O, gradients.W_O, eps)
    assert_close(run.sums.b, gradients.b_R, eps)
    assert_close(run.sums.b_O, gradients.b_O, eps)
    assert_close(gradient_by_initial(run.net, initial, run.carry), gradients.initial, eps)
    if not run.tokens:
        assert_close(run.d_x, gradients.x, eps)


@pytest.mark.parametrize(("output", "loss"), PROBLEMS)
@pytest.mark.parametrize("readout", FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_a_ragged_batch_in_segments_equals_the_specification(form, readout, output, loss):
    rng = np.random.default_rng(1)
    net = random_network(rng, form=form, readout=readout, output=output)
    x, initial = rng.normal(size=(T, B, P)), rng.normal(size=(B, N))
    y, weights = random_problem(rng, output, loss)
    d_states, d_final = rng.normal(size=(T, B, N)), rng.normal(size=(B, N))

    trajectory = reference.forward(net, x, initial, LENGTHS)
    E, e = reference.errors(net, trajectory, y, loss, weights)
    run = Run(net, x, initial)
    assert run.found == [-1, -1, -1]
    assert_close(run.states(), trajectory.a[1:])
    assert_close(run.gathered(run.h, N), trajectory.h[1:])

    run.backward(_kernel.LOSSES.index(loss), y, weights, d_states=d_states, d_final=d_final)
    agrees(run, reference.backward(net, x, trajectory, e, d_states, d_final), initial)
    assert_close(run.errors, E)
    g = reference.direct(net, reference.slopes(net, trajectory)[1:], e)
    for (t0, t1), a, h in zip(run.segments, run.a, run.h, strict=True):
        g_seg, E_seg = padded(np.zeros((len(h), N))), np.zeros(len(h))
        a_t = a[counts_between(t0, t1)[0] :]
        y_seg = pack(y, t0, t1).astype(np.int32 if loss == "cross_entropy" else float)
        level.direct(run.network, _kernel.LOSSES.index(loss), a_t, h, y_seg, pack(weights, t0, t1), E_seg, g_seg, 1)
        assert_close(g_seg[:, :N], pack(g, t0, t1))
        assert_close(E_seg, pack(E, t0, t1))


@pytest.mark.parametrize("output", ["softmax", "linear"])
def test_upstream_gradients_of_the_outputs(output):
    rng = np.random.default_rng(2)
    net = random_network(rng, output=output)
    x, initial, d_outputs = rng.normal(size=(T, B, P)), rng.normal(size=(B, N)), rng.normal(size=(T, B, M))
    trajectory = reference.forward(net, x, initial, LENGTHS)
    z = reference.readout_argument(net, trajectory.a[1:])
    o = reference.prediction(net, z)
    run = Run(net, x, initial, keep_h=False)
    for (t0, t1), a in zip(run.segments, run.a, strict=True):
        r = a[counts_between(t0, t1)[0] :]
        written = np.full((len(r), M), np.nan)
        level.outputs(run.network, r, written, 7, 1)
        assert_close(written, pack(o, t0, t1))
    run.backward(d_outputs=d_outputs)
    e = reference.through_prediction(net, o, d_outputs)
    agrees(run, reference.backward(net, x, trajectory, e), initial)


def test_tokens_are_one_hot_inputs():
    rng = np.random.default_rng(3)
    net = random_network(rng)
    tokens, initial = rng.integers(0, P, (T, B)), rng.normal(size=(B, N))
    y, weights = random_problem(rng, "softmax", "cross_entropy")
    run = Run(net, tokens, initial)
    run.backward(0, y, weights)
    x = reference.one_hot(tokens, P)
    _, gradients = reference.value_and_grad(net, x, y, "cross_entropy", initial, weights, LENGTHS)
    agrees(run, gradients, initial)


def test_absent_weights_and_one_step_segments():
    rng = np.random.default_rng(4)
    net = random_network(rng)._replace(W_O=None, b_R=None, b_I=None, b_O=None, form="preactivation")
    x, initial, d_final = rng.normal(size=(T, B, P)), rng.normal(size=(B, N)), rng.normal(size=(B, N))
    run = Run(net, x, initial, cuts=range(T + 1), keep_h=False)
    run.backward(d_final=d_final)
    trajectory = reference.forward(net, x, initial, LENGTHS)
    gradients = reference.backward(net, x, trajectory, d_final=d_final)
    assert run.sums[2:] == (None, None, None)
    assert_close(run.sums.W_R, gradients.W_R)
    assert_close(run.sums.W_I, gradients.W_I)
    assert_close(gradient_by_initial(net, initial, run.carry), gradients.initial)


@pytest.mark.parametrize("activation", _kernel.ACTIVATIONS)
def test_stored_activations_alone_serve_every_activation(activation):
    rng = np.random.default_rng(5)
    net = random_network(rng, activation=activation)
    x, initial, d_states = rng.normal(size=(T, B, P)), rng.normal(size=(B, N)), rng.normal(size=(T, B, N))
    with_h, without_h = Run(net, x, initial), Run(net, x, initial, keep_h=False)
    with_h.backward(d_states=d_states)
    without_h.backward(d_states=d_states)
    assert_close(without_h.deltas, with_h.deltas)
    assert_close(without_h.sums.W_R, with_h.sums.W_R)


def test_float32_is_within_its_rounding():
    rng = np.random.default_rng(6)
    net = random_network(rng)
    x, initial = rng.normal(size=(T, B, P)), rng.normal(size=(B, N))
    y, weights = random_problem(rng, "softmax", "cross_entropy")
    run = Run(net, x, initial, dtype=np.float32)
    run.backward(0, y, weights)
    _, gradients = reference.value_and_grad(net, x, y, "cross_entropy", initial, weights, LENGTHS)
    agrees(run, gradients, initial, np.finfo(np.float32).eps)


def test_the_first_column_that_is_not_finite_is_named_forward_and_the_last_backward():
    rng = np.random.default_rng(7)
    net = random_network(rng, activation="relu")
    x, initial = rng.normal(size=(T, B, P)), rng.normal(size=(B, N))
    x[2, 1] = np.nan  # x_3 of sequence 1: column (3, 1), second of step 3
    run = Run(net, x, initial, cuts=(0, 6))
    column = counts_between(0, 2)[1:-1].sum() + 1
    assert run.found == [column]

    d_states = np.zeros((T, B, N))
    d_states[3, 0] = np.inf
    run = Run(random_network(rng, activation="identity"), rng.normal(size=(T, B, P)), initial, cuts=(0, 6))
    carry, sums = padded(np.zeros((B, N))), empty_sums(run.network)
    found = level.backward(
        *(run.network, -1, run.x[0], counts_between(0, 6), run.a[0], run.h[0], None, None, None),
        *(pack(d_states, 0, 6), carry, None, (sums,), False, None, None, 1),
    )
    assert found == counts_between(0, 3)[1:-1].sum()  # column (4, 0)


@pytest.mark.parametrize("activation", _kernel.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activate_writes_what_is_asked_for(activation, dtype):
    h = np.linspace(-30, 30, 101).astype(dtype)
    wanted = [f(h.astype(float)).astype(dtype) for f in reference.ACTIVATIONS[activation]]
    index = _kernel.ACTIVATIONS.index(activation)
    for i in range(3):
        out = [None, None, None]
        out[i] = np.full_like(h, np.nan)
        level.activate(index, h, *out)
        np.testing.assert_array_equal(out[i], wanted[i])
