"""Inputs that are read slice by slice: never whole, never twice the memory, and never trusted."""

import numpy as np
import pytest

import bptt
from support import network, targets

STEPS, B = 60, 3


class Store:
    """An array outside memory, as HDF5 and Zarr have them: shape, dtype and slices of time."""

    def __init__(self, array, *, ends=None, changes=None):
        self.shape, self.dtype = array.shape, array.dtype
        self._array, self._ends, self._changes = array, ends, changes or (lambda block: block)
        self.largest = 0

    def __getitem__(self, steps):
        assert isinstance(steps, slice)
        assert steps.step is None
        block = self._array[steps.start : steps.stop if self._ends is None else min(steps.stop, self._ends)]
        self.largest = max(self.largest, len(block))
        return self._changes(block) if steps.start >= 20 else block

    def __array__(self, *args, **kwargs):
        raise AssertionError("a store must never be read whole")


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr("bptt._sweep.segment_steps", lambda *args: 10)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    rnn = network()
    return rnn, rng.standard_normal((STEPS, B, 3)), targets(rng, rnn, (STEPS, B)), rng.random((STEPS, B))


def assert_equal(mine, theirs):
    assert mine[0] == theirs[0]
    assert np.array_equal(mine[1].ravel(), theirs[1].ravel())


@pytest.mark.parametrize("lengths", [None, [60, 13, 41]])
def test_read_segment_by_segment(problem, lengths):
    rnn, x, y, weights = problem
    stores = Store(x), Store(y), Store(weights)
    mine = bptt.value_and_grad(rnn, stores[0], stores[1], weights=stores[2], lengths=lengths)
    assert_equal(mine, bptt.value_and_grad(rnn, x, y, weights=weights, lengths=lengths))
    assert [store.largest for store in stores] == [10, 10, 10]
    trajectory = bptt.forward(rnn, stores[0], lengths=lengths)
    assert np.array_equal(trajectory.outputs, bptt.forward(rnn, x, lengths=lengths).outputs)


def test_every_kind_of_target(problem):
    rnn, x, y, _ = problem
    tokens = np.random.default_rng(1).integers(3, size=(STEPS, B))
    assert_equal(bptt.value_and_grad(rnn, Store(tokens), Store(y)), bptt.value_and_grad(rnn, tokens, y))
    assert_equal(bptt.value_and_grad(rnn, x, Store(y[-1])), bptt.value_and_grad(rnn, x, y[-1]))
    wanted = np.random.default_rng(2).standard_normal((STEPS, B, 4))

    def error(o, y):
        assert len(y) == 10
        return ((o - y) ** 2).sum(-1), 2 * (o - y)

    for loss in ("squared_error", error):
        mine = bptt.value_and_grad(rnn, Store(x), Store(wanted), loss=loss)
        assert_equal(mine, bptt.value_and_grad(rnn, x, wanted, loss=loss))


def test_one_sequence_from_a_memory_map(problem, tmp_path):
    rnn, x, y, _ = problem
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=(STEPS, 3))
    file[:] = x[:, 0]
    assert_equal(
        bptt.value_and_grad(rnn, file, y[:, 0], memory="1 MB"), bptt.value_and_grad(rnn, np.array(file), y[:, 0])
    )


@pytest.mark.parametrize(
    ("name", "step", "steps"), [("x", 35, "31..40"), ("y", 51, "51..60"), ("weights", 51, "51..60")]
)
def test_a_stream_that_ends_early(problem, name, step, steps):
    """x is read forward first; targets last first, so that of their end it is known before which step it is."""
    rnn, x, y, weights = problem
    arrays = {"x": x, "y": y, "weights": weights}
    arrays[name] = Store(arrays[name], ends=34)
    with pytest.raises(
        ValueError, match=rf"^{name} ends before step t = {step} .*steps {steps} must have shape \(10, 3"
    ):
        bptt.value_and_grad(rnn, **arrays)


@pytest.mark.parametrize("change", [lambda block: block[..., :1], lambda block: block.astype("f4"), lambda block: 7.0])
def test_a_stream_that_changes(problem, change):
    rnn, x, y, _ = problem
    with pytest.raises(ValueError, match=r"^x changes at step t = 21 .*got \("):
        bptt.value_and_grad(rnn, Store(x, changes=change), y)


def test_values_out_of_range_in_a_stream(problem):
    rnn, x, y, _ = problem
    y[41, 2] = 4
    with pytest.raises(ValueError, match=r"y must be in 0..m-1 with m = 4; got 4 at step t = 42 of sequence b = 2"):
        bptt.value_and_grad(rnn, Store(x), Store(y))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.zeros((STEPS, B, 2))}, ValueError, "x must have shape"),
        ({"x": np.zeros((STEPS, B, 3), complex)}, TypeError, "x must hold"),
        ({"y": np.zeros((STEPS, B + 1), int)}, ValueError, "y must have shape"),
        ({"y": np.zeros((STEPS, B))}, TypeError, "y must hold integers"),
        ({"weights": np.zeros(STEPS)}, ValueError, "weights must have shape"),
        ({"weights": np.zeros((STEPS, B), "U1")}, TypeError, "weights must hold real numbers"),
    ],
)
def test_what_a_stream_announces_is_checked_before_it_is_read(problem, arguments, error, message):
    rnn, x, y, weights = problem
    stores = {name: Store(array) for name, array in {"x": x, "y": y, "weights": weights, **arguments}.items()}
    with pytest.raises(error, match=message):
        bptt.value_and_grad(rnn, **stores)
    assert not any(store.largest for store in stores.values())
