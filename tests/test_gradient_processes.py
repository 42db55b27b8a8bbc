"""Forks, worker processes and Python threads: the same bits as alone, and nobody waits for ever."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import bptt
from bptt import _levels
from support import network

# Large enough for a team of threads, by columns and by rows.
SHAPES = [(10, 64, 64), (6, 2, 256)]

SCRIPT = """
    import multiprocessing, os, signal, sys
    from concurrent.futures import ProcessPoolExecutor
    import numpy as np
    import bptt

    def work(seed):
        rng = np.random.default_rng(seed)
        total = b""
        for T, B, n in ((10, 64, 64), (6, 2, 256)):
            rnn = bptt.RNN.random(4, n, 6, dtype="float32", rng=rng)
            x, y = rng.standard_normal((T, B, 4)), rng.integers(6, size=(T, B))
            total += bptt.value_and_grad(rnn, x, y, threads=2)[1].ravel().tobytes()
        return total

    if __name__ == "__main__":
        signal.alarm(120)  # a child that hangs is a failure, not a wait
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Run the script, with more at its end, as a file: spawned workers import it."""

    def run(body: str) -> str:
        path = tmp_path_factory.mktemp("script") / "main.py"
        path.write_text(textwrap.dedent(SCRIPT) + textwrap.indent(textwrap.dedent(body), "    "))
        command = [sys.executable, "-W", "ignore::DeprecationWarning", os.fspath(path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run


def test_a_fork_after_threads_have_run(script):
    out = script(
        """
        expected = work(0)
        child = os.fork()
        if not child:
            os._exit(0 if work(0) == expected else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert work(0) == expected  # the parent goes on as before
        print("child", status)
        """
    )
    assert out == "child 0"


def test_a_fork_of_a_fork(script):
    out = script(
        """
        expected = work(0)
        if not (child := os.fork()):
            if not (grandchild := os.fork()):
                os._exit(0 if work(0) == expected else 1)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert out == "child 0"


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_worker_processes(script, method):
    out = script(
        f"""
        expected = [work(seed) for seed in range(3)]
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("{method}")) as pool:
            assert list(pool.map(work, range(3))) == expected
        print("same")
        """
    )
    assert out == "same"


def test_networks_and_results_travel_between_processes(script):
    out = script(
        """
        rnn = bptt.RNN.random(4, 9, 6)
        x = np.ones((5, 4))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            trajectory = pool.submit(bptt.forward, rnn, x).result()
            gradients = pool.submit(bptt.backward, rnn, x, trajectory, d_final=np.ones(9)).result()
        here = bptt.backward(rnn, x, bptt.forward(rnn, x), d_final=np.ones(9))
        assert np.array_equal(gradients.ravel(), here.ravel())
        print("same")
        """
    )
    assert out == "same"


@pytest.mark.usefixtures("level")
def test_several_python_threads_at_once():
    def work(seed):
        rng = np.random.default_rng(seed)
        T, B, n = SHAPES[seed % 2]
        rnn = network(n, 4, 6, dtype="float32", seed=seed)
        x, y = rng.standard_normal((T, B, 4)), rng.integers(6, size=(T, B))
        lengths = rng.integers(T + 1, size=B) if seed % 3 else None
        return bptt.value_and_grad(rnn, x, y, lengths=lengths, threads=2)[1].ravel().tobytes()

    expected = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == expected


@pytest.mark.usefixtures("level")
def test_one_trajectory_in_several_threads():
    rng = np.random.default_rng(0)
    rnn = network(16, 4, 6)
    x, lengths = rng.standard_normal((50, 8, 4)), rng.integers(51, size=8)
    trajectory, d_final = bptt.forward(rnn, x, lengths=lengths), rng.standard_normal((8, 16))

    def work(_):
        return bptt.backward(rnn, x, trajectory, d_final=d_final).ravel().tobytes(), trajectory.states.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(20)))) == 1


@pytest.mark.skipif(
    _levels.available() == (_levels.REFERENCE,), reason="the reference level is Python and keeps the GIL"
)
def test_the_gil_is_released():
    """While one thread is in the kernel, another one counts."""
    rnn = bptt.RNN.random(4, 256, 6)
    x, y = np.zeros((400, 16, 4)), np.zeros((400, 16), int)
    done, counted = threading.Event(), 0

    def work():
        for _ in range(5):
            bptt.value_and_grad(rnn, x, y, threads=1)
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # the GIL changes hands only where it is given up
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while not done.is_set():
            counted += 1
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert counted > 1000
