"""Arrays of any layout, byte order and owner are read right, and neither changed nor copied whole."""

import numpy as np
import pytest

import bptt
from bptt import _memory, _streams, _sweep
from support import LENGTHS, B, M, N, P, T, problem

pytestmark = pytest.mark.usefixtures("level", "grid")

LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": lambda array: np.repeat(np.stack([array] * 2, axis=-1), 3, axis=0)[::3, ..., 1],
    "reversed": lambda array: array[::-1].copy()[::-1],
    "batch first": lambda array: np.swapaxes(np.swapaxes(array, 0, 1).copy(), 0, 1) if array.ndim > 1 else array,
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "unaligned": lambda array: unaligned(array),
    "subclass": lambda array: array.view(Subclass),
    "list": lambda array: array.tolist(),
}


class Subclass(np.ndarray):
    pass


def unaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    result = raw[1:].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def read_only(value):
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layouts(layout, lengths, tokens, dtype):
    rng, rnn, x, y = problem(dtype=dtype)
    x = rng.integers(P, size=(T, B)) if tokens else x.astype(dtype)
    weights, initial = rng.uniform(size=(T, B)).astype(dtype), rng.standard_normal((B, N)).astype(dtype)
    arrays = {"x": x, "y": y, "weights": weights, "initial": initial, "lengths": lengths}
    given = {name: None if array is None else read_only(LAYOUTS[layout](array)) for name, array in arrays.items()}
    value, gradients = bptt.value_and_grad(rnn, **given)
    wanted_value, wanted = bptt.value_and_grad(rnn, **arrays)
    assert value == wanted_value
    assert np.array_equal(gradients.ravel(), wanted.ravel())
    assert np.array_equal(gradients.initial, wanted.initial)
    trajectory = bptt.forward(rnn, given["x"], given["initial"], lengths=given["lengths"])
    upstream = [rng.standard_normal(shape).astype(dtype) for shape in ((T, B, M), (T, B, N), (B, N))]
    mine = bptt.backward(rnn, given["x"], trajectory, *(read_only(LAYOUTS[layout](array)) for array in upstream))
    theirs = bptt.backward(rnn, x, bptt.forward(rnn, x, initial, lengths=lengths), *upstream)
    assert np.array_equal(mine.ravel(), theirs.ravel())


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">i8", ">u4"])
def test_any_integers_are_tokens_and_classes(kind):
    rng, rnn, _, y = problem()
    tokens = rng.integers(P, size=(T, B))
    value, gradients = bptt.value_and_grad(rnn, tokens.astype(kind), y.astype(kind))
    wanted_value, wanted = bptt.value_and_grad(rnn, tokens, y)
    assert value == wanted_value
    assert np.array_equal(gradients.ravel(), wanted.ravel())


@pytest.mark.parametrize("network", ["float32", "float64"])
@pytest.mark.parametrize("array", ["float32", "float64", "int64"])
def test_the_networks_dtype_is_the_law(network, array):
    rng, rnn, _, _ = problem(dtype=network, output="linear")
    x = rng.standard_normal((T, B, P)).astype("float32")
    y, weights, initial = (rng.integers(3, size=shape) for shape in ((T, B, M), (T, B), (B, N)))
    given = (value.astype(array) for value in (y, weights, initial))
    named = dict(zip(("y", "weights", "initial"), given, strict=True))
    value, gradients = bptt.value_and_grad(rnn, x.astype("float64"), **named, wrt_inputs=True)
    wanted_value, wanted = bptt.value_and_grad(rnn, x, y, weights=weights, initial=initial, wrt_inputs=True)
    assert value == wanted_value
    for name in ("W_R", "W_I", "W_O", "b_R", "b_O", "initial", "x", "final"):
        assert getattr(gradients, name).dtype == network
        assert np.array_equal(getattr(gradients, name), getattr(wanted, name))
    trajectory = bptt.forward(rnn, x, initial.astype(array))
    assert {getattr(trajectory, name).dtype for name in ("states", "outputs", "final")} == {np.dtype(network)}


def test_nothing_given_is_changed():
    rng, rnn, x, y = problem()
    arrays = {"weights": rng.uniform(size=(T, B)), "initial": rng.standard_normal((B, N)), "lengths": LENGTHS.copy()}
    before = [array.copy() for array in (x, y, *arrays.values())]
    bptt.value_and_grad(rnn, x, y, **arrays, wrt_inputs=True)
    assert all(np.array_equal(a, b) for a, b in zip((x, y, *arrays.values()), before, strict=True))


def test_a_memory_map_is_read_segment_by_segment(tmp_path, monkeypatch):
    """Of a file of float64, no more than a segment is ever converted to the network's float32 at a time."""
    steps, copied = 50, []

    def spy(array, dtype):
        result = _memory.contiguous(array, dtype)
        copied.append(0 if np.shares_memory(result, array) else len(result))
        return result

    monkeypatch.setattr(_streams, "contiguous", spy)
    monkeypatch.setattr(_sweep, "segment_steps", lambda *args: 5)
    source = np.memmap(tmp_path / "x", np.float64, "w+", shape=(steps, P))
    source[:] = np.random.default_rng(0).standard_normal((steps, P))
    rnn = bptt.RNN.random(P, N, M, dtype="float32")
    bptt.value_and_grad(rnn, source, np.zeros(steps, np.int8))
    assert len(copied) == 3 * steps // 5 - 1  # x forward, x and y back; where the way turns, x once
    assert max(copied) == 5


def test_in_place_updates_of_the_weights_are_seen():
    _, rnn, x, y = problem()
    W_R = rnn.W_R.copy()
    mine = rnn.replace(W_R=W_R)
    first, _ = bptt.value_and_grad(mine, x, y)
    W_R *= 0.5
    second, _ = bptt.value_and_grad(mine, x, y)
    assert first != second
    assert second == bptt.value_and_grad(rnn.replace(W_R=0.5 * rnn.W_R), x, y)[0]
