"""Truncated BPTT against its definition, written out window by window with the reference."""

import itertools
import math

import numpy as np
import pytest

import bptt
from bptt.network import WEIGHTS
from support import TOLERANCE, expected, network, relative_error, targets

STEPS, B = 23, 3
CUTS = [(1, 1), (1, 5), (4, 4), (4, 6), (3, 9), (5, 22), (7, 7), (22, 22)]


def problem(form="activation", dtype="float64", batched=True):
    rng = np.random.default_rng(0)
    rnn = network(form=form, dtype=dtype)
    sizes = (STEPS, B) if batched else (STEPS,)
    x, y, weights = rng.standard_normal((*sizes, 3)), targets(rng, rnn, sizes), rng.random(sizes)
    return rnn, x, y, {"weights": weights, "initial": rng.standard_normal((*sizes[1:], rnn.n))}


def definition(rnn, x, y, weights, initial, k1, k2):
    """The sum over t of the gradient of the errors of t-k1+1 .. t, through the steps t-k2+1 .. t."""
    states = bptt.forward(rnn.astype(float), x, initial).states
    value, total, start = 0.0, dict.fromkeys((*WEIGHTS, "initial"), 0.0), 0
    for t in (*range(k1, len(x), k1), len(x)):
        cut = max(t - k2, 0)
        of_stretch = weights[cut:t].copy()
        of_stretch[: start - cut] = 0
        part, gradients = expected(rnn, x[cut:t], y[cut:t], weights=of_stretch, initial=states[cut])
        value += part
        for name in WEIGHTS if cut else total:
            total[name] = total[name] + getattr(gradients, name)
        start = t
    return value, total, states[-1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["activation", "preactivation"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("k1", "k2"), CUTS)
def test_definition(k1, k2, form, dtype, batched):
    rnn, x, y, arguments = problem(form, dtype, batched)
    value, total, final = definition(rnn, x, y, **arguments, k1=k1, k2=k2)
    mine, gradients = bptt.truncated_value_and_grad(rnn, x, y, k1=k1, k2=k2, reduction="sum", **arguments)
    assert mine == pytest.approx(value, rel=TOLERANCE[dtype])
    for name, wanted in total.items():
        assert relative_error(getattr(gradients, name), wanted) <= TOLERANCE[dtype], name
    assert relative_error(gradients.final, final) <= TOLERANCE[dtype]
    assert gradients.W_R.dtype == rnn.dtype


@pytest.mark.parametrize("k1", [1, 4, STEPS, 100])
def test_nothing_is_cut_off_when_k2_reaches_the_beginning(k1):
    rnn, x, y, arguments = problem()
    mine = bptt.truncated_value_and_grad(rnn, x, y, k1=k1, k2=100, **arguments)
    theirs = bptt.value_and_grad(rnn, x, y, **arguments)
    assert mine[0] == theirs[0]
    for name in (*WEIGHTS, "initial", "final"):
        assert np.array_equal(getattr(mine[1], name), getattr(theirs[1], name))


@pytest.mark.parametrize("weighted", [True, False])
def test_the_mean_divides_by_all_weights(weighted):
    rnn, x, y, arguments = problem()
    if not weighted:
        del arguments["weights"]
    total = float(arguments["weights"].sum()) if weighted else STEPS * B
    whole = bptt.truncated_value_and_grad(rnn, x, y, k1=4, k2=6, reduction="sum", **arguments)
    mean = bptt.truncated_value_and_grad(rnn, x, y, k1=4, k2=6, **arguments)
    assert mean[0] == pytest.approx(whole[0] / total, rel=1e-14)
    for name in (*WEIGHTS, "initial"):
        assert np.allclose(getattr(mean[1], name), getattr(whole[1], name) / total, rtol=1e-13, atol=0)


def test_weights_of_zero_everywhere():
    rnn, x, y, _ = problem()
    value, gradients = bptt.truncated_value_and_grad(rnn, x, y, k1=4, k2=6, weights=np.zeros((STEPS, B)))
    assert value == 0
    assert gradients.norm() == 0


def test_a_run_carries_its_state_and_reaches_over_blocks():
    """The sum of a run's gradients is that of the call, whatever the blocks; its state goes on into another run."""
    rnn, x, y, arguments = problem()
    initial = arguments["initial"]
    cuts = [0, 3, 4, 10, 13, STEPS]
    k2 = 10
    run = bptt.TruncatedRun(
        rnn, ((x[i:j], y[i:j]) for i, j in itertools.pairwise(cuts)), k2=k2, initial=initial, reduction="sum"
    )
    states = bptt.forward(rnn, x, initial).states
    for (i, j), (value, gradients) in zip(itertools.pairwise(cuts), run, strict=True):
        cut = max(j - k2, 0)
        weights = np.zeros((j - cut, B))
        weights[i - cut :] = 1
        wanted, theirs = expected(rnn, x[cut:j], y[cut:j], weights=weights, initial=states[cut])
        assert value == pytest.approx(wanted, rel=1e-12)
        for name in (*WEIGHTS, "initial"):
            assert relative_error(getattr(gradients, name), getattr(theirs, name)) <= 1e-12
        assert relative_error(run.state, states[j]) <= 1e-12


def test_a_run_holds_no_more_than_k2_steps_of_an_endless_stream():
    rnn = network(dtype="float32")
    tokens = np.zeros((5, 2), np.int8)
    run = bptt.TruncatedRun(rnn, itertools.repeat((tokens, tokens)), k2=12)
    for _ in range(20):
        next(run)
        assert len(run._past) <= 12
    assert run.state.shape == (2, rnn.n)


def test_the_network_may_be_replaced_between_items():
    rnn, x, y, _ = problem()
    run = bptt.TruncatedRun(rnn, [(x[:10], y[:10]), (x[10:], y[10:])], k2=STEPS, reduction="sum")
    next(run)
    run.rnn = other = network(seed=5)
    weights = np.ones((STEPS, B))
    weights[:10] = 0
    value, gradients = next(run)
    wanted, theirs = expected(other, x, y, weights=weights)
    assert value == pytest.approx(wanted, rel=1e-12)
    assert relative_error(gradients.W_R, theirs.W_R) <= 1e-12


def test_a_callable_and_a_store_of_slices():
    class Store:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __getitem__(self, steps):
            return self.array[steps]

    rnn, x, _, arguments = problem()
    wanted = np.random.default_rng(1).standard_normal((STEPS, B, 4))

    def error(o, y):
        return ((o - y) ** 2).sum(-1), 2 * (o - y)

    mine = bptt.truncated_value_and_grad(rnn, Store(x), Store(wanted), k1=4, k2=6, loss=error, **arguments)
    theirs = bptt.truncated_value_and_grad(rnn, x, wanted, k1=4, k2=6, loss="squared_error", **arguments)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-12)
    assert relative_error(mine[1].ravel(), theirs[1].ravel()) <= 1e-12


