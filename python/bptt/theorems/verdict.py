"""What a network and an input say about a claim: holds, fails, undecided, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bptt.theorems.statement import Statement


class Truth(str, Enum):
    """The answers. Each is also its own text: ``Truth.HOLDS == "holds"``.

    Examples
    --------
    >>> from bptt.theorems import Truth
    >>> Truth.all(Truth.HOLDS, Truth.UNDECIDED).value
    'undecided'
    """

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"  # rounding, or a run too short, leaves both possible
    NOT_APPLICABLE = "not applicable"  # nothing is claimed about this network

    @staticmethod
    def of(value: bool) -> Truth:
        return Truth.HOLDS if value else Truth.FAILS

    @staticmethod
    def all(*truths: Truth) -> Truth:
        """Whether all hold: one that fails decides, then one that is not known."""
        for answer in (Truth.FAILS, Truth.UNDECIDED, Truth.NOT_APPLICABLE):
            if answer in truths:
                return answer
        return Truth.HOLDS

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Claim:
    """A hypothesis and its conclusion, each judged on a network by itself.

    Attributes
    ----------
    hypothesis, conclusion : Truth
        The hypothesis of an unconditional claim holds. Where nothing is claimed, both are not applicable.

    Examples
    --------
    >>> from bptt.theorems import Claim, Truth
    >>> Claim(hypothesis=Truth.FAILS, conclusion=Truth.HOLDS).truth.value
    'not applicable'
    """

    hypothesis: Truth
    conclusion: Truth

    @property
    def truth(self) -> Truth:
        """What the network says of the claim: not applicable unless the hypothesis holds; then, its conclusion."""
        if self.hypothesis is Truth.HOLDS:
            return self.conclusion
        return Truth.UNDECIDED if self.hypothesis is Truth.UNDECIDED else Truth.NOT_APPLICABLE

    @property
    def stands(self) -> bool:
        """Whether the claim was confirmed wherever it speaks: where its hypothesis holds, its conclusion does."""
        return self.truth is Truth.HOLDS or self.hypothesis is not Truth.HOLDS


#: A claim about nothing.
SILENT = Claim(Truth.NOT_APPLICABLE, Truth.NOT_APPLICABLE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one network on one input says about one statement of the article, as `check` found.

    Attributes
    ----------
    statement : Statement
    hypothesis, conclusion : Truth
        Of the statement as printed.
    evidence : mapping of str to float
        The numbers that decide, the most telling first. Those named ln … are natural logarithms: what they are of need
        not fit a float.
    corrected : Claim
        The same of the corrected statement.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[-3.0]], [[1.0]], [[1.0]], activation="identity", output="linear")
    >>> verdict = bptt.theorems.statement("Theorem 2").check(rnn, np.eye(20, 1), np.zeros((20, 1)))
    >>> print(verdict)
    Theorem 2: printed fails, corrected not applicable
    """

    statement: Statement
    hypothesis: Truth
    conclusion: Truth
    evidence: Mapping[str, float]
    corrected: Claim

    @property
    def printed(self) -> Claim:
        """The statement as printed."""
        return Claim(self.hypothesis, self.conclusion)

    def __str__(self) -> str:
        return f"{self.statement.name}: printed {self.printed.truth}, corrected {self.corrected.truth}"
