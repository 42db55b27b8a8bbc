"""Exact gradients of recurrent networks over long sequences, and a microscope for where they vanish or explode."""

from typing import Any

from bptt._levels import info
from bptt.checking import CheckReport, check
from bptt.checkpoints import MemoryPlan, memory_plan
from bptt.exchange import from_torch
from bptt.gradient import Gradients, Trajectory, backward, errors, forward, value_and_grad
from bptt.network import RNN
from bptt.truncated import TruncatedRun, TruncationBias, truncated_value_and_grad, truncation_bias

__all__ = [
    "RNN",
    "CheckReport",
    "Gradients",
    "MemoryPlan",
    "Trajectory",
    "TruncatedRun",
    "TruncationBias",
    "backward",
    "check",
    "errors",
    "forward",
    "from_torch",
    "info",
    "memory_plan",
    "truncated_value_and_grad",
    "truncation_bias",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bptt")
    raise AttributeError(f"module 'bptt' has no attribute {name!r}")
