"""What the calls on a network give back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from bptt._columns import Columns
from bptt._kernel import Array
from bptt._memory import aligned, read_only
from bptt._validate import number

Part = tuple[int, int, tuple[int, ...]]  # start, stop and shape


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Trajectory:
    """A run of a network, made by `forward`: its states and outputs at every step.

    Arrays are time-major, zero beyond a sequence's length, read-only, and without the axis B where x had none. They are
    views of one storage where all sequences are as long as x, and made at each access where they are not.

    Attributes
    ----------
    preactivations : array of shape (T, B, n)
        h_1 .. h_T.
    activations : array of shape (T + 1, B, n)
        a_0 .. a_T, a_t = sigma(h_t).
    states : array of shape (T + 1, B, n)
        The form's own: a_0 .. a_T in form "activation" (article eq. G1), h_0 .. h_T in form "preactivation" (eq. 1).
    outputs : array of shape (T, B, m) or None
        o_1 .. o_T; None without a readout.
    initial, final : array of shape (B, n)
        The state at t = 0, and the one after each sequence's last step.
    lengths : integer array of shape (B,), or int
        Steps of each sequence.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rnn = bptt.RNN([[0.5]], [[1.0]], activation="identity")
    >>> bptt.forward(rnn, np.ones((3, 1))).activations.ravel()
    array([0.  , 1.  , 1.5 , 1.75])
    """

    _a: Array  # rows of `_columns` from t = 0 on
    _h: Array  # likewise; the block of t = 0 is h_0 in form "preactivation"
    _o: Array | None  # (columns, m), from t = 1 on
    _n: int
    _form: str
    _columns: Columns
    _batched: bool

    @property
    def preactivations(self) -> Array:
        return self._whole(self._h[self._columns.size :, : self._n], 1)

    @property
    def activations(self) -> Array:
        return self._whole(self._a[:, : self._n], 0)

    @property
    def states(self) -> Array:
        return self.activations if self._form == "activation" else self._whole(self._h[:, : self._n], 0)

    @property
    def outputs(self) -> Array | None:
        return None if self._o is None else self._whole(self._o, 1)

    @property
    def initial(self) -> Array:
        return self._sequences(self._state[: self._columns.size])

    @property
    def final(self) -> Array:
        return self._sequences(self._state[self._columns.finals()])

    @property
    def lengths(self) -> Array | int:
        columns = self._columns
        lengths = np.full(columns.size, columns.time) if columns.lengths is None else columns.lengths
        return lengths if self._batched else int(lengths[0])

    def __repr__(self) -> str:
        T, B = self._columns.time, self._columns.size
        batch = f"B={B}, " if self._batched else ""
        outputs = "" if self._o is None else f", m={self._o.shape[1]}"
        return f"Trajectory(T={T}, {batch}n={self._n}{outputs}, {self._a.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        n = self._n  # without the padding of the rows
        return _rebuild, (self._a[:, :n], self._h[:, :n], self._o, self._form, self._columns, self._batched)

    @property
    def _state(self) -> Array:
        return self._a if self._form == "activation" else self._h

    def _whole(self, packed: Array, since: int) -> Array:
        whole = self._columns.unpack(packed, since)
        return read_only(whole if self._batched else whole[:, 0])

    def _sequences(self, rows: Array) -> Array:
        whole = self._columns.unsort(rows[:, : self._n])
        return read_only(whole if self._batched else whole[0])


def _rebuild(a: Array, h: Array, o: Array | None, form: str, columns: Columns, batched: bool) -> Trajectory:
    rows, n = a.shape
    storage = aligned(rows, n, a.dtype), aligned(rows, n, a.dtype)
    for mine, theirs in zip(storage, (a, h), strict=True):
        mine[:, :n] = theirs
    return Trajectory(*storage, o, n, form, columns, batched)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Gradients:
    """The gradient of an error by everything that the network and its initial value are made of.

    Attributes
    ----------
    W_R, W_I, W_O, b_R, b_I, b_O : array or None
        dE/d(that weight), in its shape; None where the network has it not. b_R and b_I act together: equal gradients.
    initial : array of shape (B, n)
        dE/d(initial value): by a_0 in form "activation", by h_0 in form "preactivation".
    x : array of shape (T, B, p) or None
        dE/dx, where it was asked for.
    final : array of shape (B, n) or None
        Not a gradient: the state after each sequence's last step, to go on from. None from `backward`, whose trajectory
        has it.

    Examples
    --------
    >>> import bptt
    >>> rnn = bptt.RNN.random(3, 8, 5)
    >>> _, gradients = bptt.value_and_grad(rnn, [0, 2, 1], [1, 4, 0])
    >>> gradients
    Gradients(W_R (8, 8), W_I (8, 3), W_O (5, 8), b_R (8,), b_O (5,), initial (8,), float64)
    >>> rnn = rnn.unravel(rnn.ravel() - 0.1 * gradients.clip(1.0).ravel())
    """

    _vector: Array  # as `ravel` gives it
    _parts: dict[str, Part]  # where in it the gradient by each weight lies
    initial: Array
    x: Array | None
    final: Array | None

    @property
    def W_R(self) -> Array:
        return self._part("W_R")

    @property
    def W_I(self) -> Array:
        return self._part("W_I")

    @property
    def W_O(self) -> Array | None:
        return self._part("W_O") if "W_O" in self._parts else None

    @property
    def b_R(self) -> Array | None:
        return self._part("b_R") if "b_R" in self._parts else None

    @property
    def b_I(self) -> Array | None:
        return self._part("b_I") if "b_I" in self._parts else None

    @property
    def b_O(self) -> Array | None:
        return self._part("b_O") if "b_O" in self._parts else None

    def norm(self) -> float:
        """The Euclidean norm of all the weights' gradients taken as one vector."""
        vector = self._vector.astype(np.float64)
        largest = float(np.abs(vector).max())
        if not 0 < largest < np.inf:
            return largest
        return largest * float(np.linalg.norm(vector / largest))  # squares of the quotients cannot overflow

    def clip(self, max_norm: float) -> Gradients:
        """The weights' gradients, scaled down to the norm ``max_norm`` where theirs is larger (Pascanu 2013, alg. 1).

        ``initial`` and ``x`` are not weights and stay as they are.

        Parameters
        ----------
        max_norm : float
            Threshold, >= 0; inf never clips.

        Raises
        ------
        ValueError
            max_norm is negative or nan.
        FloatingPointError
            The norm is not finite, so that no factor makes it ``max_norm``.
        """
        limit = number("max_norm", max_norm, finite=False)
        norm = self.norm()
        if not norm < np.inf:
            raise FloatingPointError(f"a gradient of norm {norm} cannot be clipped to {max_norm}")
        if norm <= limit:
            return self
        return replace(self, _vector=self._vector * (limit / norm))

    def ravel(self) -> Array:
        """The weights' gradients as one vector, in the order of `RNN.ravel`.

        Returns
        -------
        array of shape (size,)
            A copy.
        """
        return self._vector.copy()

    def _part(self, name: str) -> Array:
        start, stop, shape = self._parts[name]
        return self._vector[start:stop].reshape(shape)

    def __repr__(self) -> str:
        shapes = {name: shape for name, (_, _, shape) in self._parts.items()}
        shapes["initial"] = self.initial.shape
        if self.x is not None:
            shapes["x"] = self.x.shape
        return f"Gradients({', '.join(f'{name} {shape}' for name, shape in shapes.items())}, {self._vector.dtype})"


@cache
def layout(n: int, p: int, m: int, b_R: bool, b_I: bool, b_O: bool) -> dict[str, Part]:
    """Where in the vector of `RNN.ravel` each weight lies. m = 0: there is no readout."""
    shapes = {"W_R": (n, n), "W_I": (n, p), "W_O": (m, n), "b_R": (n,), "b_I": (n,), "b_O": (m,)}
    absent = {"W_O": not m, "b_R": not b_R, "b_I": not b_I, "b_O": not b_O}
    parts: dict[str, Part] = {}
    stop = 0
    for name, shape in shapes.items():
        if not absent.get(name):
            start, stop = stop, stop + math.prod(shape)
            parts[name] = start, stop, shape
    return parts
