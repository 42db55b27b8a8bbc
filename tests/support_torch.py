"""PyTorch for the tests that need it. Where it is not installed they are skipped, unless BPTT_PEERS=required."""

from __future__ import annotations

import os

import pytest

if os.environ.get("BPTT_PEERS") != "required":
    pytest.importorskip("torch")

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt.torch

# The problems of the tests are too small for more: on a busy machine threads wait for one another.
torch.set_num_threads(1)

#: Relative error (Frobenius) of two correct computations in the same precision, T <= 20: some hundred eps, for sums of
#: up to a hundred products of numbers that were rounded at every step.
TOLERANCE = {torch.float64: 500 * 2.0**-52, torch.float32: 500 * 2.0**-23}

KINDS = ("batch", "unbatched", "packed", "packed, not sorted")


def pair(*args, **settings):
    """PyTorch's module and ours, with the same weights."""
    theirs = torch.nn.RNN(*args, **settings)
    mine = bptt.torch.RNN(*args, **settings)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def arguments(module, kind="batch", T=7, B=4, initial=True, seed=0):
    """An input of that kind, and initial states or None, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    dtype, batch = module.weight_hh_l0.dtype, () if kind == "unbatched" else (B,)
    sizes = (*batch, T) if module.batch_first else (T, *batch)
    x = torch.randn(*sizes, module.input_size, generator=generator, dtype=dtype)
    rows = len(module.all_weights)
    hx = torch.randn(rows, *batch, module.hidden_size, generator=generator, dtype=dtype) if initial else None
    if kind.startswith("packed"):
        lengths = torch.tensor([T, T - 2, T - 2, 1] if kind == "packed" else [3, T, 2, T])
        x = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=kind == "packed")
    return x, hx


def results(module, x, hx=None, seed=1):
    """By name: outputs, and the gradients of a random linear function of them by inputs, initial states and weights."""
    data = (x.data if isinstance(x, PackedSequence) else x).detach().clone().requires_grad_()
    hx = None if hx is None else hx.detach().clone().requires_grad_()
    output, h_n = module(x._replace(data=data) if isinstance(x, PackedSequence) else data, hx)
    states = output.data if isinstance(output, PackedSequence) else output
    generator = torch.Generator().manual_seed(seed)
    pulls = [torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) for tensor in (states, h_n)]
    inputs = {"x": data, **({} if hx is None else {"hx": hx}), **dict(module.named_parameters())}
    gradients = torch.autograd.grad([states, h_n], list(inputs.values()), pulls)
    return {"output": states, "h_n": h_n, **{f"d_{name}": gradient for name, gradient in zip(inputs, gradients)}}


def assert_same(mine, theirs, tolerance=None, least=0.0):
    """Tensors by name are of one kind and one value, relative to their norm, or to ``least`` where that is larger."""
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        wanted = theirs[name]
        assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype), name
        limit = TOLERANCE[tensor.dtype] if tolerance is None else tolerance
        scale = max(float(wanted.detach().norm()), least) or 1.0
        assert float((tensor - wanted).detach().norm()) <= limit * scale, name
