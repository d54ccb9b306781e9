from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weight_folders import (
    FIRST,
    INDEX,
    LFS_POINTER,
    SECOND,
    SHARDS,
    Arrays,
    bf16,
    content_of,
    file_of,
    sharded,
    write,
    write_index,
)

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.checkpoint import Checkpoint


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


def test_missing_folder(tmp_path: Path) -> None:
    problem = refusal(tmp_path / "phi-4")
    assert (problem.what, problem.where) == ("no such folder", str(tmp_path / "phi-4"))
    assert "hf download microsoft/phi-4" in problem.next_step


def test_the_name_of_a_repository_is_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "`hf download someone/phi-4-tuned --local-dir phi-4-tuned`" in refusal(Path("someone/phi-4-tuned")).next_step


def test_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).what == "an empty folder"


@pytest.mark.parametrize(
    ("name", "hint"), [("phi-4.gguf", "the GGUF was made from"), ("model.safetensors", "the folder")]
)
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
