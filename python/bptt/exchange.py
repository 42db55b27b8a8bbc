"""Networks from and to PyTorch's modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bptt._kernel import Array
from bptt.network import RNN

if TYPE_CHECKING:
    import torch

    import bptt.torch


def from_torch(module: torch.nn.RNNBase, readout: torch.nn.Linear | None = None) -> RNN:
    """A network of PyTorch as an `RNN`.

    On the CPU the weights are views of the module's parameters, so a training step is seen at the next call; from
    another device they are copies.

    Parameters
    ----------
    module : torch.nn.RNN or bptt.torch.RNN
        Of one layer and direction. What it takes as ``hx`` is the initial state a_0 of form "activation".
    readout : torch.nn.Linear, optional
        Makes z_t, the argument of the softmax, from a state; ``.replace(output="linear")`` takes the softmax away.

    Returns
    -------
    RNN

    Raises
    ------
    ModuleNotFoundError
        PyTorch is not installed.
    TypeError
        ``module`` or ``readout`` is something else, or its parameters are neither float32 nor float64.
    ValueError
        ``module`` has several layers or directions, or ``readout`` does not read n numbers.

    Examples
    --------
    >>> import torch
    >>> import bptt
    >>> rnn = bptt.from_torch(torch.nn.RNN(3, 16), torch.nn.Linear(16, 5))
    >>> rnn  # doctest: +ELLIPSIS
    RNN(W_R (16, 16), W_I (16, 3), W_O (5, 16), b_R (16,), b_I (16,), b_O (5,), float32, activation='tanh', ...)
    >>> module, readout = rnn.to_torch()
    """
    import bptt.torch  # says how PyTorch is installed

    # isort: split
    import torch

    if not isinstance(module, (torch.nn.RNN, bptt.torch.RNN)):
        raise TypeError(f"module must be a torch.nn.RNN or a bptt.torch.RNN; got {type(module).__name__}")
    if readout is not None and not isinstance(readout, torch.nn.Linear):
        raise TypeError(f"readout must be a torch.nn.Linear; got {type(readout).__name__}")
    if len(module.all_weights) != 1:
        raise ValueError(
            "module must have one layer and one direction; got "
            f"num_layers = {module.num_layers} and bidirectional = {module.bidirectional}"
        )
    W_I, W_R, b_I, b_R = (*module.all_weights[0], None, None)[:4]
    W_O, b_O = (None, None) if readout is None else (readout.weight, readout.bias)
    weights = (_numbers(weight) for weight in (W_R, W_I, W_O, b_R, b_I, b_O))
    return RNN(*weights, activation=module.nonlinearity)


def to_torch(rnn: RNN) -> tuple[bptt.torch.RNN, torch.nn.Linear | None]:
    """`RNN.to_torch`."""
    import bptt.torch  # says how PyTorch is installed

    # isort: split
    import torch

    if rnn.form != "activation" or (rnn.W_O is not None and rnn.readout != "activation"):
        raise ValueError(
            "the network must have form='activation' and, with a readout, readout='activation': modules of PyTorch "
            f"carry and read a_t; got form={rnn.form!r}, readout={rnn.readout!r}"
        )
    module = bptt.torch.RNN(
        rnn.p, rnn.n, nonlinearity=rnn.activation, bias=rnn.b_R is not None or rnn.b_I is not None, device="meta"
    )
    weights = {"weight_ih_l0": rnn.W_I, "weight_hh_l0": rnn.W_R}
    if module.bias:
        none = np.zeros(rnn.n, rnn.dtype)
        weights |= {
            "bias_ih_l0": none if rnn.b_I is None else rnn.b_I,
            "bias_hh_l0": none if rnn.b_R is None else rnn.b_R,
        }
    _fill(module, weights)
    if rnn.W_O is None:
        return module, None
    readout = torch.nn.Linear(rnn.n, rnn.m, bias=rnn.b_O is not None, device="meta")
    _fill(readout, {"weight": rnn.W_O} if rnn.b_O is None else {"weight": rnn.W_O, "bias": rnn.b_O})
    return module, readout


def _numbers(weight: Any) -> Any:
    import torch

    if weight is None:
        return None
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"module and readout must hold float32 or float64; got {weight.dtype}")
    return weight.detach().cpu().numpy()


def _fill(module: Any, weights: dict[str, Array]) -> None:
    import torch

    module.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()}, assign=True)
