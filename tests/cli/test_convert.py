"""phi4conv convert as a user meets it: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from checkpoints import REPOSITORY, TINY, copy_of_tiny, edit_json, replace_tensors, tiny_tensors
from programs import phi4conv

from phi4conv.cli import type_options
from phi4conv.cli.convert import convert
from phi4conv.quant.mix import FILE_TYPES
from phi4conv.quant.mix_table import MIX_NAMES

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4998772184\n"
SHARD = "model-00001-of-00002.safetensors"


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def without_tensor(folder: Path) -> None:
    tensors = tiny_tensors()
    del tensors["model.layers.3.mlp.down_proj.weight"]
    replace_tensors(folder, tensors)


def with_unknown_tensor(folder: Path) -> None:
    tensors = tiny_tensors()
    replace_tensors(folder, {**tensors, "model.vision.weight": tensors["model.norm.weight"]})


def fp8(folder: Path) -> None:
    quantized = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    edit_json(folder / "config.json", lambda data: data.update(quantization_config=quantized))


def gptq_tensors(folder: Path) -> None:
    tensors = tiny_tensors()
    renamed = {name.replace("down_proj.weight", "down_proj.qweight"): tensor for name, tensor in tensors.items()}
    replace_tensors(folder, renamed)


def several(folder: Path) -> None:
    (folder / SHARD).write_text(LFS_POINTER)
    edit_json(folder / "config.json", lambda data: data.update(hidden_act="gelu"))


def small_embedding(folder: Path) -> None:
    tensors = tiny_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = (tensors[name][0], tensors[name][1][:1000])
    replace_tensors(folder, tensors)
    edit_json(folder / "config.json", lambda data: data.update(vocab_size=1000))


def truncated(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[: len(data) - 1000])


def path_in_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(SHARD, f"../{SHARD}"))


# What is done to the folder, and words of the message that tell a stranger what to do.
REFUSALS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "empty folder": (empty, ("an empty folder",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("config.json",)),
    "LFS pointer": (lambda folder: (folder / SHARD).write_text(LFS_POINTER), ("Git LFS", "git lfs pull", SHARD)),
    "HTML page": (lambda folder: (folder / "config.json").write_text("<!doctype html><html>"), ("HTML", "config.json")),
    "HTML tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("<html>"), ("HTML", "tokenizer.json")),
    "truncated shard": (truncated, ("truncated", SHARD)),
    "missing shard": (lambda folder: (folder / SHARD).unlink(), (SHARD,)),
    "missing tensor": (without_tensor, ("a tensor is missing", "model.layers.3.mlp.down_proj.weight")),
    "unknown tensor": (with_unknown_tensor, ("no GGUF name", "model.vision.weight")),
    "wrong shape": (
        lambda folder: edit_json(folder / "config.json", lambda data: data.update(intermediate_size=768)),
        ("config.json and the weights disagree", "(256, 768)", "(256, 512)"),
    ),
    "fp8": (fp8, ("already quantized", "fp8")),
    "GPTQ": (gptq_tensors, ("GPTQ",)),
    "pickle": (pickled, ("pytorch_model.bin", "safetensors")),
    "small embedding": (small_embedding, ("more tokens than the embedding has rows", "1,024", "1,000")),
    "several problems": (several, ("Git LFS", "hidden_act is not usable")),
    "path in the index": (path_in_index, ("index", f"../{SHARD}")),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ("tokenizer.json",)),
    "another model": (
        lambda folder: edit_json(folder / "config.json", lambda data: data.update(architectures=["GemmaForCausalLM"])),
        ("not a Phi-4", "GemmaForCausalLM"),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_folder_gives_one_clear_message_and_no_file(tmp_path: Path, case: str) -> None:
    spoil, words = REFUSALS[case]
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    spoil(folder)
    finished = phi4conv("convert", folder, tmp_path / "out.gguf")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert "Traceback" not in finished.stderr
    for word in words:
        assert word in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


ORDER = "\x1b]0;title\x07\nerror: forged"


def test_a_name_in_the_checkpoint_cannot_forge_a_message(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    tensors = tiny_tensors()
    replace_tensors(folder, {**tensors, ORDER: tensors["model.norm.weight"]})
    finished = phi4conv("convert", folder, tmp_path / "out.gguf")
    assert finished.returncode == 2
    assert "\x1b" not in finished.stderr
    assert r"\x1b]0;title\x07\nerror: forged" in finished.stderr
    assert [line for line in finished.stderr.splitlines() if line.startswith("error: forged")] == []
    assert len(finished.stderr.splitlines()) > 1  # a problem's own lines stay apart


def test_a_name_cannot_forge_a_result_or_a_warning(tmp_path: Path) -> None:
    finished = phi4conv("convert", TINY, tmp_path / f"{ORDER}-F16.gguf", "--type", "BF16")
    assert finished.returncode == 0
    for stream in (finished.stdout, finished.stderr):
        assert "\x1b" not in stream
        assert r"\nerror: forged-F16.gguf" in stream


@pytest.mark.parametrize("out", ["new/", "out.gguf/", "out.gguf/.", "new/..", "."])
def test_a_folder_as_output_is_told(tmp_path: Path, out: str) -> None:
    finished = phi4conv("convert", TINY, out, cwd=tmp_path)
    assert finished.returncode == 2
    assert "is a folder" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    finished = phi4conv("convert", TINY, tmp_path / "pipe", "--force")
    assert finished.returncode == 2
    assert "a device, a pipe or a socket" in finished.stderr
    assert (tmp_path / "pipe").is_fifo()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    finished = phi4conv("convert", tmp_path / "phi-4", tmp_path / "out.gguf")
    assert finished.returncode == 2
    assert "no such folder" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "Q9_X"], "Q9_X"),
        (["--type", "IQ4_XS"], "this version writes F32, F16, BF16, Q8_0, Q6_K, Q5_K_M"),
        (["--type", "Q4_K_M", "--mix", "2025"], "'2025' is not one of 'current', 'pre-2026'"),
        (["--tensor-type", "ffn_down"], "expected REGEX=TYPE"),
        (["--tensor-type", "ffn_down=Q9"], "no tensor type 'Q9'"),
        (["--token-embedding-type", "big"], "no tensor type 'big'"),
        (["--threads", "0"], "--threads"),
        (["--metadata", "no-such-file.json"], "no-such-file.json"),
        (["--name", "my phi-3 tune"], "general.name must not contain phi-3"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, arguments: list[str], words: str) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "out.gguf", *arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny-Q4_K_M.gguf", "tiny.Q4_K.gguf"])
def test_a_mix_may_be_chosen_by_the_files_name(tmp_path: Path, name: str) -> None:
    finished = phi4conv("convert", TINY, tmp_path / name, "--dry-run", "--json")
    document = json.loads(finished.stdout)
    assert document["type"] == "Q4_K_M"
    reasons = {tensor["name"]: (tensor["type"], tensor["reason"]) for tensor in document["tensors"]}
    assert reasons["blk.3.attn_qkv.weight"] == ("Q6_K", "Q4_K_M: attn_qkv, last eighth of the layers")


def test_mix_pure_and_presets_are_options(tmp_path: Path) -> None:
    def types(*arguments: str) -> Counter[str]:
        finished = phi4conv("convert", TINY, tmp_path / "out.gguf", "--dry-run", "--json", *arguments)
        return Counter(tensor["type"] for tensor in json.loads(finished.stdout)["tensors"])

    assert types("--type", "q4_k_m", "--mix", "pre-2026") == {"F32": 9, "Q4_K": 11, "Q5_K": 4, "Q6_K": 3}
    assert types("--type", "Q4_K_M", "--pure") == {"F32": 9, "Q4_K": 18}
    assert types("--type", "Q6_K_L") == {"F32": 9, "Q6_K": 16, "Q8_0": 2}


def test_the_help_names_every_type_and_mix() -> None:
    assert type_options.MIX_NAMES == MIX_NAMES
    (option,) = [option for option in convert.params if option.name == "file_type"]
    assert isinstance(option, click.Option)
    assert set(re.findall(r"[BF]+\d+|Q\d_\w+", str(option.help).partition("which are")[0])) == set(FILE_TYPES)


def test_the_summary_tells_what_was_written(tmp_path: Path) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "tiny-Q8_0.gguf")
    assert finished.returncode == 0
    for words in ("tiny-Q8_0.gguf", "27 tensors: 18 Q8_0, 9 F32", "2.83 MiB", "8.52 bits per weight"):
        assert words in finished.stdout


def test_json_is_one_document_and_nothing_else(tmp_path: Path) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "tiny-Q8_0.gguf", "--json")
    document = json.loads(finished.stdout)
    assert (document["schema"], document["command"], document["dry_run"]) == ("phi4conv.convert/1", "convert", False)
    assert document["size_bytes"] == (tmp_path / "tiny-Q8_0.gguf").stat().st_size
    assert document["tensors_by_type"] == {"Q8_0": 18, "F32": 9}


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "out.gguf", "--type", "q8_0", "--dry-run", "--json")
    document = json.loads(finished.stdout)
    assert finished.returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert {"tensors", "size_bytes", "bits_per_weight", "metadata"} <= document.keys()
    assert document["tensors"][0] == {
        "name": "output.weight",
        "shape": [1024, 256],
        "type": "Q8_0",
        "source": ["lm_head.weight"],
        "reason": "Q8_0: every matrix",
        "importance": False,
    }
    shown = phi4conv("convert", TINY, tmp_path / "out.gguf", "--dry-run").stdout.splitlines()
    assert len(shown) == 28
    assert shown[0].startswith("output.weight")
    assert "27 tensors, 2,754,816 weights" in shown[-1]


def test_an_error_with_json_is_a_document_too(tmp_path: Path) -> None:
    finished = phi4conv("convert", tmp_path / "nothing", tmp_path / "out.gguf", "--json")
    document = json.loads(finished.stdout)
    assert finished.returncode == 2
    assert document["schema"] == "phi4conv.error/1"
    assert document["error"]["problems"][0]["what"] == "no such folder"


def test_vocabulary_only_says_so(tmp_path: Path) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "vocab.gguf", "--vocab-only")
    assert finished.returncode == 0
    assert "metadata and vocabulary only" in finished.stdout
    assert "bits per weight" not in finished.stdout


def test_quiet_says_nothing(tmp_path: Path) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "tiny-F16.gguf", "--type", "BF16", "--quiet")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_a_name_that_contradicts_the_type_is_a_warning(tmp_path: Path) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "tiny-F16.gguf", "--type", "BF16")
    assert finished.returncode == 0
    assert "warning: tiny-F16.gguf says F16, but --type is BF16" in finished.stderr


def test_the_launcher_works_in_a_bare_clone(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "cli.py"), "convert", str(TINY), str(tmp_path / "out.gguf"), "--quiet"]
    assert subprocess.run(command, check=False, cwd=tmp_path).returncode == 0
    assert (tmp_path / "out.gguf").exists()


def test_help_is_light() -> None:
    script = (
        "import sys; from phi4conv import cli; sys.argv = ['phi4conv', 'convert', '--help']\n"
        "try: cli.main()\n"
        "finally: print(sorted({'numpy', 'gguf', 'rich', 'tokenizers', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stderr == "[]\n"
    assert "--allow-non-finite" in finished.stdout
