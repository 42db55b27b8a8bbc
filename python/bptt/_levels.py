"""Which kernel runs, and on how many threads.

A level is one build of the kernel for one instruction set (``_kernel_v2``, ``_kernel_v3``, ``_kernel_v4`` on x86-64,
``_kernel_base`` elsewhere), or ``reference``, the same functions in NumPy. A level that the processor cannot run is
never imported, and nothing falls back: what was asked for runs, or ImportError says why it cannot.
"""

from __future__ import annotations

import importlib
import importlib.util
import operator
import platform
from functools import cache
from typing import Any, cast

import numpy as np

from bptt import _cpu
from bptt._kernel import Kernel

#: Slowest first: each runs wherever a later one does. ``v1`` (plain x86-64) is what a processor may be, never a build.
COMPILED = ("base", "v2", "v3", "v4")
REFERENCE = "reference"


def built() -> tuple[str, ...]:
    """Compiled levels in this installation, whether or not this processor can run them."""
    return tuple(name for name in COMPILED if importlib.util.find_spec(f"bptt._kernel_{name}") is not None)


def available() -> tuple[str, ...]:
    """Levels that can run here, slowest first: the reference, then what is built and fits the processor."""
    return (REFERENCE, *(name for name in built() if _runs(name)))


def load(name: str) -> Kernel:
    """The level of that name.

    Raises
    ------
    ImportError
        The name is unknown, the level is not built, or this processor cannot run it.
    """
    if name not in (REFERENCE, *COMPILED):
        raise ImportError(f"level {name!r} is unknown; the levels are {', '.join((*COMPILED, REFERENCE))}")
    if name != REFERENCE:
        if name not in built():
            raise ImportError(f"level {name!r} is not built; this installation has {_listed(built())}")
        if not _runs(name):
            raise ImportError(f"level {name!r} cannot run: this processor's best level is {_cpu.best_level()!r}")
    return cast(Kernel, importlib.import_module(f"bptt._kernel_{name}"))


@cache
def level() -> str:
    """The level in use: the environment variable BPTT_LEVEL, else the best that is built and runs here.

    It is settled once per process, by the first call.

    Raises
    ------
    ImportError
        BPTT_LEVEL cannot be had (see `load`), or no compiled level runs here.
    """
    forced = _cpu.environment("BPTT_LEVEL")
    if forced:
        try:
            load(forced)
        except ImportError as error:
            raise ImportError(f"BPTT_LEVEL: {error}") from None
        return forced
    best = available()[-1]
    if best == REFERENCE:
        raise ImportError(
            f"no level runs here: this installation has {_listed(built())}, this processor's best level is "
            f"{_cpu.best_level()!r}; BPTT_LEVEL=reference asks for the slow one in NumPy"
        )
    return best


@cache
def kernel() -> Kernel:
    """The module of the level in use."""
    return load(level())


def resolve_threads(threads: int | None) -> int:
    """Threads of one call: the argument, else BPTT_NUM_THREADS, else OMP_NUM_THREADS, else every processor allowed.

    Never more than the processors in this process's affinity mask. The environment is read at every call.

    Raises
    ------
    TypeError
        ``threads`` is not an integer.
    ValueError
        ``threads`` or the variable that decides is not at least 1.
    """
    allowed = _cpu.processors()
    if threads is not None:
        if isinstance(threads, (bool, np.bool_)):
            raise TypeError(f"threads must be an int, got {threads!r}")
        try:
            wanted = operator.index(threads)
        except TypeError:
            raise TypeError(f"threads must be an int, got {type(threads).__name__}") from None
        if wanted < 1:
            raise ValueError(f"threads must be at least 1, got {wanted}")
        return min(wanted, allowed)
    if value := _cpu.environment("BPTT_NUM_THREADS"):
        return min(_count("BPTT_NUM_THREADS", value, value), allowed)
    if value := _cpu.environment("OMP_NUM_THREADS"):
        return min(_count("OMP_NUM_THREADS", value, value.split(",")[0]), allowed)  # "4,2": one entry a nesting depth
    return allowed


def info() -> dict[str, Any]:
    """What runs here: level, threads, and how the kernel was built.

    Returns
    -------
    dict
        Plain values, fit for JSON: ``bptt`` and ``numpy`` and ``python`` (versions), ``level`` (the one in use),
        ``levels`` (those that can run here), ``levels_built``, ``processor`` (the best level it could run),
        ``threads`` (what a call without ``threads`` uses), and of the level in use ``compiler``, ``flags``, ``eigen``
        and ``vector_bytes`` (absent for the reference).

    Raises
    ------
    ImportError
        No level can be used (a BPTT_LEVEL that cannot run, for one).

    Examples
    --------
    >>> import bptt
    >>> facts = bptt.info()
    >>> facts["level"] in facts["levels"], facts["threads"] >= 1
    (True, True)
    """
    from importlib.metadata import version  # takes longer to import than bptt does

    facts: dict[str, Any] = {
        "bptt": version("bptt"),
        "level": level(),
        "levels": list(available()),
        "levels_built": list(built()),
        "processor": _cpu.best_level(),
        "threads": resolve_threads(None),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    if level() != REFERENCE:
        facts |= cast(Any, kernel()).build_info()
    return facts


def _runs(name: str) -> bool:
    best = _cpu.best_level()
    return name == best if "base" in (name, best) else name <= best  # "v1" < "v2" < "v3" < "v4"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _count(variable: str, value: str, text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"the environment variable {variable} must be a whole number of at least 1, got {value!r}")
    return count
