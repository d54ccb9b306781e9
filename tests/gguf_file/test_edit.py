"""Other metadata, the same tensor bytes."""

from __future__ import annotations

import errno
import os
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY_BROKEN
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from phi4conv.errors import FormatError, OutputError
from phi4conv.files import AtomicFile, PositionedReader, PositionedWriter
from phi4conv.gguf_file import edit, layout
from phi4conv.gguf_file.edit import LARGEST_ALIGNMENT, Change, edited, edited_size, write_edited
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.write import encode_header
from phi4conv.progress import Silent

F32, F16, Q4_K, Q8_0 = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q8_0,
)
Tensor = tuple[str, tuple[int, ...], GGMLQuantizationType]
TENSORS: list[Tensor] = [("a", (3, 32), Q8_0), ("b", (5,), F32), ("c", (2, 256), Q4_K)]
PAIRS = [
    layout.text("general.architecture", "phi3"),
    layout.text("general.name", "Phi 4"),
    layout.u32("phi3.block_count", 40),
    layout.text("tokenizer.ggml.model", "gpt2"),
    layout.texts("tokenizer.ggml.tokens", ["a", "b", "<|im_end|>"]),
    layout.u32("tokenizer.ggml.eos_token_id", 1),
    layout.boolean("tokenizer.ggml.add_bos_token", False),
]


def gguf(pairs: Sequence[MetadataPair] = PAIRS, tensors: Sequence[Tensor] = TENSORS, alignment: int = 32) -> bytes:
    """A good file whose tensors hold random bytes, and whose padding zeros."""
    header = encode_header(pairs, tensors, alignment)
    data = bytearray(header.data) + bytearray(header.size_bytes - header.data_offset)
    random = np.random.default_rng(4)
    for entry in header.tensors:
        start = header.position(entry)
        data[start : start + entry.size_bytes] = random.bytes(entry.size_bytes)
    return bytes(data)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edit")


@pytest.fixture(scope="session")
def source(place: Path) -> Callable[[bytes], GGUFFile]:
    def read(data: bytes) -> GGUFFile:
        (place / "in.gguf").write_bytes(data)
        return read_gguf(place / "in.gguf")

    return read


def write(file: GGUFFile, *changes: Change) -> bytes:
    """What write_edited makes of the file, held against edited and edited_size."""
    target = file.path.with_name("out.gguf")
    size = edited_size(file, changes)
    with AtomicFile(target, size, force=True, inputs=[file.path]) as out:
        write_edited(file, changes, out, Silent())
        out.commit()
    written, memory = read_gguf(target), edited(file, changes)
    assert written.file_size == size
    if changes:
        assert (written.version, written.alignment) == (memory.version, memory.alignment)
        assert [flaw.code for flaw in written.defects] == [flaw.code for flaw in memory.defects]
    # Pairs are held against each other by their bytes: to Python a NaN is not equal to itself, and 0 is -0.
    for one, other in zip(written.metadata.values(), memory.metadata.values(), strict=True):
        assert pair_bytes(one) == pair_bytes(other)
    assert tensor_bytes(written) == tensor_bytes(file)
    return target.read_bytes()


def pair_bytes(pair: MetadataPair) -> bytes:
    alignment = pair.value if pair.key == "general.alignment" else 32
    return encode_header([pair], [], alignment).data


def tensor_bytes(file: GGUFFile) -> list[tuple[str, tuple[int, ...], object, bytes]]:
    data = file.path.read_bytes()
    starts = [file.data_offset + entry.offset for entry in file.tensors]
    return [
        (entry.name, entry.shape, entry.qtype, data[start : start + entry.size_bytes])
        for entry, start in zip(file.tensors, starts, strict=True)
    ]


def setting(pair: MetadataPair) -> Change:
    return Change(pair.key, pair)


