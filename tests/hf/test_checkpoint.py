from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_folders import FIRST, INDEX, SECOND, SHARDS, bf16, sharded, write, write_index

from phi4conv.arrays import Floats
from phi4conv.errors import CheckpointError, FormatError
from phi4conv.files import PositionedReader
from phi4conv.hf.checkpoint import Checkpoint, TensorRows
from phi4conv.rows import RowSource, StackedRows


def widened(bits: npt.NDArray[np.uint16]) -> Floats:
    """BF16 as float32, one weight after another through struct: slow and independent of the reader."""
    values = [struct.unpack("<f", struct.pack("<HH", 0, value))[0] for value in bits.ravel()]
    return np.array(values, dtype=np.float32).reshape(bits.shape)


def test_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.folder == folder
    assert list(checkpoint.tensors) == [*FIRST, *SECOND]
    assert checkpoint.files == (folder / INDEX, folder / SHARDS[0], folder / SHARDS[1])
    head = checkpoint.tensors["lm_head.weight"]
    assert (head.name, head.dtype, head.shape, head.names) == ("lm_head.weight", "F32", (3, 4), ("lm_head.weight",))
    assert head.reader.path == folder / SHARDS[1]
    assert np.array_equal(head.rows(0, 3), SECOND["lm_head.weight"])
    assert np.array_equal(checkpoint.tensors["model.norm.weight"].rows(0, 1), widened(FIRST["model.norm.weight"])[None])


def test_single_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path, {"model.safetensors": FIRST}))
    assert set(checkpoint.tensors) == set(FIRST)
    assert checkpoint.files == (tmp_path / "model.safetensors",)


def test_the_only_safetensors_file_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path, {"adapter_model.safetensors": {"lora_A": bf16(2)}, "._x.safetensors": b""})
    checkpoint = Checkpoint.open(write(tmp_path, {"consolidated.safetensors": FIRST}))
    assert checkpoint.files == (tmp_path / "consolidated.safetensors",)


def test_files_beside_the_checkpoint_are_left_alone(tmp_path: Path) -> None:
    beside: dict[str, Any] = {
        "other.safetensors": {"x": bf16(2), "lm_head.weight": bf16(4)},
        "junk.safetensors": b"?",
        "x.bin": b"?",
    }
    folder = write(sharded(tmp_path), beside)
    assert set(Checkpoint.open(folder).tensors) == {*FIRST, *SECOND}


def test_an_index_may_list_the_single_file(tmp_path: Path) -> None:
    folder = write_index(write(tmp_path, {"model.safetensors": FIRST}), dict.fromkeys(FIRST, "model.safetensors"))
    assert Checkpoint.open(folder).files == (folder / INDEX, folder / "model.safetensors")


def test_the_cache_of_hugging_face_is_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--microsoft--phi-4"
    plain = sharded(tmp_path / "plain")
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "187ef048"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(plain.iterdir()):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    checkpoint = Checkpoint.open(snapshot)
    assert np.array_equal(checkpoint.tensors["lm_head.weight"].rows(1, 2), SECOND["lm_head.weight"][1:2])


def test_dtype_and_parameter_count_go_by_weights_not_by_tensors(tmp_path: Path) -> None:
    small = {f"norm{number}": np.ones(2, np.float32) for number in range(5)}
    checkpoint = Checkpoint.open(write(tmp_path, {"model.safetensors": {**small, "w": np.ones((4, 4), np.float16)}}))
    assert (checkpoint.dtype, checkpoint.parameter_count) == ("F16", 26)
    assert Checkpoint.open(sharded(tmp_path / "b")).dtype == "BF16"


def test_the_published_index_matches_files_made_after_it(tmp_path: Path) -> None:
    data = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "phi-4" / INDEX
    if not data.is_file():
        pytest.skip("the published Phi-4 index is not beside the checkout")
    weight_map = json.loads(data.read_text(encoding="utf-8"))["weight_map"]
    (tmp_path / INDEX).write_bytes(data.read_bytes())
    for shard in set(weight_map.values()):
        write(tmp_path, {shard: {name: bf16(2) for name, place in weight_map.items() if place == shard}})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tensors.keys() == weight_map.keys()
    assert (len(checkpoint.tensors), len(checkpoint.files)) == (243, 7)


