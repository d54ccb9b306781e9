from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4conv.errors import FormatError
from phi4conv.gguf_file import layout, read
from phi4conv.gguf_file.layout import GGUFFile, InnerArray, MetadataPair, TensorEntry
from phi4conv.gguf_file.write import encode_header

ReadBytes = Callable[[bytes], GGUFFile]

MINIMAL = bytes.fromhex(
    "47475546 03000000"  # magic "GGUF", version 3
    "0100000000000000"  # 1 tensor
    "0200000000000000"  # 2 metadata pairs
    "0300000000000000 612e62"  # key of 3 bytes, "a.b"
    "04000000 2a000000"  # UINT32 42
    "0100000000000000 6b"  # key of 1 byte, "k"
    "09000000 08000000 0200000000000000"  # ARRAY of STRING, 2 items
    "0200000000000000 c4a0"  # 2 bytes, "Ġ"
    "0000000000000000"  # 0 bytes
    "0100000000000000 74"  # tensor name of 1 byte, "t"
    "02000000 0300000000000000 0200000000000000"  # 2 dimensions, the row first: 3, 2
    "01000000 0000000000000000"  # type 1 (F16), offset 0
    "00"  # padding to 128, a multiple of 32
    "003c 0040 0042 0044 0045 0046"  # the weights 1 to 6
    "0000000000000000 0000000000000000 00000000"  # padding to 160
)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, value_type: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", value_type) + value


def tensor(
    name: bytes = b"t", dimensions: tuple[int, ...] = (8,), type_: int = 0, offset: int = 0, *, dims: int | None = None
) -> bytes:
    count = len(dimensions) if dims is None else dims
    fields = struct.pack(f"<I{len(dimensions)}QIQ", count, *dimensions, type_, offset)
    return string(name) + fields


U32, BOOL, STRING, ARRAY = 4, 7, 8, 9
ARCHITECTURE = pair(b"general.architecture", STRING, string(b"phi3"))


