"""Exact gradients of recurrent networks over long sequences, and a microscope for where they vanish or explode."""

from typing import Any

from bptt._levels import info
from bptt.certificates import Bound, Certificates, certificates
from bptt.chain import chain_norms, contributions, per_step_gradients, product_chain
from bptt.checking import CheckReport, check
from bptt.checkpoints import MemoryPlan, memory_plan
from bptt.exchange import from_torch
from bptt.flow import Flow, gradient_flow
from bptt.gradient import Gradients, Trajectory, backward, errors, forward, value_and_grad
from bptt.jacobian import state_jacobian, state_jacobians
from bptt.lyapunov import Lyapunov, lyapunov_spectrum
from bptt.network import RNN
from bptt.scaled import ScaledMatrix
from bptt.truncated import TruncatedRun, TruncationBias, truncated_value_and_grad, truncation_bias

__all__ = [
    "RNN",
    "Bound",
    "Certificates",
    "CheckReport",
    "Flow",
    "Gradients",
    "Lyapunov",
    "MemoryPlan",
    "ScaledMatrix",
    "Trajectory",
    "TruncatedRun",
    "TruncationBias",
    "backward",
    "certificates",
    "chain_norms",
    "check",
    "contributions",
    "errors",
    "forward",
    "from_torch",
    "gradient_flow",
    "info",
    "lyapunov_spectrum",
    "memory_plan",
    "per_step_gradients",
    "product_chain",
    "state_jacobian",
    "state_jacobians",
    "theorems",
    "truncated_value_and_grad",
    "truncation_bias",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bptt")
    if name == "theorems":  # rarely wanted, so imported when it is
        from importlib import import_module

        return import_module("bptt.theorems")
    raise AttributeError(f"module 'bptt' has no attribute {name!r}")
