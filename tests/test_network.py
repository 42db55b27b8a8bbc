"""`RNN`: what it holds, what it makes of itself, and its file."""

import copy
import dataclasses
import os
import pickle
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bptt
from bptt.network import WEIGHTS
from support import network


def same(mine: bptt.RNN, theirs: bptt.RNN) -> bool:
    """Every weight bit for bit, every choice."""
    arrays = ((getattr(mine, name), getattr(theirs, name)) for name in WEIGHTS)
    equal = all((a is None) == (b is None) and (a is None or np.array_equal(a, b)) for a, b in arrays)
    return equal and mine.dtype == theirs.dtype and mine._choices() == theirs._choices()


def test_weights_are_read_only_views_of_the_callers_arrays():
    W_R, W_I = np.eye(3), np.ones((3, 2))
    rnn = bptt.RNN(W_R, W_I)
    assert np.shares_memory(rnn.W_R, W_R)
    assert np.shares_memory(rnn.W_I, W_I)
    with pytest.raises(ValueError, match="read-only"):
        rnn.W_R[0, 0] = 5
    W_R[0, 0] = 5  # the owner's array stays the owner's
    assert rnn.W_R[0, 0] == 5


def test_is_frozen_and_compares_by_identity():
    rnn = network()
    with pytest.raises(dataclasses.FrozenInstanceError):
        rnn.activation = "relu"
    with pytest.raises((AttributeError, TypeError)):
        rnn.anything = 1
    assert rnn == rnn
    assert rnn != rnn.replace()
    assert len({rnn, rnn.replace()}) == 2


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.eye(2), "float64"),
        (np.eye(2, dtype="float32"), "float32"),
        (np.eye(2, dtype=">f4"), "float32"),
        (np.eye(2, dtype=">f8"), "float64"),
        (np.eye(2, dtype=int), "float64"),
        ([[1, 0], [0, 1]], "float64"),
    ],
)
def test_dtype_is_that_of_W_R(given, dtype):
    rnn = bptt.RNN(given, np.ones((2, 1)), [[1, 2]], b_R=np.zeros(2, "float32"), b_O=[1])
    assert rnn.dtype == dtype
    assert rnn.dtype.isnative
    assert {weight.dtype for weight in rnn._weights().values()} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    "make", [np.asfortranarray, lambda W: np.repeat(W, 2, axis=1)[:, ::2], lambda W: W.astype(">f8")]
)
def test_any_layout_becomes_a_contiguous_copy(make):
    W = np.arange(9.0).reshape(3, 3)
    rnn = bptt.RNN(make(W), make(W), make(W))
    for weight in rnn._weights().values():
        assert weight.flags.c_contiguous
        assert np.array_equal(weight, W)


def test_sizes():
    rnn = network(n=6, p=3, m=4)
    assert (rnn.n, rnn.p, rnn.m) == (6, 3, 4)
    assert rnn.size == 36 + 18 + 24 + 6 + 6 + 4
    assert bptt.RNN(np.eye(2), np.zeros((2, 0))).p == 0
    assert bptt.RNN(np.eye(2), np.ones((2, 1))).m == 0


def test_repr_names_shapes_and_choices():
    assert repr(bptt.RNN(np.eye(2), np.ones((2, 1)), b_I=[0, 1])) == (
        "RNN(W_R (2, 2), W_I (2, 1), b_I (2,), float64, activation='tanh', form='activation', readout='activation', "
        "output='softmax')"
    )


def test_replace():
    rnn = network()
    W_O = np.ones((9, rnn.n))
    changed = rnn.replace(W_O=W_O, b_O=None, output="linear")
    assert changed.m == 9
    assert changed.b_O is None
    assert changed.output == "linear"
    assert changed.W_R is not None
    assert np.shares_memory(changed.W_R, rnn.W_R)
    with pytest.raises(TypeError, match="W_X"):
        rnn.replace(W_X=1)


