from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import TINY, TINY_BROKEN
from gguf import Keys
from tokenizers import Tokenizer
from vocabulary_files import Pairs, changed, tiny_pairs, written

from phi4conv.carried import first_release_template
from phi4conv.errors import FormatError, Phi4ConvError
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, boolean, text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.file_prompt import chat_ids, plain_ids
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.llama_vocab import RefusedByLlamaCpp
from phi4conv.reference.tokenizer import file_tokenizer

K = Keys.Tokenizer
JOKE = "Tell me a joke."
BOS = "<|endoftext|>"

needs_xllamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not sys.platform.startswith(("linux", "darwin")),
    reason="needs xllamacpp (the extra llama-cpp) under Linux or macOS",
)


def tiny(tmp_path: Path, *changes: MetadataPair, without: str = "") -> GGUFFile:
    """The tiny Phi-4's metadata, changed."""
    pairs: Pairs = {key: pair for key, pair in changed(tiny_pairs(), *changes).items() if key != without}
    return read_gguf(written(pairs, tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"))


def source_ids(prompt: str) -> tuple[int, ...]:
    """What the tokenizers library makes of a text by the tiny Phi-4's own tokenizer.json."""
    return tuple(Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids)


def test_a_message_becomes_the_prompt_that_the_model_was_trained_on(
    tmp_path: Path, chats: list[tuple[str, str]]
) -> None:
    prompt = f"<|im_start|>user<|im_sep|>{JOKE}<|im_end|><|im_start|>assistant<|im_sep|>"
    assert prompt in dict(chats)
    assert chat_ids(tiny(tmp_path), JOKE) == source_ids(prompt)


def test_a_template_that_ignores_the_generation_prompt_gets_none() -> None:
    """The broken file's template stops behind the user's turn, and so does what its user gets."""
    file = read_gguf(TINY_BROKEN)
    prompt = file_tokenizer(file).decode(chat_ids(file, JOKE)).decode()
    assert prompt.endswith(f"{JOKE}<|im_end|>")


def test_the_files_own_template_is_used(tmp_path: Path) -> None:
    file = tiny(tmp_path, text(K.CHAT_TEMPLATE, first_release_template()))
    assert file_tokenizer(file).decode(chat_ids(file, JOKE)).decode().endswith("<|im_start|>assistant<|im_sep|>")
    other = tiny(tmp_path, text(K.CHAT_TEMPLATE, "{{ messages[0].content }}<|im_end|>"))
    assert chat_ids(other, JOKE) == source_ids(f"{JOKE}<|im_end|>")


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_bos_that_template_and_tokenizer_both_add_stands_there_once(tmp_path: Path, *, add_bos: bool) -> None:
    template = text(K.CHAT_TEMPLATE, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    file = tiny(tmp_path, template, boolean(K.ADD_BOS, add_bos))
    assert chat_ids(file, JOKE) == source_ids(f"{BOS}{JOKE}<|im_end|>")


def test_a_bos_that_only_the_tokenizer_adds_stands_ahead_of_the_prompt(tmp_path: Path) -> None:
    file = tiny(tmp_path, boolean(K.ADD_BOS, value=True))
    expected = source_ids(f"{BOS}<|im_start|>user<|im_sep|>{JOKE}<|im_end|><|im_start|>assistant<|im_sep|>")
    assert chat_ids(file, JOKE) == expected
    assert plain_ids(file, JOKE) == source_ids(f"{BOS}{JOKE}")


def test_special_tokens_in_a_plain_prompt_are_read_as_such(tmp_path: Path) -> None:
    prompt = f"<|im_start|>user<|im_sep|>{JOKE}<|im_end|>"
    assert plain_ids(tiny(tmp_path), prompt) == source_ids(prompt)


def test_a_tokenizer_that_the_caller_has_is_used(tmp_path: Path) -> None:
    good, broken = tiny(tmp_path), read_gguf(TINY_BROKEN)
    tokenizer = file_tokenizer(good)
    assert plain_ids(broken, JOKE, tokenizer) == plain_ids(good, JOKE) != plain_ids(broken, JOKE)
    assert chat_ids(good, JOKE, tokenizer) == chat_ids(good, JOKE)


PROMPTS = [JOKE, "  two  spaces\n", "Grüße, 世界! 12345", "a <|im_end|> b"]


@needs_xllamacpp
def test_plain_prompts_become_llama_cpps_tokens(tmp_path: Path) -> None:
    # The broken file has tokens for few characters, and llama.cpp ends on any other.
    files = ((tiny(tmp_path), PROMPTS), (tiny(tmp_path, boolean(K.ADD_BOS, value=True)), PROMPTS))
    broken = (read_gguf(TINY_BROKEN), [JOKE, "a <|im_end|> b"])
    with LlamaCpp() as llama:
        for file, prompts in (*files, broken):
            llama.load(file.path, vocab_only=True)
            expected = llama.tokenize(prompts, add_special=True)
            assert [list(plain_ids(file, prompt)) for prompt in prompts] == expected


@pytest.mark.parametrize("make", [chat_ids, plain_ids])
def test_an_empty_prompt_is_refused(tmp_path: Path, make: Callable[[GGUFFile, str], tuple[int, ...]]) -> None:
    with pytest.raises(Phi4ConvError, match="the prompt is empty"):
        make(tiny(tmp_path), "")


@pytest.mark.parametrize("make", [chat_ids, plain_ids])
def test_a_prompt_that_was_no_utf8_on_the_command_line_is_refused(
    tmp_path: Path, make: Callable[[GGUFFile, str], tuple[int, ...]]
) -> None:
    with pytest.raises(Phi4ConvError, match="no Unicode text") as error:
        make(tiny(tmp_path), "caf\udce9")
    assert "place 3" in error.value.problems[0].found


@pytest.mark.parametrize("changes", [(), (text(K.CHAT_TEMPLATE, ""),), (u32(K.CHAT_TEMPLATE, 1),)])
def test_a_file_without_a_template_is_refused(tmp_path: Path, changes: tuple[MetadataPair, ...]) -> None:
    file = tiny(tmp_path, *changes, without="" if changes else K.CHAT_TEMPLATE)
    with pytest.raises(FormatError, match="the file has no chat template") as error:
        chat_ids(file, JOKE)
    assert "--chat" in error.value.problems[0].next_step
    assert plain_ids(file, JOKE)


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ raise_exception('only poems') }}", "only poems"),
        ("{% for %}", "syntax error"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}", "longer than"),
        ("\udcff{{ messages[0].content }}", "no Unicode text"),
    ],
)
def test_a_template_that_makes_no_prompt_is_refused_with_its_reason(tmp_path: Path, template: str, found: str) -> None:
    with pytest.raises(FormatError, match="makes no prompt") as error:
        chat_ids(tiny(tmp_path, text(K.CHAT_TEMPLATE, template)), JOKE)
    assert found in error.value.problems[0].found


def test_a_template_that_makes_an_empty_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="becomes no tokens"):
        chat_ids(tiny(tmp_path, text(K.CHAT_TEMPLATE, "{# nothing #}")), JOKE)


def test_a_vocabulary_that_llama_cpp_refuses_is_refused_in_its_words(tmp_path: Path) -> None:
    file = tiny(tmp_path, without=K.MERGES)
    for make in (chat_ids, plain_ids):
        with pytest.raises(RefusedByLlamaCpp, match="without merges"):
            make(file, JOKE)
