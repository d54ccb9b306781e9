"""What llama.cpp makes of a GGUF's vocabulary when it loads it: llama_vocab::impl::load in src/llama-vocab.cpp.

load_vocab() answers from the metadata alone, for tokenizer.ggml.model gpt2 (byte-level BPE) and llama
(SentencePiece): the defaults that llama.cpp fills in, the values that it overrides, the tokens that it finds by
their texts, and the files that it refuses or that bring it down. The tests hold the answers against the running
library.

Left out: other kinds of vocabulary, metadata overridden on llama.cpp's command line, and everything outside of the
vocabulary for which llama.cpp may refuse a file. As there, strings end at their first NUL character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from gguf import GGUFValueType, Keys

from phi4conv.errors import FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.reference.gnu_order import in_sort_order
from phi4conv.reference.llama_cpp import TokenAttribute
from phi4conv.reference.llama_metadata import RefusedByLlamaCpp, array, flag, scalar, string, until_nul
from phi4conv.reference.llama_vocab_roles import (
    TokenTable,
    apply_family_rules,
    as_bytes,
    refuse_undecodable,
    settle_roles,
    shown,
)
from phi4conv.reference.llama_vocab_rules import (
    ALWAYS_ADD_BOS,
    DEFAULT_IDS,
    DEFAULT_PRE,
    ID_KEYS,
    KNOWN_MODELS,
    LOWERCASE,
    MERGES_OPTIONAL,
    OTHER_MODELS,
    PRE_SETTINGS,
    SENTENCEPIECE,
    STRIP_ACCENTS,
    SUPPRESS_TOKENS,
    TOKEN_TYPE_COUNT,
    TYPE_ATTRIBUTES,
    PreSettings,
)

__all__ = ["LlamaVocab", "RefusedByLlamaCpp", "SpecialSpelling", "TokenAttribute", "as_bytes", "load_vocab"]


class SpecialSpelling(NamedTuple):
    """A token that is looked for in a text before it is split."""

    token: int
    text: bytes
    attribute: TokenAttribute


@dataclass(frozen=True, eq=False)
class LlamaVocab:
    """A vocabulary as llama.cpp holds it after loading.

    texts, attributes and scores are in id order and of one length. A text that is empty in the file is
    "[EMPTY_id]"; bytes that are no UTF-8 are lone surrogates (surrogateescape).
    """

    model: str  # tokenizer.ggml.model: "gpt2" or "llama"
    pre: str  # the split regex's name; "default" when the key is missing or empty, and for "llama"
    texts: Sequence[str]
    attributes: Sequence[TokenAttribute]
    scores: Sequence[float]  # zeros where the file has none
    ranks: Mapping[tuple[str, str], int]  # merges; the first of a repeated pair counts, one without a space is ("", "")
    special: Mapping[str, int]  # role -> id: bos eos eot eom unk sep pad mask nl fim_pre fim_suf fim_mid ...
    end_of_generation: frozenset[int]
    suppressed: tuple[int, ...]  # ids that are never to be generated
    add_bos: bool
    add_eos: bool
    add_sep: bool
    add_space_prefix: bool
    clean_spaces: bool
    ignore_merges: bool
    escape_whitespaces: bool
    remove_extra_whitespaces: bool
    byte_level: bool  # words are spelled in the byte alphabet before they are merged
    warnings: tuple[str, ...]  # what llama.cpp warns of, and what depends on its build

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Text to id; no text stands twice, for then llama.cpp does not load the vocabulary."""
        return {text: token for token, text in enumerate(self.texts)}

    @cached_property
    def ids_by_bytes(self) -> Mapping[bytes, int]:
        """The same by the bytes that the file has for each text."""
        return {as_bytes(text): token for token, text in enumerate(self.texts)}

    @cached_property
    def special_tokens(self) -> tuple[int, ...]:
        """Ids of the control, user-defined and unknown tokens, which are looked for in a text before it is split.

        The longest, in bytes, comes first; those of one length stand as GNU's C++ library sorts them, which matters
        only to a text in which two of them overlap.
        """
        wanted = TokenAttribute.CONTROL | TokenAttribute.USER_DEFINED | TokenAttribute.UNKNOWN
        kinds = {attribute for attribute in set(self.attributes) if attribute & wanted}
        special = [token for token, attribute in enumerate(self.attributes) if attribute in kinds]
        order = in_sort_order([-len(as_bytes(self.texts[token])) for token in special])
        return tuple(special[place] for place in order)

    @cached_property
    def special_spellings(self) -> tuple[SpecialSpelling, ...]:
        """The special_tokens with their bytes and attributes."""
        return tuple(
            SpecialSpelling(token, as_bytes(self.texts[token]), self.attributes[token]) for token in self.special_tokens
        )

    @cached_property
    def special_pattern(self) -> re.Pattern[bytes] | None:
        """Finds whether any of the special_tokens is in a text; None when there are none."""
        alternatives = b"|".join(re.escape(spelling.text) for spelling in self.special_spellings)
        return re.compile(alternatives) if alternatives else None


