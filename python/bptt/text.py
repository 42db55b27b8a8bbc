"""Characters of a text as tokens.

A text becomes an array of tokens, one a character; the tokens are cut into B *streams* that run through the text side
by side, and the streams into consecutive *blocks* of steps, so that the state at the end of a block is the initial
state of the next.
"""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bptt._kernel import Array

#: Bytes of a file that are read at a time.
PIECE = 1 << 18


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, every character as it stands (line ends are not translated).

    Parameters
    ----------
    path : path
        A file in UTF-8.

    Returns
    -------
    str
        At least one character.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is empty, or is not UTF-8: the message names the offset of the first wrong byte.
    """
    return "".join(_pieces(path))


def read_tokens(path: str | os.PathLike[str], vocabulary: Vocabulary | None = None) -> tuple[Vocabulary, Array]:
    """The tokens of a text of any size: it is read piece by piece, and its tokens lie in a temporary file.

    Parameters
    ----------
    path : path
        A file in UTF-8; it is read twice where no vocabulary is given.
    vocabulary : Vocabulary, optional
        None: the characters of the text.

    Returns
    -------
    vocabulary : Vocabulary
    tokens : integer array of shape (N,)
        As `Vocabulary.encode` gives them, in the smallest unsigned integers; a map of the file, which goes with it.

    Raises
    ------
    OSError
        The file cannot be read, or there is no room for the temporary one.
    ValueError
        As `read_text` and `Vocabulary.encode`.
    """
    if vocabulary is None:
        vocabulary = Vocabulary("".join(sorted(set().union(*map(set, _pieces(path))))))
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    count = 0
    with tempfile.TemporaryFile() as file:
        for piece in _pieces(path):
            vocabulary._encode(piece, count).astype(dtype).tofile(file)
            count += len(piece)
        return vocabulary, np.memmap(file, dtype, "r+", shape=(count,))


def _pieces(path: str | os.PathLike[str]) -> Iterator[str]:
    """The text of a file, a piece at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    count = offset = 0
    with open(path, "rb") as file:
        while True:
            data = file.read(PIECE)
            begun = len(decoder.getstate()[0])  # bytes of a character that the last piece cut
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = offset - begun + error.start
                wrong = error.object[error.start]
                raise ValueError(f"{path} is not UTF-8: byte 0x{wrong:02x} at offset {at} ({error.reason})") from None
            if text:
                yield text
            count += len(text)
            offset += len(data)
            if not data:
                break
    if not count:
        raise ValueError(f"{path} is empty")


