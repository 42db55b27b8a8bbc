"""`bptt bench`: how fast, beside whom, and how close to the machine's limit."""

from __future__ import annotations

import json as format_json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bptt.cli.terminal import Json, print_json, require_writable


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A quarter of the grid, in under a minute.")] = False,
    output: Annotated[Path, typer.Option(help="The directory to write to.", show_default="here")] = Path(),
    json: Json = False,
) -> None:
    """Time value_and_grad beside PyTorch and JAX, and against the ceiling of this machine.

    Results are compared before they are timed. Writes bptt-bench.json and the heat map bptt-bench.png. The whole grid
    takes some ten minutes; let the machine do nothing else.
    """
    from bptt import bench
    from bptt._files import write_atomically
    from bptt.plotting import save

    output.mkdir(parents=True, exist_ok=True)
    require_writable(output)
    print(bench.HEADER, file=sys.stderr)
    report = bench.run(
        bench.QUICK if quick else bench.GRID,
        seconds=1.0 if quick else 4.0,
        on_timing=lambda timing: print(timing, file=sys.stderr, flush=True),
    )
    facts = report.to_dict()
    files = {"facts": output / "bptt-bench.json", "figure": output / "bptt-bench.png"}
    write_atomically(files["facts"], (format_json.dumps(facts, indent=2) + "\n").encode())
    save(report.plot(), files["figure"])
    if json:
        print_json(facts)
    else:
        print(f"{report}\nWrote {files['facts']} and {files['figure']}")