def load_vocab(file: GGUFFile) -> LlamaVocab:
    """The vocabulary that llama.cpp holds after loading this file.

    Raises:
        RefusedByLlamaCpp: llama.cpp would refuse the file for its vocabulary, or end.
        FormatError: A kind of vocabulary that llama.cpp knows, but that is not known here.
    """
    model = known_model(file)
    raw_pre = string(file, Keys.Tokenizer.PRE) or ""
    scalar(file, TOKEN_TYPE_COUNT, GGUFValueType.UINT32)
    ranks = read_ranks(file, raw_pre) if model == "gpt2" else {}
    warnings: list[str] = []
    settings = pre_settings(file, model, raw_pre, warnings)
    add_space_prefix = flag(file, Keys.Tokenizer.ADD_PREFIX, model == "llama")
    remove_extra_whitespaces = flag(file, Keys.Tokenizer.REMOVE_EXTRA_WS, False)
    texts = token_list(file, warnings)
    scores = token_scores(file, len(texts))
    table = TokenTable(file.path, texts, token_attributes(file, len(texts)), warnings)
    newline = newline_token(table, model, settings)
    given = given_ids(file, table, default_ids(model, settings))
    add_bos = flag(file, Keys.Tokenizer.ADD_BOS, settings.add_bos)
    add_eos = flag(file, Keys.Tokenizer.ADD_EOS, False)
    add_sep = flag(file, Keys.Tokenizer.ADD_SEP, settings.add_sep)
    if model == "gpt2" and raw_pre in ALWAYS_ADD_BOS and not add_bos:
        add_bos = True
        warnings.append(f"llama.cpp always adds BOS with the pre-tokenizer {raw_pre!r}, whatever the file says")
    for key in (LOWERCASE, STRIP_ACCENTS):
        scalar(file, key, GGUFValueType.BOOL)
    suppressed = suppressed_tokens(file, len(texts))
    special, ends = settle_roles(table, given)
    refuse_undecodable(table, byte_level=model == "gpt2" and not settings.escape_whitespaces)
    name = string(file, Keys.General.NAME) or ""
    apply_family_rules(table, name, raw_pre, string(file, Keys.General.ARCHITECTURE) or "")
    known = {bits: TokenAttribute(bits) for bits in set(table.attributes)}
    return LlamaVocab(
        model=model,
        pre=raw_pre or DEFAULT_PRE if model == "gpt2" else DEFAULT_PRE,
        texts=texts,
        attributes=tuple([known[bits] for bits in table.attributes]),
        scores=scores,
        ranks=ranks,
        special=special if newline is None else {**special, "nl": newline},
        end_of_generation=ends,
        suppressed=suppressed,
        add_bos=add_bos,
        add_eos=add_eos,
        add_sep=add_sep,
        add_space_prefix=add_space_prefix,
        clean_spaces=settings.clean_spaces,
        ignore_merges=settings.ignore_merges,
        escape_whitespaces=settings.escape_whitespaces,
        remove_extra_whitespaces=remove_extra_whitespaces,
        byte_level=settings.byte_level,
        warnings=tuple(warnings),
    )


