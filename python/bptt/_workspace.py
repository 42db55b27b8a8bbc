"""The storage of a call, kept for the next one of the same shape; of a ragged batch, also for other lengths.

Fresh pages cost as much as a small network's work on them, and a short sequence's storage takes longer to lay out than
the kernel to fill.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from types import TracebackType

from bptt._adjoint import Adjoint
from bptt._budget import FREELY, Budget, budget
from bptt._sweep import Sweep
from bptt._tape import Tape

#: Bytes kept between calls, in all.
KEPT = FREELY

_kept: dict[Hashable, Workspace] = {}


class Workspace:
    """One gradient's storage; within ``with``, nobody else's."""

    __slots__ = ("_lock", "adjoint", "budget", "tape")

    def __init__(self, sweep: Sweep, plan: Budget, *, keep_h: bool) -> None:
        rnn, columns = sweep.rnn, sweep.columns
        self.budget = plan
        self.tape = Tape(columns, plan, rnn.n, rnn.dtype, keep_h=keep_h, form=rnn.form)
        self.adjoint = Adjoint(columns, rnn, tokens=sweep.tokens)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self.tape.nbytes + self.adjoint.nbytes

    def fit(self, sweep: Sweep, plan: Budget) -> None:
        """Serve sequences of other lengths."""
        rnn, tape = sweep.rnn, self.tape
        self.budget = plan
        self.tape = Tape(sweep.columns, plan, rnn.n, rnn.dtype, keep_h=tape.keep_h, form=rnn.form, rows=tape.rows)
        self.adjoint.columns = sweep.columns

    def claim(self) -> bool:
        """Whether it was free, and now is not. Another thread, or a callable's own call, may be at work in it."""
        return self._lock.acquire(blocking=False)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def workspace(sweep: Sweep, *, keep_h: bool, by_class: bool, wrt_inputs: bool, memory: int | None) -> Workspace:
    """Storage for a call, already claimed: one that was kept, or a new one."""
    rnn, columns = sweep.rnn, sweep.columns
    ragged = columns.order is not None
    key: Hashable = None
    found = None
    if memory is None:
        biases = rnn.b_R is None, rnn.b_I is None, rnn.b_O is None
        shape: Hashable = columns.size if ragged else columns
        kind = id(sweep.kernel), sweep.tokens, rnn.dtype, rnn.form, keep_h  # a level has as many parts as it likes
        key = shape, rnn.n, rnn.p, rnn.m, biases, kind
        found = _kept.get(key)
        if found is not None and not found.claim():
            found = None
        if found is not None and not ragged:
            return found
    else:
        _kept.clear()  # a budget is for all that the process takes
    plan = budget(sweep, keep_h=keep_h, by_class=by_class, wrt_inputs=wrt_inputs, memory=memory)
    if found is not None:
        found.fit(sweep, plan)
    else:
        found = Workspace(sweep, plan, keep_h=keep_h)
        found.claim()
    if key is not None:
        _keep(key, found)
    return found


def _keep(key: Hashable, made: Workspace) -> None:
    """Keep it, if it is not too large, and the latest others that fit beside it."""
    _kept.pop(key, None)
    if made.nbytes > KEPT:
        return
    _kept[key] = made
    total = 0
    for other, workspace in reversed(list(_kept.items())):
        total += workspace.nbytes
        if total > KEPT:
            _kept.pop(other, None)