KEYS = st.sampled_from(
    [
        *(pair.key for pair in PAIRS[1:]),
        "general.type",
        "phi3.attention.sliding_window",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.chat_template",
        "own.key",
    ]
)
VALUES = st.one_of(
    st.text(max_size=40).map(lambda value: (GGUFValueType.STRING, value, None)),
    st.integers(0, 2**32 - 1).map(lambda value: (GGUFValueType.UINT32, value, None)),
    st.floats(width=32).map(lambda value: (GGUFValueType.FLOAT32, value, None)),
    st.booleans().map(lambda value: (GGUFValueType.BOOL, value, None)),
    st.lists(st.text(max_size=9), max_size=40).map(
        lambda values: (GGUFValueType.ARRAY, tuple(values), GGUFValueType.STRING)
    ),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40).map(
        lambda values: (GGUFValueType.ARRAY, tuple(values), GGUFValueType.INT32)
    ),
)


@st.composite
def change(draw: st.DrawFn) -> Change:
    key = draw(KEYS)
    return Change(key, draw(st.none() | VALUES.map(lambda value: MetadataPair(key, *value))))


@st.composite
def tensor_table(draw: st.DrawFn) -> list[Tensor]:
    kinds = draw(st.lists(st.sampled_from([F32, F16, Q8_0, Q4_K]), max_size=4))
    return [
        (f"t{number}", (draw(st.integers(1, 3)), GGML_QUANT_SIZES[kind][0] * draw(st.integers(1, 3))), kind)
        for number, kind in enumerate(kinds)
    ]


@given(changes=st.lists(change(), max_size=6), tensors=tensor_table(), alignment=st.sampled_from([32, 128]))
def test_any_change_leaves_tensor_bytes_and_other_keys_alone(
    source: Callable[[bytes], GGUFFile], changes: list[Change], tensors: list[Tensor], alignment: int
) -> None:
    told = [layout.u32("general.alignment", alignment)] if alignment != 32 else []
    file = source(gguf([*PAIRS, *told], tensors, alignment))
    written = write(file, *changes)
    again = read_gguf(file.path.with_name("out.gguf"))
    changed = {each.key: each.pair for each in changes}
    assert [pair for key, pair in again.metadata.items() if key not in changed] == [
        pair for key, pair in file.metadata.items() if key not in changed
    ]
    assert {key for key in changed if key in again.metadata} == {key for key, pair in changed.items() if pair}
    # An unchanged place among the old keys.
    old = [key for key in file.metadata if key in again.metadata]
    if not any(each.pair is None for each in changes):
        assert [key for key in again.metadata if key in file.metadata] == old
    assert again.defects == ()
    # Once more, nothing is left to change.
    (file.path.with_name("again.gguf")).write_bytes(written)
    assert write(read_gguf(file.path.with_name("again.gguf")), *changes) == written or any(
        each.pair is None for each in changes
    )


@given(first=st.lists(change(), max_size=4), second=st.lists(change(), max_size=4))
def test_changes_are_applied_one_after_the_other(
    source: Callable[[bytes], GGUFFile], first: list[Change], second: list[Change]
) -> None:
    file = source(gguf())
    at_once, in_turn = edited(file, [*first, *second]), edited(edited(file, first), second)
    assert [*map(pair_bytes, at_once.metadata.values())] == [*map(pair_bytes, in_turn.metadata.values())]


def test_without_changes_every_byte_is_copied(source: Callable[[bytes], GGUFFile]) -> None:
    good = gguf()
    for data in (good, good + b"trailing", good[:-9], good[:70], b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + b"?"):
        assert write(source(data)) == data


def test_a_change_that_changes_nothing_gives_the_same_file(source: Callable[[bytes], GGUFFile]) -> None:
    file = source(gguf())
    assert write(file, setting(layout.u32("phi3.block_count", 40))) == gguf()
    assert write(file, Change("not.there", None)) == gguf()


def test_a_replaced_key_keeps_its_place_and_a_new_one_finds_its_own(source: Callable[[bytes], GGUFFile]) -> None:
    name, eot = layout.text("general.name", "a longer name"), layout.u32("tokenizer.ggml.eot_token_id", 2)
    pairs = list(edited(source(gguf()), [setting(eot), setting(name)]).metadata.values())
    assert pairs == [PAIRS[0], name, *PAIRS[2:6], eot, PAIRS[6]]


