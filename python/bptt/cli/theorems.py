"""`bptt theorems`: the article's statements, printed and corrected, on a network."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import typer

from bptt.cli.inputs import of_arrays, of_text
from bptt.cli.terminal import Json, print_json

if TYPE_CHECKING:
    from bptt.network import RNN
    from bptt.theorems import Statement, Verdict

#: How an answer looks, and how many of the deciding numbers a line of the table has.
STYLES = {"holds": "green", "fails": "bold red", "undecided": "yellow", "not applicable": "dim"}
NUMBERS = 4


def theorems(
    model: Annotated[
        Path | None,
        typer.Argument(help="A network's file. Without one, each statement is put to the networks that refute it."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text for a model of characters to read.", show_default="Python's help topics"),
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(help="Arrays x, y and perhaps initial, for any model.", show_default="random numbers"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="How much of the sequence to look at.")] = 200,
    explain: Annotated[str | None, typer.Option(metavar="NAME", help="One statement in full, as in theorem-4.")] = None,
    json: Json = False,
) -> None:
    """Check every statement of the article on a network, as printed and as corrected.

    Exit code 1 if a corrected statement does not hold where its hypothesis does.
    """
    from bptt.theorems import STATEMENTS, check, statement

    one = None if explain is None else statement(explain)
    if model is None:
        if text or npz:
            raise ValueError("--text and --npz are inputs of a MODEL: name one")
        where = "each on the networks that refute what is printed"
        found = [case for each in ([one] if one else STATEMENTS) for case in _counterexamples(each)]
    else:
        case = _input(model, text, npz, steps)
        where = f"{model}, {case.about}"
        if one:
            found = [("", one.check(*case.arguments, initial=case.initial))]
        else:
            found = [("", verdict) for verdict in check(*case.arguments, initial=case.initial)]
    stands = all(verdict.corrected.stands for _, verdict in found)
    if json:
        print_json({"on": where, "stands": stands, "statements": [_facts(*each) for each in found]})
    elif one:
        _explain(one, where, found)
    else:
        _table(where, found, stands)
    if not stands:
        raise typer.Exit(1)


class _Input(NamedTuple):
    arguments: tuple[RNN, npt.NDArray[Any], npt.NDArray[Any]]  # network, x, y
    initial: npt.NDArray[Any] | None
    about: str


def _input(model: Path, text: Path | None, npz: Path | None, steps: int) -> _Input:
    """What the model is to read."""
    import bptt
    from bptt.character_model import CharacterModel
    from bptt.text import python_topics, read_text

    if text and npz:
        raise ValueError("--text and --npz are two inputs: choose one")
    rnn = bptt.RNN.load(model)
    if npz:
        arrays = of_arrays(npz, rnn, ("x", "y"), ("initial",), steps)
        return _Input((rnn, arrays["x"], arrays["y"]), arrays.get("initial"), str(npz))
    try:
        vocabulary = CharacterModel.load(model).vocabulary
    except ValueError:
        if text:
            raise
        rng = np.random.default_rng(0)
        x = rng.standard_normal((steps, rnn.p))
        y = rng.integers(max(rnn.m, 1), size=steps) if rnn.output == "softmax" else rng.standard_normal((steps, rnn.m))
        return _Input((rnn, x, y), None, "random inputs and targets")
    arrays = of_text(read_text(text) if text else python_topics(), vocabulary, steps)
    return _Input((rnn, arrays["x"], arrays["y"]), None, str(text or "Python's help topics"))


def _counterexamples(statement: Statement) -> list[tuple[str, Verdict]]:
    """What refutes a statement; for one that nothing refutes, a network like any other."""
    import bptt

    if statement.counterexamples:
        abouts = (example.about for example in statement.counterexamples)
        return list(zip(abouts, statement.refutations(), strict=True))
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(3, 8, 2, init="normal", gain=1.5, rng=rng)
    return [("random, tanh, n = 8", statement.check(rnn, rng.standard_normal((100, 3)), rng.integers(2, size=100)))]


def _facts(about: str, verdict: Verdict) -> dict[str, Any]:
    claims = {"printed": verdict.printed, "corrected": verdict.corrected}
    answers = {
        name: {"hypothesis": claim.hypothesis, "conclusion": claim.conclusion, "truth": claim.truth}
        for name, claim in claims.items()
    }
    network = {"network": about} if about else {}
    return {"name": verdict.statement.name, **network, **answers, "evidence": verdict.evidence}


def _number(value: float) -> str:
    return f"{value:.4g}"


def _table(where: str, found: list[tuple[str, Verdict]], stands: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"The article's statements, {where}", title_justify="left", box=box.HORIZONTALS, show_lines=True
    )
    for name in ("statement", "printed", "corrected"):
        table.add_column(name, no_wrap=True)
    table.add_column("the numbers that decide")
    for about, verdict in found:
        answers = (str(claim.truth) for claim in (verdict.printed, verdict.corrected))
        numbers = [f"{name} = {_number(value)}" for name, value in list(verdict.evidence.items())[:NUMBERS]]
        decides = Text.assemble((f"{about}\n" if about else "", "italic"), "\n".join(numbers))
        table.add_row(verdict.statement.name, *(Text(answer, STYLES[answer]) for answer in answers), decides)
    console = Console()
    console.print(table)
    if stands:
        console.print("Every corrected statement holds where its hypothesis does.")
    else:
        console.print("A corrected statement does NOT hold where its hypothesis does.", style="bold red")
    console.print("In full: bptt theorems --explain NAME")


def _explain(statement: Statement, where: str, found: list[tuple[str, Verdict]]) -> None:
    print(statement.name)
    for title, paragraph in (
        ("As printed", statement.printed),
        ("What is true", statement.corrected),
        ("Why", statement.why),
    ):
        print(f"\n{title}\n{textwrap.indent(paragraph, '  ')}")
    for about, verdict in found:
        print(f"\nOn {about or where}")
        for name, claim in (("as printed", verdict.printed), ("corrected", verdict.corrected)):
            print(f"  {name}: the hypothesis {_says(claim.hypothesis)}, the conclusion {_says(claim.conclusion)}")
        width = max(map(len, verdict.evidence), default=0)
        for name, value in verdict.evidence.items():
            print(f"    {name:{width}}  {_number(value)}")


def _says(truth: str) -> str:
    return f"{truth!s}" if truth in ("holds", "fails") else f"is {truth!s}"
