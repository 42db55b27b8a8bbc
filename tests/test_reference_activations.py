"""The reference's σ, σ' and log σ' against 60 digits, from the kinks to deep saturation."""

import mpmath as mp
import numpy as np
import pytest

from bptt import _kernel, reference

EPS = np.finfo(float).eps
TINY = np.finfo(float).tiny

EXACT = {
    "identity": lambda h: h,
    "tanh": mp.tanh,
    "logistic": lambda h: 1 / (1 + mp.exp(-h)),
    "relu": lambda h: max(h, 0),
    "leaky_relu": lambda h: h if h > 0 else mp.mpf(reference.SLOPE) * h,
    "elu": lambda h: h if h > 0 else mp.expm1(h),
    "softplus": lambda h: mp.log1p(mp.exp(h)),
    "softsign": lambda h: h / (1 + abs(h)),
}
EXACT_DERIVATIVE = {
    "identity": lambda h: mp.mpf(1),
    "tanh": lambda h: mp.sech(h) ** 2,
    "logistic": lambda h: 1 / (2 * mp.cosh(h / 2)) ** 2,
    "relu": lambda h: mp.mpf(h > 0),
    "leaky_relu": lambda h: mp.mpf(1 if h > 0 else reference.SLOPE),
    "elu": lambda h: mp.mpf(1) if h > 0 else mp.exp(h),
    "softplus": lambda h: 1 / (1 + mp.exp(-h)),
    "softsign": lambda h: 1 / (1 + abs(h)) ** 2,
}
NAMES = tuple(reference.ACTIVATIONS)
POSITIVE = np.concatenate([np.logspace(-300, -3, 12), np.linspace(0.01, 40, 57), np.logspace(1.7, 4, 20)])
H = np.concatenate([-POSITIVE[::-1], [0.0], POSITIVE])


def high_precision(function, h):
    with mp.workdps(60):
        return [function(mp.mpf(v)) for v in h]


def as_floats(values):
    return np.array([float(v) for v in values])


def test_the_names_are_the_kernels():
    assert NAMES == _kernel.ACTIVATIONS


@pytest.mark.parametrize("name", NAMES)
def test_sigma(name):
    # NumPy's functions are good to 4 ulp, and at most two of them meet; below TINY a number has no digits to keep.
    wanted = as_floats(high_precision(EXACT[name], H))
    np.testing.assert_allclose(reference.ACTIVATIONS[name].sigma(H), wanted, rtol=8 * EPS, atol=TINY)


@pytest.mark.parametrize("name", NAMES)
def test_derivative(name):
    wanted = as_floats(high_precision(EXACT_DERIVATIVE[name], H))
    np.testing.assert_allclose(reference.ACTIVATIONS[name].derivative(H), wanted, rtol=8 * EPS, atol=TINY)


@pytest.mark.parametrize("name", NAMES)
def test_log_derivative_is_finite_far_beyond_the_underflow_of_the_derivative(name):
    exact = high_precision(EXACT_DERIVATIVE[name], H)
    with mp.workdps(60):
        wanted = np.array([float(mp.log(v)) if v > 0 else -np.inf for v in exact])
    # Around h = 0, log σ' of a tanh is a difference of numbers of size ln 2: a few eps, absolutely.
    np.testing.assert_allclose(reference.ACTIVATIONS[name].log_derivative(H), wanted, rtol=8 * EPS, atol=8 * EPS)
    assert np.isneginf(wanted).any() == (name == "relu")


@pytest.mark.parametrize("name", NAMES)
def test_complex_step_of_sigma_is_the_derivative(name):
    h = H[(np.abs(H) < 300) & (H != 0)]
    step = 1e-200
    sigma, derivative, _ = reference.ACTIVATIONS[name]
    stepped = np.imag(sigma(h + 1j * step)) / step
    # tanh's is 1 - tanh² here: relative to the largest slope, which is 1.
    np.testing.assert_allclose(stepped, derivative(h), rtol=8 * EPS, atol=8 * EPS)


def test_conventions_at_the_kinks():
    zero = np.array([-0.0, 0.0])
    for name, slope in (("relu", 0), ("leaky_relu", 0.01), ("elu", 1)):
        activation = reference.ACTIVATIONS[name]
        assert (activation.sigma(zero) == 0).all()
        assert (activation.derivative(zero) == slope).all()


LIMITS = {
    "identity": (-np.inf, np.inf),
    "tanh": (-1, 1),
    "logistic": (0, 1),
    "relu": (0, np.inf),
    "leaky_relu": (-np.inf, np.inf),
    "elu": (-1, np.inf),
    "softplus": (0, np.inf),
    "softsign": (-1, 1),
}


@pytest.mark.parametrize("name", LIMITS)
def test_infinity_has_its_limit(name):
    np.testing.assert_array_equal(reference.ACTIVATIONS[name].sigma(np.array([-np.inf, np.inf])), LIMITS[name])


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan(name):
    assert np.isnan(reference.ACTIVATIONS[name].sigma(np.array([np.nan]))).all()


def test_elu_has_one_slope_at_zero():
    """The convention at its kink, alpha = 1 on either side: a complex step sees it."""
    h = np.array([0.0, -0.0, 1.0, -1.0])
    elu = reference.ACTIVATIONS["elu"]
    np.testing.assert_allclose(elu.sigma(h + 1e-20j).imag / 1e-20, elu.derivative(h), rtol=1e-15)
