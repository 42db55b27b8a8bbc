"""Looking for a network that refutes a corrected statement: thousands of them, the strange ones first."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bptt
from bptt import theorems
from bptt._kernel import ACTIVATIONS, FORMS, OUTPUTS, READOUTS
from bptt.theorems import Truth

EPS = np.finfo(float).eps

# Whole networks -------------------------------------------------------------------------------------------------------

MATRICES = {
    "normal": lambda rng, n: scale(rng) * rng.standard_normal((n, n)) / np.sqrt(n),
    "orthogonal": lambda rng, n: orthogonal(rng, n),
    "multiple of orthogonal": lambda rng, n: scale(rng) * orthogonal(rng, n),
    "symmetric": lambda rng, n: scale(rng) * (lambda A: A + A.T)(rng.standard_normal((n, n))),
    "rotation": lambda rng, n: scale(rng) * np.kron(np.eye(n), turn(rng))[:n, :n],
    "permutation": lambda rng, n: rng.choice([-1, 0.5, 1, 2]) * np.eye(n)[rng.permutation(n)],
    "integer": lambda rng, n: rng.integers(-2, 3, (n, n)).astype(float),
    "identity": lambda rng, n: rng.choice([-3, -1, -0.5, 0.5, 1, 2]) * np.eye(n),
    "zero": lambda rng, n: np.zeros((n, n)),
    "triangular": lambda rng, n: np.triu(scale(rng) * rng.standard_normal((n, n))),
    "non-normal": lambda rng, n: (
        np.diag(rng.uniform(-1.2, 1.2, n)) + 10 ** rng.uniform(0, 4) * np.triu(rng.standard_normal((n, n)), 1)
    ),
    "nilpotent": lambda rng, n: np.triu(scale(rng) * rng.standard_normal((n, n)), 1),
    "hidden nilpotent": lambda rng, n: hidden(rng, np.triu(scale(rng) * rng.standard_normal((n, n)), 1)),
    "defective": lambda rng, n: rng.uniform(-2, 2) * np.eye(n) + np.eye(n, k=1),
    "hidden defective": lambda rng, n: hidden(rng, rng.uniform(-2, 2) * np.eye(n) + np.eye(n, k=1)),
    "singular": lambda rng, n: scale(rng) * np.outer(rng.standard_normal(n), rng.standard_normal(n)),
    "graded": lambda rng, n: 10.0 ** rng.uniform(-8, 1, (n, 1)) * rng.standard_normal((n, n)),
    "expanding": lambda rng, n: rng.uniform(1, 3, n) * orthogonal(rng, n) * (1 + scale(rng)),
    "tiny": lambda rng, n: 10.0 ** rng.uniform(-200, -50) * rng.standard_normal((n, n)),
    "huge": lambda rng, n: 10.0 ** rng.uniform(2, 7) * rng.standard_normal((n, n)),
}  # fmt: skip
EACH = 40


def scale(rng):
    return 10.0 ** rng.uniform(-1.5, 1)


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def turn(rng):
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def hidden(rng, A):
    """The same matrix in another basis: its structure is there up to rounding."""
    B = rng.standard_normal(A.shape)
    return B @ A @ np.linalg.inv(B)


def random_case(kind, rng):
    """A network with such a W_R and everything else drawn too, and the arguments of a check."""
    n, p, m, T = (int(rng.integers(1, top)) for top in (6, 3, 4, 25))
    rnn = bptt.RNN(
        MATRICES[kind](rng, n),
        10.0 ** rng.uniform(-1, 2) * rng.standard_normal((n, p)),  # saturates tanh, at the upper end
        10.0 ** rng.uniform(-1, 1) * rng.standard_normal((m, n)),
        b_R=rng.standard_normal(n) if rng.random() < 0.5 else None,
        activation="identity" if rng.random() < 0.3 else str(rng.choice(ACTIVATIONS)),
        form=str(rng.choice(FORMS)),
        readout=str(rng.choice(READOUTS)),
        output=str(rng.choice(OUTPUTS)),
    )
    x = rng.standard_normal((T, p)) if rng.random() < 0.8 else np.zeros((T, p))
    squared = rnn.output == "linear" or rng.random() < 0.3
    y = rng.standard_normal((T, m)) if squared else rng.integers(m, size=T)
    if rng.random() < 0.2:
        y = y[-1]  # a target of the last step only
    initial = rng.standard_normal(n) if rng.random() < 0.7 else None
    return (rnn, x, y), {"initial": initial, "loss": "squared_error" if squared else None}


@pytest.fixture(scope="module")
def verdicts():
    """Of 800 networks, each verdict with a name that finds it again."""
    found = []
    for kind in MATRICES:
        for seed in range(EACH):
            arguments, options = random_case(kind, np.random.default_rng([seed, *kind.encode()]))
            found += [(f"{kind} {seed}", verdict) for verdict in theorems.check(*arguments, **options)]
    assert len(found) == len(MATRICES) * EACH * len(theorems.STATEMENTS)
    return found


def test_no_corrected_statement_is_refuted(verdicts):
    refuted = [f"{name}: {verdict}" for name, verdict in verdicts if verdict.corrected.truth is Truth.FAILS]
    assert not refuted


def test_no_conclusion_of_a_corrected_statement_fails_even_where_it_claims_nothing(verdicts):
    """The corrected conclusions are bounds with the network's own constants: true whether these are below 1 or not."""
    failed = [f"{name}: {verdict}" for name, verdict in verdicts if verdict.corrected.conclusion is Truth.FAILS]
    assert not failed


