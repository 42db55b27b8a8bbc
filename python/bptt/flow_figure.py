"""The figure of a `Flow`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bptt._kernel import Array
from bptt._quantiles import quantiles
from bptt.flow_table import in_steps
from bptt.plotting import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from bptt.certificates import Bound, Certificates
    from bptt.flow import Flow

#: Decades of the heat map, below the largest contribution of each row.
_DECADES = 6

#: Decades beyond the median that the range may take of the axis, or twice its own.
_OUTSIDE = 10

_LN10 = float(np.log(10.0))


def draw(flow: Flow) -> Figure:
    """Norms and bounds against the lag, contributions against t and lag, and the Lyapunov exponents: for a slide."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1, wspace=0.03, hspace=0.06)
    figure = Figure(figsize=(12.8, 7.2), dpi=150, layout=layout)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1), height_ratios=(1.2, 1))
    figure.suptitle(_title(flow), x=0.02, ha="left", fontsize=19, fontweight="bold")
    _norms(figure.add_subplot(grid[:, 0]), flow)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=10.5)  # beside the curves, not on them
    _contributions(figure.add_subplot(grid[0, 1]), flow)
    _exponents(figure.add_subplot(grid[1, 1]), flow)
    return figure


def _title(flow: Flow) -> str:
    verdict = flow.verdict.capitalize()
    if not np.isfinite(flow.contributions).any():
        return f"{verdict}: all contributions are zero"
    beyond = "more than " if flow._reaches_on else ""
    return f"{verdict}: the gradient reaches back {beyond}{in_steps(flow.horizon)}"


