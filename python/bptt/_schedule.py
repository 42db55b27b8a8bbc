"""When to keep and when to recompute: the best order of work for going back through time in bounded memory.

A sequence is cut into units. A window of k *taped* units, all their states at hand, takes ``k * unit`` of memory, a
*boundary*, the state at one step, takes ``boundary``; from the boundary at its beginning a stretch is recomputed. To
reverse a stretch in memory M: tape it whole where it fits; else advance some units, keep the boundary reached, reverse
what lies after it in M - boundary, and then what lies before it in M. With at most r extra passes forward over any unit

    N_0(M) = floor(M / unit),    N_r(M) = N_r(M - boundary) + N_{r-1}(M)

units can be reversed (`capacity`). With unit = boundary that is the binomial coefficient of Griewank and Walther,
"Algorithm 799: Revolve" (2000). A schedule takes the least r that suffices, the fewest extra passes over any unit; with
r <= 1 no other makes fewer extra unit passes in all, and beyond it keeps within a few units of the least. Memory is
counted in any one measure, as integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import NamedTuple


class Move(NamedTuple):
    """Units start .. stop: taped and gone back through, or advanced over to keep the boundary at ``stop``."""

    tape: bool
    start: int
    stop: int


class Costs(NamedTuple):
    """What is kept, in one measure: a unit's states, and the state at one step."""

    unit: int
    boundary: int

    def capacity(self, passes: int, memory: int) -> int:
        """N_r(M), the units that can be reversed with at most r extra passes over each; 0 where r is negative."""
        return sum(comb(spare + passes, passes) for spare in self._spare(memory)) if passes >= 0 else 0

    def passes(self, units: int, memory: int) -> int:
        """The least r with N_r(M) >= S; ValueError where there is none."""
        if units > self.capacity(0, memory) and memory < self.least(units):
            raise ValueError(f"{units} units cannot be reversed in {memory}: at least {self.least(units)} is needed")
        enough = 1
        while self.capacity(enough, memory) < units:
            enough *= 2
        few = -1
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self.capacity(middle, memory) >= units else (middle, enough)
        return enough

    def least(self, units: int) -> int:
        """The least memory in which S units can be reversed at all."""
        return self.unit * min(units, 1) + self.boundary * (units > 1)

    def schedule(self, units: int, memory: int) -> Iterator[Move]:
        """The moves that reverse S units, the boundary at 0 being kept outside M. Each unit is taped once."""
        kept, end = [0], units
        while kept:
            start, free = kept[-1], memory - self.boundary * (len(kept) - 1)
            if (end - start) * self.unit <= free:
                yield Move(True, start, end)
                end = kept.pop()
            else:
                kept.append(start + self._advance(end - start, free))
                yield Move(False, start, kept[-1])

    def _advance(self, units: int, memory: int) -> int:
        """The most units to advance such that neither part needs a pass more than it has left."""
        r = self.passes(units, memory)
        after = self.capacity(r - 1, memory - self.boundary)
        return min(self.capacity(r - 1, memory), max(units - after, 1))

    def _spare(self, memory: int) -> list[int]:
        """For each window of 1, 2, ... units that fits, the boundaries that fit beside it.

        Summed over boundaries N_r is sum_j C(j+r-1, r-1) floor((M - j boundary) / unit); summed over windows, and each
        column of Pascal's triangle by its neighbour, it has fewer terms: sum_q C(spare_q + r, r).
        """
        return [rest // self.boundary for rest in range(memory - self.unit, -1, -self.unit)]
