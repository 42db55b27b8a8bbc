"""Gradients in bounded memory: the same bits, whatever is kept; and what is kept is what was planned."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import bptt
from bptt import _budget, _columns
from support import PARTS, network, targets

SIZES = {"one": (1, 3000, 16), "nine": (9, 300, 33), "many": (300, 12, 8), "rows": (2, 700, 130)}
FORMS = [("activation", "activation"), ("preactivation", "preactivation")]


def case(size, form, readout, dtype, ragged=False):
    B, T, n = SIZES[size]
    rng = np.random.default_rng(0)
    rnn = network(n, 3, 5, form=form, readout=readout, dtype=dtype, seed=rng)
    x, y = rng.standard_normal((T, B, 3)), targets(rng, rnn, (T, B))
    arguments = {"weights": rng.random((T, B)), "initial": rng.standard_normal((B, n)), "wrt_inputs": True}
    if ragged:
        arguments["lengths"] = rng.integers(0, T + 1, size=B)
    return rnn, x, y, arguments


def least(call):
    with pytest.raises(ValueError, match=r"memory must be at least \d+ bytes for this call; got 1$") as caught:
        call(memory=1)
    return int(re.search(r"(\d+) bytes", str(caught.value))[1])


def assert_same_bits(mine, theirs):
    assert mine[0] == theirs[0]
    for name in (*PARTS, "final"):
        assert np.array_equal(getattr(mine[1], name), getattr(theirs[1], name)), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("form", "readout"), FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_bits_are_those_of_the_unlimited_call(size, form, readout, dtype):
    rnn, x, y, arguments = case(size, form, readout, dtype)

    def call(**more):
        return bptt.value_and_grad(rnn, x, y, **arguments, **more)

    unlimited, smallest = call(threads=1), least(call)
    plan = bptt.memory_plan(rnn, x, wrt_inputs=True, memory=smallest)
    assert plan.passes > 1
    assert plan.memory <= smallest
    for memory, threads in ((smallest, 1), (smallest, 2), (smallest + plan.states, 2), (3 * smallest // 2, 1)):
        assert_same_bits(call(memory=memory, threads=threads), unlimited)


@pytest.mark.parametrize(("form", "readout"), FORMS)
def test_bits_of_ragged_batches(form, readout, monkeypatch):
    monkeypatch.setattr("bptt._sweep.segment_steps", lambda *args: 50)
    rnn, x, y, arguments = case("nine", form, readout, "float64", ragged=True)

    def call(**more):
        return bptt.value_and_grad(rnn, x, y, **arguments, **more)

    unlimited, smallest = call(), least(call)
    assert bptt.memory_plan(rnn, x, lengths=arguments["lengths"], wrt_inputs=True, memory=smallest).passes > 1
    assert_same_bits(call(memory=smallest), unlimited)


def test_bits_with_a_callable_and_targets_of_the_last_step():
    rnn, x, _, arguments = case("one", "activation", "activation", "float64")
    rng = np.random.default_rng(1)
    wanted, last = rng.standard_normal((*x.shape[:2], 5)), rng.integers(5, size=1)

    def error(o, y):
        return ((o - y) ** 2).sum(-1), 2 * (o - y)

    for y, loss in ((wanted, error), (last, None)):

        def call(y=y, loss=loss, **more):
            return bptt.value_and_grad(rnn, x, y, loss=loss, **arguments, **more)

        assert_same_bits(call(memory=least(call)), call())


def test_bits_with_a_callable_whose_blocks_end_beside_a_tile():
    rng = np.random.default_rng(0)
    rnn, x, y = network(13, 7, 8), rng.standard_normal((64, 15, 7)), rng.standard_normal((64, 15, 8))
    seen = []

    def error(o, y):
        seen.append(len(o))
        return ((o - y) ** 2).sum(-1), 2 * (o - y)

    unlimited = bptt.value_and_grad(rnn, x, y, loss=error)
    smallest = least(lambda memory: bptt.value_and_grad(rnn, x, y, loss=error, memory=memory))
    for memory in np.linspace(smallest, 2 * smallest, 5).astype(int).tolist():
        assert_same_bits(bptt.value_and_grad(rnn, x, y, loss=error, memory=memory), unlimited)
    assert max(seen) == 64 > min(seen)


def test_on_every_level(level):
    """A level gives its own bits; NumPy, whose order of sums follows a product's length, the same numbers."""
    rnn, x, y, arguments = case("one", "activation", "activation", "float64")

    def call(**more):
        return bptt.value_and_grad(rnn, x, y, **arguments, **more)

    mine, theirs = call(memory=least(call)), call()
    if level != "reference":
        assert_same_bits(mine, theirs)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-13)
    assert np.allclose(mine[1].W_R, theirs[1].W_R, rtol=1e-11, atol=1e-13)


