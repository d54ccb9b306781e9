"""The part of loading a vocabulary in which llama.cpp judges tokens by their texts.

It finds tokens for roles that no key fills, decides which tokens end generation, and corrects the attributes of
tokens along the way: llama_vocab::impl::load in src/llama-vocab.cpp, from "auto-detect special tokens" on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from phi4conv.errors import Problem
from phi4conv.reference.gnu_order import in_map_order
from phi4conv.reference.llama_cpp import TokenAttribute
from phi4conv.reference.llama_metadata import RefusedByLlamaCpp
from phi4conv.reference.llama_vocab_rules import (
    ALWAYS_SHOWN,
    END_IS_A_MARK,
    END_ROLES,
    END_TEXTS,
    EOS_IS_A_MARK,
    ROLE_TEXTS,
)

CONTROL, UNUSED, NORMAL, BYTE = (
    int(bit) for bit in (TokenAttribute.CONTROL, TokenAttribute.UNUSED, TokenAttribute.NORMAL, TokenAttribute.BYTE)
)
USER_DEFINED, UNKNOWN = int(TokenAttribute.USER_DEFINED), int(TokenAttribute.UNKNOWN)
LSTRIP, RSTRIP = int(TokenAttribute.LSTRIP), int(TokenAttribute.RSTRIP)
SPELLED_OUT = CONTROL | UNKNOWN | USER_DEFINED  # shown as the file spells them, not decoded

LONGEST_SHOWN = 80  # characters of a token or name in a message

# Four bytes that make a code point above U+10FFFF, as they look after decoding with surrogateescape.
BEYOND_UNICODE = re.compile("\udcf4[\udc90-\udcbf][\udc80-\udcbf]{2}|[\udcf5-\udcf7][\udc80-\udcbf]{3}")


class TokenTable:
    """Tokens while they are loaded: texts are settled, attributes (bits of TokenAttribute) still change."""

    def __init__(self, path: Path, texts: tuple[str, ...], attributes: list[int], warnings: list[str]) -> None:
        self.path = path
        self.texts = texts
        self.attributes = attributes
        self.warnings = warnings

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Text to id."""
        return {text: token for token, text in enumerate(self.texts)}

    @cached_property
    def map_places(self) -> Mapping[str, int]:
        """Text to its place in the order of llama.cpp's hash map."""
        return {self.texts[token]: place for place, token in enumerate(in_map_order(self.texts))}

    def make_control(self, token: int) -> None:
        """Add CONTROL to a token that a text or role makes special."""
        if not self.attributes[token] & CONTROL:
            self.attributes[token] |= CONTROL
            self.warnings.append(
                f"token {token} ({shown(self.texts[token])}) is not of type CONTROL; llama.cpp treats it as if it were"
            )


def settle_roles(table: TokenTable, given: Mapping[str, int]) -> tuple[dict[str, int], frozenset[int]]:
    """Special ids by role, and the ids that end generation; given are the ids by default and by key."""
    special = {**given, **ids_by_text(table, given)}
    mark_unused(table)
    ends = {special[role] for role in END_ROLES if role in special}
    by_text = {table.ids[text] for text in END_TEXTS if text in table.ids}
    for token in sorted(by_text):
        table.make_control(token)
    for text in ALWAYS_SHOWN:
        if text in table.ids:
            table.attributes[table.ids[text]] = USER_DEFINED
            table.warnings.append(f"llama.cpp takes {text!r} for a user-defined token, whatever its type")
    for role in ("eos", "eot", "eom"):
        token = special.get(role, -1)
        if token >= 0 and token not in by_text:
            table.warnings.append(
                f"generation ends at the {role} token {token} ({shown(table.texts[token])}), which is none of the "
                "texts that usually end it"
            )
    ends |= by_text
    ends -= mere_marks(table, ends)
    return special, frozenset(ends)


def ids_by_text(table: TokenTable, given: Mapping[str, int]) -> dict[str, int]:
    """Ids for roles that have none yet, by the tokens' texts."""
    found = {}
    for role, texts in ROLE_TEXTS.items():
        present = [text for text in texts if text in table.ids]
        if role in given or not present:
            continue
        if len(present) > 1:
            present.sort(key=table.map_places.__getitem__)
            table.warnings.append(
                f"no key names the {role} token, and {', '.join(map(repr, present))} fit: which one llama.cpp takes "
                f"depends on its build; under Linux it is {present[0]!r}"
            )
        found[role] = table.ids[present[0]]
        table.make_control(found[role])
    return found


