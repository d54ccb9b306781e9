"""The tiny checkpoint and its other spellings, made without torch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "fixtures"
TINY = FIXTURES / "tiny-phi4"
TINY_BROKEN = FIXTURES / "tiny-phi4-broken.gguf"
# Published tokenizer and configuration files, which are no part of the project; None in a stranger's clone.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Stored words: uint16 for BF16 and F16, float32 for F32.
Words = npt.NDArray[Any]
DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def read_safetensors(path: Path) -> dict[str, tuple[str, Words]]:
    """Name -> dtype and stored words, in file order."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        words = np.frombuffer(data[begin:end], DTYPES[info["dtype"]]).reshape(info["shape"])
        tensors[name] = (info["dtype"], words)
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Words]]) -> None:
    """The inverse."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, words) in tensors.items():
        size = math.prod(words.shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(words.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(words.astype(DTYPES[dtype]).tobytes() for dtype, words in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def tiny_tensors() -> dict[str, tuple[str, Words]]:
    """Every tensor of the tiny checkpoint."""
    return {
        name: tensor for path in sorted(TINY.glob("*.safetensors")) for name, tensor in read_safetensors(path).items()
    }


def copy_of_tiny(folder: Path, *, single_file: bool = True) -> Path:
    """The tiny checkpoint in a new folder, its weights in one file unless they are to stay in shards."""
    shutil.copytree(TINY, folder)
    folder.chmod(0o755)
    if single_file:
        replace_tensors(folder, tiny_tensors())
    return folder


def replace_tensors(folder: Path, tensors: Mapping[str, tuple[str, Words]]) -> None:
    """Put these weights, in one file, in the place of the folder's."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    write_safetensors(folder / "model.safetensors", tensors)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")


def llamafied(folder: Path) -> Path:
    """The tiny checkpoint as Unsloth and others publish Phi-4: LlamaForCausalLM, q, k, v and gate, up apart."""
    copy_of_tiny(folder)
    config = json.loads((TINY / "config.json").read_text())
    kv_width = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    edges = {
        "self_attn.qkv_proj": (
            ("self_attn.q_proj", config["hidden_size"]),
            ("self_attn.k_proj", kv_width),
            ("self_attn.v_proj", kv_width),
        ),
        "mlp.gate_up_proj": (
            ("mlp.gate_proj", config["intermediate_size"]),
            ("mlp.up_proj", config["intermediate_size"]),
        ),
    }
    tensors: dict[str, tuple[str, Words]] = {}
    for name, (dtype, words) in tiny_tensors().items():
        fused = next((key for key in edges if key in name), None)
        if fused is None:
            tensors[name] = (dtype, words)
            continue
        start = 0
        for part, rows in edges[fused]:
            tensors[name.replace(fused, part)] = (dtype, words[start : start + rows])
            start += rows
        assert start == len(words)
    replace_tensors(folder, tensors)

    def change(data: dict[str, Any]) -> None:
        data.update(architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=False, mlp_bias=False)
        for key in ("original_max_position_embeddings", "sliding_window", "_name_or_path"):
            data.pop(key, None)

    edit_json(folder / "config.json", change)
    return folder


def resaved_by_transformers_5(folder: Path) -> Path:
    """The tiny checkpoint with the names that transformers 5 writes."""
    copy_of_tiny(folder)

    def config(data: dict[str, Any]) -> None:
        rope = {"rope_theta": data.pop("rope_theta"), "rope_type": "default", "partial_rotary_factor": 1.0}
        rope["original_max_position_embeddings"] = data["original_max_position_embeddings"]
        data.pop("rope_scaling", None)
        data.update(rope_parameters=rope, dtype=data.pop("torch_dtype"))

    def tokenizer_config(data: dict[str, Any]) -> None:
        (folder / "chat_template.jinja").write_text(data.pop("chat_template"))
        data.pop("added_tokens_decoder", None)
        data.update(tokenizer_class="TokenizersBackend", backend="tokenizers")

    def tokenizer(data: dict[str, Any]) -> None:
        data["model"]["merges"] = [merge.split(" ") for merge in data["model"]["merges"]]

    edit_json(folder / "config.json", config)
    edit_json(folder / "tokenizer_config.json", tokenizer_config)
    edit_json(folder / "tokenizer.json", tokenizer)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return folder


def with_other_tokenizer_class(folder: Path) -> Path:
    """The tiny checkpoint with a class name that means nothing for the vocabulary, and no sliding_window."""
    copy_of_tiny(folder, single_file=False)
    edit_json(folder / "tokenizer_config.json", lambda data: data.update(tokenizer_class="PreTrainedTokenizerFast"))
    edit_json(folder / "config.json", lambda data: data.pop("sliding_window"))
    return folder


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "one file": copy_of_tiny,
    "llama-fied": llamafied,
    "transformers 5": resaved_by_transformers_5,
    "other class": with_other_tokenizer_class,
}
