"""Importance matrices: both formats, every way in which a file can be bad, and which tensors get what."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi4conv.arrays import Floats
from phi4conv.errors import ConversionError, FormatError, OutputError
from phi4conv.gguf_file.layout import MetadataPair, text, u32
from phi4conv.imatrix import ImportanceMatrix, importance_pairs, read_imatrix, weigh, write_imatrix
from phi4conv.plan import TensorPlan
from phi4conv.quant import CODECS, QuantCodec
from phi4conv.rows import ConstantRow

UP = "blk.0.ffn_up.weight"
DOWN = "blk.0.ffn_down.weight"


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def gguf_imatrix(path: Path, tensors: Mapping[str, Any], **replaced: Any) -> Path:
    """A file as llama-imatrix writes it, made by gguf-py; a key replaced by None is left out."""
    kind = replaced.pop("type", "imatrix")
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].clear()  # llama-imatrix writes no architecture
    if kind:
        writer.add_type(kind)
    values: dict[str, Any] = {"datasets": ["wiki.txt", "code.txt"], "chunk_count": 7, "chunk_size": 512} | replaced
    if values["datasets"] is not None:
        writer.add_array("imatrix.datasets", values["datasets"])
    for name in ("chunk_count", "chunk_size"):
        if values[name] is not None:
            writer.add_uint32(f"imatrix.{name}", values[name])
    for name, array in tensors.items():
        writer.add_tensor(name, np.asarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entry(name: str, sums: Any, count: float) -> dict[str, Floats]:
    return {f"{name}.in_sum2": np.asarray(sums, np.float32), f"{name}.counts": floats(count)}


def legacy(*entries: tuple[str, int, Floats], tail: bytes = b"") -> bytes:
    """The older format: name, number of calls, values."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += values.astype("<f4").tobytes()
    return data + tail


TAIL = struct.pack("<ii", 125, 9) + b"calib.txt"


def test_a_gguf_gives_sums_divided_by_counts(tmp_path: Path) -> None:
    tensors = entry(UP, [3, 6, 0, 1], 3) | entry(DOWN, [[5, 1, 2]], 512)  # a matrix of one row, as ggml shapes it
    matrix = read_imatrix(gguf_imatrix(tmp_path / "any-name.dat", tensors))
    assert list(matrix.weights) == [UP, DOWN]
    assert np.array_equal(matrix.weights[UP], floats(1, 2, 0, np.float32(1) / np.float32(3)))
    assert np.array_equal(matrix.weights[DOWN], floats(5, 1, 2) / np.float32(512))
    assert {weights.dtype for weights in matrix.weights.values()} == {np.dtype(np.float32)}
    assert (matrix.datasets, matrix.chunk_count) == (("wiki.txt", "code.txt"), 7)


@pytest.mark.parametrize(("count", "divisor"), [(0, None), (0.4, None), (0.5, 1), (2.5, 3), (1e9, 1e9)])
def test_counts_are_rounded_as_lround_does_and_zero_means_ones(
    tmp_path: Path, count: float, divisor: float | None
) -> None:
    matrix = read_imatrix(gguf_imatrix(tmp_path / "a.gguf", entry(UP, [3, 6, 0], count)))
    expected = floats(1, 1, 1) if divisor is None else floats(3, 6, 0) / np.float32(divisor)
    assert np.array_equal(matrix.weights[UP], expected)


def test_the_older_format_divides_by_calls_unless_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "named-wrong.gguf"
    path.write_bytes(legacy((UP, 3, floats(3, 6, 1)), (DOWN, 0, floats(5, 0)), tail=TAIL))
    matrix = read_imatrix(path)
    assert np.array_equal(matrix.weights[UP], floats(3, 6, 1) / np.float32(3))
    assert np.array_equal(matrix.weights[DOWN], floats(5, 0))
    assert (matrix.datasets, matrix.chunk_count) == (("calib.txt",), 125)


