"""What a call may keep: a memory budget, turned into units of states and the schedule's currency, rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bptt._columns import block_steps
from bptt._kernel import row_length
from bptt._schedule import Costs, Move
from bptt._sweep import Sweep

#: States up to this many bytes are kept without looking how much memory is free.
FREELY = 256 << 20

#: The share of the free memory that states may take where no budget is given.
SHARE = 0.5

_STRIP = 8  # rows of a kernel's outer sums at a time, at most (tile::outer_height in kernel/outer_sum.hpp)
_CHUNK = 48  # columns of a readout at a time, at most (chunk in kernel/loss.hpp)
_OBJECTS = 64 << 10  # bytes of Python's and the allocator's own


class Budget(NamedTuple):
    """How the states of one call are kept.

    Attributes
    ----------
    units : int
        S, of ``Columns.unit`` steps each.
    costs : Costs
        Of a unit and of a boundary, in rows of states.
    rows : int
        M, for taped units and for boundaries beside that of t = 0.
    most : int
        Steps that one call of the kernel works on, a whole number of units.
    other : int
        Bytes of all else: sums, packed weights, the kernel's blocks, converted inputs and targets; 0 where no budget
        asks for them.
    """

    units: int
    costs: Costs
    rows: int
    most: int
    other: int

    def work(self, unit: int) -> int:
        """Steps to run, one back counting as two forward."""
        return unit * (3 * self.units + sum(stop - start for tape, start, stop in self.schedule() if not tape))

    def schedule(self) -> Iterator[Move]:
        return self.costs.schedule(self.units, self.rows)


def budget(sweep: Sweep, *, keep_h: bool, by_class: bool, wrt_inputs: bool, memory: int | None) -> Budget:
    """The budget of a gradient; ``by_class`` says that targets are classes.

    Raises
    ------
    ValueError
        ``memory`` is too small: the message names the least.
    """
    columns = sweep.columns
    size = columns.size
    units = -(-columns.steps // columns.unit)
    per_step = size * (2 if keep_h else 1)
    costs = Costs(columns.unit * per_step, size)
    row_bytes = row_length(sweep.rnn.n, sweep.rnn.dtype.itemsize) * sweep.rnn.dtype.itemsize
    everything = units * costs.unit
    least = costs.least(units)
    if memory is None:
        rows, whole = everything, (columns.steps * per_step + size) * row_bytes
        if whole > FREELY and whole > (share := int(SHARE * free_memory())):
            rows = max(share // row_bytes - size, least)
        return Budget(units, costs, rows, columns.grid, 0)

    def within(most: int) -> Budget:
        other = other_bytes(sweep, most, by_class, wrt_inputs)
        rows = min((memory - other) // row_bytes - size, everything)
        return Budget(units, costs, rows, most, other)

    most = columns.grid
    plan = within(most)
    while most > columns.unit and (plan.rows < everything and plan.other > memory // 4):
        most = max(most // 2 // columns.unit * columns.unit, columns.unit)
        plan = within(most)
    if plan.rows < least:
        plan = within(columns.unit)
    if plan.rows < least:
        needed = plan.other + (size + least) * row_bytes
        raise ValueError(f"memory must be at least {needed} bytes for this call; got {memory}")
    return plan


def other_bytes(sweep: Sweep, most: int, by_class: bool, wrt_inputs: bool) -> int:
    """The most bytes that a gradient takes beside its states, where a call of the kernel works on ``most`` steps."""
    rnn, columns, tokens = sweep.rnn, sweep.columns, sweep.tokens
    n, m, p = rnn.n, rnn.m, 0 if tokens else rnn.p
    size, ragged, real = columns.size, columns.order is not None, rnn.dtype.itemsize
    ld, lm, lp = (row_length(k, real) for k in (n, m, p))

    parts = sweep.kernel.best_parts(n, size)
    sums = parts * 8 * (n * n + n * rnn.p + m * n + n + m)
    rows = size * (3 * ld + 2 * n)  # dE/da carried from segment to segment, initial and final states
    packed = ld * (2 * n + rnn.p) + lp * n + lm * (n + 1) + ld * m
    widest = max(block_steps(n, size) * size, size)
    block = (widest + size) * (4 * ld + lp + lm)
    thread = widest * _STRIP + _CHUNK * (lp + 4 * lm)
    kernel = packed + (3 if sweep.threads > 1 else parts) * block + sweep.threads * thread

    # Of one column: as it is in the source, without the columns that are missing, in the network's dtype.
    number, index = 16 + real, 8 + 8 + 8 + 4
    x = index if tokens else p * number
    y = index if by_class else m * (2 * number + 16)  # of a callable also outputs and their gradients
    column = x + y + number + 16 + (64 if ragged else 0)
    kept = columns.total * rnn.p * real if wrt_inputs and ragged else 0  # dE/dx before it is spread out
    return sums + real * (rows + kernel) + most * size * column + kept + _OBJECTS


def free_memory() -> int:
    """Bytes that this process may still take without swapping: the machine's, or what its control group leaves."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].split()[0]) << 10
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        pass  # another kernel than Linux, or no control groups
    return max(free, 0)
