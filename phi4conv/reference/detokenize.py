"""From ids back to text, as all kinds of vocabulary do it: token_to_piece and detokenize in llama-vocab.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from phi4conv.reference.llama_cpp import TokenAttribute
from phi4conv.reference.llama_vocab import LlamaVocab, as_bytes

# Shown as the file spells them. Control and unknown tokens give nothing when special tokens are not to be shown.
SPELLED_OUT = TokenAttribute.CONTROL | TokenAttribute.UNKNOWN | TokenAttribute.USER_DEFINED
HIDDEN = TokenAttribute.CONTROL | TokenAttribute.UNKNOWN


class Detokenizer:
    """The half of a tokenizer that makes text of ids.

    Attributes:
        vocab: The vocabulary.
    """

    def __init__(self, vocab: LlamaVocab, decoded: Callable[[bytes], bytes]) -> None:
        """Take decoded for what turns the text of a NORMAL token into the bytes that it stands for."""
        self.vocab = vocab
        self._decoded = decoded
        self._pieces: dict[int, bytes] = {}

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of every token by itself, special tokens spelled out, unused ones empty.

        Raises ValueError for an id outside of the vocabulary.
        """
        return [self._piece(token) for token in checked(ids, self.vocab)]

    def decode(self, ids: Sequence[int], *, remove_special: bool = False, unparse_special: bool = True) -> bytes:
        """The bytes of a sequence of tokens, as llama_detokenize gives them.

        remove_special drops BOS and EOS at the ends where the vocabulary adds them; without unparse_special, control
        and unknown tokens give nothing. A space that encoding puts ahead of the text is dropped, and where the
        vocabulary says clean_spaces, those before punctuation.

        Raises ValueError for an id outside of the vocabulary.
        """
        vocab = self.vocab
        start, end = 0, len(checked(ids, vocab))
        drop_space = vocab.add_space_prefix
        if remove_special and vocab.add_bos and start < end and ids[start] == vocab.special.get("bos"):
            start, drop_space = start + 1, False
        if remove_special and vocab.add_eos and start < end and ids[end - 1] == vocab.special.get("eos"):
            end -= 1
        pieces = [
            b"" if not unparse_special and vocab.attributes[token] & HIDDEN else self._piece(token)
            for token in ids[start:end]
        ]
        if drop_space and pieces:
            pieces[0] = pieces[0].removeprefix(b" ")
        text = b"".join(pieces)
        return cleaned(text) if vocab.clean_spaces else text

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            text = as_bytes(self.vocab.texts[token])
            piece = self._pieces[token] = token_piece(text, self.vocab.attributes[token], self._decoded)
        return piece


def token_piece(text: bytes, attribute: TokenAttribute, decoded: Callable[[bytes], bytes]) -> bytes:
    """The bytes that a token stands for; decoded turns the text of a NORMAL token into bytes.

    A token that is none of NORMAL, BYTE and special, such as an UNUSED one, stands for nothing.
    """
    if attribute & SPELLED_OUT:
        return text
    if attribute & TokenAttribute.NORMAL:
        return decoded(text)
    return byte_value(text) if attribute & TokenAttribute.BYTE else b""


def byte_value(text: bytes) -> bytes:
    r"""The byte of a byte token: its fourth and fifth character, as strtol() reads them.

    >>> byte_value(b"<0x0A>"), byte_value(b"no hex number")
    (b'\n', b'\x00')
    """
    number = re.match(rb"[ \t-\r]*([+-]?[0-9a-fA-F]+)", text[3:5])
    return bytes([int(number[1], 16) & 0xFF if number else 0])


def cleaned(text: bytes) -> bytes:
    """A text without the spaces that English does not have, in llama.cpp's three passes.

    >>> cleaned(b"Well , it ' s not what we 're after . Is n 't it ?")
    b"Well, it's not what we're after. Is n 't it?"
    """
    text = re.sub(rb" ([?!.,])", rb"\1", text)
    text = text.replace(b" ' ", b"'")
    return re.sub(rb" ('[sm]|'re|'ve)", rb"\1", text)


def checked(ids: Sequence[int], vocab: LlamaVocab) -> Sequence[int]:
    """The ids; raises ValueError for one outside of the vocabulary."""
    for token in ids:
        if not 0 <= token < len(vocab):
            raise ValueError(f"token id {token} is outside of the vocabulary of {len(vocab):,}")
    return ids
