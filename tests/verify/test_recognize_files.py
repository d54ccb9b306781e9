"""Faults in files: of bytes, which are told with their place, and of the llama architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from good_files import good_file, good_weights
from llama_arch import permuted_rows, unpermuted_rows
from weight_files import WeightFile, write_weight_file

from phi4conv.arrays import Floats
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import gguf_rows
from phi4conv.hf.checkpoint import Checkpoint
from phi4conv.reference.file_model import file_model
from phi4conv.reference.source_model import source_model
from phi4conv.verify.recognize import Recognition, recognize

pytestmark = pytest.mark.slow  # together they take a minute; a fault of each kind is in test_blame.py

DOWN, HEAD = "blk.3.ffn_down.weight", "output.weight"
HEADS, KV_HEADS = 8, 2
FILE_KINDS = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")


def recognized_in_file(path: Path, kind: str, tensor: str, file: WeightFile) -> Recognition:
    """What recognize says of a tensor of a changed copy of a good file."""
    write_weight_file(path, file.pairs.values(), file.tensors)
    folder = good_file(kind).folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = file_model(read_gguf(path))
    recognition = recognize(tensor, model, source_model(config, Checkpoint.open(folder).tensors))
    assert recognition is not None
    return recognition


def with_data(kind: str, tensor: str, change: Callable[[bytearray], None]) -> WeightFile:
    """A good file with the bytes of a tensor changed in place."""
    file = good_weights(kind)
    old = file.tensors[tensor]
    data = bytearray(old.data.tobytes())
    change(data)
    return file.with_tensor(tensor, replace(old, data=np.frombuffer(bytes(data), np.uint8).reshape(old.data.shape)))


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_overwritten_bytes_are_placed_in_the_file(kind: str, tmp_path: Path) -> None:
    first, count = 9_000, 4_000

    def change(data: bytearray) -> None:
        data[first : first + count] = np.random.default_rng(2).bytes(count)

    path = tmp_path / "file.gguf"
    recognition = recognized_in_file(path, kind, DOWN, with_data(kind, DOWN, change))
    assert recognition.code == "corrupt-bytes"
    start, stop = (int(number) for number in re.findall(r"[\d,]+", recognition.actual.replace(",", "")))
    block = good_weights(kind).tensors[DOWN].codec.block_bytes
    offset = gguf_rows(read_gguf(path))[DOWN].offset + first
    # Whole blocks are named; of single weights the first or last random one may be right by chance.
    assert abs(start - offset) <= max(block, 8)
    assert abs(stop - (offset + count - 1)) <= max(block, 8)


@pytest.mark.parametrize("kind", FILE_KINDS)
@pytest.mark.parametrize("move", [-32, 18, 150])
def test_data_beside_their_place_are_measured(kind: str, move: int, tmp_path: Path) -> None:
    def change(data: bytearray) -> None:
        data[:] = np.roll(np.frombuffer(bytes(data), np.uint8), move).tobytes()

    recognition = recognized_in_file(tmp_path / "file.gguf", kind, DOWN, with_data(kind, DOWN, change))
    assert recognition.code == "bytes-shifted"
    assert f"{abs(move)} bytes" in recognition.sentence
    assert recognition.sentence.endswith("late" if move > 0 else "early")


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_16_bit_words_of_the_other_byte_order_are_recognized(kind: str, tmp_path: Path) -> None:
    def change(data: bytearray) -> None:
        data[::2], data[1::2] = data[1::2], data[::2]

    recognition = recognized_in_file(tmp_path / "file.gguf", kind, HEAD, with_data(kind, HEAD, change))
    assert (recognition.code, recognition.sentence) == ("byte-swapped", "its 16-bit words are byte-swapped")


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q4_K_M", "Q2_K"])
def test_scales_of_the_other_byte_order_are_recognized(kind: str, tmp_path: Path) -> None:
    codec = good_weights(kind).tensors[DOWN].codec

    def change(data: bytearray) -> None:
        for offset in codec.scale_offsets:
            size = codec.block_bytes
            data[offset::size], data[offset + 1 :: size] = data[offset + 1 :: size], data[offset::size]

    recognition = recognized_in_file(tmp_path / "file.gguf", kind, DOWN, with_data(kind, DOWN, change))
    assert recognition.code == "byte-swapped"
    assert recognition.sentence == "the scales of its blocks are byte-swapped, as in a big-endian file"


@pytest.mark.parametrize("kind", ["llama F32", "llama Q8_0", "llama Q4_K"])
@pytest.mark.parametrize(
    ("tensor", "change", "code"),
    [
        ("blk.0.attn_q.weight", partial(unpermuted_rows, head_count=HEADS), "qk-not-permuted"),
        ("blk.3.attn_k.weight", partial(permuted_rows, head_count=KV_HEADS), "qk-permuted-twice"),
        ("blk.1.attn_output.weight", np.transpose, "transposed"),
        ("blk.2.attn_q.weight", np.negative, "negated"),
    ],
)
def test_faults_of_the_llama_architecture_are_recognized(
    kind: str, tensor: str, change: Callable[[Floats], Floats], code: str, tmp_path: Path
) -> None:
    file = good_weights(kind)
    wrong = file.with_values(tensor, change(file.exact[tensor]))
    assert recognized_in_file(tmp_path / "file.gguf", kind, tensor, wrong).code == code


def test_damage_of_a_permuted_tensor_is_placed_where_the_file_has_it(tmp_path: Path) -> None:
    tensor, row = "blk.2.attn_q.weight", 33  # the checkpoint's row 48: head 1, second half, row 0

    def change(data: bytearray) -> None:
        data[row * 1024 : (row + 1) * 1024] = np.random.default_rng(3).bytes(1024)

    path = tmp_path / "file.gguf"
    recognition = recognized_in_file(path, "llama F32", tensor, with_data("llama F32", tensor, change))
    assert (recognition.code, recognition.rows) == ("corrupt-bytes", (48, 48))
    offset = gguf_rows(read_gguf(path))[tensor].offset + row * 1024
    assert f"bytes {offset:,} to {offset + 1023:,} of the file" in recognition.sentence
