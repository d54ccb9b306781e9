"""Makes a full-width Phi-4 checkpoint of seeded random weights, for measuring and for tests on real shapes.

    python benchmarks/make_model.py TOKENIZER_DIR OUT_DIR --layers 2

TOKENIZER_DIR is a folder with Phi-4's config.json, tokenizer.json and tokenizer_config.json; the new
folder gets the same files and the same configuration but for the number of layers. Two layers make
1.7 billion weights, 3.4 GB of bf16, in shards of at most 2 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHARD_BYTES = 2_000_000_000
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "README.md")
ROWS_AT_A_TIME = 4096


def tensor_shapes(config: dict[str, int], layers: int) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape, in the order in which transformers saves them."""
    hidden, ffn, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv_width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for index in range(layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes[layer + "mlp.gate_up_proj.weight"] = (2 * ffn, hidden)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[layer + "self_attn.qkv_proj.weight"] = (hidden + 2 * kv_width, hidden)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def split(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in order, cut into shards."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        tensor_bytes = 2 * math.prod(shape)
        if size + tensor_bytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += tensor_bytes
    return shards


def bf16_chunks(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[bytes]:
    """The tensor's bytes: norms near 1, matrices N(0, 0.02), truncated to bf16."""
    rows, width = math.prod(shape[:-1]), shape[-1]
    for start in range(0, rows, ROWS_AT_A_TIME):
        weights = generator.standard_normal((min(ROWS_AT_A_TIME, rows - start), width), dtype=np.float32)
        weights *= np.float32(0.02)
        if "norm" in name:
            weights += 1
        yield (weights.view(np.uint32) >> 16).astype("<u2").tobytes()


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], generator: np.random.Generator) -> None:
    """One safetensors file."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for chunk in bf16_chunks(name, shape, generator):
                file.write(chunk)


def make_model(tokenizer_dir: Path, out_dir: Path, layers: int, seed: int = 0) -> None:
    """Write the whole folder."""
    config = json.loads((tokenizer_dir / "config.json").read_text())
    out_dir.mkdir(parents=True)
    (out_dir / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}, indent=1))
    for name in COPIED:
        if (tokenizer_dir / name).exists():
            shutil.copyfile(tokenizer_dir / name, out_dir / name)
    shards = split(tensor_shapes(config, layers))
    weight_map: dict[str, str] = {}
    generator = np.random.default_rng(seed)
    for number, shapes in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(out_dir / file_name, shapes, generator)
        weight_map.update(dict.fromkeys(shapes, file_name))
    total = sum(2 * math.prod(shape) for shapes in shards for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_model(arguments.tokenizer_dir, arguments.out_dir, arguments.layers, arguments.seed)
