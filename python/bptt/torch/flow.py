"""How far back gradients reach in PyTorch's recurrent modules, and in any cell of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence, unpack_sequence

import bptt
from bptt._kernel import Array
from bptt.flow import Flow
from bptt.torch.module import RNN

_CELLS = {torch.nn.LSTM: torch.nn.LSTMCell, torch.nn.GRU: torch.nn.GRUCell}
_LAYERED: tuple[Any, ...] = (torch.nn.RNN, RNN, *_CELLS)

_TOGETHER = 4096  # steps whose Jacobians PyTorch computes together


@torch.random.fork_rng(devices=[])  # type: ignore[untyped-decorator]  # what is drawn here, for layers of our own, is not missed elsewhere
def gradient_flow(
    module: Any,
    x: Tensor | PackedSequence,
    loss: Callable[[Any], Tensor] | None = None,
    hx: Any = None,
    **options: Any,
) -> dict[str, Flow]:
    """How far back the gradient reaches in each layer and direction of a recurrent module, or in a cell.

    Of an RNN it is found from its weights, with the bounds that these prove, and is that of the article's h_t, what
    sigma is taken of; of an LSTM, a GRU or a cell from the step Jacobians ∂s_t/∂s_{t-1} that PyTorch computes, s the
    whole state, of an LSTM (h, c). These take 8 T n^2 bytes a sequence. Everything is computed in float64, as in
    evaluation: without dropout.

    Parameters
    ----------
    module : torch.nn.RNN, bptt.torch.RNN, torch.nn.LSTM or torch.nn.GRU, or a cell
        A cell is called with x_t of shape (B, p) and a state, and returns the next: a tensor of shape (B, n), or a
        tuple of such, h first. Called without a state, it begins at zeros.
    x : Tensor or PackedSequence
        As the module takes it; of a cell, of shape (T, B, p) or (T, p).
    loss : callable, optional
        Takes the module's output, of a cell h_1 .. h_T of shape (T, B, n), and returns the error, a tensor of one
        number. None: the flow is the state's, not the error's.
    hx : Tensor, or tuple of such, optional
        Initial states, as the module takes them; of a cell, as it returns them. None is zeros.
    **options
        stops, max_lag, k, fraction, cond_limit, threads, as in `bptt.gradient_flow`.

    Returns
    -------
    dict of Flow
        By the end of the parameters' names: "l0", "l0_reverse", "l1", ...; of a cell "cell". For a reverse direction t
        counts from the end of a sequence, where that network begins.

    Raises
    ------
    TypeError
        loss does not return a tensor that depends on the output.
    ValueError
        The module has proj_size > 0, or as in `bptt.gradient_flow`.

    Examples
    --------
    >>> import torch
    >>> import bptt.torch
    >>> _ = torch.manual_seed(0)
    >>> flows = bptt.torch.gradient_flow(torch.nn.LSTM(3, 8, num_layers=2), torch.randn(100, 4, 3))
    >>> {name: flow.verdict for name, flow in flows.items()}
    {'l0': 'vanishing', 'l1': 'vanishing'}
    """
    stages: list[Any]
    if isinstance(module, torch.nn.RNNBase):
        if not isinstance(module, _LAYERED):
            raise TypeError(f"module must be an RNN, an LSTM, a GRU or a cell; got {type(module).__name__}")
        if module.proj_size:
            raise ValueError(f"module must have proj_size = 0; got {module.proj_size}")
        batch = _Batch(x, 0 if module.batch_first else 1)
        stages = [_Layer(module, number) for number in range(module.num_layers)]
        if hx is not None:
            directions = (1 + module.bidirectional) * module.num_layers
            batch.check(hx, 1 + isinstance(module, torch.nn.LSTM), (directions, module.hidden_size))
    else:
        batch = _Batch(x, 1)
        stages = [_Cell(module)]
    firsts = batch.states(hx)
    inputs, outputs = [], [batch.sequences]
    with torch.enable_grad():
        for stage in stages:
            inputs.append([u.detach().requires_grad_() for u in outputs[-1]])
            outputs.append([stage.run(u, first) for u, first in zip(inputs[-1], firsts)])
        pulls: list[Any] = [None] * len(stages)
        if loss is not None:
            pulls[-1] = _pulls(loss, batch, outputs[-1], next(module.parameters(), batch.sequences[0]))
            for number in range(len(stages) - 1, 0, -1):
                pulls[number - 1] = torch.autograd.grad(outputs[number + 1], inputs[number], pulls[number])
    flows: dict[str, Flow] = {}
    for stage, us, ds in zip(stages, inputs, pulls):
        flows |= stage.flows([u.detach() for u in us], firsts, ds, options)
    return flows


class _Batch:
    """The sequences of an input, each (T, p), in float64 on the CPU."""

    def __init__(self, x: Any, axis: int) -> None:
        self._x, self._axis = x, axis
        self._packed = isinstance(x, PackedSequence)
        self._alone = not self._packed and x.dim() == 2
        apart = unpack_sequence(x) if self._packed else [x] if self._alone else x.unbind(axis)
        self.sequences = [_double(u) for u in apart]

    def together(self, sequences: list[Tensor]) -> Any:
        """Sequences in the form in which the module gives them out."""
        if self._packed:
            order = range(len(sequences)) if self._x.sorted_indices is None else self._x.sorted_indices.tolist()
            return self._x._replace(data=pack_sequence([sequences[b] for b in order]).data)
        return sequences[0] if self._alone else torch.stack(sequences, self._axis)

    def check(self, hx: Any, count: int, ends: tuple[int, int]) -> None:
        wanted = (ends[0], ends[1]) if self._alone else (ends[0], len(self.sequences), ends[1])
        parts = _parts(hx)
        shapes = [tuple(part.shape) for part in parts]
        if shapes != [wanted] * count:
            raise ValueError(f"hx must be {count} tensor(s) of shape {wanted}; got {', '.join(map(str, shapes))}")

    def states(self, hx: Any) -> list[Any]:
        """For each sequence the parts of its initial state, each (rows, n), or None."""
        if hx is None:
            return [None] * len(self.sequences)
        parts = [_double(part.unsqueeze(-2) if self._alone else part) for part in _parts(hx)]
        return [[part[..., b, :].reshape(-1, part.shape[-1]) for part in parts] for b in range(len(self.sequences))]


class _Layer:
    """One layer of a module, in float64 on the CPU."""

    def __init__(self, module: torch.nn.RNNBase, number: int) -> None:
        directions = 1 + module.bidirectional
        self._rows = slice(number * directions, (number + 1) * directions)
        self._names = (f"l{number}", f"l{number}_reverse")
        weights = module.all_weights[self._rows]
        sizes, settings = (weights[0][0].shape[1], module.hidden_size), {"bidirectional": module.bidirectional}
        self._cell: Any = None
        cls = RNN
        if isinstance(module, (torch.nn.RNN, RNN)):
            settings["nonlinearity"] = module.nonlinearity
        else:
            cls, self._cell = next(pair for pair in _CELLS.items() if isinstance(module, pair[0]))
        self._layer = cls(*sizes, bias=module.bias, **settings).double().requires_grad_(False)
        _copy(self._layer, [weight for own in weights for weight in own])

    def run(self, u: Tensor, first: Any) -> Tensor:
        return self._layer(u, None if first is None else _state([part[self._rows] for part in first]))[0]

    def flows(self, us: list[Tensor], firsts: list[Any], ds: Any, options: dict[str, Any]) -> dict[str, Flow]:
        flows, n = {}, self._layer.hidden_size
        for reverse, (name, weights) in enumerate(zip(self._names, self._layer.all_weights)):
            own_firsts = [None if first is None else [part[self._rows][reverse] for part in first] for first in firsts]
            own_us, own_ds = us, None if ds is None else [d[:, reverse * n : (reverse + 1) * n] for d in ds]
            if reverse:
                own_us, own_ds = [u.flip(0) for u in us], None if own_ds is None else [d.flip(0) for d in own_ds]
            if self._cell is None:
                flow = _of_network(self._layer.nonlinearity, weights, own_us, own_firsts, own_ds, options)
            else:
                cell = self._cell(us[0].shape[1], n, bias=self._layer.bias).double().requires_grad_(False)
                _copy(cell, weights)
                flow = _of_cell(cell, own_us, own_firsts, own_ds, options)
            flows[name] = flow
        return flows


class _Cell:
    """A cell of the caller's, in float64 on the CPU."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._cell = copy.deepcopy(module).to("cpu", torch.float64).eval().requires_grad_(False)

    def run(self, u: Tensor, first: Any) -> Tensor:
        return _trajectory(self._cell, u, self._own(first))[0][1:]

    def flows(self, us: list[Tensor], firsts: list[Any], ds: Any, options: dict[str, Any]) -> dict[str, Flow]:
        return {"cell": _of_cell(self._cell, us, [self._own(first) for first in firsts], ds, options)}

    @staticmethod
    def _own(first: Any) -> Any:
        return None if first is None else [part[0] for part in first]


