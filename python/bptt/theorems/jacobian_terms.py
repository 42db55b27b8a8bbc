"""Theorem 1 as an object: every term of dh_t/dW_R, as printed and as it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bptt._kernel import Array
from bptt._validate import integer
from bptt.chain import product_chain
from bptt.checking import relative_error
from bptt.gradient import forward
from bptt.network import RNN


def HV(v: npt.ArrayLike) -> Array:
    """The matrix of article Thm 1: an n × n grid of blocks vᵀ.

    Parameters
    ----------
    v : array of shape (n,)

    Returns
    -------
    array of shape (n, n * n)

    Examples
    --------
    What belongs in its place is I ⊗ vᵀ:

    >>> import numpy as np
    >>> from bptt.theorems import HV
    >>> HV([1, 2])
    array([[1, 2, 1, 2],
           [1, 2, 1, 2]])
    >>> np.kron(np.eye(2, dtype=int), [1, 2])
    array([[1, 2, 0, 0],
           [0, 0, 1, 2]])
    """
    row = np.asarray(v)
    return np.tile(row, (len(row), len(row)))


@dataclass(frozen=True, slots=True, eq=False)
class Theorem1:
    """dh_t/dW_R of a network on an input, term by term, as `theorem_1` found it.

    Its columns are the entries of W_R by rows: column a·n + b is the derivative by W_R[a,b].

    Attributes
    ----------
    t : int
        The step.
    chains : array of shape (t, n, n)
        P(1,t) .. P(t,t).
    activations : array of shape (t, n)
        a_0 .. a_{t-1}.
    finite_differences : array of shape (n, n * n)
        dh_t/dW_R by central differences, which knows nothing of any formula.
    """

    t: int
    chains: Array
    activations: Array
    finite_differences: Array

    @property
    def HV(self) -> Array:
        """array of shape (t, n, n * n): the printed HV(a_{k-1}), k = 1 .. t."""
        return np.stack([HV(a) for a in self.activations])

    @property
    def kronecker(self) -> Array:
        """array of shape (t, n, n * n): the true I ⊗ a_{k-1}ᵀ, k = 1 .. t."""
        return np.stack([np.kron(np.eye(len(a)), a) for a in self.activations])

    @property
    def terms(self) -> Array:
        """array of shape (t, n, n * n): F(1,t) .. F(t,t), F(k,t) = P(k,t) (I ⊗ a_{k-1}ᵀ)."""
        return self.chains @ self.kronecker

    @property
    def printed(self) -> Array:
        """array of shape (n, n * n): the printed result, Σ_k P(k,t) HV(a_{k-1})."""
        result: Array = (self.chains @ self.HV).sum(axis=0)
        return result

    @property
    def corrected(self) -> Array:
        """array of shape (n, n * n): the true result, Σ_k F(k,t)."""
        result: Array = self.terms.sum(axis=0)
        return result

    @property
    def printed_error(self) -> float:
        """Relative error of the printed result against finite differences (Frobenius)."""
        return relative_error(self.printed, self.finite_differences)

    @property
    def corrected_error(self) -> float:
        """Relative error of the true result against finite differences (Frobenius)."""
        return relative_error(self.corrected, self.finite_differences)

    def __str__(self) -> str:
        n = self.chains.shape[1]
        return (
            f"Theorem 1 for n = {n}, t = {self.t}: relative error against finite differences "
            f"{self.printed_error:.2g} with HV, {self.corrected_error:.1e} with I ⊗ aᵀ"
        )


def theorem_1(rnn: RNN, x: npt.ArrayLike, *, initial: npt.ArrayLike | None = None, step: int = -1) -> Theorem1:
    """Take dh_t/dW_R apart: the terms F(k,t), the printed and the true result, and finite differences (article Thm 1).

    h_t is the preactivation in both forms. The result holds t·n² numbers, its properties t·n³; the differences take 2n²
    runs of the network. For the derivative alone there is `state_jacobian`.

    Parameters
    ----------
    rnn : RNN
        Computed in float64.
    x : array of shape (T, p), or integer array of shape (T,)
        One sequence, T >= 1.
    initial : array of shape (n,), optional
        As in `forward`.
    step : int
        t, 1 .. T, or negative from the end.

    Returns
    -------
    Theorem1

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `forward`; and a ValueError if x is a batch or step out of range.

    Examples
    --------
    >>> import bptt
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rnn = bptt.RNN.random(3, 4, None, rng=rng)
    >>> theorem = bptt.theorems.theorem_1(rnn, rng.standard_normal((6, 3)), initial=rng.standard_normal(4))
    >>> print(theorem)  # doctest: +ELLIPSIS
    Theorem 1 for n = 4, t = 6: relative error against finite differences 1... with HV, ...e-1... with I ⊗ aᵀ
    >>> np.allclose(theorem.terms.sum(axis=0), theorem.corrected)
    True
    """
    if not isinstance(rnn, RNN):
        raise TypeError(f"rnn must be a bptt.RNN; got {type(rnn).__name__}")
    rnn = rnn.astype(np.float64)
    trajectory = forward(rnn, x, initial, nonfinite="raise")
    a = trajectory.activations
    if a.ndim != 2:
        raise ValueError(f"x must be one sequence, of shape (T, p) with p = {rnn.p} or (T,); got {np.shape(x)}")
    T = len(a) - 1
    integer("step", abs(step), 1)
    t = step if step > 0 else T + 1 + step
    if not 1 <= t <= T:
        raise ValueError(f"step must be in 1..T with T = {T}, or -T..-1; got {step}")
    chains = [product_chain(rnn, trajectory, k, t).to_array() for k in range(1, t + 1)]
    return Theorem1(t, np.stack(chains), a[:t], _differences(rnn, np.asarray(x)[:t], trajectory.initial))


def _differences(rnn: RNN, x: Array, initial: Array) -> Array:
    """dh_T/dW_R by central differences, (n, n * n)."""
    columns = []
    for place in np.ndindex(rnn.W_R.shape):
        step = np.cbrt(np.finfo(np.float64).eps) * max(1.0, abs(rnn.W_R[place]))
        ends = []
        for sign in (1, -1):
            W = rnn.W_R.copy()
            W[place] += sign * step
            ends.append(forward(rnn.replace(W_R=W), x, initial, nonfinite="ignore").preactivations[-1])
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=1)
