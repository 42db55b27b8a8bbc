"""Characters as tokens: nothing lost, nothing reordered, nothing seen twice."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bptt.text
from bptt.character_model import CharacterModel
from bptt.text import Vocabulary, blocks, entropy, python_topics, read_text, read_tokens, split, streams
from bptt.train import Settings, Training


@given(st.text(min_size=1))
def test_decode_inverts_encode(text: str) -> None:
    vocabulary = Vocabulary.of(text)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32
    assert tokens.shape == (len(text),)
    assert vocabulary.decode(tokens) == text


def test_vocabulary_is_sorted_by_code_point_beyond_the_basic_plane() -> None:
    assert Vocabulary.of("z𝄞a\ufffdé\n").characters == "\nazé\ufffd𝄞"


@pytest.mark.parametrize("characters", ["", "ba", "aa"])
def test_vocabulary_refuses_characters_out_of_order(characters: str) -> None:
    with pytest.raises(ValueError, match="each once, sorted by code point"):
        Vocabulary(characters)


@pytest.mark.parametrize(
    ("text", "named"), [("abé", r"'\\xe9' \(U\+00E9\) at position 2"), ("\udc80a", r"U\+DC80\) at position 0")]
)
def test_encode_names_the_character_it_does_not_know(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Vocabulary.of("abc").encode(text)


@pytest.fixture(params=[1, 2, 3, 1 << 18])
def piece(request, monkeypatch) -> None:
    """Bytes read at a time: fewer than a character has, some, or all."""
    monkeypatch.setattr(bptt.text, "PIECE", request.param)


def test_a_file_is_read_as_it_stands(tmp_path, piece) -> None:
    path, text = tmp_path / "text", "a\r\nß𝄞\x00b"
    path.write_bytes(text.encode())
    assert read_text(path) == text
    vocabulary, tokens = read_tokens(path)
    assert vocabulary == Vocabulary.of(text)
    assert tokens.dtype == np.uint8 and vocabulary.decode(tokens) == text
    larger = Vocabulary.of(text + "xyz")
    assert larger.decode(read_tokens(path, larger)[1]) == text
    with pytest.raises(ValueError, match=r"U\+1D11E\) at position 4"):
        read_tokens(path, Vocabulary.of(text.replace("𝄞", "")))


@pytest.mark.parametrize("read", [read_text, read_tokens])
def test_a_wrong_byte_is_named_by_file_and_offset(tmp_path, piece, read) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("é".encode() + "Zoë".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin1\.txt is not UTF-8: byte 0xeb at offset 4"):
        read(path)
    path.write_bytes("Zoé".encode()[:-1])
    with pytest.raises(ValueError, match=r"byte 0xc3 at offset 2 \(unexpected end of data\)"):
        read(path)


@pytest.mark.parametrize("read", [read_text, read_tokens])
def test_an_empty_file_is_refused(tmp_path, read) -> None:
    path = tmp_path / "void"
    path.touch()
    with pytest.raises(ValueError, match="void is empty"):
        read(path)


def test_tokens_of_many_characters_take_more_bytes(tmp_path) -> None:
    path, text = tmp_path / "text", "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    path.write_text(text, "utf-8")
    assert read_tokens(path)[1].dtype == np.uint16


def test_a_text_never_lies_in_memory_as_a_whole(tmp_path) -> None:
    path = tmp_path / "text"
    path.write_text("to be or not to be, " * 1_000_000)
    tracemalloc.start()
    vocabulary, tokens = read_tokens(path)
    training = Training(CharacterModel.random(vocabulary, 8), split(tokens)[0], Settings(hidden=8))
    next(training.run(epochs=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tokens) == 20_000_000 and peak < 16e6


def test_entropy_of_known_distributions() -> None:
    assert entropy(np.zeros(5, int)) == 0
    assert entropy([0, 7]) == 1
    assert entropy([0, 0, 1, 2]) == 1.5


@given(st.integers(4, 300))
def test_split_covers_the_text(n: int) -> None:
    tokens = np.arange(n)
    train, held_out = split(tokens)
    assert len(train) >= 2 and len(held_out) == max(2, n // 10)
    np.testing.assert_array_equal(np.concatenate([train, held_out]), tokens)


def test_split_holds_out_no_more_than_measuring_needs() -> None:
    tokens = np.broadcast_to(np.int32(0), 10**8)
    assert [len(part) for part in split(tokens)] == [99 * 10**6, 10**6]


@pytest.mark.parametrize("n", range(4))
def test_split_refuses_a_text_too_short_for_both_parts(n: int) -> None:
    with pytest.raises(ValueError, match=f"a text of {n} characters is too short"):
        split(np.arange(n))


@given(st.integers(2, 200), st.data())
def test_streams_follow_the_text(n: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, n - 1))
    inputs, targets = streams(np.arange(n), batch)
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs.T.ravel(), np.arange(inputs.size))
    assert n - 1 - batch < inputs.size <= n - 1


@pytest.mark.parametrize("batch", [0, 5, -1])
def test_streams_refuse_a_batch_that_the_text_cannot_feed(batch: int) -> None:
    with pytest.raises(ValueError, match=rf"batch must be in 1\.\.4 for a text of 5 characters; got {batch}"):
        streams(np.arange(5), batch)


@given(st.integers(1, 1000), st.integers(1, 1200))
def test_blocks_tile_the_steps_evenly(steps: int, length: int) -> None:
    cut = blocks(steps, length)
    assert cut[0].start == 0 and cut[-1].stop == steps
    assert all(a.stop == b.start for a, b in itertools.pairwise(cut))
    sizes = {block.stop - block.start for block in cut}
    assert max(sizes) <= length and max(sizes) - min(sizes) <= 1
    assert len(cut) == -(-steps // length)


@pytest.mark.parametrize(("steps", "length", "name"), [(0, 3, "steps"), (3, 0, "length")])
def test_blocks_refuse_less_than_one(steps: int, length: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        blocks(steps, length)


def test_python_topics_hold_out_unseen_text() -> None:
    text = python_topics()
    assert len(text) > 300_000
    paragraphs = text.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))
