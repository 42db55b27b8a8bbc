"""Whatever is wrong with an argument is said at once: its name, what is wanted, what came."""

import re

import numpy as np
import pytest

import bptt
from bptt import _levels, _sweep
from support import B, M, N, P, T, network

RNN = network(N, P, M)
LINEAR = RNN.replace(output="linear")
BLIND = RNN.replace(W_O=None, b_O=None)
X = np.zeros((T, B, P))
TOKENS = np.zeros((T, B), int)
Y = np.zeros((T, B), int)
FULL = np.zeros((T, B, M))
ALONE = {"x": X[:, 0], "y": Y[:, 0]}
TRAJECTORY = bptt.forward(RNN, X)

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """All is found before any work; for what is found while reading, `level` puts a kernel back."""
    monkeypatch.setattr(_levels, "kernel", lambda: pytest.fail("a kernel was asked for"))


def table(*rows):
    """Parameters of a test: a short name, keyword arguments, the exception, its message (as it is, but for ...)."""
    return pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [pytest.param(*row, id=f"{list(row[0])[-1]}-{i}") for i, row in enumerate(rows)],
    )


def raises(error, message):
    return pytest.raises(error, match="^" + ".*".join(map(re.escape, message.split("..."))) + "$")


def replaced(array, place, value):
    array = array.copy()
    array[place] = value
    return array


# RNN -----------------------------------------------------------------------------------------------------------------

NUMBERS = "must hold real numbers (float32, float64 or integers); got "


@table(
    ({"W_R": None}, TypeError, "W_R must be an array; got None"),
    ({"W_R": "text"}, TypeError, f"W_R {NUMBERS}<U4"),
    ({"W_R": np.eye(N, dtype=object)}, TypeError, f"W_R {NUMBERS}object"),
    ({"W_R": np.eye(N, dtype=complex)}, TypeError, f"W_R {NUMBERS}complex128"),
    ({"W_R": np.eye(N, dtype=np.float16)}, TypeError, f"W_R {NUMBERS}float16"),
    ({"W_R": np.eye(N, dtype=np.longdouble)}, TypeError, f"W_R {NUMBERS}float128"),
    ({"W_R": np.eye(N, dtype=bool)}, TypeError, f"W_R {NUMBERS}bool"),
    ({"W_R": np.zeros(N)}, ValueError, "W_R must have shape (n, n) with n >= 1; got (6,)"),
    ({"W_R": np.zeros((N, P))}, ValueError, "W_R must have shape (n, n) with n >= 1; got (6, 3)"),
    ({"W_R": np.zeros((0, 0))}, ValueError, "W_R must have shape (n, n) with n >= 1; got (0, 0)"),
    ({"W_R": [[1.0, 2.0], [3.0]]}, ValueError, "W_R is no rectangular array: ..."),
    ({"W_I": np.zeros(N)}, ValueError, "W_I must have shape (n, p) with n = 6; got (6,)"),
    ({"W_I": np.zeros((P, N))}, ValueError, "W_I must have shape (n, p) with n = 6; got (3, 6)"),
    ({"W_I": None}, TypeError, "W_I must be an array; got None"),
    ({"W_O": np.zeros((N, M))}, ValueError, "W_O must have shape (m, n) with n = 6; got (6, 5)"),
    ({"W_O": np.zeros((0, N))}, ValueError, "W_O must have shape (m, n) with m >= 1; got (0, 6)"),
    ({"b_R": np.zeros(M)}, ValueError, "b_R must have shape (n,) with n = 6; got (5,)"),
    ({"b_I": np.zeros((N, 1))}, ValueError, "b_I must have shape (n,) with n = 6; got (6, 1)"),
    ({"b_O": np.zeros(N)}, ValueError, "b_O must have shape (m,) with m = 5; got (6,)"),
    ({"b_O": 0.0}, ValueError, "b_O must have shape (m,) with m = 5; got ()"),
    ({"W_O": None}, ValueError, "b_O is the bias of a readout: give W_O too"),
    ({"b_R": np.zeros(N, complex)}, TypeError, f"b_R {NUMBERS}complex128"),
    ({"activation": "sine"}, ValueError, "activation must be one of 'identity', 'tanh', ...; got 'sine'"),
    ({"activation": np.tanh}, TypeError, "activation must be one of 'identity', 'tanh', ...; got ufunc"),
    ({"form": "G"}, ValueError, "form must be one of 'activation', 'preactivation'; got 'G'"),
    ({"readout": None}, TypeError, "readout must be one of 'activation', 'preactivation'; got NoneType"),
    ({"output": "tanh"}, ValueError, "output must be one of 'softmax', 'linear'; got 'tanh'"),
)
def test_network(arguments, error, message):
    with raises(error, message):
        RNN.replace(**arguments)


