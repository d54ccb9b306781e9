"""The tokenizer that a GGUF file carries, as llama.cpp runs it: the one entry point to bpe.py and spm.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.reference.bpe import BPE
from phi4conv.reference.llama_vocab import LlamaVocab, load_vocab
from phi4conv.reference.spm import SPM


class FileTokenizer(Protocol):
    """What both kinds of tokenizer do."""

    vocab: LlamaVocab

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of a text, as llama_tokenize gives them.

        Raises:
            ValueError: The text holds a lone surrogate.
            FormatError: llama.cpp would end on this text.
        """

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of every token by itself, special tokens spelled out; ValueError for an unknown id."""

    def decode(self, ids: Sequence[int], *, remove_special: bool = False, unparse_special: bool = True) -> bytes:
        """The bytes of a sequence of tokens, as llama_detokenize gives them; ValueError for an unknown id."""


def file_tokenizer(file: GGUFFile) -> FileTokenizer:
    """The tokenizer of a file, from its metadata alone.

    Raises:
        RefusedByLlamaCpp: llama.cpp would refuse the file for its vocabulary.
        FormatError: A kind of vocabulary, or a split regex, that llama.cpp knows, but that is not known here.
    """
    return tokenizer_of(load_vocab(file))


def tokenizer_of(vocab: LlamaVocab) -> FileTokenizer:
    """The tokenizer of a loaded vocabulary; raises FormatError for a split regex that is not known here."""
    return SPM(vocab) if vocab.model == "llama" else BPE(vocab)
