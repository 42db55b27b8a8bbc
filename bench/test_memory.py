"""Long sequences in bounded memory: time beside the unlimited call and beside JAX with checkpoints, and peak memory.

pytest bench/test_memory.py --benchmark-group-by=func
"""

import json
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

import bptt
from bptt.network import WEIGHTS

CHARACTERS = 16
BUDGET = "16 MB"


def problem(n: int, B: int) -> bptt.RNN:
    rng = np.random.default_rng(0)
    shapes = {"W_R": (n, n), "W_I": (n, CHARACTERS), "W_O": (CHARACTERS, n), "b_R": (n,), "b_O": (CHARACTERS,)}
    return bptt.RNN(
        **{name: (rng.standard_normal(shape) / np.sqrt(2 * n)).astype("f4") for name, shape in shapes.items()}
    )


def text(path: Path, steps: int, B: int) -> np.ndarray:
    """A file of tokens, mapped: (steps + 1, B)."""
    np.random.default_rng(1).integers(CHARACTERS, size=(steps + 1, B), dtype=np.uint8).tofile(path)
    return np.memmap(path, np.uint8, "r", shape=(steps + 1, B))


def with_jax(rnn: bptt.RNN, tokens: np.ndarray):
    """A scan over segments, each of them a checkpointed scan: about the square root of T steps long."""
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    weights = {name: jnp.asarray(weight) for name in WEIGHTS if (weight := getattr(rnn, name)) is not None}
    steps = len(tokens) - 1
    segment = max(d for d in range(1, int(steps**0.5) + 1) if steps % d == 0)
    x, y = (jnp.asarray(part.reshape(steps // segment, segment, -1), jnp.int32) for part in (tokens[:-1], tokens[1:]))

    def loss(weights, x, y):
        def step(a, xy):
            x_t, y_t = xy
            a = jnp.tanh(a @ weights["W_R"].T + weights["W_I"].T[x_t] + weights["b_R"])
            logs = jax.nn.log_softmax(a @ weights["W_O"].T + weights["b_O"])
            return a, -jnp.take_along_axis(logs, y_t[:, None], axis=-1).sum()

        def stretch(a, xy):
            a, E = jax.lax.scan(step, a, xy)
            return a, E.sum()

        _, E = jax.lax.scan(jax.checkpoint(stretch), jnp.zeros((x.shape[2], rnn.n), "f4"), (x, y))
        return E.sum() / y.size

    compiled = jax.jit(jax.value_and_grad(loss)).lower(weights, x, y).compile()

    def run():
        value, gradients = jax.block_until_ready(compiled(weights, x, y))
        return float(value), np.concatenate([np.asarray(gradients[name]).ravel() for name in weights])

    return run


def with_bptt(rnn: bptt.RNN, tokens: np.ndarray, memory=None):
    def run():
        value, gradients = bptt.value_and_grad(rnn, tokens[:-1], tokens[1:], memory=memory)
        return value, gradients.ravel()

    return run


def forward_share(rnn: bptt.RNN, tokens: np.ndarray, unlimited: float) -> float:
    """The time of the states alone, by that of the gradient: by segments, which is how they are computed again."""
    steps = min(len(tokens) - 1, 4096)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        bptt.forward(rnn.replace(W_O=None, b_O=None), tokens[:steps])
        best = min(best, time.perf_counter() - start)
    return best / steps * (len(tokens) - 1) / unlimited


@cache
def unlimited(n: int, B: int, steps: int, path: Path) -> tuple[float, float, np.ndarray]:
    """Seconds (the best of three), value and gradient with all states kept."""
    run = with_bptt(problem(n, B), text(path, steps, B), memory="8 GB")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        value, gradient = run()
        times.append(time.perf_counter() - start)
    return min(times), value, gradient


def states_alone(rnn: bptt.RNN, tokens: np.ndarray, share: float) -> int:
    """A budget that leaves a share of all states' memory for states."""
    whole = bptt.memory_plan(rnn, tokens[:-1], memory="8 GB")
    kept = int(share * whole.states)
    memory = whole.memory - whole.states + kept
    for _ in range(3):  # with less memory the kernel works on fewer steps at a time, and all else takes less
        plan = bptt.memory_plan(rnn, tokens[:-1], memory=memory)
        memory += kept - plan.states
    return memory


CELLS = {"a million steps in 16 MB": (64, 1, 1_000_000), "a thousand steps in 5 %": (256, 32, 1000)}


@pytest.mark.parametrize("contender", ["bptt", "jax"])
@pytest.mark.parametrize("cell", CELLS)
def test_time(benchmark, cell, contender, tmp_path_factory):
    n, B, steps = CELLS[cell]
    path = tmp_path_factory.getbasetemp() / f"{steps}.tokens"
    seconds, value, gradient = unlimited(n, B, steps, path)
    rnn, tokens = problem(n, B), text(path, steps, B)
    if contender == "bptt":
        memory = BUDGET if steps > 1000 else states_alone(rnn, tokens, 0.05)
        plan = bptt.memory_plan(rnn, tokens[:-1], memory=memory)
        benchmark.extra_info |= {"extra": plan.extra, "states": plan.states, "memory": plan.memory}
        benchmark.extra_info["1 + forward share"] = 1 + forward_share(rnn, tokens, seconds)
        run = partial(with_bptt, memory=memory)(rnn, tokens)
        mine, theirs = run()
        assert mine == value
        assert np.array_equal(theirs, gradient)
    else:
        run = with_jax(rnn, tokens)
        mine, theirs = run()
        # float32 sums of a million terms, added one by one by JAX
        assert mine == pytest.approx(value, rel=1e-3)
        assert np.linalg.norm(theirs - gradient) <= 2e-2 * np.linalg.norm(gradient)
    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["time by the unlimited call's"] = np.min(benchmark.stats.stats.data) / seconds


@pytest.mark.parametrize("steps", [1_000_000, 10_000_000])
def test_peak_memory(benchmark, steps, tmp_path):
    """Of the process's anonymous memory, above what it had when the inputs were there and the library warm."""
    path = tmp_path / "tokens"
    text(path, steps, 1)
    program = [sys.executable, __file__, str(path), str(steps)]

    def run():
        return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    found = benchmark.pedantic(run, rounds=1)
    assert np.isfinite(found["value"])
    benchmark.extra_info |= found
    benchmark.extra_info["µs a step"] = found["seconds"] / steps * 1e6
    assert found["peak"] < 20e6


@pytest.mark.parametrize("regime", ["normal", "vanishing"])
def test_time_of_vanishing_gradients(benchmark, regime):
    """Errors at every 4096th step only: between them delta stays a normal number, or fades through the subnormals."""
    rnn, steps = problem(64, 1), 65_536
    radius = np.abs(np.linalg.eigvals(rnn.W_R)).max()
    rnn = rnn.replace(
        W_R=rnn.W_R * np.float32((0.5 if regime == "vanishing" else 0.99) / radius), activation="identity"
    )
    tokens = np.random.default_rng(1).integers(CHARACTERS, size=(steps + 1, 1), dtype=np.uint8)
    weights = np.zeros((steps, 1), "f4")
    weights[4095::4096] = 1

    def run():
        return bptt.value_and_grad(rnn, tokens[:-1], tokens[1:], weights=weights, threads=1)

    _, gradients = run()
    assert 0 < gradients.norm() < np.inf
    benchmark.pedantic(run, rounds=7, warmup_rounds=1)


def measure(path: str, steps: int) -> dict[str, float]:
    """The program of `test_peak_memory`: a thread looks at the memory while the call runs."""
    import threading

    def anonymous() -> int:
        facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(facts["RssAnon"].split()[0]) << 10

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    tokens = np.memmap(path, np.uint8, "r", shape=(steps + 1, 1))
    run = with_bptt(problem(64, 1), tokens, BUDGET)
    with_bptt(problem(64, 1), tokens[:300], BUDGET)()
    before, seen, done = anonymous(), [0], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    value, _ = run()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"value": value, "seconds": seconds, "peak": max(seen) - before}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