def test_bias_shrinks_with_k2_and_is_none_at_the_end():
    rnn, x, y, arguments = problem()
    biases = [bptt.truncation_bias(rnn, x, y, k1=2, k2=k2, **arguments) for k2 in (2, 6, 12, STEPS)]
    errors, angles = ([getattr(bias, name) for bias in biases] for name in ("relative_error", "angle"))
    assert errors == sorted(errors, reverse=True)
    assert angles == sorted(angles, reverse=True)
    assert errors[-1] == angles[-1] == 0
    assert 1e-3 < errors[0] < 1


def test_bias_of_a_known_case():
    """h_t = w h_(t-1) from h_0 = 1, E = h_T^2: dE/dw = 2 T w^(2T-1), of which the last k2 steps hold k2 / T."""
    T, k2 = 10, 4
    rnn = bptt.RNN([[0.9]], [[1.0]], [[1.0]], activation="identity", output="linear")
    x = y = np.zeros((T, 1))
    weights = np.eye(T)[-1]
    bias = bptt.truncation_bias(rnn, x, y, k1=k2, k2=k2, weights=weights, initial=[1.0])
    full = np.array([2 * T * 0.9 ** (2 * T - 1), 2 * 0.9 ** (2 * T)])  # by w and by the readout's weight
    truncated = full * [k2 / T, 1]
    assert bias.relative_error == pytest.approx(np.linalg.norm(full - truncated) / np.linalg.norm(full), rel=1e-12)
    assert bias.angle == pytest.approx(math.atan2(*full[::-1] / 1) * -1 + math.atan2(*truncated[::-1]), rel=1e-9)


def test_bias_without_a_gradient():
    rnn, x, y, _ = problem()
    bias = bptt.truncation_bias(rnn, x, y, k1=2, k2=4, weights=np.zeros((STEPS, B)))
    assert math.isnan(bias.relative_error)
    assert math.isnan(bias.angle)


