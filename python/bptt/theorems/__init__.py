"""Every statement of the article as an object that is checked on a network: what is printed, and what is true.

The article is S. Pal, *Mathematical derivation of BPTT for RNN, and gradient vanishing and exploding problems* (2019).
Its statements, in its order: Lemma 1, Lemma 2, Theorem 1, Equation 3, Theorem 2, Section 4.2, Section 4.3, Theorem 3,
Lemma 3, Theorem 4. Each is a `Statement` in `STATEMENTS`, with the correction where it needs one, its proof, and small
networks that refute what is printed, on which the failure is computed when asked.

A hypothesis is an inequality between numbers with rounding errors. It holds or fails if it does so whatever they are,
up to a margin c n eps times the condition of the problem, and is undecided otherwise. The conclusion of a corrected
statement is finite, a bound or an identity for each product, and holds if it does up to rounding. Printed conclusions
are limits: where theory decides one it is decided; otherwise it is read from the run, by a factor of ten between its
first half and its end.

Examples
--------
>>> import bptt
>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> rnn = bptt.RNN.random(3, 4, 2, gain=0.9, rng=rng)
>>> x, y = rng.standard_normal((100, 3)), rng.integers(2, size=100)
>>> for verdict in bptt.theorems.check(rnn, x, y):
...     print(verdict)
Lemma 1: printed holds, corrected holds
Lemma 2: printed fails, corrected holds
Theorem 1: printed fails, corrected holds
Equation 3: printed fails, corrected holds
Theorem 2: printed holds, corrected holds
Section 4.2: printed fails, corrected holds
Section 4.3: printed not applicable, corrected holds
Theorem 3: printed not applicable, corrected not applicable
Lemma 3: printed holds, corrected holds
Theorem 4: printed not applicable, corrected not applicable
"""

from __future__ import annotations

import numpy.typing as npt

from bptt._progress import Progress, meter
from bptt._progress import check as check_progress
from bptt.network import RNN
from bptt.theorems.derivative import EQUATION_3, LEMMA_1, LEMMA_2, THEOREM_1
from bptt.theorems.exploding import LEMMA_3, THEOREM_3, THEOREM_4
from bptt.theorems.jacobian_terms import HV, Theorem1, theorem_1
from bptt.theorems.modes import Theorem3, theorem_3
from bptt.theorems.run import Run
from bptt.theorems.statement import Counterexample, Statement
from bptt.theorems.vanishing import SECTION_4_2, SECTION_4_3, THEOREM_2
from bptt.theorems.verdict import Claim, Truth, Verdict

__all__ = [
    "HV",
    "STATEMENTS",
    "Claim",
    "Counterexample",
    "Statement",
    "Theorem1",
    "Theorem3",
    "Truth",
    "Verdict",
    "check",
    "statement",
    "theorem_1",
    "theorem_3",
]

#: In the article's order.
STATEMENTS = (
    LEMMA_1, LEMMA_2, THEOREM_1, EQUATION_3, THEOREM_2, SECTION_4_2, SECTION_4_3, THEOREM_3, LEMMA_3, THEOREM_4,
)  # fmt: skip


def statement(name: str) -> Statement:
    """The statement of that name; case, blanks and punctuation do not matter.

    Raises
    ------
    ValueError
        There is none.

    Examples
    --------
    >>> import bptt
    >>> bptt.theorems.statement("theorem-4").name
    'Theorem 4'
    """
    for candidate in STATEMENTS:
        if _letters(candidate.name) == _letters(name):
            return candidate
    raise ValueError(f"name must be one of {', '.join(known.name for known in STATEMENTS)}; got {name!r}")


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def check(
    rnn: RNN,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    initial: npt.ArrayLike | None = None,
    loss: str | None = None,
    progress: Progress = False,
) -> list[Verdict]:
    """What a network on an input says about every statement of the article, printed and corrected.

    Parameters
    ----------
    rnn : RNN
        With a readout. Computed in float64.
    x : array of shape (T, p), or integer array of shape (T,)
        One sequence, T >= 1.
    y, loss
        As in `value_and_grad`; the loss is a named one.
    initial : array of shape (n,), optional
        As in `forward`.
    progress
        As in `forward`.

    Returns
    -------
    list of Verdict
        In the article's order.

    Raises
    ------
    TypeError, ValueError
        As in `value_and_grad`; and if x is a batch or empty.
    FloatingPointError
        A state is not finite.

    Examples
    --------
    Theorem 2 as printed, refuted by W_R = -3 with the identity as activation: its λ_1 = -3 is below 1/γ = 1.

    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[-3.0]], [[1.0]], [[1.0]], activation="identity", output="linear")
    >>> verdict = bptt.theorems.check(rnn, np.eye(20, 1), np.zeros((20, 1)))[4]
    >>> verdict.hypothesis.value, verdict.conclusion.value, verdict.evidence["λ_1 γ"]
    ('holds', 'fails', -3.0)
    """
    check_progress(progress)
    run = Run(rnn, x, y, initial=initial, loss=loss)
    verdicts = []
    with meter(progress, lambda: len(STATEMENTS)) as tick:
        for known in STATEMENTS:
            verdicts.append(known.verdict(run))
            if tick:
                tick(1)
    return verdicts
