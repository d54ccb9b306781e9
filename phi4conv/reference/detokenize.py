"""From ids back to text, as all kinds of vocabulary do it: token_to_piece and detokenize in llama-vocab.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from phi4conv.reference.llama_cpp import TokenAttribute
from phi4conv.reference.llama_vocab import LlamaVocab

# Shown as the file spells them. Control and unknown tokens give nothing when special tokens are not to be shown.
SPELLED_OUT = TokenAttribute.CONTROL | TokenAttribute.UNKNOWN | TokenAttribute.USER_DEFINED
HIDDEN = TokenAttribute.CONTROL | TokenAttribute.UNKNOWN


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


def detokenized(
    ids: Sequence[int],
    vocab: LlamaVocab,
    piece: Callable[[int], bytes],
    *,
    remove_special: bool,
    unparse_special: bool,
) -> bytes:
    """The text of a sequence of tokens; piece gives the bytes of each by itself.

    remove_special drops BOS and EOS at the ends where the vocabulary adds them; without unparse_special, control and
    unknown tokens give nothing. A space that encoding puts ahead of the text is dropped, and where the vocabulary
    says clean_spaces, those before punctuation.
    """
    start, end = 0, len(ids)
    drop_space = vocab.add_space_prefix
    if remove_special and vocab.add_bos and start < end and ids[start] == vocab.special.get("bos"):
        start, drop_space = start + 1, False
    if remove_special and vocab.add_eos and start < end and ids[end - 1] == vocab.special.get("eos"):
        end -= 1
    pieces = [
        b"" if not unparse_special and vocab.attributes[token] & HIDDEN else piece(token) for token in ids[start:end]
    ]
    if drop_space and pieces:
        pieces[0] = pieces[0].removeprefix(b" ")
    text = b"".join(pieces)
    return cleaned(text) if vocab.clean_spaces else text


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
