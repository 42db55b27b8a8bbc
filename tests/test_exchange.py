"""Networks from PyTorch's modules and back."""

import numpy as np
import pytest

from support_torch import TOLERANCE, arguments, pair, results, torch

# isort: split

import bptt
import bptt.torch
from bptt._kernel import ACTIVATIONS
from bptt.network import WEIGHTS
from support import network, relative_error

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_and_its_readout_as_a_network(dtype, nonlinearity, bias):
    theirs, mine = pair(3, 17, nonlinearity=nonlinearity, bias=bias, dtype=dtype)
    readout = torch.nn.Linear(17, 4, bias=bias, dtype=dtype)
    x, hx = arguments(theirs)
    y = torch.arange(28).reshape(7, 4) % 4
    loss = torch.nn.functional.cross_entropy(readout(theirs(x, hx)[0]).flatten(0, 1), y.flatten())
    loss.backward()
    for module in (theirs, mine):
        rnn = bptt.from_torch(module, readout)
        assert (rnn.activation, rnn.form, rnn.output) == (nonlinearity, "activation", "softmax")
        value, gradients = bptt.value_and_grad(rnn, x, y, initial=hx[0])
        assert value == pytest.approx(loss.item(), rel=TOLERANCE[dtype])
        assert relative_error(gradients.W_R, theirs.weight_hh_l0.grad.numpy()) <= TOLERANCE[dtype]
        assert relative_error(gradients.W_O, readout.weight.grad.numpy()) <= TOLERANCE[dtype]
        if bias:
            assert relative_error(gradients.b_I, theirs.bias_ih_l0.grad.numpy()) <= TOLERANCE[dtype]
            assert relative_error(gradients.b_O, readout.bias.grad.numpy()) <= TOLERANCE[dtype]
        else:
            assert rnn.b_R is rnn.b_I is rnn.b_O is None


def test_weights_are_the_modules_own():
    module = torch.nn.RNN(3, 5)
    rnn = bptt.from_torch(module)
    assert rnn.W_O is None
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    assert np.array_equal(rnn.W_R, module.weight_hh_l0.detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_as_modules(activation):
    rnn = network(activation=activation)
    module, readout = rnn.to_torch()
    x = np.random.default_rng(0).standard_normal((9, 2, 3))
    trajectory = bptt.forward(rnn, x)
    with torch.no_grad():
        states, h_n = module(torch.tensor(x))
        outputs = readout(states).softmax(-1)
    assert np.array_equal(states, trajectory.activations[1:])
    assert np.array_equal(h_n[0], trajectory.final)
    assert relative_error(outputs.numpy(), trajectory.outputs) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("absent", [(), ("W_O", "b_O"), ("b_R", "b_I", "b_O"), ("b_I",)])
def test_there_and_back(absent, dtype):
    rnn = network(dtype=dtype).replace(**dict.fromkeys(absent))
    module, readout = rnn.to_torch()
    assert all(weight.requires_grad for weight in module.parameters())
    back = bptt.from_torch(module, readout)
    for name in WEIGHTS:
        mine, theirs = getattr(back, name), getattr(rnn, name)
        if theirs is None and name == "b_I" and rnn.b_R is not None:
            theirs = np.zeros(rnn.n, dtype)  # modules have both or none
        assert (mine is None) == (theirs is None), name
        assert mine is None or (mine.dtype == theirs.dtype and np.array_equal(mine, theirs)), name
        assert mine is None or not np.shares_memory(mine, theirs), name
    theirs = torch.nn.RNN(3, 6, bias=module.bias, dtype=getattr(torch, dtype))
    theirs.load_state_dict(module.state_dict())


def test_what_is_made_trains_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    module, _ = network().to_torch()
    assert torch.equal(torch.get_rng_state(), before)
    x, hx = arguments(module)
    assert results(module, x, hx)["d_weight_hh_l0"].abs().sum() > 0


def test_what_has_no_counterpart_is_refused():
    for choices in ({"form": "preactivation"}, {"readout": "preactivation"}):
        with pytest.raises(ValueError, match="must have form='activation'"):
            network(**choices).to_torch()
    for module, message in (
        (torch.nn.LSTM(3, 5), "module must be a torch.nn.RNN or a bptt.torch.RNN; got LSTM"),
        (None, "got NoneType"),
        (torch.nn.RNN(3, 5).half(), "float32 or float64; got torch.float16"),
    ):
        with pytest.raises(TypeError, match=message):
            bptt.from_torch(module)
    for settings in ({"num_layers": 2}, {"bidirectional": True}):
        with pytest.raises(ValueError, match="one layer and one direction; got num_layers = "):
            bptt.from_torch(torch.nn.RNN(3, 5, **settings))
    with pytest.raises(TypeError, match=r"readout must be a torch\.nn\.Linear; got ReLU"):
        bptt.from_torch(torch.nn.RNN(3, 5), torch.nn.ReLU())
    with pytest.raises(ValueError, match="W_O must have shape"):
        bptt.from_torch(torch.nn.RNN(3, 5), torch.nn.Linear(4, 2))
