"""Levels: tests of the kernel run on each that can, tests of what stands on it on the reference and the best."""

import pytest

from bptt import _levels, _sweep


def pytest_report_header() -> str:
    runs, built = _levels.available(), _levels.built()
    idle = [name for name in built if name not in runs]
    header = f"bptt levels under test: {', '.join(runs)}"
    return f"{header} (built, but not for this processor: {', '.join(idle)})" if idle else header


@pytest.fixture(params=_levels.available())
def kernel(request):
    """Each level, as a module."""
    return _levels.load(request.param)


@pytest.fixture(params=dict.fromkeys((_levels.REFERENCE, _levels.available()[-1])))
def level(request, monkeypatch):
    """The level in use: the reference, then the best."""
    module = _levels.load(request.param)
    monkeypatch.setattr(_levels, "kernel", lambda: module)
    monkeypatch.setattr(_levels, "level", lambda: request.param)
    return request.param


@pytest.fixture(params=["one segment", "many segments"])
def grid(request, monkeypatch):
    """Whether a sequence is cut into segments of 5 steps; those of the tests are far too short for it."""
    if request.param == "many segments":
        monkeypatch.setattr(_sweep, "segment_steps", lambda *args: 5)
