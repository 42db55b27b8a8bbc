"""What a gradient in bounded memory will keep and compute again, said before the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from bptt import _arguments
from bptt._arguments import Criterion
from bptt._budget import budget, other_bytes
from bptt._kernel import LOSSES, row_length
from bptt._sweep import Sweep
from bptt._validate import memory_size
from bptt.network import RNN


@dataclass(frozen=True)
class MemoryPlan:
    """How `value_and_grad` goes through a sequence in the memory it has, made by `memory_plan`.

    Attributes
    ----------
    memory : int
        Bytes taken beyond inputs and results, at most: states, and sums, packed weights and segments under way.
    states : int
        The part of them for states: at t = 0, at the checkpoints, and at every step of the stretch being taped.
    checkpoints : int
        States kept at once to begin again from, beside that of t = 0; 0 where all states are kept.
    window : int
        Steps whose states are all kept at once, at most.
    passes : int
        The most times that a step is computed again.
    extra : float
        Steps computed again, as a share of T. One is about the time of `forward` once more.
    """

    memory: int
    states: int
    checkpoints: int
    window: int
    passes: int
    extra: float


def memory_plan(
    rnn: RNN,
    x: npt.ArrayLike,
    *,
    loss: str | Criterion | None = None,
    lengths: npt.ArrayLike | None = None,
    wrt_inputs: bool = False,
    threads: int | None = None,
    memory: int | str | None = None,
) -> MemoryPlan:
    """What `value_and_grad` will do with a budget of memory, before it is called.

    Where the states of all steps do not fit, those at some steps are kept (checkpoints) and the others computed again
    when the way back comes to them, with the fewest passes over any step (Griewank and Walther 2000; here with whole
    stretches of steps kept side by side with the checkpoints, as memory allows).

    Parameters
    ----------
    rnn, x, loss, lengths, wrt_inputs, threads, memory
        As in `value_and_grad`. Of x only shape and dtype matter.

    Returns
    -------
    MemoryPlan

    Raises
    ------
    TypeError, ValueError
        As in `value_and_grad`; so where ``memory`` is too small, with the least that would do.

    Examples
    --------
    A million steps, whose states would take 256 MB, in 16 MB:

    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN.random(8, 64, 8, dtype=np.float32)
    >>> plan = bptt.memory_plan(rnn, np.broadcast_to(np.int8(0), 1_000_000), memory="16 MB")
    >>> plan.memory <= 16e6, plan.passes, round(plan.extra, 1)
    (True, 1, 0.9)
    """
    _arguments.network(rnn, readout=True)
    inputs, extent = _arguments.inputs(rnn, x)
    error = _arguments.loss(rnn, loss)
    steps = _arguments.lengths(lengths, extent)
    _arguments.wrt_inputs(wrt_inputs, inputs)
    limit = None if memory is None else memory_size("memory", memory)
    sweep = Sweep(rnn, inputs, extent, steps, "warn", threads)
    columns = sweep.columns
    keep_h = "preactivation" in (rnn.readout, rnn.form)
    by_class = error == LOSSES.index("cross_entropy")
    plan = budget(sweep, keep_h=keep_h, by_class=by_class, wrt_inputs=wrt_inputs, memory=limit)

    depth = deepest = advanced = window = 0
    for tape, start, stop in plan.schedule():
        deepest = max(deepest, depth)
        if tape:
            window = max(window, stop - start)
        else:
            advanced += stop - start
        depth += -1 if tape else 1
    itemsize = rnn.dtype.itemsize
    states = (columns.size + plan.rows) * row_length(rnn.n, itemsize) * itemsize
    return MemoryPlan(
        memory=states + (plan.other or other_bytes(sweep, plan.most, by_class, wrt_inputs)),
        states=states,
        checkpoints=deepest,
        window=min(window * columns.unit, columns.steps),
        passes=plan.costs.passes(plan.units, plan.rows),
        extra=advanced * columns.unit / columns.steps if columns.steps else 0.0,
    )
