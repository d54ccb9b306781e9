from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from phi4conv.gguf_file import layout
from phi4conv.gguf_file.layout import GGUFFile, InnerArray, MetadataPair, Numbers
from phi4conv.gguf_file.write import Header, encode_header

Tensor = tuple[str, tuple[int, ...], GGMLQuantizationType]

SCALARS: dict[GGUFValueType, st.SearchStrategy[Any]] = {
    GGUFValueType.UINT8: st.integers(0, 2**8 - 1),
    GGUFValueType.INT8: st.integers(-(2**7), 2**7 - 1),
    GGUFValueType.UINT16: st.integers(0, 2**16 - 1),
    GGUFValueType.INT16: st.integers(-(2**15), 2**15 - 1),
    GGUFValueType.UINT32: st.integers(0, 2**32 - 1),
    GGUFValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    GGUFValueType.UINT64: st.integers(0, 2**64 - 1),
    GGUFValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    GGUFValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    GGUFValueType.FLOAT64: st.floats(allow_nan=False),
    GGUFValueType.BOOL: st.booleans(),
    GGUFValueType.STRING: st.text(max_size=20),
}
KEYS = st.text(min_size=1, max_size=20).filter(lambda key: key != "general.alignment")


@st.composite
def metadata(draw: st.DrawFn, smallest_array: int = 0) -> list[MetadataPair]:
    pairs = []
    for key in draw(st.lists(KEYS, unique=True, max_size=6)):
        kind = draw(st.sampled_from(list(SCALARS)))
        if draw(st.booleans()):
            items = draw(st.lists(SCALARS[kind], min_size=smallest_array, max_size=5))
            pairs.append(MetadataPair(key, GGUFValueType.ARRAY, items, kind))
        else:
            pairs.append(MetadataPair(key, kind, draw(SCALARS[kind])))
    return pairs


@st.composite
def tensor_list(draw: st.DrawFn) -> list[Tensor]:
    tensors = []
    for name in draw(st.lists(st.text(min_size=1, max_size=15), unique=True, max_size=4)):
        qtype = draw(st.sampled_from(list(GGML_QUANT_SIZES)))
        row = GGML_QUANT_SIZES[qtype][0] * draw(st.integers(1, 3))
        tensors.append((name, (*draw(st.lists(st.integers(1, 3), max_size=3)), row), qtype))
    return tensors


def whole_file(header: Header) -> bytes:
    return header.data + bytes(header.size_bytes - header.data_offset)


