"""The tolerant reader: a GGUFFile plus every defect found.

It reads the header alone, never tensor data, and accepts what llama.cpp refuses wherever the bytes
still make sense. Where they do not (a length that cannot be, the end of the file) it returns what came
before. Versions 2 and 3 in both byte orders; version 1 (32-bit lengths) and unknown versions as far
as they go.

Defect codes, permanent once released:

    unsupported-version   neither 2 nor 3
    big-endian            readable, but not by llama.cpp on the usual machines
    truncated-header      the file ends inside its header
    absurd-count          more pairs, tensors, inner arrays or strings than any real file; reading stops
    absurd-length         a string or array too large to believe; reading stops
    unknown-value-type    its size cannot be known; reading stops
    nested-array          read, but refused by llama.cpp; reading stops where the nesting goes too deep
    empty-key             a metadata key of no characters
    duplicate-key         the first pair is kept
    bad-utf8              a key, string or tensor name; bad bytes are kept as lone surrogates (surrogateescape)
    bad-bool              a byte other than 0 and 1; read as true
    bad-alignment         general.alignment is no UINT32, or no power of two
    long-tensor-name      llama.cpp's limit is 63 bytes
    duplicate-tensor      all are kept
    bad-dimensions        none, more than four, or one of zero; reading stops beyond eight
    dimension-overflow    2**63 weights or more
    unknown-tensor-type   its size cannot be known
    partial-block         the row is no multiple of the type's block
    misaligned-tensor     the offset is no multiple of the alignment
    tensor-order          offsets do not follow the order of the table, as llama.cpp demands
    overlapping-tensors   a tensor starts before the one ahead of it ends
    gap                   unused bytes ahead of a tensor, beyond the padding
    truncated-data        tensors lie partly or wholly past the end of the file
    trailing-bytes        bytes after the last tensor, beyond the padding

Rules are those of ggml's docs/gguf.md and of llama.cpp's ggml/src/gguf.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from gguf import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)

from phi4conv.errors import FormatError, Problem
from phi4conv.files import PositionedReader
from phi4conv.gguf_file.cursor import MAX_ENTRIES, Cursor, Defects, Unreadable
from phi4conv.gguf_file.layout import (
    MAX_DIMENSIONS,
    MAX_TENSOR_NAME_BYTES,
    GGUFFile,
    MetadataPair,
    TensorEntry,
    padded,
)

MAX_READABLE_DIMENSIONS = 8

_READABLE_VERSIONS = (2, 3)
_TENSOR_TYPES: dict[int, GGMLQuantizationType | int] = {int(known): known for known in GGML_QUANT_SIZES}
_MAGIC = GGUF_MAGIC.to_bytes(4, "little")

# How files that are taken for GGUFs begin: prefix, what it is, what to do.
_LOOKALIKES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` in the repository"),
    (b"<", "a web page", "download the file again; the server answered with a page"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint", "convert the model folder first"),
    (b"lmgg", "a ggml file from before GGUF", "convert the original model again"),
    (b"fmgg", "a ggmf file from before GGUF", "convert the original model again"),
    (b"tjgg", "a ggjt file from before GGUF", "convert the original model again"),
    (b"\0\0\0\0", "zeros, as an interrupted download leaves", "download the file again"),
)


def read_gguf(path: Path) -> GGUFFile:
    """Read a GGUF file's header and list its defects.

    Raises FormatError when the file cannot be read, or is no GGUF at all.
    """
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no regular file" if path.exists() else "nothing of that name"
            raise FormatError(Problem("cannot read the GGUF", where=str(path), expected="a file", found=found))
        reader = PositionedReader(path)
        size = reader.size
        beginning = reader.read(0, min(size, 64))
        if not beginning.startswith(_MAGIC):
            raise FormatError(_not_a_gguf(path, beginning))
        return _read(path, Cursor(reader, size))
    except OSError as error:
        raise FormatError(
            Problem("cannot read the GGUF", where=str(path), expected="a readable file", found=str(error))
        ) from error


def recognized(beginning: bytes) -> tuple[str, str] | None:
    """What a file that begins so is instead of a GGUF, and what to do; None when that is not known."""
    if beginning[8:10] == b'{"':
        return "a safetensors file", "give its folder to `phi4conv convert`"
    return next(((what, advice) for prefix, what, advice in _LOOKALIKES if beginning.startswith(prefix)), None)


def _not_a_gguf(path: Path, beginning: bytes) -> Problem:
    unknown = f"{beginning[:8]!r}" if beginning else "an empty file", "check that this is the right file"
    found, next_step = recognized(beginning) or unknown
    expected = f"{_MAGIC!r} at its start"
    return Problem("not a GGUF file", where=str(path), expected=expected, found=found, next_step=next_step)


def _read(path: Path, cursor: Cursor) -> GGUFFile:
    version = 0
    metadata: dict[str, MetadataPair] = {}
    tensors: list[TensorEntry] = []
    complete = False
    cursor.position = len(_MAGIC)
    try:
        version = _read_version(cursor)
        tensor_count, pair_count = cursor.length(), cursor.length()
        for pair in _read_pairs(cursor, pair_count):
            metadata.setdefault(pair.key, pair)
        for entry in _read_tensors(cursor, tensor_count):
            tensors.append(entry)  # noqa: PERF402  # what came before a cut is kept
        complete = True
    except Unreadable as stop:
        cursor.note(stop.code, stop.message)
    alignment = _alignment(metadata.get(Keys.General.ALIGNMENT), cursor.defects)
    data_offset = padded(cursor.position, alignment) if complete and tensors else cursor.position
    if complete:
        _check_positions(tensors, alignment, data_offset, cursor.defects)
        _check_file_size(tensors, alignment, data_offset, cursor)
    return GGUFFile(
        path=path,
        version=version,
        byte_order=cursor.byte_order,
        alignment=alignment,
        metadata=metadata,
        tensors=tuple(tensors),
        data_offset=data_offset,
        file_size=cursor.size,
        defects=cursor.defects.all(),
        header_complete=complete,
    )


def _read_version(cursor: Cursor) -> int:
    version = int(cursor.number("I"))
    # Versions are small: with its low half empty the number was written by the other byte order.
    if version and version & 0xFFFF == 0:
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
        cursor.byte_order = "big"
        cursor.note("big-endian", "the file is big-endian; llama.cpp refuses it on little-endian machines", 4)
    if version not in _READABLE_VERSIONS:
        cursor.note("unsupported-version", f"version {version}; 2 and 3 are known", 4)
    if version == 1:
        cursor.length_bytes = 4
    return version


def _read_pairs(cursor: Cursor, count: int) -> Iterator[MetadataPair]:
    if count > MAX_ENTRIES:
        raise Unreadable("absurd-count", f"the header claims {count:,} metadata pairs")
    seen: set[str] = set()
    for index in range(count):
        cursor.where = f"metadata pair {index + 1} of {count}"
        start = cursor.position
        key = cursor.text()
        if not key:
            cursor.note("empty-key", "a metadata key is empty", start)
        cursor.where = key or cursor.where
        if key in seen:
            cursor.note("duplicate-key", "this key has come before; the first pair counts", start)
        seen.add(key)
        value_type = cursor.value_type()
        if value_type == GGUFValueType.ARRAY:
            item_type, items = cursor.array()
            yield MetadataPair(key, value_type, items, item_type)
        else:
            yield MetadataPair(key, value_type, cursor.value(value_type))


def _read_tensors(cursor: Cursor, count: int) -> Iterator[TensorEntry]:
    cursor.where = "tensor table"
    if count > MAX_ENTRIES:
        raise Unreadable("absurd-count", f"the header claims {count:,} tensors")
    seen: set[str] = set()
    for index in range(count):
        cursor.where = f"tensor {index + 1} of {count}"
        start = cursor.position
        name = cursor.text()
        cursor.where = name or cursor.where
        if name in seen:
            cursor.note("duplicate-tensor", "a tensor of this name has come before", start)
        seen.add(name)
        dimension_count = cursor.number("I")
        if dimension_count > MAX_READABLE_DIMENSIONS:
            raise Unreadable("bad-dimensions", f"{dimension_count:,} dimensions; ggml has up to {MAX_DIMENSIONS}")
        dimensions = [cursor.length() for _ in range(dimension_count)]
        type_number = cursor.number("I")
        qtype = _TENSOR_TYPES.get(type_number, type_number)
        entry = TensorEntry(name, tuple(reversed(dimensions)), qtype, cursor.number("Q"))
        for code, message in _entry_defects(entry):
            cursor.note(code, message, start)
        yield entry


def _entry_defects(entry: TensorEntry) -> Iterator[tuple[str, str]]:
    """What one row of the tensor table has wrong by itself: code and message."""
    name_bytes = len(entry.name.encode("utf-8", "surrogateescape"))
    if name_bytes > MAX_TENSOR_NAME_BYTES:
        yield "long-tensor-name", f"a name of {name_bytes} bytes; llama.cpp allows {MAX_TENSOR_NAME_BYTES}"
    if not 1 <= len(entry.shape) <= MAX_DIMENSIONS:
        yield "bad-dimensions", f"{len(entry.shape)} dimensions; ggml has 1 to {MAX_DIMENSIONS}"
    if 0 in entry.shape:
        yield "bad-dimensions", f"the shape {entry.shape} holds no weights"
    if entry.weight_count >= 1 << 63:
        yield "dimension-overflow", f"the shape {entry.shape} has 2**63 weights or more"
    if not isinstance(entry.qtype, GGMLQuantizationType):
        yield "unknown-tensor-type", f"tensor type {entry.qtype} is not known, nor then its size"
    elif _row(entry) % GGML_QUANT_SIZES[entry.qtype][0]:
        block_weights, _ = GGML_QUANT_SIZES[entry.qtype]
        yield "partial-block", f"rows of {_row(entry)} weights; {entry.type_name} needs a multiple of {block_weights}"


def _row(entry: TensorEntry) -> int:
    return entry.shape[-1] if entry.shape else 1


def _has_size(entry: TensorEntry) -> bool:
    """Whether the entry's size in bytes is beyond doubt."""
    if not isinstance(entry.qtype, GGMLQuantizationType) or entry.weight_count >= 1 << 63:
        return False
    return _row(entry) % GGML_QUANT_SIZES[entry.qtype][0] == 0


