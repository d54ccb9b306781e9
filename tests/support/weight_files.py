"""GGUF files in memory, to be changed and written again: pairs by key, tensors by name, both in file order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.gguf_file.layout import MetadataPair
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import gguf_rows
from phi4conv.gguf_file.write import encode_header
from phi4conv.quant import CODECS, QuantCodec, decode, encode
from phi4conv.rows import row_count


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as a file holds it.

    Attributes:
        shape: In numpy order.
        qtype: Its type.
        data: uint8 (rows, row bytes).
    """

    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    data: Bytes

    @property
    def codec(self) -> QuantCodec:
        """The type's codec."""
        return CODECS[self.qtype]

    @property
    def values(self) -> Floats:
        """The weights, decoded: float32 (rows, width)."""
        return decode(self.codec, self.data)


def encoded(values: Floats, shape: tuple[int, ...], qtype: GGMLQuantizationType) -> StoredTensor:
    """Weights as a tensor of this type; values: float32, as many as the shape has."""
    rows = np.ascontiguousarray(values, np.float32).reshape(row_count(shape), shape[-1])
    return StoredTensor(shape, qtype, encode(CODECS[qtype], rows))


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A file, and the weights that it was made from.

    Attributes:
        pairs: Metadata by key.
        tensors: By name.
        exact: The weights before they were quantized, float32 (rows, width), by name. A fault changes these and
            encodes them again, as a faulty converter would, and not what is left of them in the file.
    """

    pairs: Mapping[str, MetadataPair]
    tensors: Mapping[str, StoredTensor]
    exact: Mapping[str, Floats] = field(repr=False)

    def with_pairs(self, *pairs: MetadataPair) -> WeightFile:
        """The file with these pairs, in the place of those of the same keys or behind all others."""
        return replace(self, pairs={**self.pairs, **{pair.key: pair for pair in pairs}})

    def without_pairs(self, *keys: str) -> WeightFile:
        """The file without these keys, which must be there."""
        absent = set(keys) - set(self.pairs)
        if absent:
            raise ValueError(f"no keys {sorted(absent)}")
        return replace(self, pairs={key: pair for key, pair in self.pairs.items() if key not in keys})

    def with_tensor(self, name: str, tensor: StoredTensor) -> WeightFile:
        """The file with this tensor, in the place of the one of its name or behind all others."""
        return replace(self, tensors={**self.tensors, name: tensor})

    def without_tensors(self, *names: str) -> WeightFile:
        """The file without these tensors, which must be there."""
        absent = set(names) - set(self.tensors)
        if absent:
            raise ValueError(f"no tensors {sorted(absent)}")
        return replace(self, tensors={name: kept for name, kept in self.tensors.items() if name not in names})

    def with_values(self, name: str, values: Floats) -> WeightFile:
        """The file with other weights in a tensor, encoded in its type; values: as many as it has, in any shape.

        Rows that are those of the source keep their bytes.
        """
        old = self.tensors[name]
        expected = self.exact[name]
        rows = np.ascontiguousarray(values, np.float32).reshape(expected.shape)
        changed = (rows != expected).any(axis=1)
        data = old.data.copy()
        data[changed] = encode(old.codec, rows[changed])
        return self.with_tensor(name, replace(old, data=data))

    def with_bytes(self, name: str, data: Bytes) -> WeightFile:
        """The file with other bytes in a tensor; data: as many as it has, in any shape."""
        old = self.tensors[name]
        return self.with_tensor(name, replace(old, data=data.reshape(old.data.shape)))


def read_weight_file(path: Path, exact: Path | None = None) -> WeightFile:
    """A file with everything in it; exact is its twin of type F32, by default the file itself."""
    file = read_gguf(path)
    tensors = {
        name: StoredTensor(rows.shape, rows.qtype, rows.stored(0, row_count(rows.shape)))
        for name, rows in gguf_rows(file).items()
    }
    if exact is None or exact == path:
        weights = {name: tensor.values for name, tensor in tensors.items()}
    else:
        twin = gguf_rows(read_gguf(exact))
        weights = {name: twin[name].rows(0, row_count(twin[name].shape)) for name in tensors}
    return WeightFile(file.metadata, tensors, weights)


def write_weight_file(path: Path, pairs: Iterable[MetadataPair], tensors: Mapping[str, StoredTensor]) -> Path:
    """Write a file: every tensor in its order, each padded to the default alignment."""
    header = encode_header(pairs, [(name, tensor.shape, tensor.qtype) for name, tensor in tensors.items()])
    content = bytearray(header.size_bytes)
    content[: header.data_offset] = header.data
    for entry in header.tensors:
        start = header.position(entry)
        content[start : start + entry.size_bytes] = tensors[entry.name].data.tobytes()
    path.write_bytes(content)
    return path
