from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from checkpoints import TINY
from gguf import TokenType
from hypothesis import given
from hypothesis import strategies as st

from phi4conv.carried import phi4_vocabulary
from phi4conv.merges import LONGEST_TOKEN, derive_merges
from phi4conv.vocab import byte_alphabet

ALPHABET = byte_alphabet()
NORMAL, CONTROL, UNUSED = TokenType.NORMAL, TokenType.CONTROL, TokenType.UNUSED


def normal(*made: str) -> tuple[list[str], list[int]]:
    """The 256 bytes and further tokens, all NORMAL."""
    return [*ALPHABET, *made], [NORMAL] * (256 + len(made))


def by_the_book(made: Sequence[str]) -> tuple[str, ...] | None:
    """What derive_merges is to find, by running BPE on every token from its single bytes on."""
    ranks = {text: rank for rank, text in enumerate(ALPHABET)}
    merges = []
    for rank, token in enumerate(made, 256):
        parts = list(token)
        while mergeable := [
            (ranks[left + right], place) for place, (left, right) in enumerate(pairwise(parts)) if left + right in ranks
        ]:
            _, place = min(mergeable)
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        if len(parts) != 2:
            return None
        merges.append(" ".join(parts))
        ranks[token] = rank
    return tuple(merges)


def trained(text: str, count: int) -> tuple[list[str], list[str]]:
    """Up to count tokens that BPE training makes of a text, and their merges."""
    parts, made, merges = list(text), [], []
    for _ in range(count):
        pairs = Counter(pairwise(parts))
        if not pairs:
            break
        ((left, right), _), *_ = pairs.most_common(1)
        made.append(left + right)
        merges.append(f"{left} {right}")
        place = 0
        while place < len(parts) - 1:
            if (parts[place], parts[place + 1]) == (left, right):
                parts[place : place + 2] = [left + right]
            place += 1
    return made, merges


def test_the_merges_of_phi_4_follow_from_its_tokens() -> None:
    phi4 = phi4_vocabulary()
    assert derive_merges(phi4.texts, phi4.types) == phi4.merges


def test_the_merges_of_the_tiny_model_follow_from_its_tokens() -> None:
    data = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    texts = list(data["model"]["vocab"])
    types = [NORMAL] * 928 + [CONTROL] * 96
    assert derive_merges(texts, types) == tuple(data["model"]["merges"])


def test_rows_without_a_token_and_special_ones_are_not_made_by_merges() -> None:
    texts, types = normal("he", "ll")
    texts += ["<|im_end|>", "<tool>", "[PAD260]"]
    types += [CONTROL, TokenType.USER_DEFINED, UNUSED]
    assert derive_merges(texts, types) == ("h e", "l l")


def test_bytes_may_stand_in_any_order() -> None:
    assert derive_merges([*reversed(ALPHABET), "ab"], [NORMAL] * 257) == ("a b",)


def test_a_vocabulary_of_bytes_has_no_merges() -> None:
    assert derive_merges(*normal()) == ()


def test_of_several_ways_to_cut_a_token_the_one_that_bpe_takes_counts() -> None:
    assert derive_merges(*normal("ab", "bc", "abc")) == ("a b", "b c", "ab c")
    assert derive_merges(*normal("bc", "ab", "abc")) == ("b c", "a b", "a bc")
    assert derive_merges(*normal("aa", "aaa")) == ("a a", "aa a")


@pytest.mark.parametrize(
    "made",
    [
        ("abc",),
        ("ab", "ab"),
        ("a",),
        ("",),
        ("ab", "a b"),
        ("ab", "cd", "abcde"),
        # "bc" is merged before "ab" and "cd" can be, which leaves three parts.
        ("bc", "ab", "cd", "abcd"),
        # The left "aa" is merged first, which leaves "aa a b".
        ("aa", "aab", "aaaab", "aaaaab"),
        ("hel", "he"),
    ],
)
def test_tokens_that_no_merges_make_in_this_order_give_none(made: tuple[str, ...]) -> None:
    assert derive_merges(*normal(*made)) is None
    assert by_the_book(made) is None


def test_tables_that_do_not_fit_give_none() -> None:
    texts, types = normal("ab")
    assert derive_merges(texts, types[:-1]) is None
    assert derive_merges(texts[:255], types[:255]) is None
    assert derive_merges([*ALPHABET[:255], "ab"], [NORMAL] * 256) is None
    assert derive_merges([], []) is None


def test_a_normal_token_behind_special_ones_gives_none() -> None:
    texts, types = normal("ab")
    assert derive_merges([*texts, "<s>", "abc"], [*types, CONTROL, NORMAL]) is None


def test_swapped_tokens_give_none_or_other_merges() -> None:
    right = ("ab", "cd", "abcd", "ef")
    assert derive_merges(*normal("cd", "ab", *right[2:])) == ("c d", "a b", "ab cd", "e f")
    assert derive_merges(*normal("ab", "abcd", "cd", "ef")) is None


def test_a_token_of_absurd_length_gives_none() -> None:
    made = ["aa"]
    while len(made[-1]) < LONGEST_TOKEN:
        made.append(made[-1] * 2)
    assert derive_merges(*normal(*made)) is not None
    assert derive_merges(*normal(*made, made[-1] * 2)) is None


@given(st.lists(st.text(st.sampled_from("ab"), min_size=2, max_size=7), unique=True, max_size=20))
def test_any_tokens_give_what_running_bpe_on_each_gives(made: list[str]) -> None:
    made.sort(key=len)
    assert derive_merges(*normal(*made)) == by_the_book(made)


@given(st.data())
def test_tokens_joined_of_earlier_ones_give_what_running_bpe_on_each_gives(data: st.DataObject) -> None:
    made: list[str] = []
    for _ in range(data.draw(st.integers(1, 12))):
        earlier = st.sampled_from(["a", "b", "c", *made])
        token = data.draw(earlier) + data.draw(earlier)
        extended = [*made, token]
        if token not in made and by_the_book(extended) is not None:
            made = extended
        else:
            assert token in made or derive_merges(*normal(*extended)) is None
    assert derive_merges(*normal(*made)) == by_the_book(made)


@given(st.text(st.sampled_from("abc"), min_size=2, max_size=200), st.integers(1, 30))
def test_the_merges_of_a_trained_vocabulary_are_found(text: str, count: int) -> None:
    made, merges = trained(text, count)
    assert derive_merges(*normal(*made)) == tuple(merges)
