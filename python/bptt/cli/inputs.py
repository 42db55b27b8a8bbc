"""What a model is to read: a text, or the arrays of a file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bptt.text import Vocabulary


def of_text(text: str, vocabulary: Vocabulary, steps: int) -> dict[str, Any]:
    """The beginning of a text as tokens x, each with the next as its target y."""
    tokens = vocabulary.encode(text[: steps + 1])
    return {"x": tokens[:-1], "y": tokens[1:]}


def of_arrays(path: Path, needed: tuple[str, ...], optional: tuple[str, ...], steps: int) -> dict[str, Any]:
    """The arrays of these names in an .npz file, as far as the first steps of x go.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no .npz file, lacks an array that is needed, or holds something else than numbers.
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
    T = np.shape(arrays["x"])[:1]
    for name in ("x", "y", "weights"):  # a y without time is a target of the last step
        if T and name in arrays and arrays[name].shape[:1] == T:
            arrays[name] = arrays[name][:steps]
    if "lengths" in arrays:
        arrays["lengths"] = np.minimum(arrays["lengths"], steps)
    return arrays
