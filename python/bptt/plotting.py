"""Figures. matplotlib is imported when a figure is made, and pyplot's global state is left alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bptt._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by every eye.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def gradient_decay(norms: Mapping[str, npt.NDArray[Any]], *, title: str = "") -> Figure:
    """‖dE_T/dh_{T-k}‖ against the lag k: the median over sequences as a line, the middle 80 % as a band.

    Parameters
    ----------
    norms : mapping of str to array of shape (K + 1, S)
        For each label the norms at lags 0..K of S sequences, not negative. An exact zero counts among the sequences,
        but a line or a band that falls to zero ends there: a logarithmic axis has no place for it.
    title : str
        Above the axes.

    Returns
    -------
    matplotlib.figure.Figure
        To show in a notebook, or to save: ``figure.savefig("decay.png")``.

    Raises
    ------
    ValueError
        norms is empty or holds more curves than there are colours, an array is not of shape (K + 1, S), or no norm is
        positive.

    Examples
    --------
    >>> figure = gradient_decay({"tanh": 0.9 ** np.arange(50)[:, None] * np.ones(3)})
    >>> figure.axes[0].get_yscale()
    'log'
    """
    if not 1 <= len(norms) <= len(COLORS):
        raise ValueError(f"norms must hold 1..{len(COLORS)} curves; got {len(norms)}")
    for label, curves in norms.items():
        if np.ndim(curves) != 2 or 0 in np.shape(curves):
            raise ValueError(f"norms[{label!r}] must have shape (K + 1, S), K >= 0, S >= 1; got {np.shape(curves)}")
    if not any(np.any(np.asarray(curves) > 0) for curves in norms.values()):
        raise ValueError("norms has nothing that a logarithmic axis could show: no norm is positive")

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    axes = figure.subplots()
    for color, (label, curves) in zip(COLORS, norms.items()):
        lags = np.arange(len(curves))
        low, median, high = np.percentile(curves, (10, 50, 90), axis=1)
        axes.fill_between(lags, low, high, color=color, alpha=0.16, linewidth=0)
        axes.plot(lags, median, color=color, linewidth=2, label=label, solid_capstyle="round")
    axes.set_yscale("log", nonpositive="mask")
    axes.set_xlim(0, max(1, *(len(curves) - 1 for curves in norms.values())))
    axes.set_xlabel("lag $k$ (steps back from the error)", fontsize=11)
    axes.set_ylabel(r"$\Vert\, dE_T / dh_{T-k} \Vert_2$", fontsize=12)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", color="0.5")
    axes.legend(frameon=False, title="median and middle 80 % of sequences", alignment="left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the kind of file that the path's suffix names, whole or not at all (`write_atomically`)."""
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:])
    write_atomically(path, data.getvalue())