def _of_network(
    nonlinearity: str, weights: list[Tensor], us: list[Tensor], firsts: list[Any], ds: Any, options: dict[str, Any]
) -> Flow:
    W_I, W_R, b_I, b_R = (*(weight.detach().numpy() for weight in weights), None, None)[:4]
    return bptt.gradient_flow(
        bptt.RNN(W_R, W_I, b_I=b_I, b_R=b_R, activation=nonlinearity),
        pad_sequence(us).numpy(),
        d_states=None if ds is None else pad_sequence(ds).numpy(),
        lengths=[len(u) for u in us],
        initial=None if firsts[0] is None else torch.stack([first[0] for first in firsts]).numpy(),
        **options,
    )


def _of_cell(cell: torch.nn.Module, us: list[Tensor], firsts: list[Any], ds: Any, options: dict[str, Any]) -> Flow:
    """The first part of the state is what the cell gives out."""
    jacobians, pulls = [], []
    for b, (u, first) in enumerate(zip(us, firsts)):
        parts = _trajectory(cell, u, first)
        jacobians.append(_jacobians(cell, u, parts))
        if ds is not None:
            pulls.append(torch.cat([ds[b], *(torch.zeros_like(part[1:]) for part in parts[1:])], 1).numpy())
    return bptt.gradient_flow(jacobians=jacobians, d_states=None if ds is None else pulls, **options)