def test_astype_there_and_back():
    rnn = network(dtype="float32")
    wide = rnn.astype("float64")
    assert wide.dtype == np.float64
    assert same(wide.astype(np.float32), rnn)
    assert np.shares_memory(rnn.astype(np.float32).W_R, rnn.W_R)


@pytest.mark.parametrize("absent", [(), ("b_I",), ("b_R", "b_I", "b_O"), ("W_O", "b_O")])
def test_ravel_is_in_the_order_of_the_signature_and_unravel_its_inverse(absent):
    rnn = network().replace(**dict.fromkeys(absent))
    vector = rnn.ravel()
    assert vector.shape == (rnn.size,)
    present = [getattr(rnn, name).ravel() for name in ("W_R", "W_I", "W_O", "b_R", "b_I", "b_O") if name not in absent]
    assert np.array_equal(vector, np.concatenate(present))
    assert same(rnn.unravel(vector), rnn)


def test_unravel_takes_the_vector_as_it_is_or_casts_it():
    rnn = network(dtype="float32")
    vector = rnn.ravel()
    assert np.shares_memory(rnn.unravel(vector).W_R, vector)
    assert rnn.unravel(vector.astype(float)).dtype == np.float32


def test_a_vector_of_scipy_trains_it():
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    rnn = network(m=2)
    x, y = rng.standard_normal((10, 5, 3)), rng.integers(2, size=(10, 5))

    def objective(vector):
        value, gradients = bptt.value_and_grad(rnn.unravel(vector), x, y)
        return value, gradients.ravel()

    result = minimize(objective, rnn.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 20})
    assert result.fun < 0.5 * objective(rnn.ravel())[0]


def test_orthogonal_is_orthogonal_times_the_gain():
    W = bptt.RNN.random(2, 20, 3, gain=1.5).W_R
    assert np.allclose(W @ W.T, 1.5**2 * np.eye(20), rtol=0, atol=1e-13)


def test_orthogonal_is_uniform():
    # E[trace] = 0 and E[trace²] = 1 over the Haar measure (Diaconis and Shahshahani 1994); plain QR is biased.
    rng = np.random.default_rng(0)
    traces = [np.trace(bptt.RNN.random(1, 3, 1, rng=rng).W_R) for _ in range(2000)]
    assert abs(np.mean(traces)) < 4 / np.sqrt(2000)
    assert abs(np.mean(np.square(traces)) - 1) < 4 * np.sqrt(2 / 2000)


def test_normal_has_the_variance_it_states():
    W = bptt.RNN.random(1, 300, None, init="normal", gain=2.0).W_R
    assert np.isclose(W.std(), 2 / np.sqrt(300), rtol=4 / np.sqrt(2 * 300**2))  # four standard errors


def test_identity():
    assert np.array_equal(bptt.RNN.random(1, 4, 1, init="identity", gain=0.5).W_R, 0.5 * np.eye(4))


def test_random_is_a_function_of_its_seed():
    assert same(bptt.RNN.random(2, 5, 3), bptt.RNN.random(2, 5, 3, rng=0))
    assert same(bptt.RNN.random(2, 5, 3, rng=7), bptt.RNN.random(2, 5, 3, rng=np.random.default_rng(7)))
    assert not same(bptt.RNN.random(2, 5, 3, rng=7), bptt.RNN.random(2, 5, 3, rng=8))
    assert not same(bptt.RNN.random(2, 5, 3, rng=None), bptt.RNN.random(2, 5, 3, rng=None))


def test_random_without_readout():
    rnn = bptt.RNN.random(2, 5, None)
    assert rnn.W_O is None
    assert rnn.b_O is None
    assert rnn.m == 0


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda rnn: pickle.loads(pickle.dumps(rnn))])
def test_copies_and_pickles(clone):
    rnn = network(dtype="float32", activation="elu", form="preactivation").replace(b_I=None)
    copied = clone(rnn)
    assert same(copied, rnn)
    assert not copied.W_R.flags.writeable


def test_a_deep_copy_does_not_follow_the_original():
    W_R = np.eye(2)
    copied = copy.deepcopy(bptt.RNN(W_R, np.ones((2, 1))))
    W_R[:] = 7
    assert np.array_equal(copied.W_R, np.eye(2))


