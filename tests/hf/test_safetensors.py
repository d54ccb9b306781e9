from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from phi4conv.errors import CheckpointError, Problem
from phi4conv.files import PositionedReader
from phi4conv.hf.safetensors import TensorInfo, read_header

IN_TMP_PATH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

F32_PAIR = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
BF16_PAIR = {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]}


def file_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_of(content: bytes, tmp_path: Path) -> dict[str, TensorInfo]:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return read_header(PositionedReader(path))


def refusal(content: bytes, tmp_path: Path) -> Problem:
    with pytest.raises(CheckpointError) as caught:
        header_of(content, tmp_path)
    (problem,) = caught.value.problems
    assert problem.where.startswith("model.safetensors")
    assert problem.next_step
    return problem


def accepted_by_safetensors(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_places_in_file_order(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": BF16_PAIR, "a": F32_PAIR}
    content = file_bytes(header, bytes(12))
    start = len(content) - 12
    assert list(header_of(content, tmp_path).items()) == [
        ("a", TensorInfo("F32", (2, 1), start, 8)),
        ("b", TensorInfo("BF16", (2,), start + 8, 4)),
    ]


@pytest.mark.parametrize("header", [b"{}", b"{}   ", b'{"__metadata__":{}}'])
def test_files_without_tensors(header: bytes, tmp_path: Path) -> None:
    assert header_of(file_bytes(header), tmp_path) == {}


def test_empty_tensors_take_no_room(tmp_path: Path) -> None:
    header = {"full": entry("F32", [1], 0, 4), "first": entry("F32", [0], 0, 0), "last": entry("I8", [3, 0], 4, 4)}
    assert set(header_of(file_bytes(header, bytes(4)), tmp_path)) == {"full", "first", "last"}


arrays = np_st.arrays(
    dtype=st.sampled_from(
        [
            "float16",
            "float32",
            "float64",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "bool",
        ]
    ),
    shape=np_st.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")


# At least one tensor: safetensors 0.8 writes broken JSON for metadata alone.
@given(st.dictionaries(names, arrays, min_size=1, max_size=5), st.none() | st.dictionaries(names, names))
@IN_TMP_PATH
def test_what_safetensors_writes_is_read(
    tmp_path: Path, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str] | None
) -> None:
    content = safetensors.numpy.save(tensors, metadata)
    header = header_of(content, tmp_path)
    assert header.keys() == tensors.keys()
    for name, info in header.items():
        assert info.shape == tensors[name].shape
        assert content[info.offset : info.offset + info.size] == tensors[name].tobytes()
    assert [info.offset for info in header.values()] == sorted(info.offset for info in header.values())


@pytest.mark.parametrize(
    ("dtype", "eight_elements"),
    [
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("F8_E4M3", 8),
        ("F8_E5M2", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
        ("BOOL", 8),
        ("I16", 16),
        ("BF16", 16),
        ("F64", 64),
        ("C64", 64),
    ],
)
def test_sizes_of_dtypes_agree_with_safetensors(dtype: str, eight_elements: int, tmp_path: Path) -> None:
    content = file_bytes({"a": entry(dtype, [2, 4], 0, eight_elements)}, bytes(eight_elements))
    assert accepted_by_safetensors(content)
    assert header_of(content, tmp_path)["a"].size == eight_elements


HUGE = 2**63


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (entry("F32", [True, 2], 0, 8), "broken shape"),
        (entry("F32", [1.0, 2], 0, 8), "broken shape"),
        (entry("F32", [-1, -2], 0, 8), "broken shape"),
        (entry("F32", "12", 0, 8), "broken shape"),
        (entry("F32", None, 0, 8), "broken shape"),
        (entry("F32", [2**64], 0, 8), "broken shape"),
        (entry("F32", [1] * 65 + [2], 0, 8), "broken shape"),
        (entry("F32", [HUGE, HUGE, 0], 0, 0), "a tensor larger than any file"),
        (entry("F4", [3], 0, 1), "a tensor that ends inside a byte"),
        (entry("F33", [2], 0, 8), "unknown dtype"),
        (entry("f32", [2], 0, 8), "unknown dtype"),
        (entry(["F32"], [2], 0, 8), "unknown dtype"),
        (entry("F32", [2], 8, 0), "broken data_offsets"),
        (entry("F32", [2], -8, 0), "broken data_offsets"),
        (entry("F32", [2], 0.0, 8), "broken data_offsets"),
        (entry("F32", [2], 0, None), "broken data_offsets"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "broken data_offsets"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}, "broken data_offsets"),
        (entry("F32", [3], 0, 8), "data_offsets do not fit the shape"),
        (entry("F32", [2], 0, 4), "data_offsets do not fit the shape"),
        ({"dtype": "F32", "shape": [2]}, "broken header entry"),
        ({**entry("F32", [2], 0, 8), "stride": [1]}, "broken header entry"),
        ([], "broken header entry"),
        (None, "broken header entry"),
    ],
)
def test_broken_entries(tensor: Any, what: str, tmp_path: Path) -> None:
    problem = refusal(file_bytes({"lm_head.weight": tensor}, bytes(8)), tmp_path)
    assert (problem.what, problem.where) == (what, "model.safetensors, tensor 'lm_head.weight'")


