"""The tokenizer that a model was trained with, as the tokenizers library runs it: the side that a GGUF is held against.

Strings of any content are encoded, as long as they are Unicode text. What the library adds, drops or cuts on its own
account (padding, truncation, special tokens left out of decoded text) is switched off.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gguf import TokenType

from phi4conv.hf.chat_template import is_there
from phi4conv.hf.config import special_id
from phi4conv.hf.json_file import read_json_object
from phi4conv.hf.special_tokens import library_errors
from phi4conv.hf.tokenizer import load_tokenizer, read_vocabulary
from phi4conv.hf.tokenizer_json import tokenizer_json
from phi4conv.vocab import Vocabulary, byte_alphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Roles whose ids config.json may give where the tokenizer's own files name no token.
CONFIG_ROLES = ("bos", "eos", "pad")

# The types of token that llama.cpp does not find in a text unless it is to parse special ones.
CONTROL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)

# The library's answer to a text takes some kilobytes until its ids are taken out.
BATCH_TEXTS = 8192


class SourceTokenizer:
    """A tokenizer.json at work.

    Attributes:
        vocabulary: The same tokenizer as values, one token for each of its ids: not padded to the embedding.
        origin: Where it came from, for messages.
    """

    def __init__(self, vocabulary: Vocabulary, content: bytes, origin: str) -> None:
        """Load content, the bytes of the tokenizer.json that vocabulary was read from; raises CheckpointError."""
        self.vocabulary = vocabulary
        self.origin = origin
        self._content = content
        self._tokenizer = load_tokenizer(content, origin)

    def encode(self, texts: Iterable[str], *, parse_special: bool, add_special: bool = False) -> list[list[int]]:
        """The ids of each text.

        parse_special finds control tokens in the text; without it they are spelled out like any other text, and only
        tokens of type USER_DEFINED are found. add_special adds what the tokenizer puts around a text by itself.
        Raises UnicodeEncodeError on half of a surrogate pair, and CheckpointError when the library fails.
        """
        tokenizer = self._tokenizer if parse_special else self._plain_tokenizer
        every = list(texts)
        ids: list[list[int]] = []
        for start in range(0, len(every), BATCH_TEXTS):
            batch = every[start : start + BATCH_TEXTS]
            "".join(batch).encode()  # surrogates: the library refuses them in some releases, in others replaces them
            with library_errors("the tokenizers library cannot tokenize a text", self.origin):
                # The fast one keeps no offsets.
                encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=add_special)
            ids += (encoding.ids for encoding in encodings)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence of tokens, special ones spelled out; bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token by itself; raises IndexError for an id beyond the vocabulary.

        The rule of ByteLevel::decode_chain in tokenizers: a token stands for bytes when each of its characters does,
        and is text otherwise.
        """
        return [self._bytes_of_tokens[token] for token in ids]

    def pretokenize(self, text: str) -> list[str]:
        """The parts of a text that the pre-tokenizer cuts it into; no token crosses a border between two.

        Special tokens are not looked for. Joined, the parts are the text.
        """
        pre_tokenizer = self._tokenizer.pre_tokenizer
        return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]

    @cached_property
    def strips(self) -> Mapping[str, tuple[bool, bool]]:
        """For the text of each added token whether it takes in the white space to its left and to its right."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: (token.lstrip, token.rstrip) for _, token in sorted(added.items())}

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer:
        """The tokenizer that finds no control token in a text."""
        data = json.loads(self._content)
        for entry in data.get("added_tokens") or []:
            # Some tokens are control tokens for their looks alone: see looks_special in hf/tokenizer.py.
            entry["special"] = self.vocabulary.types[entry["id"]] in CONTROL_TYPES
        tokenizer = load_tokenizer(json.dumps(data).encode(), self.origin)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _bytes_of_tokens(self) -> tuple[bytes, ...]:
        byte_of = {character: value for value, character in enumerate(byte_alphabet())}

        def spelled(text: str) -> bytes:
            try:
                return bytes(byte_of[character] for character in text)
            except KeyError:
                return text.encode()

        return tuple(map(spelled, self.vocabulary.texts))


@dataclass(frozen=True)
class SourceReading:
    """The tokenizer of a model folder, and what the user should know about the files that it came from."""

    source: SourceTokenizer
    warnings: tuple[str, ...]


def read_source(folder: Path) -> SourceReading:
    """Read the tokenizer of a model folder, or of one that holds the tokenizer's files alone.

    Of config.json only the special ids are read, so that the tokenizer of a model that phi4conv does not convert can
    be used too.

    Raises:
        CheckpointError: As read_vocabulary does; or config.json is no JSON.
    """
    path = folder / "config.json"
    config = read_json_object(path) if is_there(path) else {}
    reading = read_vocabulary(folder, {role: special_id(config.get(f"{role}_token_id")) for role in CONFIG_ROLES})
    return SourceReading(SourceTokenizer(reading.vocabulary, reading.content, str(reading.path)), reading.warnings)


def source_of(vocabulary: Vocabulary, origin: str) -> SourceTokenizer:
    """The tokenizer that a vocabulary describes; origin says where that came from.

    Special tokens strip the white space around them, as Phi-4's do: that is nothing that a vocabulary says. Raises
    ConversionError for a vocabulary that no tokenizer.json can hold.
    """
    return SourceTokenizer(vocabulary, tokenizer_json(vocabulary), origin)
