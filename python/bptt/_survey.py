"""What a `Flow` is made of, gathered sequence by sequence and pooled: norms, contributions and Lyapunov exponents."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from bptt._bundles import steps as steps_of
from bptt._kernel import Array
from bptt._progress import Progress, Tick, meter, part
from bptt._quantiles import median
from bptt._validate import integer, proper_fraction
from bptt.chain import chain_norms
from bptt.lyapunov import Lyapunov, lyapunov_spectrum

#: By default: the largest lag; the stops of all sequences together, the fewest and most of each, and the
#: multiply-adds they may cost; the exponents.
_MAX_LAG = 200
_STOPS, _STOPS_OF_EACH, _MULTIPLY_ADDS = 256, (8, 64), 1e11
_EXPONENTS = 64

#: Progress through a stage of the work on a sequence is told in so many parts.
STAGE = 1000

#: Of a normal distribution: the standard error of its median by its median absolute deviation, for one sample, and what
#: that falls short of in few samples (Croux and Rousseeuw 1992).
_ERROR_OF_MEDIAN, _SHORT_OF = 1.4826 * np.sqrt(np.pi / 2), 0.8

#: Of the steps of a sequence, those in which the directions of its Lyapunov exponents align.
_WARM_UP = 0.1


class Survey:
    """The results for some sequences of so many steps each, one after another.

    It checks the options of `gradient_flow` that are for every cell. ``name`` is the argument that has the sequences.

    Attributes
    ----------
    sequences : integer array
        Those looked at: of at least 3 steps, one of them a stop.
    lags : int
        The largest lag.
    """

    def __init__(
        self,
        name: str,
        n: int,
        steps: Array,
        threads: int | None,
        *,
        stops: Any,
        max_lag: Any,
        k: Any,
        fraction: Any,
    ) -> None:
        self._steps, self._threads = steps, threads
        T = last = int(steps.max())
        if T < 3:
            raise ValueError(f"{name} must have a sequence of at least 3 steps; the longest has {T}")
        self._given = None if stops is None else steps_of("stops", stops, 1, T)
        if self._given is not None:
            last = int(self._stops_of(T).max(initial=1))
            if last < 2:
                raise ValueError(f"stops must hold a step after the first; got {stops!r}")
        self.sequences = np.flatnonzero([T >= 3 and (self._given is None or len(self._stops_of(T)) > 0) for T in steps])
        self.lags = min(_MAX_LAG if max_lag is None else integer("max_lag", max_lag, 1), last - 1)
        self._exponents = min(n, _EXPONENTS) if k is None else integer("k", k, 1)
        if self._exponents > n:
            raise ValueError(f"k must be in 1..n with n = {n}; got {k}")
        self._fraction = proper_fraction("fraction", fraction)
        cost = self.lags * n**3 * len(self.sequences)
        self._count = min(_STOPS // len(self.sequences), int(_MULTIPLY_ADDS / cost))
        self._stops: list[Array] = []
        self._norms: list[Array] = []
        self._contributions: list[Array] = []
        self._spectra: list[Lyapunov] = []

    def meter(self, progress: Progress) -> AbstractContextManager[Tick | None]:
        """For the norms, the exponents and the contributions of each sequence, a stage each."""
        return meter(progress, lambda: 3 * STAGE * len(self.sequences))

    def look(self, b: int, tick: Tick | None, of_error: Array | None, **chain: Any) -> tuple[Array, Array]:
        """Stops of sequence b and the norms of its chain, which `chain_norms` and `lyapunov_spectrum` take by name.

        By default the stops are some of all its steps and, since an error may enter at few, some of those ``of_error``.
        """
        T = int(self._steps[b])
        if self._given is None:
            count = int(np.clip(self._count, *_STOPS_OF_EACH))
            t = _evenly(np.arange(1, T + 1), count)
            if of_error is not None:
                t = np.union1d(t, _evenly(of_error, count))
        else:
            t = self._stops_of(T)
        chain |= {"threads": self._threads, "progress": part(tick, STAGE)}
        norms = chain_norms(**chain, stops=t, max_lag=self.lags)
        chain["progress"] = part(tick, STAGE)
        spectrum = lyapunov_spectrum(**chain, k=self._exponents, warm_up=int(_WARM_UP * (T - 1)))
        self._stops.append(t)
        self._norms.append(norms)
        self._spectra.append(spectrum)
        self._without = None if of_error is None else ~np.isin(t, of_error)
        return t, norms

    def _stops_of(self, T: int) -> Array:
        """Those of the stops given that a sequence of T steps has, in order."""
        assert self._given is not None
        t = np.where(self._given < 0, self._given + T + 1, self._given)
        return np.sort(t[(t >= 1) & (t <= T)])

    def carried(self, vectors: Array, t: Array, **chain: Any) -> Array:
        """The norms of a row vector for each of these stops, carried back through the chain."""
        return chain_norms(**chain, vectors=vectors, stops=t, max_lag=self.lags, threads=self._threads)

    def contribute(self, contributions: Array) -> None:
        """The contributions of the sequence looked at last, by stop and lag; a stop without an error has none."""
        if self._without is not None:
            contributions[self._without] = np.nan
        self._contributions.append(contributions)

    def results(self) -> dict[str, Any]:
        """The fields of `Flow` that are gathered here."""
        rates, standard_errors = _pooled(self._spectra)
        order = np.argsort(-rates, kind="stable")  # those that lie within their errors may come in another
        return {
            "norms": np.concatenate(self._norms),
            "contributions": np.concatenate(self._contributions),
            "stops": np.concatenate(self._stops),
            "sequences": np.repeat(self.sequences, [len(t) for t in self._stops]),
            "exponents": rates[order],
            "standard_errors": standard_errors[order],
            "by_sequence": np.array([spectrum.exponents for spectrum in self._spectra])[:, order],
            "fraction": self._fraction,
        }


def _evenly(steps: Array, count: int) -> Array:
    """About so many of these steps, the last among them."""
    places = np.linspace(len(steps) / count, len(steps), count).round().astype(np.int64).clip(1)
    return steps[np.unique(places) - 1] if len(steps) else steps


def _pooled(spectra: list[Lyapunov]) -> tuple[Array, Array]:
    """Medians over the sequences, by the steps that counted, and their standard errors.

    The errors are what the sequences scatter by, so that one alone among many moves neither; at least the noise within.
    """
    if len(spectra) == 1:
        return spectra[0].exponents, spectra[0].standard_errors
    rates = np.array([spectrum.exponents for spectrum in spectra])
    steps = np.array([int(spectrum.ends[-1]) for spectrum in spectra])
    medians = median(rates, steps)
    alive = np.isfinite(medians)
    many = steps.sum() ** 2 / np.sum(steps.astype(float) ** 2)  # sequences of one length, in effect
    scatter = median(np.abs(rates[:, alive] - medians[alive]), steps) * many / (many - _SHORT_OF)
    noise = median(np.array([spectrum.standard_errors[alive] for spectrum in spectra]) * np.sqrt(steps)[:, None], steps)
    errors = np.full(len(medians), np.nan)
    errors[alive] = np.fmax(_ERROR_OF_MEDIAN * scatter / np.sqrt(many), noise / np.sqrt(steps.sum()))
    return medians, errors
