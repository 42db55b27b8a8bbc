"""The same work in bptt, PyTorch and JAX, each written as its users would write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bptt._kernel import Array
from bptt.gradient import value_and_grad
from bptt.network import RNN, WEIGHTS


class Work(NamedTuple):
    """One training step of a character model: mean cross-entropy over all steps, and its gradient by all weights."""

    rnn: RNN
    x: Array  # (T, B, p)
    y: Array  # int64 (T, B)


class Result(NamedTuple):
    value: float
    gradients: dict[str, Array]


class Contender(NamedTuple):
    run: Callable[[], Any]  # the work, done when it returns
    read: Callable[[Any], Result]  # what run returned, in common terms


def work(T: int, B: int, n: int, dtype: str, p: int = 16, m: int = 10) -> Work:
    """The work of a benchmark's cell: weights N(0, 1/n), inputs N(0, 1), random targets."""
    rng = np.random.default_rng(n + B)
    shapes = {"W_R": (n, n), "W_I": (n, p), "W_O": (m, n), "b_R": (n,), "b_I": (n,), "b_O": (m,)}
    weights = {name: (rng.standard_normal(shape) / np.sqrt(n)).astype(dtype) for name, shape in shapes.items()}
    return Work(RNN(**weights), rng.standard_normal((T, B, p)).astype(dtype), rng.integers(m, size=(T, B)))


def with_bptt(work: Work, threads: int) -> Contender:
    def read(result: Any) -> Result:
        value, gradients = result
        return Result(value, {name: getattr(gradients, name) for name in WEIGHTS})

    return Contender(lambda: value_and_grad(work.rnn, work.x, work.y, threads=threads), read)


def with_torch(work: Work, threads: int) -> Contender:
    import torch

    torch.set_num_threads(threads)
    dtype = getattr(torch, work.rnn.dtype.name)
    rnn = torch.nn.RNN(work.rnn.p, work.rnn.n, dtype=dtype)
    readout = torch.nn.Linear(work.rnn.n, work.rnn.m, dtype=dtype)
    parameters = {
        "W_R": rnn.weight_hh_l0,
        "W_I": rnn.weight_ih_l0,
        "W_O": readout.weight,
        "b_R": rnn.bias_hh_l0,
        "b_I": rnn.bias_ih_l0,
        "b_O": readout.bias,
    }
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(getattr(work.rnn, name)))
    x, y = torch.tensor(work.x), torch.tensor(work.y).flatten()

    def run() -> Any:
        states, _ = rnn(x)
        value = torch.nn.functional.cross_entropy(readout(states).flatten(0, 1), y)
        return value, torch.autograd.grad(value, list(parameters.values()))

    def read(result: Any) -> Result:
        value, gradients = result
        return Result(value.item(), {name: gradient.numpy() for name, gradient in zip(parameters, gradients)})

    return Contender(run, read)


def with_jax(work: Work, threads: int) -> Contender:
    """``threads`` is not heard: XLA's pool has a thread for every processor that the process may run on."""
    import jax
    import jax.numpy as jnp

    def loss(weights: dict[str, Any], x: Any, y: Any) -> Any:
        inputs = x @ weights["W_I"].T + (weights["b_I"] + weights["b_R"])  # of all steps at once

        def step(a: Any, v: Any) -> tuple[Any, Any]:
            a = jnp.tanh(a @ weights["W_R"].T + v)
            return a, a

        _, states = jax.lax.scan(step, jnp.zeros_like(inputs[0]), inputs)
        logs = jax.nn.log_softmax(states @ weights["W_O"].T + weights["b_O"])
        return -jnp.take_along_axis(logs, y[..., None], axis=-1).mean()

    x64 = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)  # else JAX would compute in float32 what is asked for in float64
    try:
        weights = {name: jnp.asarray(getattr(work.rnn, name)) for name in WEIGHTS}
        arguments = (weights, jnp.asarray(work.x), jnp.asarray(work.y))
        compiled = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    finally:
        jax.config.update("jax_enable_x64", x64)

    def read(result: Any) -> Result:
        value, gradients = result
        return Result(float(value), {name: np.asarray(gradient) for name, gradient in gradients.items()})

    return Contender(lambda: jax.block_until_ready(compiled(*arguments)), read)


CONTENDERS: dict[str, Callable[[Work, int], Contender]] = {"bptt": with_bptt, "torch": with_torch, "jax": with_jax}
