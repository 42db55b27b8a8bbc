"""Training: the optimizers as their papers have them, and runs that continue to the last bit."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import bptt
from bptt.character_model import CharacterModel
from bptt.text import Vocabulary, entropy
from bptt.train import OPTIMIZERS, Progress, Settings, State, Training, adam, sgd

TEXT = "the quick brown fox jumps over the lazy dog\n" * 12 + "pack my box with five dozen liquor jugs\n" * 9
VOCABULARY = Vocabulary.of(TEXT)
TOKENS = VOCABULARY.encode(TEXT)
SMALL = Settings(hidden=9, length=7, batch=5)


def fresh(settings: Settings = SMALL) -> Training:
    return Training(CharacterModel.random(VOCABULARY, settings.hidden, seed=settings.seed), TOKENS, settings)


def assert_same(a: State, b: State) -> None:
    assert a.updates == b.updates
    for left, right in (
        (a.model.rnn.ravel(), b.model.rnn.ravel()),
        (a.moments, b.moments),
        (a.carried, b.carried),
    ):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_sgd_is_heavy_ball_in_closed_form() -> None:
    # Constant gradient g: after k updates the velocity is g (1 - 0.9^k) / 0.1.
    vector, moments = np.zeros(2), np.zeros((1, 2))
    g = np.array([1.0, -2.0])
    for update in range(1, 6):
        vector, moments = sgd(vector, g, moments, update, 0.1)
        np.testing.assert_allclose(moments[0], g * (1 - 0.9**update) / 0.1, rtol=1e-14)
    np.testing.assert_allclose(vector, -0.1 * g * sum((1 - 0.9**k) / 0.1 for k in range(1, 6)), rtol=1e-14)


def test_adam_of_a_constant_gradient_steps_by_the_rate() -> None:
    # Both bias corrections cancel: m̂ = g, v̂ = g², so every step is rate · sign g up to ε / |g|.
    vector, moments = np.zeros(2), np.zeros((2, 2))
    for update in range(1, 6):
        vector, moments = adam(vector, np.array([3.0, -0.5]), moments, update, 0.01)
        np.testing.assert_allclose(vector, [-0.01 * update, 0.01 * update], rtol=1e-7)


def test_adam_follows_the_algorithm_step_by_step() -> None:
    rng = np.random.default_rng(0)
    theta, m, v = np.ones(4), np.zeros(4), np.zeros(4)
    vector, moments = theta, np.zeros((2, 4))
    for t in range(1, 9):
        g = rng.standard_normal(4)
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g * g
        theta = theta - 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        vector, moments = adam(vector, g, moments, t, 0.02)
    np.testing.assert_allclose(vector, theta, rtol=1e-12)  # 8 steps; 1 - 0.9 and 0.1 differ by an eps or two


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_learns_below_the_order_0_entropy(optimizer: str) -> None:
    rate = {"adam": 0.01, "sgd": 0.2}[optimizer]
    training = fresh(Settings(hidden=24, length=16, batch=8, optimizer=optimizer, learning_rate=rate))
    untrained = training.state.model
    before = untrained.bits_per_character(TOKENS)
    for _ in training.run(epochs=60):
        pass
    assert training.state.model.bits_per_character(TOKENS) < 0.6 * entropy(TOKENS) < before
    assert untrained.bits_per_character(TOKENS) == before  # the model given is not changed


def test_one_update_by_hand(level: str) -> None:
    settings = Settings(hidden=6, length=7, batch=5, optimizer="sgd", learning_rate=0.5, clip=0.01)
    training = fresh(settings)
    rnn = training.state.model.rnn
    steps = (len(TOKENS) - 1) // 5
    block = steps // -(-steps // 7)
    x = np.array([TOKENS[b * steps : b * steps + block] for b in range(5)]).T
    y = np.array([TOKENS[b * steps + 1 : b * steps + block + 1] for b in range(5)]).T
    value, gradients = bptt.value_and_grad(rnn, x, y)
    facts = next(training.run(epochs=1))
    assert facts.bits_per_character == value / math.log(2)
    assert facts.gradient_norm == gradients.norm() > settings.clip
    step = rnn.ravel() - training.state.model.rnn.ravel()
    np.testing.assert_allclose(np.linalg.norm(step), 0.5 * 0.01, rtol=1e-5)  # float32, small differences of weights
    np.testing.assert_array_equal(training.state.carried, bptt.forward(rnn, x).final)


def test_the_state_is_carried_through_the_text_and_fresh_at_its_beginning() -> None:
    training = fresh()
    blocks = math.ceil(((len(TOKENS) - 1) // SMALL.batch) / SMALL.length)
    run = training.run(epochs=2)
    for _ in islice(run, blocks):
        pass
    assert training.epochs == 1
    rnn = training.state.model.rnn
    steps = (len(TOKENS) - 1) // 5
    length = steps // blocks
    x = np.array([TOKENS[b * steps : b * steps + length] for b in range(5)]).T
    next(run)
    np.testing.assert_array_equal(training.state.carried, bptt.forward(rnn, x).final)  # from zeros
    carried, rnn = training.state.carried, training.state.model.rnn
    x = np.array([TOKENS[b * steps + length : b * steps + 2 * steps // blocks] for b in range(5)]).T
    next(run)
    np.testing.assert_array_equal(training.state.carried, bptt.forward(rnn, x, carried).final)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("updates", [0, 1, 20, 33])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, level: str, optimizer: str, updates: int) -> None:
    settings = Settings(hidden=9, length=7, batch=5, optimizer=optimizer, learning_rate=0.01)
    whole = fresh(settings)
    expected = list(whole.run(epochs=2))
    assert len(expected) > 33  # the cuts lie in the first and in the second epoch

    first = fresh(settings)
    for _ in islice(first.run(epochs=2), updates):
        pass
    first.save(tmp_path / "model")
    second = Training.load(tmp_path / "model", TOKENS)
    assert second.settings == settings
    assert_same(second.state, first.state)
    facts = list(second.run(epochs=2))
    assert_same(second.state, whole.state)
    assert [f.bits_per_character for f in facts] == [f.bits_per_character for f in expected[updates:]]
    assert not list(second.run(epochs=2))  # nothing is left to do


def test_an_interrupt_leaves_the_last_whole_update(monkeypatch: pytest.MonkeyPatch) -> None:
    training, reference = fresh(), fresh()
    for _ in islice(reference.run(epochs=1), 5):
        pass
    optimizer, kept = OPTIMIZERS["adam"]

    def interrupted(vector, gradient, moments, update, rate):
        if update == 6:
            raise KeyboardInterrupt
        return optimizer(vector, gradient, moments, update, rate)

    monkeypatch.setitem(OPTIMIZERS, "adam", (interrupted, kept))
    with pytest.raises(KeyboardInterrupt):
        list(training.run(epochs=1))
    assert_same(training.state, reference.state)


def test_run_stops_when_the_time_is_up() -> None:
    facts = list(fresh().run(seconds=0.05))
    assert facts[-1].fraction == 1 and facts[-1].seconds >= 0.05
    assert all(f.seconds < 0.05 for f in facts[:-1])


def test_run_stops_at_the_first_of_two_limits() -> None:
    facts = list(fresh().run(epochs=1, seconds=1000))
    assert facts[-1].epochs == 1 and facts[-1].fraction == 1


def test_progress_counts_characters_and_epochs() -> None:
    training = fresh()
    facts = list(training.run(epochs=2))
    assert [f.updates for f in facts] == list(range(1, len(facts) + 1))
    assert facts[-1].epochs == training.epochs == 2
    assert [f.fraction for f in facts] == [f.updates / len(facts) for f in facts]
    characters = 2 * 5 * ((len(TOKENS) - 1) // 5)
    assert facts[-1].characters_per_second * facts[-1].seconds == pytest.approx(characters)
    assert all(isinstance(f, Progress) and f.gradient_norm > 0 for f in facts)


@pytest.mark.parametrize("limits", [{}, {"epochs": 0}, {"seconds": 0.0}, {"seconds": math.nan}])
def test_run_wants_a_limit(limits: dict) -> None:
    with pytest.raises(ValueError, match="run wants epochs or seconds" if not limits else "must be positive"):
        fresh().run(**limits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1; got 0"),
        ({"length": -1}, "length must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of sgd, adam; got 'lbfgs'"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite; got nan"),
        ({"clip": 0.0}, "clip must be positive; got 0.0"),
        ({"seed": -1}, "seed must not be negative; got -1"),
    ],
)
def test_settings_say_what_is_wrong(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_a_diverging_run_raises_and_keeps_a_finite_state() -> None:
    training = fresh(Settings(hidden=9, length=7, batch=5, optimizer="sgd", learning_rate=1e40))
    with pytest.raises(FloatingPointError, match="the weights are not finite after update 1"):
        list(training.run(epochs=5))
    assert training.state.updates == 0
    assert np.isfinite(training.state.model.rnn.ravel()).all()


def test_the_file_serves_as_network_and_as_model(tmp_path: Path) -> None:
    training = fresh()
    next(training.run(epochs=1))
    training.save(tmp_path / "model")
    for rnn in (bptt.RNN.load(tmp_path / "model"), CharacterModel.load(tmp_path / "model").rnn):
        np.testing.assert_array_equal(rnn.ravel(), training.state.model.rnn.ravel())
    assert CharacterModel.load(tmp_path / "model").vocabulary == VOCABULARY


def test_load_refuses_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "model"
    training = fresh()
    training.state.model.save(path)
    with pytest.raises(ValueError, match="model holds a model but no training"):
        Training.load(path, TOKENS)
    training.save(path)
    with pytest.raises(ValueError, match="trained on another text"):
        Training.load(path, TOKENS[:-1])
    with pytest.raises(ValueError, match="hidden = 10 differs from the 9 of .*: a run that goes on may change"):
        Training.load(path, TOKENS, hidden=10)
    assert Training.load(path, TOKENS, hidden=9, learning_rate=1.0).settings.learning_rate == 1.0
    bptt.RNN.random(3, 4, 3).save(path)
    with pytest.raises(ValueError, match="is no model of characters: .* p = 3 .* m = 3 .* vocabulary 0"):
        CharacterModel.load(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Training.load(path, TOKENS)
    with pytest.raises(FileNotFoundError):
        Training.load(tmp_path / "absent", TOKENS)


@pytest.mark.parametrize("batch", [1, 4, 10_000])
def test_bits_per_character_does_not_depend_on_the_blocks(batch: int) -> None:
    model = CharacterModel.random(VOCABULARY, 9)
    whole = model.bits_per_character(TOKENS, batch=batch, length=len(TOKENS))
    for length in (1, 7, 64):
        # float32 states, whatever the block: only the order of summation in float64 differs.
        assert model.bits_per_character(TOKENS, batch=batch, length=length) == pytest.approx(whole, rel=1e-6)


def test_bits_per_character_of_a_known_prediction() -> None:
    model = CharacterModel.random(VOCABULARY, 4)
    rnn = model.rnn.unravel(np.zeros(model.rnn.size, np.float32))
    uniform = CharacterModel(rnn, VOCABULARY)
    assert uniform.bits_per_character(TOKENS) == pytest.approx(math.log2(len(VOCABULARY)), rel=1e-6)


def test_generate_draws_from_the_prediction() -> None:
    vocabulary = Vocabulary.of("abc")
    weights = np.zeros((3, 2))
    logits = np.log([0.5, 0.3, 0.2])
    model = CharacterModel(bptt.RNN(np.zeros((2, 2)), np.zeros((2, 3)), weights, b_O=logits), vocabulary)
    drawn = "".join(islice(model.generate(), 3000))
    # Binomial: the standard deviation of a share is below 0.0092, and the draws are the same in every run.
    assert [drawn.count(c) / 3000 for c in "abc"] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    cold = "".join(islice(model.generate(temperature=1e-3), 50))
    assert cold == "a" * 50
    assert "".join(islice(model.generate(seed=1), 50)) != drawn[:50] == "".join(islice(model.generate(), 50))


def test_generate_goes_on_from_the_prime() -> None:
    training = fresh(Settings(hidden=32, length=16, batch=8, learning_rate=0.01))
    for _ in training.run(epochs=120):
        pass
    model = training.state.model
    assert "".join(islice(model.generate(prime="the quick brown fox", temperature=0.1), 12)) == " jumps over "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prime": "é"}, "U\\+00E9\\) at position 0 is not one of the"),
        ({"temperature": 0}, "temperature must be positive and finite; got 0"),
        ({"temperature": math.nan}, "temperature must be positive and finite"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_generate_says_what_is_wrong_at_once(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CharacterModel.random(VOCABULARY, 4).generate(**options)


@pytest.mark.parametrize("window", [7, 10, 30])
def test_a_window_is_truncated_bptt(window: int) -> None:
    """Without updates of the network, block after block gives what one call on the whole text gives."""
    settings = Settings(hidden=9, length=7, batch=5, window=window, learning_rate=1e-30)
    training = fresh(settings)
    rnn = training.state.model.rnn
    facts = list(training.run(epochs=1))
    x, y = training._inputs, training._targets
    values, norms = [], []
    start = 0
    states = bptt.forward(rnn, x).states
    for block in training._blocks:
        cut = max(block.stop - window, 0)
        weights = np.zeros((block.stop - cut, 5))
        weights[block.start - cut :] = 1
        value, gradients = bptt.value_and_grad(
            rnn, x[cut : block.stop], y[cut : block.stop], weights=weights, initial=states[cut]
        )
        values.append(value / math.log(2))
        norms.append(gradients.norm())
        assert block.start == start
        start = block.stop
    # float32, whose states differ by rounding where a product began at another step
    np.testing.assert_allclose([fact.bits_per_character for fact in facts], values, rtol=1e-5)
    np.testing.assert_allclose([fact.gradient_norm for fact in facts], norms, rtol=1e-4)


def test_a_windowed_run_resumes_exactly(tmp_path: Path) -> None:
    settings = Settings(hidden=9, length=7, batch=5, window=20)
    whole, half = fresh(settings), fresh(settings)
    for _ in islice(whole.run(epochs=2), 25):
        pass
    for _ in islice(half.run(epochs=2), 11):
        pass
    half.save(tmp_path / "half")
    resumed = Training.load(tmp_path / "half", TOKENS)
    assert resumed.settings.window == 20
    for _ in islice(resumed.run(epochs=2), 14):
        pass
    assert_same(resumed.state, whole.state)
    with pytest.raises(ValueError, match="window = 21 differs from the 20"):
        Training.load(tmp_path / "half", TOKENS, window=21)


def test_a_memory_budget_changes_no_bit() -> None:
    settings = Settings(hidden=9, length=600, batch=1)
    free, bounded = fresh(settings), fresh(settings)
    plan = bptt.memory_plan(free.state.model.rnn, free._inputs[:600])
    list(free.run(epochs=1))
    list(bounded.run(epochs=1, memory=plan.memory - plan.states // 2))
    assert_same(free.state, bounded.state)


def test_a_window_is_no_shorter_than_a_block() -> None:
    with pytest.raises(ValueError, match="window must be at least length = 64; got 63"):
        Settings(window=63)
