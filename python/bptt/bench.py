"""``value_and_grad`` timed beside PyTorch and JAX, against the ceiling of the machine, all in one run.

Absolute times move from machine to machine and from minute to minute; ratios measured side by side are what counts. So
the contenders take turns, each result is compared before any is timed, and the ceilings are measured in that process.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bptt import _ceiling, _levels, _peers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: T for each n: long enough that what a call costs beside its steps does not count.
STEPS = {16: 2000, 64: 2000, 128: 1000, 256: 1000, 512: 500, 1024: 200}
BATCHES = (1, 8, 32, 128)
DTYPES = ("float32", "float64")

#: Largest relative difference (Frobenius) of the value and of any gradient between two contenders. Each sums T B terms
#: of products n long in an order of its own: some dozen eps in practice, some hundred as the bound.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}

_REST = 0.05  # seconds after which the thread pools of the contender before have gone to sleep
_BURST = 0.05  # seconds of calls in a row
_ROUNDS = 3


class Cell(NamedTuple):
    """Size of one measurement: hidden units, sequences, precision, steps."""

    n: int
    B: int
    dtype: str
    T: int


GRID = tuple(Cell(n, B, dtype, T) for dtype in DTYPES for n, T in STEPS.items() for B in BATCHES)
QUICK = tuple(cell for cell in GRID if cell.n <= 256 and cell.n != 128 and cell.B in (1, 32))


@dataclass(frozen=True)
class Timing:
    """One cell, measured.

    Attributes
    ----------
    cell : Cell
    seconds : dict of str to float
        Best time of a step, by contender.
    matrix_product : float
        Flop a second of a large matrix product, which takes its turns among the contenders.
    floor : float
        Seconds that a step takes at the least: the larger of 6 n² B flop (2 forward, 2 for delta, 2 for dE/dW_R) at the
        rate of that product, and the bytes of W_R and of its transpose at the bandwidth of the cache that holds them.
    limit : {"matrix product", "cache"}
        Which of the two is the larger.
    differences : dict of str to float
        To each peer's result, as `difference` says.
    """

    cell: Cell
    seconds: dict[str, float]
    matrix_product: float
    floor: float
    limit: str
    differences: dict[str, float]

    @property
    def ratio(self) -> float:
        """Time of the faster peer over bptt's; nan without a peer."""
        peers = [seconds for name, seconds in self.seconds.items() if name != "bptt"]
        return min(peers, default=math.nan) / self.seconds["bptt"]

    @property
    def share(self) -> float:
        """Part of the ceiling that is reached, 0..1."""
        return self.floor / self.seconds["bptt"]

    def __str__(self) -> str:
        times = "".join(f"{self.seconds.get(name, math.nan) * 1e6:10.2f}" for name in _peers.CONTENDERS)
        ratio = f"{self.ratio:8.2f}x" if len(self.seconds) > 1 else "        -"
        return f"{self.cell.n:5d} {self.cell.B:4d}  {self.cell.dtype}{times}{ratio}{self.share:8.0%}  {self.limit}"


