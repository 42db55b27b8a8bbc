"""What this machine can do at best: multiply matrices, and read from its caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, cast

import numpy as np

from bptt import _cpu, _levels

_SIZE = 1536  # of the matrices: large enough for every library's full rate, small enough for twenty products a second
_TRIES = 7
_READ = 2**28  # bytes a try and thread: a few milliseconds


def matrix_product(dtype: str, threads: int) -> float:
    """Flop a second of the best library at hand, on large square matrices."""
    flop, products = matrix_products(dtype, threads)
    return flop / min(_best(product) for product in products)


def matrix_products(dtype: str, threads: int) -> tuple[int, list[Callable[[], Any]]]:
    """The flop of a product of large square matrices, and that product by each library at hand, NumPy and PyTorch.

    NumPy's pool cannot be told how large to be, so it takes part where ``threads`` is every processor allowed.
    """
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, _SIZE, _SIZE)).astype(dtype)
    products: list[Callable[[], Any]] = []
    if threads == _cpu.processors():
        out = np.empty_like(a)
        products.append(lambda: np.matmul(a, b, out=out))
    try:
        import torch
    except ImportError:
        if not products:
            products.append(lambda: a @ b)
    else:
        left, right = torch.from_numpy(a), torch.from_numpy(b)
        result = torch.empty_like(left)

        def with_torch() -> None:
            torch.set_num_threads(threads)
            torch.matmul(left, right, out=result)

        products.append(with_torch)
    return 2 * _SIZE**3, products


def read(size: int, threads: int) -> float:
    """Bytes a second that ``threads`` threads read together, each its own share of ``size`` bytes again and again.

    So the share decides which cache it is. Read with the registers of the level in use.
    """
    stream = cast(Any, _levels.kernel()).read_stream
    share = -(-size // threads // 64) * 64
    repeats = max(1, _READ // share)
    start = Barrier(threads)

    def one(buffer: np.ndarray[Any, Any]) -> tuple[float, float]:
        start.wait()
        begun = time.perf_counter()
        stream(buffer, repeats)
        return begun, time.perf_counter()

    buffers = [_aligned(share) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIES):
            times = list(pool.map(one, buffers))
            best = max(best, threads * share * repeats / (max(t for _, t in times) - min(t for t, _ in times)))
    return best


def _aligned(size: int) -> np.ndarray[Any, Any]:
    whole = np.ones(size // 8 + 8)
    skip = -whole.ctypes.data % 64 // 8
    return whole[skip : skip + size // 8]


def _best(run: Callable[[], Any]) -> float:
    run()  # starts its threads
    best = np.inf
    for _ in range(_TRIES):
        begun = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begun)
    return float(best)