@table(
    ({"n_inputs": -1}, ValueError, "n_inputs must be an integer >= 0; got -1"),
    ({"n_inputs": 2.0}, TypeError, "n_inputs must be an integer; got float"),
    ({"n_hidden": 0}, ValueError, "n_hidden must be an integer >= 1; got 0"),
    ({"n_hidden": True}, TypeError, "n_hidden must be an integer; got True"),
    ({"n_outputs": 0}, ValueError, "n_outputs must be an integer >= 1; got 0"),
    ({"init": "xavier"}, ValueError, "init must be one of 'orthogonal', 'normal', 'identity'; got 'xavier'"),
    ({"gain": -1}, ValueError, "gain must be finite and >= 0; got -1"),
    ({"gain": NAN}, ValueError, "gain must be finite and >= 0; got nan"),
    ({"gain": INF}, ValueError, "gain must be finite and >= 0; got inf"),
    ({"gain": "2"}, TypeError, "gain must be a number; got str"),
    ({"dtype": "float16"}, TypeError, "dtype must be float32 or float64; got float16"),
    ({"dtype": int}, TypeError, "dtype must be float32 or float64; got int64"),
    ({"activation": "sine"}, ValueError, "activation must be one of ...; got 'sine'"),
    ({"rng": "x"}, TypeError, "rng must be an integer, a numpy.random.Generator or None; got str"),
    ({"rng": -1}, ValueError, "rng must be an integer >= 0; got -1"),
)
def test_random(arguments, error, message):
    with raises(error, message):
        bptt.RNN.random(**{"n_inputs": 2, "n_hidden": 3, "n_outputs": 1, **arguments})


def test_methods_of_a_network():
    with raises(ValueError, f"vector must have shape (size,) with size = {RNN.size}; got (3,)"):
        RNN.unravel(np.zeros(3))
    with raises(TypeError, f"vector {NUMBERS}complex128"):
        RNN.unravel(np.zeros(RNN.size, complex))
    with raises(TypeError, "dtype must be float32 or float64; got complex64"):
        RNN.astype(np.complex64)


# The calls -----------------------------------------------------------------------------------------------------------

X_KINDS = "x must hold float32, float64 or integers (tokens); got "
X_SHAPE = "x must have shape (T, B, p) or (T, p) with p = 3; got "
STATE = "must have shape (B, n) with B = 4, n = 6; got "
LENGTHS = "lengths must be in 0..T with T = 12; got "

