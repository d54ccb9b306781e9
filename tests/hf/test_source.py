from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SHARED_DATA, TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    ENDOFTEXT,
    IM_END,
    IM_SEP,
    NO_IDS,
    SETTINGS,
    SPECIALS,
    add_token,
    end_with,
    small_tokenizer,
    write_folder,
)
from texts import PLAIN, WITH_SPECIAL_TOKENS, random_texts
from tokenizers import Tokenizer

from phi4conv.carried import phi4_vocabulary
from phi4conv.errors import CheckpointError, ConversionError
from phi4conv.hf.source import BATCH_TEXTS, SourceTokenizer, read_source, source_of
from phi4conv.hf.tokenizer import read_vocabulary

TEXTS = [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(300, seed=4)]


@pytest.fixture
def small(tmp_path: Path) -> SourceTokenizer:
    return read_source(write_folder(tmp_path)).source


@pytest.fixture(scope="module")
def tiny() -> SourceTokenizer:
    return read_source(TINY).source


def changed(folder: Path, data: dict[str, Any]) -> SourceTokenizer:
    return read_source(write_folder(folder, data)).source


def test_a_text_becomes_the_librarys_ids(tiny: SourceTokenizer) -> None:
    library = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    expected = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert tiny.encode(TEXTS, parse_special=True) == expected
    assert tiny.encode([], parse_special=True) == []


def test_more_texts_than_one_batch_keep_their_order(small: SourceTokenizer) -> None:
    texts = ["hello" * (number % 7) for number in range(BATCH_TEXTS * 2 + 3)]
    assert small.encode(texts, parse_special=False) == [[259] * (number % 7) for number in range(len(texts))]


def test_special_tokens_are_found_or_spelled_out(small: SourceTokenizer) -> None:
    text = "hello <|im_end|>\nhello<|im_sep|>"
    assert small.encode([text], parse_special=True) == [[259, IM_END, 259, IM_SEP]]
    (plain,) = small.encode([text], parse_special=False)
    assert not set(plain) & set(range(ENDOFTEXT, len(small.vocabulary)))
    assert b"".join(small.pieces(plain)) == text.encode()


def test_tokens_that_are_not_special_are_found_either_way(tmp_path: Path) -> None:
    data = small_tokenizer()
    add_token(data, "hellohello", 266)
    source = changed(tmp_path, data)
    assert source.encode(["hellohello<|im_end|>"], parse_special=True) == [[266, IM_END]]
    assert source.encode(["hellohello<|im_end|>"], parse_special=False)[0][0] == 266
    assert IM_END not in source.encode(["hellohello<|im_end|>"], parse_special=False)[0]


def test_a_control_token_that_the_file_does_not_call_special_is_spelled_out_too(tmp_path: Path) -> None:
    data = small_tokenizer()
    add_token(data, "<|tool|>", 266)
    source = changed(tmp_path, data)
    assert source.encode(["<|tool|>"], parse_special=True) == [[266]]
    assert len(source.encode(["<|tool|>"], parse_special=False)[0]) == len("<|tool|>")


def test_what_the_tokenizer_adds_is_added_on_request(tmp_path: Path) -> None:
    data = small_tokenizer()
    end_with(data, "<|endoftext|>", "<|im_end|>")
    source = changed(tmp_path, data)
    assert source.encode(["hello"], parse_special=True) == [[259]]
    for parse_special in (False, True):
        ids = source.encode(["hello", ""], parse_special=parse_special, add_special=True)
        assert ids == [[ENDOFTEXT, 259, IM_END], [ENDOFTEXT, IM_END]]


def test_stored_truncation_and_padding_are_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(small_tokenizer()))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=5)
    source = changed(tmp_path, json.loads(tokenizer.to_str()))
    for parse_special in (False, True):
        assert source.encode(["hello" * 9, ""], parse_special=parse_special) == [[259] * 9, []]


@settings(max_examples=200)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_every_unicode_text_is_encoded_and_comes_back(tiny: SourceTokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, tiny.encode(texts, parse_special=False), strict=True):
        assert b"".join(tiny.pieces(ids)) == text.encode()
        assert tiny.decode(ids) == text
        assert "".join(tiny.pretokenize(text)) == text


@pytest.mark.parametrize("text", [" " * 100_000, " " * 50_000 + "a", "\n " * 30_000, "a" * 100_000, "é" * 50_000 + "1"])
def test_long_runs_are_encoded(small: SourceTokenizer, text: str) -> None:
    (ids,) = small.encode([text], parse_special=True)
    assert b"".join(small.pieces(ids)) == text.encode()


