from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SHARED_DATA
from gguf import TokenType
from phi4_folder import CONFIG, phi4_folder
from small_tokenizers import MERGES, SPECIALS
from texts import PLAIN, WITH_SPECIAL_TOKENS, random_texts
from tokenizers import Tokenizer

from phi4conv.carried import phi4_vocabulary
from phi4conv.convert import convert
from phi4conv.errors import ConversionError
from phi4conv.gguf_file.read import read_gguf
from phi4conv.hf.tokenizer import read_vocabulary
from phi4conv.hf.tokenizer_json import tokenizer_json
from phi4conv.phi3 import ConversionOptions
from phi4conv.vocab import SpecialIds, Vocabulary, byte_alphabet, pad_text

PHI4 = SHARED_DATA / "phi-4"
PUBLISHED = pytest.mark.skipif(not PHI4.is_dir(), reason="needs the published tokenizer files beside the checkout")
FUZZ_SEED = 20241212

NORMAL, CONTROL = TokenType.NORMAL, TokenType.CONTROL
USER_DEFINED, UNUSED = TokenType.USER_DEFINED, TokenType.UNUSED

SMALL = Vocabulary(
    texts=(*byte_alphabet(), *("".join(pair) for pair in MERGES), *SPECIALS),
    types=(NORMAL,) * (256 + len(MERGES)) + (CONTROL,) * len(SPECIALS),
    merges=tuple(" ".join(pair) for pair in MERGES),
    pre="dbrx",
    special=SpecialIds(bos=261, eos=263, eot=263),
)
BOS, EOS = 261, 263


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phi4_folder(tmp_path_factory.mktemp("made") / "Phi-4")


def loaded(vocabulary: Vocabulary, **options: bool) -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer_json(vocabulary, **options))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def extended(*added: tuple[str, int]) -> Vocabulary:
    return replace(
        SMALL,
        texts=(*SMALL.texts, *(text for text, _ in added)),
        types=(*SMALL.types, *(kind for _, kind in added)),
    )


def read_back(folder: Path, vocabulary: Vocabulary) -> Vocabulary:
    (folder / "tokenizer.json").write_bytes(tokenizer_json(vocabulary))
    present = vocabulary.special.present()
    names = {f"{role}_token": vocabulary.texts[token] for role, token in present.items() if role != "eot"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return read_vocabulary(folder, {}).vocabulary


def test_the_library_knows_every_token_by_its_id(phi4: Path) -> None:
    tokenizer = Tokenizer.from_file(str(phi4 / "tokenizer.json"))
    assert tokenizer.get_vocab(with_added_tokens=True) == phi4_vocabulary().ids
    added = tokenizer.get_added_tokens_decoder()
    assert sorted(added) == list(range(100256, 100352))
    assert {(token.special, token.lstrip, token.rstrip, token.normalized) for token in added.values()} == {
        (True, True, True, False)
    }


def test_it_tokenizes_as_phi_4_does(phi4: Path) -> None:
    tokenizer = Tokenizer.from_file(str(phi4 / "tokenizer.json"))
    assert ids_of(tokenizer, "Tell me a joke.") == [41551, 757, 264, 22380, 13]
    assert ids_of(tokenizer, "x\n<|im_end|>\ny") == [87, 100265, 88]
    assert tokenizer.encode("x").ids == [87]
    assert tokenizer.decode([41551, 757, 264, 22380, 13, 100265], skip_special_tokens=False) == (
        "Tell me a joke.<|im_end|>"
    )


def test_reading_the_made_folder_gives_the_vocabulary_that_it_was_made_of(phi4: Path) -> None:
    reading = read_vocabulary(phi4, {"bos": 100257, "eos": 100265, "pad": 100349})
    assert reading.warnings == ()
    assert reading.vocabulary == phi4_vocabulary()


def test_the_made_folder_converts_to_a_gguf_with_the_whole_vocabulary(phi4: Path, tmp_path: Path) -> None:
    convert(phi4, tmp_path / "out.gguf", ConversionOptions(vocab_only=True))
    file = read_gguf(tmp_path / "out.gguf")
    values = {key: pair.value for key, pair in file.metadata.items()}
    assert file.defects == ()
    assert tuple(values["tokenizer.ggml.tokens"]) == phi4_vocabulary().texts
    assert tuple(values["tokenizer.ggml.merges"]) == phi4_vocabulary().merges
    assert tuple(values["tokenizer.ggml.token_type"]) == phi4_vocabulary().types
    assert values["phi3.embedding_length"] == 5120


@PUBLISHED
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_the_made_folder_says_what_the_published_one_says(phi4: Path, name: str) -> None:
    made, published = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (phi4, PHI4))
    assert made == published


@PUBLISHED
def test_the_made_config_has_the_published_values() -> None:
    published = json.loads((PHI4 / "config.json").read_text(encoding="utf-8"))
    assert CONFIG.items() <= published.items()