COMMON = (
    ({"rnn": RNN.W_R}, TypeError, "rnn must be a bptt.RNN; got ndarray"),
    ({"rnn": None}, TypeError, "rnn must be a bptt.RNN; got NoneType"),
    ({"x": X.astype(object)}, TypeError, f"{X_KINDS}object"),
    ({"x": X.astype(complex)}, TypeError, f"{X_KINDS}complex128"),
    ({"x": X.astype(np.float16)}, TypeError, f"{X_KINDS}float16"),
    ({"x": TOKENS.astype(bool)}, TypeError, f"{X_KINDS}bool"),
    ({"x": "text"}, TypeError, f"{X_KINDS}<U4"),
    ({"x": None}, TypeError, "x must be an array; got None"),
    ({"x": np.ma.masked_equal(X, 0)}, ValueError, "x must have no masked entries: ..."),
    ({"x": X[..., :2]}, ValueError, f"{X_SHAPE}(12, 4, 2)"),
    ({"x": X[0, 0]}, ValueError, f"{X_SHAPE}(3,)"),
    ({"x": X[None]}, ValueError, f"{X_SHAPE}(1, 12, 4, 3)"),
    ({"x": 1.0}, ValueError, f"{X_SHAPE}()"),
    ({"x": X[:, :0]}, ValueError, "x must have shape (T, B, ...) with B >= 1; got (12, 0, 3)"),
    ({"x": TOKENS[:, :0]}, ValueError, "x must have shape (T, B, ...) with B >= 1; got (12, 0)"),
    (
        {"x": TOKENS[None]},
        ValueError,
        "x must have shape (T, B) or (T,) where it holds tokens (integers); got (1, 12, 4)",
    ),
    ({"x": 3}, ValueError, "x must have shape (T, B) or (T,) where it holds tokens (integers); got ()"),
    ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
    ({"threads": -2}, ValueError, "threads must be at least 1, got -2"),
    ({"threads": 1.5}, TypeError, "threads must be an int, got float"),
    ({"threads": "2"}, TypeError, "threads must be an int, got str"),
    ({"threads": True}, TypeError, "threads must be an int, got True"),
    ({"nonfinite": "print"}, ValueError, "nonfinite must be one of 'warn', 'raise', 'ignore'; got 'print'"),
    ({"nonfinite": True}, TypeError, "nonfinite must be one of 'warn', 'raise', 'ignore'; got bool"),
)
STARTS = (
    ({"initial": np.zeros((B, P))}, ValueError, f"initial {STATE}(4, 3)"),
    ({"initial": np.zeros(N)}, ValueError, f"initial {STATE}(6,)"),
    ({"initial": np.zeros((1, N))}, ValueError, f"initial {STATE}(1, 6)"),
    ({**ALONE, "initial": np.zeros((1, N))}, ValueError, "initial must have shape (n,) with n = 6; got (1, 6)"),
    ({"initial": np.zeros((B, N), complex)}, TypeError, f"initial {NUMBERS}complex128"),
    ({"initial": np.zeros((B, N), np.float16)}, TypeError, f"initial {NUMBERS}float16"),
    ({"lengths": [1, 2, 3]}, ValueError, "lengths must have shape (B,) with B = 4; got (3,)"),
    ({"lengths": 3}, ValueError, "lengths must have shape (B,) with B = 4; got ()"),
    ({**ALONE, "lengths": [3]}, ValueError, "lengths must have shape (); got (1,)"),
    ({"lengths": [1, 13, 3, 4]}, ValueError, f"{LENGTHS}13 for sequence b = 1"),
    ({"lengths": [1, 2, 3, -1]}, ValueError, f"{LENGTHS}-1 for sequence b = 3"),
    ({"lengths": np.array([2**63, 1, 1, 1], np.uint64)}, ValueError, f"{LENGTHS}{2**63} for sequence b = 0"),
    ({"lengths": [1.0, 2, 3, 4]}, TypeError, "lengths must hold integers; got float64"),
    ({"lengths": [True] * B}, TypeError, "lengths must hold integers; got bool"),
)
CLASSES = "y must have shape (T, B) with T = 12, B = 4, or (B,) for targets of the last steps only; got "
VECTORS = "y must have shape (T, B, m) with T = 12, B = 4, m = 5, or (B, m) for targets of the last steps only; got "
ERRORS = (
    ({"rnn": BLIND}, ValueError, "rnn must have a readout W_O to have errors; got W_O = None"),
    ({"y": Y.astype(float)}, TypeError, "y must hold integers (classes) for the cross-entropy; got float64"),
    ({"y": Y.astype(bool)}, TypeError, "y must hold integers (classes) for the cross-entropy; got bool"),
    ({"y": None}, TypeError, "y must be an array; got None"),
    ({"y": Y[:5]}, ValueError, f"{CLASSES}(5, 4)"),
    ({"y": Y[..., None]}, ValueError, f"{CLASSES}(12, 4, 1)"),
    ({"y": 3}, ValueError, f"{CLASSES}()"),
    ({"rnn": LINEAR, "y": Y}, ValueError, f"{VECTORS}(12, 4)"),
    ({"rnn": LINEAR, "y": FULL[..., :2]}, ValueError, f"{VECTORS}(12, 4, 2)"),
    ({"rnn": LINEAR, "y": FULL.astype(complex)}, TypeError, f"y {NUMBERS}complex128"),
    ({"rnn": LINEAR, "y": FULL.astype(np.float16)}, TypeError, f"y {NUMBERS}float16"),
    ({"loss": "mse"}, ValueError, "loss must be one of 'cross_entropy', 'squared_error'; got 'mse'"),
    ({"loss": 3}, TypeError, "loss must be None, a callable or one of 'cross_entropy', 'squared_error'; got 3"),
    (
        {"rnn": LINEAR, "loss": "cross_entropy"},
        ValueError,
        "loss='cross_entropy' needs output='softmax'; got a network with output='linear'",
    ),
    ({"weights": np.ones(T)}, ValueError, "weights must have shape (T, B) with T = 12, B = 4; got (12,)"),
    ({"weights": np.ones((T, B), complex)}, TypeError, f"weights {NUMBERS}complex128"),
)