def _check_positions(tensors: Sequence[TensorEntry], alignment: int, data_offset: int, defects: Defects) -> None:
    """Note tensors that are misaligned, out of order, overlapping or apart."""
    for ahead, entry in pairwise(tensors):
        if entry.offset < ahead.offset:
            defects.add("tensor-order", f"its data lie ahead of those of {ahead.name}", entry.name)
    end, last = 0, TensorEntry("", (0,), GGMLQuantizationType.F32, 0)
    for entry in sorted(tensors, key=lambda entry: entry.offset):
        position = data_offset + entry.offset
        if entry.offset % alignment:
            defects.add(
                "misaligned-tensor", f"offset {entry.offset:,} is no multiple of {alignment}", entry.name, position
            )
        elif entry.offset > padded(end, alignment) and _has_size(last):
            unused = entry.offset - padded(end, alignment)
            defects.add("gap", f"{unused:,} unused bytes ahead of the data", entry.name, position)
        if entry.offset < end:
            defects.add(
                "overlapping-tensors",
                f"the data start {end - entry.offset:,} bytes before those of {last.name} end",
                entry.name,
                position,
            )
        if not _has_size(entry) or entry.offset + entry.size_bytes >= end:
            last = entry
        if _has_size(entry):
            end = max(end, entry.offset + entry.size_bytes)


