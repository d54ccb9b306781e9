"""What `phi4conv inspect` tells of a GGUF: a summary of the header as plain values.

It reports what the file says and what breaks the format; whether a Phi-4 should say so is for `check`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType, Keys, LlamaFileType, TokenType

from phi4conv.gguf_file.layout import GGUFFile, InnerArray, LazyStrings, MetadataPair, Numbers, TensorEntry

# Arrays up to this length are complete in the JSON document; of longer ones it has the first items.
LISTED_ITEMS = 32
FIRST_ITEMS = 8

_TOKENIZER = "tokenizer.ggml."
_TOKEN_ID = "_token_id"  # noqa: S105  # the end of a metadata key


@dataclass(frozen=True)
class TensorTypeSummary:
    """The tensors of one type."""

    name: str
    tensor_count: int
    weight_count: int
    size_bytes: int  # without padding


@dataclass(frozen=True)
class SpecialToken:
    """A token that a metadata key names by its id."""

    role: str  # "bos" of tokenizer.ggml.bos_token_id
    id: int
    text: str | None  # None when the vocabulary has no such id


@dataclass(frozen=True)
class VocabularySummary:
    """The tokenizer as the metadata tell it; None and 0 where they do not."""

    model: str | None
    pre: str | None
    token_count: int
    token_types: Mapping[str, int]  # name → how many tokens
    merge_count: int
    special: tuple[SpecialToken, ...]
    add_bos: bool | None
    add_eos: bool | None
    chat_template_length: int | None  # characters
    extra_templates: tuple[str, ...]  # names of the templates beside the default one


@dataclass(frozen=True)
class Inspection:
    """A GGUFFile and what can be counted in it."""

    file: GGUFFile
    file_type: str | None  # general.file_type by name, such as Q4_K_M
    tensor_types: tuple[TensorTypeSummary, ...]  # largest first
    general: tuple[MetadataPair, ...]
    hyperparameters: tuple[MetadataPair, ...]  # of the architecture
    vocabulary: VocabularySummary | None
    other: tuple[MetadataPair, ...]  # pairs that none of the above shows

    @property
    def weight_count(self) -> int:
        """Weights in all tensors: the parameter count that llama.cpp prints."""
        return sum(kind.weight_count for kind in self.tensor_types)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors without padding."""
        return sum(kind.size_bytes for kind in self.tensor_types)

    @property
    def bits_per_weight(self) -> float | None:
        """Tensor bits divided by weights, as llama.cpp counts BPW; None without weights."""
        return self.tensor_bytes * 8 / self.weight_count if self.weight_count else None


def summarise(file: GGUFFile) -> Inspection:
    """Count and sort what the header says."""
    architecture = file.architecture
    groups: dict[str, list[MetadataPair]] = {"general": [], "architecture": [], "other": []}
    for key, pair in file.metadata.items():
        if key.startswith("general."):
            groups["general"].append(pair)
        elif architecture and key.startswith(f"{architecture}."):
            groups["architecture"].append(pair)
        elif not _in_vocabulary_summary(pair):
            groups["other"].append(pair)
    return Inspection(
        file=file,
        file_type=file_type_name(file.number(Keys.General.FILE_TYPE)),
        tensor_types=_summarise_types(file.tensors),
        general=tuple(groups["general"]),
        hyperparameters=tuple(groups["architecture"]),
        vocabulary=_summarise_vocabulary(file),
        other=tuple(groups["other"]),
    )


def file_type_name(number: float | None) -> str | None:
    """The name of a general.file_type, without the "mostly" that each one carries.

    >>> file_type_name(15), file_type_name(0), file_type_name(9999)
    ('Q4_K_M', 'F32', None)
    """
    known = next((kind for kind in LlamaFileType if kind == number), None)
    return known.name.removeprefix("MOSTLY_").removeprefix("ALL_") if known is not None else None


