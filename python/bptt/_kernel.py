"""What every level offers: the functions of one segment of steps.

A *level* is a module compiled for one instruction set, or ``_kernel_reference`` (NumPy). All keep no state: what a
segment needs comes in as arrays, what it makes goes out through arrays that the caller allocated.

Columns
-------
The sequences of a batch are sorted by length, longest first, and what belongs to step ``t`` is stored for the sequences
that reach it: a block of ``B_t`` rows, one *column* (t, b) of the mathematics each; blocks follow one another in time.
A batch of equal lengths is therefore a plain ``(T * B, ...)`` array, and the cost of a ragged one follows the sum of
its lengths.

Dimension letters
-----------------
L : steps of the segment, t0+1 .. t1
C : columns of the segment, the sum of ``counts[1 : L + 1]``
n, p, m : hidden units, inputs, outputs
ld : n rounded up to 64 bytes (`row_length`); what a row holds beyond n is never read as a number
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]

#: The order is the numbering of the compiled enumerations (cpp/kernel/network.hpp, loss.hpp).
ACTIVATIONS = ("identity", "tanh", "logistic", "relu", "leaky_relu", "elu", "softplus", "softsign")
FORMS = ("activation", "preactivation")
READOUTS = ("activation", "preactivation")
OUTPUTS = ("softmax", "linear")
LOSSES = ("cross_entropy", "squared_error")


def row_length(n: int, itemsize: int) -> int:
    """Numbers in one stored row of n: n rounded up to a multiple of 64 bytes."""
    step = 64 // itemsize
    return -(-n // step) * step


class Ordered(NamedTuple):
    """Numbers of the steps as a ragged batch has them, those that are not there among them."""

    block: Array  # (L, B, p), contiguous
    order: Array  # int64 (B,): the sequence of each rank


class Network(NamedTuple):
    """A network as a level takes it: contiguous arrays of one dtype, names as their index in the tuples above."""

    W_R: Array  # (n, n)
    W_I: Array  # (n, p); for tokens W_I transposed, (p, ld)
    W_O: Array | None  # (m, n)
    b: Array | None  # (n,), b_R + b_I
    b_O: Array | None  # (m,)
    activation: int
    form: int
    readout: int
    output: int


class Sums(NamedTuple):
    """Accumulators of the gradient, float64 and contiguous; None where it is not wanted."""

    W_R: Array  # (n, n)
    W_I: Array  # (n, p); for tokens transposed, (p, n)
    W_O: Array | None  # (m, n)
    b: Array | None  # (n,)
    b_O: Array | None  # (m,)


class Factors(NamedTuple):
    """The factors M_k of a chain, k = first .. first + L - 1: W diag(d_k 2**e_k); without d, a matrix for each."""

    matrices: Array  # (n, n), or (L, n, n); float64 like all of a chain
    d: Array | None  # (L, ld): at least 2**-512, or 0, or with an exponent
    e: Array | None  # int64 (L, ld); None means 0
    first: int


class Bundles(NamedTuple):
    """Rows that move through a chain, v P(k,t) = v P(k+1,t) M_k: S bundles of n rows (a matrix) or 1 (a vector).

    Each row has a binary exponent, and a sum of squares from 2**-128 to 2**128, or 0.
    """

    stops: Array  # int64 (S,), not decreasing: bundle s meets the factors of k = stops[s]-1, ..., stops[s]-lags+1
    lags: int
    rows: Array  # (R, ld), 0 beyond n (moved; what has met its last factor is left as it may be)
    exponents: Array  # int64 (R,) (moved)


class Kernel(Protocol):
    """The functions of a level. float32 or float64 by the dtype of the arrays; ``threads`` never changes a bit."""

    def forward(
        self,
        network: Network,
        x: Array | Ordered,  # (C, p), or those of a ragged batch; or int32 (C,): tokens in 0..p-1
        counts: Array,  # int64 (L + 2,): columns at steps t0, t0+1, ..., t1, t1+1
        a: Array,  # (counts[0] + C, ld): the first counts[0] rows are a_t0 (read), the others a_t (written)
        h: Array | None,  # (C, ld): pre-activations (written)
        threads: int,
    ) -> int:
        """States of one segment. Returns the first column where one (a, or h where stored) is not finite, or -1."""
        ...

    def outputs(
        self,
        network: Network,
        r: Array,  # (C, ld): a_t or h_t, what the readout reads
        o: Array,  # (C, m) (written)
        unit: int,  # columns between the places where time can be cut and no bit changes
        threads: int,
    ) -> None:
        """Predictions o_t = softmax(z_t) or z_t, z_t = W_O r_t + b_O."""
        ...

    def direct(
        self,
        network: Network,
        loss: int,  # index in LOSSES
        a: Array,  # (C, ld): a_t
        h: Array | None,  # (C, ld): needed where the readout reads h
        y: Array,  # int32 (C,) for cross-entropy, else (C, m)
        weights: Array | None,  # (C,): w_t; None means 1. Where it is 0, y is not used
        errors: Array,  # float64 (C,) (written): w_t E_t
        g: Array,  # (C, ld) (written): d(w_t E_t)/dh_t
        threads: int,
    ) -> None:
        """Errors of one segment and their direct part."""
        ...

    def best_parts(
        self,
        n: int,
        size: int,  # B
    ) -> int:
        """Into how many parts `backward` best cuts a batch: it then wants as many `Sums`, for all segments the same."""
        ...

    def backward(
        self,
        network: Network,
        loss: int,  # index in LOSSES, or -1: no errors of its own, only the upstream gradients
        x: Array | Ordered,  # as in forward
        counts: Array,  # as in forward
        a: Array,  # as in forward, all rows read
        h: Array | None,  # as in direct
        y: Array | None,  # as in direct
        weights: Array | None,  # as in direct
        d_outputs: Array | None,  # (C, m): dE/do_t, used where loss is -1
        d_states: Array | None,  # (C, n): dE/d(the form's own state at t), added to what the network itself gives
        carry: Array,  # (B, ld): for the counts[L+1] columns that go on after t1, dE/da_t1;
        #                for the others dE/d(their final state, the form's own).
        #                The first counts[1] rows become dE/da_t0
        errors: Array | None,  # float64 (C,) (written): w_t E_t, where loss is not -1
        sums: tuple[Sums, ...],  # (written, or added to): the gradient is the sum of one, or of one for each half of
        #                          the batch
        more: bool,  # whether they hold the sums over later steps
        d_x: Array | None,  # (C, p) (written): dE/dx_t
        delta: Array | None,  # (C, ld) (written): delta_t = dE/dh_t
        threads: int,
    ) -> int:
        """Gradient of one segment. Returns the last column (first on the way back) whose delta is not finite, or -1."""
        ...

    def add_units(
        self,
        values: Array,  # float64, contiguous
        unit: int,
        total: float,
    ) -> float:
        """The total with the values added: ``unit`` after ``unit``, counted from the first, the last of them first."""
        ...

    def scale(
        self,
        values: Sequence[Array],  # one or two (R, w), or (w,): float64, or the dtype of `scaled`
        factor: float,
        scaled: Array,  # (R, n), n <= w, or (n,) (written): of each row the first n numbers
        threads: int,
    ) -> bool:
        """The values, added, times the factor, rounded once. Returns whether all that was written is finite."""
        ...

    def arrange(
        self,
        lengths: Array,  # int64 (B,), contiguous
    ) -> tuple[Array, Array, Array, Array]:
        """How sequences lie, the longest first: the sequence of each rank (B,), the lengths in ascending order (B,),
        the sums over the shortest of length + 1 (B + 1,), and the row of each rank's last step (B,)."""
        ...

    def count_present(
        self,
        ascending: Array,  # int64 (B,), contiguous
        t0: int,
        counts: Array,  # int64 (L,) (written): the sequences that have step t0, t0 + 1, ...
    ) -> None: ...

    def pick(
        self,
        block: Array,  # (L, B, ...), contiguous, of any dtype
        order: Array,  # int64 (B,): the sequence of each rank
        counts: Array,  # as in forward
        columns: Array,  # (C, ...) (written)
    ) -> None:
        """The columns that are there."""
        ...

    def find_outside(
        self,
        indices: Array,  # int32 or int64, contiguous
        limit: int,
    ) -> int:
        """The first position of what is not in 0 .. limit-1, or -1."""
        ...

    def activate(
        self,
        activation: int,
        h: Array,  # contiguous, any shape
        a: Array | None,  # like h (written): the activation
        d: Array | None,  # like h (written): its derivative, from h
        log_d: Array | None,  # like h (written): the logarithm of the derivative's modulus
    ) -> None:
        """sigma(h), sigma'(h) and log sigma'(h), element by element."""
        ...

    def advance(
        self,
        factors: Factors,
        bundles: Bundles,
        norms: Array | None,  # (S, lags): the log norm of bundle s after M_k at [s, stops[s]-k] (written)
        offsets: Array | None,  # (L,): added to the log norms after M_k
        leads: Array | None,  # (S, ld), 0 beyond n: None means Frobenius norms, else spectral, of at most n rows:
        #                       directions near the first left singular vectors, any to begin with (moved)
        threads: int,
    ) -> None:
        """Move the bundles through the factors, which are finite, the last first."""
        ...

    def accumulate(
        self,
        factors: Factors,
        bundles: Bundles,  # of one row
        a: Array,  # (L, ld): a_{k-1}
        gradients: Array,  # (S, n, n): added to, the outer product of the row after M_k and a_{k-1}
        threads: int,
    ) -> None:
        """Move the bundles as `advance` does, and gather the gradients they make."""
        ...

    def jacobian_by_chain(
        self,
        W_R: Array,  # (n, n); float64 like all of a Jacobian
        d: Array,  # (L, n): the diagonals of D_{k-1}, k = t0+1 .. t1
        v: Array | None,  # (L, q): the direct derivative of h_k is I ⊗ v_k^T; or int32 (L,): tokens, v one-hot
        P: Array,  # (n, ld), 0 beyond n: P(t1) (becomes P(t0))
        J: Array | None,  # (n, n, q) (written, or added to); None without v
        more: bool,  # whether J holds the sum over later steps
        single: int,  # how many of the first of them, 0 .. L, are gone through, and summed, in float32
        threads: int,
    ) -> bool:
        """J (+)= sum_k P(k) ⊗ v_k^T, the last step first, P(k-1) = P(k) W_R D_{k-1}. Returns whether J is finite."""
        ...

    def jacobian_by_recursion(
        self,
        W_R: Array,
        d: Array,
        v: Array | None,  # all as in jacobian_by_chain
        J: Array,  # (n q, ld), 0 beyond n: its columns as rows (moved); without v any number of rows
        threads: int,
    ) -> int:
        """J = I ⊗ v_k^T + W_R D_{k-1} J for all k. Returns the first k - t0 - 1 after which J is not finite, or -1."""
        ...

    def grow(
        self,
        matrices: Array,  # (n, n), or one for each step, (L, n, n); finite, float64 like all of this
        log_d: Array | None,  # (L, n): J_t is matrix diag(exp(log_d_t)); None: the matrices alone, one for each step
        Q: Array,  # (k, ld), 0 beyond n: a basis, its columns as rows, orthonormal or 0 (becomes that of J_L ... J_1 Q)
        log_r: Array,  # (k,) (written): log diag R; -inf for a direction that is dead, whose row of Q becomes 0
        singular: bool,  # whether directions may die though none of log_d is -inf
        threads: int,
    ) -> None:
        """Carry a basis along a trajectory."""
        ...