@PUBLISHED
@pytest.mark.slow
def test_a_hundred_thousand_texts_are_tokenized_as_by_the_published_file(phi4: Path) -> None:
    made, published = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (phi4, PHI4))
    texts = [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(100_000, FUZZ_SEED)]
    # Every fourth with a special token somewhere, often beside white space.
    for place in range(0, len(texts), 4):
        middle = len(texts[place]) // 2
        texts[place] = texts[place][:middle] + SPECIALS[place % len(SPECIALS)] + texts[place][middle:]
    for start in range(0, len(texts), 10_000):
        batch = texts[start : start + 10_000]
        expected = published.encode_batch(batch)
        for text, ours, theirs in zip(batch, made.encode_batch(batch), expected, strict=True):
            assert ours.ids == theirs.ids, repr(text)


@pytest.mark.parametrize("pre", ["dbrx", "llama-bpe", "gpt-4o", "qwen2", "gpt-2"])
def test_every_known_split_regex_comes_back(tmp_path: Path, pre: str) -> None:
    vocabulary = replace(SMALL, pre=pre)
    assert read_back(tmp_path, vocabulary) == vocabulary


@pytest.mark.parametrize(
    ("pre", "parts"),
    [
        ("dbrx", ["abCd", "123", "4", "'S", "Ċ"]),
        ("llama-bpe", ["abCd", "123", "4", "'S", "Ċ"]),
        ("gpt-4o", ["ab", "Cd", "123", "4", "'S", "Ċ"]),
        ("qwen2", ["abCd", "1", "2", "3", "4", "'S", "Ċ"]),
        ("gpt-2", ["abCd", "1234", "'", "S", "Ċ"]),
    ],
)
def test_text_is_split_as_the_name_says(pre: str, parts: list[str]) -> None:
    splitter = loaded(replace(SMALL, pre=pre)).pre_tokenizer
    assert splitter is not None
    assert [part for part, _ in splitter.pre_tokenize_str("abCd1234'S\n")] == parts


def test_llama_bpe_keeps_a_word_that_is_a_token_whole() -> None:
    # No merge makes "lo" out of l and o.
    unreachable = extended(("lo", NORMAL))
    ids = SMALL.ids
    assert ids_of(loaded(replace(unreachable, pre="llama-bpe")), "lo") == [len(SMALL)]
    assert ids_of(loaded(unreachable), "lo") == [ids["l"], ids["o"]]


def test_rows_without_a_token_are_left_out(tmp_path: Path) -> None:
    assert read_back(tmp_path, SMALL.padded(300)) == SMALL
    hole = extended((pad_text(len(SMALL)), UNUSED), ("<|last|>", CONTROL))
    assert loaded(hole).token_to_id(pad_text(len(SMALL))) is None
    assert read_back(tmp_path, hole) == hole


def test_user_defined_tokens_are_added_but_not_special(tmp_path: Path) -> None:
    vocabulary = extended(("<think>", USER_DEFINED))
    tokenizer = loaded(vocabulary)
    think = len(SMALL)
    assert ids_of(tokenizer, "w <think> w") == [SMALL.ids["w"], SMALL.ids["Ġ"], think, SMALL.ids["Ġw"]]
    assert tokenizer.decode([think], skip_special_tokens=True) == "<think>"
    assert read_back(tmp_path, vocabulary) == vocabulary


def test_white_space_around_special_tokens_can_be_kept() -> None:
    space, w, end = SMALL.ids["Ġ"], SMALL.ids["Ġw"], EOS
    assert ids_of(loaded(SMALL), " <|im_end|> w") == [end, SMALL.ids["w"]]
    assert ids_of(loaded(SMALL, strip_around_special=False), " <|im_end|> w") == [space, end, w]


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("add_eos", [False, True])
def test_bos_and_eos_are_added_as_the_vocabulary_says(tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    vocabulary = replace(SMALL, add_bos=add_bos, add_eos=add_eos)
    hello = SMALL.ids["hello"]
    assert loaded(vocabulary).encode("hello").ids == [BOS] * add_bos + [hello] + [EOS] * add_eos
    pair = loaded(vocabulary).encode("hello", "hello").ids
    assert pair == [BOS] * add_bos + [hello, hello] + [EOS] * add_eos
    assert read_back(tmp_path, vocabulary) == vocabulary


def test_the_same_token_may_begin_and_end_a_text() -> None:
    vocabulary = replace(SMALL, special=SpecialIds(bos=BOS, eos=BOS), add_bos=True, add_eos=True)
    assert loaded(vocabulary).encode("hello").ids == [BOS, SMALL.ids["hello"], BOS]


CHANGES: dict[str, tuple[Callable[[Vocabulary], Vocabulary], str]] = {
    "unknown regex": (lambda it: replace(it, pre="tekken"), "'dbrx', 'gpt-4o', 'qwen2', 'gpt-2', 'llama-bpe'"),
    "no regex": (lambda it: replace(it, pre=""), "no regex is known"),
    "one text twice": (lambda it: replace(it, texts=("!", *it.texts[1:])), r"(?s)two tokens have one text.*'!'"),
    "no bos": (
        lambda it: replace(it, special=SpecialIds(eos=EOS), add_bos=True),
        "bos is to be added, but is no token",
    ),
    "no eos": (lambda it: replace(it, special=SpecialIds(bos=BOS, eos=999), add_eos=True), r"(?s)below 266.*999"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_tokenizer_json_can_say_is_refused(change: str) -> None:
    changed: tuple[Callable[[Vocabulary], Any], str] = CHANGES[change]
    with pytest.raises(ConversionError, match=changed[1]):
        tokenizer_json(changed[0](SMALL))
