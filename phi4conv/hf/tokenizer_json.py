"""A Vocabulary as a tokenizer.json, for holding a file against the tokenizers library where no model folder is at hand.

The reverse of hf/tokenizer.py: what read_vocabulary makes of the result is the vocabulary again, but for what a
tokenizer.json does not say (chat templates and the roles of special tokens, which stand in tokenizer_config.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gguf import TokenType

from phi4conv.errors import ConversionError, Problem
from phi4conv.hf.json_file import listed, shortened
from phi4conv.hf.pre_tokenizer import GPT2, IGNORE_MERGES_NAMES, LLAMA_CPP_NAMES
from phi4conv.vocab import Vocabulary, pad_text

# As the library writes one of its own making. It looks at these flags in a pre-tokenizer alone, and at trim_offsets in
# a post-processor.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def tokenizer_json(vocabulary: Vocabulary, *, strip_around_special: bool = True) -> bytes:
    """The tokenizer.json of a byte-level BPE vocabulary.

    CONTROL and UNKNOWN tokens become special added tokens, USER_DEFINED ones added tokens that are not special. All
    others are plain entries of the vocabulary, but for the [PADn] of rows without a token, which are left out.

    Args:
        vocabulary: Its pre is a name that hf/pre_tokenizer.py knows.
        strip_around_special: Whether white space on both sides of a special token goes with it (lstrip and rstrip),
            as in Phi-4. No GGUF says.

    Raises:
        ConversionError: No tokenizer.json can say this: an unknown split regex, two tokens of one text, or a bos or
            eos token to be added that is none of the tokens.
    """
    rows = [
        (token_id, text, kind)
        for token_id, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.types, strict=True))
        if kind != TokenType.UNUSED or text != pad_text(token_id)
    ]
    ids = {text: token_id for token_id, text, _ in rows}
    if len(ids) < len(rows):
        twice = dict.fromkeys(text for token_id, text, _ in rows if ids[text] != token_id)
        raise unsayable("two tokens have one text", "every text once", listed(twice))
    pre_tokenizer, ignore_merges = splitter(vocabulary.pre)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(token_id, text, special=kind != TokenType.USER_DEFINED, strip=strip_around_special)
            for token_id, text, kind in rows
            if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(vocabulary),
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            # The added tokens stand here too, which fixes their ids.
            "vocab": ids,
            "merges": vocabulary.merges,
        },
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def added_token(token_id: int, text: str, *, special: bool, strip: bool) -> dict[str, Any]:
    """An entry of added_tokens; only special ones are ever stripped around."""
    return {
        "id": token_id,
        "content": text,
        "single_word": False,
        "lstrip": special and strip,
        "rstrip": special and strip,
        "normalized": False,
        "special": special,
    }


def splitter(pre: str) -> tuple[dict[str, Any], bool]:
    """The pre_tokenizer object that llama.cpp's name stands for, and the model's flag ignore_merges.

    Raises ConversionError for a name that hf/pre_tokenizer.py does not give.
    """
    base = {name: base for base, name in IGNORE_MERGES_NAMES.items()}.get(pre)
    # Of several spellings of one regex the first is the common one.
    regex = next((regex for regex, name in LLAMA_CPP_NAMES.items() if name == (base or pre)), None)
    if regex is None:
        known = dict.fromkeys((*LLAMA_CPP_NAMES.values(), *IGNORE_MERGES_NAMES.values()))
        raise unsayable("no regex is known for the pre-tokenizer that it names", listed(known), shortened(repr(pre)))
    byte_level = {**BYTE_LEVEL, "add_prefix_space": False, "use_regex": regex == GPT2}
    if regex == GPT2:  # which is ByteLevel's own
        return byte_level, base is not None
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}, base is not None


def post_processor(vocabulary: Vocabulary) -> dict[str, Any]:
    """The post_processor that adds bos and eos where the vocabulary says so."""
    if not vocabulary.add_bos and not vocabulary.add_eos:
        return {**BYTE_LEVEL, "trim_offsets": False}
    before, after = (list(ends(vocabulary, role)) for role in ("bos", "eos"))
    added = dict.fromkeys([*before, *after])
    return {
        "type": "TemplateProcessing",
        "single": [*map(special_piece, before), sequence_piece("A"), *map(special_piece, after)],
        "pair": [
            *map(special_piece, before),
            *(sequence_piece("A"), sequence_piece("B", 1)),
            *map(special_piece, after),
        ],
        "special_tokens": {text: {"id": text, "ids": [vocabulary.ids[text]], "tokens": [text]} for text in added},
    }


def ends(vocabulary: Vocabulary, role: str) -> Iterator[str]:
    """The text of the bos or eos token if it is to be added, else nothing."""
    adds, token_id = getattr(vocabulary, f"add_{role}"), getattr(vocabulary.special, role)
    if adds and (token_id is None or not 0 <= token_id < len(vocabulary)):
        raise unsayable(f"{role} is to be added, but is no token", f"an id below {len(vocabulary)}", str(token_id))
    if adds:
        yield vocabulary.texts[token_id]


def special_piece(text: str) -> dict[str, Any]:
    """A special token in a TemplateProcessing."""
    return {"SpecialToken": {"id": text, "type_id": 0}}


def sequence_piece(name: str, type_id: int = 0) -> dict[str, Any]:
    """The text itself in a TemplateProcessing."""
    return {"Sequence": {"id": name, "type_id": type_id}}


def unsayable(what: str, expected: str, found: str) -> ConversionError:
    """The error for a vocabulary that has no tokenizer.json."""
    return ConversionError(
        Problem(
            f"this vocabulary cannot be handed to the tokenizers library: {what}",
            expected=expected,
            found=found,
            next_step="name the model's own folder, the one with its tokenizer.json",
        )
    )
