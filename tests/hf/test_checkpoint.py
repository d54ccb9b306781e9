from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi4conv.arrays import Floats
from phi4conv.errors import CheckpointError, FormatError, Problem
from phi4conv.files import PositionedReader
from phi4conv.hf.checkpoint import Checkpoint, TensorRows
from phi4conv.rows import RowSource, StackedRows

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4247\n"

Arrays = Mapping[str, npt.NDArray[Any]]


def content_of(tensors: Arrays) -> bytes:
    """A safetensors file; uint16 arrays hold the bits of BF16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    names = {"uint16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "int32": "I32", "uint8": "U8"}
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": names[array.dtype.name], "shape": array.shape, "data_offsets": [len(data), end]}
        data += array.tobytes()
    return file_of(header, data)


def file_of(header: Mapping[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def bf16(*shape: int) -> npt.NDArray[np.uint16]:
    start = 0x3F80  # 1.0
    return np.arange(start, start + math.prod(shape), dtype=np.uint16).reshape(shape)


def widened(bits: npt.NDArray[np.uint16]) -> Floats:
    """BF16 as float32, one weight after another through struct: slow and independent of the reader."""
    values = [struct.unpack("<f", struct.pack("<HH", 0, value))[0] for value in bits.ravel()]
    return np.array(values, dtype=np.float32).reshape(bits.shape)


FIRST = {"model.embed_tokens.weight": bf16(6, 4), "model.norm.weight": bf16(4)}
SECOND = {"lm_head.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}


def write(folder: Path, files: Mapping[str, Arrays | bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content_of(content))
    return folder


def write_index(folder: Path, weight_map: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="utf-8")
    return folder


def sharded(folder: Path) -> Path:
    write(folder, dict(zip(SHARDS, (FIRST, SECOND), strict=True)))
    places = dict.fromkeys(FIRST, SHARDS[0]) | dict.fromkeys(SECOND, SHARDS[1])
    return write_index(folder, places)


def refusals(folder: Path) -> tuple[Problem, ...]:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert all(problem.where and problem.next_step for problem in caught.value.problems)
    return caught.value.problems


def refusal(folder: Path) -> Problem:
    (problem,) = refusals(folder)
    return problem


def headlines(folder: Path) -> list[str]:
    return [problem.what for problem in refusals(folder)]


# --- folders that are read ---


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
    folder = write(sharded(tmp_path), {"other.safetensors": {"x": bf16(2)}, "junk.safetensors": b"?", "x.bin": b"?"})
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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
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


# --- folders that are refused ---


def test_missing_folder(tmp_path: Path) -> None:
    problem = refusal(tmp_path / "phi-4")
    assert (problem.what, problem.where) == ("no such folder", str(tmp_path / "phi-4"))
    assert "hf download microsoft/phi-4" in problem.next_step


def test_the_name_of_a_repository_is_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "`hf download someone/phi-4-tuned --local-dir phi-4-tuned`" in refusal(Path("someone/phi-4-tuned")).next_step


def test_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).what == "an empty folder"


@pytest.mark.parametrize(("name", "hint"), [("phi-4.gguf", "phi4conv quantize"), ("model.safetensors", "the folder")])
def test_a_file_instead_of_a_folder(name: str, hint: str, tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, {name: b"x"}) / name)
    assert problem.what == "not a folder"
    assert hint in problem.next_step


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pytorch_model.bin", "only pickled weights"),
        ("pytorch_model-00001-of-00002.bin", "only pickled weights"),
        ("model.pt", "only pickled weights"),
        ("consolidated.00.pth", "only pickled weights"),
        ("phi-4-Q4_K.gguf", "only GGUF files"),
        ("adapter_model.safetensors", "only a LoRA adapter"),
        ("notes.txt", "no weights in the folder"),
    ],
)
def test_no_safetensors(name: str, what: str, tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, {"config.json": b"{}", name: b"x"}))
    assert problem.what.startswith(what)
    assert problem.where == str(tmp_path)
    assert name in problem.found


def test_pickles_are_refused_for_what_they_can_do(tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, {"pytorch_model.bin": b"x"}))
    assert "runs the code" in problem.what
    assert "safetensors" in problem.next_step


def test_the_folder_above_the_weights(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "187ef048"
    snapshot.mkdir(parents=True)
    write(snapshot, {"model.safetensors": FIRST})
    assert refusal(tmp_path).next_step == f"name {snapshot} instead"


def test_shards_without_an_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / INDEX).unlink()
    assert headlines(folder) == [f"no {INDEX}, which says what belongs together"]
    (folder / SHARDS[1]).unlink()
    assert headlines(folder) == [f"no {INDEX}, which says what belongs together"]


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / SHARDS[1]).unlink()
    problem = refusal(folder)
    assert problem.what == "files missing that the index lists"
    assert problem.found == f"1 not there: '{SHARDS[1]}'"


@pytest.mark.parametrize("place", [".", "blobs", ".cache/huggingface/download"])
def test_unfinished_downloads_are_a_hint(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "187ef048"
    folder.mkdir(parents=True)
    sharded(folder)
    lying = (tmp_path if place == "blobs" else folder) / place
    lying.mkdir(parents=True, exist_ok=True)
    (lying / "4d7a.incomplete").write_bytes(b"")
    assert Checkpoint.open(folder).files
    (folder / SHARDS[1]).unlink()
    missing, hint = refusals(folder)
    assert missing.what == "files missing that the index lists"
    assert (hint.what, hint.found) == ("unfinished downloads", "'4d7a.incomplete'")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "a/b.safetensors",
        "/etc/x.safetensors",
        "a\\b.safetensors",
        "C:x.safetensors",
        "x\0.safetensors",
        "..safetensors",
        "model-00001.bin",
        ".",
        "..",
        "",
        7,
        None,
        ["x"],
    ],
)
def test_an_index_names_files_of_its_own_folder_only(name: Any, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    write(tmp_path, {"x.safetensors": {"evil": bf16(2)}})
    weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    problem = refusal(write_index(folder, {**weight_map, "evil": name}))
    assert problem.what == "the index names what is no .safetensors file of its own folder"
    assert problem.where == str(folder / INDEX)
    assert problem.found == repr(str(name))


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_an_index_without_a_map(weight_map: Any, tmp_path: Path) -> None:
    assert headlines(write_index(sharded(tmp_path), weight_map)) == ["no weight_map in the index"]


def test_a_broken_index_does_not_hide_broken_shards(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path), {INDEX: b"<!doctype html>", SHARDS[0]: LFS_POINTER})
    assert [what.split(",")[0] for what in headlines(folder)] == ["an HTML page", "a Git LFS pointer"]


def test_two_sets_of_weights(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path), {"model.safetensors": {**FIRST, **SECOND}})
    assert headlines(folder) == ["two sets of weights: an index, and a model.safetensors that it does not list"]


def test_tensors_that_are_not_where_the_index_says(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    places = {**dict.fromkeys(FIRST, SHARDS[1]), **dict.fromkeys(SECOND, SHARDS[1])}
    problem, missing = refusals(write_index(folder, {**places, "nowhere": SHARDS[0], "gone": "z.safetensors"}))[::-1]
    assert missing.found == "1 not there: 'z.safetensors'"
    assert problem.what == "the index places tensors in files that do not hold them"
    assert problem.found == "3: 'model.embed_tokens.weight', 'model.norm.weight', 'nowhere'"


def test_tensors_that_the_index_does_not_list(tmp_path: Path) -> None:
    folder = write_index(sharded(tmp_path), {"model.norm.weight": SHARDS[0], "lm_head.weight": SHARDS[1]})
    problem = refusal(folder)
    assert problem.what == "the files hold tensors that the index does not list"
    assert problem.found == "1: 'model.embed_tokens.weight'"


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path), {SHARDS[1]: {**SECOND, "model.norm.weight": bf16(4)}})
    problem = refusal(folder)
    assert (problem.what, problem.found) == ("two files hold the same tensors", "1: 'model.norm.weight'")
    assert problem.where == f"{folder / SHARDS[0]}, {folder / SHARDS[1]}"


def test_one_tensor_in_a_shard_and_in_a_file_beside(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path), {"old.safetensors": {"x": bf16(2), "lm_head.weight": bf16(4)}})
    problem = refusal(folder)
    assert (problem.what, problem.found) == ("two files hold the same tensors", "1: 'lm_head.weight'")
    assert problem.where == f"{folder / SHARDS[1]}, {folder / 'old.safetensors'}"


def test_files_beside_may_share_tensors_with_each_other(tmp_path: Path) -> None:
    write(sharded(tmp_path), {"a.safetensors": {"x": bf16(2)}, "b.safetensors": {"x": bf16(2)}})
    assert "x" not in Checkpoint.open(tmp_path).tensors


def test_a_shard_that_is_a_folder_or_a_dead_link(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    for shard in SHARDS:
        (folder / shard).unlink()
    (folder / SHARDS[0]).mkdir()
    (folder / SHARDS[1]).symlink_to("../../blobs/4d7a")
    assert headlines(folder) == ["a folder, not a file", "a link to a file that is not there"]


def test_pointers_in_place_of_every_shard_are_one_problem(tmp_path: Path) -> None:
    problem = refusal(write(sharded(tmp_path), dict.fromkeys(SHARDS, LFS_POINTER)))
    assert problem.what == "a Git LFS pointer, not the file itself"
    assert problem.where == ", ".join(SHARDS)
    assert "git lfs pull" in problem.next_step


def test_truncated_shard(tmp_path: Path) -> None:
    content = content_of(SECOND)
    problem = refusal(write(sharded(tmp_path), {SHARDS[1]: content[:-7]}))
    assert problem.what == f"truncated: needs {len(content)} bytes, has {len(content) - 7}"
    assert problem.where == SHARDS[1]
    assert problem.next_step == "download the file again"


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path), {SHARDS[0]: b"<html>", "c.safetensors": {"bad": np.ones(2, np.float64)}})
    places = {**dict.fromkeys(FIRST, SHARDS[0]), **dict.fromkeys(SECOND, SHARDS[1]), "bad": "c.safetensors"}
    assert headlines(
        write_index(folder, {**places, "evil": "../x", "away": "d.safetensors", "no": "c.safetensors"})
    ) == [
        "the index names what is no .safetensors file of its own folder",
        "files missing that the index lists",
        "an HTML page, probably a login or error page saved by a download",
        "the index places tensors in files that do not hold them",
        "tensors of type F64",
    ]


def test_files_without_tensors(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, {"model.safetensors": {}})).what == "no tensors in the weight files"


def test_tensors_without_elements(tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, {"model.safetensors": {**FIRST, "lm_head.weight": bf16(0, 4)}}))
    assert (problem.what, problem.found) == ("tensors without elements", "'lm_head.weight [0, 4]'")


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_dtypes_that_are_no_weights(dtype: str, tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, {"model.safetensors": {**FIRST, "w": np.ones(2, dtype)}}))
    assert (problem.what, problem.found) == (f"tensors of type {dtype[0].upper()}{dtype[-2:]}", "1: 'w'")
    assert ("save the model as F32" in problem.next_step) == (dtype == "float64")


LAYER = "model.layers.0.self_attn.o_proj."
INTS = np.ones((2, 2), np.int32)
HALVES = np.ones((2, 2), np.float16)


@pytest.mark.parametrize(
    ("tensors", "scheme"),
    [
        ({"qweight": INTS, "qzeros": INTS, "scales": HALVES, "g_idx": INTS}, "GPTQ"),
        ({"qweight": INTS, "qzeros": INTS, "scales": HALVES}, "GPTQ or AWQ"),
        ({"weight": INTS, "weight.absmax": HALVES, "weight.quant_map": HALVES}, "bitsandbytes"),
        ({"weight": INTS, "weight.quant_state.bitsandbytes__nf4": INTS}, "bitsandbytes"),
        ({"weight": INTS, "SCB": HALVES}, "bitsandbytes"),
        ({"weight": HALVES, "weight_scale_inv": HALVES}, "FP8"),
        ({"weight_packed": INTS, "weight_scale": HALVES}, "compressed-tensors"),
        ({"weight": INTS, "scales": HALVES, "biases": HALVES}, "MLX"),
    ],
)
def test_quantized_checkpoints_are_named(tensors: Arrays, scheme: str, tmp_path: Path) -> None:
    files = {"model.safetensors": {**FIRST, **{LAYER + name: array for name, array in tensors.items()}}}
    problem = refusal(write(tmp_path, files))
    assert problem.what == f"a checkpoint that is quantized already ({scheme})"
    assert LAYER in problem.found


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 8), ("F8_E5M2", 8), ("F6_E2M3", 6), ("F4", 4)])
def test_small_floats_are_quantized(dtype: str, size: int, tmp_path: Path) -> None:
    content = file_of({"w": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}, bytes(size))
    problem = refusal(write(tmp_path, {"model.safetensors": content}))
    assert problem.what == "a checkpoint that is quantized already (FP8 or smaller)"
    assert problem.found == f"1 tensors such as 'w ({dtype})'"
