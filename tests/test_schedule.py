"""The planner of checkpoints against brute force, closed forms and its own promises."""

import math
from functools import cache

import pytest

from bptt._schedule import Costs

MEASURES = [Costs(1, 1), Costs(3, 1), Costs(5, 2), Costs(4, 3), Costs(6, 1), Costs(7, 7)]
MEMORY = 40


def carried_out(costs, units, memory):
    """Units advanced over and passes over the busiest unit, of a schedule that is checked move by move."""
    advanced, runs, kept, end = 0, [0] * units, [0], units
    for tape, start, stop in costs.schedule(units, memory):
        assert start == kept[-1]
        if tape:
            assert (stop - start) * costs.unit + (len(kept) - 1) * costs.boundary <= memory
            assert stop == end
            end = kept.pop()
            continue
        assert len(kept) * costs.boundary + costs.unit <= memory  # what is run on needs room too
        assert start < stop < end
        advanced += stop - start
        for unit in range(start, stop):
            runs[unit] += 1
        kept.append(stop)
    assert end == 0
    return advanced, max(runs, default=0)


def optimum(costs):
    """(passes, advanced) at best, by trying every first move: two minima, each for itself."""

    @cache
    def advanced(units, memory):
        if units * costs.unit <= memory:
            return 0
        if memory < costs.unit + costs.boundary:
            return math.inf
        return min(y + advanced(units - y, memory - costs.boundary) + advanced(y, memory) for y in range(1, units))

    @cache
    def passes(units, memory):
        if units * costs.unit <= memory:
            return 0
        if memory < costs.unit + costs.boundary:
            return math.inf
        return min(max(passes(units - y, memory - costs.boundary), 1 + passes(y, memory)) for y in range(1, units))

    return passes, advanced


@pytest.mark.parametrize("costs", MEASURES, ids=str)
def test_schedules_against_brute_force(costs):
    """No schedule has fewer passes; with at most one pass none advances less, and with more hardly any."""
    passes, advanced = optimum(costs)
    for memory in range(costs.unit, MEMORY):
        for units in range(1, 24):
            least = passes(units, memory)
            if least == math.inf:
                with pytest.raises(ValueError, match=f"at least {costs.unit + costs.boundary} is needed"):
                    costs.passes(units, memory)
                continue
            work, runs = carried_out(costs, units, memory)
            assert costs.passes(units, memory) == least >= runs
            assert advanced(units, memory) <= work <= advanced(units, memory) + (3 if least > 1 else 0)


@pytest.mark.parametrize("costs", MEASURES, ids=str)
def test_capacity_is_the_recursion(costs):
    """N_0(M) = floor(M / unit), N_r(M) = N_r(M - boundary) + N_{r-1}(M)."""

    @cache
    def recursion(passes, memory):
        if memory < costs.unit:
            return 0
        if passes == 0:
            return memory // costs.unit
        return recursion(passes, memory - costs.boundary) + recursion(passes - 1, memory)

    for memory in range(MEMORY):
        for passes in range(7):
            assert costs.capacity(passes, memory) == recursion(passes, memory)


@pytest.mark.parametrize("slots", range(1, 9))
@pytest.mark.parametrize("passes", range(6))
def test_capacity_is_griewank_and_walthers(slots, passes):
    """C(s + r', s) where a taped unit costs what a boundary costs: s = slots - 1 beside the taped one, r' = r + 1."""
    assert Costs(7, 7).capacity(passes, 7 * slots) == math.comb(slots - 1 + passes + 1, slots - 1)


def test_one_pass_over_all_but_the_window_reached_first():
    """r = 1 with D boundaries: S - N_0(M - D boundary) units are advanced over."""
    costs, units, memory = Costs(64, 1), 4000, 64 * 250
    depth = next(d for d in range(units) if sum((memory - j) // 64 for j in range(d + 1)) >= units)
    work, runs = carried_out(costs, units, memory)
    assert (work, runs) == (units - (memory - depth) // 64, 1)


def test_ten_thousand_boundaries_need_no_recursion():
    costs, memory = Costs(1000, 1), 11_000
    depth = deepest = 0
    for tape, _, _ in costs.schedule(costs.capacity(1, memory), memory):
        depth += -1 if tape else 1
        deepest = max(deepest, depth)
    assert deepest == 10_000


def test_nothing_to_do():
    assert [tuple(move) for move in Costs(3, 1).schedule(0, 0)] == [(True, 0, 0)]
    assert Costs(3, 1).passes(0, 0) == 0
