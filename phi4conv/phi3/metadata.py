"""The metadata of a phi3 file: every key with llama.cpp's name and type, in its converter's order.

Sources: gguf-py's constants.py (names), gguf_writer.py (types); llama.cpp's conversion/phi.py (phi3.*) and gguf-py's
vocab.py (tokenizer.*). What general.* says of the model, and its order, is hf.model_card's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, GGUFType, Keys

from phi4conv.errors import ConversionError, Problem
from phi4conv.gguf_file.layout import MetadataPair, boolean, f32, i32, i32s, text, texts, u32
from phi4conv.hf.config import Phi3Config
from phi4conv.hf.model_card import FIELDS, NUMBER, ORIGIN_FIELDS, ORIGINS, TEXTS, WHOLE
from phi4conv.quant.mix import FileType
from phi4conv.vocab import Vocabulary

ARCHITECTURE = "phi3"

GENERAL = Keys.General

# The metadata key of each role that SpecialIds knows, in llama.cpp's order.
SPECIAL_ID_KEYS: Mapping[str, str] = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "eot": Keys.Tokenizer.EOT_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
}

# llama.cpp takes a name with this in it for Phi-3's SentencePiece vocabulary (llama-vocab.cpp): it then
# looks up "</s>", which a BPE vocabulary does not have, and refuses the file.
PHI3_IN_NAME = re.compile(r"phi-?3", re.IGNORECASE)


def metadata_pairs(
    config: Phi3Config, vocabulary: Vocabulary, card: Mapping[str, Any], file_type: FileType
) -> Iterator[MetadataPair]:
    """Every pair of the file, in order."""
    yield text(GENERAL.ARCHITECTURE, ARCHITECTURE)
    yield text(GENERAL.TYPE, GGUFType.MODEL)
    yield from general_pairs(card)
    yield from phi3_pairs(config, file_type)
    yield u32(GENERAL.QUANTIZATION_VERSION, GGML_QUANT_VERSION)
    yield from tokenizer_pairs(vocabulary)


def general_pairs(card: Mapping[str, Any]) -> Iterator[MetadataPair]:
    """The general.* keys that the model card gives; card is the fields of hf.model_card's CardReading.

    Empty texts and lists are left out, as llama.cpp's converter does.
    """
    for field in FIELDS:
        value = card.get(field.name)
        if value is None:
            continue
        if field.kind is ORIGINS:
            yield from origin_pairs(field.key.removesuffix("s"), value)
        elif field.kind is WHOLE:
            yield i32(field.key, value)
        elif field.kind is NUMBER:
            yield f32(field.key, value)
        elif value:
            yield texts(field.key, value) if field.kind is TEXTS else text(field.key, value)


def origin_pairs(prefix: str, origins: Sequence[Mapping[str, str]]) -> Iterator[MetadataPair]:
    """The numbered entries of base models or data sets, and their count."""
    yield u32(f"{prefix}.count", len(origins))
    for index, origin in enumerate(origins):
        for field in ORIGIN_FIELDS:
            if field in origin:
                yield text(f"{prefix}.{index}.{field}", origin[field])


def phi3_pairs(config: Phi3Config, file_type: FileType) -> Iterator[MetadataPair]:
    """The architecture's own keys; general.file_type stands among them, as llama.cpp writes it."""

    def key(pattern: str) -> str:
        return pattern.format(arch=ARCHITECTURE)

    yield u32(key(Keys.LLM.CONTEXT_LENGTH), config.context_length)
    yield u32(key(Keys.Rope.SCALING_ORIG_CTX_LEN), config.rope.original_context_length)
    yield u32(key(Keys.LLM.EMBEDDING_LENGTH), config.hidden_size)
    yield u32(key(Keys.LLM.FEED_FORWARD_LENGTH), config.intermediate_size)
    yield u32(key(Keys.LLM.BLOCK_COUNT), config.layer_count)
    yield u32(key(Keys.Attention.HEAD_COUNT), config.head_count)
    yield u32(key(Keys.Attention.HEAD_COUNT_KV), config.kv_head_count)
    yield f32(key(Keys.Attention.LAYERNORM_RMS_EPS), config.rms_norm_eps)
    yield u32(key(Keys.Rope.DIMENSION_COUNT), config.rope.dimension_count)
    yield f32(key(Keys.Rope.FREQ_BASE), config.rope.theta)
    yield u32(GENERAL.FILE_TYPE, file_type.number)
    # Zero says "none": llama.cpp tells Phi-4 from Phi-3 by it and asserts on a missing or wrong value.
    yield u32(key(Keys.Attention.SLIDING_WINDOW), config.sliding_window or 0)
    if config.rope.long_rope:
        yield f32(key(Keys.Rope.SCALING_ATTN_FACTOR), config.rope.long_rope.attention_factor)


def tokenizer_pairs(vocabulary: Vocabulary) -> Iterator[MetadataPair]:
    """The tokenizer.* keys. A gpt2-style vocabulary: merges, no scores."""
    tokenizer = Keys.Tokenizer
    yield text(tokenizer.MODEL, "gpt2")
    yield text(tokenizer.PRE, vocabulary.pre)
    yield texts(tokenizer.LIST, vocabulary.texts)
    yield i32s(tokenizer.TOKEN_TYPE, vocabulary.types)
    yield texts(tokenizer.MERGES, vocabulary.merges)
    special = vocabulary.special.present()
    for role, key in SPECIAL_ID_KEYS.items():
        if role in special:
            yield u32(key, special[role])
    yield boolean(tokenizer.ADD_BOS, vocabulary.add_bos)
    yield boolean(tokenizer.ADD_EOS, vocabulary.add_eos)
    for name, template in vocabulary.named_templates.items():
        yield text(tokenizer.CHAT_TEMPLATE_N.format(name=name), template)
    if vocabulary.named_templates:
        yield texts(tokenizer.CHAT_TEMPLATES, list(vocabulary.named_templates))
    if vocabulary.chat_template is not None:
        yield text(tokenizer.CHAT_TEMPLATE, vocabulary.chat_template)


def safe_name(name: str, *, asked_for: bool) -> tuple[str, str | None]:
    """A general.name that llama.cpp does not take for Phi-3, and a warning when it had to change.

    Raises:
        ConversionError: The name was asked for by the user, so that it is not ours to change.

    >>> safe_name("my-phi3-tune", asked_for=False)[0]
    'my-Phi 3-tune'
    """
    safe = PHI3_IN_NAME.sub("Phi 3", name)
    if safe == name:
        return name, None
    reason = "llama.cpp takes such a name for Phi-3's vocabulary and then refuses to load this one"
    if asked_for:
        raise ConversionError(
            Problem(
                "general.name must not contain phi-3 or phi3",
                where="--name",
                found=repr(name),
                expected=f"for example {safe!r}: {reason}",
            )
        )
    return safe, f"general.name {name!r} is written as {safe!r}: {reason}"
