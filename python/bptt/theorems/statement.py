"""A statement of the article: what is printed, what is true, why, and how to tell on a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bptt._kernel import Array
from bptt.network import RNN
from bptt.theorems.run import Run
from bptt.theorems.verdict import Claim, Verdict


class Finding(NamedTuple):
    """What a run says about a statement."""

    printed: Claim
    corrected: Claim
    evidence: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Counterexample:
    """A small network on which a printed statement fails.

    Attributes
    ----------
    about : str
        What it is, in a line.
    rnn : RNN
    x : array of shape (T, p)
    y : array of shape (T, m)
    initial : array of shape (n,)
    """

    about: str
    rnn: RNN
    x: Array
    y: Array
    initial: Array


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """A statement of the article.

    Attributes
    ----------
    name : str
        As the article calls it.
    printed, corrected : str
        What it says, and what is true.
    why : str
        The proof of what is true, or the refutation of what is printed.
    counterexamples : tuple of Counterexample
        Networks on which the printed statement fails; none if it is true or nothing is claimed.

    Examples
    --------
    >>> import bptt
    >>> lemma = bptt.theorems.statement("Lemma 3")
    >>> print(lemma.printed)
    A, B square, λ*(A) the smallest modulus of A's eigenvalues. Then ‖AB‖ ≥ λ*(A) ‖B‖ in the 2-norm.
    >>> [verdict.printed.truth.value for verdict in lemma.refutations()]
    ['fails']
    """

    name: str
    printed: str
    corrected: str
    why: str
    judge: Callable[[Run], Finding]
    counterexamples: tuple[Counterexample, ...] = ()

    def check(
        self,
        rnn: RNN,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        initial: npt.ArrayLike | None = None,
        loss: str | None = None,
    ) -> Verdict:
        """What a network on an input says about this statement: parameters and errors are those of `theorems.check`."""
        return self.verdict(Run(rnn, x, y, initial=initial, loss=loss))

    def verdict(self, run: Run) -> Verdict:
        """The same for a run that is at hand."""
        with np.errstate(all="ignore"):  # -inf and nan are answers here, and judged
            finding = self.judge(run)
        return Verdict(
            self, finding.printed.hypothesis, finding.printed.conclusion, finding.evidence, finding.corrected
        )

    def refutations(self) -> list[Verdict]:
        """The verdicts of the counterexamples, computed now."""
        return [self.check(case.rnn, case.x, case.y, initial=case.initial) for case in self.counterexamples]
