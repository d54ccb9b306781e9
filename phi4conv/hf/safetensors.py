"""The header of a safetensors file, read strictly and without the safetensors package.

Layout: 8 bytes, the length n of the header as a little-endian integer; n bytes of JSON that say each tensor's
dtype, shape and place; then the weights, without a gap. See https://github.com/huggingface/safetensors#format.
Weights are not read here: phi4conv.hf.checkpoint does, by the places that this module returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from phi4conv.errors import CheckpointError, Problem
from phi4conv.files import PositionedReader
from phi4conv.hf.json_file import (
    DOWNLOAD_AGAIN,
    parse_json_object,
    recognised,
    require_file,
    shortened,
    unreadable,
)

LENGTH_BYTES = 8
# The limit of the format's own reader: MAX_HEADER_SIZE in safetensors/src/tensor.rs.
MAX_HEADER_BYTES = 100_000_000
# Enough of a file to recognise what it is when it is no safetensors file.
HEAD_BYTES = 512
# The format counts bytes in 64 bits, and numpy's arrays have at most 64 axes.
MAX_BYTES = 2**64 - 1
MAX_AXES = 64

# Bits of one element: Dtype::bitsize in safetensors/src/tensor.rs.
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place: little-endian elements in C order, size bytes from offset of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(reader: PositionedReader) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file, in the order in which the file holds them.

    Reads the header alone, whatever the file's size. Raises CheckpointError at the first defect: another kind
    of file, a header that breaks the format, or tensors that do not cover the rest of the file exactly.
    """
    require_file(reader.path)
    name = reader.path.name
    try:
        file_size = reader.size
        head = reader.read(0, min(file_size, HEAD_BYTES))
        data_start = LENGTH_BYTES + _header_length(head, file_size, name)
        text = reader.read(LENGTH_BYTES, data_start - LENGTH_BYTES)
    except OSError as error:
        raise CheckpointError(unreadable(reader.path, error)) from error
    entries = parse_json_object(text, f"{name}, header")
    _check_metadata(entries.pop("__metadata__", {}), name)
    tensors = [(tensor, _tensor_info(tensor, entry, data_start, name)) for tensor, entry in entries.items()]
    # By end as well: an empty tensor lies before the one that starts at the same offset.
    tensors.sort(key=lambda item: (item[1].offset, item[1].size))
    _check_coverage(tensors, data_start, file_size, name)
    return dict(tensors)


def _refuse(what: str, where: str, expected: str = "", found: str = "", next_step: str = DOWNLOAD_AGAIN) -> NoReturn:
    raise CheckpointError(Problem(what, where, expected, found, next_step))


def _header_length(head: bytes, file_size: int, name: str) -> int:
    """The header's length in bytes, once the file looks like safetensors and holds all of its header."""
    if not head:
        _refuse("empty file", name, "a safetensors file")
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    starts_right = head[LENGTH_BYTES : LENGTH_BYTES + 1] in {b"{", b""}
    if len(head) < LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES or not starts_right:
        if problem := recognised(head, name, expected="a safetensors file"):
            raise CheckpointError(problem)
        _refuse(
            "not a safetensors file",
            name,
            f"8 bytes with the header's length, 2 to {MAX_HEADER_BYTES:,}, and then '{{'",
            f"{file_size:,} bytes that begin with {head[:24]!r}",
        )
    if LENGTH_BYTES + length > file_size:
        _refuse(f"truncated: needs {LENGTH_BYTES + length:,} bytes for its header alone, has {file_size:,}", name)
    return length


def _check_metadata(metadata: Any, name: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        found = shortened(repr(metadata))
        _refuse("__metadata__ is not a map from text to text", f"{name}, header", '{"format": "pt"}', found)


def _tensor_info(tensor: str, entry: Any, data_start: int, name: str) -> TensorInfo:
    """One entry of the header, checked by itself."""
    where = f"{name}, tensor {shortened(repr(tensor))}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("broken header entry", where, "dtype, shape and data_offsets", shortened(repr(entry)))
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _refuse("unknown dtype", where, f"one of {', '.join(DTYPE_BITS)}", shortened(repr(dtype)))
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        _refuse("broken shape", where, f"a list of at most {MAX_AXES} whole numbers", shortened(repr(shape)))
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse("broken data_offsets", where, "[begin, end], begin <= end", shortened(repr(offsets)))
    size = _byte_size(dtype, shape, where)
    begin, end = offsets
    if end - begin != size:
        _refuse(
            "data_offsets do not fit the shape",
            where,
            f"{size:,} bytes for {shortened(str(shape))} of {dtype}",
            f"{end - begin:,} bytes, {begin} to {end}",
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, size)


def _are_sizes(value: Any) -> bool:
    # bool is a kind of int in Python, not in the format.
    return isinstance(value, list) and all(type(number) is int and 0 <= number <= MAX_BYTES for number in value)


def _byte_size(dtype: str, shape: Sequence[int], where: str) -> int:
    """Bytes of a tensor, given up as soon as the product leaves 64 bits: a header may hold many factors."""
    spelled = shortened(f"{dtype} {list(shape)}")
    bits = DTYPE_BITS[dtype]
    for axis in shape:
        bits *= axis
        if bits > MAX_BYTES * 8:
            _refuse("a tensor larger than any file", where, "at most 2^64 - 1 bytes", spelled)
    if bits % 8:
        _refuse("a tensor that ends inside a byte", where, "a multiple of 8 bits", spelled)
    return bits // 8


def _check_coverage(tensors: Sequence[tuple[str, TensorInfo]], start: int, file_size: int, name: str) -> None:
    """The tensors, in file order, follow each other from start to the end of the file."""
    end, before = start, "the start of the data"
    for tensor, info in tensors:
        if info.offset != end:
            _refuse(
                "tensors overlap" if info.offset < end else "bytes that belong to no tensor",
                f"{name}, tensor {shortened(repr(tensor))}",
                f"data from {end - start:,} on, right after {before}",
                f"data from {info.offset - start:,} on",
            )
        end, before = info.offset + info.size, f"tensor {shortened(repr(tensor))}"
    if file_size < end:
        _refuse(f"truncated: needs {end:,} bytes, has {file_size:,}", name)
    if file_size > end:
        _refuse(f"{file_size - end:,} bytes too many", name, f"{end:,} bytes, up to {before}", f"{file_size:,} bytes")
