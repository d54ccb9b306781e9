from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import islice

import pytest

from phi4conv.check.fuzz import RECIPES, Draws, fuzz_texts

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im_sep|>")

# sha256 of the first 500 texts of seed 7, each ended by a NUL: a seed in a report must mean the same texts anywhere.
DIGEST = "3ab0cfd995a22ddf963992dfb73755f69229b31131da3583eafede987326a2ba"


def test_a_seed_gives_the_same_texts_under_every_python() -> None:
    state = hashlib.sha256()
    for text in fuzz_texts(500, 7, SPECIALS):
        state.update(text.encode() + b"\0")
    assert state.hexdigest() == DIGEST


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    assert list(islice(fuzz_texts(1000, 3, SPECIALS), 50)) == list(fuzz_texts(50, 3, SPECIALS))
    assert list(fuzz_texts(50, 3, SPECIALS)) != list(fuzz_texts(50, 4, SPECIALS))


def test_texts_are_many_and_different_and_none_is_empty() -> None:
    texts = list(fuzz_texts(5000, 1, SPECIALS))
    assert len(texts) == 5000
    assert all(texts)
    assert len(set(texts)) > 4500
    assert len("".join(texts).encode()) > 100_000, "a text that cannot be encoded, or hardly any text"


def test_special_texts_come_whole_and_almost_whole() -> None:
    texts = list(fuzz_texts(2000, 1, SPECIALS))
    whole = [text for text in texts if any(special in text for special in SPECIALS)]
    almost = [text for text in texts if "im_" in text and not any(special in text for special in SPECIALS)]
    assert len(whole) > 200
    assert len(almost) > 50


def test_without_special_texts_there_are_none() -> None:
    assert not any("<|im_" in text for text in fuzz_texts(2000, 1))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
@pytest.mark.parametrize("specials", [SPECIALS, ("x",), ()])
def test_every_recipe_gives_texts_that_a_file_can_hold(
    recipe: Callable[[Draws], str], specials: tuple[str, ...]
) -> None:
    draws = Draws(5, specials)
    texts = [recipe(draws) for _ in range(300)]
    assert len(set(texts)) > 5
    assert "".join(texts).encode().decode() == "".join(texts)


def test_special_texts_that_no_text_can_hold_stay_out() -> None:
    assert list(fuzz_texts(200, 0, ("", "<s>", "\udcff"))) == list(fuzz_texts(200, 0, ("<s>",)))
