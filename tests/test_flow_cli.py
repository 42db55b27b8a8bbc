"""`bptt flow`."""

import json
import os
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import bptt
from bptt.character_model import CharacterModel
from bptt.cli import app
from bptt.text import Vocabulary

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["flow", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def model(tmp_path):
    """A model of characters, and its text beside it."""
    (tmp_path / "fox.txt").write_text(TEXT)
    path = tmp_path / "fox.safetensors"
    CharacterModel.random(Vocabulary.of(TEXT), 12).save(path)
    return path


def test_a_model_and_a_text(model, tmp_path):
    text, figure = tmp_path / "fox.txt", tmp_path / "flow.png"
    printed = run(model, "--text", text, "--steps", 300, "--max-lag", 50, "--figure", figure).stdout
    tokens = CharacterModel.load(model).vocabulary.encode(TEXT[:301])
    flow = bptt.gradient_flow(bptt.RNN.load(model), tokens[:-1], tokens[1:], max_lag=50)
    assert printed == f"{flow}\n\nWrote the figure {figure}\n"
    assert figure.read_bytes().startswith(b"\x89PNG")

    facts = json.loads(run(model, "--text", text, "--steps", 300, "--max-lag", 50, "--json").stdout)
    assert facts["verdict"] == flow.verdict
    assert facts["horizon"] == flow.horizon
    assert facts["figure"] is None
    np.testing.assert_allclose(facts["exponents"], flow.exponents)
    assert len(facts["log_norms"]["median"]) == 51
    assert facts["bounds"]["norm"] == {"rate": flow.certificates.norm.rate, "constant": 1.0}
    assert set(facts["bounds"]) == {"norm", "absolute", "scaled", "expanding", "expanding_scaled"}


@pytest.mark.parametrize("targets", [None, "all", "last"])
def test_a_model_and_arrays(tmp_path, targets):
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(3, 8, 4)
    rnn.save(tmp_path / "m.safetensors")
    x, y = rng.standard_normal((60, 2, 3)), rng.integers(4, size=(60, 2))
    arrays = {"x": x, "lengths": [60, 25], "initial": rng.standard_normal((2, 8))}
    if targets:
        arrays["y"] = y if targets == "all" else y[-1]
    np.savez(tmp_path / "a.npz", **arrays)
    command = (tmp_path / "m.safetensors", "--npz", tmp_path / "a.npz", "--json")
    if targets == "last":  # cut off with the step that it belongs to
        message = "must be of all steps of x, (60, 2), or --steps at least 60; y has shape (2,), and --steps is 40"
        assert message in run(*command, "--steps", 40, code=2).stderr
        facts, cut = json.loads(run(*command, "--steps", 60).stdout), {}
    else:
        facts = json.loads(run(*command, "--steps", 40).stdout)
        cut = {name: array[:40] for name, array in arrays.items() if len(array) == 60} | {"lengths": [40, 25]}
    flow = bptt.gradient_flow(rnn, **{**arrays, **cut})
    assert facts["horizon"] == flow.horizon
    np.testing.assert_allclose(facts["exponents"], flow.exponents)


def test_what_an_npz_holds_beside_is_named_and_shapes_are_the_files(tmp_path):
    bptt.RNN.random(3, 8, 4).save(tmp_path / "m.safetensors")
    command = (tmp_path / "m.safetensors", "--npz", tmp_path / "a.npz", "--steps", 40)
    np.savez(tmp_path / "a.npz", x=np.ones((60, 3)), weigths=np.ones(60))
    assert "weigths is not read" in run(*command).stderr
    np.savez(tmp_path / "a.npz", x=np.ones((60, 2)))
    assert "got (60, 2)" in run(*command, code=2).stderr
    x = np.ones((60, 2, 3))
    x[30, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    assert "must be finite; at step t = 31 of sequence b = 1 it is not" in run(*command, code=2).stderr
    np.savez(tmp_path / "a.npz", x=x, lengths=[60, 30])
    run(*command)
    np.savez(tmp_path / "a.npz", x=x[:, 0], lengths=60)
    run(*command)
    np.savez(tmp_path / "a.npz", x=x[:0])
    assert "x must have a sequence of at least 3 steps; the longest has 0" in run(*command, code=2).stderr
    np.savez(tmp_path / "a.npz", x=x, lengths=[60, 30, 2])
    assert "lengths must have shape (B,) with B = 2; got (3,)" in run(*command, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the model one input: --text FILE or --npz FILE"),
        (("--text", "fox.txt", "--npz", "a.npz"), "give the model one input"),
        (("--text", "none.txt"), "none.txt: No such file or directory"),
        (("--npz", "fox.txt"), "fox.txt is no .npz file"),
        (("--npz", "y.npz"), "y.npz must hold an array x; it holds y"),
        (("--npz", "nothing.npz"), "nothing.npz must hold an array x; it holds nothing"),
        (("--npz", "scalar.npz"), "x must have"),
        (("--npz", "classes.npz"), "y must hold integers (classes) for the cross-entropy; got float64"),
        (("--text", "short.txt"), "the text must have at least 4 characters, 3 steps with their targets; it has 2"),
        (("--npz", "words.npz"), "lengths in words.npz must hold integers; got <U4"),
        (("--text", "fox.txt", "--figure", "none/flow.png"), "none: cannot write here"),
        (("--text", "fox.txt", "--figure", "taken.png"), "--figure must name a file; taken.png is a directory"),
    ],
)
def test_wrong_usage_is_one_line(model, monkeypatch, arguments, message):
    monkeypatch.chdir(model.parent)
    np.savez("y.npz", y=np.zeros(3))
    np.savez("nothing.npz")
    np.savez("scalar.npz", x=3.0)
    np.savez("classes.npz", x=np.zeros((9, 2), int), y=np.zeros((9, 2)))
    (model.parent / "short.txt").write_text("th")
    (model.parent / "taken.png").mkdir()
    np.savez("words.npz", x=np.zeros((9, 2), int), lengths=["nine", "five"])
    result = run(model.name, *arguments, code=2)
    assert result.stdout == ""
    assert re.fullmatch(r"bptt: [^\n]+\n", result.stderr)
    assert message in result.stderr


@pytest.mark.parametrize("kind", [".png", ".pdf", ".svg"])
def test_a_figure_that_cannot_be_written_leaves_the_old_one(model, monkeypatch, kind):
    monkeypatch.chdir(model.parent)
    figure = model.parent / f"flow{kind}"
    arguments = (model.name, "--text", "fox.txt", "--steps", 50, "--figure", figure.name)
    run(*arguments)
    old, files = figure.read_bytes(), sorted(os.listdir())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(*arguments, code=2).stderr == f"bptt: {figure.name}: No space left on device\n"
    assert figure.read_bytes() == old
    assert sorted(os.listdir()) == files