def gguf_bytes(
    pairs: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (tensor(b"a"), tensor(b"b", offset=32)),
    *,
    data: int = 64,
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
) -> bytes:
    """A file put together by hand, good unless told otherwise: two tensors of 32 bytes each."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *tensors))
    return header + bytes(-len(header) % 32) + bytes(data)


GOOD = gguf_bytes()
TOO_MANY = 1 << 60


def two(first: bytes, second: bytes = tensor(b"b", offset=32)) -> bytes:
    return gguf_bytes(tensors=(first, second))


# One thing broken in a good file: code, bytes, where the defect is.
BROKEN: list[tuple[str, bytes, str]] = [
    ("unsupported-version", gguf_bytes(version=4), "header"),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "header"),
    ("truncated-header", GOOD[:6], "header"),
    ("truncated-header", GOOD[:20], "header"),
    ("truncated-header", GOOD[:40], "metadata pair 1 of 1"),
    ("truncated-header", GOOD[:60], "general.architecture"),
    ("truncated-header", GOOD[:66], "general.architecture"),
    ("truncated-header", GOOD[:70], "tensor 1 of 2"),
    ("truncated-header", GOOD[:80], "a"),
    ("truncated-header", GOOD[:105], "tensor 2 of 2"),
    ("absurd-count", gguf_bytes(tensor_count=TOO_MANY), "tensor table"),
    ("absurd-count", gguf_bytes(pair_count=TOO_MANY), "header"),
    ("absurd-count", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1 << 20) + bytes(12 << 20)),)), "k"),
    ("absurd-length", gguf_bytes((pair(b"k", STRING, struct.pack("<Q", TOO_MANY)),)), "k"),
    ("absurd-length", gguf_bytes((struct.pack("<Q", TOO_MANY),)), "metadata pair 1 of 1"),
    ("absurd-count", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", STRING, TOO_MANY)),)), "k"),
    ("absurd-length", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQQ", STRING, 1, TOO_MANY)),)), "k"),
    ("absurd-length", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", U32, TOO_MANY)),)), "k"),
    ("unknown-value-type", gguf_bytes((pair(b"k", 13, bytes(8)),)), "k"),
    ("unknown-value-type", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", 99, 0)),)), "k"),
    ("nested-array", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", ARRAY, 0)),)), "k"),
    ("nested-array", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5 + bytes(12)),)), "k"),
    ("empty-key", gguf_bytes((pair(b"", U32, bytes(4)),)), "metadata pair 1 of 1"),
    ("duplicate-key", gguf_bytes((pair(b"k", U32, bytes(4)), pair(b"k", U32, bytes(4)))), "k"),
    ("bad-utf8", gguf_bytes((pair(b"k\xff", U32, bytes(4)),)), "metadata pair 1 of 1"),
    ("bad-utf8", gguf_bytes((pair(b"k", STRING, string(b"\xff")),)), "k"),
    ("bad-utf8", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", STRING, 1) + string(b"\xff")),)), "k"),
    ("bad-utf8", two(tensor(b"\xff")), "tensor 1 of 2"),
    ("bad-bool", gguf_bytes((pair(b"k", BOOL, b"\x02"),)), "k"),
    ("bad-bool", gguf_bytes((pair(b"k", ARRAY, struct.pack("<IQ", BOOL, 3) + b"\x00\x01\x02"),)), "k"),
    ("bad-alignment", gguf_bytes((pair(b"general.alignment", 10, struct.pack("<Q", 32)),)), "general.alignment"),
    ("bad-alignment", gguf_bytes((pair(b"general.alignment", U32, struct.pack("<I", 48)),)), "general.alignment"),
    ("bad-alignment", gguf_bytes((pair(b"general.alignment", U32, bytes(4)),)), "general.alignment"),
    ("bad-alignment", gguf_bytes((pair(b"general.alignment", STRING, string(b"32")),)), "general.alignment"),
    ("long-tensor-name", two(tensor(b"n" * 64)), "n" * 64),
    ("duplicate-tensor", two(tensor(b"b")), "b"),
    ("bad-dimensions", gguf_bytes(tensors=(tensor(b"a", ()),), data=4), "a"),
    ("bad-dimensions", two(tensor(b"a", (8, 1, 1, 1, 1))), "a"),
    ("bad-dimensions", two(tensor(b"a", (0, 8)), tensor(b"b")), "a"),
    ("bad-dimensions", two(tensor(b"a", dims=1 << 31)), "a"),
    ("dimension-overflow", two(tensor(b"a", (1 << 32, 1 << 31))), "a"),
    ("unknown-tensor-type", two(tensor(b"a", type_=5)), "a"),
    ("partial-block", two(tensor(b"a", (31, 8), GGMLQuantizationType.Q8_0)), "a"),
    ("misaligned-tensor", two(tensor(b"a"), tensor(b"b", offset=33)), "b"),
    ("tensor-order", two(tensor(b"a", offset=32), tensor(b"b")), "b"),
    ("overlapping-tensors", two(tensor(b"a", (9,))), "b"),
    ("gap", two(tensor(b"a"), tensor(b"b", (1,), offset=64)), "b"),
    ("gap", two(tensor(b"a", offset=32), tensor(b"b", offset=64)), "a"),
    ("truncated-data", GOOD[:-1], "b"),
    ("truncated-data", two(tensor(b"a"), tensor(b"b", offset=2**64 - 32)), "b"),
    ("trailing-bytes", GOOD + b"\0", "file"),
    ("trailing-bytes", gguf_bytes(tensors=(), data=1), "file"),
]


@pytest.mark.parametrize(("code", "data", "where"), BROKEN, ids=[code for code, _, _ in BROKEN])
def test_each_defect_is_found(read_bytes: ReadBytes, code: str, data: bytes, where: str) -> None:
    assert (code, where) in [(defect.code, defect.where) for defect in read_bytes(data).defects]


def test_the_documented_codes_are_those_that_are_found(read_bytes: ReadBytes) -> None:
    documented = set(re.findall(r"^    ([a-z0-9-]+)   ", read.__doc__ or "", re.MULTILINE))
    found = {defect.code for _, data, _ in BROKEN for defect in read_bytes(data).defects}
    assert documented == found == {code for code, _, _ in BROKEN}


def test_a_good_file_has_no_defects(read_bytes: ReadBytes) -> None:
    assert read_bytes(GOOD).defects == ()
    assert read_bytes(GOOD).header_complete


def test_minimal_file(read_bytes: ReadBytes) -> None:
    file = read_bytes(MINIMAL)
    assert file.defects == ()
    assert (file.version, file.byte_order, file.alignment, file.file_size) == (3, "little", 32, 160)
    assert file.data_offset == 128
    assert list(file.metadata.values()) == [layout.u32("a.b", 42), layout.texts("k", ["Ġ", ""])]
    assert file.tensors == (TensorEntry("t", (2, 3), GGMLQuantizationType.F16, 0),)


def test_minimal_file_written() -> None:
    header = encode_header(
        [layout.u32("a.b", 42), layout.texts("k", ["Ġ", ""])], [("t", (2, 3), GGMLQuantizationType.F16)]
    )
    assert header.data == MINIMAL[:128]
    assert header.size_bytes == 160 == len(MINIMAL)


def test_version_1_has_lengths_of_32_bits(read_bytes: ReadBytes) -> None:
    data = bytes.fromhex(
        "47475546 01000000"  # magic, version 1
        "01000000 01000000"  # 1 tensor, 1 pair
        "01000000 6b"  # key of 1 byte, "k"
        "09000000 08000000 01000000"  # ARRAY of STRING, 1 item
        "02000000 6162"  # 2 bytes, "ab"
        "01000000 74"  # tensor name of 1 byte, "t"
        "01000000 08000000"  # 1 dimension: 8
        "00000000 0000000000000000"  # type 0 (F32), offset 0
    )
    file = read_bytes(data + bytes(-len(data) % 32) + bytes(32))
    assert [defect.code for defect in file.defects] == ["unsupported-version"]
    assert list(file.metadata.values()) == [layout.texts("k", ["ab"])]
    assert file.tensors == (TensorEntry("t", (8,), GGMLQuantizationType.F32, 0),)


def test_the_first_of_two_equal_keys_counts(read_bytes: ReadBytes) -> None:
    file = read_bytes(gguf_bytes((pair(b"k", U32, struct.pack("<I", 1)), pair(b"k", U32, struct.pack("<I", 2)))))
    assert file.number("k") == 1
    assert file.header_complete


def test_what_came_before_a_cut_is_kept(read_bytes: ReadBytes) -> None:
    file = read_bytes(GOOD[:110])
    assert file.text("general.architecture") == "phi3"
    assert [entry.name for entry in file.tensors] == ["a"]
    assert not file.header_complete
    assert [defect.code for defect in file.defects] == ["truncated-header"]


def test_metadata_survive_an_absurd_tensor_count(read_bytes: ReadBytes) -> None:
    file = read_bytes(gguf_bytes(tensor_count=TOO_MANY))
    assert file.architecture == "phi3"
    assert file.tensors == ()


def test_nested_arrays_are_read(read_bytes: ReadBytes) -> None:
    nested = [InnerArray(GGUFValueType.STRING, ["a"]), InnerArray(GGUFValueType.UINT8, [1, 2])]
    written = MetadataPair("k", GGUFValueType.ARRAY, nested, GGUFValueType.ARRAY)
    assert read_bytes(encode_header([written], []).data).metadata["k"].value == tuple(nested)


def test_truncated_data_name_both_sizes(read_bytes: ReadBytes) -> None:
    (defect,) = read_bytes(GOOD[:-40]).defects
    assert f"need a file of {len(GOOD)} bytes, this one has {len(GOOD) - 40}" in defect.message
    assert "2 of 2 tensors" in defect.message
    assert defect.where == "a"


def test_a_file_may_end_without_its_last_padding(read_bytes: ReadBytes) -> None:
    data = two(tensor(b"a"), tensor(b"b", (1,), offset=32))
    assert read_bytes(data[:-28]).defects == ()


@pytest.mark.parametrize(
    "data",
    [data for code, data, _ in BROKEN if code.startswith("absurd")],
)
def test_claims_cost_no_memory(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        read.read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + (1 << 20)


@pytest.mark.parametrize("end", [b"", b"GGU", b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_gguf(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(end)
    with pytest.raises(FormatError, match="not a GGUF file"):
        read.read_gguf(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"PK\x03\x04rest", "a zip archive"),
        (struct.pack("<Q", 2) + b"{}", "b'\\x02"),
        (struct.pack("<Q", 9) + b'{"a": 1}', "a safetensors file"),
        (b"tjgg\x03\0\0\0", "a ggjt file"),
        (bytes(100), "zeros"),
    ],
)
def test_what_is_taken_for_a_gguf_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read.read_gguf(path)
    (problem,) = caught.value.problems
    assert problem.found.startswith(found)
    assert problem.next_step


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nothing of that name"):
        read.read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match="a folder"):
        read.read_gguf(tmp_path)


def assert_gguf_py_agrees(path: Path) -> None:
    ours, theirs = read.read_gguf(path), gguf.GGUFReader(path)
    assert ours.defects == () or [defect.code for defect in ours.defects] == ["big-endian"]
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        pair = ours.metadata[key]
        assert field.types[0] == pair.type
        assert field.contents() == (list(pair.value) if pair.type == GGUFValueType.ARRAY else pair.value), key
        if pair.type == GGUFValueType.ARRAY:
            assert field.types[1] == pair.item_type
    assert [entry.name for entry in ours.tensors] == [entry.name for entry in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert mine.shape == tuple(other.shape.tolist()[::-1])
        assert mine.qtype == other.tensor_type
        assert mine.size_bytes == other.n_bytes
        assert ours.data_offset + mine.offset == other.data_offset


@pytest.mark.parametrize("order", [GGUFEndian.LITTLE, GGUFEndian.BIG])
def test_gguf_py_agrees(tmp_path: Path, order: GGUFEndian) -> None:
    writer = gguf.GGUFWriter(tmp_path / "file.gguf", arch="phi3", endianess=order)
    for kind in GGUFValueType:
        if kind not in {GGUFValueType.STRING, GGUFValueType.ARRAY}:
            writer.add_key_value(f"k.{kind.name}", 1, kind)
            writer.add_key_value(f"k.{kind.name}s", [0, 1, 1], GGUFValueType.ARRAY, kind)
    writer.add_float32("k.negative", -0.1)
    writer.add_string("k.text", "Ġ\n")
    writer.add_array("k.texts", ["a", "", "łł"])
    writer.add_custom_alignment(64)
    for number, (qtype, (block_weights, _)) in enumerate(GGML_QUANT_SIZES.items()):
        size = GGML_QUANT_SIZES[qtype][1]
        writer.add_tensor_info(f"t.{number}", (3, 2, 2 * block_weights), np.dtype("int8"), 12 * size, qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with (tmp_path / "file.gguf").open("ab") as file:
        file.write(bytes(-file.tell() % 64))
        for _, size in GGML_QUANT_SIZES.values():
            file.write(bytes(layout.padded(12 * size, 64)))
    assert_gguf_py_agrees(tmp_path / "file.gguf")


@pytest.mark.slow  # gguf-py's reader takes seconds for a full vocabulary
@pytest.mark.parametrize("name", ["phi-4/vocab-by-llama.cpp.gguf", "broken/phi4-vocab-broken-spm.gguf"])
def test_gguf_py_agrees_on_published_vocabularies(shared_data: Path, name: str) -> None:
    assert_gguf_py_agrees(shared_data / name)


def test_published_vocabulary_is_written_again_byte_by_byte(shared_data: Path) -> None:
    path = shared_data / "phi-4" / "vocab-by-llama.cpp.gguf"
    file = read.read_gguf(path)
    assert len(file.strings("tokenizer.ggml.tokens")) == 100352
    assert file.strings("tokenizer.ggml.merges")[99_999]
    assert encode_header(file.metadata.values(), []).data == path.read_bytes()


def test_a_header_larger_than_the_first_window(read_bytes: ReadBytes) -> None:
    strings = [f"token {number}" * 4 for number in range(50_000)]
    pairs = [layout.texts("a", strings), layout.text("b", "x" * 3_000_000), layout.i32s("c", range(300_000))]
    file = read_bytes(encode_header(pairs, []).data)
    assert file.file_size > 4 * (1 << 20)
    assert list(file.metadata.values()) == pairs


SAMPLE = encode_header(
    [
        layout.text("general.architecture", "phi3"),
        layout.u32("general.alignment", 32),
        layout.boolean("tokenizer.ggml.add_bos_token", False),
        layout.texts("tokenizer.ggml.tokens", ["a", "Ġb", "<|x|>"]),
        layout.i32s("tokenizer.ggml.token_type", [1, 1, 3]),
        layout.f32("phi3.rope.freq_base", 10000.0),
        MetadataPair("n", GGUFValueType.ARRAY, [InnerArray(GGUFValueType.BOOL, [True])], GGUFValueType.ARRAY),
    ],
    [
        ("token_embd.weight", (4, 256), GGMLQuantizationType.Q6_K),
        ("output_norm.weight", (256,), GGMLQuantizationType.F32),
    ],
).data + bytes(864 + 1024)
NASTY = [0, 1, 9, 0xFF, 0xFFFF, 1 << 20, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(SAMPLE)
    header = len(SAMPLE) - 1800
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, header))
        match draw(st.sampled_from(["flip", "cut", "insert", "delete", "number"])):
            case "flip":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "delete":
                del data[at : at + draw(st.integers(1, 16))]
            case _:
                data[at : at + 8] = draw(st.sampled_from(NASTY)).to_bytes(8, "little")
    return bytes(data)


@settings(max_examples=500, deadline=2000)
@given(data=mutated())
def test_mutated_bytes_raise_only_format_error(read_bytes: ReadBytes, data: bytes) -> None:
    try:
        file = read_bytes(data)
    except FormatError:
        assert not data.startswith(b"GGUF")
        return
    assert file.header_complete or file.defects
    for pair in file.metadata.values():  # what is decoded late must decode
        assert isinstance(repr(pair), str)
        assert pair.type != GGUFValueType.ARRAY or len(list(pair.value)) == len(pair.value)
    assert all(entry.size_bytes >= 0 for entry in file.tensors)
