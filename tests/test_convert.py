"""The whole conversion on the tiny checkpoint: bytes, memory, interruption, and every refusal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import SPELLINGS, TINY, Words, copy_of_tiny, edit_json, replace_tensors, tiny_tensors
from programs import phi4conv

from phi4conv import phi3
from phi4conv import stream as module
from phi4conv.convert import convert
from phi4conv.errors import CheckpointError, ConversionError, OutputError, Phi4ConvError
from phi4conv.phi3 import ConversionOptions
from phi4conv.quant.mix import FILE_TYPES
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.stream import ConversionResult


def run(folder: Path, target: Path, file_type: str | None = None, **options: Any) -> ConversionResult:
    return convert(folder, target, ConversionOptions(file_type=file_type, **options))


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def widened(dtype: str, words: Words) -> Words:
    return (words.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else words.astype(np.float32)


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_tensor_bytes_are_ggmls_and_gguf_py_agrees(tmp_path: Path, llama: LlamaCpp, file_type: str) -> None:
    run(TINY, tmp_path / "out.gguf", file_type)
    sources = {name: widened(*tensor) for name, tensor in tiny_tensors().items()}
    plan = phi3.plan(TINY, ConversionOptions(file_type=file_type))
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in plan.tensors]
    for tensor, planned in zip(reader.tensors, plan.tensors, strict=True):
        weights = np.concatenate([sources[name] for name in planned.source.names]).reshape(-1, planned.shape[-1])
        expected = llama.quantize(np.ascontiguousarray(weights), tensor.tensor_type)
        assert tensor.tensor_type is planned.qtype
        assert tuple(reversed(tensor.shape.tolist())) == planned.shape
        assert tensor.data.tobytes() == expected.tobytes(), tensor.name


def test_gguf_py_reads_every_pair_as_it_was_planned(tmp_path: Path) -> None:
    plan = run(TINY, tmp_path / "out.gguf", "Q8_0").plan
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    read = [(key, field.types, field.contents()) for key, field in fields.items() if not key.startswith("GGUF.")]
    assert read == [
        (pair.key, [pair.type], pair.value)
        if pair.item_type is None
        else (pair.key, [pair.type, pair.item_type], list(pair.value))
        for pair in plan.metadata
    ]


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_llama_cpp_answers_every_chat_word_for_word(
    tmp_path: Path, llama: LlamaCpp, chats: list[tuple[str, str]], file_type: str
) -> None:
    run(TINY, tmp_path / "out.gguf", file_type)
    llama.load(tmp_path / "out.gguf")
    assert llama.log == []
    for prompt, answer in chats:
        (ids,) = llama.tokenize([prompt])
        assert b"".join(llama.pieces(llama.generate(ids, 60))).decode() == answer + "<|im_end|>"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_tensor_bytes(tmp_path: Path, spelling: str) -> None:
    folder = SPELLINGS[spelling](tmp_path / "model")
    results = [run(source, tmp_path / f"{source.name}.gguf", "Q8_0") for source in (folder, TINY)]
    ours, expected = (result.target.read_bytes()[result.plan.header.data_offset :] for result in results)
    assert ours == expected


@pytest.mark.parametrize("chunk_weights", [256, 1000, 1 << 16])
@pytest.mark.parametrize("workers", [1, 3])
def test_chunks_and_threads_do_not_change_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_weights: int, workers: int
) -> None:
    run(TINY, tmp_path / "expected.gguf", "Q8_0")
    monkeypatch.setattr(module, "CHUNK_WEIGHTS", chunk_weights)
    convert(TINY, tmp_path / "out.gguf", ConversionOptions(file_type="Q8_0"), workers=workers)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_chunks_can_run_in_other_processes(tmp_path: Path) -> None:
    run(TINY, tmp_path / "expected.gguf", "BF16")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        convert(TINY, tmp_path / "out.gguf", ConversionOptions(file_type="BF16"), workers=2, executor=executor)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_the_result_tells_what_was_done(tmp_path: Path) -> None:
    result = run(TINY, tmp_path / "out.gguf", "Q8_0")
    assert result.tensors_by_type == {"Q8_0": 18, "F32": 9}
    assert result.plan.size_bytes == (tmp_path / "out.gguf").stat().st_size
    assert result.seconds > 0
    assert result.workers >= 1


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (4, 4), (96, 16)])
def test_memory_does_not_grow_with_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    assert run(TINY, tmp_path / "out.gguf").workers == workers


def spoiled(folder: Path, name: str, row: int, column: int, value: float) -> Path:
    """The tiny checkpoint in F32 with one weight replaced."""
    copy_of_tiny(folder)
    tensors: dict[str, tuple[str, Words]] = {each: ("F32", widened(*tensor)) for each, tensor in tiny_tensors().items()}
    words = tensors[name][1].copy()
    words[(row, column) if words.ndim > 1 else column] = value
    tensors[name] = ("F32", words)
    replace_tensors(folder, tensors)
    return folder


LAYER_2_UP = "model.layers.2.mlp.gate_up_proj.weight"


@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_stop_the_conversion(tmp_path: Path, file_type: str, value: float) -> None:
    folder = spoiled(tmp_path / "model", LAYER_2_UP, 1000, 7, value)
    with pytest.raises(ConversionError, match=rf"{LAYER_2_UP}, row 1000, column 7") as caught:
        run(folder, tmp_path / "out.gguf", file_type)
    assert str(value) in str(caught.value)
    assert not list(tmp_path.glob("*.gguf*"))
    if file_type in {"F32", "F16", "BF16"}:  # a block's scale cannot be NaN
        run(folder, tmp_path / "out.gguf", file_type, allow_non_finite=True)
    else:
        with pytest.raises(ConversionError, match="row 1000, column 7"):
            run(folder, tmp_path / "out.gguf", file_type, allow_non_finite=True)


@pytest.mark.parametrize(("value", "stops"), [(65519.0, False), (65520.0, True), (-1e6, True)])
def test_a_weight_beyond_f16_stops_only_f16(tmp_path: Path, value: float, *, stops: bool) -> None:
    folder = spoiled(tmp_path / "model", LAYER_2_UP, 3, 4, value)
    if stops:
        with pytest.raises(ConversionError, match=r"too large for F16(.|\n)*row 3, column 4(.|\n)*BF16"):
            run(folder, tmp_path / "out.gguf", "F16")
    else:
        run(folder, tmp_path / "out.gguf", "F16")
    run(folder, tmp_path / "bf16.gguf", "BF16")


def test_a_bad_norm_is_named_by_its_element(tmp_path: Path) -> None:
    folder = spoiled(tmp_path / "model", "model.norm.weight", 0, 9, float("nan"))
    with pytest.raises(ConversionError, match=r"model\.norm\.weight, element 9"):
        run(folder, tmp_path / "out.gguf")


def test_a_bad_weight_of_a_stacked_part_is_named_by_the_part(tmp_path: Path) -> None:
    folder = SPELLINGS["llama-fied"](tmp_path / "model")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode()
    match = re.search(r'layers\.1\.self_attn\.k_proj\.weight"[^}]*data_offsets": \[(\d+)', header)
    assert match
    start = 8 + len(header) + int(match[1]) + 2 * (256 * 5 + 3)
    data[start : start + 2] = (0x7FC0).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=r"layers\.1\.self_attn\.k_proj\.weight, row 5, column 3"):
        run(folder, tmp_path / "out.gguf")


def test_a_head_that_should_be_tied_but_differs_is_an_error(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    edit_json(folder / "config.json", lambda data: data.update(tie_word_embeddings=True))
    with pytest.raises(ConversionError, match="a different output"):
        run(folder, tmp_path / "out.gguf")
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    replace_tensors(folder, tensors)
    assert run(folder, tmp_path / "out.gguf").tensors_by_type == {"BF16": 17, "F32": 9}


def test_an_existing_file_survives_every_failure(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="--force"):
        run(TINY, target)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "no-model", target, ConversionOptions(), force=True)
    bad = spoiled(tmp_path / "model", LAYER_2_UP, 0, 0, float("nan"))
    with pytest.raises(ConversionError):
        convert(bad, target, ConversionOptions(), force=True)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.gguf"]
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "README.md"])
def test_no_input_is_overwritten(tmp_path: Path, name: str) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    before = (folder / name).read_bytes()
    with pytest.raises(OutputError, match="one of the inputs"):
        convert(folder, folder / name, ConversionOptions(), force=True)
    assert (folder / name).read_bytes() == before


def test_a_shard_cut_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    shard = folder / "model.safetensors"

    def cut_then_plan(*arguments: Any, **options: Any) -> Any:
        os.truncate(shard, shard.stat().st_size // 2)
        return plan_chunks(*arguments, **options)

    plan_chunks = module.plan_chunks
    monkeypatch.setattr(module, "plan_chunks", cut_then_plan)
    with pytest.raises(Phi4ConvError, match="ends early"):
        run(folder, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


SLOW_CONVERSION = """
import sys, time
from phi4conv import cli, stream
run = stream.convert_chunk
def slowly(chunk):
    print("working", flush=True)
    time.sleep(0.2)
    return run(chunk)
