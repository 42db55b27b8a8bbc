"""The command line: one function a command, in the modules of this package.

Exit codes: 0 done; 1 the work failed (a check that does not hold, a training that diverged, no memory left); 2 wrong
usage or input; 130 ended by Ctrl-C, a training saved.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from bptt.cli.bench import bench
from bptt.cli.demo import demo
from bptt.cli.facts import check, info
from bptt.cli.flow import flow
from bptt.cli.models import sample, train
from bptt.cli.theorems import theorems


class _Commands(TyperGroup):
    """What goes wrong in a command becomes one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output has gone: nobody to tell
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except (FloatingPointError, MemoryError) as error:
            _fail(str(error) or "out of memory", 1)
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
        except (TypeError, ValueError, ImportError) as error:
            _fail(str(error), 2)


def _fail(message: str, code: int) -> None:
    print(f"bptt: {message}", file=sys.stderr)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    help=(
        "Exact gradients of recurrent networks over long sequences, and where they vanish or explode.\n\n"
        "Exit codes: 0 done, 1 a check that fails or a training that diverges, 2 wrong usage or input, 130 Ctrl-C."
    ),
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, train, sample, check, bench, flow, info, theorems):
    app.command()(command)


def main() -> None:
    """The console script `bptt`."""
    for stream in (sys.stdout, sys.stderr):
        # A text may hold characters that the terminal's encoding lacks.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app(prog_name="bptt")
