"""`bptt info` and `bptt check`: what runs here, and whether it is right."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from bptt.cli.terminal import Json, print_json

if TYPE_CHECKING:
    from bptt.checking import CheckReport


def info(json: Json = False) -> None:
    """What runs here: the level in use, those that could be, threads, compiler, versions."""
    import bptt

    facts = bptt.info()
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:14} {' '.join(map(str, value)) if isinstance(value, list) else value}")


def check(json: Json = False) -> None:
    """Whether the kernel computes what the reference does, and finite differences confirm, on this machine.

    Every activation, form, readout, output and precision occurs in a small random network. Exit code 1 if one is wrong.
    """
    cases = []
    for precision in ("float64", "float32"):
        for choices in _choices():
            report = _check_one(choices, precision)
            cases.append((choices, report))
            if not json:
                kernel = max(line.kernel for line in report.comparisons)
                difference = max(line.difference or 0.0 for line in report.comparisons)
                print(
                    f"{precision}  {choices['activation']:10} {choices['form']:13} readout {choices['readout']:13} "
                    f"{choices['output']:7}  kernel {kernel:.0e}  differences {difference:.0e}  "
                    f"{'ok' if report.passed else 'WRONG'}",
                    flush=True,
                )
    failed = [(choices, report) for choices, report in cases if not report.passed]
    if json:
        print_json(
            {
                "level": cases[0][1].level,
                "passed": not failed,
                "cases": [{**choices, **asdict(report), "passed": report.passed} for choices, report in cases],
            }
        )
    else:
        for choices, report in failed:
            print(f"\n{choices}\n{report}")
        agree = f"{len(cases) - len(failed)} of {len(cases)} networks agree"
        print(f"level {cases[0][1].level}: {agree} with reference and finite differences (largest relative errors)")
    if failed:
        raise typer.Exit(1)


def _choices() -> list[dict[str, str]]:
    """Networks in which each activation, and each combination of form, readout and output, occurs once."""
    from bptt._kernel import ACTIVATIONS, FORMS, OUTPUTS, READOUTS

    combinations = itertools.product(FORMS, READOUTS, OUTPUTS)
    return [
        {"activation": activation, "form": form, "readout": readout, "output": output}
        for activation, (form, readout, output) in zip(ACTIVATIONS, combinations, strict=True)
    ]


def _check_one(choices: dict[str, str], precision: str) -> CheckReport:
    import numpy as np

    import bptt

    # Sizes off the width of registers, one sequence that ends early, nothing chaotic, no state on a kink.
    T, B, n, p, m = 60, 3, 33, 5, 7
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(p, n, m, gain=0.9, dtype=precision, rng=rng, **choices)
    y = rng.integers(m, size=(T, B)) if choices["output"] == "softmax" else rng.standard_normal((T, B, m))
    x, initial = rng.standard_normal((T, B, p)), rng.standard_normal((B, n))
    return bptt.check(rnn, x, y, lengths=[T, T - 13, T], initial=initial)
