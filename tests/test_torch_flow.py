"""gradient_flow of PyTorch's modules: the Jacobians and the error's derivatives are those of autograd."""

import numpy as np
import pytest

from support_torch import torch

# isort: split
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt.torch

pytestmark = pytest.mark.peers

T, B, N = 12, 3, 4


def module(cls, seed=0, **settings):
    torch.manual_seed(seed)
    return cls(3, N, **settings)


@pytest.mark.parametrize("hx", [None, torch.linspace(-1, 1, B * N).reshape(1, B, N)])
@pytest.mark.parametrize("cls", [torch.nn.RNN, bptt.torch.RNN])
def test_a_network_flows_as_bptts(cls, hx):
    rnn, x = module(cls), torch.randn(T, B, 3)
    flows = bptt.torch.gradient_flow(rnn, x, hx=hx, max_lag=5, fraction=0.1)
    assert list(flows) == ["l0"]
    network = bptt.from_torch(rnn).astype("float64")
    wanted = bptt.gradient_flow(network, x, initial=None if hx is None else hx[0], max_lag=5, fraction=0.1)
    assert str(flows["l0"]) == str(wanted)
    assert np.array_equal(flows["l0"].contributions, wanted.contributions, equal_nan=True)


def test_the_error_of_a_network_is_the_losses():
    """The cross-entropy of a readout, by autograd and by bptt's own loss."""
    torch.manual_seed(0)
    rnn, readout, x, y = torch.nn.RNN(3, N), torch.nn.Linear(N, 5), torch.randn(T, B, 3), torch.randint(5, (T, B))

    def loss(output):
        return torch.nn.functional.cross_entropy(readout(output).flatten(0, 1), y.flatten(), reduction="sum")

    flow = bptt.torch.gradient_flow(rnn, x, loss, stops=[6, 12])["l0"]
    wanted = bptt.gradient_flow(bptt.from_torch(rnn, readout).astype("float64"), x, y, stops=[6, 12])
    assert flow.of_error and wanted.of_error
    np.testing.assert_array_equal(flow.norms, wanted.norms)
    np.testing.assert_allclose(flow.contributions, wanted.contributions, atol=1e-5)  # the loss is in float32


def network_step(weights, u, s):
    W_I, W_R, b_I, b_R = weights
    return torch.tanh(W_I @ u + b_I + W_R @ s + b_R)


def lstm_step(weights, u, s):
    W_I, W_R, b_I, b_R = weights
    i, f, g, o = (W_I @ u + b_I + W_R @ s[:N] + b_R).split(N)
    c = f.sigmoid() * s[N:] + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c])


def gru_step(weights, u, s):
    W_I, W_R, b_I, b_R = weights
    (r, z, m), (r_s, z_s, m_s) = (W_I @ u + b_I).split(N), (W_R @ s + b_R).split(N)
    r, z = (r + r_s).sigmoid(), (z + z_s).sigmoid()
    return (1 - z) * (m + r * m_s).tanh() + z * s


#: Step and size of the state of the gated modules, as their documentation has them.
GATED = {torch.nn.LSTM: (lstm_step, 2 * N), torch.nn.GRU: (gru_step, N)}


def states_of(step, size, weights, u, first=None):
    """s_0 .. s_T in float64, each with a graph to those before, that gradients can be asked for."""
    weights = [weight.detach().double() for weight in weights]
    states = [(torch.zeros(size) if first is None else first).double().requires_grad_()]
    for u_t in u.double():
        states.append(step(weights, u_t, states[-1]))
    return states


def assert_norms(flow, b, states):
    """The norms of sequence b are those of autograd's ∂s_t/∂s_k."""
    rows = np.flatnonzero(flow.sequences == b)
    assert rows.size
    for row in rows:
        t = flow.stops[row]
        for lag, log in enumerate(flow.norms[row]):
            if lag > t:
                assert np.isnan(log)
                continue
            gradients = [torch.autograd.grad(s, states[t - lag], retain_graph=True)[0] for s in states[t]]
            norm = torch.linalg.matrix_norm(torch.stack(gradients), 2)
            assert log == pytest.approx(float(norm.log()), abs=1e-10)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cls", GATED)
def test_every_layer_and_direction_of_gated_modules(cls, bidirectional):
    stack = module(cls, num_layers=2, bidirectional=bidirectional, batch_first=True, dropout=0.5)
    x = torch.randn(B, T, 3)
    flows = bptt.torch.gradient_flow(stack, x, stops=[1, 7, 12], max_lag=9)
    names = ["l0", "l0_reverse", "l1", "l1_reverse"] if bidirectional else ["l0", "l1"]
    assert list(flows) == names
    lower = cls(3, N, bidirectional=bidirectional, batch_first=True).double()
    lower.load_state_dict({name: weight for name, weight in stack.state_dict().items() if "_l0" in name})
    inputs = {"0": x, "1": lower(x.double())[0].detach()}
    for name, weights in zip(names, stack.all_weights):
        for b in range(B):
            u = inputs[name[1]][b]
            assert_norms(flows[name], b, states_of(*GATED[cls], weights, u.flip(0) if "reverse" in name else u))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("cls", GATED)
