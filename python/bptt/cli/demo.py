"""`bptt demo`: from a text to a trained network, the check of its gradient, and how far back that gradient reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

import bptt
from bptt.cli.flow import facts as flow_facts
from bptt.cli.terminal import Json, log_plot, print_json, require_writable, watch

#: Lags of the decay, and the sequences whose last errors are followed back.
LAGS, SEQUENCES = 200, 64

#: Steps and sequences that the flow is taken over.
FLOW_STEPS, FLOW_SEQUENCES = 1000, 1

#: Sequences of the check: its finite differences are some dozen runs of the reference.
CHECKED = 8


def demo(
    output: Annotated[Path, typer.Option(help="The directory to write to.", show_default="here")] = Path(),
    seconds: Annotated[float, typer.Option(min=0.1, help="Time to train.")] = 20.0,
    json: Json = False,
) -> None:
    """Train on the text that every Python carries, check the gradient, show how it decays with the lag.

    Ends with the trained network's gradient flow. Writes bptt-demo.safetensors, for `bptt sample`, bptt-demo.png and
    bptt-demo-flow.png. With the default --seconds it takes less than a minute.
    """
    output.mkdir(parents=True, exist_ok=True)
    require_writable(output)
    facts: dict[str, Any] = {}
    for name, value, words in _chapters(output, seconds, quiet=json):
        facts[name] = value
        if not json:
            print(words, end="\n\n", flush=True)
    if json:
        print_json(facts)
    if not facts["check"]["passed"]:
        raise typer.Exit(1)


def _chapters(output: Path, seconds: float, *, quiet: bool) -> Iterator[tuple[str, Any, str]]:
    """The demonstration step by step: the name of what was found, the facts, and the words for them."""
    from bptt.character_model import CharacterModel
    from bptt.plotting import gradient_decay, save
    from bptt.text import Vocabulary, entropy, python_topics, split, streams
    from bptt.train import Settings, Training

    text = python_topics()
    vocabulary = Vocabulary.of(text)
    tokens, held_out = split(vocabulary.encode(text))
    found = {"characters": len(text), "vocabulary": len(vocabulary), "held_out": len(held_out)}
    yield (
        "text",
        found,
        f"Text: {len(text):,} characters of Python's own help, {len(vocabulary)} different; "
        f"the last {len(held_out):,} are held out.",
    )

    settings = Settings(learning_rate=4e-3)
    training = Training(CharacterModel.random(vocabulary, settings.hidden), tokens, settings)
    untrained = training.state.model
    run = training.run(seconds=seconds)
    with closing(run if quiet else watch(run)) as shown:
        for progress in shown:
            last = progress
    model = training.state.model
    yield (
        "training",
        {**asdict(settings), **asdict(last)},
        f"Network: n = {settings.hidden}, tanh, float32, {model.rnn.size:,} weights.\n"
        f"Trained: {last.seconds:.0f} s, {last.epochs:.1f} epochs, {last.characters_per_second:,.0f} characters per s.",
    )

    bits = {
        "order_0_entropy": entropy(held_out),
        "before": untrained.bits_per_character(held_out),
        "after": model.bits_per_character(held_out),
    }
    yield (
        "bits_per_character",
        bits,
        "Held-out text, bits per character:\n"
        f"  before training  {bits['before']:.3f}\n"
        f"  order-0 entropy  {bits['order_0_entropy']:.3f}  (guessing from the frequencies alone)\n"
        f"  after training   {bits['after']:.3f}",
    )

    sample = "".join(islice(model.generate(temperature=0.7), 400))
    yield "sample", sample, "What it writes (temperature 0.7):\n  | " + sample.strip("\n").replace("\n", "\n  | ")

    inputs, targets = streams(held_out, SEQUENCES)
    batch = np.s_[: settings.length, :CHECKED]
    report = bptt.check(model.rnn, inputs[batch], targets[batch])
    yield "check", {**asdict(report), "passed": report.passed}, str(report)

    x, y = inputs[: LAGS + 1], targets[LAGS]
    norms = {name: error_norms(m.rnn, x, y) for name, m in (("before training", untrained), ("after training", model))}
    medians = {name: np.median(curves, axis=1) for name, curves in norms.items()}
    yield (
        "gradient_norms",
        medians,
        f"‖dE_T/dh_(T-k)‖ against the lag k, median of {SEQUENCES} sequences (b before training, a after):\n"
        + log_plot(medians),
    )

    batch = np.s_[:FLOW_STEPS, :FLOW_SEQUENCES]
    flow = bptt.gradient_flow(model.rnn, inputs[batch], targets[batch], max_lag=LAGS)
    yield "gradient_flow", flow_facts(flow), f"The trained network's gradient flow:\n{flow}"

    files = {
        "model": output / "bptt-demo.safetensors",
        "figure": output / "bptt-demo.png",
        "flow": output / "bptt-demo-flow.png",
    }
    training.save(files["model"])
    save(gradient_decay(norms, title="How far back the gradient of one error reaches"), files["figure"])
    save(flow.plot(), files["flow"])
    yield (
        "files",
        files,
        f"Wrote the figures {files['figure']} and {files['flow']}, and the model {files['model']}; "
        f"try: bptt sample {files['model']}",
    )


def error_norms(rnn: bptt.RNN, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """‖dE_T/dh_{T-k}‖₂ for the errors of the last step.

    Parameters
    ----------
    rnn : RNN
    x : integer array of shape (T, B)
        Tokens.
    y : integer array of shape (B,)
        Targets of the last step.

    Returns
    -------
    float64 array of shape (T, B)
        Row k belongs to the lag k, in 0..T - 1.
    """
    # With u_t = W_I x_t as the input and I as its weights, the gradient by the input is the one by h_t. In float64,
    # because a long product underflows in float32.
    rnn = rnn.astype(np.float64)
    u = rnn.W_I.T[x]
    _, gradients = bptt.value_and_grad(rnn.replace(W_I=np.eye(rnn.n)), u, y, reduction="sum", wrt_inputs=True)
    assert gradients.x is not None
    norms: npt.NDArray[np.float64] = np.linalg.norm(gradients.x, axis=-1)
    return norms[::-1]