stream.convert_chunk = slowly
sys.argv = ["phi4conv", "convert", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
@pytest.mark.parametrize("names", ["SIGINT", "SIGTERM", "SIGHUP", "SIGHUP SIGHUP", "SIGTERM SIGHUP"])
def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, names: str) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"old")
    command = [sys.executable, "-c", SLOW_CONVERSION, str(TINY), str(target), "--force", "--quiet", "--threads=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "working\n"
        assert len(list(tmp_path.iterdir())) == 2
        for name in names.split():
            process.send_signal(getattr(signal, name))
            time.sleep(0.05)  # the chunk at work, which is waited for, takes 0.2 s
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.gguf", b"old")]


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
def test_nohup_is_respected(tmp_path: Path) -> None:
    nohup = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    slow = [sys.executable, "-c", SLOW_CONVERSION, str(TINY), str(tmp_path / "out.gguf"), "--quiet"]
    command = [sys.executable, "-c", nohup, *slow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("working")  # both threads write at once
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_what_an_interrupted_run_left_is_a_warning(tmp_path: Path) -> None:
    left = tmp_path / "out.gguf.0123abcd.partial"
    left.write_bytes(b"half")
    result = run(TINY, tmp_path / "out.gguf", vocab_only=True)
    assert [warning for warning in result.warnings if str(left) in warning]
    assert left.read_bytes() == b"half"


def test_convert_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    script = (
        "import sys; from phi4conv import cli; sys.argv[0] = 'phi4conv'\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "convert", str(TINY), str(tmp_path / "out.gguf"), "--quiet"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_disk_that_is_too_small_is_told_before_work(small_disk: Path) -> None:
    finished = phi4conv("convert", TINY, small_disk / "out.gguf")
    assert finished.returncode == 2
    assert "not enough disk space" in finished.stderr
    assert list(small_disk.iterdir()) == []


def test_a_read_only_folder_is_told(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    finished = phi4conv("convert", TINY, small_disk / "out.gguf", "--vocab-only")
    assert finished.returncode == 2
    assert "the output cannot be written" in finished.stderr
    assert "read-only" in finished.stderr.lower()


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi4conv.files.check_target", lambda *_, **__: None)
    with pytest.raises(OutputError, match="No space left"):
        run(TINY, small_disk / "out.gguf")
    assert list(small_disk.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_a_small_conversion_takes_little_memory(tmp_path: Path) -> None:
    memory = re.search(r"peak memory (\d+) MB", phi4conv("convert", TINY, tmp_path / "out.gguf").stdout)
    assert memory
    assert 10 < int(memory[1]) < 300
