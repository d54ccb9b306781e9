"""load_vocab() says of every file what real llama.cpp makes of it."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SHARED_DATA, TINY_BROKEN
from gguf import Keys, TokenType
from hypothesis import given
from hypothesis import strategies as st
from vocabulary_changes import (
    ACCENTS,
    FLAG_KEYS,
    ID_KEYS,
    LOWERCASE,
    NAME,
    SCORES,
    SUPPRESSED,
    TYPE_COUNT,
    other_families,
    other_scalars,
    other_sentencepiece,
    other_tables,
    refused_gpt2,
    refused_llama,
    respelled,
    retyped,
    telling_texts,
    tokens_of,
    without,
)
from vocabulary_files import Pairs, changed, tiny_pairs, with_pre, written

from phi4conv.errors import EngineError, FormatError
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, boolean, f32s, i32, i32s, text, texts, u32, u64
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.llama_vocab import LlamaVocab, RefusedByLlamaCpp, TokenAttribute, load_vocab
from phi4conv.reference.llama_vocab_rules import OTHER_MODELS, PRE_SETTINGS, ROLE_TEXTS

needs_xllamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not sys.platform.startswith(("linux", "darwin")),
    reason="needs xllamacpp (the extra llama-cpp) under Linux or macOS",
)
follows_gnu = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="GNU's C++ library is that of Linux builds"
)

K = Keys.Tokenizer
PUBLISHED = [SHARED_DATA / "phi-4" / "vocab-by-llama.cpp.gguf", SHARED_DATA / "broken" / "phi4-vocab-broken-spm.gguf"]


# A vocabulary that a search for odd metadata can hold in view, and the kinds of values that it may put anywhere.
SMALL = ["a", "b", "ab", "Ċ", "Ġ", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<0x0A>", "unused", "x", "y"]
KEYS_READ = {*ID_KEYS, *FLAG_KEYS, SCORES, TYPE_COUNT, LOWERCASE, ACCENTS, SUPPRESSED, NAME, K.PRE, K.MODEL}
NAMES = ["", "gpt2", "llama", "bert", "dbrx", "gemma4", "phi-3", "jina-v2-de", "\0", "a b"]
INTEGERS = st.sampled_from([0, 1, 3, 6, 13, 14, 2**31 - 1])
STRINGS = st.sampled_from([*SMALL, *NAMES, "\udcf4\udc90\udc80\udc80"])
Draw = Callable[[st.SearchStrategy[Any]], Any]
PAIRS: Sequence[Callable[[str, Draw], MetadataPair]] = (
    lambda key, draw: u32(key, draw(INTEGERS)),
    lambda key, draw: i32(key, draw(INTEGERS)),
    lambda key, draw: u64(key, draw(INTEGERS)),
    lambda key, draw: boolean(key, draw(st.booleans())),
    lambda key, draw: text(key, draw(STRINGS)),
    lambda key, draw: texts(key, draw(st.lists(STRINGS, max_size=16, unique=True))),
    lambda key, draw: i32s(key, draw(st.lists(INTEGERS, min_size=10, max_size=16))),
    lambda key, draw: f32s(key, draw(st.lists(st.floats(width=32), min_size=10, max_size=16))),
)


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def broken_pairs() -> Pairs:
    """A SentencePiece vocabulary: nonsense as a Phi-4, and all right for llama.cpp."""
    return read_gguf(TINY_BROKEN).metadata


def loaded(pairs: Pairs, path: Path) -> LlamaVocab:
    return load_vocab(read_gguf(written(pairs, path)))


def file_of(pairs: Pairs) -> GGUFFile:
    """A file with this metadata that stands nowhere."""
    return replace(read_gguf(TINY_BROKEN), metadata=pairs)


def predicted(vocab: LlamaVocab) -> dict[str, Any]:
    """What can be seen of a vocabulary from outside, as load_vocab() has it."""
    ids = [vocab.special[role] for role, adds in (("bos", vocab.add_bos), ("eos", vocab.add_eos)) if adds]
    return {
        "special": {role: token for role, token in vocab.special.items() if role not in ("unk", "eom")},
        "end of generation": vocab.end_of_generation,
        "texts": list(vocab.texts),
        "attributes": list(vocab.attributes),
        "added": ids,
        "space prefix": plain_space(vocab) is not None and vocab.add_space_prefix,
    }


def observed(llama: LlamaCpp, space: int | None) -> dict[str, Any]:
    """The same as llama.cpp has it; space is the id of a token that decodes to one."""
    return {
        "special": llama.special_ids(),
        "end of generation": llama.end_of_generation(),
        "texts": llama.token_texts(),
        "attributes": llama.token_attributes(),
        "added": llama.tokenize([""], add_special=True)[0],
        "space prefix": space is not None and llama.detokenize([space]) == b"",
    }


def plain_space(vocab: LlamaVocab) -> int | None:
    """The token that decodes to one space, if there is one."""
    token = vocab.ids.get("▁" if vocab.escape_whitespaces else "Ġ")
    return token if token is not None and vocab.attributes[token] == TokenAttribute.NORMAL else None


def assert_same(llama: LlamaCpp, path: Path, what: str = "") -> LlamaVocab:
    """load_vocab() and llama.cpp make the same of a file; what says which one it is if they do not."""
    vocab = load_vocab(read_gguf(path))
    llama.load(path, vocab_only=True)
    assert (what, predicted(vocab)) == (what, observed(llama, plain_space(vocab)))
    return vocab


@needs_xllamacpp
@follows_gnu  # some files name no end-of-turn token
@pytest.mark.parametrize(
    ("pairs", "changes"),
    [
        *((tiny_pairs, changes) for changes in (other_tables, other_scalars, other_families, telling_texts)),
        (broken_pairs, other_sentencepiece),
    ],
)
def test_a_changed_vocabulary_is_loaded_as_llama_cpp_loads_it(
    llama: LlamaCpp,
    tmp_path: Path,
    pairs: Callable[[], Pairs],
    changes: Callable[[Pairs], Iterator[tuple[str, Pairs]]],
) -> None:
    for what, metadata in changes(pairs()):
        assert_same(llama, written(metadata, tmp_path / "changed.gguf"), what)


@needs_xllamacpp
@pytest.mark.parametrize(("pairs", "changes"), [(tiny_pairs, refused_gpt2), (broken_pairs, refused_llama)])
def test_a_vocabulary_that_llama_cpp_does_not_load_is_refused_with_the_reason(
    llama: LlamaCpp,
    tmp_path: Path,
    pairs: Callable[[], Pairs],
    changes: Callable[[Pairs], Iterator[tuple[str, str, Pairs]]],
) -> None:
    for what, reason, metadata in changes(pairs()):
        path = written(metadata, tmp_path / "changed.gguf")
        with pytest.raises(RefusedByLlamaCpp) as refused:
            load_vocab(read_gguf(path))
        assert refused.value.reason == reason, what
        assert str(path) in str(refused.value), what
        with pytest.raises(EngineError if refused.value.aborts else FormatError):
            llama.load(path, vocab_only=True)


@needs_xllamacpp
def test_every_pre_tokenizer_name_sets_what_it_sets_in_llama_cpp(llama: LlamaCpp, tmp_path: Path) -> None:
    # Without merges, only ignore_merges keeps two letters together.
    base = changed(respelled(tiny_pairs(), {300: "zq", 301: "▁"}), texts(K.MERGES, []))
    for name in PRE_SETTINGS:
        vocab = assert_same(llama, written(with_pre(base, name), tmp_path / "pre.gguf"), name)
        assert vocab.pre == name
        spaced = [vocab.ids[text] for text in ("a", "▁" if vocab.escape_whitespaces else "Ġ", ".")]
        assert (name, llama.detokenize(spaced) == b"a.") == (name, vocab.clean_spaces)
        assert (name, llama.tokenize(["zq"]) == [[300]]) == (name, vocab.ignore_merges)


@needs_xllamacpp
@follows_gnu
def test_published_vocabularies_are_loaded_as_llama_cpp_loads_them(llama: LlamaCpp) -> None:
    if not all(path.exists() for path in PUBLISHED):
        pytest.skip("needs the published tokenizer files beside the checkout")
    for path in PUBLISHED:
        assert_same(llama, path)


@needs_xllamacpp
@follows_gnu
def test_of_several_fitting_texts_the_one_is_taken_that_llama_cpp_takes(llama: LlamaCpp, tmp_path: Path) -> None:
    choice = random.Random(20241212)
    named = {token: f"[{token}]" for token in tokens_of(tiny_pairs()) if token.startswith("<|")}
    base = without(respelled(tiny_pairs(), named), K.EOT_ID, K.EOS_ID)
    taken = set()
    for _ in range(60):
        spellings = [
            spelling for texts_ in ROLE_TEXTS.values() for spelling in choice.sample(texts_, min(len(texts_), 3))
        ]
        places = choice.sample(range(20, 1000), len(spellings))
        count = choice.choice([1000, 1008, 1020])
        kept = changed(base, texts(K.LIST, tokens_of(base)[:count]))
        vocab = assert_same(
            llama, written(respelled(kept, dict(zip(places, spellings, strict=True))), tmp_path / "several.gguf")
        )
        taken.add(vocab.texts[vocab.special["eot"]])
        assert any("depends on its build" in warning for warning in vocab.warnings)
    assert len(taken) > 5


@pytest.mark.parametrize("model", sorted(OTHER_MODELS))
def test_other_kinds_of_vocabulary_are_not_known_here(tmp_path: Path, model: str) -> None:
    with pytest.raises(FormatError, match="not known here") as error:
        loaded(changed(tiny_pairs(), text(K.MODEL, model)), tmp_path / "other.gguf")
    assert not isinstance(error.value, RefusedByLlamaCpp)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (lambda g: without(g, K.PRE), ["pre is missing", "degraded"]),
        (lambda g: changed(g, u32(K.EOS_ID, 99_999)), ["eos_token_id is 99999", "takes 11"]),
        (lambda g: changed(g, u32(K.PAD_ID, 99_999)), ["padding_token_id is 99999", "ignores it"]),
        (lambda g: respelled(g, {300: ""}), ["token 300 is empty", "[EMPTY_300]"]),
        (lambda g: respelled(g, {"Ċ": "newline"}), ["line end", "'Ċ'"]),
        (lambda g: retyped(g, {"<|im_end|>": TokenType.NORMAL}), ["'<|im_end|>'", "not of type CONTROL"]),
        (lambda g: respelled(g, {300: "<|start|>"}), ["'<|start|>'", "user-defined"]),
        (lambda g: without(g, K.EOS_ID), ["eos token 11 (',')", "none of the texts that usually end it"]),
        (lambda g: changed(g, text(K.PRE, "gemma4"), boolean(K.ADD_BOS, value=False)), ["always adds BOS"]),
    ],
)
def test_what_llama_cpp_overrides_is_a_warning(
    tmp_path: Path, pairs: Callable[[Pairs], Pairs], words: list[str]
) -> None:
    warnings = loaded(pairs(tiny_pairs()), tmp_path / "odd.gguf").warnings
    assert any(all(word in warning for word in words) for warning in warnings), warnings


def test_a_good_file_gives_no_warning(tmp_path: Path) -> None:
    assert loaded(tiny_pairs(), tmp_path / "good.gguf").warnings == ()


@given(st.data())
def test_whatever_the_metadata_hold_nothing_but_a_format_error_comes_of_it(data: st.DataObject) -> None:
    good = changed(tiny_pairs(), texts(K.LIST, SMALL), i32s(K.TOKEN_TYPE, [1] * len(SMALL)), texts(K.MERGES, ["a b"]))
    keys = sorted({*good, *KEYS_READ})
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=5)):
        good = changed(good, data.draw(st.sampled_from(PAIRS))(key, data.draw))
    try:
        vocab = load_vocab(file_of(good))
    except FormatError:
        return
    assert len(vocab.texts) == len(vocab.attributes) == len(vocab.scores)
    assert all(0 <= token < len(vocab) for token in [*vocab.special.values(), *vocab.end_of_generation])


def test_the_first_of_a_repeated_merge_counts_and_a_first_half_is_never_empty(tmp_path: Path) -> None:
    merges = ["a b", "c d e", "a b", " x y", "z", "Ġ t", "nothing"]
    vocab = loaded(changed(tiny_pairs(), texts(K.MERGES, merges)), tmp_path / "merges.gguf")
    assert vocab.ranks == {
        ("a", "b"): 0,
        ("c", "d e"): 1,
        (" x", "y"): 3,
        ("", ""): 4,
        ("Ġ", "t"): 5,
    }


def test_special_tokens_are_those_that_are_no_plain_words_the_longest_in_bytes_first(tmp_path: Path) -> None:
    types = [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN, TokenType.UNUSED, TokenType.BYTE]
    base = changed(tiny_pairs(), texts(K.LIST, ["ab", "€€", "abcd", "long unused", "<0x0A>", "word"]))
    only = without(base, K.EOS_ID, K.EOT_ID, K.BOS_ID, K.PAD_ID)
    vocab = loaded(changed(only, i32s(K.TOKEN_TYPE, [*types, 1])), tmp_path / "special.gguf")
    assert [vocab.texts[token] for token in vocab.special_tokens] == ["€€", "abcd", "ab"]
