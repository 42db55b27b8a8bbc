"""Levels: the one that is asked for is the one that runs, and what cannot run says why. Threads: who decides."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import bptt
from bptt import _cpu, _levels

PROCESSORS = len(os.sched_getaffinity(0))


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("BPTT_LEVEL", "BPTT_NUM_THREADS", "OMP_NUM_THREADS")}
    return subprocess.run([sys.executable, "-c", code], env=env | environment, capture_output=True, text=True)


# A forced level is proven by the module that computed, not by the name that was asked for.
PROOF = """
import json, sys
import bptt
from bptt import _levels
module, info = _levels.kernel().__name__, bptt.info()
levels = [f"bptt._kernel_{name}" for name in (*_levels.COMPILED, _levels.REFERENCE)]
imported = [name for name in levels if name in sys.modules]
print(json.dumps([module, info, imported]))
"""


@pytest.mark.parametrize("level", _levels.available())
def test_forced_level_is_the_one_that_runs(level):
    result = run(PROOF, BPTT_LEVEL=level)
    assert result.returncode == 0, result.stderr
    module, info, imported = json.loads(result.stdout)
    assert module == f"bptt._kernel_{level}"
    assert info["level"] == level
    assert imported == [module]  # no other level was even loaded
    if level != "reference":
        wanted = {"v2": 16, "v3": 32, "v4": 64}
        assert info["vector_bytes"] == wanted.get(level, info["vector_bytes"])
        assert level == "base" or f"-march=x86-64-{level}" in info["flags"].split()


def test_best_level_runs_unasked():
    result = run(PROOF)
    assert result.returncode == 0, result.stderr
    module, info, _ = json.loads(result.stdout)
    assert module == f"bptt._kernel_{_levels.available()[-1]}"
    assert info["level"] != "reference"


def test_available_is_built_and_fits_the_processor():
    assert _levels.available()[0] == "reference"
    assert set(_levels.available()[1:]) <= set(_levels.built())
    best = _cpu.best_level()
    assert _levels.available()[1:] == tuple(level for level in _levels.built() if level <= best)


@pytest.mark.parametrize(
    ("level", "words"),
    [("v9", ["BPTT_LEVEL", "'v9'", "unknown", "v2, v3, v4", "reference"]), ("base", ["'base'", "not built", "has v"])],
)
def test_level_that_cannot_be_had(level, words):
    result = run("import bptt; bptt.info()", BPTT_LEVEL=level)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: ")
    assert all(word in message for word in words), message


def test_level_the_processor_lacks_is_not_imported(monkeypatch):
    monkeypatch.setattr(_cpu, "best_level", lambda: "v1")
    lacking = _levels.built()[0]
    monkeypatch.delitem(sys.modules, f"bptt._kernel_{lacking}", raising=False)
    with pytest.raises(ImportError, match=f"level '{lacking}' cannot run: this processor's best level is 'v1'"):
        _levels.load(lacking)
    assert f"bptt._kernel_{lacking}" not in sys.modules
    assert _levels.available() == ("reference",)


def test_no_level_at_all_is_an_error_not_the_reference(monkeypatch):
    monkeypatch.delenv("BPTT_LEVEL", raising=False)
    monkeypatch.setattr(_cpu, "best_level", lambda: "v1")
    with pytest.raises(ImportError, match=r"no level runs here.*BPTT_LEVEL=reference"):
        _levels.level.__wrapped__()


def test_info_is_plain_and_complete():
    info = bptt.info()
    assert json.loads(json.dumps(info)) == info
    assert info["numpy"] == np.__version__
    assert info["threads"] == _levels.resolve_threads(None)
    if info["level"] != "reference":
        assert {"compiler", "flags", "eigen", "vector_bytes"} <= set(info)


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.delenv("BPTT_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


def test_threads_default_to_every_processor_allowed(clean):
    assert _levels.resolve_threads(None) == PROCESSORS


def test_threads_never_exceed_the_affinity_mask(clean):
    assert _levels.resolve_threads(10**6) == PROCESSORS
    clean.setenv("BPTT_NUM_THREADS", "1000000")
    assert _levels.resolve_threads(None) == PROCESSORS
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    try:
        assert _levels.resolve_threads(None) == 1
        assert _levels.resolve_threads(PROCESSORS) == 1
    finally:
        os.sched_setaffinity(0, mask)


def test_threads_in_order_of_argument_and_variables(clean):
    clean.setattr(_cpu, "processors", lambda: 64)
    clean.setenv("OMP_NUM_THREADS", "4,2")
    assert _levels.resolve_threads(None) == 4
    clean.setenv("BPTT_NUM_THREADS", " 3 ")
    assert _levels.resolve_threads(None) == 3
    assert _levels.resolve_threads(5) == 5
    assert _levels.resolve_threads(np.int32(6)) == 6
    clean.setenv("BPTT_NUM_THREADS", "")  # empty is unset
    assert _levels.resolve_threads(None) == 4


@pytest.mark.parametrize("threads", [True, np.True_, 2.0, "2", np.float64(2)])
def test_threads_of_the_wrong_kind(threads):
    with pytest.raises(TypeError, match="threads must be an int, got"):
        _levels.resolve_threads(threads)


@pytest.mark.parametrize("threads", [0, -1, np.int64(0)])
def test_threads_out_of_range(threads):
    with pytest.raises(ValueError, match=f"threads must be at least 1, got {threads}"):
        _levels.resolve_threads(threads)


@pytest.mark.parametrize("variable", ["BPTT_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-2", "many", "1.5", ",2"])
def test_threads_from_a_senseless_variable(clean, variable, value):
    clean.setenv(variable, value)
    with pytest.raises(ValueError, match=f"environment variable {variable} must be .* got '{value}'"):
        _levels.resolve_threads(None)
    assert _levels.resolve_threads(1) == 1  # not read where the argument decides
