"""A network that predicts the next character of a text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bptt._kernel import Array
from bptt.gradient import errors, forward
from bptt.network import RNN
from bptt.text import Vocabulary, blocks, streams


@dataclass(frozen=True, eq=False)
class CharacterModel:
    """A network and the characters that its inputs and outputs stand for.

    Attributes
    ----------
    rnn : RNN
        p = m = len(vocabulary), softmax output.
    vocabulary : Vocabulary
    """

    rnn: RNN
    vocabulary: Vocabulary

    @classmethod
    def random(cls, vocabulary: Vocabulary, n_hidden: int, *, seed: int = 0) -> CharacterModel:
        """A model before training: tanh, float32, orthogonal W_R."""
        m = len(vocabulary)
        return cls(RNN.random(m, n_hidden, m, dtype=np.float32, rng=seed), vocabulary)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        arrays: Mapping[str, Array] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the model as `RNN.save` does, the vocabulary in the metadata: `RNN.load` reads its network.

        Parameters
        ----------
        path : path
        arrays, metadata : mapping, optional
            More to keep in the file, see `RNN.save`.

        Raises
        ------
        OSError
            The file cannot be written; the old one, if any, is untouched.
        """
        vocabulary = {"vocabulary": self.vocabulary.characters}
        self.rnn.save(path, arrays=arrays, metadata={**vocabulary, **(metadata or {})})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CharacterModel:
        """Read a model that `save` wrote.

        Raises
        ------
        OSError
            There is no such file, or it cannot be read.
        ValueError
            The file is damaged, or holds no character model.
        """
        from safetensors import safe_open

        rnn = RNN.load(path)
        with safe_open(os.fspath(path), framework="numpy") as file:
            characters = file.metadata().get("vocabulary", "")
        if not rnn.p == rnn.m == len(characters):
            raise ValueError(
                f"{os.fspath(path)} is no model of characters: its network has p = {rnn.p} inputs and "
                f"m = {rnn.m} outputs, its vocabulary {len(characters)} characters"
            )
        return cls(rnn, Vocabulary(characters))

    def bits_per_character(self, tokens: Array, *, batch: int = 32, length: int = 256) -> float:
        """What the model needs to guess a text: the mean of −log₂ o_t[y_t].

        The text is read in streams side by side, each from the zero state, its state carried from block to block.

        Parameters
        ----------
        tokens : integer array of shape (N,)
            N ≥ 2.
        batch : int
            Streams, ≥ 1; fewer where the text is too short for them.
        length : int
            Steps in a block, ≥ 1: bounds the memory, does not change the result beyond rounding.

        Returns
        -------
        float
        """
        inputs, targets = streams(tokens, min(batch, len(tokens) - 1))
        total, state = 0.0, None
        for block in blocks(len(inputs), length):
            trajectory = forward(self.rnn, inputs[block], state)
            E, _ = errors(self.rnn, trajectory, targets[block])
            total += float(E.sum(dtype=np.float64))
            state = trajectory.final
        return total / inputs.size / math.log(2)

    def generate(self, *, prime: str = "", temperature: float = 1.0, seed: int = 0) -> Iterator[str]:
        """Characters drawn one after the other, each from the prediction after those before it, without end.

        Parameters
        ----------
        prime : str
            Read before the first draw; if empty, a line end (the first of the characters, where there is no line end).
        temperature : float
            Positive: predictions are taken to the power 1/temperature; below 1 is more careful, above 1 more daring.
        seed : int
            Of the draws, not negative.

        Yields
        ------
        str
            One character; the prime is not repeated.

        Raises
        ------
        ValueError
            prime has a character that the model does not know; temperature or seed is out of range.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite; got {temperature}")
        if seed < 0:
            raise ValueError(f"seed must not be negative; got {seed}")
        characters = self.vocabulary.characters
        tokens = self.vocabulary.encode(prime or ("\n" if "\n" in characters else characters[0]))
        return self._draws(tokens, temperature, np.random.default_rng(seed))

    def _draws(self, tokens: Array, temperature: float, rng: np.random.Generator) -> Iterator[str]:
        state = None
        while True:
            trajectory = forward(self.rnn, tokens, state)
            state = trajectory.final
            assert trajectory.outputs is not None
            prediction = trajectory.outputs[-1].astype(np.float64)
            # Divided by the largest first, so that no small temperature underflows them all.
            cumulated = np.cumsum((prediction / prediction.max()) ** (1 / temperature))
            tokens = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")[None]
            yield self.vocabulary.characters[tokens[0]]