@table(*COMMON, *STARTS)
def test_forward(arguments, error, message):
    named = {name: value for name, value in arguments.items() if name != "y"}
    with raises(error, message):
        bptt.forward(**{"rnn": RNN, "x": X, **named})


@table(
    *COMMON,
    *STARTS,
    *ERRORS,
    (
        {"loss": lambda o, y: None, "y": Y[:3]},
        ValueError,
        "y must have shape (T, B, ...) with T = 12, B = 4; got (3, 4)",
    ),
    (
        {"x": X[:, 0], "y": Y},
        ValueError,
        "y must have shape (T,) with T = 12, or () for targets of the last ...(12, 4)",
    ),
    ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum'; got 'max'"),
    ({"reduction": None}, TypeError, "reduction must be one of 'mean', 'sum'; got NoneType"),
    ({"wrt_inputs": 1}, TypeError, "wrt_inputs must be True or False; got 1"),
    (
        {"x": TOKENS, "wrt_inputs": True},
        TypeError,
        "wrt_inputs=True needs an x of numbers: tokens have no gradient; got x of int64",
    ),
)
def test_value_and_grad(arguments, error, message):
    with raises(error, message):
        bptt.value_and_grad(**{"rnn": RNN, "x": X, "y": Y, **arguments})


@table(
    *COMMON,
    ({"trajectory": X}, TypeError, "trajectory must be a bptt.Trajectory, as forward gives; got ndarray"),
    (
        {"rnn": RNN.astype("float32")},
        TypeError,
        "trajectory must have the network's dtype float32; got float64",
    ),
    (
        {"rnn": RNN.replace(form="preactivation")},
        ValueError,
        "trajectory must be of this network, with n = 6 and form='preactivation'; got n = 6 and form='activation'",
    ),
    ({"rnn": network(7, P, M)}, ValueError, "trajectory must be of this network, with n = 7 ...; got n = 6 ..."),
    ({"x": X[:5]}, ValueError, "trajectory must be of x, with (T, B) = (5, 4); got (12, 4)"),
    ({"x": X[:, 0]}, ValueError, "trajectory must be of x, with (T) = (12,); got (12, 4)"),
    (
        {"d_outputs": FULL[:5]},
        ValueError,
        "d_outputs must have shape (T, B, m) with T = 12, B = 4, m = 5; got (5, 4, 5)",
    ),
    ({"d_outputs": FULL.astype(complex)}, TypeError, f"d_outputs {NUMBERS}complex128"),
    (
        {"rnn": BLIND, "d_outputs": FULL},
        ValueError,
        "d_outputs needs a network with a readout; got rnn with W_O = None",
    ),
    ({"d_states": FULL}, ValueError, "d_states must have shape (T, B, n) with T = 12, B = 4, n = 6; got (12, 4, 5)"),
    ({"d_final": np.zeros(N)}, ValueError, f"d_final {STATE}(6,)"),
    ({"wrt_inputs": None}, TypeError, "wrt_inputs must be True or False; got None"),
    ({"x": TOKENS, "wrt_inputs": True}, TypeError, "wrt_inputs=True needs an x of numbers: ..."),
)
def test_backward(arguments, error, message):
    with raises(error, message):
        bptt.backward(**{"rnn": RNN, "x": X, "trajectory": TRAJECTORY, **arguments})


