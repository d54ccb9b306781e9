"""Phi-4's vocabulary and chat templates, which phi4conv carries: for files whose model folder nobody has.

Nothing is returned that has not been held against its sha256, so what comes from here is Phi-4's or an error.

data/phi4-vocabulary.zlib holds the two parts of each of the 100,000 merged tokens, by id: left and right of the first,
left and right of the second, and so on, 200,000 numbers of 17 bits. First the highest bytes of all of them, then the
middle ones, then the lowest, compressed by zlib. Texts and merges both follow. fixtures/make/phi4_vocabulary.py
makes the file.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import lru_cache
from importlib.resources import files

from gguf import TokenType

from phi4conv.errors import FormatError, Problem
from phi4conv.vocab import SpecialIds, Vocabulary, byte_alphabet

PHI4_ROWS, PHI4_WIDTH = 100_352, 5_120

# sha256 of token texts and of merges, as vocab.digest forms it.
TOKENS_DIGEST = "62916ca5b5628762db2c869b1e1a5e32c7e304692ae37b2365fa862948d0fe54"
MERGES_DIGEST = "463a8a98983bfe6c750d19de658d7bb1b2313831d81d18e450de182d97d677b9"

VOCABULARY_FILE = "phi4-vocabulary.zlib"
TEMPLATE_FILE = "phi-4.jinja"
FIRST_TEMPLATE_FILE = "phi-4-first-release.jinja"

# sha256 of the files.
TEMPLATE_DIGESTS = {
    TEMPLATE_FILE: "fe4120415a3858b873955c92ce3a103a95bc97c2cb00b72e62659aaf0f891ee5",
    FIRST_TEMPLATE_FILE: "a41fb8727c4f1e722e53cb1ea935038a1177b8bdf09387f3b048f9da5255ef3e",
}

# The added tokens take the ids from 100256 on. These have names, by their place among the 96; the others are
# <|dummy_0|>, <|dummy_1|> and so on.
ADDED_COUNT = 96
NAMED_TOKENS = {
    1: "<|endoftext|>",
    2: "<|fim_prefix|>",
    3: "<|fim_middle|>",
    4: "<|fim_suffix|>",
    8: "<|im_start|>",
    9: "<|im_end|>",
    10: "<|im_sep|>",
    20: "<|endofprompt|>",
}


@lru_cache(maxsize=1)
def phi4_vocabulary() -> Vocabulary:
    """The vocabulary of today's Phi-4, as read_vocabulary gives it for the published folder.

    Raises:
        FormatError: The installation is damaged.
    """
    texts, merges = tokens_and_merges()
    normal = len(texts)
    texts += added_texts()
    ids = {text: token_id for token_id, text in enumerate(texts[normal:], normal)}
    vocabulary = Vocabulary(
        texts=tuple(texts),
        types=(TokenType.NORMAL,) * normal + (TokenType.CONTROL,) * ADDED_COUNT,
        merges=tuple(merges),
        pre="dbrx",
        special=SpecialIds(
            bos=ids["<|endoftext|>"], eos=ids["<|im_end|>"], eot=ids["<|im_end|>"], pad=ids["<|dummy_85|>"]
        ),
        chat_template=template(TEMPLATE_FILE),
    )
    for what, expected, found in (
        ("tokens", TOKENS_DIGEST, vocabulary.tokens_digest),
        ("merges", MERGES_DIGEST, vocabulary.merges_digest),
    ):
        if found != expected:
            raise damaged(VOCABULARY_FILE, f"{what} with sha256 {expected}", found)
    return vocabulary


def first_release_template() -> str:
    """The chat template of Phi-4's first release, which opens an assistant turn after every user turn.

    Raises:
        FormatError: The installation is damaged.
    """
    return template(FIRST_TEMPLATE_FILE)


def old_templates() -> dict[str, str]:
    """Chat templates of published Phi-4 files that are known to be wrong, by name.

    Raises:
        FormatError: The installation is damaged.
    """
    today = template(TEMPLATE_FILE)
    return {
        "first-release": first_release_template(),
        "no-generation-prompt": today.partition("{% if add_generation_prompt %}")[0],
    }


def tokens_and_merges() -> tuple[list[str], list[str]]:
    """The texts of the tokens that are bytes or made by merges, in id order, and the merges as "a b"."""
    try:
        planes = zlib.decompress(data_bytes(VOCABULARY_FILE))
        count = len(planes) // 3
        high, middle, low = (planes[start : start + count] for start in (0, count, 2 * count))
        parts = [top << 16 | mid << 8 | end for top, mid, end in zip(high, middle, low, strict=True)]
        # cl100k_base numbers the bytes by the code points of their characters.
        texts = sorted(byte_alphabet())
        merges = []
        for left, right in zip(parts[::2], parts[1::2], strict=True):
            merges.append(f"{texts[left]} {texts[right]}")
            texts.append(texts[left] + texts[right])
    except (zlib.error, IndexError, ValueError) as error:
        raise damaged(VOCABULARY_FILE, "the parts of 100,000 tokens, compressed", str(error)) from error
    return texts, merges


def added_texts() -> list[str]:
    """The texts of the added tokens in id order."""
    texts, dummies = [], 0
    for place in range(ADDED_COUNT):
        named = NAMED_TOKENS.get(place)
        texts.append(named or f"<|dummy_{dummies}|>")
        dummies += named is None
    return texts


@lru_cache(maxsize=len(TEMPLATE_DIGESTS))
def template(name: str) -> str:
    """The chat template in a file of phi4conv/data."""
    content = data_bytes(name)
    found = hashlib.sha256(content).hexdigest()
    if found != TEMPLATE_DIGESTS[name]:
        raise damaged(name, f"sha256 {TEMPLATE_DIGESTS[name]}", found)
    return content.decode()


def data_bytes(name: str) -> bytes:
    """The content of a file of phi4conv/data; it may be in a zip archive."""
    try:
        return (files("phi4conv") / "data" / name).read_bytes()
    except OSError as error:
        raise damaged(name, "a file that can be read", str(error)) from error


def damaged(name: str, expected: str, found: str) -> FormatError:
    """The error for a data file that is not the one phi4conv was published with."""
    return FormatError(
        Problem(
            "phi4conv's own copy of Phi-4's vocabulary is damaged: no fault of your files",
            where=str(files("phi4conv") / "data" / name),
            expected=expected,
            found=found,
            next_step="install phi4conv again (pip install --force-reinstall phi4conv); in a clone, "
            "git checkout phi4conv/data",
        )
    )