def _trajectory(cell: torch.nn.Module, u: Tensor, first: Any) -> list[Tensor]:
    """The parts of the states at t = 0 .. T, each (T + 1, n)."""
    with torch.no_grad():
        if first is None:
            first = [torch.zeros_like(part[0]) for part in _parts(cell(u[:1]))]
        states = [first]
        for u_t in u:
            states.append([part[0] for part in _parts(cell(u_t[None], _state([part[None] for part in states[-1]])))])
        return [torch.stack(part) for part in zip(*states)]


def _jacobians(cell: torch.nn.Module, u: Tensor, parts: list[Tensor]) -> Array:
    """∂s_{t+1}/∂s_t for t = 0 .. T-1: the steps go through the cell side by side, as the sequences of a batch do."""
    sizes = [part.shape[1] for part in parts]
    states = torch.cat(parts, 1)[:-1].detach()
    jacobians = np.zeros((len(states), sum(sizes), sum(sizes)))
    for first in range(0, len(states), _TOGETHER):
        steps = slice(first, first + _TOGETHER)
        s = states[steps].requires_grad_()
        with torch.enable_grad():
            following = torch.cat(_parts(cell(u[steps], _state(list(s.split(sizes, 1))))), 1)
            totals = following.sum(0).unbind() if following.requires_grad else ()
        for i, total in enumerate(totals):
            (rows,) = torch.autograd.grad(total, s, retain_graph=True, materialize_grads=True)
            jacobians[steps, i] = rows.numpy()
    return jacobians


def _pulls(loss: Any, batch: _Batch, outputs: list[Tensor], like: Tensor) -> list[Tensor]:
    """The derivatives of the loss by the outputs of each sequence."""
    leaves = [output.detach().to(like.device, like.dtype).requires_grad_() for output in outputs]
    value = loss(batch.together(leaves))
    if not (isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad):
        raise TypeError("loss must return a tensor of one number that depends on the output; got " + _described(value))
    return [_double(d) for d in torch.autograd.grad(value, leaves)]


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _copy(module: torch.nn.Module, weights: list[Tensor]) -> None:
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), weights, strict=True):
            mine.copy_(theirs)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _parts(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _state(parts: list[Tensor]) -> Any:
    return parts[0] if len(parts) == 1 else tuple(parts)
