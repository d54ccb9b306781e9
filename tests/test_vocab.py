from __future__ import annotations

import pickle

import pytest
from gguf import TokenType
from tokenizers.pre_tokenizers import ByteLevel

from phi4conv.errors import ConversionError
from phi4conv.vocab import SpecialIds, Token, Vocabulary, byte_alphabet, digest

NORMAL, CONTROL, UNUSED = TokenType.NORMAL, TokenType.CONTROL, TokenType.UNUSED


def small(*texts: str) -> Vocabulary:
    texts = texts or ("a", "b", "ab", "<|im_end|>")
    types = tuple(CONTROL if text.startswith("<|") else NORMAL for text in texts)
    return Vocabulary(texts, types, ("a b",), "dbrx", SpecialIds(bos=3, eos=3, eot=3))


def test_a_token_is_its_text_and_type() -> None:
    assert small().token(3) == Token("<|im_end|>", CONTROL)
    assert small().token(0) == Token("a", NORMAL)


@pytest.mark.parametrize("token_id", [-1, 4])
def test_there_is_no_token_beyond_the_ends(token_id: int) -> None:
    with pytest.raises(IndexError):
        small().token(token_id)


def test_ids_are_found_by_text() -> None:
    assert small().ids["ab"] == 2
    assert "c" not in small().ids


def test_texts_and_types_are_of_one_length() -> None:
    with pytest.raises(ValueError, match="2 token texts but 1 token types"):
        Vocabulary(("a", "b"), (NORMAL,), (), "dbrx", SpecialIds())


def test_equal_values_are_equal_vocabularies() -> None:
    assert small() == small()
    assert hash(small()) == hash(small())
    assert small() != small().padded(5)
    assert pickle.loads(pickle.dumps(small())) == small()  # noqa: S301  # our own bytes


def test_rows_without_a_token_become_unused_pads() -> None:
    padded = small().padded(6)
    assert padded.texts == ("a", "b", "ab", "<|im_end|>", "[PAD4]", "[PAD5]")
    assert padded.types == (NORMAL, NORMAL, NORMAL, CONTROL, UNUSED, UNUSED)
    assert padded.special == small().special
    assert padded.ids["[PAD5]"] == 5


def test_a_vocabulary_of_the_right_size_stays_as_it_is() -> None:
    assert small().padded(4) == small()


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_counts() -> None:
    with pytest.raises(ConversionError) as caught:
        small().padded(3)
    message = str(caught.value)
    assert "at most 3 tokens" in message
    assert "4 tokens; the first without a row is '<|im_end|>'" in message
    assert "resize_token_embeddings" in message


def test_a_pad_whose_name_is_taken_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"token 0 is called '\[PAD3\]'"):
        small("[PAD3]", "a", "b").padded(4)


def test_a_digest_tells_where_items_end() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    # printf 'a\0\303\251\0' | sha256sum
    assert digest(["a", "é"]) == "0e9c47b6877125305a26b20e97e5ff44af427f07be26c9f947101e4cfcd43983"


def test_the_byte_alphabet_is_the_one_of_tokenizers() -> None:
    alphabet = byte_alphabet()
    assert set(alphabet) == set(ByteLevel.alphabet())
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    for character in [*map(chr, range(0x800)), "中", "\U0010ffff"]:
        [(piece, _)] = byte_level.pre_tokenize_str(character)
        assert piece == "".join(alphabet[byte] for byte in character.encode())