@table(
    *((a, e, m) for a, e, m in ERRORS if "loss" not in a or not isinstance(a["loss"], int)),
    ({"rnn": X}, TypeError, "rnn must be a bptt.RNN; got ndarray"),
    ({"trajectory": None}, TypeError, "trajectory must be a bptt.Trajectory, as forward gives; got NoneType"),
    ({"loss": lambda o, y: None}, TypeError, "loss must be the name of an error here, not a callable"),
)
def test_errors(arguments, error, message):
    with raises(error, message):
        bptt.errors(**{"rnn": RNN, "trajectory": TRAJECTORY, "y": Y, **arguments})


@table(
    *(row for row in COMMON if row[0].keys() <= {"rnn", "x"}),
    *ERRORS,
    *STARTS,
    ({"loss": lambda o, y: None}, TypeError, "loss must be the name of an error here, not a callable"),
)
def test_check(arguments, error, message):
    with raises(error, message):
        bptt.check(**{"rnn": RNN, "x": X, "y": Y, **arguments})


def test_the_first_wrong_argument_in_the_order_of_the_signature_is_named():
    wrong = {
        "rnn": None,
        "x": X[..., :1],
        "y": Y[:3],
        "weights": np.ones(3),
        "lengths": [99] * B,
        "initial": np.ones(3),
        "reduction": "max",
        "wrt_inputs": None,
        "nonfinite": "print",
        "threads": 0,
    }
    right = {"rnn": RNN, "x": X, "y": Y}
    while wrong:
        first = next(iter(wrong))
        with pytest.raises((TypeError, ValueError), match=f"^{first} "):
            bptt.value_and_grad(**{**right, **wrong})
        del wrong[first]


def test_gradients():
    gradients = bptt.Gradients(np.array([INF, 1.0]), {}, np.zeros(2), None, None)
    with raises(FloatingPointError, "a gradient of norm inf cannot be clipped to 1.0"):
        gradients.clip(1.0)
    for bad in (-1, NAN):
        with raises(ValueError, f"max_norm must be >= 0; got {bad}"):
            gradients.clip(bad)
    with raises(TypeError, "max_norm must be a number; got str"):
        gradients.clip("1")


# Found while reading -------------------------------------------------------------------------------------------------

WHERE = " at step t = 9 of sequence b = 2 (steps count from 1, sequences from 0)"
CLASS = "y must be in 0..m-1 with m = 5; got "
TOKEN = "x must be in 0..p-1 with p = 3; got "
WEIGHT = "weights must be finite and >= 0; got "


@pytest.fixture(params=[12, 5])
def grid(request, monkeypatch):
    monkeypatch.setattr(_sweep, "segment_steps", lambda *args: request.param)