@pytest.mark.parametrize("metadata", [[], "pt", {"format": 1}, {"a": None}, {"a": {}}])
def test_metadata_is_text_only(metadata: Any, tmp_path: Path) -> None:
    assert (
        refusal(file_bytes({"__metadata__": metadata}), tmp_path).what == "__metadata__ is not a map from text to text"
    )


@pytest.mark.parametrize(
    ("begins", "what"),
    [
        ((0, 4), "tensors overlap"),
        ((0, 12), "bytes that belong to no tensor"),
        ((4, 12), "bytes that belong to no tensor"),
        ((0, 0), "tensors overlap"),
    ],
)
def test_overlaps_and_holes(begins: tuple[int, int], what: str, tmp_path: Path) -> None:
    header = {name: entry("F32", [2], begin, begin + 8) for name, begin in zip("ab", begins, strict=True)}
    assert refusal(file_bytes(header, bytes(20)), tmp_path).what == what


def test_an_empty_tensor_inside_another_overlaps(tmp_path: Path) -> None:
    header = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [0], 4, 4)}
    problem = refusal(file_bytes(header, bytes(8)), tmp_path)
    assert (problem.what, problem.where) == ("tensors overlap", "model.safetensors, tensor 'b'")


def test_truncated_weights_name_both_sizes(tmp_path: Path) -> None:
    content = file_bytes({"a": F32_PAIR, "b": BF16_PAIR}, bytes(12))
    problem = refusal(content[:-1], tmp_path)
    assert problem.what == f"truncated: needs {len(content)} bytes, has {len(content) - 1}"
    assert problem.next_step == "download the file again"


def test_truncated_header(tmp_path: Path) -> None:
    content = file_bytes({"a": F32_PAIR})
    assert refusal(content[:30], tmp_path).what == f"truncated: needs {len(content)} bytes for its header alone, has 30"
    assert refusal(content[:8], tmp_path).what.startswith("truncated")