def test_half_of_a_surrogate_pair_is_no_text(small: SourceTokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        small.encode(["hello", "\ud800"], parse_special=True)


def test_decoding_spells_special_tokens_out(small: SourceTokenizer) -> None:
    (ids,) = small.encode(["hello<|im_end|>"], parse_special=True)
    assert small.decode(ids) == "hello<|im_end|>"
    assert small.decode([]) == ""


def test_pieces_are_the_bytes_that_the_library_decodes(tiny: SourceTokenizer) -> None:
    tokens = range(len(tiny.vocabulary))
    pieces = tiny.pieces(tokens)
    assert [piece.decode("utf-8", "replace") for piece in pieces] == [tiny.decode([token]) for token in tokens]
    assert sum(len(piece) == 1 for piece in pieces[:256]) == 256
    for left, right in pairwise(tokens):
        assert tiny.decode([left, right]) == (pieces[left] + pieces[right]).decode("utf-8", "replace")
    with pytest.raises(IndexError):
        tiny.pieces([len(tiny.vocabulary)])


def test_an_added_token_beyond_the_byte_alphabet_is_text(tmp_path: Path) -> None:
    data = small_tokenizer()
    add_token(data, "a b", 266)
    add_token(data, "Ġx", 267)
    source = changed(tmp_path, data)
    assert source.pieces([266, 267]) == [b"a b", b" x"]
    assert [source.decode([token]) for token in (266, 267)] == ["a b", " x"]


def test_text_is_cut_as_the_pre_tokenizer_says(small: SourceTokenizer) -> None:
    assert small.pretokenize("I'm  día 1234𝔘\n\n z🙂<|im_end|>") == [
        *("I", "'m", " ", " día", " ", "123", "4", "𝔘", "\n\n", " z", "🙂<|", "im", "_end", "|>"),
    ]
    assert small.pretokenize("") == []


def test_every_added_token_says_what_it_strips(tmp_path: Path) -> None:
    data = small_tokenizer()
    add_token(data, "<think>", 266, lstrip=True)
    add_token(data, "<tool>", 267, rstrip=True, special=True)
    strips = changed(tmp_path, data).strips
    assert strips == {**dict.fromkeys(SPECIALS, (True, True)), "<think>": (True, False), "<tool>": (False, True)}


def test_a_model_folder_is_read_with_its_warnings(tmp_path: Path) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != "bos_token"}
    config = {"eos_token_id": [IM_END, ENDOFTEXT], "bos_token_id": IM_SEP, "architectures": ["SomethingElse"]}
    reading = read_source(write_folder(tmp_path, None, settings, config=config))
    expected = read_vocabulary(tmp_path, {"bos": IM_SEP, "eos": IM_END, "pad": None})
    assert (reading.source.vocabulary, reading.warnings) == (expected.vocabulary, expected.warnings)
    assert reading.source.vocabulary.special.bos == IM_SEP
    assert reading.source.origin == str(tmp_path / "tokenizer.json")


def test_a_folder_without_config_json_is_read(tmp_path: Path) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != "bos_token"}
    reading = read_source(write_folder(tmp_path, None, settings))
    assert reading.source.vocabulary == read_vocabulary(tmp_path, NO_IDS).vocabulary
    assert any("no file names a bos token" in warning for warning in reading.warnings)


def test_a_broken_config_json_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 3')
    with pytest.raises(CheckpointError, match="cut short"):
        read_source(tmp_path)


def test_the_tiny_models_tokenizer_alone_is_enough(tmp_path: Path, tiny: SourceTokenizer) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    alone = read_source(tmp_path).source
    assert alone.vocabulary == tiny.vocabulary
    assert alone.encode(TEXTS, parse_special=True) == tiny.encode(TEXTS, parse_special=True)


def test_a_vocabulary_alone_tokenizes_as_its_folder_does(tiny: SourceTokenizer) -> None:
    source = source_of(tiny.vocabulary, "the tiny model's vocabulary")
    for parse_special in (False, True):
        for add_special in (False, True):
            flags = {"parse_special": parse_special, "add_special": add_special}
            assert source.encode(TEXTS, **flags) == tiny.encode(TEXTS, **flags)
    assert source.strips == tiny.strips
    assert source.vocabulary is tiny.vocabulary
    assert source.origin == "the tiny model's vocabulary"


def test_a_vocabulary_whose_regex_is_unknown_has_no_source(tiny: SourceTokenizer) -> None:
    vocabulary = tiny.vocabulary
    with pytest.raises(ConversionError):
        source_of(type(vocabulary)(vocabulary.texts, vocabulary.types, vocabulary.merges, "?", vocabulary.special), "x")


def test_the_carried_vocabulary_tells_the_joke() -> None:
    source = source_of(phi4_vocabulary(), "phi4conv")
    assert source.encode(["Tell me a joke."], parse_special=False) == [[41551, 757, 264, 22380, 13]]
    assert source.encode(["x\n<|im_end|>\ny"], parse_special=True) == [[87, 100265, 88]]


@pytest.mark.skipif(
    not (SHARED_DATA / "phi-4").is_dir(), reason="needs the published tokenizer files beside the checkout"
)
def test_the_carried_vocabulary_tokenizes_as_the_published_files() -> None:
    published = read_source(SHARED_DATA / "phi-4").source
    carried = source_of(phi4_vocabulary(), "phi4conv")
    assert published.strips == carried.strips
    for parse_special in (False, True):
        ids = published.encode(TEXTS, parse_special=parse_special)
        assert carried.encode(TEXTS, parse_special=parse_special) == ids
