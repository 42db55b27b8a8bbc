"""The compiled levels' σ, σ' and log σ' against 40 digits, from the smallest number to the largest."""

from typing import NamedTuple

import mpmath as mp
import numpy as np
import pytest

from bptt import _kernel, _levels
from test_reference_activations import EXACT, EXACT_DERIVATIVE

LEVELS = [name for name in _levels.available() if name != _levels.REFERENCE]
NAMES = _kernel.ACTIVATIONS

#: Greatest errors of σ and of σ' in units of the last place, subnormal results included: what the kernel's header
#: states of its functions (cpp/kernel/elementary.hpp), plus the roundings made on the way from there.
BOUNDS = {
    "identity": (0, 0),
    "tanh": (3, 3),
    "logistic": (2, 3),
    "relu": (0, 0),
    "leaky_relu": (1, 0.5),
    "elu": (1.5, 1.5),
    "softplus": (3, 2),
    "softsign": (1.5, 3.5),
}


def arguments(dtype):
    """Both signs; every magnitude, and densely where functions bend, saturate and underflow."""
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        moduli = [
            np.geomspace(info.smallest_subnormal, info.max, 400),
            *(scale * rng.random(300) for scale in (1, 4, 20, -1.1 * np.log(info.smallest_subnormal))),
            # where tanh, logistic, their derivatives and the exponential saturate, underflow and vanish
            *(
                np.abs(np.log(edge)) * factor * (1 + 0.02 * (rng.random(60) - 0.5))
                for edge in (info.eps, info.tiny, info.smallest_subnormal)
                for factor in (0.5, 1)
            ),
        ]
    positive = np.unique(np.concatenate([[0, info.tiny, info.max], *moduli]).astype(dtype))
    return np.concatenate([-positive[::-1], positive])


class Exact(NamedTuple):
    """Numbers as (whole + fraction) * 2**exponent, 2**exponent the unit of the last place."""

    exponent: np.ndarray
    whole: np.ndarray
    fraction: np.ndarray

    def error(self, computed):
        """In units of the last place."""
        return np.abs((np.ldexp(computed.astype(float), -self.exponent) - self.whole) - self.fraction)


def exact(values, dtype):
    info = np.finfo(dtype)
    exponents = [max(mp.frexp(v)[1], info.minexp + 1) - (info.nmant + 1) for v in values]
    units = [mp.ldexp(v, -e) for v, e in zip(values, exponents, strict=True)]
    whole = [mp.nint(u) for u in units]
    fraction = [u - w for u, w in zip(units, whole, strict=True)]
    return Exact(np.array(exponents), *(np.array([float(v) for v in part]) for part in (whole, fraction)))


@pytest.fixture(scope="module", params=["float32", "float64"])
def h(request):
    return arguments(request.param)


@pytest.fixture(scope="module", params=NAMES)
def wanted(request, h):
    """The name, exact σ and σ' and a logarithm of σ' in float64."""
    name = request.param
    with mp.workdps(40):
        points = [mp.mpf(float(v)) for v in h]
        slopes = [EXACT_DERIVATIVE[name](v) for v in points]
        with np.errstate(over="ignore"):
            logs = np.array([float(mp.log(v)) if v else -np.inf for v in slopes])
        return name, exact([EXACT[name](v) for v in points], h.dtype), exact(slopes, h.dtype), logs


@pytest.fixture(params=LEVELS)
def compiled(request):
    return _levels.load(request.param)


@pytest.fixture
def computed(compiled, wanted, h):
    """σ, σ' and log σ' of one level."""
    outputs = [np.empty_like(h) for _ in range(3)]
    compiled.activate(NAMES.index(wanted[0]), h, *outputs)
    return outputs


@pytest.mark.parametrize("which", [0, 1], ids=["sigma", "derivative"])
def test_bounds_in_units_of_the_last_place(which, wanted, computed, h):
    error = wanted[1 + which].error(computed[which])
    worst = np.argmax(error)  # the first nan, if there is one
    assert error[worst] <= BOUNDS[wanted[0]][which], (h[worst], computed[which][worst])


def test_log_derivative(wanted, computed, h):
    # Around h = 0, log σ' of a tanh is a difference of numbers of size ln 2: a few eps, absolutely.
    eps = np.finfo(h.dtype).eps
    with np.errstate(over="ignore"):
        logs = wanted[3].astype(h.dtype)
    np.testing.assert_allclose(computed[2], logs, rtol=4 * eps, atol=4 * eps)


def test_nothing_but_what_is_wanted(compiled, computed, wanted, h):
    for which, all_of_it in enumerate(computed):
        outputs = [np.empty_like(h) if which == i else None for i in range(3)]
        compiled.activate(NAMES.index(wanted[0]), h, *outputs)
        np.testing.assert_array_equal(outputs[which], all_of_it)
