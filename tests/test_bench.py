"""The benchmark: its arithmetic, and that it refuses to time what is wrong."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from bptt import _ceiling, _peers, bench
from bptt.cli import app

CELLS = [bench.Cell(n=9, B=3, dtype=dtype, T=12) for dtype in bench.DTYPES]


@pytest.fixture
def rough_ceilings(monkeypatch):
    """Measured as always, but in no time."""
    for name, value in {"_SIZE": 64, "_TRIES": 1, "_READ": 2**16}.items():
        monkeypatch.setattr(_ceiling, name, value)


@pytest.fixture
def alone(monkeypatch):
    """Without peers, whether or not they are installed: they would take seconds to be imported and compiled."""
    monkeypatch.setattr(_peers, "CONTENDERS", {"bptt": _peers.with_bptt})


def test_grid_is_the_one_promised():
    assert len(bench.GRID) == len(set(bench.GRID)) == 48
    assert set(bench.QUICK) < set(bench.GRID)


def test_report_adds_up(alone, rough_ceilings):
    seen = []
    report = bench.run(CELLS, seconds=0.0, threads=1, on_timing=seen.append)
    assert tuple(seen) == report.timings
    assert [timing.cell for timing in report.timings] == CELLS
    for timing in report.timings:
        cell = timing.cell
        products = 6 * cell.n**2 * cell.B / timing.matrix_product
        size = cell.n**2 * np.dtype(cell.dtype).itemsize
        reads = 2 * size / report.read[str(size)]
        assert timing.floor == max(products, reads)
        assert timing.limit == ("cache" if reads > products else "matrix product")
        assert timing.share == timing.floor / timing.seconds["bptt"]
        assert timing.share > 0
        assert math.isnan(timing.ratio)
    facts = report.to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["geometric_mean"] == {"float32": None, "float64": None}
    assert all(str(timing) in str(report) for timing in report.timings)


def test_ratios_are_to_the_faster_peer():
    def timing(dtype, **seconds):
        return bench.Timing(bench.Cell(16, 1, dtype, 10), seconds, 1e9, 1.0, "cache", {})

    timings = (
        timing("float32", bptt=2.0, torch=6.0, jax=4.0),
        timing("float32", bptt=1.0, torch=8.0),
        timing("float64", bptt=4.0, torch=3.0, jax=9.0),
    )
    assert [t.ratio for t in timings] == [2.0, 8.0, 0.75]
    report = bench.Report({}, {}, (), {}, {}, timings)
    assert report.geometric_mean("float32") == pytest.approx(4.0, rel=1e-15)
    assert report.geometric_mean("float64") == pytest.approx(0.75, rel=1e-15)
    panels = report.plot().axes
    assert [text.get_text() for text in panels[0].texts] == ["8.0"]  # one cell of the map, the last timing of it
    assert [text.get_text() for text in panels[2].texts] == ["0.8"]


@pytest.mark.parametrize("part", ["value", "W_R", "b_O"])
def test_a_wrong_result_is_not_timed(monkeypatch, rough_ceilings, part):
    def wrong(work, threads):
        right = _peers.with_bptt(work, threads)

        def read(result):
            value, gradients = right.read(result)
            if part == "value":
                return _peers.Result(value * 1.01, gradients)
            return _peers.Result(value, gradients | {part: gradients[part] * 1.01})

        return _peers.Contender(right.run, read)

    monkeypatch.setattr(_peers, "CONTENDERS", {"bptt": _peers.with_bptt, "json": wrong})  # json stands in for a peer
    with pytest.raises(ArithmeticError, match=f"bptt and json differ in {part} by 1.0e-02"):
        bench.run(CELLS, seconds=0.0)


def test_a_missing_peer_is_said(monkeypatch, rough_ceilings):
    monkeypatch.setattr(_peers, "CONTENDERS", {"bptt": _peers.with_bptt, "no_such_peer": None})
    report = bench.run(CELLS[:1], seconds=0.0)
    assert report.versions == {}
    assert "no_such_peer is not compared with: No module named 'no_such_peer'" in str(report)


def test_a_slowed_ceiling_is_said(alone, rough_ceilings, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "OPENBLAS_CORETYPE is set" in str(bench.run(CELLS[:1], seconds=0.0))


def test_the_reference_is_not_a_contender(monkeypatch):
    monkeypatch.setattr(bench._levels, "level", lambda: "reference")
    with pytest.raises(ImportError, match="the benchmark is of a compiled level"):
        bench.run(CELLS)


def test_command_line(alone, rough_ceilings, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "QUICK", CELLS)
    result = CliRunner().invoke(app, ["bench", "--quick", "--json", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "bptt-bench.json").read_text())
    assert [timing["cell"]["dtype"] for timing in json.loads(result.stdout)["timings"]] == list(bench.DTYPES)
    assert (tmp_path / "bptt-bench.png").read_bytes().startswith(b"\x89PNG")


def test_nearer_caches_read_faster():
    assert _ceiling.read(2**14, 1) > 1.2 * _ceiling.read(2**28, 1)


@pytest.mark.peers
@pytest.mark.parametrize("peer", ["torch", "jax"])
@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_peers_agree(peer, dtype):
    pytest.importorskip(peer)
    cell = bench.Cell(n=33, B=5, dtype=dtype, T=100)
    work = _peers.work(cell.T, cell.B, cell.n, cell.dtype)
    results = []
    for name in ("bptt", peer):
        contender = _peers.CONTENDERS[name](work, 1)
        results.append(contender.read(contender.run()))
    assert {g.dtype for result in results for g in result.gradients.values()} == {np.dtype(dtype)}
    assert bench.difference(cell, peer, *results) <= bench.TOLERANCE[dtype]
