"""KEY=VALUE from a command line as a metadata pair, typed as the key is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType
from gguf.constants import Keys

from phi4conv.check.value_types import SCALAR_TYPES
from phi4conv.gguf_file.edit import Change
from phi4conv.gguf_file.layout import FLOAT_TYPES, INTEGER_TYPES, GGUFFile, MetadataPair, f32, f32s
from phi4conv.gguf_file.write import encode_header
from phi4conv.phi3.metadata import tokenizer_pairs
from phi4conv.vocab import Vocabulary

# A value that does not fit is shown so far.
SHOWN_VALUE = 80

# Types of scalars that users set and that a file may lack, or have in a type that llama.cpp does not take.
KNOWN_TYPES: Mapping[str, GGUFValueType] = {
    **SCALAR_TYPES,
    Keys.Tokenizer.CHAT_TEMPLATE: GGUFValueType.STRING,
    **dict.fromkeys(
        (
            Keys.General.AUTHOR,
            Keys.General.VERSION,
            Keys.General.ORGANIZATION,
            Keys.General.BASENAME,
            Keys.General.FINETUNE,
            Keys.General.DESCRIPTION,
            Keys.General.QUANTIZED_BY,
            Keys.General.SIZE_LABEL,
            Keys.General.LICENSE,
            Keys.General.LICENSE_NAME,
            Keys.General.LICENSE_LINK,
            Keys.General.URL,
            Keys.General.REPO_URL,
        ),
        GGUFValueType.STRING,
    ),
    **dict.fromkeys(
        (
            Keys.General.FILE_TYPE,
            Keys.General.QUANTIZATION_VERSION,
            Keys.LLM.BLOCK_COUNT,
            Keys.LLM.CONTEXT_LENGTH,
            Keys.LLM.EMBEDDING_LENGTH,
            Keys.LLM.FEED_FORWARD_LENGTH,
            Keys.Attention.HEAD_COUNT,
            Keys.Attention.HEAD_COUNT_KV,
            Keys.Attention.KEY_LENGTH,
            Keys.Attention.VALUE_LENGTH,
            Keys.Attention.SLIDING_WINDOW,
            Keys.Rope.SCALING_ORIG_CTX_LEN,
            Keys.Rope.DIMENSION_COUNT,
        ),
        GGUFValueType.UINT32,
    ),
    **dict.fromkeys(
        (
            Keys.Attention.LAYERNORM_RMS_EPS,
            Keys.Rope.FREQ_BASE,
            Keys.Rope.SCALING_FACTOR,
            Keys.Rope.SCALING_ATTN_FACTOR,
        ),
        GGUFValueType.FLOAT32,
    ),
    Keys.Rope.SCALING_TYPE: GGUFValueType.STRING,
}


class SettingError(ValueError):
    """A KEY=VALUE that fits no key; the message says which."""


# What a file is, other keys and tensors follow from: another value would make another, broken file of it.
FIXED_KEYS = frozenset({Keys.General.ARCHITECTURE, Keys.General.ALIGNMENT})


def parse_setting(setting: str, file: GGUFFile, vocabulary: Vocabulary) -> Change:
    """KEY=VALUE as a change, typed as llama.cpp reads the key, as the file's key is, or as phi4conv would write it.

    A JSON list is no scalar: where llama.cpp takes a value for each layer, the file's array can be set to another.

    Raises:
        SettingError: It has no "=", its key is not known or must stay, or its value does not fit.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise SettingError(f"{setting!r} is not KEY=VALUE")
    if key in FIXED_KEYS:
        raise SettingError(f"{key}: the tensors and the other keys depend on it")
    like = file.metadata.get(key) or {pair.key: pair for pair in tokenizer_pairs(vocabulary)}.get(key)
    kind = KNOWN_TYPES.get(key.replace(f"{file.architecture}.", "{arch}.", 1))
    if kind is not None and (like is None or (like.type != kind and not value.startswith("["))):
        like = MetadataPair(key, kind, None)
    if like is None:
        raise SettingError(f"{key}: the file has no such key, and phi4conv does not know its type")
    return Change(key, typed(key, value, like))


def typed(key: str, value: str, like: MetadataPair) -> MetadataPair:
    """A pair of the type of another one; an array is given in JSON.

    >>> typed("a", "7", MetadataPair("a", GGUFValueType.UINT32, 0)).value
    7
    """
    kind = like.type
    try:
        value.encode()  # a shell passes on bytes that are no UTF-8, and JSON half of a surrogate pair
        new = tuple(json_list(value, like)) if kind == GGUFValueType.ARRAY else scalar(value, kind)
        pair = MetadataPair(key, kind, new, like.item_type)
        require_fitting(pair)
    except UnicodeEncodeError as error:
        raise SettingError(f"{key}: {value!r} is not UTF-8") from error
    except ValueError as error:
        kinds = kind.name if like.item_type is None else f"ARRAY of {like.item_type.name}"
        raise SettingError(f"{key}: {value[:SHOWN_VALUE]!r} is no {kinds}: {error}") from error
    return pair


def require_fitting(pair: MetadataPair) -> None:
    """Raise ValueError for a number that its type cannot hold."""
    try:
        encode_header([pair], ())
    except ValueError as error:
        raise ValueError("too large or too small") from error


def scalar(value: str, kind: GGUFValueType) -> Any:
    """A value of a scalar type."""
    if kind == GGUFValueType.STRING:
        return value
    if kind == GGUFValueType.BOOL:
        if value.lower() not in {"true", "false"}:
            raise ValueError("expected true or false")
        return value.lower() == "true"
    try:
        number = int(value) if kind in INTEGER_TYPES else float(value)
    except ValueError as error:
        raise ValueError("expected a number" if kind in FLOAT_TYPES else "expected a whole number") from error
    return f32("the value", number).value if kind == GGUFValueType.FLOAT32 else number


def json_list(value: str, like: MetadataPair) -> list[Any]:
    """The items of an array given in JSON, each of the array's type."""
    try:
        items = json.loads(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    kinds: dict[GGUFValueType, tuple[type, ...]] = {
        GGUFValueType.STRING: (str,),
        GGUFValueType.BOOL: (bool,),
        **dict.fromkeys(INTEGER_TYPES, (int,)),
        **dict.fromkeys(FLOAT_TYPES, (int, float)),
    }
    item_type = GGUFValueType.ARRAY if like.item_type is None else like.item_type
    # Not isinstance: to Python true is a number.
    if not isinstance(items, list) or not all(type(item) in kinds.get(item_type, ()) for item in items):
        raise ValueError(f"expected a JSON list of {item_type.name}")
    for text in items if item_type == GGUFValueType.STRING else ():
        text.encode()
    if item_type == GGUFValueType.FLOAT32:
        return list(f32s("value", items).value)
    return items
