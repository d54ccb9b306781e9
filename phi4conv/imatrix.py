"""Importance matrices: how much each column of a tensor matters, as llama-imatrix measures it.

For every matrix a run of llama-imatrix sums the squares of the activations that each column is multiplied
with. Divided by the number of activations they weigh the errors that a quantization makes (ggml's
quant_weights). Two formats are read, and told apart by their first bytes:

- GGUF: `general.type` is "imatrix"; `imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`; for
  each tensor, in F32, NAME.in_sum2 (the sums) and NAME.counts (one number). The importance is their quotient,
  and 1 for every column where the count is 0.
- The older .dat, little-endian: the number of entries; for each the length of its name, the name, a number of
  calls, the number of values, and the values as float32, which are divided by the number of calls unless that
  is 0. Then, unless the file ends, the number of chunks, and the length and name of a data set.

The rules, and the order of float32 roundings that makes the bytes agree, are llama.cpp's: load_imatrix in
tools/quantize/quantize.cpp, common/imatrix-loader.cpp, and save_imatrix in tools/imatrix/imatrix.cpp.

Left out: matrices of experts, which Phi-4 does not have, and collecting an importance matrix.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUF_MAGIC, GGMLQuantizationType, GGUFType, Keys

from phi4conv.arrays import Floats
from phi4conv.errors import ConversionError, FormatError, Problem
from phi4conv.files import AtomicFile, PositionedReader
from phi4conv.gguf_file.layout import INTEGER_TYPES, GGUFFile, MetadataPair, text, texts, u32
from phi4conv.gguf_file.read import read_gguf, recognized
from phi4conv.gguf_file.rows import GGUFRows, gguf_rows
from phi4conv.gguf_file.write import encode_header
from phi4conv.plan import TensorPlan
from phi4conv.quant import CODECS
from phi4conv.quant.mix import TOKEN_EMBEDDING
from phi4conv.rows import row_count

SUMS = ".in_sum2"
COUNTS = ".counts"
REQUIRED_KEYS = (Keys.IMatrix.DATASETS, Keys.IMatrix.CHUNK_COUNT, Keys.IMatrix.CHUNK_SIZE)

# llama-quantize's keys (tools/quantize/quantize.cpp), which gguf-py does not name.
FILE_KEY = "quantize.imatrix.file"
DATASET_KEY = "quantize.imatrix.dataset"
ENTRIES_KEY = "quantize.imatrix.entries_count"
CHUNKS_KEY = "quantize.imatrix.chunks_count"
QUANTIZE_KEYS = frozenset({FILE_KEY, DATASET_KEY, ENTRIES_KEY, CHUNKS_KEY})

# Phi-4's matrix takes 5 MB. Bounds on what a damaged or foreign file can make the reader hold.
MOST_BYTES = 1 << 28
MOST_ENTRIES = 1 << 16
LONGEST_NAME = 1 << 10

# Types whose encoders make no use of importance here, though ggml's do.
LEGACY_TYPES = (
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_1,
)

DEFAULT_CHUNK_SIZE = 512
MAKE_AGAIN = "download the file again, or make one with llama-imatrix"


@dataclass(frozen=True, eq=False)
class ImportanceMatrix:
    """The entries of an importance matrix.

    Attributes:
        path: The file that it comes from, or that it is written to.
        weights: By GGUF tensor name, how much each column matters: float32 (width,), finite, none negative.
        datasets: The texts that it was measured on, as the file names them.
        chunk_count: On how many chunks of text; 0 when the file does not say.
    """

    path: Path
    weights: Mapping[str, Floats]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0

    def importance(self, name: str, width: int) -> Floats | None:
        """The importance of a tensor's columns, float32 (width,); None where the matrix has nothing to say.

        That is so without an entry, for one of token_embd with another width, and for an entry of zeros: a
        weighting that calls every column worthless cannot choose between roundings, and the tensor is encoded as
        if there were no entry.

        Raises:
            ConversionError: The entry has another width than the tensor.
        """
        weights = self.weights.get(name)
        if weights is None:
            return None
        if weights.shape != (width,) and name == TOKEN_EMBEDDING:
            return None  # as llama-quantize does for this tensor alone
        if weights.shape != (width,):
            raise ConversionError(
                Problem(
                    "the importance matrix does not fit the tensor",
                    where=f"{self.path}, {name}",
                    expected=f"{width:,} values, one for each column",
                    found=f"{len(weights):,} values",
                    next_step="use the importance matrix of this very model",
                )
            )
        return weights if weights.any() else None


def weigh(
    matrix: ImportanceMatrix, tensors: Sequence[TensorPlan], copied: Collection[str] = ()
) -> tuple[tuple[TensorPlan, ...], tuple[str, ...]]:
    """Give planned tensors their importance; returns them all, and what the user should know about some.

    Only tensors whose type makes use of it get one, for the others' bytes do not depend on it, and not those named
    in copied, whose bytes are there already. That a tensor outside of the layers has no entry is normal:
    llama-imatrix never measures token_embd, and output only with --process-output.

    Raises:
        ConversionError: There are no tensors; an entry has another width than its tensor; or not one entry
            belongs to a tensor.
    """
    planned = {tensor.name: tensor for tensor in tensors}
    strangers = [name for name in matrix.weights if name not in planned]
    if len(strangers) == len(matrix.weights):
        raise ConversionError(of_another_model(matrix, tensors))
    found = {name: matrix.importance(name, tensor.shape[-1]) for name, tensor in planned.items()}
    encoded = [tensor for tensor in tensors if tensor.name not in copied]
    users = [tensor.name for tensor in encoded if CODECS[tensor.qtype].uses_importance]
    missing = [name for name in users if name not in matrix.weights and name.startswith("blk.")]
    useless = [name for name in users if name in matrix.weights and found[name] is None]
    unweighed = [tensor.name for tensor in encoded if found[tensor.name] is not None and tensor.qtype in LEGACY_TYPES]
    source = matrix.path.name
    warnings = []
    if not users:
        warnings.append(f"{source} changes nothing: no tensor is encoded as a type that makes use of importance")
    if missing:
        warnings.append(f"{source} has no entry for {counted(missing)}: encoded without importance")
    if useless:
        warnings.append(f"{source} has no usable values for {counted(useless)}: encoded without importance")
    if unweighed:
        warnings.append(
            f"{source} is not used for {counted(unweighed)}: of {', '.join(kind.name for kind in LEGACY_TYPES)} "
            "phi4conv writes the plain encoding, llama-quantize a weighed one"
        )
    if strangers:
        warnings.append(f"{source} has entries that match no tensor of this model: {counted(strangers)}")
    weighed = (replace(tensor, importance=found[tensor.name] if tensor.name in users else None) for tensor in tensors)
    return tuple(weighed), tuple(warnings)


def of_another_model(matrix: ImportanceMatrix, tensors: Sequence[TensorPlan]) -> Problem:
    """What to tell when no entry belongs to any tensor."""
    if not tensors:
        return Problem("no tensors that an importance matrix could apply to", "--imatrix", next_step="leave it out")
    return Problem(
        "the importance matrix is of another model",
        where=str(matrix.path),
        expected=f"entries named as this model's tensors, such as {tensors[-1].name}",
        found=counted(list(matrix.weights)),
        next_step="use the importance matrix of this very model",
    )


def counted(names: Sequence[str]) -> str:
    """How many there are, and the first.

    >>> counted(["blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]), counted(["output.weight"])
    ('2 tensors (blk.0.ffn_up.weight, …)', '1 tensor (output.weight)')
    """
    return f"{len(names)} tensors ({names[0]}, …)" if len(names) > 1 else f"1 tensor ({names[0]})"


def importance_pairs(matrix: ImportanceMatrix | None) -> tuple[MetadataPair, ...]:
    """How a quantized file tells of its importance matrix, if it has one: names, types and order are llama-quantize's.

    Of the matrix's path only the file's name is written, where llama-quantize writes the path as it was given:
    folders tell of the person who made a file, and nothing of the file.
    """
    if matrix is None:
        return ()
    pairs = [text(FILE_KEY, matrix.path.name)]
    if matrix.datasets:
        pairs.append(text(DATASET_KEY, matrix.datasets[0]))
    pairs.append(u32(ENTRIES_KEY, len(matrix.weights)))
    if matrix.chunk_count:
        pairs.append(u32(CHUNKS_KEY, matrix.chunk_count))
    return tuple(pairs)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix in either format, whatever its name ends with.

    Raises:
        FormatError: The file cannot be read, is no importance matrix, is damaged, holds negative or non-finite
            values, or holds matrices of experts.
    """
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no regular file" if path.exists() else "nothing of that name"
            raise FormatError(Problem("cannot read the importance matrix", str(path), "a file", found))
        reader = PositionedReader(path)
        size = reader.size
        if size > MOST_BYTES:
            raise refused(path, expected=f"at most {MOST_BYTES:,} bytes", found=f"{size:,} bytes")
        beginning = reader.read(0, min(size, 64))
        if beginning.startswith(GGUF_MAGIC.to_bytes(4, "little")):
            return from_gguf(read_gguf(path))
        if instead := recognized(beginning):
            raise refused(path, expected="an importance matrix of llama-imatrix", found=instead[0])
        return from_legacy(path, reader.read(0, size))
    except OSError as error:
        raise FormatError(
            Problem("cannot read the importance matrix", str(path), "a readable file", error.strerror or str(error))
        ) from error


def refused(path: Path, where: str = "", *, expected: str, found: str) -> FormatError:
    """The error for a file that is no importance matrix, or a damaged one."""
    place = f"{path}, {where}" if where else str(path)
    return FormatError(Problem("not a usable importance matrix", place, expected, found, MAKE_AGAIN))


def from_gguf(file: GGUFFile) -> ImportanceMatrix:
    """The importance matrix that a GGUF holds; raises FormatError as read_imatrix does."""
    kind = file.text(Keys.General.TYPE)
    if kind != GGUFType.IMATRIX:
        model = f"a model, of architecture {file.architecture}" if file.architecture else f"general.type {kind!r}"
        raise refused(file.path, expected=f"a GGUF with general.type {GGUFType.IMATRIX!r}", found=model)
    tensors = gguf_rows(file)
    absent = [key for key in REQUIRED_KEYS if key not in file.metadata]
    if absent:
        raise refused(file.path, expected=f"the keys {', '.join(REQUIRED_KEYS)}", found=f"no {', '.join(absent)}")
    sums = {name.removesuffix(SUMS): rows for name, rows in tensors.items() if name.endswith(SUMS)}
    counts = {name.removesuffix(COUNTS): rows for name, rows in tensors.items() if name.endswith(COUNTS)}
    for name in sorted(sums.keys() ^ counts.keys()):
        lone, other = (SUMS, COUNTS) if name in sums else (COUNTS, SUMS)
        raise refused(file.path, name, expected=f"both {SUMS} and {COUNTS}", found=f"{lone} without {other}")
    if not sums:
        raise refused(file.path, expected=f"tensors named *{SUMS} and *{COUNTS}", found="none")
    return ImportanceMatrix(
        file.path,
        {name: quotient(file.path, name, rows, counts[name]) for name, rows in sums.items()},
        tuple(file.strings(Keys.IMatrix.DATASETS)),
        whole_number(file, Keys.IMatrix.CHUNK_COUNT),
    )


def whole_number(file: GGUFFile, key: str) -> int:
    """The value of an integer key."""
    pair = file.metadata[key]
    if pair.type not in INTEGER_TYPES or not 0 <= pair.value < 1 << 32:
        raise refused(file.path, key, expected="a UINT32", found=f"{pair.type.name} {str(pair.value)[:20]}")
    return int(pair.value)


def quotient(path: Path, name: str, sums: GGUFRows, counts: GGUFRows) -> Floats:
    """One entry's importance, float32 (width,): sums divided by count, in float32."""
    for rows in (sums, counts):
        if rows.qtype != GGMLQuantizationType.F32:
            raise refused(path, rows.name, expected="F32", found=rows.qtype.name)
    if (matrices := row_count(counts.shape) * counts.shape[-1]) != 1 or row_count(sums.shape) != 1:
        raise refused(
            path,
            name,
            expected="one matrix: Phi-4 has no experts",
            found=f"{matrices:,} counts, and sums of the shape {sums.shape}",
        )
    count = float(counts.rows(0, 1)[0, 0])
    if not 0 <= count < 1 << 63:
        raise refused(path, counts.name, expected="a count", found=f"{count:g}")
    values = checked(path, name, sums.rows(0, 1)[0])
    activations = np.float32(np.floor(count + 0.5))  # lround, for what is not negative
    return values / activations if activations > 0 else np.ones_like(values)


def checked(path: Path, name: str, values: Floats) -> Floats:
    """The values, float32 (width,), when all are numbers that a sum of squares can give."""
    good = np.isfinite(values) & (values >= 0)
    if not good.all():
        column = int(np.argmin(good))
        where = f"{name}, column {column}"
        raise refused(path, where, expected="finite numbers, none negative", found=f"{values[column]:g}")
    return values


class LegacyCursor:
    """Walks through the bytes of the older format, and believes no length that the file is too short for."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def take(self, size: int, where: str) -> bytes:
        """The next size bytes.

        Raises:
            FormatError: The file does not have as many.
        """
        end = self.position + size
        if end > len(self.data):
            raise refused(
                self.path, where, expected=f"at least {end:,} bytes", found=f"{len(self.data):,} bytes: cut short"
            )
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, low: int, high: int, where: str) -> int:
        """An INT32 between low and high.

        Raises:
            FormatError: It is not, or the file ends.
        """
        (value,) = struct.unpack("<i", self.take(4, where))
        if not low <= value <= high:
            raise refused(
                self.path,
                f"{where} (byte {self.position - 4:,})",
                expected=f"a GGUF, or in the older format a number from {low:,} to {high:,}",
                found=f"{value:,}",
            )
        return int(value)

    @property
    def at_end(self) -> bool:
        """Whether all is read."""
        return self.position == len(self.data)


def from_legacy(path: Path, data: bytes) -> ImportanceMatrix:
    """The importance matrix that a .dat file holds; raises FormatError as read_imatrix does."""
    cursor = LegacyCursor(path, data)
    weights: dict[str, Floats] = {}
    entries = cursor.number(1, MOST_ENTRIES, "number of entries")
    for index in range(entries):
        where = f"entry {index + 1} of {entries}"
        length = cursor.number(1, LONGEST_NAME, f"{where}, length of its name")
        name = decoded_text(cursor.take(length, f"{where}, name"))
        if name in weights:
            raise refused(path, where, expected="every tensor once", found=f"{name} a second time")
        calls = cursor.number(0, (1 << 31) - 1, f"{where}, calls")
        count = cursor.number(1, MOST_BYTES // 4, f"{where}, number of values")
        values = np.frombuffer(cursor.take(4 * count, f"{where}, values"), "<f4").astype(np.float32)
        checked(path, name, values)
        weights[name] = values / np.float32(calls) if calls else values
    chunks = 0 if cursor.at_end else cursor.number(0, (1 << 31) - 1, "number of chunks")
    datasets: tuple[str, ...] = ()
    if not cursor.at_end:
        length = cursor.number(0, len(data), "length of the data set's name")
        dataset = decoded_text(cursor.take(length, "data set"))
        datasets = (dataset,) if dataset else ()
    return ImportanceMatrix(path, weights, datasets, chunks)


def decoded_text(data: bytes) -> str:
    """Bytes as text, up to the first NUL as C reads it; what is no UTF-8 becomes lone surrogates, as in a GGUF."""
    return data.split(b"\0")[0].decode("utf-8", "surrogateescape")


def write_imatrix(matrix: ImportanceMatrix, *, chunk_size: int = DEFAULT_CHUNK_SIZE, force: bool = False) -> None:
    """Write an importance matrix to its path as the GGUF that llama-imatrix writes, by name, each with a count of 1.

    Args:
        matrix: What to write, and where.
        chunk_size: Tokens in each chunk.
        force: Replace the file when it exists.

    Raises:
        OutputError: The file cannot be written.
        FormatError: A value is negative or not finite.
    """
    arrays: dict[str, Floats] = {}
    for name, weights in sorted(matrix.weights.items()):
        arrays[name + SUMS] = checked(matrix.path, name, np.ascontiguousarray(weights, np.float32))
        arrays[name + COUNTS] = np.ones(1, np.float32)
    pairs = (
        text(Keys.General.TYPE, GGUFType.IMATRIX),
        texts(Keys.IMatrix.DATASETS, matrix.datasets),
        u32(Keys.IMatrix.CHUNK_COUNT, matrix.chunk_count),
        u32(Keys.IMatrix.CHUNK_SIZE, chunk_size),
    )
    header = encode_header(pairs, [(name, array.shape, GGMLQuantizationType.F32) for name, array in arrays.items()])
    with AtomicFile(matrix.path, header.size_bytes, force=force) as file:
        file.writer.write_at(memoryview(header.data), 0)
        for entry in header.tensors:
            little: Any = arrays[entry.name].astype("<f4")
            file.writer.write_at(little.data, header.position(entry))
        file.writer.extend_to(header.size_bytes)
        file.commit()
