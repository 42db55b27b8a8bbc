"""The table of a `Flow`."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import TYPE_CHECKING

import numpy as np

from bptt._quantiles import median, quantiles
from bptt.certificates import Certificates

if TYPE_CHECKING:
    from bptt.flow import Flow

_LN10 = float(np.log(10.0))


def write(flow: Flow) -> str:
    """Verdict and horizon, norms and contributions by lag, Lyapunov exponents, and the bounds: for a terminal."""
    parts = [_summary(flow), _table(flow), _exponents(flow)]
    return "\n\n".join(parts if flow.certificates is None else [*parts, _bounds(flow.certificates)])


def _summary(flow: Flow) -> str:
    rate, error = flow.exponents[0].round(12), flow.standard_errors[0].round(12)
    if np.isneginf(rate):
        pace = "-inf: there is a step at which all directions die"
    elif flow.verdict == "marginal":
        pace = f"{rate:+.3g} ± {error:.1g} per step, no more than twice its error, or a factor e over the lags"
        if flow.certificates is not None and (flow._ends or flow.certificates.explodes):
            pace += f"; that it {'decays' if flow._ends else 'grows'} in the end is proved"
    else:
        pace = f"{rate:+.3g} ± {error:.1g} per step, a factor e every {1 / abs(rate):.3g} steps"
        if rate > 0 and flow._ends:
            pace += ", until the decay that is proved"
    largest = flow.by_sequence[:, 0].round(12) + 0.0
    if largest.min() < largest.max():
        pace += f"; {largest.min():+.3g} to {largest.max():+.3g} in {len(largest)} sequences"
    whose = "the error's" if flow.of_error else "the state's"
    if not np.isfinite(flow.contributions).any():
        reach = "none: all contributions are zero"
    elif flow._reaches_on:
        reach = f"beyond the {flow._max_lag} lags looked at" if flow._max_lag > 1 else "beyond the lag looked at"
    elif not np.isfinite(flow.contributions[:, flow.horizon + 1 :]).any():
        reach = f"{in_steps(flow.horizon)}: farther back there are no contributions"
    else:
        reach = f"{in_steps(flow.horizon)}: farther back are contributions under {flow.fraction:.3g} of the largest"
    facts = f"Verdict           {flow.verdict}\nLargest exponent  {pace}\nHorizon           {reach}"
    return f"{facts} (to {whose} gradient)"


def _table(flow: Flow) -> str:
    lags = [lag for lag in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if lag < flow._max_lag] + [flow._max_lag]
    columns = [*quantiles(flow.norms), median(flow._relative())]
    of = "one sequence" if len(flow.by_sequence) == 1 else f"{len(flow.by_sequence)} sequences"
    head = f"Median and range over {in_steps(len(flow.stops))} t of {of}"
    lines = [head, "  lag     ‖∂h_t/∂h_k‖      least       most   contribution / largest"]
    for lag in lags:
        middle, low, high, share = (scientific(column[lag]) for column in columns)
        lines.append(f"{lag:5}   {middle:>13} {low:>10} {high:>10}   {share:>22}")
    return "\n".join(lines)


def _exponents(flow: Flow) -> str:
    shown = min(len(flow.exponents), 8)
    pairs = zip(flow.exponents[:shown], flow.standard_errors[:shown], strict=True)
    numbers = "  ".join(_rate(rate.round(12) + 0.0, error) for rate, error in pairs)
    return f"Lyapunov exponents (the largest {shown} of {len(flow.exponents)} computed)\n  {numbers}"


def _bounds(c: Certificates) -> str:
    proved = ": vanishing is proved" if c.vanishes else ": exploding is proved" if c.explodes else ""
    lines = [
        f"Bounds for all inputs with slopes in the range seen, Δ <= |σ'| <= Γ{proved}",
        "  scaled by a diagonal S: cond(S) · η^lag from above, η^lag / cond(S) from below",
    ]
    for name, sign, bound in (
        ("‖W_R Γ‖", "<=", c.norm),
        ("ρ(|W_R| Γ)", "<=", c.absolute),
        ("‖S W_R Γ S⁻¹‖", "<=", c.scaled),
        ("σ_min(W_R Δ)", ">=", c.expanding),
        ("σ_min(S W_R Δ S⁻¹)", ">=", c.expanding_scaled),
    ):
        away = ROUND_CEILING if sign == "<=" else ROUND_FLOOR  # what is printed is a bound too
        rate = _rounded(bound.rate, 4, away)
        if rate == "1" and bound.rate != 1:
            rate = _rounded(bound.rate, 10, away)
        if np.isinf(bound.constant):
            power = f"C(r) · r^lag for every r > {rate}"
        else:
            power = f"{_rounded(bound.constant, 3, away)} · {rate}^lag"
        lines.append(f"  {name:19} ‖∂h_t/∂h_k‖ {sign} {power}")
    return "\n".join(lines)


def _rounded(number: float, digits: int, rounding: str) -> str:
    beyond_noise = f"{number:.12g}"
    return f"{float(Context(digits, rounding).create_decimal(beyond_noise)):.{digits}g}"


def _rate(rate: float, error: float) -> str:
    if np.isneginf(rate):
        return "-inf"
    return f"{rate:+.4f} ± {error:.4f}" if abs(rate) < 1e6 else f"{rate:+.4g} ± {error:.2g}"


def in_steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def scientific(log: float) -> str:
    """exp(log) as 1.2e-34, however large or small; of no number a dash."""
    if np.isnan(log):
        return "-"
    if not np.isfinite(log):
        return "0" if log < 0 else str(log)
    exponent, fraction = divmod(log / _LN10, 1)
    digits = 10**fraction
    if round(digits, 1) >= 10:
        digits, exponent = 1.0, exponent + 1
    return f"{digits:.1f}e{int(exponent):+03d}"
