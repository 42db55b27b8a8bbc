"""Storage that is kept between calls: nobody sees it, nobody shares it, and it has a limit."""

import sys
import threading
import types

import numpy as np
import pytest

import bptt
from bptt import _levels, _workspace
from support import PARTS, WEIGHTS, B, M, N, P, T, problem


@pytest.fixture(autouse=True)
def nothing_kept():
    _workspace._kept.clear()
    yield
    _workspace._kept.clear()


def parts(gradients):
    return {name: getattr(gradients, name).copy() for name in (*PARTS, "final")}


@pytest.mark.parametrize("form", ["activation", "preactivation"])
@pytest.mark.usefixtures("level")
def test_a_result_is_not_touched_by_the_next_call(form):
    rng, rnn, x, y = problem(form=form)
    _, first = bptt.value_and_grad(rnn, x, y, wrt_inputs=True)
    before = parts(first)
    (kept,) = _workspace._kept.values()
    bptt.value_and_grad(rnn.replace(W_R=-rnn.W_R), rng.standard_normal(x.shape), y, wrt_inputs=True)
    assert list(_workspace._kept.values()) == [kept]  # the same storage has served twice
    for name, array in parts(first).items():
        assert np.array_equal(array, before[name]), name


@pytest.mark.usefixtures("level")
def test_what_a_call_left_behind_is_not_seen_by_the_next():
    rng, rnn, x, y = problem()
    fresh = bptt.value_and_grad(rnn, x, y)
    with pytest.warns(RuntimeWarning, match="not finite"):
        bptt.value_and_grad(rnn, np.full_like(x, np.nan), y, initial=rng.standard_normal((B, N)))
    again = bptt.value_and_grad(rnn, x, y)
    assert again[0] == fresh[0]
    assert np.array_equal(again[1].ravel(), fresh[1].ravel())
    assert np.array_equal(again[1].initial, fresh[1].initial)


@pytest.mark.parametrize("form", ["activation", "preactivation"])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.usefixtures("level")
def test_ragged_batches_of_other_lengths_share_it(form, tokens):
    rng, rnn, x, y = problem(form=form)
    if tokens:
        x = rng.integers(P, size=(T, B))
    batches = [rng.integers(1, T, size=B) for _ in range(4)] + [np.full(B, T) - (np.arange(B) == 0), np.arange(B)]
    fresh = []
    for lengths in batches:
        _workspace._kept.clear()
        fresh.append(bptt.value_and_grad(rnn, x, y, lengths=lengths))
    (kept,) = _workspace._kept.values()
    spoilt = np.full((T, B, P), np.nan)
    with pytest.warns(RuntimeWarning, match="not finite"):
        bptt.value_and_grad(rnn, spoilt, y, lengths=batches[4])
    for lengths, (value, gradients) in zip(batches, fresh, strict=True):
        again = bptt.value_and_grad(rnn, x, y, lengths=lengths)
        assert kept in _workspace._kept.values()
        assert again[0] == value
        for name in (*WEIGHTS, "initial", "final"):
            assert np.array_equal(getattr(again[1], name), getattr(gradients, name)), name