def test_the_file_in_memory_still_says_where_the_bytes_are(source: Callable[[bytes], GGUFFile]) -> None:
    file = source(gguf())
    other = edited(file, [setting(layout.text("general.name", "n" * 5000))])
    assert (other.path, other.tensors, other.data_offset, other.file_size) == (
        file.path,
        file.tensors,
        file.data_offset,
        file.file_size,
    )
    assert edited(file, []) is file


def test_a_vocabulary_alone_can_be_edited(source: Callable[[bytes], GGUFFile]) -> None:
    eos = layout.u32("tokenizer.ggml.eos_token_id", 2)
    file = source(gguf(tensors=[]))
    assert write(file, setting(eos)) == gguf([*PAIRS[:5], eos, PAIRS[6]], [])


def test_gaps_and_trailing_bytes_are_dropped(source: Callable[[bytes], GGUFFile]) -> None:
    header = encode_header(PAIRS, [("a", (8,), F32), ("b", (8,), F32)])
    # The second tensor 32 bytes later than it could be, and 7 bytes after the padding.
    table = header.data.replace(tensor_row(b"b", (8,), F32, 32), tensor_row(b"b", (8,), F32, 64))
    file = source(table + b"A" * 32 + b"gap!" * 8 + b"B" * 32 + b"too much" * 5)
    assert {flaw.code for flaw in file.defects} == {"gap", "trailing-bytes"}
    written = write(file, setting(PAIRS[0]))
    assert written == header.data + b"A" * 32 + b"B" * 32


def test_padding_is_zero_whatever_it_was(source: Callable[[bytes], GGUFFile]) -> None:
    good = gguf()
    header = encode_header(PAIRS, TENSORS)
    end = header.position(header.tensors[0]) + header.tensors[0].size_bytes
    dirty = (
        good[:end] + b"\xff" * (header.position(header.tensors[1]) - end) + good[header.position(header.tensors[1]) :]
    )
    assert dirty != good
    assert write(source(dirty), setting(PAIRS[0])) == good


def test_tensors_are_laid_out_in_the_order_of_the_table(source: Callable[[bytes], GGUFFile]) -> None:
    header = encode_header(PAIRS, [("a", (8,), F32), ("b", (8,), F32)])
    rows = [tensor_row(name, (8,), F32, offset) for name, offset in ((b"a", 0), (b"b", 32), (b"a", 32), (b"b", 0))]
    swapped = header.data.replace(rows[0] + rows[1], rows[2] + rows[3])
    file = source(swapped + b"B" * 32 + b"A" * 32)
    assert [flaw.code for flaw in file.defects] == ["tensor-order"]
    assert write(file, setting(PAIRS[0])) == header.data + b"A" * 32 + b"B" * 32


def test_tensors_that_are_misaligned_are_aligned(source: Callable[[bytes], GGUFFile]) -> None:
    header = encode_header([], [("a", (4,), F32), ("b", (4,), F32)])
    data = header.data.replace(struct.pack("<IQ", 0, 32), struct.pack("<IQ", 0, 16)) + b"A" * 16 + b"B" * 16
    file = source(data)
    assert [flaw.code for flaw in file.defects] == ["misaligned-tensor"]
    written = write(file, setting(layout.u32("k", 1)))
    assert written.endswith(b"A" * 16 + bytes(16) + b"B" * 16 + bytes(16))


def test_a_repeated_key_stands_once_with_its_first_value(source: Callable[[bytes], GGUFFile]) -> None:
    once = encode_header([layout.u32("k", 1), layout.u32("l", 2)], []).data
    again = once[:16] + struct.pack("<Q", 3) + once[24:] + encode_header([layout.u32("k", 7)], []).data[24:]
    file = source(again)
    assert [flaw.code for flaw in file.defects] == ["duplicate-key"]
    assert write(file, setting(layout.u32("l", 2))) == once


