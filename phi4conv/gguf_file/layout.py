"""The parts of a GGUF file as plain values.

Numbers of value types, tensor types and blocks come from the `gguf` package. Nothing here reads or
writes a file; read.py makes a GGUFFile, write.py makes header bytes.

A file is: magic, version, tensor count, metadata count, the metadata pairs, the tensor table, padding
up to the alignment, and the data section (ggml's docs/gguf.md; llama.cpp's ggml/src/gguf.cpp).
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, Keys

ByteOrder = Literal["little", "big"]

# Formats of the `struct` module, which numpy understands too. A bool is one byte, 0 or 1.
SCALAR_FORMATS: Mapping[GGUFValueType, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "B",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
FLOAT_TYPES = frozenset({GGUFValueType.FLOAT32, GGUFValueType.FLOAT64})
INTEGER_TYPES = frozenset(SCALAR_FORMATS) - FLOAT_TYPES - {GGUFValueType.BOOL}

# llama.cpp's GGML_MAX_DIMS and GGML_MAX_NAME (ggml.h): a tensor name is at most 63 bytes.
MAX_DIMENSIONS = 4
MAX_TENSOR_NAME_BYTES = 63

_Item = TypeVar("_Item")


class _Items(Sequence[_Item]):
    """A read-only sequence that equals every other sequence (but a string) with the same items."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as for a list: equal to sequences that cannot be hashed

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | list[_Item]:
        if isinstance(index, slice):
            return [self._item(each) for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"no item {index} among {len(self)}")
        return self._item(index % len(self))

    def _item(self, index: int) -> _Item:
        raise NotImplementedError

    def __repr__(self) -> str:
        shown = ", ".join(repr(item) for item in self[:4])
        return f"<{len(self)} items: {shown}{', …' if len(self) > 4 else ''}>"


