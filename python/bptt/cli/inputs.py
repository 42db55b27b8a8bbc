"""What a model is to read: a text, or the arrays of a file."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bptt import _arguments
from bptt.network import RNN
from bptt.text import Vocabulary


def of_text(text: str, vocabulary: Vocabulary, steps: int) -> dict[str, Any]:
    """The beginning of a text as tokens x, each with the next as its target y."""
    if len(text) < 4:
        raise ValueError(f"the text must have at least 4 characters, 3 steps with their targets; it has {len(text)}")
    tokens = vocabulary.encode(text[: steps + 1])
    return {"x": tokens[:-1], "y": tokens[1:]}


def of_arrays(path: Path, rnn: RNN, needed: tuple[str, ...], optional: tuple[str, ...], steps: int) -> dict[str, Any]:
    """The arrays of these names in an .npz file, as far as the first steps of x go.

    Raises
    ------
    OSError
        The file cannot be read.
    TypeError, ValueError
        It is no .npz file, lacks an array that is needed, or holds something else than numbers; x is not for this
        network or not finite; y is of the last step, which is not among these.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is no .npz file")
        try:
            held = dict(np.load(file))
        except EOFError:
            held = {}
        except ValueError as error:  # an array of objects
            raise ValueError(f"{path} must hold arrays of numbers: {error}") from None
    for name in needed:
        if name not in held:
            raise ValueError(f"{path} must hold an array {name}; it holds {', '.join(sorted(held)) or 'nothing'}")
    arrays = {name: held[name] for name in (*needed, *optional) if name in held}
    for name, array in arrays.items():
        kinds, what = ("iu", "integers") if name == "lengths" else ("biuf", "numbers")
        if array.dtype.kind not in kinds:
            raise ValueError(f"{name} in {path} must hold {what}; got {array.dtype}")
    if ignored := sorted(held.keys() - {*needed, *optional}):
        print(f"bptt: of {path} {', '.join(ignored)} is not read", file=sys.stderr)
    _, extent = _arguments.inputs(rnn, arrays["x"])
    lengths = _arguments.lengths(arrays.get("lengths"), extent)
    if steps < extent.time:
        if "y" in arrays and arrays["y"].shape[: extent.axes] != extent.sizes:
            raise ValueError(
                f"y in {path} must be of all steps of x, {extent.sizes}, or --steps at least {extent.time}; "
                f"y has shape {arrays['y'].shape}, and --steps is {steps}"
            )
        for name in {"x", "y", "weights"} & arrays.keys():
            arrays[name] = arrays[name][:steps]
    if "lengths" in arrays:
        arrays["lengths"] = np.minimum(arrays["lengths"], steps)
    finite = np.isfinite(arrays["x"])
    if finite.ndim > extent.axes:
        finite = finite.all(axis=-1)
    there = np.arange(len(finite))[:, None] < (extent.time if lengths is None else lengths)
    bad = ~finite.reshape(len(finite), extent.size) & there
    if bad.any():
        t, b = np.argwhere(bad)[0]
        raise ValueError(f"x in {path} must be finite; at step t = {t + 1} of sequence b = {b} it is not")
    return arrays