def test_the_error_of_a_step_by_the_states_before_it(cls, batched):
    """And initial states: of an error at the last step alone, g_T P(k,T) is its gradient by s_k."""
    rnn, u = module(cls), torch.randn(T, 3)
    hx = [torch.randn(1, N) for _ in range(GATED[cls][1] // N)]
    x, first = (u[:, None], [h[None] for h in hx]) if batched else (u, hx)

    def loss(output):
        assert output.shape == ((T, 1, N) if batched else (T, N))
        assert output.dtype == torch.float32
        return output[-1].sin().sum()

    flow = bptt.torch.gradient_flow(rnn, x, loss, tuple(first) if len(first) == 2 else first[0], stops=[5, T])["l0"]
    states = states_of(*GATED[cls], rnn.all_weights[0], u, torch.cat(hx, -1)[0])
    error = states[-1][:N].sin().sum()
    assert flow.of_error
    assert np.isnan(flow.contributions[0]).all()  # no error at t = 5
    for lag in range(T):
        (gradient,) = torch.autograd.grad(error, states[T - lag], retain_graph=True)
        assert flow.contributions[1, lag] == pytest.approx(float(gradient.norm().log()), abs=1e-5)


@pytest.mark.parametrize("cls", [torch.nn.RNN, torch.nn.GRU])
def test_the_error_reaches_a_lower_layer_through_the_upper(cls):
    """At the last step, what comes from above is all there is."""
    rnn, x = module(cls, num_layers=2, bidirectional=True), torch.randn(T, 1, 3)
    flows = bptt.torch.gradient_flow(rnn, x, lambda output: output.sin().sum(), stops=[T])
    lower, upper = cls(3, N, bidirectional=True).double(), cls(2 * N, N, bidirectional=True).double()
    lower.load_state_dict({name: weight for name, weight in rnn.state_dict().items() if "_l0" in name})
    weights = {name.replace("_l1", "_l0"): weight for name, weight in rnn.state_dict().items() if "_l1" in name}
    upper.load_state_dict(weights)
    states = lower(x.double())[0].detach().requires_grad_()
    (pulls,) = torch.autograd.grad(upper(states)[0].sin().sum(), states)
    states = states.detach()
    for name, own, step in (("l0", slice(N), -1), ("l0_reverse", slice(N, None), 0)):  # in reverse, T is the first
        g, a = pulls[step, 0, own], states[step, 0, own]
        contribution = float(g.norm().log())
        if cls is torch.nn.RNN:  # g by the pre-activation, times the state before
            before = states[step - 1 if step else 1, 0, own]
            contribution = float((g * (1 - a**2)).norm().log() + before.norm().log())
        assert flows[name].contributions[0, 0] == pytest.approx(contribution, abs=1e-5)


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("cls", [torch.nn.RNN, torch.nn.LSTM])
def test_packed_sequences_are_looked_at_each_alone(cls, enforce_sorted):
    rnn, x = module(cls, bidirectional=True), torch.randn(T, B, 3)
    lengths = torch.tensor([12, 7, 4] if enforce_sorted else [4, 12, 7])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)

    def loss(output):
        states = output.data if isinstance(output, PackedSequence) else output
        return states.square().sum()

    hx = torch.randn(2, B, N)
    if cls is torch.nn.LSTM:
        hx = (hx, torch.randn(2, B, N))
    flows = bptt.torch.gradient_flow(rnn, packed, loss, hx, stops=[3, 4, 7, 12])
    for b, length in enumerate(lengths):
        own = tuple(h[:, b] for h in hx) if isinstance(hx, tuple) else hx[:, b]
        wanted = bptt.torch.gradient_flow(
            rnn, x[:length, b], loss, own, stops=[s for s in (3, 4, 7, 12) if s <= length]
        )
        for name, flow in flows.items():
            mine, lags = flow.contributions[flow.sequences == b], wanted[name].contributions.shape[1]
            np.testing.assert_allclose(mine[:, :lags], wanted[name].contributions, rtol=0, atol=1e-12)


CELLS = {torch.nn.RNNCell: (network_step, N), torch.nn.LSTMCell: GATED[torch.nn.LSTM], torch.nn.GRUCell: (gru_step, N)}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("cls", CELLS)
def test_cells(cls, batched):
    cell, x = module(cls), torch.randn(T, B, 3)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    flow = bptt.torch.gradient_flow(cell, x if batched else x[:, 0], lambda h: h[-1].sum(), stops=[T])["cell"]
    for b in range(B if batched else 1):
        states = states_of(*CELLS[cls], weights, x[:, b])
        assert_norms(flow, b, states)
        (gradient,) = torch.autograd.grad(states[-1][:N].sum(), states[3], retain_graph=True)
        assert flow.contributions[b, T - 3] == pytest.approx(float(gradient.norm().log()), abs=1e-5)


class Leaky(torch.nn.Module):
    """A cell of one's own."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 + N, N)

    def forward(self, x, h=None):
        h = x.new_zeros(len(x), N) if h is None else h
        return 0.7 * h + 0.1 * torch.tanh(self.linear(torch.cat([x, h], -1)))


@pytest.mark.parametrize("hx", [None, torch.linspace(-1, 1, B * N).reshape(B, N)])
def test_a_cell_of_ones_own(hx):
    torch.manual_seed(0)
    cell, x = Leaky(), torch.randn(T, B, 3)
    flow = bptt.torch.gradient_flow(cell, x, hx=hx, stops=[T])["cell"]
    assert flow.verdict == "vanishing"
    double = Leaky().double()
    double.load_state_dict(cell.state_dict())
    for b in range(B):
        first = None if hx is None else hx[b]
        assert_norms(flow, b, states_of(lambda _, u, s: double(u[None], s[None])[0], N, [], x[:, b], first))


def test_the_module_is_left_as_it_was():
    rnn, x = module(torch.nn.LSTM, num_layers=2, dropout=0.3), torch.randn(T, B, 3)
    before = {name: weight.clone() for name, weight in rnn.state_dict().items()}
    with torch.no_grad():
        bptt.torch.gradient_flow(rnn, x, lambda output: output.sum())
    assert rnn.training and all(weight.grad is None and weight.requires_grad for weight in rnn.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in rnn.state_dict().items())


@pytest.mark.parametrize(
    ("made", "loss", "options", "error", "message"),
    [
        (torch.nn.LSTM(3, N, proj_size=2), None, {}, ValueError, "module must have proj_size = 0; got 2"),
        (torch.nn.RNNBase("GRU", 3, N), None, {}, TypeError, "an LSTM, a GRU or a cell; got RNNBase"),
        (torch.nn.GRU(3, N), lambda output: output, {}, TypeError, r"one number .* got a tensor of shape \(12, 3, 4\)"),
        (torch.nn.GRU(3, N), lambda output: 1.0, {}, TypeError, "got float"),
        (torch.nn.GRU(3, N), lambda output: torch.ones(()), {}, TypeError, r"depends on the output; got .* shape \(\)"),
        (torch.nn.GRU(3, N), None, {"max_lag": 0}, ValueError, "max_lag must be an integer >= 1"),
    ],
)
def test_bad_input(made, loss, options, error, message):
    with pytest.raises(error, match=message):
        bptt.torch.gradient_flow(made, torch.randn(T, B, 3), loss, **options)


@pytest.mark.parametrize("cls", [torch.nn.RNN, torch.nn.LSTM])
def test_nothing_random_is_drawn_and_states_must_fit(cls):
    module, x = cls(3, 4, 2).double(), torch.randn(6, 2, 3, dtype=torch.float64)
    before = torch.get_rng_state()
    bptt.torch.gradient_flow(module, x)
    assert torch.equal(torch.get_rng_state(), before)
    for size in ((5, 2, 4), (2, 3, 4), (2, 4)):
        hx = torch.zeros(size, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"hx must be \d tensor\(s\) of shape \(2, 2, 4\)"):
            bptt.torch.gradient_flow(module, x, hx=hx if cls is torch.nn.RNN else (hx, hx))


class Odd(torch.nn.Module):
    """What vectorising transforms cannot take: an operator without rules for them, a branch, and writing in place."""

    def __init__(self):
        super().__init__()
        self.recurrent = bptt.torch.RNN(3, 4, dtype=torch.float64)

    def forward(self, x, h=None):
        h = torch.zeros(len(x), 4, dtype=x.dtype) if h is None else h
        following = torch.zeros(len(x), 4, dtype=x.dtype)
        following[:] = self.recurrent(x[None], h[None])[1][0]
        return following if bool((h == h).all()) else h


def test_any_cell():
    torch.manual_seed(0)
    cell, x = Odd(), torch.randn(30, 2, 3, dtype=torch.float64)
    plain = torch.nn.RNNCell(3, 4, dtype=torch.float64)
    plain.load_state_dict({name.removesuffix("_l0"): weight for name, weight in cell.recurrent.state_dict().items()})
    mine, theirs = (bptt.torch.gradient_flow(each, x)["cell"] for each in (cell, plain))
    np.testing.assert_allclose(mine.norms, theirs.norms, rtol=1e-12)
