"""`check` agrees with what is right and finds what is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest

import bptt
from bptt import _levels, reference
from bptt.checking import DIFFERENCE_TOLERANCE, KERNEL_TOLERANCE
from support import LENGTHS, STATES, B, N, P, T, network, problem, targets

pytestmark = pytest.mark.usefixtures("level")

NAMES = ("h", "a", "E", "W_R", "W_I", "W_O", "b_R", "b_I", "b_O", "initial", "x")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", STATES)
@pytest.mark.parametrize(("output", "loss"), [("softmax", None), ("softmax", "squared_error"), ("linear", None)])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_right_gradient_passes(level, dtype, form, output, loss, lengths):
    rng, rnn, x, _ = problem(dtype=dtype, form=form, output=output)
    y, weights = targets(rng, rnn, (T, B), loss), rng.uniform(size=(T, B))
    initial = rng.standard_normal((B, N))
    report = bptt.check(rnn, x, y, loss=loss, weights=weights, lengths=lengths, initial=initial)
    assert report.passed, str(report)
    assert (report.level, report.dtype) == (level, dtype)
    assert tuple(comparison.name for comparison in report.comparisons) == NAMES
    for comparison in report.comparisons:
        assert comparison.kernel_tolerance == KERNEL_TOLERANCE[dtype]
        assert (comparison.difference is None) == (comparison.name in ("h", "a", "E"))
        assert comparison.norm > 0
        if comparison.difference is not None:
            assert comparison.difference_tolerance < 100 * DIFFERENCE_TOLERANCE


@pytest.mark.parametrize("case", ["tokens", "last", "unbatched", "no biases", "no time", "nothing read"])
def test_cases(case):
    rng, rnn, x, y = problem()
    arguments = {
        "tokens": lambda: (rnn, rng.integers(P, size=(T, B)), y),
        "last": lambda: (rnn, x, y[0]),
        "unbatched": lambda: (rnn, x[:, 0], y[:, 0]),
        "no biases": lambda: (rnn.replace(b_R=None, b_I=None, b_O=None), x, y),
        "no time": lambda: (rnn, x[:0], y[:0]),
        "nothing read": lambda: (rnn, np.where(np.arange(T)[:, None, None] < 3, x, np.nan), np.where(y < 3, y, 99)),
    }[case]()
    options = {"lengths": [3] * B, "weights": y < 3} if case == "nothing read" else {}
    report = bptt.check(*arguments, **options)
    assert report.passed, str(report)


def test_a_chaotic_network_passes():
    """Its gradient is 10^7 times its error, and the two programs' own runs part ways; on the same states they agree."""
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(3, 20, 4, gain=3.0)
    report = bptt.check(rnn, rng.standard_normal((80, 3)), rng.integers(4, size=80))
    assert report.passed, str(report)
    assert max(comparison.norm for comparison in report.comparisons) > 1e5


def test_a_saturated_relu_network_passes():
    rng = np.random.default_rng(0)
    rnn = network(8, 3, 4, activation="relu").replace(b_R=np.full(8, -100.0), b_I=None)
    report = bptt.check(rnn, rng.standard_normal((10, 3)), rng.integers(4, size=10))
    assert report.passed, str(report)
    assert next(comparison for comparison in report.comparisons if comparison.name == "W_R").norm == 0


@pytest.mark.parametrize("name", ["W_R", "W_I", "W_O", "b", "b_O"])
def test_a_wrong_kernel_is_found(monkeypatch, name):
    """One number of one gradient off by a thousandth."""
    _, rnn, x, y = problem()
    right = _levels.kernel()

    def backward(*args):
        result = right.backward(*args)
        getattr(args[12][0], name).flat[0] *= 1.001
        return result

    monkeypatch.setattr(_levels, "kernel", lambda: SimpleNamespace(**{**vars(right), "backward": backward}))
    report = bptt.check(rnn, x, y)
    wrong = {comparison.name for comparison in report.comparisons if not comparison.passed}
    assert wrong == ({"b_R", "b_I"} if name == "b" else {name})
    assert not report.passed
    assert "DISAGREE" in str(report)


def test_a_wrong_state_is_found(monkeypatch):
    _, rnn, x, y = problem()
    right = _levels.kernel()

    def forward(network, x, counts, a, h, threads):
        result = right.forward(network, x, counts, a, h, threads)
        a[-1, 0] += 1e-6
        return result

    monkeypatch.setattr(_levels, "kernel", lambda: SimpleNamespace(**{**vars(right), "forward": forward}))
    report = bptt.check(rnn, x, y)
    assert "a" in {comparison.name for comparison in report.comparisons if not comparison.passed}


def test_a_wrong_reference_is_found_by_the_differences(monkeypatch):
    _, rnn, x, y = problem()
    right = reference.backward

    def wrong(*args):
        gradients = right(*args)
        return gradients._replace(W_R=gradients.W_R * 1.001, x=-gradients.x)

    monkeypatch.setattr(reference, "backward", wrong)
    report = bptt.check(rnn, x, y)
    by_difference = {
        c.name for c in report.comparisons if c.difference is not None and c.difference > c.difference_tolerance
    }
    assert by_difference == {"W_R", "x"}
    assert not report.passed


def test_the_report_is_an_aligned_table():
    _, rnn, x, y = problem()
    title, head, *lines = str(bptt.check(rnn, x, y)).splitlines()
    assert title.endswith("in float64, reference and finite differences agree. Relative errors:")
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert {line.index("1.0e-12") for line in lines} == {head.index("allowed")}
    assert all(line.endswith(" ok") for line in lines)


def test_the_directions_are_those_of_the_seed():
    _, rnn, x, y = problem()
    assert bptt.check(rnn, x, y) == bptt.check(rnn, x, y, rng=np.random.default_rng(0))
    assert bptt.check(rnn, x, y) != bptt.check(rnn, x, y, rng=1)