# --- rows ---


def rows_of(array: npt.NDArray[Any], path: Path) -> TensorRows:
    path.mkdir(exist_ok=True)
    return Checkpoint.open(write(path, {"model.safetensors": {"before": bf16(3), "w": array}})).tensors["w"]


dtypes = st.sampled_from(["float16", "float32"])


@given(st.data(), dtypes, st.lists(st.integers(1, 6), max_size=4), st.integers(0, 2**32 - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_what_safetensors_reads(
    tmp_path: Path, data: st.DataObject, dtype: str, shape: list[int], seed: int
) -> None:
    array = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save({"first": np.ones(3, np.float16), "w": array}))
    tensor = Checkpoint.open(tmp_path).tensors["w"]
    expected = safetensors.numpy.load_file(path)["w"].astype(np.float32).reshape(-1, shape[-1] if shape else 1)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    rows = tensor.rows(start, stop)
    assert rows.dtype == np.float32
    assert rows.shape == (stop - start, expected.shape[1])
    assert np.array_equal(rows, expected[start:stop])


@pytest.mark.parametrize("dtype", [np.uint16, np.float16])
def test_every_16_bit_value_is_exact(dtype: type[np.uint16 | np.float16], tmp_path: Path) -> None:
    bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    rows = rows_of(bits.view(dtype), tmp_path).rows(0, 256)
    if dtype is np.uint16:
        assert np.array_equal(rows.view(np.uint32), bits.astype(np.uint32) * 65536)
        return
    values = [struct.unpack("<e", struct.pack("<H", value))[0] for value in range(65536)]
    assert np.array_equal(rows.ravel(), np.array(values, dtype=np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(rows.ravel()), bits.ravel() >= 0x8000)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (5,), (7,), (2, 3, 4)])
def test_chunks_join_to_the_whole(shape: tuple[int, ...], step: int, tmp_path: Path) -> None:
    bits = bf16(*shape)
    tensor = rows_of(bits, tmp_path)
    expected = widened(bits).reshape(-1, shape[-1])
    chunks = [tensor.rows(start, min(start + step, len(expected))) for start in range(0, len(expected), step)]
    assert np.array_equal(np.concatenate(chunks), expected)


def test_rows_are_writable_and_contiguous(tmp_path: Path) -> None:
    for array in (bf16(3, 4), np.ones((3, 4), np.float16), np.ones((3, 4), np.float32)):
        rows = rows_of(array, tmp_path / array.dtype.name).rows(1, 3)
        assert rows.flags.writeable
        assert rows.flags.c_contiguous


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 4), (2, 1), (4, 4)])
def test_rows_that_are_not_there(start: int, stop: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w has 3 rows"):
        rows_of(bf16(3, 2), tmp_path).rows(start, stop)


def test_a_tensor_travels_by_pickle(tmp_path: Path) -> None:
    tensor = rows_of(bf16(3, 2), tmp_path)
    copy = pickle.loads(pickle.dumps(tensor))  # noqa: S301  # its own bytes
    assert copy == tensor
    assert np.array_equal(copy.rows(1, 3), tensor.rows(1, 3))


def test_a_tensor_is_a_row_source(tmp_path: Path) -> None:
    source: RowSource = rows_of(bf16(3, 2), tmp_path)
    assert np.array_equal(StackedRows((source, source)).rows(2, 4), widened(bf16(3, 2))[[2, 0]])


def test_a_file_cut_short_after_opening(tmp_path: Path) -> None:
    tensor = rows_of(bf16(3, 2), tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(tensor.offset + 5)
    assert tensor.rows(0, 1).shape == (1, 2)
    with pytest.raises(FormatError, match="file ends early"):
        tensor.rows(0, 3)


def test_a_file_gone_before_another_process_opens_it(tmp_path: Path) -> None:
    tensor = TensorRows("w", "F32", (1, 1), PositionedReader(tmp_path / "gone.safetensors"), 8)
    with pytest.raises(CheckpointError, match="cannot be read"):
        tensor.rows(0, 1)