def test_version_2_becomes_3(source: Callable[[bytes], GGUFFile]) -> None:
    good = gguf()
    file = source(good[:4] + struct.pack("<I", 2) + good[8:])
    assert file.version == 2
    assert write(file, setting(PAIRS[0])) == good


def test_strings_that_are_no_utf8_keep_their_bytes(source: Callable[[bytes], GGUFFile]) -> None:
    data = gguf([layout.text("k", "*@"), layout.u32("l", 1)]).replace(b"*@", b"\xff\xfe")
    assert write(source(data), setting(layout.u32("l", 1))) == data
    assert edited(source(data), [setting(layout.text("k", "good"))]).defects == ()


@pytest.mark.parametrize("alignment", [64, 4096])
def test_the_alignment_is_kept(source: Callable[[bytes], GGUFFile], alignment: int) -> None:
    pairs = [*PAIRS, layout.u32("general.alignment", alignment)]
    written = write(source(gguf(pairs, alignment=alignment)), setting(layout.text("general.name", "x")))
    assert read_gguf_bytes(source, written).alignment == alignment


def read_gguf_bytes(source: Callable[[bytes], GGUFFile], data: bytes) -> GGUFFile:
    file = source(data)
    assert file.defects == ()
    assert all((file.data_offset + entry.offset) % file.alignment == 0 for entry in file.tensors)
    return file


def test_the_alignment_can_be_changed_and_dropped(source: Callable[[bytes], GGUFFile]) -> None:
    wide = layout.u32("general.alignment", 256)
    written = write(source(gguf()), setting(wide))
    assert read_gguf_bytes(source, written).alignment == 256
    assert write(source(written), Change("general.alignment", None)) == gguf()


@pytest.mark.parametrize("value", [0, 48, LARGEST_ALIGNMENT * 2])
def test_an_alignment_that_cannot_be_is_refused(source: Callable[[bytes], GGUFFile], value: int) -> None:
    with pytest.raises(ValueError, match="alignment"):
        edited(source(gguf()), [setting(layout.u32("general.alignment", value))])
    with pytest.raises(ValueError, match="alignment"):
        edited(source(gguf()), [setting(layout.text("general.alignment", "32"))])


def test_a_badly_stored_alignment_is_stored_well(source: Callable[[bytes], GGUFFile]) -> None:
    file = source(encode_header([layout.u64("general.alignmenX", 64)], []).data.replace(b"menX", b"ment"))
    assert [flaw.code for flaw in file.defects] == ["bad-alignment"]
    changes = [setting(layout.u32("k", 1))]
    assert edited(file, changes).metadata["general.alignment"] == layout.u32("general.alignment", 64)


def test_a_pair_of_another_key_is_no_change() -> None:
    with pytest.raises(ValueError, match=r"a change of k with a pair of l"):
        Change("k", layout.u32("l", 1))


def test_a_value_that_does_not_fit_is_refused_before_anything_is_written(
    source: Callable[[bytes], GGUFFile],
) -> None:
    with pytest.raises(ValueError, match="k: -1 does not fit UINT32"):
        edited_size(source(gguf()), [setting(layout.u32("k", -1))])


def tensor_row(name: bytes, dimensions: tuple[int, ...], kind: int, offset: int) -> bytes:
    fields = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return struct.pack("<Q", len(name)) + name + fields


