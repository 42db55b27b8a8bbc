"""`bptt flow`: how far back the gradient of a model reaches."""

from __future__ import annotations

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bptt.cli.terminal import Json, print_json, require_writable

if TYPE_CHECKING:
    from bptt.flow import Flow
    from bptt.network import RNN

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

    if (text is None) == (npz is None):
        raise ValueError("give the model one input: --text FILE or --npz FILE")
    if figure is not None:
        require_writable(figure.parent)
    rnn, arrays = _of_text(model, text, steps) if text else _of_arrays(model, npz, steps)
    result = bptt.gradient_flow(rnn, **arrays, max_lag=max_lag)
    if json:
        print_json({"model": model, "input": text or npz, "figure": figure, **facts(result)})
    else:
        print(result)
    if figure is not None:
        result.plot().savefig(figure)
        if not json:
            print(f"\nWrote the figure {figure}")


def facts(flow: Flow) -> dict[str, Any]:
    """A flow as numbers by name; norms are natural logarithms, one for each lag."""
    from bptt.flow import quantiles

    bounds = asdict(flow.certificates)
    middle, least, most = quantiles(flow.norms)
    return {
        "verdict": flow.verdict,
        "horizon": flow.horizon,
        "max_lag": len(middle) - 1,
        "fraction": flow.fraction,
        "exponents": flow.exponents,
        "standard_errors": flow.standard_errors,
        "log_norms": {"median": middle, "least": least, "most": most},
        "vanishes": flow.certificates.vanishes,
        "explodes": flow.certificates.explodes,
        "bounds": {
            name: {"rate": bound["rate"], "constant": bound["constant"]}
            for name, bound in bounds.items()
            if isinstance(bound, dict)
        },
    }


def _of_text(model: Path, text: Path, steps: int) -> tuple[RNN, dict[str, Any]]:
    from bptt.character_model import CharacterModel
    from bptt.text import read_text

    characters = CharacterModel.load(model)
    tokens = characters.vocabulary.encode(read_text(text)[: steps + 1])
    return characters.rnn, {"x": tokens[:-1], "y": tokens[1:]}


def _of_arrays(model: Path, npz: Path | None, steps: int) -> tuple[RNN, dict[str, Any]]:
    import bptt

    assert npz is not None
    rnn = bptt.RNN.load(model)
    with npz.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{npz} is no .npz file")
        arrays = dict(np.load(file))
    if "x" not in arrays:
        raise ValueError(f"{npz} must hold an array x; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    T = len(arrays["x"])
    cut = {name: arrays[name][:steps] for name in ("x", "y", "weights") if name in arrays and len(arrays[name]) == T}
    if "lengths" in arrays:
        cut["lengths"] = np.minimum(arrays["lengths"], steps)
    return rnn, {**{name: arrays[name] for name in OPTIONAL if name in arrays}, **cut}
