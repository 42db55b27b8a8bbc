"""ScaledMatrix: numbers of any size."""

import pickle
import re

import numpy as np
import pytest

from bptt import ScaledMatrix


def test_the_largest_number_is_in_one_binade():
    for factor in (1e-310, 1e-5, 0.5, 1.0, 3.0, 1e300):
        P = ScaledMatrix(factor * np.array([[0.1, -1.0], [0.0, 0.3]]), 7)
        assert 0.5 <= np.abs(P.mantissa).max() < 1
        np.testing.assert_allclose(np.ldexp(P.mantissa, P.exponent - 7), factor * np.array([[0.1, -1.0], [0.0, 0.3]]))


def test_products_with_matrices_vectors_and_arrays():
    rng = np.random.default_rng(0)
    A, B, v = rng.standard_normal((3, 4)), rng.standard_normal((4, 5)), rng.standard_normal(3)
    P, Q = ScaledMatrix(A, 5000), ScaledMatrix(B, -5000)
    assert (P @ Q).shape == (3, 5)
    np.testing.assert_allclose((P @ Q).to_array(), A @ B)
    np.testing.assert_allclose((P @ ScaledMatrix(B) @ ScaledMatrix(np.eye(5), -5000)).to_array(), A @ B)
    np.testing.assert_allclose((v @ P @ Q).to_array(), v @ A @ B)
    np.testing.assert_allclose((P @ B @ ScaledMatrix(np.ones(5), -5000)).to_array(), A @ B @ np.ones(5))


def test_norms_are_logarithms_of_any_size():
    A = np.random.default_rng(0).standard_normal((3, 4))
    P = ScaledMatrix(A, 10**15)
    for ord in (2, "fro"):
        assert P.log_norm(ord) == pytest.approx(10**15 * np.log(2) + np.log(np.linalg.norm(A, ord)), rel=1e-15)
    assert ScaledMatrix(A[0]).log_norm() == pytest.approx(np.log(np.linalg.norm(A[0])))
    assert ScaledMatrix(np.zeros((2, 2)), 12).log_norm() == -np.inf
    with pytest.raises(ValueError, match=re.escape("ord must be 2 or 'fro'; got 1")):
        P.log_norm(1)


def test_to_array_says_what_does_not_fit():
    np.testing.assert_array_equal(ScaledMatrix([[1.0, 2.0]], 1022).to_array(), [[2.0**1022, 2.0**1023]])
    np.testing.assert_array_equal(ScaledMatrix([[1.0, 2.0]], -1074).to_array(), [[2.0**-1074, 2.0**-1073]])
    np.testing.assert_array_equal(ScaledMatrix([[1.0]], -(10**9)).to_array(), [[0.0]])
    with pytest.raises(
        OverflowError, match=re.escape("the largest number is at least 2**1024 and float64 ends below 2**1024")
    ):
        ScaledMatrix([[1.0]], 1024).to_array()
    with pytest.raises(OverflowError, match=re.escape("the largest number is at least 2**1000000 and")):
        ScaledMatrix([[1.0]], 10**6).to_array()


def test_it_copies_is_frozen_and_pickles():
    A = np.eye(2)
    P = ScaledMatrix(A, 3)
    A[0, 0] = 7
    assert P.to_array()[0, 0] == 8
    with pytest.raises(ValueError, match="read-only"):
        P.mantissa[0, 0] = 1
    with pytest.raises(AttributeError):
        P.exponent = 1
    copy = pickle.loads(pickle.dumps(P))
    assert copy.exponent == P.exponent
    np.testing.assert_array_equal(copy.mantissa, P.mantissa)


@pytest.mark.parametrize(
    ("mantissa", "error"), [(np.zeros((2, 2, 2)), ValueError), ([["a"]], TypeError), (1.0, ValueError)]
)
def test_what_is_no_matrix(mantissa, error):
    with pytest.raises(error, match="mantissa must"):
        ScaledMatrix(mantissa)


def test_what_is_no_scaled_matrix():
    for mantissa in ([[np.nan]], [[np.inf]]):
        with pytest.raises(ValueError, match="mantissa must be finite"):
            ScaledMatrix(mantissa)
    with pytest.raises(TypeError, match="exponent must be an integer; got float"):
        ScaledMatrix([[1.0]], 1.5)
    with pytest.raises(TypeError, match="exponent must be an integer; got True"):
        ScaledMatrix([[1.0]], True)
    for exponent in (10**400, -(10**5000)):
        with pytest.raises(ValueError, match=r"exponent must lie within 2\*\*1000 of 0"):
            ScaledMatrix(np.eye(2), exponent)
    one = ScaledMatrix(np.eye(2))
    for other, error, words in (
        (3.0, ValueError, r"must have shape \(rows, columns\) or \(rows,\); got \(\)"),
        ([[1, 2], [3]], ValueError, "is no rectangular array"),
        (np.full((2, 2), np.nan), ValueError, "must be finite"),
        (None, TypeError, "must be an array; got None"),
    ):
        for product in (lambda other=other: one @ other, lambda other=other: other @ one):
            with pytest.raises(error, match="the other factor of @ " + words):
                product()
    for one, other in ((np.ones((2, 3)), np.ones((2, 3))), (np.ones(2), np.ones(2))):
        with pytest.raises(ValueError, match=r"the factors of @ must be matrices, or one a vector, that fit"):
            ScaledMatrix(one) @ ScaledMatrix(other)
