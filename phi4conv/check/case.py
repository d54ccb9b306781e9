"""A file beside what is expected of it: what the checks of a tokenizer look at, each thing read once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from gguf import TokenType
from gguf.constants import Keys

from phi4conv.check.expectation import Expectation
from phi4conv.errors import FormatError
from phi4conv.gguf_file.edit import Change, with_metadata
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.phi3.metadata import SPECIAL_ID_KEYS, tokenizer_pairs
from phi4conv.reference.llama_vocab import LlamaVocab, load_vocab
from phi4conv.reference.llama_vocab_rules import END_ROLES, ID_KEYS
from phi4conv.vocab import Vocabulary

# What only a SentencePiece vocabulary has, and a gpt2 one should not carry along.
SENTENCEPIECE_KEYS = (
    Keys.Tokenizer.SCORES,
    Keys.Tokenizer.ADD_PREFIX,
    Keys.Tokenizer.REMOVE_EXTRA_WS,
    Keys.Tokenizer.PRECOMPILED_CHARSMAP,
)
ARRAYS = (Keys.Tokenizer.LIST, Keys.Tokenizer.TOKEN_TYPE, Keys.Tokenizer.MERGES)
TABLE_KEYS = (
    *ARRAYS,
    Keys.Tokenizer.MODEL,
    Keys.Tokenizer.PRE,
    Keys.Tokenizer.ADD_BOS,
    Keys.Tokenizer.ADD_EOS,
)


@dataclass(frozen=True)
class Case:
    """A file and the expectation that it is held against."""

    file: GGUFFile
    expected: Expectation

    @property
    def right(self) -> Vocabulary:
        """The vocabulary that the file should have."""
        return self.expected.vocabulary

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The file's tokens."""
        return tuple(self.file.strings(Keys.Tokenizer.LIST))

    @cached_property
    def types(self) -> tuple[int, ...]:
        """The file's token types."""
        return tuple(self.file.integers(Keys.Tokenizer.TOKEN_TYPE))

    @cached_property
    def merges(self) -> tuple[str, ...]:
        """The file's merges."""
        return tuple(self.file.strings(Keys.Tokenizer.MERGES))

    @cached_property
    def loaded(self) -> LlamaVocab | None:
        """The vocabulary as llama.cpp loads it; None when it refuses."""
        try:
            return load_vocab(self.file)
        except FormatError:
            return None

    @cached_property
    def with_right_table(self) -> Case:
        """The case of the file with the right table, so that what else it says can be judged by itself."""
        return self if self.has_right_table and self.loaded is not None else self.after(self.table_changes)

    @cached_property
    def has_right_table(self) -> bool:
        """Whether tokens, types and merges are what they should be."""
        right = self.right
        return self.texts == right.texts and self.types == right.types and self.merges == right.merges

    @cached_property
    def mended(self) -> Case:
        """The case of the file with the whole vocabulary that it should have."""
        pairs = (Change(pair.key, pair) for pair in tokenizer_pairs(self.right))
        return self.after([*pairs, *(Change(key, None) for key in self.ends_at_words)])

    @cached_property
    def ends_at_words(self) -> tuple[str, ...]:
        """The keys beyond the vocabulary's own, such as eom's, by which generation ends at an ordinary token."""
        normal = {token_id for token_id, kind in enumerate(self.right.types) if kind == TokenType.NORMAL}
        keys = [key for role, key in ID_KEYS if role in END_ROLES and key not in SPECIAL_ID_KEYS.values()]
        return tuple(key for key in keys if self.file.number(key) in normal)

    @cached_property
    def table_changes(self) -> tuple[Change, ...]:
        """The changes that replace the table: everything of the vocabulary but special ids and templates."""
        pairs = [Change(pair.key, pair) for pair in tokenizer_pairs(self.right) if pair.key in TABLE_KEYS]
        return (*pairs, *(Change(key, None) for key in SENTENCEPIECE_KEYS if key in self.file.metadata))

    def after(self, changes: Iterable[Change]) -> Case:
        """The case of the file with some metadata changed."""
        return Case(with_metadata(self.file, changes), self.expected)
