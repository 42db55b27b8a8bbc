"""A training step of `bptt.torch.RNN` beside that of `torch.nn.RNN`, taking turns in one process.

The results are compared before anything is timed. Held to: 4 times the speed at n = 16 and 64, twice at n = 256, and of
a packed batch at most 1.25 times its share of the padded one. To be run on an idle machine:

pytest bench/test_torch.py -rP
"""

import time
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt.torch

T, P = 1000, 16


def modules(n: int) -> tuple[torch.nn.RNN, bptt.torch.RNN]:
    torch.manual_seed(n)
    theirs, mine = torch.nn.RNN(P, n), bptt.torch.RNN(P, n)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def step(module: torch.nn.Module, x: Any) -> list[torch.Tensor]:
    """Forward and backward from a gradient for every state, as any loss gives: what the two modules do themselves."""
    module.zero_grad()
    output, _ = module(x)
    states = output.data if isinstance(output, PackedSequence) else output
    states.backward(pull(states.shape))
    return [weight.grad for weight in module.parameters()]


@cache
def pull(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape)


def in_turns(*steps: tuple[torch.nn.Module, Any], seconds: float = 3.0) -> list[float]:
    """The least time of each, in seconds, all of them run again and again for as long."""
    times: list[list[float]] = [[] for _ in steps]
    end = time.perf_counter() + seconds * len(steps)
    while len(times[0]) < 5 or time.perf_counter() < end:
        for arguments, own in zip(steps, times):
            begun = time.perf_counter()
            step(*arguments)
            own.append(time.perf_counter() - begun)
    return [min(own) for own in times]


@pytest.mark.parametrize("B", [1, 32])
@pytest.mark.parametrize(("n", "least"), [(16, 4.0), (64, 4.0), (256, 2.0)])
def test_speed(n, B, least):
    theirs, mine = modules(n)
    x = torch.randn(T, B, P)
    for gradient, wanted in zip(step(mine, x), step(theirs, x)):
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()
    of_theirs, of_mine = in_turns((theirs, x), (mine, x))
    print(f"n={n} B={B}: torch {of_theirs * 1e3:.2f} ms, bptt {of_mine * 1e3:.2f} ms, {of_theirs / of_mine:.1f} times")
    assert of_theirs / of_mine >= least


@pytest.mark.parametrize("n", [64, 128, 256])
def test_packed_share(n):
    theirs, mine = modules(n)
    lengths = torch.randint(1, T + 1, (32,))
    x = torch.randn(T, 32, P)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    share = lengths.sum().item() / (T * 32)
    for gradient, wanted in zip(step(mine, packed), step(theirs, packed)):
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()
    of_packed, of_padded = in_turns((mine, packed), (mine, x))
    print(
        f"n={n}: {of_packed * 1e3:.2f} ms of {of_padded * 1e3:.2f} ms, {of_packed / of_padded / share:.2f} of its share"
    )
    assert of_packed / of_padded <= 1.25 * share
