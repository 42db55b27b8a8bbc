"""`bptt train` and `bptt sample`: models of the characters of a text."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from bptt.character_model import CharacterModel
from bptt.cli.terminal import Json, print_json, require_writable, watch
from bptt.text import entropy, read_tokens, split
from bptt.train import Progress, Settings, Training

#: Time to train where no limit is given.
SECONDS = 60.0

#: Seconds of training between two saves.
SAVE_SECONDS = 60.0


def train(
    file: Annotated[Path, typer.Argument(help="A text in UTF-8, of any size; its last tenth is held out.")],
    hidden: Annotated[int | None, typer.Option(help="Hidden units.", show_default=str(Settings.hidden))] = None,
    length: Annotated[int | None, typer.Option(help="Steps in a block.", show_default=str(Settings.length))] = None,
    tbptt: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="K1 K2", help="Steps in a block, and steps that its errors flow back; instead of --length."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Streams side by side.", show_default=str(Settings.batch))] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adam, or sgd with momentum.", show_default=Settings.optimizer)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default=str(Settings.learning_rate))] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of a gradient.", show_default=str(Settings.clip))
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the initial weights.", show_default=str(Settings.seed))] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes through the text, resumed ones included.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for this run.", show_default=f"{SECONDS:g}, without --epochs")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="The model's file.", show_default="FILE's name with .safetensors, here")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="For each gradient, as '16 MB': states beyond it are computed again.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the model's file.")] = False,
    json: Json = False,
) -> None:
    """Train a network to predict the next character of a text.

    The state is carried from block to block through the text. The model is saved every minute, at the end, and when
    Ctrl-C ends the run (exit code 130). A resumed run continues exactly; only --learning-rate and --clip may change.
    """
    path = save or Path(file.stem + ".safetensors")
    require_writable(path.parent)
    if path.exists() and not resume:
        raise ValueError(f"{path} exists: --resume goes on with it, --save names another file")
    if tbptt is not None and length is not None:
        raise ValueError("--tbptt K1 K2 stands instead of --length: give one of them")
    length, window = tbptt or (length, None)
    choices = {
        "hidden": hidden,
        "length": length,
        "window": window,
        "batch": batch,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "clip": clip,
        "seed": seed,
    }
    given: dict[str, Any] = {name: value for name, value in choices.items() if value is not None}
    vocabulary, tokens = read_tokens(file, CharacterModel.load(path).vocabulary if resume else None)
    text, held_out = split(tokens)
    if resume:
        training = Training.load(path, text, **given)
    else:
        settings = Settings(**given)
        training = Training(CharacterModel.random(vocabulary, settings.hidden, seed=settings.seed), text, settings)
    if epochs is None and seconds is None:
        seconds = SECONDS
    run = training.run(epochs=epochs, seconds=seconds, memory=memory)
    model = training.state.model
    facts = {
        "file": file,
        "characters": len(tokens),
        "vocabulary": len(vocabulary),
        "held_out": len(held_out),
        "order_0_entropy": entropy(held_out),
        "before": model.bits_per_character(held_out),
    }
    if not json:
        print(
            f"{file}: {len(tokens):,} characters, {len(vocabulary)} different; the last {len(held_out):,} are held "
            f"out, order-0 entropy {facts['order_0_entropy']:.3f} bits per character",
            flush=True,
        )
    interrupted = False
    try:
        with closing(run if json else watch(run)) as shown:
            _save_now_and_then(training, shown, path)
    except KeyboardInterrupt:
        interrupted = True
    except FloatingPointError as error:
        raise FloatingPointError(f"training diverged: {error}; try a smaller --learning-rate or --clip") from None
    training.save(path)
    facts |= {
        "after": training.state.model.bits_per_character(held_out),
        "updates": training.state.updates,
        "epochs": training.epochs,
        "interrupted": interrupted,
        "model": path,
        "settings": asdict(training.settings),
    }
    if json:
        print_json(facts)
    else:
        print(f"held-out text: {facts['before']:.3f} bits per character before, {facts['after']:.3f} after")
        print(f"{'interrupted: ' if interrupted else ''}wrote {path} at epoch {training.epochs:.2f}")
    if interrupted:
        raise typer.Exit(130)


def _save_now_and_then(training: Training, run: Iterable[Progress], path: Path) -> None:
    saved = 0.0
    for progress in run:
        if progress.seconds > saved + SAVE_SECONDS:
            training.save(path)
            saved = progress.seconds


def sample(
    model: Annotated[Path, typer.Argument(help="A file that `bptt train` wrote.")],
    length: Annotated[int, typer.Option(min=1, help="Characters to generate.")] = 500,
    prime: Annotated[str, typer.Option(help="A beginning for the model to go on from.")] = "",
    temperature: Annotated[float, typer.Option(help="Below 1 more careful, above 1 more daring.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    json: Json = False,
) -> None:
    """Generate text with a trained model, one character after the other."""
    characters = islice(CharacterModel.load(model).generate(prime=prime, temperature=temperature, seed=seed), length)
    if json:
        print_json({"model": model, "prime": prime, "text": "".join(characters)})
        return
    print(prime, end="")
    for character in characters:
        print(character, end="", flush=True)
    print()
