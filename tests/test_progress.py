"""Long calls say how far they are, and hear Ctrl-C."""

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import bptt
from support import network, targets

STEPS = 2000


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    rnn = network()
    return rnn, rng.standard_normal((STEPS, 3)), targets(rng, rnn, STEPS)


CALLS = {
    "forward": lambda rnn, x, y, **more: bptt.forward(rnn, x, **more),
    "backward": lambda rnn, x, y, **more: bptt.backward(rnn, x, bptt.forward(rnn, x), d_final=np.ones(rnn.n), **more),
    "all states": bptt.value_and_grad,
    "errors": lambda rnn, x, y, **more: bptt.errors(rnn, bptt.forward(rnn, x), y, **more),
    "budget": lambda *arguments, **more: bptt.value_and_grad(*arguments, memory=600_000, **more),
}


@pytest.mark.parametrize("call", CALLS)
def test_fractions_rise_to_one(problem, call, monkeypatch):
    monkeypatch.setattr("bptt._sweep.segment_steps", lambda *args: 256)
    told = []
    CALLS[call](*problem, progress=told.append)
    assert len(told) >= 8
    assert 0 < told[0] < 0.5
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert max(np.diff([0, *told])) < 0.35


@pytest.mark.parametrize("call", CALLS)
def test_the_result_does_not_depend_on_it(problem, call):
    mine, theirs = CALLS[call](*problem, progress=lambda fraction: None), CALLS[call](*problem)
    for one, other in zip(*(result if isinstance(result, tuple) else (result,) for result in (mine, theirs))):
        if isinstance(one, bptt.Gradients):
            assert np.array_equal(one.ravel(), other.ravel())
        elif isinstance(one, float):
            assert one == other


LONG = {
    "product_chain": lambda rnn, x, y, **more: bptt.product_chain(rnn, bptt.forward(rnn, x), 1, -1, **more).log_norm(),
    "chain_norms": lambda rnn, x, y, **more: bptt.chain_norms(rnn, bptt.forward(rnn, x), max_lag=40, **more),
    "chain_norms, one": lambda rnn, x, y, **more: bptt.chain_norms(rnn, bptt.forward(rnn, x), stops=[-1], **more),
    "chain_norms, vectors": lambda rnn, x, y, **more: bptt.chain_norms(
        rnn, bptt.forward(rnn, x), stops=[-1, 500], vectors=np.eye(2, rnn.n), **more
    ),
    "contributions": lambda rnn, x, y, **more: bptt.contributions(rnn, bptt.forward(rnn, x), y, max_lag=40, **more),
    "per_step_gradients": lambda rnn, x, y, **more: bptt.per_step_gradients(
        rnn, bptt.forward(rnn, x), y, stops=range(0, STEPS, 100), **more
    ),
    "state_jacobian": lambda rnn, x, y, **more: bptt.state_jacobian(
        bptt.RNN.random(3, 6, None, activation="identity"),  # whose chains do not vanish
        x,
        **more,
    ),
    "recursion": lambda rnn, x, y, **more: bptt.state_jacobian(rnn, x, method="recursion", **more),
    "lyapunov_spectrum": lambda rnn, x, y, **more: (
        bptt.lyapunov_spectrum(rnn, bptt.forward(rnn, x), warm_up=300, **more).exponents
    ),
    "gradient_flow": lambda rnn, x, y, **more: bptt.gradient_flow(rnn, x, y, **more).contributions,
    "check": lambda rnn, x, y, **more: bptt.check(rnn, x, y, **more).comparisons[3].kernel,
    "theorems": lambda rnn, x, y, **more: [
        verdict.corrected.truth for verdict in bptt.theorems.check(rnn, x[:50], y[:50], **more)
    ],
    "truncation_bias": lambda *arguments, **more: bptt.truncation_bias(*arguments, k1=50, k2=100, **more).angle,
}


@pytest.mark.parametrize("call", LONG)
def test_the_microscope_tells_too(problem, call, monkeypatch):
    monkeypatch.setattr("bptt._factors._FLOP", 10_000)  # smaller pieces
    monkeypatch.setattr("bptt.lyapunov._FLOP", 10_000)
    monkeypatch.setattr("bptt.jacobian._FLOP", 10_000)
    rnn, x, y = problem
    if call == "chain_norms, one":  # which is compressed
        rnn = network(n=33)
        y = targets(np.random.default_rng(0), rnn, STEPS)
    told = []
    result = LONG[call](rnn, x, y, progress=told.append)
    assert len(told) >= 8
    assert 0 < told[0] < 0.5
    assert told == sorted(told)
    assert told[-2] < told[-1] == 1.0
    assert max(np.diff([0, *told])) < 0.4
    np.testing.assert_array_equal(result, LONG[call](rnn, x, y))
    for wrong in (1, "bar"):
        with pytest.raises(TypeError, match="progress must be True, False or a callable"):
            LONG[call](rnn, x, y, progress=wrong)


def test_the_microscope_draws_a_bar(problem, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    bptt.gradient_flow(*problem, progress=True)
    out, err = capsys.readouterr()
    assert "%" in err and not out


def test_no_steps(problem):
    rnn, _, _ = problem
    told = []
    bptt.forward(rnn, np.zeros((0, 3)), progress=told.append)
    bptt.value_and_grad(rnn, np.zeros((0, 3)), np.zeros(0, int), progress=told.append)
    assert told == [1.0, 1.0]


def test_a_bar_is_drawn_on_standard_error(problem, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    bptt.value_and_grad(*problem, progress=True)
    drawn = capsys.readouterr()
    assert not drawn.out
    assert "100%" in drawn.err


def test_what_the_callable_raises_ends_the_call(problem):
    def stop(fraction):
        raise KeyError(fraction)

    with pytest.raises(KeyError):
        bptt.value_and_grad(*problem, progress=stop)


@pytest.mark.parametrize("wrong", [1, "bar", None])
def test_neither_a_flag_nor_a_callable(problem, wrong):
    with pytest.raises(TypeError, match="progress must be True, False or a callable"):
        bptt.value_and_grad(*problem, progress=wrong)


def test_ctrl_c_is_heard_and_leaves_nothing_behind():
    """The interrupt's own time, from the signal to the exception, is measured in the process that gets it."""
    program = """
        import os, signal, threading, time
        import numpy as np
        import bptt

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        rnn = bptt.RNN.random(8, 64, 8, dtype=np.float32)
        x = y = np.broadcast_to(np.int8(1), 100_000_000)
        bptt.value_and_grad(rnn, x[:10_000], y[:10_000])
        before, sent = resident(), []

        def interrupt():
            time.sleep(0.5)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        for memory in ("64 MB", "256 MB"):
            threading.Thread(target=interrupt).start()
            try:
                bptt.value_and_grad(rnn, x, y, memory=memory)
            except KeyboardInterrupt:
                print(time.perf_counter() - sent[-1], resident() - before)
        value, _ = bptt.value_and_grad(rnn, x[:1000], y[:1000])
        assert value > 0
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    reports = [tuple(map(float, line.split())) for line in run.stdout.splitlines()]
    assert len(reports) == 2
    for seconds, bytes_left in reports:
        assert seconds < 0.2
        assert bytes_left < 16e6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