@dataclass(frozen=True)
class Report:
    """A run of the benchmark: `print` it, or take it as JSON (`to_dict`) or as a figure (`plot`).

    Attributes
    ----------
    info : dict
        What ran, and on what processor (`bptt.info`).
    versions : dict of str to str
        Of the peers.
    notes : tuple of str
        What a reader of the numbers must know: a peer that is missing, a setting that slows one.
    matrix_product : dict of str to dict of str to float
        Flop a second before the cells are timed, by dtype and number of threads.
    read : dict of str to float
        Bytes a second of all threads together, by the size of what they read together.
    timings : tuple of Timing
    """

    info: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...]
    matrix_product: dict[str, dict[str, float]]
    read: dict[str, float]
    timings: tuple[Timing, ...]

    def geometric_mean(self, dtype: str) -> float:
        """Of the ratios to the faster peer over the cells of that dtype; nan without a peer."""
        logs = [math.log(timing.ratio) for timing in self.timings if timing.cell.dtype == dtype]
        return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; nan becomes None."""
        timings = [
            asdict(timing) | {"cell": timing.cell._asdict(), "ratio": _finite(timing.ratio), "share": timing.share}
            for timing in self.timings
        ]
        means = {dtype: _finite(self.geometric_mean(dtype)) for dtype in DTYPES}
        return asdict(self) | {"notes": list(self.notes), "timings": timings, "geometric_mean": means}

    def __str__(self) -> str:
        lines = [HEADER, *map(str, self.timings), ""]
        for dtype in DTYPES:
            if math.isfinite(mean := self.geometric_mean(dtype)):
                lines.append(f"{dtype}: {mean:.2f} times as fast as the faster peer (geometric mean)")
        for dtype, rates in self.matrix_product.items():
            of = ", ".join(f"{rate / 1e9:.0f} on {threads}" for threads, rate in rates.items())
            lines.append(f"matrix product, {dtype}: {of} thread(s), Gflop/s")
        of = ", ".join(f"{rate / 1e9:.0f} from {int(size) / 2**10:.0f} KiB" for size, rate in self.read.items())
        lines.append(f"reading: {of}, GB/s")
        return "\n".join([*lines, *self.notes])

    def plot(self) -> Figure:
        """Heat maps over n and B: the ratio to the faster peer, and the share of the ceiling."""
        from matplotlib.figure import Figure

        dtypes = [dtype for dtype in DTYPES if any(timing.cell.dtype == dtype for timing in self.timings)]
        figure = Figure(figsize=(9, 1 + 4 * len(dtypes)), dpi=160, layout="constrained")
        for (left, right), dtype in zip(figure.subplots(len(dtypes), 2, squeeze=False), dtypes):
            cells = {(t.cell.n, t.cell.B): t for t in self.timings if t.cell.dtype == dtype}
            ratios = {key: (math.log2(t.ratio), f"{t.ratio:.1f}") for key, t in cells.items()}
            shares = {key: (t.share, f"{t.share:.0%}") for key, t in cells.items()}
            _heat_map(left, ratios, "PuOr", -3.0, 3.0, f"{dtype}: times as fast as the faster peer")
            _heat_map(right, shares, "Purples", 0.0, 1.0, f"{dtype}: share of the machine's ceiling")
        return figure


HEADER = f"{'n':>5} {'B':>4}  {'us/step':7}{'bptt':>10}{'torch':>10}{'jax':>10}{'ratio':>9}{'ceiling':>8}  limit"


def difference(cell: Cell, name: str, ours: _peers.Result, theirs: _peers.Result) -> float:
    """Largest relative difference between two results, of the value and of any gradient.

    Raises
    ------
    ArithmeticError
        It is above `TOLERANCE`, so that one of the two is wrong.
    """
    parts = {of: _relative(theirs.gradients[of], ours.gradients[of]) for of in ours.gradients}
    parts["value"] = _relative(theirs.value, ours.value)
    worst = max(parts, key=parts.__getitem__)
    if not parts[worst] <= TOLERANCE[cell.dtype]:
        raise ArithmeticError(
            f"{cell}: bptt and {name} differ in {worst} by {parts[worst]:.1e}, relative; "
            f"at most {TOLERANCE[cell.dtype]:.0e} is rounding"
        )
    return parts[worst]


def run(
    cells: Iterable[Cell] = GRID,
    *,
    seconds: float = 4.0,
    threads: int | None = None,
    on_timing: Callable[[Timing], None] | None = None,
) -> Report:
    """Time every cell.

    Parameters
    ----------
    cells : iterable of Cell
        `GRID` (some 10 minutes on two processors) or `QUICK` (under one).
    seconds : float
        Spent on a cell's timing at the least; every contender has three turns in any case.
    threads : int, optional
        As everywhere. JAX always uses every processor that the process may run on.
    on_timing : callable, optional
        Is called with each `Timing` as it is made.

    Raises
    ------
    ArithmeticError
        Two contenders do not agree: nothing slower than a right answer is worth timing.
    ImportError
        The level in use is the reference.

    Examples
    --------
    >>> from bptt import bench
    >>> report = bench.run([bench.Cell(n=8, B=2, dtype="float64", T=20)], seconds=0.1)
    >>> report.timings[0].share > 0
    True
    """
    info = _levels.info()
    if info["level"] == _levels.REFERENCE:
        raise ImportError("the benchmark is of a compiled level; BPTT_LEVEL=reference has none")
    team = _levels.resolve_threads(threads)
    cells = tuple(cells)
    versions, notes = _peers_at_hand()
    if "OPENBLAS_CORETYPE" in os.environ:
        notes.append(
            "OPENBLAS_CORETYPE is set: NumPy's matrix product, and with it the ceiling, may be below the machine's"
        )

    rates = {
        dtype: {str(count): _ceiling.matrix_product(dtype, count) for count in sorted({1, team})}
        for dtype in sorted({cell.dtype for cell in cells})
    }
    sizes = sorted({_bytes(cell) for cell in cells})
    read = {str(size): _ceiling.read(size, team) for size in sizes}

    products = {dtype: _ceiling.matrix_products(dtype, team) for dtype in rates}
    timings = []
    for cell in cells:
        work = _peers.work(cell.T, cell.B, cell.n, cell.dtype)
        contenders = {name: _peers.CONTENDERS[name](work, team) for name in ("bptt", *versions)}
        results = {name: contender.read(contender.run()) for name, contender in contenders.items()}
        differences = {name: difference(cell, name, results["bptt"], results[name]) for name in versions}
        runs = {name: contender.run for name, contender in contenders.items()}
        product_flop, of_libraries = products[cell.dtype]
        ceilings = {f"matrix product {i}": product for i, product in enumerate(of_libraries)}
        best = _alternate({**runs, **ceilings}, seconds)
        rate = product_flop / min(best.pop(name) for name in ceilings)
        flop, moved = 6 * cell.n**2 * cell.B, 2 * _bytes(cell)
        floors = {"matrix product": flop / rate, "cache": moved / read[str(_bytes(cell))]}
        limit = max(floors, key=floors.__getitem__)
        times = {name: s / cell.T for name, s in best.items()}
        timing = Timing(cell, times, rate, floors[limit], limit, differences)
        timings.append(timing)
        if on_timing:
            on_timing(timing)
    return Report(info | {"threads": team}, versions, tuple(notes), rates, read, tuple(timings))


def _peers_at_hand() -> tuple[dict[str, str], list[str]]:
    """Versions of the peers that can be imported, and a note for each that cannot."""
    versions, notes = {}, []
    for name in _peers.CONTENDERS:
        if name != "bptt":
            try:
                versions[name] = str(importlib.import_module(name).__version__)
            except ImportError as error:
                notes.append(f"{name} is not compared with: {error}")
    return versions, notes


def _alternate(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Best time of one call of each, in turns."""
    best = dict.fromkeys(runs, math.inf)
    begun, rounds = time.perf_counter(), 0
    while rounds < _ROUNDS or time.perf_counter() - begun < seconds:
        rounds += 1
        for name, run in runs.items():
            time.sleep(_REST)
            burst = time.perf_counter()
            while (start := time.perf_counter()) - burst < _BURST:
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _heat_map(
    axes: Axes, cells: dict[tuple[int, int], tuple[float, str]], colors: str, low: float, high: float, title: str
) -> None:
    """Of cells (n, B), each a number for its colour and a text."""
    sizes, batches = sorted({n for n, _ in cells}), sorted({B for _, B in cells})
    grid = np.full((len(sizes), len(batches)), math.nan)
    for (n, B), (number, text) in cells.items():
        i, j = sizes.index(n), batches.index(B)
        grid[i, j] = number
        color = "w" if abs(number) > 0.6 * high else "k"
        axes.text(j, i, text, ha="center", va="center", color=color)
    axes.imshow(grid, cmap=colors, vmin=low, vmax=high, aspect="auto", origin="lower")
    axes.set_xticks(range(len(batches)), [str(B) for B in batches])
    axes.set_yticks(range(len(sizes)), [str(n) for n in sizes])
    axes.set_xlabel("sequences B")
    axes.set_ylabel("hidden units n")
    axes.set_title(title, loc="left", fontsize=11)


def _relative(a: Any, b: Any) -> float:
    return float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / np.linalg.norm(b))


def _bytes(cell: Cell) -> int:
    return cell.n**2 * np.dtype(cell.dtype).itemsize


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