def test_progress_and_memory():
    rnn, x, y, arguments = problem()
    told = []
    mine = bptt.truncated_value_and_grad(rnn, x, y, k1=4, k2=6, memory="1 MB", progress=told.append, **arguments)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert mine[0] == bptt.truncated_value_and_grad(rnn, x, y, k1=4, k2=6, **arguments)[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k1": 0}, ValueError, "k1 must be an integer >= 1"),
        ({"k2": 3}, ValueError, "k2 must be an integer >= 4; got 3"),
        ({"k2": 5.0}, TypeError, "k2 must be an integer"),
        ({"y": np.zeros(B, int)}, ValueError, r"y must have one entry a step, shape \(T, B, ...\); got \(3,\)"),
        ({"weights": np.zeros(3)}, ValueError, "weights must have shape"),
        ({"reduction": "median"}, ValueError, "reduction must be one of"),
        ({"memory": 10}, ValueError, "memory must be at least"),
    ],
)
def test_bad_arguments(change, error, message):
    rnn, x, y, arguments = problem()
    with pytest.raises(error, match=message):
        bptt.truncated_value_and_grad(rnn, **{"x": x, "y": y, "k1": 4, "k2": 6, **arguments, **change})


def test_bad_blocks():
    rnn, x, y, _ = problem()
    blocks = [(x[:5], y[:5]), (x[:5, :2], y[:5, :2])]
    run = bptt.TruncatedRun(rnn, blocks, k2=8)
    next(run)
    with pytest.raises(ValueError, match=r"x must go on as it began, with float64 of shape \(3, 3\) at each step"):
        next(run)
    for block in (x[:9], x[:0]):
        with pytest.raises(ValueError, match=r"x must have 1..k2 steps with k2 = 8; got"):
            next(bptt.TruncatedRun(rnn, [(block, y[: len(block)])], k2=8))


def test_steps_are_counted_from_the_beginning_of_the_sequence():
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(4, 8, 5)
    x, y = rng.standard_normal((30, 2, 4)), rng.integers(5, size=(30, 2))
    wrong = y.copy()
    wrong[22, 1] = 77
    with pytest.raises(ValueError, match="got 77 at step t = 23 of sequence b = 1"):
        bptt.truncated_value_and_grad(rnn, x, wrong, k1=5, k2=10)
    spoilt = x.copy()
    spoilt[20, 0] = np.nan
    with pytest.raises(FloatingPointError, match="first at step t = 21 of sequence b = 0"):
        bptt.truncated_value_and_grad(rnn, spoilt, y, k1=5, k2=10, nonfinite="raise")
    run = bptt.TruncatedRun(rnn, ((x[t : t + 5], wrong[t : t + 5]) for t in range(0, 30, 5)), k2=10)
    with pytest.raises(ValueError, match="step t = 23"):
        list(run)
    assert list(run) == []  # it does not go on past what failed


class Ending:
    """A stream that has fewer steps than it says."""

    def __init__(self, array, end):
        self._array, self._end, self.shape, self.dtype = array, end, array.shape, array.dtype

    def __getitem__(self, steps):
        return self._array[: self._end][steps]


@pytest.mark.parametrize("end", [0, 12, 29])
def test_a_stream_that_ends_early_is_named_with_the_step(end):
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(4, 8, 5)
    x, y = rng.standard_normal((30, 2, 4)), rng.integers(5, size=(30, 2))
    for name, (mine, theirs) in {"x": (Ending(x, end), y), "y": (x, Ending(y, end))}.items():
        with pytest.raises(ValueError, match=f"{name} ends before step t = {end + 1}"):
            bptt.truncated_value_and_grad(rnn, mine, theirs, k1=5, k2=10)


def test_a_run_keeps_one_shape_and_takes_pairs():
    rnn, x, y = bptt.RNN.random(4, 8, 5), np.zeros((5, 2, 4)), np.zeros((5, 2), int)
    for other in (bptt.RNN.random(4, 9, 5), rnn.replace(form="preactivation"), rnn.astype(np.float32)):
        run = bptt.TruncatedRun(rnn, iter([(x, y)] * 2), k2=10)
        next(run)
        run.rnn = other
        with pytest.raises(ValueError, match="rnn must stay of one shape and form"):
            next(run)
    for blocks in ([5], [(x, y, None)]):
        with pytest.raises(TypeError, match="blocks must be pairs"):
            next(bptt.TruncatedRun(rnn, blocks, k2=10))