def test_no_steps():
    rnn = network()
    y = np.zeros((0, 2), int)
    value, gradients = bptt.value_and_grad(rnn, np.zeros((0, 2, 3)), y, memory="1 MB")
    assert value == 0
    assert not gradients.W_R.any()
    assert bptt.memory_plan(rnn, np.zeros((0, 2, 3)), memory="1 MB").extra == 0


def test_a_plan_that_keeps_everything():
    plan = bptt.memory_plan(network(), np.zeros((100, 2, 3)))
    assert (plan.checkpoints, plan.passes, plan.extra, plan.window) == (0, 0, 0.0, 100)


def test_without_a_budget_states_take_their_share_of_the_free_memory(monkeypatch):
    rnn, x, y, arguments = case("one", "activation", "activation", "float64")
    unlimited = bptt.value_and_grad(rnn, x, y, **arguments)
    states = bptt.memory_plan(rnn, x).states
    monkeypatch.setattr(_budget, "FREELY", 0)
    monkeypatch.setattr(_budget, "free_memory", lambda: 10 * states)
    assert bptt.memory_plan(rnn, x).passes == 0
    monkeypatch.setattr(_budget, "free_memory", lambda: int(1.5 * states))
    plan = bptt.memory_plan(rnn, x)
    assert plan.states <= 0.75 * states
    assert plan.passes == 1
    assert_same_bits(bptt.value_and_grad(rnn, x, y, **arguments), unlimited)


def test_free_memory_is_what_the_system_says():
    total = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) << 10
    assert 0 < _budget.free_memory() <= total


def test_a_call_allocates_no_more_than_it_may():
    """What NumPy and Python hold at once (the kernel's own blocks are measured in the benchmark)."""
    steps = 100_000
    rnn = network(16, 3, 4, dtype="float32")
    x, y = np.zeros(steps, np.int8), np.zeros(steps, np.int8)
    tracemalloc.start()
    bptt.value_and_grad(rnn, x, y, memory="1 MB")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 1e6 < steps * 16 * 4 / 6


@pytest.mark.parametrize(
    ("memory", "error", "message"),
    [
        (-1, ValueError, "memory must be an integer >= 0; got -1"),
        ("16 loaves", ValueError, "memory must be a number of bytes or a text like"),
        ("-1 MB", ValueError, "memory must be a number of bytes or a text like"),
        (1.5, TypeError, "memory must be an integer; got float"),
    ],
)
def test_bad_budgets(memory, error, message):
    with pytest.raises(error, match=message):
        bptt.value_and_grad(network(), np.zeros((4, 3)), np.zeros(4, int), memory=memory)


def test_blocks_are_those_of_the_kernel():
    header = (Path(__file__).parents[1] / "cpp" / "kernel" / "steps.hpp").read_text()
    rules = r"if \(B == 1 && n >= (\d+) && n <= (\d+)\) return (\d+);\s*return n >= (\d+) \? (\d+) : (\d+);"
    least, most, one, large, columns, few = map(int, re.search(rules, header).groups())
    for n in (1, least - 1, least, most, most + 1, large - 1, large, 2000):
        wide = columns if n >= large else few
        assert _columns.block_steps(n, 1) == (one if least <= n <= most else wide)
        assert _columns.block_steps(n, 2) == wide // 2
