"""Exact gradients of recurrent networks over long sequences, and a microscope for where they vanish or explode."""

from bptt._levels import info
from bptt.gradient import Gradients, Trajectory, backward, errors, forward, value_and_grad
from bptt.network import RNN

__all__ = ["RNN", "Gradients", "Trajectory", "backward", "errors", "forward", "info", "value_and_grad"]
