"""Training a character model: the optimizers, and the loop over the blocks of a text."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bptt._kernel import Array
from bptt._validate import memory_size
from bptt.character_model import CharacterModel
from bptt.gradient import forward, value_and_grad
from bptt.text import PIECE, blocks, streams


def sgd(vector: Array, gradient: Array, moments: Array, update: int, rate: float) -> tuple[Array, Array]:
    """Stochastic gradient descent with momentum 0.9: v ← 0.9 v + g, θ ← θ − rate v (Polyak 1964)."""
    velocity = 0.9 * moments[0] + gradient
    return vector - rate * velocity, velocity[None]


def adam(vector: Array, gradient: Array, moments: Array, update: int, rate: float) -> tuple[Array, Array]:
    """Adam with β = 0.9, 0.999 and ε = 1e-8 (Kingma and Ba 2015, algorithm 1)."""
    mean = 0.9 * moments[0] + 0.1 * gradient
    square = 0.999 * moments[1] + 0.001 * gradient**2
    step = mean / (1 - 0.9**update) / (np.sqrt(square / (1 - 0.999**update)) + 1e-8)
    return vector - rate * step, np.stack([mean, square])


#: By name, an optimizer's update and how many moments it keeps. An update takes θ, its gradient, the moments, the
#: number of the update from 1 on and the learning rate, and returns θ and the moments.
OPTIMIZERS = {"sgd": (sgd, 1), "adam": (adam, 2)}


@dataclass(frozen=True)
class Settings:
    """What a training run is, apart from its text. A resumed run keeps all but `learning_rate` and `clip`.

    Attributes
    ----------
    hidden : int
        n, hidden units.
    length : int
        Steps in a block, between two updates: the k1 of truncated BPTT.
    window : int or None
        Steps that the errors of a block flow back from its end, its k2: at least `length`. None: to its beginning.
    batch : int
        B, streams that run through the text side by side.
    optimizer : {"adam", "sgd"}
    learning_rate : float
        Positive.
    clip : float
        Threshold of the gradient's norm, positive: a longer gradient is scaled down to it (Pascanu 2013, algorithm 1).
        inf never clips.
    seed : int
        Of the initial weights, not negative; nothing else in a run is random.
    """

    hidden: int = 128
    length: int = 64
    batch: int = 32
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    clip: float = 1.0
    seed: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "length", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.window is not None and self.window < self.length:
            raise ValueError(f"window must be at least length = {self.length}; got {self.window}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite; got {self.learning_rate}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive; got {self.clip}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative; got {self.seed}")


@dataclass(frozen=True, eq=False)
class State:
    """All that changes in a run. It is replaced as a whole, so that an interrupt finds the old one or the new one.

    Attributes
    ----------
    updates : int
        Done so far; the place in the text follows from it.
    model : CharacterModel
    moments : array of shape (number of moments, number of weights)
        The optimizer's.
    carried : array of shape (B, n)
        The state at which the errors of the next block stop: with no `window`, the one after the last block.
    """

    updates: int
    model: CharacterModel
    moments: Array
    carried: Array


@dataclass(frozen=True)
class Progress:
    """Facts of one update.

    Attributes
    ----------
    updates : int
        Done since the start of training, this one included.
    epochs : float
        Passes through the text since the start of training.
    bits_per_character : float
        Of this block, before the update.
    gradient_norm : float
        ‖dE/dθ‖₂ of the mean error over all weights, before clipping.
    characters_per_second : float
        Mean of this call of `Training.run`.
    seconds : float
        Since the call of `Training.run`.
    fraction : float
        Share done of what `Training.run` was asked for, 0..1.
    """

    updates: int
    epochs: float
    bits_per_character: float
    gradient_norm: float
    characters_per_second: float
    seconds: float
    fraction: float


class Training:
    """A run through a text, block after block.

    Parameters
    ----------
    model : CharacterModel
        Its network is trained; the model itself is left as it is.
    tokens : integer array of shape (N,)
        The text to train on, by the model's vocabulary.
    settings : Settings

    Attributes
    ----------
    settings : Settings
    state : State
        As of the last update; `state.model` is the trained model.

    Raises
    ------
    ValueError
        The text cannot feed the batch.

    Examples
    --------
    >>> from bptt.text import Vocabulary
    >>> vocabulary = Vocabulary.of(text := "to be or not to be " * 50)
    >>> settings = Settings(hidden=8, length=10, batch=4)
    >>> training = Training(CharacterModel.random(vocabulary, settings.hidden), vocabulary.encode(text), settings)
    >>> facts = list(training.run(epochs=10))
    >>> facts[-1].bits_per_character < facts[0].bits_per_character
    True
    """

    def __init__(self, model: CharacterModel, tokens: Array, settings: Settings) -> None:
        self.settings = settings
        self._inputs, self._targets = streams(tokens, settings.batch)
        self._blocks = blocks(len(self._inputs), settings.length)
        digest = hashlib.sha256()
        for i in range(0, len(tokens), PIECE):  # of a text larger than memory
            digest.update(np.asarray(tokens[i : i + PIECE], "<i4").tobytes())
        self._digest = digest.hexdigest()
        vector = model.rnn.ravel()
        _, kept = OPTIMIZERS[settings.optimizer]
        moments = np.zeros((kept, vector.size), vector.dtype)
        self.state = State(0, model, moments, self._fresh(model))

    def _fresh(self, model: CharacterModel) -> Array:
        """The initial value at the beginning of the text."""
        return np.zeros((self.settings.batch, model.rnn.n), model.rnn.dtype)

    @property
    def epochs(self) -> float:
        """Passes through the text so far."""
        return self.state.updates / len(self._blocks)

    def run(
        self, *, epochs: int | None = None, seconds: float | None = None, memory: int | str | None = None
    ) -> Generator[Progress]:
        """Train until the text has been passed through, or the time is up, whichever comes first.

        An interrupt (or an error) leaves `state` as of the last whole update.

        Parameters
        ----------
        epochs : int, optional
            Passes through the text since the start of training: a resumed run does only what is left of them.
        seconds : float, optional
            Of this call, positive. An update that ends beyond them is the last.
        memory : int or str, optional
            Of each gradient, as in `value_and_grad`: it changes no result.

        Yields
        ------
        Progress
            After every update.

        Raises
        ------
        ValueError
            Neither epochs nor seconds is given, or one is not positive.
        FloatingPointError
            The run diverged: states, gradient or weights are not finite any more. `state` is the last one that was.
        """
        if epochs is None and seconds is None:
            raise ValueError("run wants epochs or seconds: without either it would not end")
        for name, value in (("epochs", epochs), ("seconds", seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        return self._run(epochs, seconds, None if memory is None else memory_size("memory", memory))

    def _run(self, epochs: int | None, seconds: float | None, memory: int | None) -> Generator[Progress]:
        start = time.perf_counter()
        elapsed, characters = 0.0, 0
        last = math.inf if epochs is None else epochs * len(self._blocks)
        while self.state.updates < last and (seconds is None or elapsed < seconds):
            block = self._blocks[self.state.updates % len(self._blocks)]
            value, norm = self._update(block, memory)
            elapsed = time.perf_counter() - start
            characters += (block.stop - block.start) * self.settings.batch
            updates = self.state.updates
            yield Progress(
                updates=updates,
                epochs=self.epochs,
                bits_per_character=value / math.log(2),
                gradient_norm=norm,
                characters_per_second=characters / elapsed,
                seconds=elapsed,
                fraction=min(1.0, max(updates / last, elapsed / (seconds or math.inf))),
            )

    def _stop(self, block: slice) -> int:
        """The step at which the errors of a block stop."""
        window = self.settings.window
        return int(block.start) if window is None else max(block.stop - window, 0)

    def _update(self, block: slice, memory: int | None) -> tuple[float, float]:
        """Value and gradient norm of a block, and the state after its update."""
        state, settings = self.state, self.settings
        rnn, stop = state.model.rnn, self._stop(block)
        initial = state.carried if block.start else self._fresh(state.model)
        x, y = self._inputs[stop : block.stop], self._targets[stop : block.stop]
        weights = None
        if stop < block.start:  # the errors before it were met in their own blocks
            weights = np.zeros(y.shape, rnn.dtype)
            weights[block.start - stop :] = 1
        value, gradients = value_and_grad(rnn, x, y, weights=weights, initial=initial, memory=memory, nonfinite="raise")
        optimizer, _ = OPTIMIZERS[settings.optimizer]
        gradient = gradients.clip(settings.clip).ravel()
        with np.errstate(over="ignore", invalid="ignore"):
            vector, moments = optimizer(rnn.ravel(), gradient, state.moments, state.updates + 1, settings.learning_rate)
        if not np.isfinite(vector).all():
            raise FloatingPointError(f"the weights are not finite after update {state.updates + 1}")
        model = replace(state.model, rnn=rnn.unravel(vector))
        carried = gradients.final
        assert carried is not None
        following = self._blocks[(state.updates + 1) % len(self._blocks)]
        if following.start and (ahead := self._stop(following)) < block.stop:
            carried = forward(rnn, x[: ahead - stop], initial).final
        self.state = State(state.updates + 1, model, moments, carried)
        return value, gradients.norm()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with all that `load` needs to continue exactly; `CharacterModel.load` reads the model alone.

        Raises
        ------
        OSError
            The file cannot be written; the old one, if any, is untouched.
        """
        state = self.state
        facts = {"settings": asdict(self.settings), "updates": state.updates, "text": self._digest}
        arrays = {"training.moments": state.moments, "training.carried": state.carried}
        state.model.save(path, arrays=arrays, metadata={"training": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], tokens: Array, **changes: Any) -> Training:
        """Continue a saved run: as if it had never been interrupted, down to the last bit.

        Parameters
        ----------
        path : path
            A file that `save` wrote.
        tokens : integer array of shape (N,)
            The text of that run.
        **changes
            Settings to go on with: another learning_rate or clip. Others may be given, but only as they are.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            The file is damaged or holds no training, the text is another, or a setting may not change.
        """
        from safetensors import SafetensorError, safe_open

        model, name = CharacterModel.load(path), os.fspath(path)
        try:
            with safe_open(name, framework="numpy") as file:
                if "training" not in file.metadata():
                    raise ValueError(f"{name} holds a model but no training to go on with")
                facts = json.loads(file.metadata()["training"])
                moments, carried = file.get_tensor("training.moments"), file.get_tensor("training.carried")
            stored, updates, digest = Settings(**facts["settings"]), int(facts["updates"]), facts["text"]
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"the training state in {name} is damaged: {error}") from error
        settings = replace(stored, **changes)
        for kept in ("hidden", "length", "batch", "optimizer", "seed", "window"):
            if getattr(settings, kept) != getattr(stored, kept):
                raise ValueError(
                    f"{kept} = {getattr(settings, kept)} differs from the {getattr(stored, kept)} of {name}: "
                    "a run that goes on may change learning_rate and clip only"
                )
        training = cls(model, tokens, settings)
        if training._digest != digest:
            raise ValueError(f"{name} was trained on another text")
        fresh = training.state
        if (moments.shape, carried.shape) != (fresh.moments.shape, fresh.carried.shape):
            raise ValueError(f"the training state in {name} is damaged: it does not fit its network")
        training.state = State(updates, model, moments, carried)
        return training