def test_the_older_formats_bytes_are_those_that_llama_cpp_describes(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(
        bytes.fromhex(
            "01000000"  # one entry
            "03000000 612e62"  # a name of three bytes: a.b
            "02000000"  # two calls
            "02000000"  # two values
            "0000803f 00008040"  # 1.0, 4.0
            "05000000"  # five chunks
            "01000000 74"  # a data set's name of one byte: t
        )
    )
    matrix = read_imatrix(path)
    assert {name: weights.tolist() for name, weights in matrix.weights.items()} == {"a.b": [0.5, 2.0]}
    assert (matrix.datasets, matrix.chunk_count) == (("t",), 5)


@pytest.mark.parametrize(("tail", "chunks"), [(b"", 0), (TAIL[:4], 125), (TAIL[:4] + bytes(4), 125)])
def test_the_older_format_may_end_early(tmp_path: Path, tail: bytes, chunks: int) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy((UP, 1, floats(1)), tail=tail))
    matrix = read_imatrix(path)
    assert (matrix.datasets, matrix.chunk_count) == ((), chunks)


columns = st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=9)


@given(st.dictionaries(st.sampled_from([UP, DOWN, "output.weight", "ä.weight"]), columns, min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, entries: dict[str, list[float]]) -> None:
    weights = {name: floats(*values) for name, values in entries.items()}
    write_imatrix(ImportanceMatrix(tmp_path / "a.gguf", weights, ("ä.txt",), 3), force=True)
    matrix = read_imatrix(tmp_path / "a.gguf")
    assert {name: values.tolist() for name, values in matrix.weights.items()} == {
        name: values.tolist() for name, values in weights.items()
    }
    assert (matrix.datasets, matrix.chunk_count) == (("ä.txt",), 3)


def test_what_is_written_has_the_layout_of_llama_imatrix(tmp_path: Path) -> None:
    write_imatrix(ImportanceMatrix(tmp_path / "a.gguf", {UP: floats(2, 4), DOWN: floats(1)}, ("t",), 3), chunk_size=256)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert values == {
        "general.type": "imatrix",
        "imatrix.datasets": ["t"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 256,
    }
    tensors = {tensor.name: (tensor.tensor_type.name, tensor.data.tolist()) for tensor in reader.tensors}
    assert tensors == {
        f"{DOWN}.in_sum2": ("F32", [1]),
        f"{DOWN}.counts": ("F32", [1]),
        f"{UP}.in_sum2": ("F32", [2, 4]),
        f"{UP}.counts": ("F32", [1]),
    }


def test_only_what_can_be_read_again_is_written_and_nothing_replaced_unasked(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="column 1"):
        write_imatrix(ImportanceMatrix(tmp_path / "a.gguf", {UP: floats(1, float("nan"))}))
    write_imatrix(ImportanceMatrix(tmp_path / "a.gguf", {UP: floats(1)}))
    with pytest.raises(OutputError, match="the output exists"):
        write_imatrix(ImportanceMatrix(tmp_path / "a.gguf", {UP: floats(1)}))


GOOD = entry(UP, [1, 2], 4)

# Tensors, keys replaced, and words of the message.
BAD_GGUFS: dict[str, tuple[Mapping[str, Any], dict[str, Any], str]] = {
    "a model": (GOOD, {"type": "model"}, r"general.type 'imatrix'(.|\n)*'model'"),
    "no type": (GOOD, {"type": None}, r"general.type 'imatrix'"),
    "no datasets": (GOOD, {"datasets": None}, r"no imatrix\.datasets"),
    "no chunk count": (GOOD, {"chunk_count": None}, r"no imatrix\.chunk_count"),
    "no chunk size": (GOOD, {"chunk_size": None}, r"no imatrix\.chunk_size"),
    "no tensors": ({}, {}, r"tensors named(.|\n)*none"),
    "no counts": ({f"{UP}.in_sum2": floats(1)}, {}, r"\.in_sum2 without \.counts"),
    "no sums": ({f"{UP}.counts": floats(1)}, {}, r"\.counts without \.in_sum2"),
    "another type": ({**GOOD, f"{UP}.in_sum2": np.ones(2, np.float16)}, {}, r"expected: F32(.|\n)*F16"),
    "experts": (
        {f"{UP}.in_sum2": np.ones((2, 4), np.float32), f"{UP}.counts": np.ones((2, 1), np.float32)},
        {},
        "no experts",
    ),
    "sums of several": ({**GOOD, f"{UP}.in_sum2": np.ones((3, 2), np.float32)}, {}, r"no experts(.|\n)*\(3, 2\)"),
    "negative": (entry(UP, [1, 2, -3], 4), {}, r"column 2(.|\n)*none negative(.|\n)*-3"),
    "NaN": (entry(UP, [1, float("nan")], 4), {}, r"column 1(.|\n)*nan"),
    "infinite": (entry(UP, [float("inf"), 1], 4), {}, r"column 0(.|\n)*inf"),
    "negative count": (entry(UP, [1], -1), {}, r"counts(.|\n)*expected: a count(.|\n)*-1"),
    "NaN count": (entry(UP, [1], float("nan")), {}, r"counts(.|\n)*nan"),
    "infinite count": (entry(UP, [1], float("inf")), {}, r"counts(.|\n)*inf"),
}


@pytest.mark.parametrize("case", BAD_GGUFS)
def test_a_bad_gguf_is_one_clear_error(tmp_path: Path, case: str) -> None:
    tensors, replaced, words = BAD_GGUFS[case]
    path = gguf_imatrix(tmp_path / "bad.gguf", tensors, **replaced)
    with pytest.raises(FormatError, match=words) as caught:
        read_imatrix(path)
    assert len(caught.value.problems) == 1
    assert str(path) in caught.value.problems[0].where


def test_a_count_of_chunks_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    path = gguf_imatrix(tmp_path / "bad.gguf", GOOD)
    data = bytearray(path.read_bytes())
    key = data.index(b"imatrix.chunk_count") + len(b"imatrix.chunk_count")
    data[key : key + 4] = struct.pack("<I", gguf.GGUFValueType.FLOAT32)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"imatrix\.chunk_count(.|\n)*UINT32(.|\n)*FLOAT32"):
        read_imatrix(path)


def test_a_tensor_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = gguf_imatrix(tmp_path / "bad.gguf", entry("blk.0.a", [1], 1) | entry("blk.1.a", [1], 1))
    path.write_bytes(path.read_bytes().replace(b"blk.1.a", b"blk.0.a"))
    with pytest.raises(FormatError, match="duplicate-tensor"):
        read_imatrix(path)


HUGE = (1 << 31) - 1

# Bytes, and words of the message.
BAD_LEGACY: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short"),
    "three bytes": (b"\1\0\0", "cut short"),
    "text": (b"importance: high\n", r"a GGUF, or in the older format a number from 1 to 65,536"),
    "zip": (b"PK\x03\x04" + bytes(99), "zip archive"),
    "no entries": (struct.pack("<i", 0), "zeros"),
    "negative entries": (struct.pack("<i", -1), "number of entries"),
    "huge number of entries": (struct.pack("<i", HUGE), "number of entries"),
    "huge name": (struct.pack("<ii", 1, HUGE), "length of its name"),
    "negative name": (struct.pack("<ii", 1, -5), "length of its name"),
    "huge number of values": (
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, HUGE),
        "number of values",
    ),
    "more values than the file has": (
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 60_000_000),
        "cut short",
    ),
    "no values": (legacy((UP, 1, floats())), "number of values"),
    "negative calls": (legacy((UP, -1, floats(1))), "calls"),
    "more entries than there are": (struct.pack("<i", 2) + legacy((UP, 1, floats(1)))[4:], "entry 2 of 2"),
    "a name twice": (legacy((UP, 1, floats(1)), (UP, 1, floats(1))), "a second time"),
    "negative": (legacy((UP, 1, floats(1, -1))), "column 1"),
    "NaN": (legacy((UP, 1, floats(1, float("nan")))), "column 1"),
    "cut data set": (legacy((UP, 1, floats(1)), tail=TAIL[:-1]), "data set"),
}