def by_gguf_py(path: Path, pairs: Sequence[MetadataPair], tensors: Sequence[Tensor], alignment: int = 32) -> bytes:
    """The file that GGUFWriter makes of the same pairs and of tensors full of zeros."""
    writer = gguf.GGUFWriter(path, arch="phi3")
    writer.kv_data[0].clear()  # drops the architecture that the writer adds by itself
    writer.data_alignment = alignment
    for pair in pairs:
        writer.add_key_value(pair.key, pair.value, pair.type, pair.item_type)
    for name, shape, qtype in tensors:
        block_weights, block_bytes = GGML_QUANT_SIZES[qtype]
        stored = np.zeros((*shape[:-1], shape[-1] // block_weights * block_bytes), dtype=np.uint8)
        writer.add_tensor(name, stored, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if tensors:  # llama.cpp's converter stops here for a vocabulary
        writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@given(pairs=metadata(smallest_array=1), tensors=tensor_list())
def test_same_bytes_as_gguf_py(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[MetadataPair], tensors: list[Tensor]
) -> None:
    expected = by_gguf_py(tmp_path_factory.mktemp("writer") / "file.gguf", pairs, tensors)
    assert whole_file(encode_header(pairs, tensors)) == expected


def test_same_bytes_as_gguf_py_with_another_alignment(tmp_path: Path) -> None:
    pairs = [layout.u32("general.alignment", 128), layout.text("general.architecture", "phi3")]
    tensors = [
        ("a", (3,), GGMLQuantizationType.F32),
        ("b", (2, 256), GGMLQuantizationType.Q4_K),
        ("c", (1,), GGMLQuantizationType.F16),
    ]
    header = encode_header(pairs, tensors, alignment=128)
    assert whole_file(header) == by_gguf_py(tmp_path / "file.gguf", pairs, tensors, alignment=128)
    assert [entry.offset for entry in header.tensors] == [0, 128, 512]
    assert [header.position(entry) % 128 for entry in header.tensors] == [0, 0, 0]


def test_same_bytes_as_gguf_py_for_arrays_of_arrays(tmp_path: Path) -> None:
    nested = [InnerArray(GGUFValueType.INT32, [1, 2]), InnerArray(GGUFValueType.STRING, ["x"])]
    ours = encode_header([MetadataPair("k", GGUFValueType.ARRAY, nested, GGUFValueType.ARRAY)], [])
    theirs = [MetadataPair("k", GGUFValueType.ARRAY, [[1, 2], ["x"]], GGUFValueType.ARRAY)]
    assert ours.data == by_gguf_py(tmp_path / "file.gguf", theirs, [])


@given(pairs=metadata(), tensors=tensor_list())
def test_what_is_written_is_read(
    read_bytes: Callable[[bytes], GGUFFile], pairs: list[MetadataPair], tensors: list[Tensor]
) -> None:
    header = encode_header(pairs, tensors)
    file = read_bytes(whole_file(header))
    assert file.defects == ()
    assert list(file.metadata.values()) == pairs
    assert file.tensors == header.tensors
    assert file.data_offset == header.data_offset
    assert encode_header(file.metadata.values(), tensors) == header


def test_strings_that_are_no_utf8_keep_their_bytes(read_bytes: Callable[[bytes], GGUFFile]) -> None:
    raw = encode_header([layout.text("k", "ab"), layout.texts("l", ["ab"])], []).data.replace(b"ab", b"\xffb")
    assert encode_header(read_bytes(raw).metadata.values(), []).data == raw


def test_empty_strings_and_arrays_are_written() -> None:
    data = encode_header([layout.text("k", ""), layout.texts("l", [])], []).data
    assert data[24:] == bytes.fromhex(
        "0100000000000000 6b"  # key: 1 byte, "k"
        "08000000 0000000000000000"  # STRING of 0 bytes
        "0100000000000000 6c"  # key: 1 byte, "l"
        "09000000 08000000 0000000000000000"  # ARRAY of STRING, 0 items
    )


def test_numbers_of_another_width_are_written_in_the_width_of_their_pair() -> None:
    wide = MetadataPair("k", GGUFValueType.ARRAY, Numbers(np.array([1, -1], dtype=np.int64)), GGUFValueType.INT32)
    assert encode_header([wide], []) == encode_header([layout.i32s("k", [1, -1])], [])


ARRAY = GGUFValueType.ARRAY


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (layout.u32("k", 2**32), "k: 4294967296 does not fit UINT32"),
        (layout.u32("k", -1), "k: -1 does not fit UINT32"),
        (layout.u32("k", True), "k: True is no UINT32"),
        (layout.i32("k", 2**31), "k: 2147483648 does not fit INT32"),
        (layout.u64("k", 2**64), "k: 18446744073709551616 does not fit UINT64"),
        (layout.i32s("k", [0, 2**31]), "k: 2147483648 does not fit INT32"),
        (MetadataPair("k", GGUFValueType.UINT8, 1.0), "k: 1.0 is no UINT8"),
        (MetadataPair("k", GGUFValueType.BOOL, 1), "k: 1 is no BOOL"),
        (MetadataPair("k", GGUFValueType.FLOAT32, "1"), "k: '1' is no FLOAT32"),
        (MetadataPair("k", GGUFValueType.FLOAT32, 1e300), "k: 1e+300 does not fit FLOAT32"),
        (MetadataPair("k", GGUFValueType.STRING, b"x"), "k: b'x' is no string"),
        (MetadataPair("k", GGUFValueType.STRING, "\ud800"), "k: '\\ud800' cannot be written as UTF-8"),
        (MetadataPair("k", GGUFValueType.UINT8, 1, GGUFValueType.UINT8), "k: only arrays have an item_type"),
        (MetadataPair("k", ARRAY, []), "k: an array needs an item_type"),
        (MetadataPair("k", ARRAY, "abc", GGUFValueType.STRING), "k: an array needs a sequence, not str"),
        (MetadataPair("k", ARRAY, [[1]], ARRAY), "k: an array of arrays holds InnerArray, not list"),
        (layout.text("", "x"), "a metadata key is empty"),
        (layout.u32("general.alignment", 64), "general.alignment: 64 (UINT32), but the alignment is 32"),
    ],
)
def test_a_pair_that_cannot_be_written_is_named(pair: MetadataPair, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        encode_header([pair], [])


F32 = GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("t", (255,), GGMLQuantizationType.Q4_K)], "t: rows of 255 weights are no multiple of Q4_K's block"),
        ([("t", (), F32)], "t: shape () is not"),
        ([("t", (1, 1, 1, 1, 1), F32)], "t: shape (1, 1, 1, 1, 1) is not"),
        ([("t", (2, 0), F32)], "t: shape (2, 0) is not"),
        ([("t", (2**32, 2**31), F32)], "t: shape (4294967296, 2147483648) is not"),
        ([("t" * 64, (1,), F32)], "the name is longer than 63 bytes"),
        ([("t", (1,), 999)], "t: tensor type 999 is not known"),
        ([("t", (1,), F32), ("t", (1,), F32)], "t: this tensor comes twice"),
        ([("", (1,), F32)], "a tensor is empty"),
    ],
)
def test_a_tensor_that_llama_cpp_would_refuse_is_named(tensors: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_header([], tensors)


def test_a_key_comes_once() -> None:
    with pytest.raises(ValueError, match="k: this metadata key comes twice"):
        encode_header([layout.u32("k", 1), layout.u32("k", 2)], [])


@pytest.mark.parametrize("alignment", [0, 48, 64])
def test_an_alignment_is_a_power_of_two_that_the_metadata_tell(alignment: int) -> None:
    with pytest.raises(ValueError, match=f"alignment {alignment}"):
        encode_header([], [], alignment=alignment)


def test_size_is_known_before_any_data() -> None:
    header = encode_header([], [("a", (5,), F32), ("b", (2, 32), GGMLQuantizationType.Q8_0)])
    assert header.data_offset % 32 == 0
    assert header.size_bytes == header.data_offset + 32 + math.ceil(2 * 34 / 32) * 32