def python_topics() -> str:
    """The English text that every Python carries: its help topics (`pydoc_data.topics`), some 10⁵ characters.

    The topics overlap; every paragraph is kept once, so that text held out from the end was not seen before.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name].strip("\n") for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model knows; a character's token is its place among them.

    Attributes
    ----------
    characters : str
        Each once, sorted by code point.

    Examples
    --------
    >>> vocabulary = Vocabulary.of("banana")
    >>> vocabulary.characters
    'abn'
    >>> vocabulary.encode("nab")
    array([2, 0, 1], dtype=int32)
    >>> vocabulary.decode([1, 0, 2])
    'ban'
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or list(self.characters) != sorted(set(self.characters)):
            raise ValueError(
                f"characters must be at least one, each once, sorted by code point; got {self.characters!r:.80}"
            )

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Array:
        """The tokens of a text.

        Parameters
        ----------
        text : str
            N characters.

        Returns
        -------
        int32 array of shape (N,)
            In 0..len(self) - 1.

        Raises
        ------
        ValueError
            A character is not in the vocabulary: the message names it and its position.
        """
        return self._encode(text, 0)

    def _encode(self, text: str, begin: int) -> Array:
        """The tokens of the piece of a text that begins at this position."""
        known, points = _code_points(self.characters), _code_points(text)
        tokens = np.minimum(np.searchsorted(known, points), len(known) - 1).astype(np.int32)
        strange = np.flatnonzero(known[tokens] != points)
        if strange.size:
            position = int(strange[0])
            character = text[position]
            raise ValueError(
                f"character {character!a} (U+{ord(character):04X}) at position {begin + position} "
                f"is not one of the {len(self)} characters of the vocabulary"
            )
        return tokens

    def decode(self, tokens: npt.ArrayLike) -> str:
        """The text of tokens: the inverse of `encode`."""
        return "".join(self.characters[token] for token in np.asarray(tokens, dtype=np.intp))


def _code_points(text: str) -> Array:
    # A command line hands undecodable bytes on as lone surrogates: they are characters that no vocabulary has.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def entropy(tokens: npt.ArrayLike) -> float:
    """Order-0 entropy, −Σ f log₂ f over the frequencies f of the tokens: what the best guess without context costs.

    Parameters
    ----------
    tokens : integer array of shape (N,)
        Not negative, N ≥ 1.

    Returns
    -------
    float
        Bits per character.

    Examples
    --------
    >>> entropy([0, 1, 2, 3])
    2.0
    """
    counts = np.bincount(np.asarray(tokens))
    frequencies = counts[counts > 0] / counts.sum()
    return float(frequencies @ np.log2(1 / frequencies))


def split(tokens: Array) -> tuple[Array, Array]:
    """The text to train on, and the text held out from its end: a tenth, at most a million characters.

    Parameters
    ----------
    tokens : array of shape (N,)
        N ≥ 4.

    Returns
    -------
    train, held_out : arrays of shape (N - K,) and (K,)
        Views. K = N // 10 within 2..10⁶: a character and one to predict from it, and no more than measuring needs.

    Raises
    ------
    ValueError
        The text is too short for both parts to have 2 characters.

    Examples
    --------
    >>> train, held_out = split(np.arange(30))
    >>> len(train), held_out
    (27, array([27, 28, 29]))
    """
    if len(tokens) < 4:
        raise ValueError(f"a text of {len(tokens)} characters is too short: training and held-out text want 2 each")
    end = len(tokens) - min(max(len(tokens) // 10, 2), 1_000_000)
    return tokens[:end], tokens[end:]


def streams(tokens: Array, batch: int) -> tuple[Array, Array]:
    """A text cut into B streams of S steps, side by side: inputs, and what follows each as target.

    Parameters
    ----------
    tokens : array of shape (N,)
    batch : int
        B, in 1..N - 1.

    Returns
    -------
    inputs, targets : arrays of shape (S, B)
        Views, S = (N - 1) // B; stream b starts at character b S. At most B - 1 characters at the end are left out.

    Raises
    ------
    ValueError
        batch is out of range.

    Examples
    --------
    >>> inputs, targets = streams(np.arange(7), batch=2)
    >>> inputs.T.tolist(), targets.T.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    if not 1 <= batch < len(tokens):
        raise ValueError(f"batch must be in 1..{len(tokens) - 1} for a text of {len(tokens)} characters; got {batch}")
    steps = (len(tokens) - 1) // batch
    end = steps * batch
    return tokens[:end].reshape(batch, steps).T, tokens[1 : end + 1].reshape(batch, steps).T


def blocks(steps: int, length: int) -> list[slice]:
    """Consecutive blocks of steps, as equal as can be and none longer than `length`.

    Equal blocks, because a short last one would weigh each of its characters more than the others do.

    Parameters
    ----------
    steps : int
        S ≥ 1.
    length : int
        Steps in a block at most, ≥ 1.

    Returns
    -------
    list of slice
        They cover 0..S in order.

    Raises
    ------
    ValueError
        steps or length is less than 1.

    Examples
    --------
    >>> [block.indices(10)[:2] for block in blocks(10, 4)]
    [(0, 3), (3, 6), (6, 10)]
    """
    for name, value in (("steps", steps), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    count = -(-steps // length)
    return [slice(i * steps // count, (i + 1) * steps // count) for i in range(count)]