def test_corrected_statements_are_confirmed_where_they_speak(verdicts):
    """Rounding leaves a conclusion open for numbers near the end of float64's range only."""
    open_ones = [f"{name}: {verdict}" for name, verdict in verdicts if not verdict.corrected.stands]
    assert not [name for name in open_ones if not name.startswith("huge")]
    assert len(open_ones) < 10


def test_the_hunt_meets_every_statement_often(verdicts):
    """Else it would prove nothing; and it finds what is wrong in print by itself."""
    corrected = Counter(verdict.statement.name for _, verdict in verdicts if verdict.corrected.truth is Truth.HOLDS)
    printed = Counter(verdict.statement.name for _, verdict in verdicts if verdict.printed.truth is Truth.FAILS)
    assert set(corrected) == {statement.name for statement in theorems.STATEMENTS}
    assert min(corrected.values()) >= 50
    assert set(printed) == {statement.name for statement in theorems.STATEMENTS if statement.counterexamples}
    assert min(printed.values()) >= 10


numbers = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 1e-160, 5e-324]),
    st.floats(-1e3, 1e3, allow_nan=False),
    st.floats(-2, 2, allow_nan=False),
)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    W_R=st.lists(numbers, min_size=4, max_size=4),
    W_I=st.lists(numbers, min_size=2, max_size=2),
    initial=st.lists(numbers, min_size=2, max_size=2),
    x=st.lists(st.floats(-2, 2, allow_nan=False), min_size=1, max_size=12),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_hypothesis_refutes_no_corrected_statement(W_R, W_I, initial, x, activation):
    """What fails here is shrunk to the smallest network that fails."""
    rnn = bptt.RNN(
        np.reshape(W_R, (2, 2)), np.reshape(W_I, (2, 1)), [[1.0, -1.0]], activation=activation, output="linear"
    )
    for verdict in theorems.check(rnn, np.reshape(x, (-1, 1)), np.zeros((len(x), 1)), initial=initial):
        assert verdict.corrected.conclusion is not Truth.FAILS, verdict
        assert verdict.corrected.stands, verdict


# The inequalities themselves, on products that no network has to have made --------------------------------------------


def chains(seed, count=4000, n=3, factors=12):
    """Many W, products of `factors` matrices W D with D diagonal, and these D (factors, count, n), within [0, 1].

    A D of corners, 0 or 1, is the worst for the norm; one near 1 lets the smallest singular value live.
    """
    rng = np.random.default_rng(seed)
    W = 10.0 ** rng.uniform(-0.7, 0.7, (count, 1, 1)) * rng.standard_normal((count, n, n))
    W[::4] = np.triu(W[::4])
    W[1::4] = np.linalg.qr(W[1::4])[0] * rng.uniform(0.5, 3, (len(W[1::4]), 1, n))
    D = rng.uniform(0.7, 1, (factors, count, n))
    D[:, ::2] = rng.integers(0, 2, D[:, ::2].shape)
    P, products = np.broadcast_to(np.eye(n), W.shape), []
    for d in D:
        P = (W * d[:, None]) @ P
        products.append(P)
    return W, D, np.array(products)


def norms(A):
    """The largest and the smallest singular value of each."""
    values = np.linalg.svd(A, compute_uv=False)
    return values[..., 0], values[..., -1]


def test_theorem_2_bounds_thousands_of_products():
    W, _, products = chains(0)
    lags = np.arange(1, len(products) + 1)[:, None]
    for S in (np.ones((len(W), 3)), np.random.default_rng(1).lognormal(size=(len(W), 3))):
        eta = norms(S[:, :, None] * W / S[:, None])[0]
        allowed = S.max(axis=1) / S.min(axis=1) * eta**lags
        assert (norms(products)[0] <= allowed * (1 + 1e-12)).all()
    radius = np.abs(np.linalg.eigvals(W)).max(axis=1)
    assert (radius <= eta * (1 + 1e-7)).all()  # defective eigenvalues are good to half the digits
    # what is printed, an eigenvalue for the norm, is refuted by the same products
    assert (norms(products)[0] > radius**lags * (1 + 1e-6)).mean() > 0.1


def test_theorem_4_bounds_thousands_of_products():
    W, D, products = chains(2)
    least = norms(W)[1] * np.minimum.accumulate(D.min(axis=2), axis=0)
    lags = np.arange(1, len(products) + 1)[:, None]
    largest, smallest = norms(products)
    # of the product's smallest singular value the svd knows the digits above eps times the largest
    assert (smallest >= least**lags * (1 - 1e-10) - 20 * EPS * largest).all()
    speaks = (least[-1] > 1) & (largest[-1] < 1e8 * smallest[-1])
    assert speaks.sum() > 100
    assert (smallest[-1] >= least[-1] ** len(products) * (1 - 1e-6))[speaks].all()
    above = norms(W)[0] * D.min(axis=(0, 2)) > 1  # the printed hypothesis
    assert (largest[-1] < 1)[above].any()


def test_lemma_3_bounds_thousands_of_products():
    rng = np.random.default_rng(3)
    A, B = rng.standard_normal((2, 4000, 3, 3))
    v = np.linalg.svd(A)[2][:, -1]
    B[::2] = v[::2, :, None] * v[::2, None]  # what A shrinks most
    product, smallest = norms(A @ B)[0], norms(A)[1]
    assert (product >= smallest * norms(B)[0] * (1 - 1e-12) - 20 * EPS).all()
    eigenvalue = np.abs(np.linalg.eigvals(A)).min(axis=1)
    assert (product < eigenvalue * norms(B)[0] * (1 - 1e-6)).mean() > 0.3
