"""The operators `bptt::rnn` and `bptt::rnn_backward`: one layer in one direction, as PyTorch's dispatcher knows it.

Where the rows of the states fill whole lines, the kernel writes them in place and reads them there on the way back;
else they are copied, for a tensor with gaps would not be what `torch.nn.RNN` gives.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from bptt import _levels
from bptt._kernel import ACTIVATIONS, FORMS, OUTPUTS, READOUTS, Network, Sums, row_length
from bptt._memory import aligned, contiguous
from bptt.torch._batch import Batch, numbers

_CHOICES = FORMS.index("activation"), READOUTS.index("activation"), OUTPUTS.index("linear")


def _network(W_I: Tensor, W_R: Tensor, b: Tensor | None, activation: str) -> Network:
    recurrent, inputs = numbers(W_R), numbers(W_I)
    bias = None if b is None else contiguous(numbers(b), recurrent.dtype)
    weights = contiguous(recurrent, recurrent.dtype), contiguous(inputs, recurrent.dtype), None, bias, None
    return Network(*weights, ACTIVATIONS.index(activation), *_CHOICES)


def _threads() -> int:
    pytorchs: int = torch.get_num_threads()
    return min(pytorchs, _levels.resolve_threads(None))


def _forward(
    x: Tensor,
    batch_sizes: Tensor | None,
    initial: Tensor,
    W_I: Tensor,
    W_R: Tensor,
    b: Tensor | None,
    activation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    n = len(W_R)
    network, kernel, threads = _network(W_I, W_R, b, activation), _levels.kernel(), _threads()
    batch = Batch(x, batch_sizes, n, reverse)
    dtype = network.W_R.dtype
    a = aligned(batch.rows, n, dtype)
    a[: batch.size, :n] = numbers(initial)
    for segment in batch.segments:
        inputs = contiguous(batch.read(x, segment.first, segment.end), dtype)
        kernel.forward(network, inputs, segment.counts, a[segment.before : segment.end], None, threads)
    states = batch.tensor(a, batch.size, n)
    return states.contiguous(), torch.from_numpy(a[batch.finals, :n])


def _backward(
    d_states: Tensor | None,
    d_final: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    initial: Tensor,
    W_I: Tensor,
    W_R: Tensor,
    states: Tensor,
    activation: str,
    reverse: bool,
    wrt_x: bool,
) -> tuple[Tensor, ...]:
    n, p = W_I.shape
    network, kernel, threads = _network(W_I, W_R, None, activation), _levels.kernel(), _threads()
    batch = Batch(x, batch_sizes, n, reverse)
    size, dtype = batch.size, network.W_R.dtype
    carry = aligned(size, n, dtype)
    carry[:, :n] = 0 if d_final is None else numbers(d_final)
    parts = kernel.best_parts(n, size)
    d_W_R, d_W_I, d_b = np.zeros((parts, n, n)), np.zeros((parts, n, p)), np.zeros((parts, n))
    of_parts = tuple(Sums(d_W_R[i], d_W_I[i], None, d_b[i], None) for i in range(parts))
    d_x = np.empty((batch.rows - size, p), dtype) if wrt_x else None
    rows = batch.in_place(states, initial)
    for segment in reversed(batch.segments):
        before, first, end = segment.before, segment.first, segment.end
        if rows is not None:
            a = rows[before:end]
        else:
            a = aligned(end - before, n, dtype)
            a[: first - before, :n] = batch.read(states, before, first) if before else numbers(initial)
            a[first - before :, :n] = batch.read(states, first, end)
        kernel.backward(
            network,
            loss=-1,
            x=contiguous(batch.read(x, first, end), dtype),
            counts=segment.counts,
            a=a,
            h=None,
            y=None,
            weights=None,
            d_outputs=None,
            d_states=None if d_states is None else contiguous(batch.read(d_states, first, end), dtype),
            carry=carry,
            errors=None,
            sums=of_parts,
            more=segment is not batch.segments[-1],
            d_x=None if d_x is None else d_x[first - size : end - size],
            delta=None,
            threads=threads,
        )
    totals = [np.empty(sums.shape[1:], dtype) for sums in (d_W_I, d_W_R, d_b)]
    for sums, total in zip((d_W_I, d_W_R, d_b), totals, strict=True):
        kernel.scale(list(sums), 1.0, total, threads)
    return (
        x.new_empty(0) if d_x is None else batch.tensor(d_x, 0, p),  # an operator returns tensors and nothing else
        torch.from_numpy(carry[:, :n]),
        *map(torch.from_numpy, totals),
    )


def _forward_fake(
    x: Tensor,
    batch_sizes: Tensor | None,
    initial: Tensor,
    W_I: Tensor,
    W_R: Tensor,
    b: Tensor | None,
    activation: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    axes, n = x.shape[:-1], W_R.shape[0]
    before = 0 if reverse else initial.shape[0]
    if row_length(n, x.itemsize) > n:
        return x.new_empty((*axes, n)), torch.empty_like(initial)
    rows = x.new_empty((before + math.prod(axes), n))
    return rows[before:].unflatten(0, axes), torch.empty_like(initial)


def _backward_fake(
    d_states: Tensor | None,
    d_final: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    initial: Tensor,
    W_I: Tensor,
    W_R: Tensor,
    states: Tensor,
    activation: str,
    reverse: bool,
    wrt_x: bool,
) -> tuple[Tensor, ...]:
    d_x = x.new_empty(x.shape if wrt_x else 0)
    n = W_R.shape[0]
    d_initial = x.new_empty((initial.shape[0], row_length(n, x.itemsize)))[:, :n]
    return d_x, d_initial, x.new_empty(W_I.shape), x.new_empty(W_R.shape), x.new_empty(n)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, batch_sizes, initial, W_I, W_R, _, ctx.activation, ctx.reverse = inputs
    ctx.save_for_backward(x, batch_sizes, initial, W_I, W_R, output[0])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_states: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad
    d_x, *others = rnn_backward(d_states, d_final, *ctx.saved_tensors, ctx.activation, ctx.reverse, wanted[0])
    gradients = d_x, None, *others, None, None
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted))


def _no_second_derivative(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError(
        "bptt.torch.RNN has first derivatives only: for a derivative of its gradient (create_graph=True) use "
        "torch.nn.RNN, which takes the same state_dict"
    )


rnn_backward = torch.library.custom_op(
    "bptt::rnn_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor? d_states, Tensor? d_final, Tensor x, Tensor? batch_sizes, Tensor initial, Tensor W_I, Tensor W_R, "
    "Tensor states, str activation, bool reverse, bool wrt_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
rnn_backward.register_fake(_backward_fake)
rnn_backward.register_autograd(_no_second_derivative)

rnn = torch.library.custom_op(
    "bptt::rnn",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor? batch_sizes, Tensor initial, Tensor W_I, Tensor W_R, Tensor? b, str activation, "
    "bool reverse) -> (Tensor, Tensor)",
)
rnn.register_fake(_forward_fake)
rnn.register_autograd(_gradients, setup_context=_save)