def file_of(*rows: bytes, data: int = 64, order: str = "<", version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack(f"{order}IQQ", version, len(rows), 0) + b"".join(rows)
    return header + bytes(-len(header) % 32) + bytes(data)


A = tensor_row(b"a", (8,), F32, 0)
REFUSED: list[tuple[str, bytes, str]] = [
    ("truncated-header", gguf()[:40], "download or copy"),
    ("truncated-data", gguf()[:-40], "download or copy"),
    ("big-endian", file_of(order=">"), "convert"),
    ("unsupported-version", file_of(version=4, data=0), "convert"),
    ("unknown-tensor-type", file_of(tensor_row(b"a", (8,), 5, 0)), "newer types"),
    ("partial-block", file_of(tensor_row(b"a", (31,), Q8_0, 0)), "convert"),
    ("overlapping-tensors", file_of(tensor_row(b"a", (16,), F32, 0), tensor_row(b"b", (8,), F32, 32)), "convert"),
    ("duplicate-tensor", file_of(A, tensor_row(b"a", (8,), F32, 32)), "convert"),
    ("bad-dimensions", file_of(tensor_row(b"a", (0, 8), F32, 0)), "convert"),
    ("long-tensor-name", file_of(tensor_row(b"n" * 64, (8,), F32, 0)), "convert"),
    ("a tensor without a name", file_of(tensor_row(b"", (8,), F32, 0)), "convert"),
    ("empty-key", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<QII", 0, 4, 0), "convert"),
]


@pytest.mark.parametrize(("code", "data", "advice"), REFUSED, ids=[code for code, *_ in REFUSED])
def test_what_cannot_be_carried_over_is_said(
    source: Callable[[bytes], GGUFFile], code: str, data: bytes, advice: str
) -> None:
    file = source(data)
    for act in (edited, edited_size):
        with pytest.raises(FormatError, match=advice) as caught:
            act(file, [setting(layout.u32("k", 1))])
        assert f"({code})" in str(caught.value)
        assert str(file.path) in str(caught.value)


def test_of_many_obstacles_the_first_are_shown(source: Callable[[bytes], GGUFFile]) -> None:
    rows = [tensor_row(b"a%d" % number, (8,), 5, 0) for number in range(20)]
    with pytest.raises(FormatError, match="and 15 more defects") as caught:
        edited(source(file_of(*rows)), [setting(layout.u32("k", 1))])
    assert len(caught.value.problems) == 6


def test_an_alignment_that_would_fill_the_disk_is_refused(source: Callable[[bytes], GGUFFile]) -> None:
    pairs = [layout.u32("general.alignment", LARGEST_ALIGNMENT * 2)]
    file = source(encode_header(pairs, [], LARGEST_ALIGNMENT * 2).data)
    with pytest.raises(FormatError, match="alignment is too large"):
        edited(file, [setting(layout.u32("k", 1))])


def test_a_file_that_changed_since_it_was_read_is_refused(source: Callable[[bytes], GGUFFile]) -> None:
    file = source(gguf())
    file.path.write_bytes(gguf() + b"more")
    with pytest.raises(FormatError, match="changed while it was read") as caught:
        write(file, setting(PAIRS[0]))
    assert "wait until nothing writes to it" in str(caught.value)
    file.path.unlink()
    with pytest.raises(FormatError, match="No such file"):
        write(file, setting(PAIRS[0]))


def test_a_file_that_changes_while_it_is_copied_is_refused(source: Callable[[bytes], GGUFFile], tmp_path: Path) -> None:
    file = source(gguf())

    class Meddling(Silent):
        def advance(self, *_: object) -> None:
            file.path.write_bytes(gguf())
            os.utime(file.path, ns=(0, 0))

    with (
        pytest.raises(FormatError, match="changed while it was read"),
        AtomicFile(tmp_path / "out.gguf", 0) as out,
    ):
        write_edited(file, [setting(PAIRS[0])], out, Meddling())
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_leads_elsewhere_meanwhile_does_not_matter(
    source: Callable[[bytes], GGUFFile], tmp_path: Path
) -> None:
    file = source(gguf())

    class Swapping(Silent):
        def begin(self, _: int) -> None:
            other = file.path.with_name("other.gguf")
            other.write_bytes(bytes(len(gguf())))
            other.replace(file.path)

    with AtomicFile(tmp_path / "out.gguf", 0) as out:
        write_edited(file, [setting(PAIRS[0])], out, Swapping())
        out.commit()
    assert (tmp_path / "out.gguf").read_bytes() == gguf()


def test_progress_is_told_of_every_byte(source: Callable[[bytes], GGUFFile], tmp_path: Path) -> None:
    file = source(gguf())
    told: list[object] = []

    class Listening(Silent):
        def begin(self, total: int) -> None:
            told.append(total)

        def advance(self, count: int, label: str) -> None:
            told.append((label, count))

        def end(self) -> None:
            told.append("end")

    with AtomicFile(tmp_path / "out.gguf", 0) as out:
        write_edited(file, [setting(layout.text("general.name", "n" * 100))], out, Listening())
    sizes = [(entry.name, entry.size_bytes) for entry in file.tensors]
    assert told == [sum(size for _, size in sizes), *sizes, "end"]


def test_the_broken_fixture_keeps_its_tensors(tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(TINY_BROKEN.read_bytes())
    file = read_gguf(source)
    merges = layout.texts("tokenizer.ggml.merges", ["a b"] * 1000)
    write(
        file,
        Change("tokenizer.ggml.scores", None),
        setting(layout.text("tokenizer.ggml.model", "gpt2")),
        setting(merges),
    )
    keys = list(read_gguf(tmp_path / "out.gguf").metadata)
    assert keys.index("tokenizer.ggml.merges") == keys.index("tokenizer.ggml.token_type") + 1
    assert "tokenizer.ggml.scores" not in keys


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(gguf(tensors=[("large", (1024, 1024), F32)]))
    monkeypatch.setattr("phi4conv.files.check_target", lambda *_, **__: None)
    file = read_gguf(source)
    with pytest.raises(OutputError, match="No space left"), AtomicFile(small_disk / "out.gguf", 0) as out:
        write_edited(file, [setting(layout.u32("k", 1))], out, Silent())
    assert list(small_disk.iterdir()) == []


def test_a_clone_that_is_written_around_is_the_same_file(
    source: Callable[[bytes], GGUFFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that shares blocks gives a whole copy at once: gone over, it is what a new file would be."""
    eos = layout.u32("tokenizer.ggml.eos_token_id", 2)
    header = encode_header(PAIRS, TENSORS)
    dirty = bytearray(gguf() + b"trailing")
    end = header.position(header.tensors[0]) + header.tensors[0].size_bytes
    dirty[end] = 0xFF
    written = write(source(bytes(dirty)), setting(eos))
    cloned = []

    def cloning(reader: PositionedReader, writer: PositionedWriter) -> bool:
        cloned.append(reader.path)
        writer.write_at(memoryview(reader.read(0, reader.size)), 0)
        return True

    monkeypatch.setattr(edit, "clone", cloning)
    assert write(source(bytes(dirty)), setting(eos)) == written
    assert len(cloned) == 1
    write(source(gguf(tensors=[])), setting(eos))
    write(source(gguf()), setting(layout.text("general.name", "n" * 1000)))  # tensors move: no clone
    assert len(cloned) == 1


def test_a_source_that_cannot_be_read_is_no_fault_of_the_target(
    source: Callable[[bytes], GGUFFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    file = source(gguf())
    monkeypatch.setattr("phi4conv.files.PositionedReader._read_some", broken)
    monkeypatch.setattr("phi4conv.copying.copied_by_kernel", lambda _: 0)
    with pytest.raises(FormatError, match=r"the file cannot be read(.|\n)*in\.gguf(.|\n)*Input/output error"):
        write(file, setting(PAIRS[0]))


@pytest.mark.parametrize("by_kernel", [True, False])
def test_memory_holds_a_few_megabytes_of_the_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_kernel: bool
) -> None:
    path = tmp_path / "in.gguf"
    header = encode_header(PAIRS, [("large", (1 << 12, 1 << 12), F32)])
    path.write_bytes(header.data)
    os.truncate(path, header.size_bytes)  # a hole of 64 MiB
    if not by_kernel:
        monkeypatch.setattr("phi4conv.copying.copied_by_kernel", lambda _: 0)
    file = read_gguf(path)
    tracemalloc.start()
    try:
        with AtomicFile(tmp_path / "out.gguf", header.size_bytes) as out:
            write_edited(file, [setting(PAIRS[0])], out, Silent())
            out.commit()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert (tmp_path / "out.gguf").stat().st_size == header.size_bytes
