"""Header bytes from typed pairs and tensor entries: GGUF version 3, little-endian.

The bytes are those that gguf-py's GGUFWriter gives for the same pairs and tensors, but for what it
drops: empty strings are written here. Tensor data is not this module's business; every offset is known
from the entries, so that data can be written by position, in any order.

Without tensors there is no data section and the header is not padded, as in the vocabulary-only files
of llama.cpp's converter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType, Keys

from phi4conv.gguf_file.layout import (
    FLOAT_TYPES,
    MAX_DIMENSIONS,
    MAX_TENSOR_NAME_BYTES,
    SCALAR_FORMATS,
    InnerArray,
    MetadataPair,
    Numbers,
    TensorEntry,
    padded,
)

# The layout that this module writes; a newer GGUF_VERSION in `gguf` would be another layout.
WRITTEN_VERSION = 3


@dataclass(frozen=True)
class Header:
    """Everything ahead of the tensor data, and where the data go."""

    data: bytes  # padded to the start of the data section
    tensors: tuple[TensorEntry, ...]
    size_bytes: int  # of the whole file: each tensor, the last one too, is padded to the alignment

    @property
    def data_offset(self) -> int:
        """Start of the data section in bytes from the start of the file."""
        return len(self.data)

    def position(self, entry: TensorEntry) -> int:
        """Where the tensor's data start, in bytes from the start of the file."""
        return self.data_offset + entry.offset


def encode_header(
    pairs: Iterable[MetadataPair],
    tensors: Iterable[tuple[str, Sequence[int], GGMLQuantizationType]],
    alignment: int = GGUF_DEFAULT_ALIGNMENT,
) -> Header:
    """Encode metadata pairs and a tensor table, giving every tensor its place.

    tensors: name, shape in numpy order, type; data follow in this order. alignment: bytes; one that is
    not the default needs its general.alignment pair.

    Raises ValueError, naming the key or tensor, for a value that does not fit its type, a repeated
    name, or a tensor that ggml could not hold.
    """
    pairs = tuple(pairs)
    _check_alignment(pairs, alignment)
    entries, data_size = _place(tensors, alignment)
    _refuse_repeats("metadata key", [pair.key for pair in pairs])
    _refuse_repeats("tensor", [entry.name for entry in entries])

    header = bytearray(struct.pack("<IIQQ", GGUF_MAGIC, WRITTEN_VERSION, len(entries), len(pairs)))
    for pair in pairs:
        header += _encode_pair(pair)
    for entry in entries:
        header += _encode_entry(entry)
    if entries:
        header += bytes(padded(len(header), alignment) - len(header))
    return Header(bytes(header), entries, len(header) + data_size)


def _place(
    tensors: Iterable[tuple[str, Sequence[int], GGMLQuantizationType]], alignment: int
) -> tuple[tuple[TensorEntry, ...], int]:
    """Tensor entries one behind the other, and the size of the data section in bytes."""
    entries, offset = [], 0
    for name, shape, qtype in tensors:
        entry = TensorEntry(name, tuple(int(length) for length in shape), qtype, offset)
        _check_entry(entry)
        entries.append(entry)
        offset += padded(entry.size_bytes, alignment)
    return tuple(entries), offset


def _check_alignment(pairs: tuple[MetadataPair, ...], alignment: int) -> None:
    if alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment} is no power of two")
    told = next((pair for pair in pairs if pair.key == Keys.General.ALIGNMENT), None)
    if told is None and alignment != GGUF_DEFAULT_ALIGNMENT:
        raise ValueError(f"alignment {alignment} needs a {Keys.General.ALIGNMENT} pair")
    if told is not None and (told.type != GGUFValueType.UINT32 or told.value != alignment):
        raise ValueError(
            f"{Keys.General.ALIGNMENT}: {told.value!r} ({told.type.name}), but the alignment is {alignment}"
        )


def _check_entry(entry: TensorEntry) -> None:
    """Raise ValueError for a tensor that llama.cpp would refuse to load."""
    problem = None
    row = entry.shape[-1] if entry.shape else 0
    if not isinstance(entry.qtype, GGMLQuantizationType):
        problem = f"tensor type {entry.qtype!r} is not known"
    elif not 1 <= len(entry.shape) <= MAX_DIMENSIONS or min(entry.shape) < 1 or entry.weight_count >= 1 << 63:
        problem = f"shape {entry.shape} is not 1 to {MAX_DIMENSIONS} lengths above zero"
    elif row % GGML_QUANT_SIZES[entry.qtype][0]:
        problem = f"rows of {row} weights are no multiple of {entry.type_name}'s block"
    elif len(_utf8(entry.name, entry.name)) > MAX_TENSOR_NAME_BYTES:
        problem = f"the name is longer than {MAX_TENSOR_NAME_BYTES} bytes"
    if problem:
        raise ValueError(f"{entry.name}: {problem}")


