"""How far a call is: a bar, or a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Progress = bool | Callable[[float], object]


def check(value: Any) -> None:
    if not isinstance(value, bool) and not callable(value):
        raise TypeError(f"progress must be True, False or a callable given the fraction done; got {value!r}")


Tick = Callable[[int], None]


def meter(progress: Progress, total: Callable[[], int]) -> AbstractContextManager[Tick | None]:
    """What is to be told of work done, in parts of the total; None where nobody wants to know.

    A callable is given the fraction done, never less than before, and 1.0 at the end of a call that succeeds.
    """
    return _SILENT if progress is False else _meter(progress, total())


def part(tick: Tick | None, amount: int) -> Progress:
    """The progress of a call that is so much of the work of another."""
    if tick is None:
        return False
    done = 0

    def show(fraction: float) -> None:
        nonlocal done
        if (now := int(fraction * amount)) > done:
            tick(now - done)
            done = now

    return show


_SILENT: AbstractContextManager[None] = nullcontext()


@contextmanager
def _meter(progress: Progress, amount: int) -> Iterator[Tick]:
    done = 0

    def show(fraction: float) -> None:
        if callable(progress):
            progress(fraction)
        else:
            bar.update(task, completed=fraction)

    def tick(part: int) -> None:
        nonlocal done
        done += part
        if done < amount:
            show(done / amount)

    if callable(progress):
        yield tick
        show(1.0)
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield tick
        show(1.0)