def test_levels_do_not_share_it(monkeypatch):
    """They have other parts, and so other bits."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(3, 16, 4, dtype="float32")
    x, y = rng.standard_normal((20, 16, 3)), rng.integers(4, size=(20, 16))
    wanted = bptt.value_and_grad(rnn, x, y)[1].ravel()
    _workspace._kept.clear()
    with monkeypatch.context() as other:
        other.setattr(_levels, "kernel", lambda: _levels.load(_levels.REFERENCE))
        bptt.value_and_grad(rnn, x, y)
    assert np.array_equal(bptt.value_and_grad(rnn, x, y)[1].ravel(), wanted)


def test_other_networks_of_the_same_shape_share_it_and_other_shapes_do_not():
    _, rnn, x, y = problem()
    bptt.value_and_grad(rnn, x, y)
    bptt.value_and_grad(rnn.replace(activation="relu", output="linear"), x, np.zeros((T, B, M)))
    assert len(_workspace._kept) == 1
    for changed in (rnn.astype("float32"), rnn.replace(b_R=None), rnn.replace(form="preactivation")):
        bptt.value_and_grad(changed, x, y)
    bptt.value_and_grad(rnn, x[:-1], y[:-1])
    bptt.value_and_grad(rnn, np.zeros((T, B), int), y)
    assert len(_workspace._kept) == 6


def test_a_callable_may_call_again():
    _, rnn, x, y = problem()
    alone = bptt.value_and_grad(rnn, x, y)

    def criterion(o, block):
        within = bptt.value_and_grad(rnn, x, y)
        assert within[0] == alone[0]
        assert np.array_equal(within[1].ravel(), alone[1].ravel())
        return o[..., 0], np.zeros_like(o)

    bptt.value_and_grad(rnn, x, y, loss=criterion)
    assert np.array_equal(bptt.value_and_grad(rnn, x, y)[1].ravel(), alone[1].ravel())


def test_it_is_free_again_after_an_error():
    _, rnn, x, y = problem()
    bptt.value_and_grad(rnn, x, y)
    (kept,) = _workspace._kept.values()
    with pytest.raises(ValueError, match="y must be in"):
        bptt.value_and_grad(rnn, x, y + M)
    bptt.value_and_grad(rnn, x, y)
    assert list(_workspace._kept.values()) == [kept]
    assert kept.claim()


def test_a_thread_finds_it_taken_and_makes_its_own():
    _, rnn, x, y = problem()
    expected = bptt.value_and_grad(rnn, x, y)[1].ravel()
    inside, found = threading.Event(), []

    def criterion(o, block):
        inside.set()
        other.join(20)
        return o[..., 0], np.zeros_like(o)

    def work():
        inside.wait(20)
        found.append(bptt.value_and_grad(rnn, x, y)[1].ravel())

    other = threading.Thread(target=work)
    other.start()
    bptt.value_and_grad(rnn, x, y, loss=criterion)
    assert np.array_equal(found[0], expected)


def test_the_oldest_goes_when_there_is_too_much(monkeypatch):
    _, rnn, x, y = problem()
    bptt.value_and_grad(rnn, x, y)
    (first,) = _workspace._kept.values()
    monkeypatch.setattr(_workspace, "KEPT", 2 * first.nbytes)
    for steps in (T - 1, T - 2, T - 3):
        bptt.value_and_grad(rnn, x[:steps], y[:steps])
    assert first not in _workspace._kept.values()
    assert len(_workspace._kept) == 2
    assert sum(kept.nbytes for kept in _workspace._kept.values()) <= _workspace.KEPT
    monkeypatch.setattr(_workspace, "KEPT", 0)
    bptt.value_and_grad(rnn, x[:3], y[:3])
    assert len(_workspace._kept) == 2


def test_a_budget_is_for_all_that_is_held():
    _, rnn, x, y = problem()
    bptt.value_and_grad(rnn, x, y)
    bptt.value_and_grad(rnn, x, y, memory="10 MB")
    assert not _workspace._kept


def test_a_call_is_few_calls(monkeypatch):
    """A short sequence's time is the facade's. Each Python or NumPy call costs 0.03 to 1 us, 93 of them about 14."""
    right = _levels.kernel()
    nothing = types.SimpleNamespace(**{**vars(right), "forward": lambda *args: -1, "backward": lambda *args: -1})
    monkeypatch.setattr(_levels, "kernel", lambda: nothing)
    rnn = bptt.RNN.random(P, 16, M)  # whose sums nobody writes: they are what the memory held
    x, y = np.zeros((50, 4, P)), np.zeros((50, 4), np.int32)
    bptt.value_and_grad(rnn, x, y, nonfinite="ignore")
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    bptt.value_and_grad(rnn, x, y, nonfinite="ignore")
    sys.setprofile(None)
    assert calls <= 93