def mark_unused(table: TokenTable) -> None:
    """Control tokens with "unused" in their text get the attribute UNUSED."""
    for token, attribute in enumerate(table.attributes):
        if attribute & CONTROL and "unused" in table.texts[token]:
            table.attributes[token] |= UNUSED


def mere_marks(table: TokenTable, ends: set[int]) -> set[int]:
    """Tokens that do not end generation after all, because of others in the vocabulary; their attributes change."""
    texts = {table.texts[token] for token in ends}
    marks = set()
    if "<|end|>" in texts and any(needed <= texts for needed in END_IS_A_MARK):
        marks.add(table.ids["<|end|>"])
        table.attributes[table.ids["<|end|>"]] = USER_DEFINED
        table.warnings.append("'<|end|>' does not end generation, because of other tokens of this vocabulary")
    if "</s>" in texts and any(text in texts for text in EOS_IS_A_MARK):
        marks.add(table.ids["</s>"])
        table.attributes[table.ids["</s>"]] = NORMAL
        table.warnings.append("'</s>' does not end generation, because of other tokens of this vocabulary")
    return marks


def refuse_undecodable(table: TokenTable, *, byte_level: bool) -> None:
    """Raise RefusedByLlamaCpp for a token that llama.cpp cannot turn into bytes."""
    for token, attribute in enumerate(table.attributes):
        if attribute & BYTE and not attribute & (SPELLED_OUT | NORMAL) and len(as_bytes(table.texts[token])) < 3:
            raise _undecodable(table, token, "byte-token-short", "a byte token is spelled like <0x0A>")
    if byte_level and BEYOND_UNICODE.search("".join(table.texts)):
        for token, attribute in enumerate(table.attributes):
            if attribute & NORMAL and not attribute & SPELLED_OUT and BEYOND_UNICODE.search(table.texts[token]):
                raise _undecodable(table, token, "beyond-unicode", "a token text is UTF-8, up to U+10FFFF")


def _undecodable(table: TokenTable, token: int, reason: str, expected: str) -> RefusedByLlamaCpp:
    return RefusedByLlamaCpp(
        reason,
        Problem(
            "llama.cpp refuses the file: a token that cannot be decoded",
            f"{table.path}: token {token}",
            expected,
            shown(table.texts[token]),
            next_step="convert the model again from its own tokenizer",
        ),
    )


def apply_family_rules(table: TokenTable, name: str, pre: str, architecture: str) -> None:
    """Set LSTRIP and RSTRIP, which a GGUF cannot say, where llama.cpp recognizes a model by one of its names.

    Raises RefusedByLlamaCpp for a name with phi-3 in it and a vocabulary without Phi-3's tokens.
    """
    name = as_bytes(name).lower().decode("utf-8", "surrogateescape")  # llama.cpp lowers ASCII alone
    jina = any(each in pre for each in ("jina-v2-de", "jina-v2-es", "jina-v2-code"))
    if jina or any(each in architecture for each in ("nomic-bert-moe", "jina-bert-v3")):
        _strip_before(table, "<mask>")
    elif "phi-3" in name or "phi3" in name:
        for token, attribute in enumerate(table.attributes):
            if attribute & SPELLED_OUT:
                table.attributes[token] |= RSTRIP
        for text, strips in (("</s>", True), ("<unk>", False), ("<s>", False), ("<|endoftext|>", False)):
            token = _phi3_token(table, text, name)
            table.attributes[token] = table.attributes[token] & ~RSTRIP | (RSTRIP if strips else 0)
    elif "modern-bert" in name:
        _strip_before(table, "[MASK]")


def _strip_before(table: TokenTable, text: str) -> None:
    if text in table.ids:
        table.attributes[table.ids[text]] |= LSTRIP
    else:
        table.warnings.append(f"a model of this name has a token {text!r}, this vocabulary has not")


def _phi3_token(table: TokenTable, text: str, name: str) -> int:
    if text not in table.ids:
        raise RefusedByLlamaCpp(
            "phi-3-name",
            Problem(
                f"llama.cpp refuses the file: by its name it is a Phi-3, but it has no token {text!r}",
                f"{table.path}: general.name",
                expected="a name without phi-3 and phi3, for a vocabulary that is not Phi-3's",
                found=shown(name),
                next_step="give the model another name: `phi4conv fix` does",
            ),
        )
    return table.ids[text]


def shown(text: str) -> str:
    """A text of the file for a message, of a length that can be read.

    >>> shown("<|im_end|>"), shown("a" * 1000)[-8:]
    ("'<|im_end|>'", "aaaa'...")
    """
    return repr(text) if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]!r}..."


def as_bytes(text: str) -> bytes:
    """The bytes that the file has for a text read with surrogateescape."""
    return text.encode("utf-8", "surrogateescape")
