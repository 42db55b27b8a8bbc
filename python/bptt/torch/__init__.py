"""Recurrent networks for PyTorch on the kernel of this library: `RNN` in the place of `torch.nn.RNN`."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "bptt.torch needs PyTorch, which is not installed: pip install 'bptt[torch]'", name="torch"
    ) from None

from bptt.torch.flow import gradient_flow
from bptt.torch.module import RNN

__all__ = ["RNN", "gradient_flow"]