def _check_file_size(tensors: Sequence[TensorEntry], alignment: int, data_offset: int, cursor: Cursor) -> None:
    """Note data that the file is too short for, or bytes that belong to no tensor."""
    sized = [entry for entry in tensors if _has_size(entry)]
    end = data_offset + max((entry.offset + entry.size_bytes for entry in sized), default=0)
    cut = [entry for entry in sized if data_offset + entry.offset + entry.size_bytes > cursor.size]
    if cut:
        first = min(cut, key=lambda entry: entry.offset)
        cursor.defects.add(
            "truncated-data",
            f"the tensors need a file of {end:,} bytes, this one has {cursor.size:,}: "
            f"{len(cut)} of {len(tensors)} tensors are cut or missing, this one first",
            first.name,
            cursor.size,
        )
    elif len(sized) == len(tensors) and cursor.size > padded(end, alignment):
        extra = cursor.size - padded(end, alignment)
        cursor.defects.add("trailing-bytes", f"{extra:,} bytes after the last tensor", "file", padded(end, alignment))


def _alignment(pair: MetadataPair | None, defects: Defects) -> int:
    """The alignment of the data section in bytes; the default one when the file's own cannot be."""
    if pair is None:
        return GGUF_DEFAULT_ALIGNMENT
    stored = pair.value if isinstance(pair.value, int) else 0
    possible = stored > 0 and stored & (stored - 1) == 0
    alignment = int(stored) if possible else GGUF_DEFAULT_ALIGNMENT
    if pair.type != GGUFValueType.UINT32 or not possible:
        found = f"{pair.type.name} {stored}" if isinstance(pair.value, int) else pair.type.name
        message = f"must be a power of two stored as UINT32, is {found}; {alignment} is used"
        defects.add("bad-alignment", message, pair.key)
    return alignment