def _summarise_types(tensors: Sequence[TensorEntry]) -> tuple[TensorTypeSummary, ...]:
    by_name: dict[str, list[TensorEntry]] = {}
    for entry in tensors:
        by_name.setdefault(entry.type_name, []).append(entry)
    kinds = [
        TensorTypeSummary(
            name,
            len(entries),
            sum(entry.weight_count for entry in entries),
            sum(entry.size_bytes for entry in entries),
        )
        for name, entries in by_name.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: kind.size_bytes, reverse=True))


def _in_vocabulary_summary(pair: MetadataPair) -> bool:
    keys = Keys.Tokenizer
    shown = {keys.MODEL, keys.PRE, keys.LIST, keys.TOKEN_TYPE, keys.MERGES, keys.ADD_BOS, keys.ADD_EOS}
    return pair.key in shown or _special_role(pair) is not None or pair.key.startswith(keys.CHAT_TEMPLATE)


def _special_role(pair: MetadataPair) -> str | None:
    is_id = pair.key.startswith(_TOKENIZER) and pair.key.endswith(_TOKEN_ID) and isinstance(pair.value, int)
    return pair.key[len(_TOKENIZER) : -len(_TOKEN_ID)] if is_id else None


def _summarise_vocabulary(file: GGUFFile) -> VocabularySummary | None:
    keys = Keys.Tokenizer
    tokens = file.strings(keys.LIST)
    if not tokens and keys.MODEL not in file.metadata:
        return None
    template = file.text(keys.CHAT_TEMPLATE)
    return VocabularySummary(
        model=file.text(keys.MODEL),
        pre=file.text(keys.PRE),
        token_count=len(tokens),
        token_types=_count_token_types(file.integers(keys.TOKEN_TYPE)),
        merge_count=len(file.strings(keys.MERGES)),
        special=tuple(_special_tokens(file, tokens)),
        add_bos=file.flag(keys.ADD_BOS),
        add_eos=file.flag(keys.ADD_EOS),
        chat_template_length=None if template is None else len(template),
        extra_templates=_extra_templates(file),
    )


def _special_tokens(file: GGUFFile, tokens: Sequence[str]) -> list[SpecialToken]:
    found = []
    for pair in file.metadata.values():
        role = _special_role(pair)
        if role is not None:
            text = tokens[pair.value] if 0 <= pair.value < len(tokens) else None
            found.append(SpecialToken(role, int(pair.value), text))
    return found


def _count_token_types(types: Sequence[int]) -> dict[str, int]:
    names = {int(kind): kind.name for kind in TokenType}
    numbers, counts = np.unique(np.asarray(types, dtype=object if not len(types) else None), return_counts=True)
    return {
        names.get(number, f"type {number}"): count
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }


def _extra_templates(file: GGUFFile) -> tuple[str, ...]:
    prefix = f"{Keys.Tokenizer.CHAT_TEMPLATE}."
    return tuple(key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix))


def shown_value(pair: MetadataPair) -> str:
    """A pair's value for people; of an array the length and the first items.

    >>> from phi4conv.gguf_file import layout
    >>> shown_value(layout.f32("phi3.attention.layer_norm_rms_epsilon", 1e-5))
    '1e-05'
    >>> shown_value(layout.texts("general.languages", ["en"]))
    '[1] en'
    """
    if pair.type == GGUFValueType.ARRAY:
        kind = pair.item_type
        first = ", ".join(_shown_scalar(item, kind) for item in pair.value[:FIRST_ITEMS])
        return f"[{len(pair.value):,}] {first}{', …' if len(pair.value) > FIRST_ITEMS else ''}"
    return _shown_scalar(pair.value, pair.type)


def _shown_scalar(value: Any, kind: GGUFValueType | None) -> str:
    if isinstance(value, InnerArray):
        return f"[{len(value.items):,}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if kind == GGUFValueType.FLOAT32:
        return str(np.float32(value))  # as few digits as tell it from its neighbours
    return str(value)


