"""`torch.nn.RNN` with the same face and another engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from bptt._kernel import ACTIVATIONS
from bptt._validate import choice
from bptt.torch._operator import rnn


class RNN(torch.nn.RNNBase):  # type: ignore[misc]
    """A drop-in for `torch.nn.RNN` on the CPU, with exact first derivatives.

    ::

        h_t = sigma(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    for each layer and direction (PyTorch's h_t is the article's a_t, eq. G1). The parameters have the same names,
    shapes and, from the same seed, values, so a ``state_dict`` is loaded either way. float32 or float64.

    Parameters
    ----------
    input_size, hidden_size : int
        p and n.
    num_layers : int
    nonlinearity : {"tanh", "relu", "identity", "logistic", "leaky_relu", "elu", "softplus", "softsign"}
        sigma; `torch.nn.RNN` has the first two.
    bias : bool
        Whether there are b_ih and b_hh.
    batch_first : bool
        Whether batches come as (B, T, ...) instead of (T, B, ...).
    dropout : float in [0, 1]
        Of the states that each layer but the last passes on, in training.
    bidirectional : bool
    device, dtype
        Of the parameters.

    Notes
    -----
    `forward` takes ``input`` of shape (T, B, p), (T, p) for one sequence, or a `PackedSequence`, and optionally the
    initial states ``hx`` of shape (num_layers * directions, B, n); it returns the states of the last layer, of shape
    (T, B, directions * n), and ``h_n`` like ``hx``, the last states of each layer and direction.

    The states are what the backward pass starts from: written over in place, they make it raise.

    As many threads are used as ``torch.get_num_threads()`` and BPTT_NUM_THREADS allow; their number changes no bit.

    Raises
    ------
    TypeError
        The parameters are neither float32 nor float64.
    RuntimeError
        A tensor is not on the CPU, autocast is on, a shape is wrong, or a second derivative is asked for.

    Examples
    --------
    >>> import torch
    >>> import bptt.torch
    >>> rnn = bptt.torch.RNN(3, 16, num_layers=2)
    >>> output, h_n = rnn(torch.randn(100, 4, 3))
    >>> output.shape, h_n.shape
    (torch.Size([100, 4, 16]), torch.Size([2, 4, 16]))
    >>> torch.nn.RNN(3, 16, num_layers=2).load_state_dict(rnn.state_dict())
    <All keys matched successfully>
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        choice("nonlinearity", nonlinearity, ACTIVATIONS)
        super().__init__(
            "RNN_TANH", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, back = input if packed else (input, None, None, None)
        self._check_support(x, hx)
        if not packed and x.dim() not in (2, 3):
            raise ValueError(f"input must have shape (T, B, p), (B, T, p) with batch_first, or (T, p); got {x.shape}")
        batched = packed or x.dim() == 3
        time_axis, batch_axis = (1, 0) if self.batch_first and not packed else (0, 1)
        if not batched:
            x = x.unsqueeze(batch_axis)
        if hx is None:
            size = x.shape[batch_axis] if batch_sizes is None else int(batch_sizes[0])
            hx = x.new_zeros(len(self.all_weights), size, self.hidden_size)
        elif hx.dim() != 2 + batched:
            raise RuntimeError(f"hx must have {2 + batched} dimensions, as input has; got {tuple(hx.shape)}")
        else:
            hx = self.permute_hidden(hx, order) if batched else hx.unsqueeze(1)
        self.check_forward_args(x, hx, batch_sizes)
        for tensor in (x, hx, *self._flat_weights):
            if tensor.dtype != self.weight_hh_l0.dtype:
                raise RuntimeError(
                    f"input, hx and parameters must have one dtype; got {tensor.dtype} and {self.weight_hh_l0.dtype}"
                )
        if not x.shape[time_axis]:
            raise RuntimeError(f"input must have T >= 1 steps; got {tuple(x.shape)}")

        output, h_n = self._layers(x.transpose(0, time_axis), batch_sizes, hx)
        if packed:
            return PackedSequence(output, batch_sizes, order, back), self.permute_hidden(h_n, back)
        output = output.transpose(0, time_axis)
        return (output, h_n) if batched else (output.squeeze(batch_axis), h_n.squeeze(1))

    def _layers(self, x: Tensor, batch_sizes: Tensor | None, hx: Tensor) -> tuple[Tensor, Tensor]:
        """The states of the last layer, and the last states of all, for time-major or packed inputs."""
        directions = (False, True) if self.bidirectional else (False,)
        finals = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = torch.nn.functional.dropout(x, self.dropout, self.training)
            outputs = []
            for reverse in directions:
                row = layer * len(directions) + reverse
                W_I, W_R, *biases = self.all_weights[row]
                b = biases[0] + biases[1] if biases else None
                states, final = rnn(x, batch_sizes, hx[row], W_I, W_R, b, self.nonlinearity, reverse)
                outputs.append(states)
                finals.append(final)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
        return x, torch.stack(finals)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity!r}"

    def _check_support(self, x: Tensor, hx: Tensor | None) -> None:
        weight = self.weight_hh_l0
        tensors = [x, *self._flat_weights, *([] if hx is None else [hx])]
        for tensor in tensors:
            if tensor.device.type not in ("cpu", "meta"):
                raise RuntimeError(
                    f"bptt.torch.RNN runs on the CPU; got a tensor on {tensor.device}. Move module and input there "
                    "with .cpu(), or load its state_dict into torch.nn.RNN"
                )
        if weight.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"bptt.torch.RNN computes in float32 or float64; got {weight.dtype}. Convert with .float()")
        for tensor in tensors:
            if tensor.device != weight.device:
                raise RuntimeError(
                    f"input, hx and parameters must be on one device; got {tensor.device} and {weight.device}"
                )
        if not torch.compiler.is_compiling():
            self._check_transforms(tensors)
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError(
                "bptt.torch.RNN does not compute in autocast's precision: call it with torch.autocast('cpu', "
                "enabled=False) around it, on input.float()"
            )

    def _check_transforms(self, tensors: list[Tensor]) -> None:
        """An operator says nothing of forward mode: its derivatives would come out as zero."""
        forward_mode = forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
        )
        if forward_mode or torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(
                "bptt.torch.RNN is differentiated by backward() and torch.autograd.grad; for forward mode and the "
                "transforms of torch.func use torch.nn.RNN, which takes the same state_dict"
            )