class LazyStrings(_Items[str]):
    """Strings of a metadata array, decoded when they are asked for.

    Bytes that are no UTF-8 appear as lone surrogates (`surrogateescape`), so that the writer can give
    back the same bytes.
    """

    def __init__(self, block: bytes, ends: array[int], prefix_bytes: int) -> None:
        """Take the array's bytes as they are in the file.

        block: every string preceded by prefix_bytes of length. ends: where each string stops in block.
        """
        self._block = block
        self._ends = ends
        self._prefix_bytes = prefix_bytes

    def __len__(self) -> int:
        return len(self._ends)

    def _item(self, index: int) -> str:
        start = (self._ends[index - 1] if index else 0) + self._prefix_bytes
        return self._block[start : self._ends[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        block, prefix, start = self._block, self._prefix_bytes, 0
        for end in self._ends:
            yield block[start + prefix : end].decode("utf-8", "surrogateescape")
            start = end

    def bad_utf8(self) -> list[int]:
        """Indices of the strings whose bytes are not UTF-8."""
        if not self._ends:
            return []
        block = np.frombuffer(self._block, dtype=np.uint8).copy()
        ends = np.frombuffer(self._ends, dtype=np.uint64).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        # With every length overwritten by NULs the strings can be tested at once: a NUL ends any
        # unfinished character, and no character continues after one.
        for byte in range(self._prefix_bytes):
            block[starts + byte] = 0
        try:
            block.tobytes().decode("utf-8")
        except UnicodeDecodeError:
            return [index for index, text in enumerate(self) if not is_utf8(text)]
        return []


class Numbers(_Items[Any]):
    """Numbers or booleans of a metadata array; items are Python's int, float or bool."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        """values: (items,), native byte order, np.bool_ for booleans."""
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def _item(self, index: int) -> Any:
        return self.values[index].item()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values.tolist())


@dataclass(frozen=True)
class InnerArray:
    """An array inside an array. The format allows it, llama.cpp refuses it."""

    item_type: GGUFValueType
    items: Sequence[Any]


@dataclass(frozen=True)
class MetadataPair:
    """A key with its typed value.

    value is an int, float, bool or str; for an ARRAY a sequence of them, or of InnerArray when
    item_type is ARRAY. Only arrays have an item_type.
    """

    key: str
    type: GGUFValueType
    value: Any
    item_type: GGUFValueType | None = None


def text(key: str, value: str) -> MetadataPair:
    """A STRING pair."""
    return MetadataPair(key, GGUFValueType.STRING, value)


def boolean(key: str, value: bool) -> MetadataPair:
    """A BOOL pair."""
    return MetadataPair(key, GGUFValueType.BOOL, value)


def u32(key: str, value: int) -> MetadataPair:
    """A UINT32 pair; the writer raises ValueError when the value does not fit."""
    return MetadataPair(key, GGUFValueType.UINT32, value)


def i32(key: str, value: int) -> MetadataPair:
    """An INT32 pair; the writer raises ValueError when the value does not fit."""
    return MetadataPair(key, GGUFValueType.INT32, value)


def u64(key: str, value: int) -> MetadataPair:
    """A UINT64 pair; the writer raises ValueError when the value does not fit."""
    return MetadataPair(key, GGUFValueType.UINT64, value)


def f32(key: str, value: float) -> MetadataPair:
    """A FLOAT32 pair holding the float32 nearest to value, which is what a file gives back.

    Raises ValueError when value is finite and too large for a float32.

    >>> f32("phi3.attention.layer_norm_rms_epsilon", 1e-5).value
    9.999999747378752e-06
    """
    return MetadataPair(key, GGUFValueType.FLOAT32, _as_float32(key, value))


def texts(key: str, values: Sequence[str]) -> MetadataPair:
    """An array of STRING."""
    return MetadataPair(key, GGUFValueType.ARRAY, tuple(values), GGUFValueType.STRING)


def i32s(key: str, values: Sequence[int]) -> MetadataPair:
    """An array of INT32."""
    return MetadataPair(key, GGUFValueType.ARRAY, tuple(values), GGUFValueType.INT32)


def f32s(key: str, values: Sequence[float]) -> MetadataPair:
    """An array of FLOAT32, each the nearest to its value; raises ValueError as f32 does."""
    rounded = tuple(_as_float32(key, value) for value in values)
    return MetadataPair(key, GGUFValueType.ARRAY, rounded, GGUFValueType.FLOAT32)


def _as_float32(key: str, value: float) -> float:
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError as error:
        raise ValueError(f"{key}: {value!r} is too large for FLOAT32") from error
    return float(rounded)


def is_utf8(decoded: str) -> bool:
    r"""Whether a string read with `surrogateescape` was UTF-8 in the file.

    >>> is_utf8("Ġa"), is_utf8("\udcff")
    (True, False)
    """
    try:
        decoded.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class TensorEntry:
    """A row of the tensor table. qtype is a bare int when `gguf` does not know the type."""

    name: str
    shape: tuple[int, ...]  # numpy order: the last axis is the row; the file stores it reversed
    qtype: GGMLQuantizationType | int
    offset: int  # bytes from the start of the data section

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the data without padding; 0 for a type that `gguf` does not know."""
        if not isinstance(self.qtype, GGMLQuantizationType):
            return 0
        block_weights, block_bytes = GGML_QUANT_SIZES[self.qtype]
        return self.weight_count // block_weights * block_bytes

    @property
    def type_name(self) -> str:
        """The type's name, such as Q4_K, or its number when `gguf` does not know it."""
        return self.qtype.name if isinstance(self.qtype, GGMLQuantizationType) else f"type {self.qtype}"


@dataclass(frozen=True)
class Defect:
    """Something in the file that breaks the format's rules; the codes are listed in read.py."""

    code: str
    message: str
    where: str  # a metadata key, a tensor name, or a part of the file such as "header"
    offset: int | None = None  # bytes from the start of the file


@dataclass(frozen=True)
class GGUFFile:
    """What a GGUF file says about itself, and what is wrong with it.

    When header_complete is False the header could not be read to its end: metadata and tensors hold
    what came before, and data_offset is the place where reading stopped.
    """

    path: Path
    version: int
    byte_order: ByteOrder
    alignment: int  # bytes
    metadata: Mapping[str, MetadataPair]  # in file order; the first of a repeated key
    tensors: tuple[TensorEntry, ...]  # in file order
    data_offset: int  # bytes from the start of the file; the end of the header when there are no tensors
    file_size: int  # bytes
    defects: tuple[Defect, ...]
    header_complete: bool

    def text(self, key: str) -> str | None:
        """The value of a STRING pair; None when the key is absent or has another type."""
        value = self._scalar(key, frozenset({GGUFValueType.STRING}))
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | float | None:
        """The value of an integer or float pair; None when the key is absent or has another type."""
        value = self._scalar(key, INTEGER_TYPES | FLOAT_TYPES)
        return value if isinstance(value, (int, float)) else None

    def flag(self, key: str) -> bool | None:
        """The value of a BOOL pair; None when the key is absent or has another type."""
        value = self._scalar(key, frozenset({GGUFValueType.BOOL}))
        return value if isinstance(value, bool) else None

    def strings(self, key: str) -> Sequence[str]:
        """The items of an array of STRING; empty when the key is absent or has another type."""
        return self._array(key, frozenset({GGUFValueType.STRING}))

    def integers(self, key: str) -> Sequence[int]:
        """The items of an array of any integer type; empty when the key is absent or has another type."""
        return self._array(key, INTEGER_TYPES)

    def floats(self, key: str) -> Sequence[float]:
        """The items of an array of a float type; empty when the key is absent or has another type."""
        return self._array(key, FLOAT_TYPES)

    def tensor(self, name: str) -> TensorEntry | None:
        """The first tensor of this name."""
        return next((entry for entry in self.tensors if entry.name == name), None)

    @property
    def architecture(self) -> str | None:
        """The value of general.architecture, which prefixes the hyper-parameters' keys."""
        return self.text(Keys.General.ARCHITECTURE)

    def _scalar(self, key: str, types: frozenset[GGUFValueType]) -> Any:
        pair = self.metadata.get(key)
        return pair.value if pair is not None and pair.type in types else None

    def _array(self, key: str, types: frozenset[GGUFValueType]) -> Sequence[Any]:
        pair = self.metadata.get(key)
        return pair.value if pair is not None and pair.item_type in types else ()


def padded(size: int, alignment: int) -> int:
    """The size rounded up to a multiple of the alignment.

    >>> padded(33, 32), padded(64, 32)
    (64, 64)
    """
    return -(-size // alignment) * alignment