def known_model(file: GGUFFile) -> str:
    """The kind of vocabulary, tokenizer.ggml.model."""
    model = string(file, Keys.Tokenizer.MODEL)
    if model in KNOWN_MODELS:
        return model
    where = f"{file.path}: {Keys.Tokenizer.MODEL}"
    if model in OTHER_MODELS:
        raise FormatError(
            Problem(
                "a kind of vocabulary that is not known here",
                where,
                expected=" or ".join(KNOWN_MODELS),
                found=model,
                next_step="Phi-4's is gpt2; ask llama.cpp itself with --runtime llama.cpp",
            )
        )
    raise RefusedByLlamaCpp(
        "model-missing" if model is None else "unknown-model",
        Problem(
            "llama.cpp refuses the file: it does not say which kind of vocabulary it has"
            if model is None
            else "llama.cpp refuses the file: a kind of vocabulary that it does not know",
            where,
            expected="gpt2 for Phi-4",
            found="no such key" if model is None else shown(model),
            next_step="set the key, or convert the model again",
        ),
    )


def pre_settings(file: GGUFFile, model: str, name: str, warnings: list[str]) -> PreSettings:
    """What the name in tokenizer.ggml.pre sets; a SentencePiece vocabulary has no split regex."""
    if model != "gpt2":
        return SENTENCEPIECE
    if not name:
        warnings.append(
            f"{Keys.Tokenizer.PRE} is missing: llama.cpp splits text by its default regexes and warns that the "
            "quality of generation will be degraded"
        )
    settings = PRE_SETTINGS.get(name or DEFAULT_PRE)
    if settings is None:
        raise RefusedByLlamaCpp(
            "unknown-pre",
            Problem(
                "llama.cpp refuses the file: a pre-tokenizer that it does not know",
                f"{file.path}: {Keys.Tokenizer.PRE}",
                expected="dbrx for Phi-4, or another of the names that llama.cpp has",
                found=shown(name),
                next_step="set the key to the name of the split regex in the model's tokenizer.json",
            ),
        )
    return settings


def read_ranks(file: GGUFFile, raw_pre: str) -> dict[tuple[str, str], int]:
    """Pair -> rank. A merge that is no pair counts as ("", ""), which no text contains."""
    merges = array(file, Keys.Tokenizer.MERGES, (GGUFValueType.STRING,))
    if merges is None:
        if raw_pre in MERGES_OPTIONAL:
            return {}
        raise RefusedByLlamaCpp(
            "merges-missing",
            Problem(
                "llama.cpp refuses the file: a BPE vocabulary without merges",
                f"{file.path}: {Keys.Tokenizer.MERGES}",
                expected="an array of merges such as 'Ġ t'",
                found="no such key",
                next_step="`phi4conv fix` derives Phi-4's merges from the order of its tokens",
            ),
        )
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(merges):
        left, space, right = until_nul(merge).partition(" ")
        if not left and space:
            # llama.cpp looks for the space from the second byte on: a first half is never empty.
            left, space, right = right.partition(" ")
            left = " " + left
        ranks.setdefault((left, right) if space else ("", ""), rank)
    return ranks


def token_list(file: GGUFFile, warnings: list[str]) -> tuple[str, ...]:
    """The token texts; none of them is empty, and none stands twice."""
    stored = array(file, Keys.Tokenizer.LIST, (GGUFValueType.STRING,))
    where = f"{file.path}: {Keys.Tokenizer.LIST}"
    if stored is None:
        raise RefusedByLlamaCpp(
            "tokens-missing",
            Problem("llama.cpp refuses the file: no tokens", where, "an array of token texts", "no such key"),
        )
    texts = [until_nul(text) for text in stored]
    empty = [token for token, text in enumerate(texts) if not text]
    for token in empty:
        texts[token] = f"[EMPTY_{token}]"
    if empty:
        others = f", and so on for {len(empty) - 1:,} more" if len(empty) > 1 else ""
        warnings.append(f"token {empty[0]} is empty; llama.cpp calls it {texts[empty[0]]}{others}")
    if len(set(texts)) < len(texts):
        first: dict[str, int] = {}
        twice = next(token for token, text in enumerate(texts) if first.setdefault(text, token) != token)
        raise RefusedByLlamaCpp(
            "duplicate-token",
            Problem(
                "llama.cpp ends while it loads the file: two tokens have the same text",
                where,
                expected=f"{len(texts):,} different texts",
                found=f"{shown(texts[twice])} is token {first[texts[twice]]} and token {twice}",
                next_step="convert the model again from its own tokenizer",
            ),
            aborts=True,
        )
    return tuple(texts)


