"""`bptt.torch.RNN` in the place of `torch.nn.RNN`: the same numbers for everything that it can be given."""

from itertools import product

import numpy as np
import pytest

from support_torch import KINDS, TOLERANCE, arguments, assert_same, pair, results, torch

# isort: split
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import bptt.torch
from bptt import _levels
from bptt._kernel import ACTIVATIONS
from bptt.torch import _batch, _operator

pytestmark = pytest.mark.peers

DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def many_segments(monkeypatch):
    """Segments of 3 steps; the sequences of the tests are far too short to be cut otherwise."""
    monkeypatch.setattr(_batch, "segment_steps", lambda *args: 3)


class Spy:
    """A level that remembers what it was called with."""

    def __init__(self, kernel):
        self._kernel = kernel
        self.calls = []

    def __getattr__(self, name):
        def call(network, *args, **named):
            self.calls.append((name, (network, *args), named))
            return getattr(self._kernel, name)(network, *args, **named)

        return call

    def last(self, name):
        """The named arguments of the last call of a function."""
        return next(named for called, _, named in reversed(self.calls) if called == name)


@pytest.fixture
def spy(monkeypatch):
    spy = Spy(_levels.kernel())
    monkeypatch.setattr(_levels, "kernel", lambda: spy)
    return spy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_as_pytorch(dtype, layers, bidirectional, kind):
    for n, nonlinearity, bias, batch_first, initial in product(
        (5, 16, 33), ("tanh", "relu"), (True, False), (False, True), (True, False)
    ):
        theirs, mine = pair(3, n, layers, nonlinearity, bias, batch_first, 0.0, bidirectional, dtype=dtype)
        x, hx = arguments(theirs, kind, initial=initial)
        assert_same(results(mine, x, hx), results(theirs, x, hx))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_same_on_every_level_and_in_many_segments(level, many_segments, kind, bidirectional):
    theirs, mine = pair(3, 17, 2, bidirectional=bidirectional)
    x, hx = arguments(theirs, kind, T=14)
    assert_same(results(mine, x, hx), results(theirs, x, hx))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_pytorchs_own_tests(dtype, training):
    from torch.testing._internal.common_modules import module_db

    (info,) = (info for info in module_db if info.module_cls is torch.nn.RNN)
    samples = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=training, with_packed_sequence=True
    )
    assert len(samples) == 64
    for sample in samples:
        made, given = sample.constructor_input, sample.forward_input
        theirs, mine = pair(*made.args, **made.kwargs, dtype=dtype)
        theirs.train(training), mine.train(training)
        # Inputs up to 9 saturate tanh: of 1 - a**2 the absolute digits are right, not the relative ones.
        runs = (results(module, *given.args, **given.kwargs) for module in (mine, theirs))
        assert_same(*runs, least=9.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_of_pytorchs_own_tests(dtype):
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

    (info,) = (info for info in module_db if info.module_cls is torch.nn.RNN)
    samples = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    assert len(samples) >= 9
    for sample in samples:
        made, given = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        if sample.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                bptt.torch.RNN(*made.args, **made.kwargs)
        else:
            module = bptt.torch.RNN(*made.args, **made.kwargs)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                module(*given.args, **given.kwargs)


def test_same_values_from_the_same_seed_and_state_dicts_both_ways():
    modules = []
    for cls in (torch.nn.RNN, bptt.torch.RNN):
        torch.manual_seed(5)
        modules.append(cls(3, 8, 2, bidirectional=True))
    theirs, mine = (module.state_dict() for module in modules)
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for module, other in zip(modules, reversed(modules)):
        module.load_state_dict({name: weight + 1 for name, weight in other.state_dict().items()})


def test_constructor_takes_the_same_arguments_in_the_same_places():
    args = (3, 8, 2, "relu", False, True, 0.5, True)
    theirs, mine = torch.nn.RNN(*args), bptt.torch.RNN(*args)
    names = ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout")
    for name in (*names, "bidirectional", "mode", "proj_size"):
        assert getattr(mine, name) == getattr(theirs, name), name
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        bptt.torch.RNN(3, 8, dropout=0.5)
    with pytest.raises(ValueError, match="nonlinearity must be one of 'identity', 'tanh', .*; got 'gelu'"):
        bptt.torch.RNN(3, 8, nonlinearity="gelu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [16, 17])
def test_dropout_draws_the_same_masks(n, kind):
    theirs, mine = pair(3, n, 3, dropout=0.4, bidirectional=True)
    x, hx = arguments(theirs, kind)
    of_training = []
    for module in (mine, theirs):
        torch.manual_seed(2)
        of_training.append(results(module, x, hx))
    assert_same(*of_training)
    theirs.eval(), mine.eval()
    assert_same(results(mine, x, hx), results(theirs, x, hx))
    assert not torch.allclose(results(mine, x, hx)["output"], of_training[0]["output"])


FUNCTIONS = {
    "identity": lambda h: h,
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "elu": torch.nn.functional.elu,
    "softplus": torch.nn.functional.softplus,
    "softsign": torch.nn.functional.softsign,
}


class Loop(torch.nn.RNNBase):
    """The network as one would write it in PyTorch, one step after another."""

    def __init__(self, function, *args, **settings):
        super().__init__("RNN_TANH", *args, **settings)
        self.function = function

    def forward(self, x, hx):
        h, states = hx[0], []
        for x_t in x:
            h = x_t @ self.weight_ih_l0.T + self.bias_ih_l0 + h @ self.weight_hh_l0.T + self.bias_hh_l0
            h = self.function(h)
            states.append(h)
        return torch.stack(states), h[None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
def test_nonlinearities(nonlinearity, dtype):
    mine = bptt.torch.RNN(3, 9, nonlinearity=nonlinearity, dtype=dtype)
    theirs = Loop(FUNCTIONS[nonlinearity], 3, 9, dtype=dtype)
    theirs.load_state_dict(mine.state_dict())
    x, hx = arguments(mine)
    assert_same(results(mine, x, hx), results(theirs, x, hx))


def test_packed_output_unpacks_in_the_order_given():
    theirs, mine = pair(3, 5, bidirectional=True)
    x, _ = arguments(theirs)
    lengths = torch.tensor([2, 7, 1, 4])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, h_n = mine(packed)
    assert isinstance(output, PackedSequence)
    padded, back = pad_packed_sequence(output)
    assert torch.equal(back, lengths)
    wanted, final = theirs(packed)
    assert_same({"output": padded, "h_n": h_n}, {"output": pad_packed_sequence(wanted)[0], "h_n": final})


@pytest.mark.parametrize("used", ["output", "h_n", "last step"])
def test_gradient_where_not_all_results_are_used(used):
    theirs, mine = pair(3, 9)
    x, _ = arguments(theirs)
    gradients = []
    for module in (mine, theirs):
        output, h_n = module(x)
        {"output": output, "h_n": h_n, "last step": output[-1]}[used].sum().backward()
        gradients.append({name: weight.grad for name, weight in module.named_parameters()})
    assert_same(*gradients)


def test_arrays_of_any_layout():
    theirs, mine = pair(6, 17)
    x, hx = arguments(theirs)
    strange = torch.empty(6, 4, 14).permute(2, 1, 0)[::2].copy_(x)
    assert not strange.is_contiguous()
    with torch.no_grad():
        for module in (theirs, mine):  # weights that are columns of others
            module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.T.contiguous().T)
    assert_same(results(mine, strange, hx), results(theirs, x, hx))
    for pull in (torch.ones(1).expand(7, 4, 17), torch.randn(4, 17, 7).permute(2, 0, 1)):
        gradients = []
        for module in (mine, theirs):
            module.zero_grad()
            module(x, hx)[0].backward(pull)
            gradients.append({name: weight.grad for name, weight in module.named_parameters()})
        assert_same(*gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [16, 17])
def test_saved_states_may_come_back_in_another_layout(n, kind):
    """As from a hook that keeps what is saved elsewhere."""
    _, mine = pair(3, n, bidirectional=True)
    x, hx = arguments(mine, kind)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.numpy().copy(), torch.from_numpy):
        elsewhere = results(mine, x, hx)
    assert_same(elsewhere, results(mine, x, hx), tolerance=0)


def test_a_batch_of_no_sequences_and_a_sequence_of_no_steps():
    theirs, mine = pair(3, 5, 2, bidirectional=True)
    x, hx = arguments(theirs, B=0)
    assert_same(results(mine, x, hx), results(theirs, x, hx))
    for module in (mine, theirs):
        with pytest.raises(RuntimeError):
            module(torch.zeros(0, 2, 3))


@pytest.mark.parametrize(
    ("sizes", "initial", "message"),
    [
        ((7,), None, "input must have shape"),
        ((1, 7, 4, 3), None, "input must have shape"),
        ((7, 4, 2), None, r"input.size\(-1\) must be equal to input_size"),
        ((7, 4, 3), (1, 5), "hx must have 3 dimensions"),
        ((7, 3), (1, 1, 5), "hx must have 2 dimensions"),
        ((7, 4, 3), (1, 3, 5), "Expected hidden size"),
        ((7, 4, 3), (2, 4, 5), "Expected hidden size"),
    ],
)
def test_wrong_shapes(sizes, initial, message):
    mine = bptt.torch.RNN(3, 5)
    with pytest.raises((RuntimeError, ValueError), match=message):
        mine(torch.zeros(sizes), None if initial is None else torch.zeros(initial))


@pytest.mark.parametrize("kind", ["batch", "packed"])
def test_the_kernel_reads_and_writes_the_tensors_themselves(spy, many_segments, kind):
    mine = bptt.torch.RNN(3, 16)  # a whole line
    x, _ = arguments(mine, kind)
    output, _ = mine(x)
    data, states = (x.data, output.data) if kind == "packed" else (x, output)
    forward = [args for name, args, _ in spy.calls if name == "forward"]
    assert len(forward) == 3
    for network, inputs, _, a, *_ in forward:
        assert np.shares_memory(network.W_R, mine.weight_hh_l0.detach().numpy())
        assert np.shares_memory(inputs, data.numpy())
        assert np.shares_memory(a, states.detach().numpy())
    pull = torch.randn(states.shape)
    states.backward(pull)
    backward = [named for name, _, named in spy.calls if name == "backward"]
    assert len(backward) == 3
    for named in backward:
        assert np.shares_memory(named["x"], data.numpy())
        assert np.shares_memory(named["a"], states.detach().numpy())
        assert np.shares_memory(named["d_states"], pull.numpy())
        assert named["d_x"] is None  # x wants no gradient


def test_what_lies_before_the_states_is_taken_for_the_initial_ones_only_if_it_is_them(spy):
    torch.manual_seed(0)
    x, hx, W_I, W_R = torch.randn(7, 4, 3), torch.randn(4, 16), torch.randn(16, 3) / 4, torch.randn(16, 16) / 4
    states, _ = _operator.rnn(x, None, hx, W_I, W_R, None, "tanh", False)
    others = [torch.cat([front[None], states])[1:] for front in (hx, hx + 1)]
    runs, in_place = [], []
    for given in (states, *others, states.clone()):
        gradients = _operator.rnn_backward(states, None, x, None, hx, W_I, W_R, given, "tanh", False, True)
        runs.append(dict(enumerate(gradients)))
        in_place.append(np.shares_memory(spy.last("backward")["a"], given.numpy()))
    assert in_place == [True, True, False, False]
    for run in runs[1:]:
        assert_same(run, runs[0], tolerance=0)


def test_threads_are_pytorchs_and_change_no_bit(spy):
    mine = bptt.torch.RNN(8, 64)
    x, _ = arguments(mine, T=20, B=16)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(results(mine, x))
            assert spy.last("backward")["threads"] == min(threads, _levels.resolve_threads(None))
    finally:
        torch.set_num_threads(before)
    assert_same(*runs, tolerance=0)


def test_tolerances_are_no_slack():
    """A gradient that is wrong in its fourth digit does not pass."""
    theirs, mine = pair(3, 9)
    x, hx = arguments(theirs)
    wrong = results(mine, x, hx)
    wrong["d_weight_hh_l0"] = wrong["d_weight_hh_l0"] * (1 + 1e-4)
    with pytest.raises(AssertionError, match="d_weight_hh_l0"):
        assert_same(wrong, results(theirs, x, hx))
    assert max(TOLERANCE.values()) < 1e-4


@pytest.mark.parametrize("n", [5, 16])
def test_the_output_can_be_viewed_otherwise(n):
    output, _ = bptt.torch.RNN(3, n)(torch.randn(7, 4, 3))
    assert output.is_contiguous()
    assert torch.equal(output.view(7, -1), output.reshape(7, 4 * n))


def test_tensors_that_do_not_belong_together_are_refused():
    module, x, hx = bptt.torch.RNN(3, 5, 2), torch.randn(7, 4, 3), torch.zeros(2, 4, 5)
    for given in ((x.to("meta"),), (x, hx.to("meta"))):
        with pytest.raises(RuntimeError, match="must be on one device; got meta and cpu"):
            module(*given)
    with pytest.raises(RuntimeError, match=r"must have one dtype; got torch\.float64 and torch\.float32"):
        module(x, hx.double())
    for change, words in ((lambda w: w.to("meta"), "on one device"), (lambda w: w.double(), "one dtype")):
        other = bptt.torch.RNN(3, 5, 2)
        other.weight_hh_l1 = torch.nn.Parameter(change(other.weight_hh_l1.detach()))
        with pytest.raises(RuntimeError, match=words):
            other(x)
    assert bptt.torch.RNN(3, 5, device="meta")(x.to("meta"))[0].device.type == "meta"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # an import of torch.func's
def test_forward_mode_and_transforms_are_refused():
    """An operator without a rule for them would answer zero."""
    module, x = bptt.torch.RNN(3, 5), torch.randn(7, 4, 3)
    for weight in module.parameters():
        weight.requires_grad_(False)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"use torch\.nn\.RNN"):
        module(forward_ad.make_dual(x, x))
    for transform in (
        lambda: torch.func.jvp(lambda a: module(a)[0], (x,), (x,)),
        lambda: torch.func.grad(lambda a: module(a)[0].sum())(x),
        lambda: torch.func.jacfwd(lambda a: module(a)[0])(x),
    ):
        with pytest.raises(RuntimeError, match=r"use torch\.nn\.RNN"):
            transform()