def _refuse_repeats(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise ValueError(f"a {what} is empty")
        if name in seen:
            raise ValueError(f"{name}: this {what} comes twice")
        seen.add(name)


def _encode_entry(entry: TensorEntry) -> bytes:
    dimensions = entry.shape[::-1]
    fields = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, entry.qtype, entry.offset)
    return _string(entry.name, entry.name) + fields


def _encode_pair(pair: MetadataPair) -> bytes:
    start = _string(pair.key, pair.key) + struct.pack("<I", pair.type)
    if pair.type == GGUFValueType.ARRAY:
        if pair.item_type is None:
            raise ValueError(f"{pair.key}: an array needs an item_type")
        return start + _array(pair.key, pair.item_type, pair.value)
    if pair.item_type is not None:
        raise ValueError(f"{pair.key}: only arrays have an item_type")
    if pair.type == GGUFValueType.STRING:
        return start + _string(pair.key, pair.value)
    return start + _scalars(pair.key, pair.type, (pair.value,))


def _array(key: str, item_type: GGUFValueType, items: Any) -> bytes:
    if not isinstance(items, Sequence) or isinstance(items, (str, bytes)):
        raise ValueError(f"{key}: an array needs a sequence, not {type(items).__name__}")  # noqa: TRY004
    if item_type == GGUFValueType.STRING:
        body = b"".join(_string(key, item) for item in items)
    elif item_type == GGUFValueType.ARRAY:
        body = b"".join(_inner_array(key, item) for item in items)
    else:
        body = _scalars(key, item_type, items)
    return struct.pack("<IQ", item_type, len(items)) + body


def _inner_array(key: str, item: Any) -> bytes:
    if not isinstance(item, InnerArray):
        raise ValueError(f"{key}: an array of arrays holds InnerArray, not {type(item).__name__}")  # noqa: TRY004
    return _array(key, item.item_type, item.items)


def _scalars(key: str, value_type: GGUFValueType, values: Sequence[Any]) -> bytes:
    """Numbers or booleans one behind the other."""
    format_ = SCALAR_FORMATS[value_type]
    if isinstance(values, Numbers) and values.values.dtype == _array_dtype(value_type):
        return values.values.astype(np.dtype(format_).newbyteorder("<")).tobytes()
    accepted = _accepted_types(value_type)
    for value in values:
        # To Python a bool is an int; in a file it is a type of its own.
        if not isinstance(value, accepted) or (isinstance(value, bool) and value_type != GGUFValueType.BOOL):
            raise ValueError(f"{key}: {value!r} is no {value_type.name}")
    try:
        return struct.pack(f"<{len(values)}{format_}", *values)
    except (struct.error, OverflowError) as error:
        misfit = next(value for value in values if not _fits(format_, value))
        raise ValueError(f"{key}: {misfit!r} does not fit {value_type.name}") from error


def _accepted_types(value_type: GGUFValueType) -> tuple[type, ...]:
    if value_type == GGUFValueType.BOOL:
        return (bool, np.bool_)
    if value_type in FLOAT_TYPES:
        return (int, float, np.integer, np.floating)
    return (int, np.integer)


def _array_dtype(value_type: GGUFValueType) -> np.dtype[Any]:
    """The dtype of Numbers that the reader makes of this type."""
    return np.dtype(np.bool_ if value_type == GGUFValueType.BOOL else SCALAR_FORMATS[value_type])


def _fits(format_: str, value: Any) -> bool:
    try:
        struct.pack(f"<{format_}", value)
    except (struct.error, OverflowError):
        return False
    return True


def _string(key: str, value: Any) -> bytes:
    encoded = _utf8(key, value)
    return struct.pack("<Q", len(encoded)) + encoded


def _utf8(key: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{key}: {value!r} is no string")  # noqa: TRY004  # the module's one kind of refusal
    try:
        # surrogateescape: strings that were read with it give back the bytes that they had in their file.
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{key}: {value!r} cannot be written as UTF-8") from error
