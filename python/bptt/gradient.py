"""Forward and backward through time: the calls, each a loop over the segments of a sequence."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from bptt import _arguments, _levels
from bptt._adjoint import Adjoint
from bptt._arguments import NONFINITE, REDUCTIONS, Criterion, Nonfinite, Reduction
from bptt._kernel import Array
from bptt._memory import aligned
from bptt._progress import Progress, meter
from bptt._progress import check as check_progress
from bptt._sweep import Source, States, Sweep
from bptt._upstream import CROSS_ENTROPY, CallableError, Given, Targets
from bptt._validate import choice, memory_size
from bptt._workspace import workspace
from bptt.network import RNN
from bptt.results import Gradients, Trajectory

__all__ = ["Gradients", "Trajectory", "backward", "errors", "forward", "value_and_grad"]


def forward(
    rnn: RNN,
    x: npt.ArrayLike,
    initial: npt.ArrayLike | None = None,
    *,
    lengths: npt.ArrayLike | None = None,
    nonfinite: Nonfinite = "warn",
    threads: int | None = None,
    progress: Progress = False,
) -> Trajectory:
    """Run the network: h_t = W_R a_{t-1} + W_I x_t + b_I + b_R, a_t = sigma(h_t), for t = 1 .. T (article eqs. 1, G1).

    Parameters
    ----------
    rnn : RNN
    x : array of shape (T, B, p), or integer array of shape (T, B)
        Inputs; integers are tokens in 0 .. p-1, one-hot inputs, each the choice of a column of W_I. Without the axis B
        it is one sequence, and what comes back is without it too. Any strides and byte order.
    initial : array of shape (B, n), optional
        The state at t = 0: a_0 in form "activation", h_0 in form "preactivation". None is zero.
    lengths : integer array of shape (B,), optional
        Steps of each sequence, 0 .. T; what x holds beyond them is not read. None: all have T.
    nonfinite : {"warn", "raise", "ignore"}
        What to do when a state is not finite: one RuntimeWarning or a FloatingPointError, naming the first step and
        sequence.
    threads : int, optional
        At least 1; never changes a result. None: BPTT_NUM_THREADS, else OMP_NUM_THREADS, else all processors allowed.
    progress : bool or callable
        True draws a bar on standard error; a callable is given the fraction done, up to 1.0, a few times a second.

    Returns
    -------
    Trajectory

    Raises
    ------
    TypeError
        An argument is of the wrong kind or dtype.
    ValueError
        A shape, a range or a name is wrong, or a token is out of range.
    FloatingPointError
        With ``nonfinite="raise"``.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN.random(n_inputs=3, n_hidden=16, n_outputs=2)
    >>> bptt.forward(rnn, np.zeros((50, 4, 3)))
    Trajectory(T=50, B=4, n=16, m=2, float64)
    """
    _arguments.network(rnn)
    inputs, extent = _arguments.inputs(rnn, x)
    first = None if initial is None else _arguments.rows("initial", initial, rnn, extent)
    steps = _arguments.lengths(lengths, extent)
    choice("nonfinite", nonfinite, NONFINITE)
    check_progress(progress)
    sweep = Sweep(rnn, inputs, extent, steps, nonfinite, threads)

    columns = sweep.columns
    size, rows = extent.size, columns.start(columns.steps + 1)
    states = States(aligned(rows, rnn.n, rnn.dtype), h := aligned(rows, rnn.n, rnn.dtype))
    sweep.begin(first, states.a[:size], h[:size])
    o: Array | None = None if rnn.W_O is None else np.empty((columns.total, rnn.m), rnn.dtype)
    with meter(progress, lambda: columns.steps) as tick:
        for segment in columns.segments():
            window = states.window(segment)
            sweep.forward(segment, window)
            if o is not None:
                sweep.outputs(segment, window, o[segment.first - size : segment.end - size])
            if tick:
                tick(segment.t1 - segment.t0)
    if sweep.warning:
        warnings.warn(sweep.warning, RuntimeWarning, stacklevel=2)
    return Trajectory(states.a, h, o, rnn.n, rnn.form, columns, extent.axes == 2)


def value_and_grad(
    rnn: RNN,
    x: npt.ArrayLike,
    y: Any,
    *,
    loss: str | Criterion | None = None,
    weights: npt.ArrayLike | None = None,
    lengths: npt.ArrayLike | None = None,
    initial: npt.ArrayLike | None = None,
    reduction: Reduction = "mean",
    wrt_inputs: bool = False,
    nonfinite: Nonfinite = "warn",
    threads: int | None = None,
    memory: int | str | None = None,
    progress: Progress = False,
) -> tuple[float, Gradients]:
    """The error E = sum_t w_t E_t and its exact gradient, by backpropagation through time (Pascanu 2013 eqs. 3-5).

    ::

        delta_T = g_T,   delta_t = g_t + delta_{t+1} W_R D_t,   g_t = d(w_t E_t)/dh_t,   D_t = diag sigma'(h_t)
        dE/dW_R = sum_t delta_t^T a_{t-1}^T,   dE/dW_I = sum_t delta_t^T x_t^T,   dE/dW_O = sum_t e_t^T r_t^T

    Parameters
    ----------
    rnn : RNN
        With a readout.
    x : array of shape (T, B, p), or integer array of shape (T, B)
        As in `forward`.
    y : integer array of shape (T, B), or array of shape (T, B, m)
        Targets: classes in 0 .. m-1 for the cross-entropy, numbers for the squared error; without T, targets of each
        sequence's last step only. For a callable, any array of shape (T, B, ...), or None.
    loss : {"cross_entropy", "squared_error"}, callable or None
        E_t = -log o_t[y_t] of a softmax, or sum_i (o_ti - y_ti)^2. None: the first for output "softmax", the second for
        "linear". A callable gets the outputs o (L, B, m) of a block of L steps and the block of y, and returns
        E (L, B) and dE/do (L, B, m); blocks come last first; beyond a length o is zero and what is returned ignored.
    weights : array of shape (T, B), optional
        w_t, finite and >= 0; None is 1. Where it is 0, y is not read.
    lengths, initial
        As in `forward`. Beyond a length y is not read either.
    reduction : {"mean", "sum"}
        "mean" divides value and gradients by the sum of w_t over the steps with a target; if that is 0, they are 0.
    wrt_inputs : bool
        Whether to compute dE/dx_t = delta_t W_I too. x must be numbers, not tokens.
    nonfinite : {"warn", "raise", "ignore"}
        As in `forward`; for delta_t, going back from T, too.
    threads, progress
        As in `forward`.
    memory : int or str, optional
        Bytes that the call may take beyond its inputs and results, or a text such as "16 MB" or "16 MiB". Where the
        states do not fit, some are kept and the others computed again, at the least extra work (`memory_plan` says
        how much); the result is the same to the last bit. None: all states, while they fit into half of the free
        memory, else as many as do.

    Returns
    -------
    value : float
    gradients : Gradients

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `forward`.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rnn = bptt.RNN.random(3, 16, 5)
    >>> x, y = rng.standard_normal((100, 4, 3)), rng.integers(5, size=(100, 4))
    >>> value, gradients = bptt.value_and_grad(rnn, x, y)
    >>> gradients
    Gradients(W_R (16, 16), W_I (16, 3), W_O (5, 16), b_R (16,), b_O (5,), initial (4, 16), float64)

    An error of one's own, here the squared error:

    >>> def error(o, y):
    ...     return ((o - y) ** 2).sum(-1), 2 * (o - y)
    >>> targets = np.eye(5)[y]
    >>> mine, _ = bptt.value_and_grad(rnn, x, targets, loss=error)
    >>> theirs, _ = bptt.value_and_grad(rnn, x, targets, loss="squared_error")
    >>> abs(mine - theirs) < 1e-12
    True
    """
    _arguments.network(rnn, readout=True)
    inputs, extent = _arguments.inputs(rnn, x)
    error = _arguments.loss(rnn, loss)
    targets, last = _arguments.targets(rnn, y, error, extent)
    step_weights = None if weights is None else _arguments.weights(weights, extent)
    steps = _arguments.lengths(lengths, extent)
    first = None if initial is None else _arguments.rows("initial", initial, rnn, extent)
    choice("reduction", reduction, REDUCTIONS)
    _arguments.wrt_inputs(wrt_inputs, inputs)
    choice("nonfinite", nonfinite, NONFINITE)
    limit = None if memory is None else memory_size("memory", memory)
    check_progress(progress)
    sweep = Sweep(rnn, inputs, extent, steps, nonfinite, threads)

    keep_h = "preactivation" in (rnn.readout, rnn.form)
    by_class = error == CROSS_ENTROPY
    source: Source
    if callable(error):
        source = CallableError(sweep, error, targets, step_weights)
    else:
        assert targets is not None
        source = Targets(rnn, sweep.columns, extent.axes, error, targets, last, step_weights)
    with workspace(sweep, keep_h=keep_h, by_class=by_class, wrt_inputs=wrt_inputs, memory=limit) as storage:
        tape, adjoint = storage.tape, storage.adjoint
        adjoint.begin(sweep, None, wrt_inputs)
        with meter(progress, lambda: storage.budget.work(sweep.columns.unit)) as tick:
            for segment, window in tape.backward(sweep, first, tick):
                adjoint.take(sweep, source, segment, window)
                if tick:
                    tick(2 * (segment.t1 - segment.t0))
        factor = 1.0
        if reduction == "mean":
            factor = 1 / source.total_weight if source.total_weight else 0.0
        value = adjoint.value * factor
        if not math.isfinite(value):
            sweep._not_finite("the error is not finite")
        gradients = adjoint.gradients(sweep, factor, tape.initial, tape.final)
    if sweep.warning:
        warnings.warn(sweep.warning, RuntimeWarning, stacklevel=2)
    return value, gradients


def backward(
    rnn: RNN,
    x: npt.ArrayLike,
    trajectory: Trajectory,
    d_outputs: npt.ArrayLike | None = None,
    d_states: npt.ArrayLike | None = None,
    d_final: npt.ArrayLike | None = None,
    *,
    wrt_inputs: bool = False,
    nonfinite: Nonfinite = "warn",
    threads: int | None = None,
    progress: Progress = False,
) -> Gradients:
    """The gradient of any function of a trajectory, from its derivatives by outputs and states (adjoint of `forward`).

    Parameters
    ----------
    rnn : RNN
    x : array of shape (T, B, p), or integer array of shape (T, B)
        What the trajectory was made of.
    trajectory : Trajectory
        Of this network and x.
    d_outputs : array of shape (T, B, m), optional
        dE/do_1 .. dE/do_T. Whatever stands beyond a length, here and in d_states, is not read.
    d_states : array of shape (T, B, n), optional
        dE/d(state t), t = 1 .. T, of the form's own state: by a_t in form "activation", by h_t in form "preactivation".
        The direct part: what reaches a state through later ones is found here.
    d_final : array of shape (B, n), optional
        dE/d(state after each sequence's last step); of a sequence without steps, that is the initial one.
    wrt_inputs, nonfinite, threads, progress
        As in `value_and_grad`.

    Returns
    -------
    Gradients

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `forward`.

    Examples
    --------
    The gradient of the last state's sum by the initial state:

    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[0.5]], [[1.0]], activation="identity")
    >>> x = np.ones((3, 1))
    >>> bptt.backward(rnn, x, bptt.forward(rnn, x), d_final=[1.0]).initial
    array([0.125])
    """
    _arguments.network(rnn)
    inputs, extent = _arguments.inputs(rnn, x)
    if (run := _arguments.trajectory(rnn, trajectory)) != extent:
        raise ValueError(f"trajectory must be of x, with ({extent.symbols}) = {extent.sizes}; got {run.sizes}")
    if d_outputs is not None:
        if rnn.W_O is None:
            raise ValueError("d_outputs needs a network with a readout; got rnn with W_O = None")
        d_outputs = _arguments.steps("d_outputs", d_outputs, extent, "m", rnn.m)
    if d_states is not None:
        d_states = _arguments.steps("d_states", d_states, extent, "n", rnn.n)
    if d_final is not None:
        d_final = _arguments.rows("d_final", d_final, rnn, extent)
    _arguments.wrt_inputs(wrt_inputs, inputs)
    choice("nonfinite", nonfinite, NONFINITE)
    check_progress(progress)
    sweep = Sweep(rnn, inputs, extent, trajectory._columns.lengths, nonfinite, threads)

    states = States(trajectory._a, trajectory._h)
    source = Given(sweep, d_outputs, d_states)
    adjoint = Adjoint(sweep.columns, rnn, tokens=sweep.tokens)
    adjoint.begin(sweep, d_final, wrt_inputs)
    with meter(progress, lambda: sweep.columns.steps) as tick:
        for segment in sweep.columns.segments_backward():
            adjoint.take(sweep, source, segment, states.window(segment))
            if tick:
                tick(segment.t1 - segment.t0)
    h_0 = trajectory._h[: extent.size] if rnn.form == "preactivation" else None
    gradients = adjoint.gradients(sweep, 1.0, h_0)
    if sweep.warning:
        warnings.warn(sweep.warning, RuntimeWarning, stacklevel=2)
    return gradients


def errors(
    rnn: RNN,
    trajectory: Trajectory,
    y: npt.ArrayLike,
    *,
    loss: str | None = None,
    weights: npt.ArrayLike | None = None,
    progress: Progress = False,
) -> tuple[Array, Array]:
    """The errors w_t E_t of a trajectory, and their direct part g_t = d(w_t E_t)/dh_t.

    Parameters
    ----------
    rnn : RNN
        With a readout.
    trajectory : Trajectory
        Of this network.
    y, loss, weights
        As in `value_and_grad`; a callable cannot be had here.
    progress
        As in `forward`.

    Returns
    -------
    E : float64 array of shape (T, B)
        Their sum is the value of ``reduction="sum"``. Zero beyond a length.
    g : array of shape (T, B, n)

    Raises
    ------
    TypeError, ValueError
        As in `value_and_grad`.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[0.5]], [[1.0]], [[2.0]], activation="identity", output="linear")
    >>> E, g = bptt.errors(rnn, bptt.forward(rnn, np.ones((2, 1))), np.zeros((2, 1)))
    >>> E, g[:, 0]
    (array([4., 9.]), array([ 8., 12.]))
    """
    _arguments.network(rnn, readout=True)
    extent = _arguments.trajectory(rnn, trajectory)
    error = _arguments.named_loss(rnn, loss)
    targets, last = _arguments.targets(rnn, y, error, extent)
    assert targets is not None
    step_weights = None if weights is None else _arguments.weights(weights, extent)
    check_progress(progress)

    kernel, network, threads = _levels.kernel(), rnn._network(False), _levels.resolve_threads(None)
    columns, states = trajectory._columns, States(trajectory._a, trajectory._h)
    source = Targets(rnn, columns, extent.axes, error, targets, last, step_weights)
    E: Array = np.zeros(columns.total)
    g = aligned(columns.total, rnn.n, rnn.dtype)
    with meter(progress, lambda: columns.steps) as tick:
        for segment in columns.segments():
            window = states.window(segment)
            pull = source.pull(segment, window)
            part = slice(segment.first - extent.size, segment.end - extent.size)
            if pull.y is None:
                g[part] = 0
            else:
                a, h = window
                a = a[segment.first - segment.before :]
                h = h if rnn.readout == "preactivation" else None
                kernel.direct(network, pull.loss, a, h, pull.y, pull.weights, E[part], g[part], threads)
            if tick:
                tick(segment.t1 - segment.t0)
    E, g = columns.unpack(E, 1), columns.unpack(g[:, : rnn.n], 1)
    return (E, g) if extent.axes == 2 else (E[:, 0], g[:, 0])