@pytest.mark.usefixtures("level", "grid")
@pytest.mark.parametrize("lengths", [None, [9, 2, 12, 0]])
@table(
    ({"y": replaced(Y, (8, 2), M)}, ValueError, f"{CLASS}5{WHERE}"),
    ({"y": replaced(Y, (8, 2), -1)}, ValueError, f"{CLASS}-1{WHERE}"),
    ({"y": replaced(Y, (8, 2), 2**32)}, ValueError, f"{CLASS}{2**32}{WHERE}"),
    ({"y": replaced(Y.astype(np.uint64), (8, 2), 2**63)}, ValueError, f"{CLASS}{2**63}{WHERE}"),
    ({"y": replaced(Y.astype(">i4"), (8, 2), -7)}, ValueError, f"{CLASS}-7{WHERE}"),
    ({"x": replaced(TOKENS, (8, 2), P)}, ValueError, f"{TOKEN}3{WHERE}"),
    ({"x": replaced(TOKENS.astype(np.int8), (8, 2), -1)}, ValueError, f"{TOKEN}-1{WHERE}"),
    ({"weights": replaced(X[..., 0], (8, 2), -0.5)}, ValueError, f"{WEIGHT}-0.5{WHERE}"),
    ({"weights": replaced(X[..., 0], (8, 2), NAN)}, ValueError, f"{WEIGHT}nan{WHERE}"),
    ({"weights": replaced(X[..., 0], (8, 2), INF)}, ValueError, f"{WEIGHT}inf{WHERE}"),
    ({"weights": replaced(Y, (8, 2), -3)}, ValueError, f"{WEIGHT}-3.0{WHERE}"),
)
def test_values(arguments, error, message, lengths):
    with raises(error, message):
        bptt.value_and_grad(**{"rnn": RNN, "x": X, "y": Y, "lengths": lengths, **arguments})
    if "x" in arguments:
        with raises(error, message):
            bptt.forward(RNN, arguments["x"], lengths=lengths)
    else:
        with raises(error, message):
            bptt.errors(RNN, bptt.forward(RNN, X, lengths=lengths), **{"y": Y, **arguments})


@pytest.mark.usefixtures("level")
def test_a_target_of_the_last_step():
    with raises(ValueError, f"{CLASS}9 at step t = 12 of sequence b = 1 ..."):
        bptt.value_and_grad(RNN, X, [0, 9, 0, 0])
    with raises(ValueError, f"{CLASS}9 at step t = 4 of sequence b = 1 ..."):
        bptt.value_and_grad(RNN, X, [0, 9, 0, 0], lengths=[12, 4, 0, 2])
    bptt.value_and_grad(RNN, X, [0, 9, 0, 0], lengths=[12, 0, 0, 2])  # never read


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda o: None, TypeError, "loss must return a pair (E, dE/do); got NoneType"),
        (lambda o: o, TypeError, "loss must return a pair (E, dE/do); got ndarray"),
        (lambda o: (o[..., 0], o, o), TypeError, "loss must return a pair (E, dE/do); got tuple"),
        (
            lambda o: (o[..., 0].sum(), o),
            ValueError,
            "E returned by loss must have shape (L, B) with L = 12, B = 4; got ()",
        ),
        (
            lambda o: (o[..., 0], o[..., :1]),
            ValueError,
            "dE/do returned by loss must have shape (L, B, m) with L = 12, B = 4, m = 5; got (12, 4, 1)",
        ),
        (lambda o: (o[..., 0] + 1j, o), TypeError, f"E returned by loss {NUMBERS}complex128"),
        (lambda o: (o[..., 0], o.astype(object)), TypeError, f"dE/do returned by loss {NUMBERS}object"),
    ],
)
def test_what_a_callable_returns(returned, error, message):
    with raises(error, message):
        bptt.value_and_grad(RNN, X, None, loss=lambda o, y: returned(o))


@pytest.mark.usefixtures("level")
def test_an_exception_of_a_callable_comes_through():
    def criterion(o, y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bptt.value_and_grad(RNN, X, None, loss=criterion)