@pytest.mark.parametrize("case", BAD_LEGACY)
def test_a_bad_file_of_the_older_format_is_one_clear_error(tmp_path: Path, case: str) -> None:
    data, words = BAD_LEGACY[case]
    path = tmp_path / "bad.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=words) as caught:
        read_imatrix(path)
    assert len(caught.value.problems) == 1
    assert str(path) in caught.value.problems[0].where


def test_no_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for path, found in ((tmp_path / "none.dat", "nothing of that name"), (tmp_path, "a folder")):
        with pytest.raises(FormatError, match=found):
            read_imatrix(path)


def test_a_file_too_large_to_be_one_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.truncate((1 << 28) + 1)  # a hole: no disk is used
    with pytest.raises(FormatError, match="at most 268,435,456 bytes"):
        read_imatrix(path)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_raise_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "damaged"
    if data.draw(st.booleans()):
        whole = bytearray(legacy((UP, 3, floats(3, 6, 1)), (DOWN, 0, floats(5, 0)), tail=TAIL))
    else:
        whole = bytearray(gguf_imatrix(path, entry(UP, [3, 6], 3) | entry(DOWN, [1], 2)).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        matrix = read_imatrix(path)
    except FormatError:
        return
    for weights in matrix.weights.values():
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()


def planned(name: str, width: int, codec: QuantCodec) -> TensorPlan:
    return TensorPlan(name, ConstantRow((0.0,) * width), (4, width), codec.qtype, "")


IMPORTANT = CODECS[GGMLQuantizationType.Q4_K]
INDIFFERENT = CODECS[GGMLQuantizationType.Q8_0]


def matrix_of(**entries: Floats) -> ImportanceMatrix:
    return ImportanceMatrix(Path("folder/im.gguf"), {name.replace("__", "."): value for name, value in entries.items()})


def plan_of(**codecs: QuantCodec) -> list[TensorPlan]:
    return [planned(name.replace("__", "."), 2, codec) for name, codec in codecs.items()]


def test_tensors_whose_type_makes_use_of_it_get_their_importance() -> None:
    matrix = matrix_of(blk__0__a=floats(1, 2), blk__0__b=floats(3, 4))
    tensors, warnings = weigh(matrix, plan_of(blk__0__a=IMPORTANT, blk__0__b=INDIFFERENT, token_embd=IMPORTANT))
    assert [tensor.importance is not None for tensor in tensors] == [True, False, False]
    assert tensors[0].importance is matrix.weights["blk.0.a"]
    assert warnings == ()


def test_tensors_of_a_layer_without_an_entry_are_one_warning() -> None:
    plan = plan_of(blk__0__a=IMPORTANT, blk__0__b=IMPORTANT, blk__1__a=IMPORTANT, output=IMPORTANT)
    tensors, warnings = weigh(matrix_of(blk__0__a=floats(1, 2)), plan)
    assert warnings == ("im.gguf has no entry for 2 tensors (blk.0.b, …): encoded without importance",)
    assert [tensor.importance is not None for tensor in tensors] == [True, False, False, False]


def test_an_entry_of_zeros_is_a_warning_and_the_tensor_has_no_importance() -> None:
    tensors, warnings = weigh(matrix_of(blk__0__a=floats(0, 0)), plan_of(blk__0__a=IMPORTANT))
    assert warnings == ("im.gguf has no usable values for 1 tensor (blk.0.a): encoded without importance",)
    assert tensors[0].importance is None


def test_entries_of_no_tensor_are_a_warning_while_others_match() -> None:
    matrix = matrix_of(blk__0__a=floats(1, 2), blk__7__a=floats(1, 2))
    _, warnings = weigh(matrix, plan_of(blk__0__a=IMPORTANT))
    assert warnings == ("im.gguf has entries that match no tensor of this model: 1 tensor (blk.7.a)",)


def test_a_matrix_of_another_model_is_an_error() -> None:
    with pytest.raises(ConversionError, match=r"of another model(.|\n)*blk\.0\.a(.|\n)*blk\.0\.attn_q"):
        weigh(matrix_of(blk__0__attn_q=floats(1, 2)), plan_of(blk__0__a=INDIFFERENT))


def test_an_entry_of_the_wrong_length_is_an_error_that_names_the_tensor() -> None:
    with pytest.raises(ConversionError, match=r"blk\.0\.a(.|\n)*2 values(.|\n)*3 values"):
        weigh(matrix_of(blk__0__a=floats(1, 2, 3)), plan_of(blk__0__a=INDIFFERENT))


def test_a_plan_without_tensors_is_an_error() -> None:
    with pytest.raises(ConversionError, match="no tensors that an importance matrix could apply to"):
        weigh(matrix_of(blk__0__a=floats(1, 2)), [])


def test_types_that_make_no_use_of_it_are_a_warning() -> None:
    tensors, warnings = weigh(matrix_of(blk__0__a=floats(1, 2)), plan_of(blk__0__a=INDIFFERENT))
    assert tensors[0].importance is None
    assert warnings == ("im.gguf changes nothing: no tensor is encoded as a type that makes use of importance",)


def test_token_embd_may_have_an_entry_of_another_width() -> None:
    matrix = ImportanceMatrix(Path("im.gguf"), {"token_embd.weight": floats(1, 2, 3), "blk.0.a": floats(1, 2)})
    plan = [planned("token_embd.weight", 2, IMPORTANT), planned("blk.0.a", 2, IMPORTANT)]
    tensors, warnings = weigh(matrix, plan)
    assert [tensor.importance is not None for tensor in tensors] == [False, True]
    assert warnings == ("im.gguf has no usable values for 1 tensor (token_embd.weight): encoded without importance",)


def test_tensors_that_are_copied_get_none() -> None:
    tensors, warnings = weigh(matrix_of(blk__0__a=floats(1, 2)), plan_of(blk__0__a=IMPORTANT), ["blk.0.a"])
    assert tensors[0].importance is None
    assert "changes nothing" in warnings[0]


def test_fall_back_types_that_take_no_importance_here_are_a_warning() -> None:
    plan = plan_of(blk__0__a=IMPORTANT, blk__0__b=CODECS[GGMLQuantizationType.Q5_0])
    _, warnings = weigh(matrix_of(blk__0__a=floats(1, 2), blk__0__b=floats(1, 2)), plan)
    (warning,) = warnings
    assert warning.startswith("im.gguf is not used for 1 tensor (blk.0.b): of Q4_0, Q4_1, Q5_0, Q5_1 phi4conv writes")


@pytest.mark.parametrize(
    ("matrix", "pairs"),
    [
        (None, []),
        (
            ImportanceMatrix(Path("/home/me/im.gguf"), {UP: floats(1), DOWN: floats(1)}, ("a.txt", "b.txt"), 9),
            [
                text("quantize.imatrix.file", "im.gguf"),
                text("quantize.imatrix.dataset", "a.txt"),
                u32("quantize.imatrix.entries_count", 2),
                u32("quantize.imatrix.chunks_count", 9),
            ],
        ),
        (
            ImportanceMatrix(Path("im.dat"), {UP: floats(1)}),
            [text("quantize.imatrix.file", "im.dat"), u32("quantize.imatrix.entries_count", 1)],
        ),
    ],
)
def test_the_metadata_are_llama_quantizes_but_for_the_folder(
    matrix: ImportanceMatrix | None, pairs: list[MetadataPair]
) -> None:
    assert list(importance_pairs(matrix)) == pairs
