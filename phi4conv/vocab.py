"""A byte-level BPE vocabulary as values: what a GGUF says about its tokenizer. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from gguf import TokenType

from phi4conv.errors import ConversionError, Problem

# The Hub's parser of GGUF headers takes no longer array, and no Phi has a quarter of it.
LARGEST_VOCABULARY = 1_000_000

# A special token that Phi-4 has and no other family: by it a Phi-4 is known, whatever it is called.
PHI4_SEPARATOR = "<|im_sep|>"


class Token(NamedTuple):
    """One row of the vocabulary: its text as the file spells it, and what llama.cpp makes of it."""

    text: str
    type: TokenType


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens with a role, None where the model has none."""

    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    mask: int | None = None

    def present(self) -> dict[str, int]:
        """The roles that are filled, by name.

        >>> SpecialIds(bos=1, pad=7).present()
        {'bos': 1, 'pad': 7}
        """
        return {role: token for role, token in asdict(self).items() if token is not None}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of one model.

    texts and types are in id order and of one length: columns rather than 100,000 small objects. A type is
    a gguf.TokenType number, kept as a number so that a damaged file can be held too. merges are "a b" in
    rank order, a literal space inside a part written Ġ. pre is llama.cpp's name of the split regex.
    """

    texts: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    special: SpecialIds
    add_bos: bool = False
    add_eos: bool = False
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.types):
            raise ValueError(f"{len(self.texts)} token texts but {len(self.types)} token types")

    def __len__(self) -> int:
        return len(self.texts)

    def token(self, token_id: int) -> Token:
        """The token with this id; raises IndexError beyond the end, ValueError for a type that GGUF does not have."""
        if token_id < 0:
            raise IndexError(f"token id {token_id} is negative")
        return Token(self.texts[token_id], TokenType(self.types[token_id]))

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Text to id; of a text that stands twice, the last."""
        return {text: token_id for token_id, text in enumerate(self.texts)}

    @cached_property
    def tokens_digest(self) -> str:
        """sha256 of the token texts in id order, as digest() forms it."""
        return digest(self.texts)

    @cached_property
    def merges_digest(self) -> str:
        """sha256 of the merges in rank order, as digest() forms it."""
        return digest(self.merges)

    def padded(self, rows: int) -> Vocabulary:
        """The vocabulary filled up with [PADn] tokens to one per row of the embedding, rows in all.

        Raises ConversionError when there are more tokens than rows, or when a token is called [PADn] already.
        """
        if len(self) > rows:
            raise ConversionError(
                Problem(
                    "the tokenizer has more tokens than the embedding has rows",
                    expected=f"at most {rows:,} tokens, one for each row of the embedding",
                    found=f"{len(self):,} tokens; the first without a row is {self.texts[rows]!r}",
                    next_step="take tokenizer and weights from one model, or resize the embedding to the tokenizer "
                    "(resize_token_embeddings in transformers) and save both again",
                )
            )
        added = [pad_text(token_id) for token_id in range(len(self), rows)]
        for text in added:
            if text in self.ids:
                raise ConversionError(
                    Problem(
                        "no free name for an unused row of the embedding: llama.cpp refuses two tokens of one text",
                        found=f"token {self.ids[text]} is called {text!r}",
                        next_step="rename that token, or shrink the embedding to the size of the tokenizer",
                    )
                )
        types = (*self.types, *[TokenType.UNUSED] * len(added))
        return replace(self, texts=(*self.texts, *added), types=types)


def pad_text(token_id: int) -> str:
    """llama.cpp's text for an id that no token has (get_vocab_base in conversion/base.py).

    >>> pad_text(100352)
    '[PAD100352]'
    """
    return f"[PAD{token_id}]"


def digest(items: Iterable[str]) -> str:
    r"""sha256 over the items, each in UTF-8 and followed by one NUL; a name for a list of tokens or merges.

    >>> digest(["a", "b"]) == hashlib.sha256(b"a\0b\0").hexdigest()
    True
    """
    state = hashlib.sha256()
    for item in items:
        state.update(item.encode() + b"\0")
    return state.hexdigest()


def byte_alphabet() -> tuple[str, ...]:
    r"""The character that stands for each of the 256 bytes in a byte-level vocabulary.

    Printable bytes stand for themselves, the others for code points from U+0100 up in byte order
    (bytes_to_unicode in encoder.py of OpenAI's GPT-2).

    >>> byte_alphabet()[ord("A")], byte_alphabet()[ord(" ")], byte_alphabet()[ord("\n")]
    ('A', 'Ġ', 'Ċ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))
