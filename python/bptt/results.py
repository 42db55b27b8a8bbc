"""What the calls on a network give back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bptt._columns import Columns
from bptt._kernel import Array
from bptt._memory import aligned, read_only
from bptt._validate import number
from bptt.network import WEIGHTS


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

    W_R: Array
    W_I: Array
    W_O: Array | None
    b_R: Array | None
    b_I: Array | None
    b_O: Array | None
    initial: Array
    x: Array | None = None
    final: Array | None = None

    def norm(self) -> float:
        """The Euclidean norm of all the weights' gradients taken as one vector."""
        vector = self.ravel().astype(np.float64)
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
        factor = limit / norm
        return replace(self, **{name: gradient * factor for name, gradient in self._present().items()})

    def ravel(self) -> Array:
        """The weights' gradients as one vector, in the order of `RNN.ravel`.

        Returns
        -------
        array of shape (size,)
        """
        return np.concatenate([gradient.ravel() for gradient in self._present().values()])

    def _present(self) -> dict[str, Array]:
        named = {name: getattr(self, name) for name in WEIGHTS}
        return {name: gradient for name, gradient in named.items() if gradient is not None}

    def __repr__(self) -> str:
        named = {**self._present(), "initial": self.initial, "x": self.x}
        shapes = ", ".join(f"{name} {array.shape}" for name, array in named.items() if array is not None)
        return f"Gradients({shapes}, {self.W_R.dtype})"