def test_trailing_bytes(tmp_path: Path) -> None:
    assert refusal(file_bytes({"a": F32_PAIR}, bytes(11)), tmp_path).what == "3 bytes too many"


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b' {"a": 1}', "not a safetensors file"),
        (b"[]", "not a safetensors file"),
        (b"{", "not a safetensors file"),
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b'{"__metadata__": {"a": "1", "a": "2"}}', "the key 'a' appears twice"),
        (b'{"\xff": 1}', "not UTF-8"),
        (b'{"\\udfff": 1}', "a string that is no Unicode text"),
        (b'{"a": }', "broken JSON at line 1, column 7"),
        (b'{"a": 1', "JSON that stops before its end"),
        (b"{}\0", "broken JSON"),
        (b"{} {}", "broken JSON"),
        (b'{"a":' * 20_000, "JSON nested too deeply"),
    ],
)
def test_broken_headers(header: bytes, what: str, tmp_path: Path) -> None:
    assert refusal(file_bytes(header), tmp_path).what.startswith(what)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty file"),
        (b"tiny", "not a safetensors file"),
        (b"Entry not found", "not a safetensors file"),
        (b'{"error": "Repository not found"}', "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4933656472\n", "a Git LFS pointer"),
        (b"<!doctype html>\n<html><body>Access denied", "an HTML page"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl", "a ZIP archive, probably a pickled PyTorch file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a Python pickle"),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "a GGUF file"),
        (bytes(4096), "zeros at the start"),
        (struct.pack("<Q", 100_000_001) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "not a safetensors file"),
    ],
)
def test_other_files_under_the_name(content: bytes, what: str, tmp_path: Path) -> None:
    problem = refusal(content, tmp_path)
    assert problem.what.startswith(what)
    assert problem.where == "model.safetensors"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="file not found"):
        read_header(PositionedReader(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match="a folder, not a file"):
        read_header(PositionedReader(tmp_path))


def test_a_large_length_reserves_no_memory(tmp_path: Path) -> None:
    content = struct.pack("<Q", 99_999_999) + b'{"a": 1}'
    tracemalloc.start()
    refusal(content, tmp_path)
    sparse = tmp_path / "sparse.safetensors"
    sparse.write_bytes(struct.pack("<Q", 99_999_999))
    with sparse.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(PositionedReader(sparse))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_shape_of_many_factors_costs_nothing(tmp_path: Path) -> None:
    shape = [2**62] * 200_000
    assert refusal(file_bytes({"a": entry("F32", shape, 0, 8)}, bytes(8)), tmp_path).what == "broken shape"


def test_long_names_do_not_fill_the_screen(tmp_path: Path) -> None:
    problem = refusal(file_bytes({"n" * 100_000: entry("F32", [2**60] * 20, 0, 8)}, bytes(8)), tmp_path)
    assert len("".join(problem.lines())) < 1000


GOOD = file_bytes({"__metadata__": {"format": "pt"}, "a": F32_PAIR, "b": BF16_PAIR}, bytes(range(12)))


def check_against_safetensors(content: bytes, tmp_path: Path) -> None:
    try:
        header = header_of(content, tmp_path)
    except CheckpointError:
        return
    assert accepted_by_safetensors(content)
    assert sum(info.size for info in header.values()) <= len(content)


@given(position=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
@example(position=8, byte=ord(" "))
@IN_TMP_PATH
def test_a_changed_byte_is_read_as_safetensors_does_or_refused(position: int, byte: int, tmp_path: Path) -> None:
    content = bytearray(GOOD)
    content[position] = byte
    check_against_safetensors(bytes(content), tmp_path)


@given(start=st.integers(0, len(GOOD)), length=st.integers(0, 12), new=st.binary(max_size=12))
@IN_TMP_PATH
def test_a_changed_range_is_read_as_safetensors_does_or_refused(
    start: int, length: int, new: bytes, tmp_path: Path
) -> None:
    check_against_safetensors(GOOD[:start] + new + GOOD[start + length :], tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "F4", "BF16", "", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "shape", "dtype"]), inner),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "I8", "X"]) | json_values,
        "shape": st.lists(st.integers(0, 4) | st.sampled_from([2**32, 2**64]), max_size=3) | json_values,
        "data_offsets": st.tuples(st.integers(0, 8), st.integers(0, 16)) | json_values,
    }
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | json_values), st.integers(0, 16))
@IN_TMP_PATH
def test_any_json_header_is_read_as_safetensors_does_or_refused(
    tmp_path: Path, header: dict[str, Any], data_size: int
) -> None:
    check_against_safetensors(file_bytes(header, bytes(data_size)), tmp_path)


def test_numpy_agrees_on_the_weights(tmp_path: Path) -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = safetensors.numpy.save({"w": weights})
    info = header_of(content, tmp_path)["w"]
    assert np.array_equal(np.frombuffer(content, "<f4", 6, info.offset).reshape(info.shape), weights)
