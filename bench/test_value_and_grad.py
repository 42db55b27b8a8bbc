"""The grid of `bptt bench` through pytest-benchmark: each contender alone; there they take turns.

pytest bench/test_value_and_grad.py --benchmark-group-by=param:cell -k "n=64"
"""

import numpy as np
import pytest

from bptt import _levels, _peers, bench


@pytest.mark.parametrize("contender", _peers.CONTENDERS)
@pytest.mark.parametrize("cell", bench.GRID, ids=lambda cell: f"n={cell.n} B={cell.B} {cell.dtype}")
def test_value_and_grad(benchmark, cell, contender):
    if contender != "bptt":
        pytest.importorskip(contender)
    threads = _levels.resolve_threads(None)
    work = _peers.work(cell.T, cell.B, cell.n, cell.dtype)
    ours, theirs = (_peers.CONTENDERS[name](work, threads) for name in ("bptt", contender))
    bench.difference(cell, contender, ours.read(ours.run()), theirs.read(theirs.run()))
    benchmark.extra_info["Gflop/s"] = 6 * cell.n**2 * cell.B * cell.T / 1e9
    benchmark.pedantic(theirs.run, rounds=5, warmup_rounds=1)
    benchmark.extra_info["Gflop/s"] /= np.min(benchmark.stats.stats.data)
