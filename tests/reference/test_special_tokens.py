"""Special tokens are cut out of a text as llama.cpp does it. It is held against llama.cpp in test_bpe and test_spm."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import Keys, TokenType
from vocabulary_changes import respelled, retyped
from vocabulary_files import Pairs, changed, tiny_pairs, written

from phi4conv.gguf_file.layout import text
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.llama_vocab import LlamaVocab, load_vocab
from phi4conv.reference.special_tokens import partition

USER, CONTROL, UNKNOWN, LONGER = 300, 301, 302, 303


def special_pairs() -> Pairs:
    spelled = respelled(tiny_pairs(), {USER: "<user>", CONTROL: "<control>", UNKNOWN: "<?>", LONGER: "<?><user"})
    types = {USER: TokenType.USER_DEFINED, CONTROL: TokenType.CONTROL, UNKNOWN: TokenType.UNKNOWN}
    return retyped(spelled, {**types, LONGER: TokenType.CONTROL})


def vocab_of(pairs: Pairs, folder: Path) -> LlamaVocab:
    return load_vocab(read_gguf(written(pairs, folder / "special.gguf")))


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("", []),
        ("plain", ["plain"]),
        ("<user>", [USER]),
        ("a<user>b", ["a", USER, "b"]),
        (" <control> <?>\n", [" ", CONTROL, " ", UNKNOWN, "\n"]),
        ("<user><user>", [USER, USER]),
        ("<user<user>", ["<user", USER]),
        ("<?><user>", [LONGER, ">"]),
        ("é<control>é", ["é", CONTROL, "é"]),
    ],
)
def test_a_text_is_cut_at_every_special_token(tmp_path: Path, whole: str, parts: list[str | int]) -> None:
    assert partition(whole, vocab_of(special_pairs(), tmp_path), parse_special=True) == parts


def test_only_user_defined_tokens_are_found_in_a_text_that_is_not_trusted(tmp_path: Path) -> None:
    vocab = vocab_of(special_pairs(), tmp_path)
    found = partition("<?><control><user><?><user>", vocab, parse_special=False)
    assert found == ["<?><control>", USER, "<?>", USER]


def test_white_space_of_c_goes_behind_the_tokens_of_a_phi_3(tmp_path: Path) -> None:
    phi3 = respelled(special_pairs(), {400: "</s>", 401: "<unk>", 402: "<s>"})
    vocab = vocab_of(changed(phi3, text(Keys.General.NAME, "Phi-3")), tmp_path)
    found = partition("a <control> \t\v\f\r\n\u00a0b <user>  ", vocab, parse_special=True)
    assert found == ["a ", CONTROL, "\u00a0b ", USER]


def test_white_space_goes_ahead_of_a_mask_that_asks_for_it(tmp_path: Path) -> None:
    mask = retyped(respelled(special_pairs(), {400: "[MASK]"}), {400: TokenType.USER_DEFINED})
    vocab = vocab_of(changed(mask, text(Keys.General.NAME, "modern-bert")), tmp_path)
    assert partition(" \n [MASK] b \t[MASK]", vocab, parse_special=False) == [400, " b", 400]


def test_a_character_may_be_cut_apart(tmp_path: Path) -> None:
    pairs = retyped(respelled(tiny_pairs(), {USER: "\udca9"}), {USER: TokenType.USER_DEFINED})
    assert partition("né", vocab_of(pairs, tmp_path), parse_special=False) == ["n\udcc3", USER]


def test_a_lone_surrogate_in_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        partition("\udca9", vocab_of(tiny_pairs(), tmp_path), parse_special=True)
