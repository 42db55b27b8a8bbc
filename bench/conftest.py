from collections.abc import Callable
from typing import Any

import pytest

import bptt
from bptt import _ceiling, _levels, bench


def pytest_report_header() -> list[str]:
    return [f"{name}: {value}" for name, value in bptt.info().items()]


@pytest.fixture
def beside(benchmark) -> Callable[[dict[str, Callable[[], Any]], int], None]:
    """Times the contenders in turns, and notes the ratios and the share of the matrix product's rate in float64."""

    def compare(runs: dict[str, Callable[[], Any]], flop: int) -> None:
        seconds = bench._alternate(runs, 5.0)
        ceiling = _ceiling.matrix_product("float64", _levels.resolve_threads(None))
        for name in runs.keys() - {"bptt"}:
            benchmark.extra_info[f"times as fast as {name}"] = seconds[name] / seconds["bptt"]
        benchmark.extra_info["share of the matrix product"] = flop / seconds["bptt"] / ceiling

    return compare
