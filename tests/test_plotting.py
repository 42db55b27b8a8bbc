"""Figures show what they were given, need no display, and leave pyplot's state alone."""

import subprocess
import sys

import numpy as np
import pytest

from bptt.plotting import COLORS, gradient_decay


def test_gradient_decay_draws_median_and_band_of_every_curve(tmp_path) -> None:
    lags = np.arange(40)[:, None]
    norms = {"a": np.exp(-0.1 * lags + np.linspace(-1, 1, 11)), "b": np.exp(-0.5 * lags + np.zeros(4))}
    figure = gradient_decay(norms, title="Title")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert axes.get_title(loc="left") == "Title"
    assert "lag" in axes.get_xlabel() and "dh_{T-k}" in axes.get_ylabel()
    for line, (label, curves) in zip(axes.lines, norms.items(), strict=True):
        assert line.get_label() == label
        np.testing.assert_array_equal(line.get_ydata(), np.median(curves, axis=1))
    low, high = (np.percentile(norms["a"], q, axis=1) for q in (10, 90))
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == low.min() and corners[:, 1].max() == high.max()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_gradient_decay_draws_what_is_positive_of_a_curve_that_dies(tmp_path) -> None:
    curves = np.exp(-np.arange(10.0))[:, None] * np.ones(3)
    curves[5:] = 0
    gradient_decay({"relu": curves}).savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ({}, r"norms must hold 1\.\.6 curves; got 0"),
        ({str(i): np.ones((2, 2)) for i in range(len(COLORS) + 1)}, "got 7"),
        ({"a": np.ones(5)}, r"norms\['a'\] must have shape \(K \+ 1, S\), K >= 0, S >= 1; got \(5,\)"),
        ({"a": np.ones((0, 5))}, r"got \(0, 5\)"),
        ({"a": np.zeros((4, 2))}, "no norm is positive"),
    ],
)
def test_gradient_decay_says_what_is_wrong(norms: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_decay(norms)


def test_plotting_imports_matplotlib_only_when_used_and_pyplot_never() -> None:
    code = (
        "import sys, numpy, bptt.plotting; assert 'matplotlib' not in sys.modules; "
        "bptt.plotting.gradient_decay({'a': numpy.ones((3, 2))}); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
