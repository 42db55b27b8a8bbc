"""`bptt flow`: how far back the gradient of a model reaches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bptt.cli.inputs import of_arrays, of_text
from bptt.cli.terminal import Json, print_json, require_writable

if TYPE_CHECKING:
    from bptt.flow import Flow

#: Kinds of figures.
FIGURES = (".png", ".pdf", ".svg")

#: Arrays of a file that `gradient_flow` takes by name.
OPTIONAL = ("y", "weights", "lengths", "initial")


def flow(
    model: Annotated[Path, typer.Argument(help="A network's file, as `bptt train` or RNN.save writes it.")],
    text: Annotated[Path | None, typer.Option(help="A text in UTF-8 for a model of characters.")] = None,
    npz: Annotated[
        Path | None, typer.Option(help=f"Arrays x and perhaps {', '.join(OPTIONAL)}, for any model.")
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="How much of the sequences to look at.")] = 2000,
    max_lag: Annotated[int, typer.Option(min=1, help="The largest lag.")] = 200,
    figure: Annotated[Path | None, typer.Option(help="A file for the figure: .png, .pdf or .svg.")] = None,
    json: Json = False,
) -> None:
    """Whether a model's gradient vanishes or explodes on its inputs, how fast, and how far back it reaches."""
    import bptt
    from bptt.character_model import CharacterModel
    from bptt.plotting import save
    from bptt.text import read_text

    if (text is None) == (npz is None):
        raise ValueError("give the model one input: --text FILE or --npz FILE")
    if figure is not None:
        if figure.suffix not in FIGURES:
            raise ValueError(f"--figure must end in {', '.join(FIGURES)}; got {figure}")
        if figure.is_dir():
            raise ValueError(f"--figure must name a file; {figure} is a directory")
        require_writable(figure.parent)
    if text is not None:
        characters = CharacterModel.load(model)
        rnn, arrays = characters.rnn, of_text(read_text(text), characters.vocabulary, steps)
    else:
        assert npz is not None
        rnn = bptt.RNN.load(model)
        arrays = of_arrays(npz, rnn, ("x",), OPTIONAL, steps)
    result = bptt.gradient_flow(rnn, **arrays, max_lag=max_lag)
    if json:
        print_json({"model": model, "input": text or npz, "figure": figure, **facts(result)})
    else:
        print(result)
    if figure is not None:
        save(result.plot(), figure)
        if not json:
            print(f"\nWrote the figure {figure}")


def facts(flow: Flow) -> dict[str, Any]:
    """A flow as numbers by name; norms are natural logarithms, one for each lag."""
    import numpy as np

    from bptt._quantiles import quantiles

    certificates = flow.certificates
    assert certificates is not None  # of a network there are
    bounds = asdict(certificates)
    middle, least, most = quantiles(flow.norms)
    return {
        "verdict": flow.verdict,
        "of_error": flow.of_error,
        "horizon": flow.horizon if np.isfinite(flow.contributions).any() else None,
        "max_lag": len(middle) - 1,
        "fraction": flow.fraction,
        "exponents": flow.exponents,
        "standard_errors": flow.standard_errors,
        "by_sequence": flow.by_sequence,
        "log_norms": {"median": middle, "least": least, "most": most},
        "vanishes": certificates.vanishes,
        "explodes": certificates.explodes,
        "bounds": {
            name: {"rate": bound["rate"], "constant": bound["constant"]}
            for name, bound in bounds.items()
            if isinstance(bound, dict)
        },
    }
