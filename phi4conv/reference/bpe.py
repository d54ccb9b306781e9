"""Byte-level BPE as llama.cpp runs it on the vocabulary of a GGUF file (llama-vocab.cpp, model gpt2).

Text becomes ids in four steps:

1. partition_bytes(): special tokens are cut out, the longest text first, whatever stands around them.
2. The split regex that tokenizer.ggml.pre names cuts the rest into words (split.py).
3. spell(): each word is spelled in GPT-2's byte alphabet, one character for each byte of its UTF-8.
4. merge(): as long as two neighbours are a pair of the merge list, the pair of the lowest rank becomes one; what is
   left are tokens.

    >>> ranks = {("l", "o"): 0, ("lo", "w"): 1, ("e", "r"): 2, ("Ġ", "low"): 3}
    >>> merge(spell(" lower"), ranks)
    ['Ġlow', 'er']

A word whose parts are no tokens falls apart, or vanishes, in llama.cpp's own way and without a word of warning. Ids
become text again by pieces(), token after token, or by decode(), which may also drop spaces before punctuation.

Left out: vocabularies that are not spelled in the byte alphabet (gemma4 and its like, whose regexes splitter()
refuses), and texts that are not UTF-8, in which llama.cpp reads U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from phi4conv.reference.detokenize import Detokenizer
from phi4conv.reference.llama_vocab import LlamaVocab
from phi4conv.reference.merging import merged
from phi4conv.reference.special_tokens import added_token, partition_bytes
from phi4conv.reference.split import Splitter, splitter
from phi4conv.vocab import byte_alphabet

# Ordinary words come back, and long ones hardly do. 200,000 words take some 50 MB.
LONGEST_CACHED_WORD = 64
CACHED_WORDS = 200_000

ALPHABET = "".join(byte_alphabet())
BYTES: Mapping[str, bytes] = {character: bytes([byte]) for byte, character in enumerate(ALPHABET)}

ESCAPED_BYTES = re.compile("[\udc80-\udcff]")


class BPE(Detokenizer):
    """The tokenizer of a byte-level vocabulary.

    Attributes:
        vocab: The vocabulary.
    """

    def __init__(self, vocab: LlamaVocab, *, split: Splitter | None = None) -> None:
        """Text is cut by the splitter that vocab.pre names, unless split is another one.

        Raises FormatError when vocab.pre names a splitter that is not known here.
        """
        super().__init__(vocab, unspelled)
        self._split = splitter(vocab.pre) if split is None else split
        self._words: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of a text, as llama_tokenize gives them.

        add_special puts BOS and EOS around the text if the vocabulary says so, even where the text has them already.
        parse_special reads the texts of control tokens as those tokens; those of user-defined tokens always are.

        Raises:
            ValueError: The text holds a lone surrogate.
            RefusedByLlamaCpp: BOS or EOS is asked for, and the vocabulary has none. llama.cpp ends on such a file.
        """
        vocab = self.vocab
        ids = [added_token(vocab, "bos")] if add_special and vocab.add_bos else []
        for fragment in partition_bytes(text.encode(), vocab, parse_special=parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                self._append_words(fragment_text(fragment), ids)
        if add_special and vocab.add_eos:
            ids.append(added_token(vocab, "eos"))
        return ids

    def _append_words(self, text: str, ids: list[int]) -> None:
        words = self._words
        for word in self._split(text):
            found = words.get(word)
            if found is None:
                found = tuple(self._word_ids(word))
                if len(word) <= LONGEST_CACHED_WORD:
                    if len(words) >= CACHED_WORDS:
                        words.clear()
                    words[word] = found
            ids += found

    def _word_ids(self, word: str) -> Iterator[int]:
        ids, spelled = self.vocab.ids, spell(word)
        if self.vocab.ignore_merges and spelled in ids:
            yield ids[spelled]
            return
        for part in merge(spelled, self.vocab.ranks):
            if part in ids:
                yield ids[part]
            else:
                # llama.cpp looks for a token of every single byte of the part's own UTF-8: a character of ASCII may
                # be found, and any other vanishes unless a token is no UTF-8.
                by_bytes = self.vocab.ids_by_bytes
                single = (bytes([byte]) for byte in part.encode())
                yield from (by_bytes[byte] for byte in single if byte in by_bytes)


def fragment_text(fragment: bytes) -> str:
    """A fragment as text. Where a special token has cut a character apart, each of its bytes reads U+FFFD."""
    try:
        return fragment.decode()
    except UnicodeDecodeError:
        return ESCAPED_BYTES.sub("\ufffd", fragment.decode("utf-8", "surrogateescape"))


def spell(word: str) -> str:
    r"""A word in the byte alphabet: as many characters as it has bytes.

    >>> spell(" né\n")
    'ĠnÃ©Ċ'
    """
    return word.encode().decode("latin-1").translate(ALPHABET)


def unspelled(text: bytes) -> bytes:
    r"""The bytes that a token's text spells (llama_decode_text); what is not of the alphabet becomes a complaint.

    >>> unspelled("Ġné".encode()), unspelled("Ã©".encode()), unspelled("中".encode())
    (b' n\xe9', b'\xc3\xa9', b'[UNK_BYTE_0xe4b8ad\xe4\xb8\xad]')
    """
    return b"".join(
        BYTES.get(character) or b"[UNK_BYTE_0x" + character.encode().hex().encode() + text + b"]"
        for character in fragment_text(text)
    )


def merge(word: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts of a word after all merges: always the neighbours of the lowest rank first, of equal ones the leftmost.

    >>> merge("aaab", {("a", "a"): 0, ("aa", "b"): 1})
    ['aa', 'a', 'b']
    """
    return merged(word, lambda left, right: ranks.get((left, right)))
