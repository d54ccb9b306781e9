"""Finding special tokens in a text before anything else is done to it: tokenizer_st_partition in llama-vocab.cpp.

Both kinds of tokenizer, BPE and SentencePiece, work on what is left between the special tokens.
"""

from __future__ import annotations

from phi4conv.errors import Problem
from phi4conv.reference.llama_cpp import TokenAttribute
from phi4conv.reference.llama_vocab import LlamaVocab, RefusedByLlamaCpp, SpecialSpelling

# isspace() of C, in its own locale.
WHITE_SPACE = b" \t\n\v\f\r"

# Read as plain text when special tokens are not to be parsed; user-defined tokens are found even then.
TRUSTED_ONLY = TokenAttribute.CONTROL | TokenAttribute.UNKNOWN


def partition(text: str, vocab: LlamaVocab, *, parse_special: bool) -> list[str | int]:
    """The text cut at its special tokens: their ids, and the text between them, none of it empty.

    The longest token is cut out of the whole text first, then the next. Without parse_special, only user-defined
    tokens are. A lone surrogate in an answer is a byte of a character that was cut apart (surrogateescape).

    Raises ValueError for a text with a lone surrogate, which no text file can hold.
    """
    return [
        part.decode("utf-8", "surrogateescape") if isinstance(part, bytes) else part
        for part in partition_bytes(text.encode(), vocab, parse_special=parse_special)
    ]


def partition_bytes(text: bytes, vocab: LlamaVocab, *, parse_special: bool) -> list[bytes | int]:
    """As partition(), of a text's bytes."""
    parts: list[bytes | int] = [text] if text else []
    if vocab.special_pattern is None or not vocab.special_pattern.search(text):
        return parts
    for spelling in vocab.special_spellings:
        if spelling.text in text and (parse_special or not spelling.attribute & TRUSTED_ONLY):
            parts = [piece for part in parts for piece in (cut(part, spelling) if isinstance(part, bytes) else (part,))]
    return parts


def cut(text: bytes, spelling: SpecialSpelling) -> list[bytes | int]:
    """One piece of text, cut at every place where this token stands."""
    parts: list[bytes | int] = []
    start = 0
    while (found := text.find(spelling.text, start)) >= 0:
        before = text[start:found]
        if spelling.attribute & TokenAttribute.LSTRIP:
            before = before.rstrip(WHITE_SPACE)
        if before:
            parts.append(before)
        parts.append(spelling.token)
        start = found + len(spelling.text)
        if spelling.attribute & TokenAttribute.RSTRIP:
            while start < len(text) and text[start] in WHITE_SPACE:
                start += 1
    if start < len(text):
        parts.append(text[start:])
    return parts


def added_token(vocab: LlamaVocab, role: str) -> int:
    """The token that is put ahead of a text ("bos") or behind it ("eos").

    Raises RefusedByLlamaCpp ("bos-missing", "eos-missing") when the vocabulary has none.
    """
    if role not in vocab.special:
        raise RefusedByLlamaCpp(
            f"{role}-missing",
            Problem(
                f"llama.cpp ends on every text: it is to add {role.upper()}, and there is no such token",
                where=f"tokenizer.ggml.{role}_token_id",
                expected=f"a token id, or tokenizer.ggml.add_{role}_token false",
                found="none",
                next_step=f"`phi4conv fix --set tokenizer.ggml.add_{role}_token=false`, or with the right id",
            ),
            aborts=True,
        )
    return vocab.special[role]