def _norms(axes: Axes, flow: Flow) -> None:
    lags = np.arange(flow.norms.shape[1])
    middle, low, high = (_shown(curve) for curve in quantiles(flow.norms))
    known = np.flatnonzero(np.isfinite(middle))
    bottom, top = np.nanmin(middle), np.nanmax(middle)
    outside = max(2 * (top - bottom), _OUTSIDE)
    bottom, top = max(np.nanmin(low), bottom - outside), min(np.nanmax(high), top + outside)
    margin = max(0.5, (2 - (top - bottom)) / 2, 0.12 * (top - bottom))  # two decades at least
    bottom, top = bottom - margin, top + margin
    low = np.where(np.isnan(low), bottom, low)  # of zeros
    alive = np.flatnonzero(np.isfinite(high))[-1]  # zeros fill half of the axis at most
    right = max(min(lags[-1], max(2 * alive, 10)), 1)
    axes.fill_between(lags, low, high, color=COLORS[0], alpha=0.15, linewidth=0, label="range over $t$")
    axes.plot(
        lags,
        middle,
        color=COLORS[0],
        linewidth=2.5,
        marker="o" if known.size < 10 else None,
        label=r"$\Vert\partial h_t/\partial h_k\Vert$, median",
    )
    if known.size and known[-1] < lags[-1]:
        ended = "zero" if np.isnan(high[known[-1] + 1 :]).all() else "median zero"
        place = min((known[-1] + 1 + right) / (2 * right), 0.8)
        axes.text(
            place, 0.5, f"{ended} from lag {known[-1] + 1} on", transform=axes.transAxes, ha="center", fontsize=12
        )

    rate = flow.exponents[0]
    if np.isfinite(rate) and known.size:
        at = known[len(known) // 2]
        axes.plot(
            lags,
            middle[at] + rate / _LN10 * (lags - at),
            color=COLORS[1],
            linewidth=1.5,
            linestyle=(0, (1, 1.5)),
            label=rf"largest Lyapunov exponent, $\lambda_1 = {rate:.3f}$",
        )
    for bound, color, label in () if flow.certificates is None else _bounds(flow.certificates):
        curve = bound.log_at(lags) / _LN10
        least, most = np.minimum(curve[:-1], curve[1:]), np.maximum(curve[:-1], curve[1:])
        seen = np.isfinite(least) & np.isfinite(most) & (most > bottom) & (least < top)
        if bound.rate == 0:
            continue
        if np.count_nonzero(seen) <= known.size / 20:
            label += ", soon out of sight" if seen.any() else ", out of sight"
        axes.plot(lags, curve, color=color, linewidth=1.8, linestyle=(0, (5, 2)), label=label)
    if np.isfinite(flow.contributions).any():
        label = f"horizon {'>' if flow._reaches_on else '='} {flow.horizon}"
        axes.axvline(flow.horizon, color="0.3", linewidth=1, label=label)
    axes.set_xlim(0, right)
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_formatter(_power)
    axes.yaxis.set_major_locator(_whole())
    axes.xaxis.set_major_locator(_whole())
    axes.set_xlabel("lag $t-k$", fontsize=12)
    axes.set_title("How a change at step $k$ arrives at step $t$", loc="left", fontsize=12)
    _plain(axes)


def _bounds(certificates: Certificates) -> Iterator[tuple[Bound, str, str]]:
    yield certificates.norm, "0.55", r"at most $\Vert W_R\Gamma\Vert^{\,lag}$"
    if certificates.scaled.scale is not None:  # else it is the first
        yield certificates.scaled, COLORS[2], r"at most cond$(S)\,\Vert SW_R\Gamma S^{-1}\Vert^{\,lag}$"
    label = r"at least $\sigma_{\min}(SW_R\Delta S^{-1})^{\,lag}/$cond$(S)$"
    yield certificates.expanding_scaled, COLORS[3], label


def _contributions(axes: Axes, flow: Flow) -> None:
    nothing = not np.isfinite(flow.contributions).any()
    rows = np.arange(len(flow.contributions)) if nothing else np.flatnonzero(~np.isnan(flow.contributions).all(axis=1))
    shares = flow._relative()[rows] / _LN10
    bright = np.flatnonzero((shares > -_DECADES).any(axis=0))
    shares = shares[:, : max(10, int(1.1 * bright.max(initial=0)) + 1)]
    edges, lags = np.arange(len(shares) + 1), np.arange(shares.shape[1] + 1) - 0.5
    image = axes.pcolormesh(
        lags, edges, np.ma.masked_invalid(np.maximum(shares, -_DECADES)), cmap="magma", vmin=-_DECADES, vmax=0
    )
    axes.set_facecolor("0.93")
    if nothing:
        image.set_visible(False)
        axes.text(0.5, 0.5, "all contributions are zero", transform=axes.transAxes, ha="center", fontsize=12)
    t, b = flow.stops[rows], flow.sequences[rows]
    axes.set_yticks(*_ticks(t, b))
    axes.xaxis.set_major_locator(_whole())
    axes.set_ylabel("step $t$" if b[0] == b[-1] else "sequence, its steps upwards", fontsize=11)
    left_out = len(flow.contributions) - len(rows)
    note = f"   ({in_steps(left_out)} $t$ without an error left out)" if left_out else ""
    axes.set_xlabel(f"lag $t-k${note}", fontsize=11)
    if flow.certificates is None:
        title = "How much of the error's pull at step $t$" if flow.of_error else "How much of a change at step $t$"
        axes.set_title(f"{title} comes from step $k$", loc="left", fontsize=12)
    else:
        whose = r"\partial(w_tE_t)" if flow.of_error else r"\partial h_t"
        axes.set_title(rf"What step $k$ contributes to ${whose}/\partial W_R$", loc="left", fontsize=12)
    bar = axes.figure.colorbar(image, ax=axes, format=_power, pad=0.02)
    bar.set_label("share of the largest", fontsize=10)
    bar.outline.set_visible(False)
    axes.tick_params(color="0.5")


def _ticks(t: Array, b: Array) -> tuple[Array, list[str]]:
    """Some places on the axis of rows, steps t of sequences b, and what to write there."""
    if b[0] == b[-1]:
        rows = np.unique(np.linspace(0, len(t) - 1, 6).astype(int))
        return rows + 0.5, [str(step) for step in t[rows]]
    starts = np.flatnonzero(np.diff(b, prepend=-1))
    sizes = np.diff(starts, append=len(b))
    some: list[int] = []
    for start in starts[np.argsort(-sizes, kind="stable")].tolist():
        if all(abs(start - other) >= len(t) / 8 for other in some):  # else one would lie on the other
            some.append(start)
    return np.array(some), [str(sequence) for sequence in b[some]]


def _exponents(axes: Axes, flow: Flow) -> None:
    numbers = np.arange(1, len(flow.exponents) + 1)
    alive = np.isfinite(flow.exponents)
    axes.axhline(0, color="0.3", linewidth=1)
    grows = flow.exponents > 1e-12  # beyond rounding
    for which, color in ((~grows, COLORS[0]), (grows, COLORS[1])):
        some = alive & which
        errors = np.nan_to_num(2 * flow.standard_errors[some])
        axes.errorbar(
            numbers[some], flow.exponents[some], errors, color=color, fmt="o", markersize=4, elinewidth=1.2, capsize=0
        )
    if not alive.any():
        axes.text(0.5, 0.6, "all directions die", transform=axes.transAxes, ha="center", fontsize=12)
    axes.set_xlim(0.2, max(numbers[alive].max(initial=1), 4) + 0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.01), max(high, 0.01))
    axes.xaxis.set_major_locator(_whole())
    axes.set_xlabel("$i$", fontsize=11)
    axes.set_ylabel(r"$\lambda_i$ per step", fontsize=11)
    dead = f"; {np.count_nonzero(~alive)} of {len(alive)} are $-\\infty$" if not alive.all() else ""
    axes.set_title(f"Lyapunov exponents ± 2 standard errors{dead}", loc="left", fontsize=12)
    _plain(axes)


def _shown(logs: Array) -> Array:
    """Decades; nan, where a line ends, for an exact zero."""
    return np.where(np.isfinite(logs), logs, np.nan) / _LN10


def _whole() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True)


def _power(value: float, position: Any = None) -> str:
    return f"$10^{{{value:g}}}$" if value == round(value) else f"{10**value:.2g}"


def _plain(axes: Axes) -> None:
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color="0.5")
