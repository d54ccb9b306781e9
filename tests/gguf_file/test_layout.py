from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from phi4conv.gguf_file import layout
from phi4conv.gguf_file.layout import GGUFFile, LazyStrings, MetadataPair, Numbers, TensorEntry


def file_with(*pairs: MetadataPair) -> GGUFFile:
    return GGUFFile(
        path=Path("a.gguf"),
        version=3,
        byte_order="little",
        alignment=32,
        metadata={pair.key: pair for pair in pairs},
        tensors=(TensorEntry("output.weight", (2, 256), GGMLQuantizationType.Q6_K, 0),),
        data_offset=0,
        file_size=0,
        defects=(),
        header_complete=True,
    )


def lazy(*strings: bytes) -> LazyStrings:
    ends, block = array("Q"), b""
    for string in strings:
        block += len(string).to_bytes(8, "little") + string
        ends.append(len(block))
    return LazyStrings(block, ends, 8)


def test_accessors_give_a_value_of_their_type_and_nothing_of_another() -> None:
    file = file_with(
        layout.text("general.architecture", "phi3"),
        layout.u32("phi3.block_count", 40),
        layout.f32("phi3.rope.freq_base", 250000.0),
        layout.boolean("tokenizer.ggml.add_bos_token", False),
        layout.texts("tokenizer.ggml.merges", ["a b"]),
        layout.i32s("tokenizer.ggml.token_type", [1, 3]),
        layout.f32s("tokenizer.ggml.scores", [0.5]),
    )
    assert file.architecture == file.text("general.architecture") == "phi3"
    assert file.number("phi3.block_count") == 40
    assert file.number("phi3.rope.freq_base") == 250000.0
    assert file.flag("tokenizer.ggml.add_bos_token") is False
    assert list(file.strings("tokenizer.ggml.merges")) == ["a b"]
    assert list(file.integers("tokenizer.ggml.token_type")) == [1, 3]
    assert list(file.floats("tokenizer.ggml.scores")) == [0.5]

    assert file.text("phi3.block_count") is None
    assert file.number("tokenizer.ggml.add_bos_token") is None
    assert file.flag("phi3.block_count") is None
    assert list(file.strings("tokenizer.ggml.token_type")) == []
    assert list(file.integers("tokenizer.ggml.scores")) == []
    assert list(file.floats("tokenizer.ggml.token_type")) == []
    assert file.text("absent") is None
    assert list(file.strings("absent")) == []


def test_tensor_by_name() -> None:
    entry = file_with().tensor("output.weight")
    assert entry is not None
    assert (entry.weight_count, entry.size_bytes, entry.type_name) == (512, 420, "Q6_K")
    assert file_with().tensor("token_embd.weight") is None


def test_a_type_that_gguf_does_not_know_has_a_number_and_no_size() -> None:
    entry = TensorEntry("x", (256,), 999, 0)
    assert (entry.type_name, entry.size_bytes) == ("type 999", 0)


def test_f32_refuses_what_float32_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"rope\.freq_base: 1e\+300"):
        layout.f32("rope.freq_base", 1e300)
    assert layout.f32("x", float("inf")).value == float("inf")


def test_lazy_strings_are_a_sequence() -> None:
    strings = lazy(b"a", b"", "Ġb".encode(), b"\xff")
    assert list(strings) == ["a", "", "Ġb", "\udcff"]
    assert [strings[0], strings[-2], strings[1:3]] == ["a", "Ġb", ["", "Ġb"]]
    assert strings == ("a", "", "Ġb", "\udcff")
    assert strings != ["a"]
    assert strings != "aĠb"
    with pytest.raises(IndexError):
        strings[4]


@pytest.mark.parametrize(
    ("strings", "bad"),
    [
        ((b"a", "é".encode(), b""), []),
        # each half of a character is wrong, though side by side they would make one
        ((b"\xc3", b"\xa9"), [0, 1]),
        ((b"ok", b"\x80", b"ok"), [1]),
        ((), []),
    ],
)
def test_bad_utf8_is_found_string_by_string(strings: tuple[bytes, ...], bad: list[int]) -> None:
    assert lazy(*strings).bad_utf8() == bad


def test_numbers_are_a_sequence_of_python_numbers() -> None:
    numbers = Numbers(np.array([1, -2], dtype=np.int32))
    assert numbers == [1, -2]
    assert type(numbers[0]) is int
    assert type(next(iter(Numbers(np.array([True]))))) is bool
    assert MetadataPair("k", GGUFValueType.ARRAY, numbers, GGUFValueType.INT32) == layout.i32s("k", [1, -2])
