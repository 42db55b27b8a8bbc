"""What the facade takes besides its kernel, and what importing it takes besides NumPy.

pytest bench/test_facade.py
"""

import subprocess
import sys
import types

import numpy as np

import bptt
from bptt import _levels

IMPORT = "import time, numpy; t = time.perf_counter(); import bptt; print(time.perf_counter() - t)"


def test_call(benchmark, monkeypatch):
    """At most 15 us on a core where `np.empty(3)` takes 0.15."""
    rnn, x, y = bptt.RNN.random(3, 4, 2), np.zeros((1, 1, 3)), np.zeros((1, 1), np.int32)
    assert bptt.check(rnn, x, y).passed
    right = vars(_levels.kernel())
    nothing = types.SimpleNamespace(**{**right, "forward": lambda *args: -1, "backward": lambda *args: -1})
    monkeypatch.setattr(_levels, "kernel", lambda: nothing)
    benchmark.pedantic(bptt.value_and_grad, (rnn, x, y), rounds=2000, iterations=10, warmup_rounds=10)


def test_import(benchmark):
    """At most 100 ms."""
    seconds = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(10)]
    benchmark.extra_info["milliseconds beyond NumPy's"] = 1e3 * min(seconds)
    benchmark.pedantic(subprocess.check_call, ([sys.executable, "-c", "import bptt"],), rounds=5)
