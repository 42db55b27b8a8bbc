"""Every level that runs here, in both precisions, against the float64 reference; and the same bits for every team."""

import itertools

import numpy as np
import pytest

import bptt
from bptt import _levels, reference
from bptt._kernel import ACTIVATIONS as NUMBERED
from support import ACTIVATIONS, STATES, TOLERANCE, assert_gradients, expected, network, relative_error, targets

SIZES = (1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100)  # on and beside the widths of registers
DTYPES = ("float32", "float64")
ERRORS = (("softmax", "cross_entropy"), ("softmax", "squared_error"), ("linear", "squared_error"))


@pytest.fixture(autouse=True)
def in_use(kernel, monkeypatch):
    monkeypatch.setattr(_levels, "kernel", lambda: kernel)
    monkeypatch.setattr(_levels, "resolve_threads", lambda threads: threads or 2)  # teams larger than the machine too


def compare(rnn, x, y, **options):
    value, gradients = bptt.value_and_grad(rnn, x, y, reduction="sum", wrt_inputs=x.dtype.kind == "f", **options)
    error, wanted = expected(rnn, x, y, **options)
    tolerance = TOLERANCE[rnn.dtype.name]
    assert abs(value - error) <= tolerance * abs(error)
    assert_gradients(gradients, wanted, tolerance=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_sizes(n, dtype):
    rng = np.random.default_rng(n)
    # inputs and outputs straddle the registers too, in another order than n
    p, m = SIZES[-1 - SIZES.index(n)] % 40, 2 + SIZES[n % len(SIZES)]
    for B, activation in ((1, "tanh"), (3, "relu"), (20, "tanh")):
        rnn = network(n, p, m, dtype=dtype, seed=n, activation=activation)
        x = rng.standard_normal((37, B, p)).astype(dtype)
        compare(rnn, x, targets(rng, rnn, (37, B)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("output", "loss"), ERRORS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_network(activation, output, loss, dtype):
    rng = np.random.default_rng(0)
    for form, readout, B in itertools.product(STATES, STATES, (2, 10)):  # in one part, and in halves
        choices = {"activation": activation, "form": form, "readout": readout, "output": output}
        rnn = network(9, 3, 5, dtype=dtype, gain=0.7, **choices)
        x = rng.standard_normal((25, B, 3)).astype(dtype)
        initial = rng.standard_normal((B, 9)).astype(dtype)
        weights = rng.uniform(size=(25, B)).astype(dtype) * (rng.random((25, B)) < 0.8)
        y = targets(rng, rnn, (25, B), loss)
        lengths = np.array([7, 16, 25, 0, 25, 24, 1, 16, 17, 3])[:B]
        compare(rnn, x, y, loss=loss, initial=initial, weights=weights, lengths=lengths)
        compare(rnn, x, y, loss=loss, weights=weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [7, 64])
def test_tokens(n, dtype):
    rng = np.random.default_rng(n)
    rnn = network(n, 11, 11, dtype=dtype)
    tokens = rng.integers(11, size=(41, 5))
    compare(rnn, tokens[:-1], tokens[1:])
    compare(rnn, tokens[:-1], tokens[1:], lengths=np.array([3, 40, 40, 0, 21]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p"), [(9, 3), (33, 16), (16, 64), (64, 0)])
@pytest.mark.parametrize("B", [1, 5, 40])
def test_inputs_of_a_ragged_batch_are_found_where_they_lie(n, p, B, dtype):
    """What is not there may be anything; batches begin at step 1 and in the middle of a segment's grid."""
    rng = np.random.default_rng(n + B)
    rnn = network(n, p, 4, dtype=dtype)
    x = rng.standard_normal((31, B, p)).astype(dtype)
    lengths = rng.integers(32, size=B)
    lengths[0] = 31
    x[np.arange(31)[:, None] >= lengths] = np.nan
    y = targets(rng, rnn, (31, B))
    compare(rnn, x, y, lengths=lengths)
    for other in (x.astype("f8" if dtype == "float32" else "f4"), np.asfortranarray(x), x[::-1][::-1]):
        value, gradients = bptt.value_and_grad(rnn, other, y, lengths=lengths)
        wanted, exact = bptt.value_and_grad(rnn, other.astype(dtype, order="C"), y, lengths=lengths)
        assert value == wanted
        assert np.array_equal(gradients.W_I, exact.W_I)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sequences(dtype):
    rng = np.random.default_rng(0)
    rnn = network(33, 3, 4, dtype=dtype)
    compare(rnn, rng.standard_normal((300, 3, 3)).astype(dtype), rng.integers(4, size=(300, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("B", "n"), [(1, 256), (2, 256), (3, 200), (4, 256), (150, 17)])
def test_shapes_that_are_split(B, n, dtype):
    """Large enough for a team: by rows where the batch is small, by columns where it is large."""
    rng = np.random.default_rng(B)
    rnn = network(n, 5, 6, dtype=dtype)
    compare(rnn, rng.standard_normal((20, B, 5)).astype(dtype), rng.integers(6, size=(20, B)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_inputs_biases_or_readout(dtype):
    rng = np.random.default_rng(0)
    rnn = network(9, 0, 4, dtype=dtype).replace(b_R=None, b_I=None, b_O=None)
    x = np.zeros((12, 3, 0), dtype)
    compare(rnn, x, rng.integers(4, size=(12, 3)), initial=rng.standard_normal((3, 9)))
    blind = rnn.replace(W_O=None)
    d_final = rng.standard_normal((3, 9))
    initial = rng.standard_normal((3, 9))
    trajectory = bptt.forward(blind, x, initial)
    assert trajectory.outputs is None
    gradients = bptt.backward(blind, x, trajectory, d_final=d_final)
    full = bptt.backward(rnn, x, bptt.forward(rnn, x, initial), d_final=d_final)
    assert np.array_equal(gradients.W_R, full.W_R)
    assert gradients.W_O is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_with_their_tails(kernel, activation, dtype):
    """sigma, sigma' and log sigma' from h: to 8 eps of each value, however far out.

    An error of 8 eps in a logarithm is one of 8 eps of the value itself.
    """
    rng = np.random.default_rng(0)
    points = [0.0, 1e-30, -1e-30, 30.0, -30.0, 300.0, -300.0]
    far = np.concatenate([points, rng.standard_normal(90), 20 * rng.standard_normal(92)])
    for size in (1, 2, 7, 8, 9, 33, len(far)):
        h = far[-size:].astype(dtype)
        a, d, log_d = np.empty_like(h), np.empty_like(h), np.empty_like(h)
        kernel.activate(NUMBERED.index(activation), h, a, d, log_d)
        limits = np.finfo(dtype)
        for mine, function, least in zip((a, d, log_d), reference.ACTIVATIONS[activation], (0, 0, 1), strict=True):
            exact = np.asarray(function(h.astype(float)))
            with np.errstate(invalid="ignore"):  # -inf is -inf
                close = np.abs(mine - exact) <= 8 * limits.eps * np.maximum(np.abs(exact), least) + limits.tiny
            assert np.all(close | (mine == exact)), (activation, h[~close])


# The same bits for every team -------------------------------------------------------------------------------------


def everything(rnn, x, y, lengths, threads):
    trajectory = bptt.forward(rnn, x, lengths=lengths, threads=threads)
    yield from (trajectory.preactivations, trajectory.activations, trajectory.outputs)
    value, gradients = bptt.value_and_grad(rnn, x, y, lengths=lengths, wrt_inputs=x.dtype.kind == "f", threads=threads)
    yield np.asarray(value)
    yield from (getattr(gradients, name) for name in ("W_R", "W_I", "W_O", "b_R", "b_O", "initial"))
    if x.dtype.kind == "f":
        yield gradients.x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "B", "n"),
    [
        *[(9, B, 256) for B in (1, 2, 3, 4)],
        *[(30, 64, 64), (30, 131, 33), (9, 1, 16), (40, 7, 128)],
        *[(1500, 1, 16), (700, 1, 48)],  # one sequence that two threads share
    ],
)
@pytest.mark.parametrize("kind", ["numbers", "tokens", "ragged"])
@pytest.mark.parametrize("kernel", _levels.available()[1:], indirect=True)  # the reference has no threads
def test_threads_change_no_bit(T, B, n, dtype, kind):
    rng = np.random.default_rng(0)
    rnn = network(n, 7, 9, dtype=dtype)
    x = rng.integers(7, size=(T, B)) if kind == "tokens" else rng.standard_normal((T, B, 7)).astype(dtype)
    y = rng.integers(9, size=(T, B))
    lengths = rng.integers(T + 1, size=B) if kind == "ragged" else None
    alone = list(everything(rnn, x, y, lengths, 1))
    for threads in (1, 2, 3):
        for mine, theirs in zip(everything(rnn, x, y, lengths, threads), alone, strict=True):
            assert mine.tobytes() == theirs.tobytes()


def test_relative_error_sees_an_error():
    """The yardstick of this file."""
    assert relative_error(np.ones(4) + 1e-3, np.ones(4)) == pytest.approx(1e-3)
    rnn = network()
    x, y = np.zeros((3, 2, 3)), np.zeros((3, 2), int)
    _, wanted = expected(rnn, x, y)
    wrong = wanted._replace(W_R=wanted.W_R * (1 + 1e-9))
    with pytest.raises(AssertionError, match="W_R"):
        assert_gradients(bptt.value_and_grad(rnn, x, y, reduction="sum")[1], wrong, tolerance=1e-12)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000, 1024, 1025, 5000])
def test_values_are_added_unit_by_unit_from_the_last(kernel, count):
    values = np.random.default_rng(count).standard_normal(count)
    for unit in (1, 7, 256, 6000):
        total = 0.5
        for begin in reversed(range(0, count, unit)):
            total = kernel.add_units(values[begin : begin + unit], unit, total)
        assert kernel.add_units(values, unit, 0.5) == total  # wherever time is cut
        assert abs(total - 0.5 - values.sum()) <= 1e-13 * (1 + np.abs(values).sum())


@pytest.mark.parametrize("dtypes", ["dd", "df", "ff"])
@pytest.mark.parametrize("sizes", [(0,), (1,), (100,), (30_000,), (1, 1), (3, 17), (5, 0)])
def test_rows_are_scaled_rounded_once_and_checked(kernel, dtypes, sizes):
    source, target = map(np.dtype, dtypes)
    values = np.random.default_rng(0).standard_normal((*sizes[:-1], sizes[-1] + 3 * len(sizes) - 3)).astype(source)
    values[..., sizes[-1] :] = np.nan  # what lies between the rows is not looked at
    scaled = np.full(sizes, np.nan, target)
    assert kernel.scale((values,), 1 / 3, scaled, 1) is True
    wanted = (values[..., : sizes[-1]].astype(float) * (1 / 3)).astype(target)
    assert np.array_equal(scaled, wanted)
    for threads in (1, 2, 3):
        assert kernel.scale((values, values), 1 / 6, scaled, threads) is True
        assert np.array_equal(scaled, wanted)
    for wrong in (np.nan, np.inf, -np.inf, np.finfo(target).max):
        for at in {0, scaled.size // 2, scaled.size - 1} if scaled.size else ():
            spoilt = values.copy()
            spoilt[np.unravel_index(at, sizes)] = wrong
            assert kernel.scale((spoilt,), 1.25, scaled, 1) is False
            assert kernel.scale((values, spoilt), 1.25, scaled, 2) is False
            assert kernel.scale((spoilt,), 0.5, scaled, 2) is bool(np.isfinite(wrong))


@pytest.mark.parametrize("tail", [(), (3,), (2, 5), (0,)])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i2", "bool"])
def test_columns_are_picked(kernel, tail, dtype):
    block = np.random.default_rng(0).integers(2, 99, size=(6, 5, *tail)).astype(dtype)
    order, counts = np.array([3, 0, 4, 1, 2]), np.array([5, 5, 4, 4, 2, 1, 0, 0])
    columns = np.empty((16, *tail), dtype)
    kernel.pick(block, order, counts, columns)
    wanted = [block[t, order[j]] for t in range(6) for j in range(counts[t + 1])]
    assert np.array_equal(columns, wanted)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("count", [0, 1, 100, 1024, 3000])
def test_the_first_index_outside_is_found(kernel, dtype, count):
    indices = np.random.default_rng(count).integers(7, size=count).astype(dtype)
    assert kernel.find_outside(indices, 7) == -1
    for at in {0, count // 2, count - 1} & set(range(count)):
        for wrong in (-1, 7, np.iinfo(dtype).min, np.iinfo(dtype).max):
            spoilt = indices.copy()
            spoilt[at], spoilt[at + 1 :] = wrong, -5
            assert kernel.find_outside(spoilt, 7) == at
