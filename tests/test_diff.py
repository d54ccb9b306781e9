"""Two files held against each other."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY_BROKEN
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from phi4conv.diff import Difference, compare
from phi4conv.diff.document import as_document
from phi4conv.diff.tensors import COMPARED_AT_ONCE
from phi4conv.diff.values import array_difference, same, text_difference
from phi4conv.errors import FormatError
from phi4conv.gguf_file import layout
from phi4conv.gguf_file.edit import Change, edited
from phi4conv.gguf_file.layout import InnerArray, MetadataPair
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.write import encode_header
from phi4conv.progress import Silent

F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
Tensor = tuple[str, tuple[int, ...], GGMLQuantizationType]
TENSORS: list[Tensor] = [("a", (3, 32), Q8_0), ("b", (5,), F32), ("c", (2, 8), F16)]
TOKENS = ["!", '"', "#", "<|im_start|>", "<|im_end|>"]
PAIRS = [
    layout.text("general.architecture", "phi3"),
    layout.text("general.name", "Phi 4"),
    layout.u32("phi3.block_count", 40),
    layout.text("tokenizer.ggml.model", "gpt2"),
    layout.texts("tokenizer.ggml.tokens", TOKENS),
    layout.i32s("tokenizer.ggml.token_type", [1, 1, 1, 3, 3]),
    layout.texts("tokenizer.ggml.merges", ["! !", "! #", "# #"]),
    layout.u32("tokenizer.ggml.eos_token_id", 4),
    layout.text("tokenizer.chat_template", "{% for message in messages %}\n" * 10),
]
Write = Callable[..., Path]


@pytest.fixture
def gguf(tmp_path: Path) -> Write:
    """Writes a file: pairs, tensors, and bytes that follow from the seed and the tensor's name."""

    def write(
        name: str, pairs: Sequence[MetadataPair] = PAIRS, tensors: Sequence[Tensor] = TENSORS, seed: int = 1
    ) -> Path:
        header = encode_header(pairs, tensors)
        data = bytearray(header.data) + bytearray(header.size_bytes - header.data_offset)
        for entry in header.tensors:
            start = header.position(entry)
            stored = np.random.default_rng([seed, *entry.name.encode()]).bytes(entry.size_bytes)
            data[start : start + entry.size_bytes] = stored
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def diff(a: Path, b: Path, *, data: bool = True) -> Difference:
    return compare(read_gguf(a), read_gguf(b), data=data)


def with_pair(pair: MetadataPair) -> list[MetadataPair]:
    return [pair if old.key == pair.key else old for old in PAIRS]


def test_a_file_equals_its_copy(gguf: Write) -> None:
    found = diff(gguf("a"), gguf("b"))
    assert found.equal
    assert found.verdict == "equal: same metadata, same tensors"
    assert (found.metadata, found.vocabulary.keys, found.tensors.different) == ((), frozenset(), ())
    assert found.tensors.equal == 3


def test_one_file_under_two_names_is_said_to_be_one(gguf: Write, tmp_path: Path) -> None:
    path = gguf("a")
    (tmp_path / "link").symlink_to(path)
    os.link(path, tmp_path / "hard")
    for other in (path, tmp_path / "link", tmp_path / "hard"):
        found = diff(path, other)
        assert found.one_file
        assert found.equal
        assert found.verdict == "equal: one and the same file"


def test_one_damaged_file_equals_itself(gguf: Write) -> None:
    path = gguf("a")
    for size in (path.stat().st_size - 40, 100):
        os.truncate(path, size)
        assert diff(path, path).equal


def test_a_file_and_what_it_would_be_in_memory_are_compared_though_they_are_one(gguf: Write) -> None:
    file = read_gguf(gguf("a"))
    found = compare(file, edited(file, [Change("general.name", None)]))
    assert found.one_file
    assert found.verdict == "same tensors, other metadata: 1 key"


def test_every_kind_of_change_of_a_key_is_told(gguf: Write) -> None:
    name = layout.text("general.name", "Phi-4")
    changed = [PAIRS[0], name, layout.i32("phi3.block_count", 40), *PAIRS[4:], layout.u32("own.key", 7)]
    found = diff(gguf("a"), gguf("b", changed))
    assert [(each.key, each.kind) for each in found.metadata] == [
        ("general.name", "value"),
        ("phi3.block_count", "type"),
        ("tokenizer.ggml.model", "only-in-a"),
        ("own.key", "only-in-b"),
    ]
    assert (found.metadata[0].a, found.metadata[0].b) == (PAIRS[1], name)
    assert not found.equal
    assert found.verdict == "same tensors, other metadata: 4 keys"


