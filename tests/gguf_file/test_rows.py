"""Rows of a GGUF, and which defects stop a command."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from phi4conv.arrays import Floats
from phi4conv.errors import FormatError
from phi4conv.gguf_file.layout import GGUFFile, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import HARMLESS_DEFECTS, GGUFRows, gguf_rows
from phi4conv.gguf_file.write import encode_header
from phi4conv.quant import CODECS, decode, encode

SHAPE = (6, 512)


def weights() -> Floats:
    return np.random.default_rng(3).standard_normal(SHAPE, np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tensor of every type that has a codec, written by gguf-py."""
    path = tmp_path_factory.mktemp("rows") / "file.gguf"
    writer = gguf.GGUFWriter(path, "phi3")
    for codec in CODECS.values():
        writer.add_tensor(codec.name, encode(codec, weights()), raw_dtype=codec.qtype)
    writer.add_tensor("vector", weights()[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("qtype", CODECS, ids=lambda qtype: qtype.name)
def test_rows_are_what_the_codec_decodes(path: Path, qtype: GGMLQuantizationType) -> None:
    rows = gguf_rows(read_gguf(path))[qtype.name]
    data = encode(CODECS[qtype], weights())
    assert (rows.shape, rows.names, rows.qtype) == (SHAPE, (qtype.name,), qtype)
    for start, stop in ((0, 6), (2, 3), (5, 6)):
        assert np.array_equal(rows.stored(start, stop), data[start:stop])
        assert np.array_equal(rows.rows(start, stop), decode(CODECS[qtype], data)[start:stop])


def test_a_vector_is_one_row(path: Path) -> None:
    rows = gguf_rows(read_gguf(path))["vector"]
    assert rows.shape == (512,)
    assert np.array_equal(rows.rows(0, 1), weights()[:1])


def test_rows_can_be_sent_to_another_process(path: Path) -> None:
    rows = gguf_rows(read_gguf(path))["Q8_0"]
    copy = pickle.loads(pickle.dumps(rows))  # noqa: S301  # our own value
    assert copy == rows
    assert np.array_equal(copy.rows(1, 3), rows.rows(1, 3))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 7), (3, 2)])
def test_rows_that_are_not_there_are_refused(path: Path, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="has 6 rows"):
        gguf_rows(read_gguf(path))["F16"].rows(start, stop)


def test_a_file_cut_after_it_was_opened_is_an_error(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    rows = gguf_rows(read_gguf(copy))["vector"]
    with copy.open("r+b") as file:
        file.truncate(rows.offset + 8)
    with pytest.raises(FormatError, match="ends early"):
        rows.rows(0, 1)


def test_a_file_that_is_gone_is_an_error(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    rows = gguf_rows(read_gguf(copy))["vector"]
    copy.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        rows.rows(0, 1)


def test_a_type_without_a_codec_is_named(path: Path) -> None:
    known = gguf_rows(read_gguf(path))["F32"]
    rows = GGUFRows("blk.0.ffn_up.weight", GGMLQuantizationType.IQ2_XXS, SHAPE, known.reader, known.offset)
    with pytest.raises(FormatError, match=r"no decoder for IQ2_XXS(.|\n)*blk\.0\.ffn_up\.weight"):
        rows.rows(0, 1)


def file_of(tensor_bytes: int) -> bytes:
    """A GGUF of one F32 tensor of 32 weights, its data cut or extended to so many bytes."""
    header = encode_header([u32("answer", 42)], [("a", (32,), GGMLQuantizationType.F32)])
    return header.data + bytes(tensor_bytes)


def test_a_flaw_that_no_weight_depends_on_stops_nothing(read_bytes: Callable[[bytes], GGUFFile]) -> None:
    file = read_bytes(file_of(200))
    assert {defect.code for defect in file.defects} == {"trailing-bytes"} <= HARMLESS_DEFECTS
    assert list(gguf_rows(file)) == ["a"]


@pytest.mark.parametrize(("size", "code"), [(100, "truncated-data"), (-20, "truncated-header")])
def test_a_damaged_file_is_refused(read_bytes: Callable[[bytes], GGUFFile], size: int, code: str) -> None:
    data = file_of(128)
    file = read_bytes(data[: len(data) - 128 + size] if size > 0 else data[:60])
    with pytest.raises(FormatError, match=rf"the GGUF is damaged \({code}\)(.|\n)*phi4conv inspect"):
        gguf_rows(file)


def test_many_defects_are_counted_and_not_all_listed(read_bytes: Callable[[bytes], GGUFFile]) -> None:
    header = encode_header([], [(f"t{index}", (32,), GGMLQuantizationType.F32) for index in range(9)])
    names = header.data
    for index in range(1, 9):
        names = names.replace(f"t{index}".encode(), b"t0")
    with pytest.raises(FormatError) as caught:
        gguf_rows(read_bytes(names + bytes(9 * 128)))
    assert len(caught.value.problems) == 6
    assert caught.value.problems[-1].what == "and 3 more defects"