def as_document(inspection: Inspection) -> dict[str, Any]:
    """The content of the `phi4conv.inspect/1` document, made of JSON's types only.

    Bytes that are no UTF-8 appear as U+FFFD and are among the defects; NaN and infinities are strings.
    Tensor offsets count from data_offset, in bytes.
    """
    file = inspection.file
    bits = inspection.bits_per_weight
    return {
        "file": json_value(str(file.path)),
        "size_bytes": file.file_size,
        "version": file.version,
        "byte_order": file.byte_order,
        "alignment": file.alignment,
        "data_offset": file.data_offset,
        "header_complete": file.header_complete,
        "architecture": json_value(file.architecture),
        "file_type": inspection.file_type,
        "weights": inspection.weight_count,
        "tensor_bytes": inspection.tensor_bytes,
        "bits_per_weight": None if bits is None else round(bits, 4),
        "tensor_types": [
            {
                "type": kind.name,
                "tensors": kind.tensor_count,
                "weights": kind.weight_count,
                "size_bytes": kind.size_bytes,
            }
            for kind in inspection.tensor_types
        ],
        "vocabulary": _vocabulary_document(inspection.vocabulary),
        "metadata": metadata_document(file.metadata.values()),
        "tensors": [
            {
                "name": json_value(entry.name),
                "shape": list(entry.shape),
                "type": entry.type_name,
                "offset": entry.offset,
                "size_bytes": entry.size_bytes,
            }
            for entry in file.tensors
        ],
        "defects": [
            {"code": flaw.code, "message": flaw.message, "where": json_value(flaw.where), "offset": flaw.offset}
            for flaw in file.defects
        ],
    }


def _vocabulary_document(vocabulary: VocabularySummary | None) -> dict[str, Any] | None:
    if vocabulary is None:
        return None
    return {
        "model": json_value(vocabulary.model),
        "pre": json_value(vocabulary.pre),
        "tokens": vocabulary.token_count,
        "token_types": dict(vocabulary.token_types),
        "merges": vocabulary.merge_count,
        "special": [
            {"role": json_value(token.role), "id": token.id, "text": json_value(token.text)}
            for token in vocabulary.special
        ],
        "add_bos": vocabulary.add_bos,
        "add_eos": vocabulary.add_eos,
        "chat_template_length": vocabulary.chat_template_length,
        "extra_templates": json_value(vocabulary.extra_templates),
    }


def metadata_document(pairs: Iterable[MetadataPair]) -> dict[str, Any]:
    """Metadata for a JSON document: by key the type and the value, of a long array the length and the first items.

    >>> from phi4conv.gguf_file import layout
    >>> metadata_document([layout.u32("phi3.block_count", 40)])
    {'phi3.block_count': {'type': 'UINT32', 'value': 40}}
    """
    return {json_value(pair.key): _pair_document(pair) for pair in pairs}


def _pair_document(pair: MetadataPair) -> dict[str, Any]:
    if pair.type != GGUFValueType.ARRAY:
        return {"type": pair.type.name, "value": json_value(pair.value)}
    document: dict[str, Any] = {"type": pair.type.name, "item_type": None, "length": len(pair.value)}
    if pair.item_type is not None:
        document["item_type"] = pair.item_type.name
    if len(pair.value) <= LISTED_ITEMS:
        return {**document, "value": json_value(pair.value)}
    return {**document, "first": json_value(pair.value[:FIRST_ITEMS])}


def json_value(value: Any) -> Any:
    """A metadata value in JSON's types: bad bytes as U+FFFD, NaN and infinities as strings, inner arrays cut short."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, InnerArray):
        kind = value.item_type.name
        return {"item_type": kind, "length": len(value.items), "first": json_value(value.items[:FIRST_ITEMS])}
    if isinstance(value, (list, tuple, LazyStrings, Numbers)):
        return [json_value(item) for item in value]
    return value
