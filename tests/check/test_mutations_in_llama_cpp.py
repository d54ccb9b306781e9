"""Real llama.cpp takes every file with one thing wrong as reference.tokenizer says: same tokens, or none at all."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutations import MUTATIONS
from one_change import ABORTS, LOADS, REFUSED, UNKNOWN_HERE, Mutation, mutated
from vocabulary_files import tiny_pairs, written

from phi4conv.check.texts import TEXTS, special_token_texts
from phi4conv.errors import EngineError, FormatError
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.llama_vocab import RefusedByLlamaCpp
from phi4conv.reference.tokenizer import FileTokenizer, file_tokenizer

needs_xllamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not sys.platform.startswith(("linux", "darwin")),
    reason="needs xllamacpp (the extra llama-cpp) under Linux or macOS",
)

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
# Every fifteenth of the built-in texts, and one in seven of those with special tokens.
SAMPLES = [text.text for text in TEXTS[::15]] + [text for _, text in list(special_token_texts(SPECIALS))[::7]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    return read_gguf(written(tiny_pairs(), tmp_path_factory.mktemp("llama.cpp") / "good.gguf"))


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1, timeout=120) as llama:
        yield llama


def of_kind(kind: str) -> pytest.MarkDecorator:
    chosen = {name: mutation for name, mutation in MUTATIONS.items() if mutation.llama_cpp == kind}
    return pytest.mark.parametrize("mutation", chosen.values(), ids=chosen)


def encoded(tokenizer: FileTokenizer, text: str, *, parse_special: bool) -> list[int] | None:
    """The ids of a text; None where llama.cpp would end."""
    try:
        return tokenizer.encode(text, parse_special=parse_special)
    except RefusedByLlamaCpp:
        return None


@needs_xllamacpp
@of_kind(LOADS)
def test_a_file_that_loads_gives_the_tokens_that_are_foretold(
    tmp_path: Path, good: GGUFFile, llama: LlamaCpp, mutation: Mutation
) -> None:
    wrong = mutated(good, mutation)
    tokenizer = file_tokenizer(wrong)
    llama.load(written(wrong.metadata, tmp_path / "wrong.gguf"), vocab_only=True)
    for parse_special in (True, False):
        foretold = {text: encoded(tokenizer, text, parse_special=parse_special) for text in SAMPLES}
        survived = [text for text, ids in foretold.items() if ids is not None]
        assert survived
        answers = llama.tokenize(survived, parse_special=parse_special)
        assert dict(zip(survived, answers, strict=True)) == {text: foretold[text] for text in survived}
    assert llama.end_of_generation() == tokenizer.vocab.end_of_generation


@needs_xllamacpp
@of_kind(REFUSED)
def test_a_file_that_llama_cpp_refuses(tmp_path: Path, good: GGUFFile, llama: LlamaCpp, mutation: Mutation) -> None:
    wrong = mutated(good, mutation)
    with pytest.raises(RefusedByLlamaCpp) as foretold:
        file_tokenizer(wrong)
    assert not foretold.value.aborts
    with pytest.raises(FormatError, match="refuses the file"):
        llama.load(written(wrong.metadata, tmp_path / "wrong.gguf"), vocab_only=True)


@needs_xllamacpp
@of_kind(ABORTS)
def test_a_file_that_ends_llama_cpp(tmp_path: Path, good: GGUFFile, llama: LlamaCpp, mutation: Mutation) -> None:
    wrong = mutated(good, mutation)
    with pytest.raises(RefusedByLlamaCpp) as foretold:
        file_tokenizer(wrong)
    assert foretold.value.aborts
    with pytest.raises(EngineError):
        llama.load(written(wrong.metadata, tmp_path / "wrong.gguf"), vocab_only=True)


@needs_xllamacpp
@of_kind(UNKNOWN_HERE)
def test_what_is_not_known_here_is_no_refusal_of_llama_cpps(
    tmp_path: Path, good: GGUFFile, llama: LlamaCpp, mutation: Mutation
) -> None:
    wrong = mutated(good, mutation)
    with pytest.raises(FormatError, match="not known here") as said:
        file_tokenizer(wrong)
    assert not isinstance(said.value, RefusedByLlamaCpp)
    llama.load(written(wrong.metadata, tmp_path / "wrong.gguf"), vocab_only=True)


@needs_xllamacpp
def test_by_a_sentencepiece_name_a_line_end_brings_llama_cpp_down(
    tmp_path: Path, good: GGUFFile, llama: LlamaCpp
) -> None:
    wrong = mutated(good, MUTATIONS["model llama"])
    assert encoded(file_tokenizer(wrong), "a\n", parse_special=True) is None
    llama.load(written(wrong.metadata, tmp_path / "wrong.gguf"), vocab_only=True)
    with pytest.raises(EngineError):
        llama.tokenize(["a\n"])
