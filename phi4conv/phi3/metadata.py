"""The metadata of a phi3 file: every key with llama.cpp's name and type, in its converter's order.

Sources: gguf-py's constants.py (names), gguf_writer.py (types) and metadata.py (order of general.*);
llama.cpp's conversion/phi.py (phi3.*) and gguf-py's vocab.py (tokenizer.*).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, GGUFType, Keys

from phi4conv.errors import CheckpointError, ConversionError, Problem
from phi4conv.gguf_file.layout import MetadataPair, boolean, f32, i32, i32s, text, texts, u32
from phi4conv.hf.config import Phi3Config
from phi4conv.quant.mix import FileType
from phi4conv.vocab import Vocabulary

ARCHITECTURE = "phi3"

GENERAL = Keys.General
# gguf.Metadata's field -> key and kind (whole numbers are INT32, others FLOAT32), in llama.cpp's order.
Scalar = type[int | float | str]
SAMPLING_KEYS: tuple[tuple[str, str, Scalar], ...] = (
    ("sampling_sequence", GENERAL.SAMPLING_SEQUENCE, str),
    ("sampling_top_k", GENERAL.SAMPLING_TOP_K, int),
    ("sampling_top_p", GENERAL.SAMPLING_TOP_P, float),
    ("sampling_min_p", GENERAL.SAMPLING_MIN_P, float),
    ("sampling_xtc_probability", GENERAL.SAMPLING_XTC_PROBABILITY, float),
    ("sampling_xtc_threshold", GENERAL.SAMPLING_XTC_THRESHOLD, float),
    ("sampling_temp", GENERAL.SAMPLING_TEMP, float),
    ("sampling_penalty_last_n", GENERAL.SAMPLING_PENALTY_LAST_N, int),
    ("sampling_penalty_repeat", GENERAL.SAMPLING_PENALTY_REPEAT, float),
    ("sampling_mirostat", GENERAL.SAMPLING_MIROSTAT, int),
    ("sampling_mirostat_tau", GENERAL.SAMPLING_MIROSTAT_TAU, float),
    ("sampling_mirostat_eta", GENERAL.SAMPLING_MIROSTAT_ETA, float),
)
AUTHORSHIP_KEYS = (
    ("name", GENERAL.NAME),
    ("author", GENERAL.AUTHOR),
    ("version", GENERAL.VERSION),
    ("organization", GENERAL.ORGANIZATION),
    ("finetune", GENERAL.FINETUNE),
    ("basename", GENERAL.BASENAME),
    ("description", GENERAL.DESCRIPTION),
    ("quantized_by", GENERAL.QUANTIZED_BY),
    ("size_label", GENERAL.SIZE_LABEL),
    ("license", GENERAL.LICENSE),
    ("license_name", GENERAL.LICENSE_NAME),
    ("license_link", GENERAL.LICENSE_LINK),
    ("url", GENERAL.URL),
    ("doi", GENERAL.DOI),
    ("uuid", GENERAL.UUID),
    ("repo_url", GENERAL.REPO_URL),
    ("source_url", GENERAL.SOURCE_URL),
    ("source_doi", GENERAL.SOURCE_DOI),
    ("source_uuid", GENERAL.SOURCE_UUID),
    ("source_repo_url", GENERAL.SOURCE_REPO_URL),
)
# The fields of one base model or data set, in order; the key is general.base_model.{id}.FIELD.
ORIGIN_FIELDS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")

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
    """The general.* keys that the model card gives; card is hf.model_card.read_model_card's."""
    for field, key, kind in SAMPLING_KEYS:
        if field in card:
            yield sampling_pair(key, kind, card[field])
    for field, key in AUTHORSHIP_KEYS:
        if as_text(card.get(field, "")):  # llama.cpp's converter leaves out what is empty
            yield text(key, as_text(card[field]))
    yield from origin_pairs("general.base_model", card.get("base_models"))
    yield from origin_pairs("general.dataset", card.get("datasets"))
    for field, key in (("tags", GENERAL.TAGS), ("languages", GENERAL.LANGUAGES)):
        if card.get(field):
            yield texts(key, [str(item) for item in card[field]])


def sampling_pair(key: str, kind: Scalar, value: Any) -> MetadataPair:
    """A setting of generation_config.json; raises CheckpointError when it is not a number (or text) as it should be."""
    try:
        converted = kind(value)
        if converted != value:
            raise ValueError(f"{value!r} is no {kind.__name__}")  # noqa: TRY301  # 1.5 for a count, "1" for a number
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            Problem(
                f"{key} is not usable",
                where="generation_config.json (or the --metadata file)",
                expected={int: "a whole number", float: "a number", str: "a text"}[kind],
                found=repr(value),
            )
        ) from error
    if isinstance(converted, str):
        return text(key, converted)
    return i32(key, converted) if isinstance(converted, int) else f32(key, converted)


def as_text(value: Any) -> str:
    """A value of hand-written YAML as text: 4 is "4", several licenses are joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def origin_pairs(prefix: str, origins: list[Mapping[str, Any]] | None) -> Iterator[MetadataPair]:
    """The numbered entries of base models or data sets, and their count."""
    if origins is None:
        return
    yield u32(f"{prefix}.count", len(origins))
    for index, origin in enumerate(origins):
        for field in ORIGIN_FIELDS:
            if field in origin:
                yield text(f"{prefix}.{index}.{field}", as_text(origin[field]))


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
    special = vocabulary.special
    for key, token_id in (
        (tokenizer.BOS_ID, special.bos),
        (tokenizer.EOS_ID, special.eos),
        (tokenizer.EOT_ID, special.eot),
        (tokenizer.UNK_ID, special.unk),
        (tokenizer.SEP_ID, special.sep),
        (tokenizer.PAD_ID, special.pad),
        (tokenizer.MASK_ID, special.mask),
    ):
        if token_id is not None:
            yield u32(key, token_id)
    yield boolean(tokenizer.ADD_BOS, vocabulary.add_bos)
    yield boolean(tokenizer.ADD_EOS, vocabulary.add_eos)
    named = {re.sub(r"[^A-Za-z0-9]", "_", name): template for name, template in vocabulary.named_templates.items()}
    for name, template in named.items():
        yield text(tokenizer.CHAT_TEMPLATE_N.format(name=name), template)
    if named:
        yield texts(tokenizer.CHAT_TEMPLATES, list(named))
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
