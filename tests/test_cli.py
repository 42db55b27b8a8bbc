"""The command line: facts on standard output, one line for an error, exit codes, files that are whole."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import bptt
from bptt import checking
from bptt.character_model import CharacterModel
from bptt.cli import app, terminal
from bptt.cli.demo import error_norms
from bptt.flow import Verdict
from bptt.text import Vocabulary

TEXT = "the quick brown fox jumps over the lazy dog\n" * 12 + "pack my box with five dozen liquor jugs\n" * 9
SMALL = ["--hidden", "8", "--length", "10", "--batch", "4"]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def facts(*arguments: object, code: int = 0) -> dict:
    result = run(*arguments, "--json", code=code)
    assert result.stderr == ""
    return json.loads(result.stdout)


def complaint(*arguments: object, code: int = 2) -> str:
    """The one line that an error is."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert re.fullmatch(r"bptt: [^\n]+\n", result.stderr)
    return result.stderr


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """A file in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = Path("fox.txt")
    path.write_text(TEXT)
    return path


@pytest.fixture
def model(text) -> Path:
    run("train", text, *SMALL, "--epochs", 2)
    return Path("fox.safetensors")


# train ----------------------------------------------------------------------------------------------------------------


def test_train_says_what_it_did(text) -> None:
    result = run("train", text, *SMALL, "--epochs", 20, "--learning-rate", 0.01)
    assert "fox.txt: 888 characters, 28 different; the last 88 are held out" in result.stdout
    before, after = map(float, re.search(r"([\d.]+) bits per character before, ([\d.]+) after", result.stdout).groups())
    assert after < before
    assert result.stdout.endswith("wrote fox.safetensors at epoch 20.00\n")
    assert CharacterModel.load("fox.safetensors").vocabulary == Vocabulary.of(TEXT)


def test_train_json_is_the_same_facts(text) -> None:
    found = facts("train", text, *SMALL, "--epochs", 3, "--save", "m", "--optimizer", "sgd", "--clip", 0.5, "--seed", 7)
    assert found["characters"] == len(TEXT) and found["held_out"] == len(TEXT) // 10
    assert found["epochs"] == 3 and not found["interrupted"] and found["model"] == "m"
    assert found["settings"] == {
        "hidden": 8, "length": 10, "batch": 4, "optimizer": "sgd", "learning_rate": 0.002, "clip": 0.5, "seed": 7,
        "window": None,
    }  # fmt: skip
    model = CharacterModel.load("m")
    held_out = model.vocabulary.encode(TEXT)[-found["held_out"] :]
    assert found["after"] == model.bits_per_character(held_out) != found["before"]


def test_train_resumes_exactly(text) -> None:
    whole = facts("train", text, *SMALL, "--epochs", 3, "--save", "whole")
    half = facts("train", text, *SMALL, "--epochs", 1, "--save", "parts")
    both = facts("train", text, "--resume", "--epochs", 3, "--save", "parts")
    assert both["before"] == half["after"]
    assert both["after"] == whole["after"]
    assert both["updates"] == whole["updates"] == 3 * half["updates"]
    one, two = bptt.RNN.load("whole"), bptt.RNN.load("parts")
    np.testing.assert_array_equal(one.ravel(), two.ravel())


def test_train_by_truncated_bptt_in_bounded_memory(text) -> None:
    small = ["--hidden", 8, "--batch", 4, "--tbptt", 10, 25, "--epochs", 1]
    found = facts("train", text, *small, "--save", "bounded", "--memory", "8 MB")
    assert (found["settings"]["length"], found["settings"]["window"]) == (10, 25)
    assert found["after"] == facts("train", text, *small, "--save", "free")["after"]
    assert found["after"] != facts("train", text, *small[:4], "--length", 10, "--epochs", 1, "--save", "short")["after"]


def test_train_by_the_clock(text) -> None:
    assert facts("train", text, *SMALL, "--seconds", 0.05)["updates"] > 0


def test_train_shows_lines_where_there_is_no_terminal(text, monkeypatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    result = run("train", text, *SMALL, "--epochs", 1)
    line = r" *\d+%  [\d.]+ bits/char  \d+k char/s  \|grad\| [\d.]+  epoch [\d.]+\n"
    assert re.fullmatch(f"({line})+", result.stderr)


def test_train_shows_a_bar_on_a_terminal(text, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    result = run("train", text, *SMALL, "--epochs", 5)
    assert "bits/char" in result.stderr and "100%" in result.stderr
    run("train", text, "--resume", "--epochs", 5)  # nothing left to do: no bar to draw, no harm
    assert "bits/char" in run("train", text, "--resume", "--epochs", 6).stderr


def test_train_saves_now_and_then(text, monkeypatch) -> None:
    from bptt.cli import models
    from bptt.train import Training

    saves = []
    save = Training.save
    monkeypatch.setattr(Training, "save", lambda self, path: (saves.append(self.state.updates), save(self, path)))
    monkeypatch.setattr(models, "SAVE_SECONDS", 1e-9)
    updates = facts("train", text, *SMALL, "--epochs", 1)["updates"]
    assert saves == [*range(1, updates + 1), updates]


def test_train_that_diverges_leaves_the_file_alone(text) -> None:
    result = run("train", text, *SMALL, "--optimizer", "sgd", "--learning-rate", 1e40, code=1)
    assert result.stderr == (
        "bptt: training diverged: the weights are not finite after update 1; try a smaller --learning-rate or --clip\n"
    )
    assert not Path("fox.safetensors").exists()


def test_train_does_not_overwrite_a_model(text, model) -> None:
    before = model.read_bytes()
    assert "fox.safetensors exists: --resume goes on with it, --save names another" in complaint("train", text)
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.txt is empty"),
        (b"abc\xff", "bad.txt is not UTF-8: byte 0xff at offset 3 (invalid start byte)"),
        (b"ab", "a text of 2 characters is too short"),
        (b"abcdefghij", "batch must be in 1..7 for a text of 8 characters; got 32"),
    ],
)
def test_train_refuses_a_bad_text(text, content: bytes, message: str) -> None:
    Path("bad.txt").write_bytes(content)
    assert message in complaint("train", "bad.txt")
    assert not Path("bad.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt"], "none.txt: No such file or directory"),
        (["fox.txt", "--save", "none/m"], "none: cannot write here: No such file or directory"),
        (["fox.txt", "--save", "fox.txt/m"], "fox.txt: cannot write here: Not a directory"),
        (["fox.txt", "--resume"], "fox.safetensors: No such file or directory"),
        (["fox.txt", "--resume", "--save", "fox.txt"], "fox.txt is damaged or no safetensors file"),
        (["fox.txt", "--tbptt", "5", "8", "--length", "5"], "--tbptt K1 K2 stands instead of --length"),
        (["fox.txt", "--tbptt", "5", "4"], "window must be at least length = 5; got 4"),
        (["fox.txt", "--memory", "16 loaves"], "memory must be a number of bytes or a text like '16 MB'"),
        (["fox.txt", "--hidden", "0"], "hidden must be at least 1; got 0"),
        (["fox.txt", "--learning-rate", "nan"], "learning_rate must be positive and finite; got nan"),
        (["fox.txt", "--optimizer", "lbfgs"], "optimizer must be one of sgd, adam; got 'lbfgs'"),
    ],
)
def test_train_refuses_bad_arguments(text, arguments: list[str], message: str) -> None:
    assert message in complaint("train", *arguments)
    assert os.listdir() == ["fox.txt"]


@pytest.mark.parametrize("limit", [["--seconds", "0"], ["--epochs", "-1"], ["--seconds", "nan"]])
def test_train_refuses_a_limit_that_is_none(text, limit: list[str]) -> None:
    assert "must be positive; got" in complaint("train", text, *SMALL, *limit)


def test_resume_refuses_another_text_and_other_sizes(text, model) -> None:
    Path("other.txt").write_text(TEXT[::-1])
    assert "was trained on another text" in complaint("train", "other.txt", "--save", model, "--resume")
    Path("other.txt").write_text(TEXT + "é")
    assert "character '\\xe9' (U+00E9) at position 888" in complaint("train", "other.txt", "--save", model, "--resume")
    assert "hidden = 9 differs from the 8" in complaint("train", text, "--resume", "--hidden", 9)
    assert facts("train", text, "--resume", "--epochs", 3, "--clip", 2)["settings"]["clip"] == 2


# sample ---------------------------------------------------------------------------------------------------------------


def test_sample_prints_prime_and_text(model) -> None:
    result = run("sample", model, "--length", 30, "--prime", "the ")
    assert len(result.stdout) == len("the ") + 30 + len("\n") and result.stdout.startswith("the ")
    found = facts("sample", model, "--length", 30, "--prime", "the ")
    assert found == {"model": str(model), "prime": "the ", "text": result.stdout[4:-1]}
    assert facts("sample", model, "--seed", 1)["text"] != facts("sample", model)["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: No such file or directory"),
        (["fox.txt"], "fox.txt is damaged or no safetensors file"),
        (["fox.safetensors", "--prime", "É"], "character '\\xc9' (U+00C9) at position 0 is not one of the 28"),
        (["fox.safetensors", "--temperature", "0"], "temperature must be positive and finite; got 0"),
        (["fox.safetensors", "--seed", "-1"], "seed must not be negative; got -1"),
    ],
)
def test_sample_refuses(model, arguments: list[str], message: str) -> None:
    assert message in complaint("sample", *arguments)


def test_sample_refuses_a_network_without_characters(text) -> None:
    bptt.RNN.random(3, 4, 3).save("plain")
    assert "plain is no model of characters" in complaint("sample", "plain")


# check, info ----------------------------------------------------------------------------------------------------------


def test_check_passes_here() -> None:
    found = facts("check")
    assert found["passed"] and len(found["cases"]) == 16 and found["level"] == bptt.info()["level"]
    assert {case["activation"] for case in found["cases"]} == set(bptt._kernel.ACTIVATIONS)
    assert all(len(case["comparisons"]) >= 7 for case in found["cases"])
    words = run("check").stdout
    assert words.count("  ok\n") == 16 and "16 of 16 networks agree" in words


def test_check_that_fails_says_where(monkeypatch) -> None:
    monkeypatch.setattr(checking, "KERNEL_TOLERANCE", {"float64": 1e-12, "float32": 1e-12})
    result = run("check", code=1)
    assert "8 of 16 networks agree" in result.stdout and "W_R" in result.stdout and "WRONG" in result.stdout
    assert not facts("check", code=1)["passed"]


def test_info_prints_the_facts_of_the_library() -> None:
    found = bptt.info()
    assert facts("info") == json.loads(json.dumps(found))
    words = run("info").stdout
    assert re.search(rf"^level +{found['level']}$", words, re.MULTILINE)
    assert len(words.splitlines()) == len(found)


# demo -----------------------------------------------------------------------------------------------------------------


def test_demo_keeps_its_promises(tmp_path) -> None:
    output = tmp_path / "made" / "here"
    found = facts("demo", "--output", output, "--seconds", 0.5)
    bits = found["bits_per_character"]
    assert bits["after"] < bits["before"]
    assert 4 < bits["order_0_entropy"] < 5
    assert found["check"]["passed"] and {"W_R", "W_I", "W_O", "b_R", "b_O"} <= {
        line["name"] for line in found["check"]["comparisons"]
    }
    assert len(found["sample"]) == 400
    assert [len(norms) for norms in found["gradient_norms"].values()] == [201, 201]
    assert sorted(os.listdir(output)) == ["bptt-demo-flow.png", "bptt-demo.png", "bptt-demo.safetensors"]
    for figure in ("bptt-demo.png", "bptt-demo-flow.png"):
        assert (output / figure).read_bytes().startswith(b"\x89PNG")
    assert found["gradient_flow"]["verdict"] in get_args(Verdict)
    model = CharacterModel.load(found["files"]["model"])
    assert model.rnn.n == 128 and len(model.vocabulary) == found["text"]["vocabulary"]


def test_demo_in_words(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = run("demo", "--seconds", 0.2).stdout
    for part in ("order-0 entropy", "before training", "after training", "W_R", "lag k", "1e+00 |", "Lyapunov"):
        assert part in words
    assert words.rstrip().splitlines()[-1] == (
        "Wrote the figures bptt-demo.png and bptt-demo-flow.png, and the model bptt-demo.safetensors; "
        "try: bptt sample bptt-demo.safetensors"
    )


def test_demo_says_before_the_work_that_it_cannot_write(tmp_path) -> None:
    (tmp_path / "file").touch()
    assert "file" in complaint("demo", "--output", tmp_path / "file")
    assert "file" in complaint("demo", "--output", tmp_path / "file" / "below")


def test_demo_fails_where_the_check_fails(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checking, "KERNEL_TOLERANCE", {"float32": 1e-15})
    assert not facts("demo", "--output", tmp_path, "--seconds", 0.1, code=1)["check"]["passed"]


def test_error_norms_are_those_of_the_gradient_by_each_preactivation() -> None:
    rng = np.random.default_rng(0)
    rnn = bptt.RNN.random(5, 9, 5, dtype="float32", rng=rng)
    x, y = rng.integers(5, size=(12, 3)), rng.integers(5, size=3)
    norms = error_norms(rnn, x, y)
    # In form "preactivation" the initial value is h_0: start again at every t from the h_t of the whole run.
    pre = rnn.astype("float64").replace(form="preactivation")
    h = bptt.forward(pre.replace(form="activation"), x).preactivations
    for lag in range(1, 12):
        t = 12 - lag
        _, gradients = bptt.value_and_grad(pre, x[t:], y, initial=h[t - 1], reduction="sum")
        np.testing.assert_allclose(norms[lag], np.linalg.norm(gradients.initial, axis=-1), rtol=1e-12)
    _, g = bptt.errors(pre, bptt.forward(pre, x, np.zeros((3, 9))), y)
    np.testing.assert_allclose(norms[0], np.linalg.norm(g[-1], axis=-1), rtol=1e-12)


# the process ----------------------------------------------------------------------------------------------------------


def start(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "bptt", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_saves_and_ends_cleanly(text) -> None:
    process = start("train", text, *SMALL, "--seconds", 600)
    assert "fox.txt: 888 characters" in process.stdout.readline()  # printed just before the first update
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    words, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    epoch = float(re.search(r"interrupted: wrote fox\.safetensors at epoch ([\d.]+)\n$", words)[1])
    resumed = facts("train", text, "--resume", "--epochs", int(epoch) + 2)
    assert resumed["epochs"] == int(epoch) + 2 and resumed["updates"] > 0


def test_a_reader_that_goes_away_is_no_error(model) -> None:
    process = start("sample", model, "--length", 10**6)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=60)


def test_output_survives_a_terminal_without_unicode(text) -> None:
    Path("greek.txt").write_text("αβγδ\n" * 50, encoding="utf-8")
    run("train", "greek.txt", *SMALL, "--epochs", 1)
    process = start("sample", "greek.safetensors", "--length", 20, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    words, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == "" and "\\u03b" in words


def test_wrong_usage_exits_with_2() -> None:
    assert "No such command" in run("trian", code=2).stderr
    assert "--hidden" in run("train", "file", "--hidden", "many", code=2).stderr
    for command in ("demo", "train", "sample", "check", "info"):
        assert command in run("--help").stdout
        assert run(command, "--help").stdout


# terminal -------------------------------------------------------------------------------------------------------------


def test_json_has_no_numbers_that_json_lacks(capsys) -> None:
    terminal.print_json({"a": np.float32(np.inf), "b": [np.nan, np.int64(3)], "c": np.ones((1, 2)), "d": Path("p")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 3], "c": [[1.0, 1.0]], "d": "p"}


def test_log_plot_puts_marks_where_the_numbers_are() -> None:
    lines = terminal.log_plot({"a": 10.0 ** -np.arange(11)}, width=11, height=11).splitlines()
    for lag, line in enumerate(lines[:11]):
        assert line == f"  1e{-lag:+03d} |{' ' * lag}a"
    assert lines[11].endswith("+-----------") and lines[12].split() == ["0", "10"]


@pytest.mark.parametrize("curve", [[1.0], [1e-300, 1e300], [0.0, 1.0, np.nan, np.inf], np.full(1000, 2.5)])
def test_log_plot_draws_any_curve_within_its_frame(curve) -> None:
    lines = terminal.log_plot({"x": curve}, width=30, height=9).splitlines()
    assert len(lines) <= 11 and max(map(len, lines)) <= 9 + 30
    assert any("x" in line for line in lines)


def test_log_plot_of_nothing_positive() -> None:
    assert terminal.log_plot({"x": [0.0, -1.0]}) == "(nothing positive to draw)"
