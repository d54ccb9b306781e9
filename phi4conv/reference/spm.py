r"""SentencePiece-style tokenizing as llama.cpp runs it on a GGUF's vocabulary (llama-vocab.cpp, model llama).

Text becomes ids in four steps:

1. partition_bytes(): special tokens are cut out, the longest text first, whatever stands around them.
2. Between them, spaces become U+2581 ("▁"), one of which is put ahead of the text if the vocabulary asks for it.
3. merge(): as long as two neighbours together are the text of a token, those two whose token has the highest score
   become one. There are no merge rules, and no words: a merge may span a space.
4. A character that is still no token becomes one token for each of its bytes, such as <0x0A>.

    >>> scores = {b"ab": -1.0, b"bc": -0.5, b"abc": -2.0}
    >>> merge([b"a", b"b", b"c", b"b", b"a", b"b"], scores)
    [b'abc', b'b', b'ab']

A vocabulary without byte tokens brings llama.cpp down on the first character that it cannot spell; here that is the
error RefusedByLlamaCpp, which tells the place. Ids become text again by pieces(), token after token, or by decode().

Left out: SentencePiece's own normalization and its removal of repeated spaces, which llama.cpp leaves out as well, so
that it does not give SentencePiece's ids for every text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from phi4conv.errors import Problem
from phi4conv.reference.detokenize import Detokenizer
from phi4conv.reference.llama_vocab import LlamaVocab, RefusedByLlamaCpp
from phi4conv.reference.merging import merged
from phi4conv.reference.special_tokens import added_token, partition_bytes

SPACE = "▁".encode()

# llama.cpp takes the length of a character from its first byte alone (unicode_len_utf8).
CHARACTER = re.compile(rb"[\x00-\xbf]|[\xc0-\xdf][\x00-\xff]?|[\xe0-\xef][\x00-\xff]{0,2}|[\xf0-\xff][\x00-\xff]{0,3}")


class SPM(Detokenizer):
    """The tokenizer of a SentencePiece vocabulary.

    Attributes:
        vocab: The vocabulary.
    """

    def __init__(self, vocab: LlamaVocab) -> None:
        super().__init__(vocab, unescaped)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of a text, as llama_tokenize gives them.

        add_special puts BOS and EOS around the text if the vocabulary says so, even where the text has them already.
        parse_special reads the texts of control tokens as those tokens; those of user-defined tokens always are.

        Raises:
            ValueError: The text holds a lone surrogate.
            RefusedByLlamaCpp: A character is no token, and the vocabulary lacks tokens for its bytes ("no-byte-token");
                or BOS or EOS is asked for, and the vocabulary has none. llama.cpp ends on such texts.
        """
        vocab, data = self.vocab, text.encode()
        ids = [added_token(vocab, "bos")] if add_special and vocab.add_bos else []
        after_special, place = True, 0  # place: where in data the next fragment is to be found
        for fragment in partition_bytes(data, vocab, parse_special=parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
                after_special = True
                continue
            place = data.index(fragment, place)
            prefix = b" " if vocab.add_space_prefix and after_special else b""
            after_special = False
            ids += self._fragment_ids(prefix + fragment, len(data[:place].decode(errors="ignore")) - len(prefix))
            place += len(fragment)
        if add_special and vocab.add_eos:
            ids.append(added_token(vocab, "eos"))
        return ids

    @cached_property
    def _scores(self) -> Mapping[bytes, float]:
        return {text: self.vocab.scores[token] for text, token in self.vocab.ids_by_bytes.items()}

    def _fragment_ids(self, fragment: bytes, start: int) -> Iterator[int]:
        """The ids of text without special tokens; start is the number of characters ahead of it, for errors."""
        for part in merge(CHARACTER.findall(fragment.replace(b" ", SPACE)), self._scores):
            token = self.vocab.ids_by_bytes.get(part)
            if token is None:
                yield from (self._byte_token(byte, part, start) for byte in part)
            else:
                yield token
            start += len(CHARACTER.findall(part))

    def _byte_token(self, byte: int, character: bytes, position: int) -> int:
        """The token for one byte of a character that is no token itself."""
        for text in (b"<0x%02X>" % byte, bytes([byte])):
            token = self.vocab.ids_by_bytes.get(text)
            # A token text ends at its first NUL, so none is the byte zero alone.
            if token is not None:
                return token
        shown = character.replace(SPACE, b" ").decode(errors="replace")
        raise RefusedByLlamaCpp(
            "no-byte-token",
            Problem(
                f"llama.cpp ends on this text: no token spells {shown!r}",
                where=f"character {max(position, 0)} of the text",
                expected=f"a token for the character, or the byte token <0x{byte:02X}>",
                found="neither in the vocabulary",
                next_step="`phi4conv fix` replaces a broken table of tokens; other models need their own tokenizer",
            ),
            aborts=True,
        )


def unescaped(text: bytes) -> bytes:
    """A token's text with spaces for U+2581."""
    return text.replace(SPACE, b" ")


def merge(characters: Sequence[bytes], scores: Mapping[bytes, float]) -> list[bytes]:
    """The parts of a text after all merges: the two neighbours of the highest score first, of equal ones the leftmost.

    scores holds the tokens' texts. llama.cpp also remembers which pair a part was made of, to take it apart again when
    it is no token. It never is that: only pairs that are tokens are merged.
    """
    return merged(characters, lambda left, right: -scores[left + right] if left + right in scores else None)
