"""What the commands print: facts for people or as JSON, a progress bar, a small plot.

Facts go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

if TYPE_CHECKING:
    from bptt.train import Progress

#: The option of every command that prints facts.
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON, and nothing else.")]

#: Seconds between two lines of progress where no bar can be drawn.
LINE_SECONDS = 10.0


def require_writable(directory: Path) -> None:
    """Fail now rather than after the work: OSError if no file can be made in the directory."""
    try:
        # An attempt, because permission bits do not tell (read-only file systems, the superuser).
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write here: {error.strerror}", str(directory)) from error


def print_json(facts: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that are not finite, which JSON lacks, become null."""
    print(json.dumps(_plain(facts), indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def watch(run: Generator[Progress]) -> Generator[Progress]:
    """The same facts, shown as they pass: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    smoothed = _smoothed(run)
    return _bar(smoothed, console) if console.is_terminal else _lines(smoothed)


def _smoothed(run: Iterator[Progress]) -> Iterator[tuple[Progress, float]]:
    """With each update the bits per character of the last hundred or so."""
    bits = None
    for facts in run:
        bits = facts.bits_per_character if bits is None else bits + 0.02 * (facts.bits_per_character - bits)
        yield facts, bits


def _describe(facts: Progress, bits: float) -> str:
    return (
        f"{bits:.3f} bits/char  {facts.characters_per_second / 1e3:,.0f}k char/s  "
        f"|grad| {facts.gradient_norm:.3f}  epoch {facts.epochs:.1f}"
    )


def _lines(run: Iterator[tuple[Progress, float]]) -> Generator[Progress]:
    due = LINE_SECONDS
    for facts, bits in run:
        if facts.seconds >= due:
            print(f"{facts.fraction:4.0%}  {_describe(facts, bits)}", file=sys.stderr, flush=True)
            due = facts.seconds + LINE_SECONDS
        yield facts


def _bar(run: Iterator[tuple[Progress, float]], console: Any) -> Generator[Progress]:
    from rich import progress

    columns = (
        progress.BarColumn(bar_width=None),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeRemainingColumn(compact=True),
    )
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task, begun = bar.add_task("", total=1.0), None
        for facts, bits in run:
            if begun is None:  # a resumed run is in the middle already
                begun = facts.fraction
                bar.reset(task, total=1.0 - begun)
            bar.update(task, completed=facts.fraction - begun, description=_describe(facts, bits))
            yield facts


def log_plot(curves: Mapping[str, Any], *, width: int = 61, height: int = 14) -> str:
    """Curves over 0, 1, 2, … on a logarithmic axis, each drawn with the first character of its label.

    Parameters
    ----------
    curves : mapping of str to array of shape (K + 1,)
        What is not positive is not drawn.
    width, height : int
        Of the plotting area, in characters; the height is a limit.

    Returns
    -------
    str
        Lines, without a line end after the last.

    Examples
    --------
    >>> print(log_plot({"slow": [1, 0.1, 0.01], "fast": [1, 0.01, 0.0001]}, width=9, height=5))
      1e+00 |f
      1e-01 |    s
      1e-02 |    f   s
      1e-03 |
      1e-04 |        f
            +---------
             0       2
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {label: np.log10(np.asarray(curve, dtype=np.float64)) for label, curve in curves.items()}
    drawn = np.concatenate([log[np.isfinite(log)] for log in logs.values()])
    if not drawn.size:
        return "(nothing positive to draw)"
    # Every decade has the same whole number of rows, or every row the same whole number of decades.
    high = math.ceil(drawn.max())
    decades = max(1, high - math.floor(drawn.min()))
    decades_a_row = -(-decades // (height - 1))
    rows_a_decade = max(1, (height - 1) // decades)
    rows = -(-decades // decades_a_row) * rows_a_decade + 1
    last = max(1, *(len(log) - 1 for log in logs.values()))
    canvas = np.full((rows, width), " ")
    for label, log in logs.items():
        columns, lags = np.unique(np.round(np.arange(len(log)) * (width - 1) / last).astype(int), return_index=True)
        seen = np.isfinite(log[lags])
        depths = (high - log[lags][seen]) * rows_a_decade / decades_a_row
        canvas[np.round(depths).astype(int), columns[seen]] = label[0]
    lines = []
    for row, marks in enumerate(canvas):
        decade, between = divmod(row, rows_a_decade)
        tick = "" if between else f"1e{high - decade * decades_a_row:+03d}"
        lines.append(f"{tick:>7} |{''.join(marks)}".rstrip())
    lines.append(" " * 8 + "+" + "-" * width)
    lines.append(" " * 9 + "0" + str(last).rjust(width - 1))
    return "\n".join(lines)