# The file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("absent", [(), ("b_R", "b_O"), ("W_O", "b_O")])
def test_save_and_load(tmp_path, dtype, absent):
    rnn = network(dtype=dtype, activation="softplus", form="preactivation", readout="preactivation", output="linear")
    rnn = rnn.replace(**dict.fromkeys(absent))
    rnn.save(tmp_path / "model.safetensors")
    assert same(bptt.RNN.load(tmp_path / "model.safetensors"), rnn)
    assert same(bptt.RNN.load(str(tmp_path / "model.safetensors")), rnn)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_any_reader_of_safetensors_reads_the_file(tmp_path):
    rnn = network()
    rnn.save(tmp_path / "model")
    arrays = load_file(tmp_path / "model")
    assert sorted(arrays) == sorted(WEIGHTS)
    assert np.array_equal(arrays["W_I"], rnn.W_I)


def test_more_arrays_and_metadata_ride_along(tmp_path):
    rnn = network()
    strided = np.arange(6.0).reshape(2, 3).T
    rnn.save(tmp_path / "model", arrays={"moments": strided}, metadata={"note": "a word"})
    assert np.array_equal(load_file(tmp_path / "model")["moments"], strided)
    assert same(bptt.RNN.load(tmp_path / "model"), rnn)
    with pytest.raises(ValueError, match="W_R"):
        rnn.save(tmp_path / "model", arrays={"W_R": strided})
    with pytest.raises(ValueError, match="form"):
        rnn.save(tmp_path / "model", metadata={"form": "x"})


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    old, path = network(seed=1), tmp_path / "model"
    old.save(path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        network(seed=2).save(path)
    assert caught.value.filename == os.fspath(path)
    assert same(bptt.RNN.load(path), old)
    assert os.listdir(tmp_path) == ["model"]


def test_a_save_keeps_link_and_mode(tmp_path):
    rnn, target, link = network(), tmp_path / "target", tmp_path / "link"
    rnn.save(target)
    target.chmod(0o640)
    link.symlink_to(target)
    network(seed=5).save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert same(bptt.RNN.load(target), network(seed=5))


def test_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        network().save(tmp_path / "nowhere" / "model")
    assert caught.value.filename == os.fspath(tmp_path / "nowhere" / "model")
    with pytest.raises(IsADirectoryError):
        network().save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        network().save(tmp_path / "file" / "model")


def test_a_path_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        bptt.RNN.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        bptt.RNN.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 40, 200, -1])
def test_a_damaged_file(tmp_path, keep):
    path = tmp_path / "model"
    network().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        bptt.RNN.load(path)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "model"
    path.write_text("a" * 1000)
    with pytest.raises(ValueError, match=f"{path} is damaged or no safetensors file"):
        bptt.RNN.load(path)
    save_file({"W_R": np.eye(2), "W_I": np.eye(2)}, path)
    with pytest.raises(ValueError, match="holds no network of this library"):
        bptt.RNN.load(path)


@pytest.mark.parametrize(
    ("arrays", "choices"),
    [
        ({"W_R": np.eye(2)}, {}),
        ({"W_R": np.eye(2), "W_I": np.eye(3)}, {}),
        ({"W_R": np.eye(2, dtype=np.float16), "W_I": np.eye(2)}, {}),
        ({"W_R": np.eye(2), "W_I": np.eye(2)}, {"activation": "sine"}),
        ({"W_R": np.eye(2), "W_I": np.eye(2)}, {"activation": None}),
    ],
)
def test_a_file_that_is_no_whole_network(tmp_path, arrays, choices):
    path = tmp_path / "model"
    metadata = {"format": "bptt.RNN 1", **network()._choices(), **choices}
    save_file(arrays, path, {name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(ValueError, match=f"{path} holds a network that is not whole"):
        bptt.RNN.load(path)


def test_a_file_that_is_none_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        bptt.RNN.random(3, 4, 2).save(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
