"""What PyTorch's own checkers and compiler say of the operator."""

import pytest

from support_torch import KINDS, arguments, assert_same, pair, torch

# isort: split
from torch.nn.utils.rnn import PackedSequence

import bptt.torch
from bptt.torch import _batch
from bptt.torch._operator import rnn, rnn_backward

pytestmark = pytest.mark.peers

BATCH_SIZES = torch.tensor([3, 3, 2, 1])


def operands(n=5, p=3, packed=False, reverse=False, bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)

    def leaf(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=dtype, requires_grad=True)

    x = leaf(9, p) if packed else leaf(4, 3, p)
    b = leaf(n) if bias else None
    return x, BATCH_SIZES if packed else None, leaf(3, n), leaf(n, p), leaf(n, n), b, "tanh", reverse


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("n", "bias", "dtype"), [(5, True, torch.float64), (16, False, torch.float32)])
def test_opcheck(n, bias, dtype, packed, reverse):
    given = operands(n, packed=packed, reverse=reverse, bias=bias, dtype=dtype)
    verdicts = torch.library.opcheck(rnn, given)
    states, final = (tensor.detach() for tensor in rnn(*given))
    x, batch_sizes, initial, W_I, W_R = (tensor if tensor is None else tensor.detach() for tensor in given[:5])
    for pulls, wrt_x in (((torch.randn_like(states), torch.randn_like(final)), True), ((None, final), False)):
        last = x, batch_sizes, initial, W_I, W_R, states, "tanh", reverse, wrt_x
        verdicts |= torch.library.opcheck(rnn_backward, (*pulls, *last))
    assert len(verdicts) == 4
    assert set(verdicts.values()) == {"SUCCESS"}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("n", [5, 8])
def test_gradcheck_of_the_operator(n, packed, reverse, monkeypatch):
    monkeypatch.setattr(_batch, "segment_steps", lambda *args: 2)
    given = operands(n, packed=packed, reverse=reverse)
    assert torch.autograd.gradcheck(rnn, given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "softplus"])
def test_gradcheck_of_the_module(nonlinearity, kind):
    """Layers, directions, and every weight; biases enter as two."""
    mine = bptt.torch.RNN(2, 3, 2, nonlinearity, bidirectional=True, dtype=torch.float64)
    x, hx = arguments(mine, kind, T=4)
    packed = isinstance(x, PackedSequence)
    names = list(mine.state_dict())

    def run(data, initial, *weights):
        given = x._replace(data=data) if packed else data
        output, h_n = torch.func.functional_call(mine, dict(zip(names, weights)), (given, initial))
        return (output.data if packed else output), h_n

    data = x.data if packed else x
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (data, hx, *mine.state_dict().values())]
    assert torch.autograd.gradcheck(run, leaves)


def test_a_second_derivative_is_refused():
    mine = bptt.torch.RNN(3, 5)
    x = torch.randn(7, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(mine(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"first derivatives only.*torch\.nn\.RNN"):
        gradient.square().sum().backward()


def test_states_written_over_in_place_are_noticed_where_a_gradient_needs_them():
    mine = bptt.torch.RNN(3, 5)
    with torch.no_grad():
        output, _ = mine(torch.randn(7, 2, 3))
        assert torch.equal(output * 2, output.mul_(2))
    output, _ = mine(torch.randn(7, 2, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.mul_(2).sum().backward()


class Tagger(torch.nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent
        self.readout = torch.nn.Linear(2 * recurrent.hidden_size, 4)

    def forward(self, x, hx):
        output, h_n = self.recurrent(x, hx)
        return self.readout(torch.tanh(output)), h_n


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's import
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_without_a_break(backend):
    _, mine = pair(3, 17, 2, bidirectional=True)
    tagger = Tagger(mine)
    weights = list(tagger.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(tagger, backend=backend, fullgraph=True, dynamic=True)
    for T in (7, 12):
        x, hx = arguments(mine, T=T)
        runs = []
        for module in (compiled, tagger):
            output, h_n = module(x, hx)
            gradients = torch.autograd.grad(output.square().sum() + h_n.sum(), weights)
            runs.append({"output": output, "h_n": h_n, **{str(i): g for i, g in enumerate(gradients)}})
        assert_same(*runs)


def test_compiled_over_packed_sequences():
    """Their size is not known before they come: PyTorch breaks the graph, and the result is right."""
    theirs, mine = pair(3, 17)
    torch._dynamo.reset()
    compiled = torch.compile(mine, backend="aot_eager")
    for seed in range(2):
        x, hx = arguments(mine, "packed, not sorted", seed=seed)
        with torch.no_grad():
            output, h_n = compiled(x, hx)
            wanted, final = theirs(x, hx)
        assert_same({"output": output.data, "h_n": h_n}, {"output": wanted.data, "h_n": final})


def test_shapes_without_numbers():
    """On the device `meta`, as for counting parameters and activations."""
    mine = bptt.torch.RNN(3, 5, 2, bidirectional=True, device="meta")
    output, h_n = mine(torch.empty(7, 2, 3, device="meta"))
    assert (output.shape, h_n.shape) == ((7, 2, 10), (4, 2, 5))