def test_the_order_of_keys_makes_no_difference(gguf: Write) -> None:
    found = diff(gguf("a"), gguf("b", PAIRS[::-1]))
    assert found.equal
    assert found.other_key_order
    assert not diff(gguf("a"), gguf("b", PAIRS[1:])).other_key_order


def test_the_order_of_tensors_makes_no_difference(gguf: Write) -> None:
    found = diff(gguf("a"), gguf("b", tensors=TENSORS[::-1]))
    assert found.equal
    assert found.verdict == "equal: same metadata, same tensors (tensors in another order)"
    assert not diff(gguf("a"), gguf("b", tensors=TENSORS[1:])).tensors.other_order


def test_tensors_that_one_file_lacks_and_that_have_another_shape_or_type_are_told(gguf: Write) -> None:
    other: list[Tensor] = [("c", (8, 2), F16), ("d", (1,), F32), ("b", (5,), F16)]
    found = diff(gguf("a"), gguf("b", tensors=other))
    sides = [
        (each.name, each.a and each.a.type_name, each.b and each.b.type_name, each.first_byte)
        for each in found.tensors.different
    ]
    assert sides == [
        ("a", "Q8_0", None, None),
        ("b", "F32", "F16", None),
        ("c", "F16", "F16", None),
        ("d", None, "F32", None),
    ]
    assert found.verdict == "same metadata, other tensors: 4 of 4"


@pytest.mark.parametrize("place", [0, 1, COMPARED_AT_ONCE - 1, COMPARED_AT_ONCE, COMPARED_AT_ONCE + 3, 5_999_999])
def test_one_byte_is_found_where_it_is(gguf: Write, place: int) -> None:
    tensors: list[Tensor] = [("first", (7,), F32), ("large", (1_500_000,), F32), ("last", (9,), F32)]
    a, b = gguf("a", tensors=tensors), gguf("b", tensors=tensors)
    file = read_gguf(b)
    with b.open("r+b") as stream:
        stream.seek(file.data_offset + file.tensors[1].offset + place)
        old = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([old[0] ^ 1]))
    found = diff(a, b)
    assert [(each.name, each.first_byte) for each in found.tensors.different] == [("large", place)]
    assert found.tensors.equal == 2
    assert found.verdict == "same metadata, other tensors: 1 of 3"


def test_bytes_between_tensors_make_no_difference(gguf: Write) -> None:
    a, b = gguf("a", tensors=TENSORS[:1]), gguf("b", tensors=TENSORS[:1])
    data = bytearray(b.read_bytes())
    data[-1] ^= 1  # padding
    b.write_bytes(data)
    assert diff(a, b).equal


def test_without_data_the_bytes_are_not_compared_and_the_verdict_says_so(gguf: Write) -> None:
    found = diff(gguf("a"), gguf("b", seed=2), data=False)
    assert found.equal
    assert found.verdict == (
        "equal: same metadata, same names, shapes and types of tensors (the bytes of 3 tensors were not compared)"
    )
    assert diff(gguf("a"), gguf("b", seed=2)).verdict == "same metadata, other tensors: 3 of 3"


def test_without_data_no_file_is_read_again(gguf: Write) -> None:
    one, other = read_gguf(gguf("a")), read_gguf(gguf("b"))
    other.path.unlink()
    assert compare(one, other, data=False).equal
    with pytest.raises(FormatError, match="cannot be read"):
        compare(one, other)


def test_a_tensor_that_is_cut_in_one_file_differs_from_the_cut_on(gguf: Write) -> None:
    a, b = gguf("a"), gguf("b")
    entry = read_gguf(b).tensors[-1]
    os.truncate(b, read_gguf(b).data_offset + entry.offset + 10)
    found = diff(a, b)
    assert [(each.name, each.first_byte) for each in found.tensors.different] == [("c", 10)]
    assert [flaw.code for flaw in found.defects_b] == ["truncated-data"]
    assert found.defects_a == ()
    assert found.verdict == "same metadata, other tensors: 1 of 3, other container: defects of the format"
    os.truncate(a, b.stat().st_size)
    assert diff(a, b).equal


def test_a_tensor_of_an_unknown_type_is_not_compared(gguf: Write, tmp_path: Path) -> None:
    data = gguf("a", tensors=TENSORS[:1]).read_bytes()
    row = struct.pack("<IQQIQ", 2, 32, 3, Q8_0, 0)
    for name in ("x", "y"):
        (tmp_path / name).write_bytes(data.replace(row, struct.pack("<IQQIQ", 2, 32, 3, 999, 0)))
    found = diff(tmp_path / "x", tmp_path / "y")
    assert [name for name, _ in found.tensors.unread] == ["a"]
    assert found.verdict.endswith("(the bytes of 1 tensor were not compared)")