def token_scores(file: GGUFFile, count: int) -> tuple[float, ...]:
    """One score per token; zeros when the file has none."""
    scores = array(file, Keys.Tokenizer.SCORES, (GGUFValueType.FLOAT32, GGUFValueType.INT32))
    if scores is None:
        return (0.0,) * count
    refuse_short(file, Keys.Tokenizer.SCORES, "scores-short", len(scores), count)
    return tuple(float(score) for score in list(scores)[:count])


def token_attributes(file: GGUFFile, count: int) -> list[int]:
    """TokenAttribute bits of every token by its type alone; without types all are NORMAL."""
    types = array(file, Keys.Tokenizer.TOKEN_TYPE, (GGUFValueType.INT32,))
    if types is None:
        return [int(TokenAttribute.NORMAL)] * count
    refuse_short(file, Keys.Tokenizer.TOKEN_TYPE, "token-types-short", len(types), count)
    return [TYPE_ATTRIBUTES.get(kind, 0) for kind in list(types)[:count]]


def refuse_short(file: GGUFFile, key: str, reason: str, found: int, count: int) -> None:
    """Raise RefusedByLlamaCpp when an array has fewer items than there are tokens; more are ignored."""
    if found < count:
        raise RefusedByLlamaCpp(
            reason,
            Problem(
                f"llama.cpp refuses the file: {key} has fewer items than there are tokens",
                f"{file.path}: {key}",
                expected=f"{count:,} items",
                found=f"{found:,}",
                next_step="convert the model again, or remove the key with `phi4conv fix`",
            ),
        )


def default_ids(model: str, settings: PreSettings) -> dict[str, int]:
    """The special ids that llama.cpp starts from."""
    ids = dict(DEFAULT_IDS[model])
    if not settings.default_bos:
        del ids["bos"]
    return ids


def given_ids(file: GGUFFile, table: TokenTable, ids: dict[str, int]) -> dict[str, int]:
    """The special ids after the file's keys; ids holds the defaults."""
    size = len(table.texts)
    for role, key in ID_KEYS:
        if role in ids and ids[role] >= size:
            table.warnings.append(f"there is no token {ids.pop(role)}, llama.cpp's default for {key}: it has none")
        value = scalar(file, key, GGUFValueType.UINT32)
        if value is None:
            continue
        if value < size:
            ids[role] = value
        else:
            instead = f"takes {ids[role]} ({shown(table.texts[ids[role]])}) instead" if role in ids else "ignores it"
            table.warnings.append(f"{key} is {value}, but there are only {size:,} tokens: llama.cpp {instead}")
    return ids


def newline_token(table: TokenTable, model: str, settings: PreSettings) -> int | None:
    """The first token that a line end is encoded as, or None."""
    if model == "llama":
        spellings: tuple[str, ...] = ("<0x0A>", "\n")
    elif settings.byte_level:
        # "Ċ" stands for "\n"; without that token llama.cpp looks for one for each byte of its UTF-8.
        spellings = ("Ċ", *(bytes([byte]).decode("utf-8", "surrogateescape") for byte in as_bytes("Ċ")))
    else:
        spellings = ("\n", "<0x0A>")
    token = next((table.ids[text] for text in spellings if text in table.ids), None)
    if token is None:
        table.warnings.append(f"no token stands for a line end: there is no {spellings[0]!r}")
    return token


def suppressed_tokens(file: GGUFFile, count: int) -> tuple[int, ...]:
    """Ids that are never to be generated; those out of range are dropped."""
    tokens = array(file, SUPPRESS_TOKENS, (GGUFValueType.INT32,)) or ()
    return tuple(token for token in tokens if 0 <= token < count)