def test_a_repeated_name_is_compared_each_time(gguf: Write) -> None:
    paths = []
    for name in ("a", "b"):
        path = gguf(name, tensors=[("s", (8,), F32), ("t", (8,), F32)])
        # Both tensors are called "s"; a new name is as long as the old one.
        path.write_bytes(path.read_bytes().replace(struct.pack("<Q", 1) + b"t", struct.pack("<Q", 1) + b"s"))
        paths.append(path)
    assert diff(*paths).tensors.equal == 2
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(data)
    found = diff(*paths)
    assert [(each.name, each.first_byte) for each in found.tensors.different] == [("s", 31)]


def test_facts_of_the_container_make_a_difference(gguf: Write) -> None:
    path = gguf("b")
    data = path.read_bytes()
    path.write_bytes(data[:4] + struct.pack("<I", 2) + data[8:])
    found = diff(gguf("a"), path)
    assert [(fact.name, fact.a, fact.b) for fact in found.container] == [("version", "3", "2")]
    assert not found.equal
    assert found.verdict == "same metadata, same tensors, other container: version"


def test_a_defect_of_one_side_makes_a_difference(gguf: Write) -> None:
    path = gguf("b")
    path.write_bytes(path.read_bytes() + bytes(99))
    found = diff(gguf("a"), path)
    assert ([flaw.code for flaw in found.defects_a], [flaw.code for flaw in found.defects_b]) == (
        [],
        ["trailing-bytes"],
    )
    assert not found.equal


def test_a_header_that_is_cut_is_never_equal(gguf: Write) -> None:
    a, b = gguf("a"), gguf("b")
    for path in (a, b):
        os.truncate(path, 100)
    found = diff(a, b)
    assert not found.equal
    assert "as far as the header of A and B can be read" in found.verdict


def test_vocabularies_are_compared_in_their_own_words(gguf: Write) -> None:
    tokens = ["!", "#", '"', "<|im_start|>", "<|end|>"]
    changes = [
        Change("tokenizer.ggml.tokens", layout.texts("tokenizer.ggml.tokens", tokens)),
        Change("tokenizer.ggml.token_type", layout.i32s("tokenizer.ggml.token_type", [1, 1, 4, 1, 1])),
        Change("tokenizer.ggml.merges", layout.texts("tokenizer.ggml.merges", ["! !", "# #"])),
        Change("tokenizer.ggml.bos_token_id", layout.u32("tokenizer.ggml.bos_token_id", 99)),
    ]
    file = read_gguf(gguf("a"))
    found = compare(file, edited(file, changes)).vocabulary
    assert found.tokens is not None
    assert list(found.tokens.array.indices) == [1, 2, 4]
    assert (found.tokens.only_a, found.tokens.only_b) == (("<|im_end|>",), ("<|end|>",))
    assert found.merges is not None
    assert list(found.merges.array.indices) == [1, 2]
    assert (found.merges.only_a, found.merges.only_b) == (("! #",), ())
    assert [(change.a, change.b, change.ids) for change in found.types] == [
        ("CONTROL", "NORMAL", (3, 4)),
        ("NORMAL", "USER_DEFINED", (2,)),
    ]
    special = [
        (each.role, each.a and (each.a.id, each.a.text), each.b and (each.b.id, each.b.text)) for each in found.special
    ]
    assert special == [("eos", (4, "<|im_end|>"), (4, "<|end|>")), ("bos", None, (99, None))]
    assert {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.merges"} < found.keys


def test_a_text_that_stands_twice_counts_twice(gguf: Write) -> None:
    twice = layout.texts("tokenizer.ggml.merges", ["! !", "! !", "# #"])
    found = diff(gguf("a"), gguf("b", with_pair(twice))).vocabulary.merges
    assert found is not None
    assert (found.only_a, found.only_b) == (("! #",), ("! !",))


NUMBERS = st.lists(st.integers(-3, 3), max_size=12)


@given(a=NUMBERS, b=NUMBERS)
def test_arrays_differ_where_a_loop_says_so(a: list[int], b: list[int]) -> None:
    longest = max(len(a), len(b))
    expected = [
        (index, a[index] if index < len(a) else None, b[index] if index < len(b) else None)
        for index in range(longest)
        if a[index : index + 1] != b[index : index + 1]
    ]
    found = array_difference(a, b)
    assert [(item.index, item.a, item.b) for item in found.items()] == expected
    assert [item.index for item in found.items(2)] == [index for index, *_ in expected[:2]]
    numbers = array_difference(*(layout.Numbers(np.array(side, np.int32)) for side in (a, b)))
    assert list(numbers.indices) == list(found.indices)
    mixed = array_difference(layout.Numbers(np.array(a, np.int64)), layout.Numbers(np.array(b, np.int32)))
    assert list(mixed.indices) == list(found.indices)


@given(a=st.text("ab\n", max_size=200), b=st.text("ab\n", max_size=200))
def test_texts_differ_first_where_a_loop_says_so(a: str, b: str) -> None:
    expected = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    found = text_difference(a, b)
    assert found.position == expected
    assert found.line == a[:expected].count("\n") + 1
    assert found.column == len(a[:expected].rpartition("\n")[2]) + 1


def test_floats_are_compared_by_their_bits() -> None:
    assert not same(0.0, -0.0)
    assert same(math.nan, math.nan)
    assert same(InnerArray(GGUFValueType.FLOAT32, [math.nan]), InnerArray(GGUFValueType.FLOAT32, (math.nan,)))
    assert not same(InnerArray(GGUFValueType.INT8, [1]), InnerArray(GGUFValueType.INT16, [1]))
    floats = [layout.Numbers(np.array(values, np.float32)) for values in ([0.0, math.nan], [-0.0, math.nan])]
    assert list(array_difference(*floats).indices) == [0]


def test_progress_is_told_of_every_byte_even_when_a_difference_ends_the_reading(gguf: Write) -> None:
    told: list[int] = []

    class Listening(Silent):
        def begin(self, total: int) -> None:
            told.append(-total)

        def advance(self, count: int, _: str) -> None:
            told.append(count)

    compare(read_gguf(gguf("a")), read_gguf(gguf("b", seed=2)), progress=Listening())
    assert sum(told) == 0
    assert len(told) == 4


def test_the_document_is_json_and_complete(gguf: Write) -> None:
    pairs = [
        *PAIRS[:1],
        layout.f32("phi3.scale", math.nan),
        layout.text("general.name", "*@" + "x" * 200),
        layout.texts("tokenizer.ggml.tokens", ["other", *TOKENS[1:]]),
        MetadataPair("nested", GGUFValueType.ARRAY, [InnerArray(GGUFValueType.INT8, [1])], GGUFValueType.ARRAY),
    ]
    b = gguf("b", pairs, [*TENSORS[:2], ("d", (1,), F32)], seed=2)
    b.write_bytes(b.read_bytes().replace(b"*@", b"\xff\xfe") + b"trailing bytes, more than the padding")
    found = diff(gguf("a"), b)
    document = json.loads(json.dumps(as_document(found), allow_nan=False))
    assert document["verdict"] == found.verdict
    assert (document["equal"], document["one_file"], document["data_compared"]) == (False, False, True)
    kinds = {pair["key"]: pair["kind"] for pair in document["metadata"]}
    assert kinds == {each.key: each.kind for each in found.metadata}
    (name,) = [pair for pair in document["metadata"] if pair["key"] == "general.name"]
    assert name["text"]["position"] == 0
    assert name["b"]["value"].startswith("\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}xxx")
    (tokens,) = [pair for pair in document["metadata"] if pair["key"] == "tokenizer.ggml.tokens"]
    assert tokens["array"]["items"] == [{"index": 0, "a": "!", "b": "other"}]
    assert document["vocabulary"]["tokens"]["only_b"] == ["other"]
    assert document["vocabulary"]["special"] == [{"role": "eos", "a": {"id": 4, "text": "<|im_end|>"}, "b": None}]
    assert [tensor["name"] for tensor in document["tensors"]] == ["a", "b", "c", "d"]
    assert document["tensors"][2]["b"] is None
    only_b = [flaw["code"] for flaw in document["b"]["defects_only_here"]]
    assert only_b == ["bad-utf8", "nested-array", "trailing-bytes"]


def test_a_file_in_memory_can_be_held_against_one_on_the_disk(tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(TINY_BROKEN.read_bytes())
    changes = [Change("tokenizer.ggml.model", layout.text("tokenizer.ggml.model", "gpt2"))]
    found = compare(edited(read_gguf(TINY_BROKEN), changes), read_gguf(copy))
    assert found.verdict == "same tensors, other metadata: 1 key"
    assert not found.one_file
