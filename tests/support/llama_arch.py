"""Files of the architecture `llama`, as llama.cpp's converter makes them of llama-fied checkpoints.

conversion/llama.py: q, k, v and gate, up stay apart, and the rows of q and k are permuted, because llama.cpp rotates
neighbouring components in this architecture (and the halves of a head in phi3).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import read_safetensors
from gguf import GGMLQuantizationType, Keys, LlamaFileType
from vocabulary_files import tiny_pairs
from weight_files import StoredTensor, encoded, write_weight_file

from phi4conv.arrays import Floats
from phi4conv.gguf_file.layout import MetadataPair, f32, text, u32

ARCHITECTURE = "llama"

MODEL_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GGMLQuantizationType.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    GGMLQuantizationType.Q4_K: LlamaFileType.MOSTLY_Q4_K_S,
}


def write_llama_arch(
    folder: Path, target: Path, qtype: GGMLQuantizationType = GGMLQuantizationType.F32, *, permuted: bool = True
) -> Path:
    """A file of the checkpoint that checkpoints.llamafied() makes, every matrix of one type.

    permuted=False leaves q and k in the checkpoint's order, a fault that files have been published with.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {}
    for name, (dtype, words) in read_safetensors(folder / "model.safetensors").items():
        values = widened(dtype, words)
        if permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            values = permuted_rows(values, heads)
        tensors[gguf_name(name)] = stored(values, qtype)
    return write_weight_file(target, metadata(config, FILE_TYPES[qtype]), tensors)


def widened(dtype: str, words: Any) -> Floats:
    """Stored words of a checkpoint as float32."""
    if dtype == "BF16":
        bits: Floats = (words.astype(np.uint32) << 16).view(np.float32)
        return bits
    return np.asarray(words, np.float32)


def permuted_rows(weights: Floats, head_count: int) -> Floats:
    """The rows of q or k in the order of the llama architecture: (heads * size, width).

    Within a head, rows 0, 1, 2, … of its first half and of its second alternate (LlamaModel.permute).
    """
    by_half = weights.reshape(head_count, 2, -1, weights.shape[1])  # (heads, 2, size / 2, width)
    rows: Floats = by_half.swapaxes(1, 2).reshape(weights.shape)
    return rows


def unpermuted_rows(weights: Floats, head_count: int) -> Floats:
    """The inverse of permuted_rows."""
    by_pair = weights.reshape(head_count, -1, 2, weights.shape[1])  # (heads, size / 2, 2, width)
    rows: Floats = by_pair.swapaxes(1, 2).reshape(weights.shape)
    return rows


def gguf_name(name: str) -> str:
    """The name in the file of a tensor in the checkpoint.

    >>> gguf_name("model.layers.3.mlp.up_proj.weight")
    'blk.3.ffn_up.weight'
    """
    stem = name.removesuffix(".weight")
    if stem in MODEL_TENSORS:
        return f"{MODEL_TENSORS[stem]}.weight"
    layer, _, role = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYER_TENSORS[role]}.weight"


def stored(values: Floats, qtype: GGMLQuantizationType) -> StoredTensor:
    """Norms stay F32, as in every file that llama.cpp writes."""
    return encoded(values, values.shape, qtype if values.ndim > 1 else GGMLQuantizationType.F32)


def metadata(config: dict[str, Any], file_type: LlamaFileType) -> Iterator[MetadataPair]:
    """The pairs in the converter's order; vocabulary and names are those of the tiny checkpoint."""

    def key(pattern: str) -> str:
        return pattern.format(arch=ARCHITECTURE)

    pairs = tiny_pairs()
    yield text(Keys.General.ARCHITECTURE, ARCHITECTURE)
    changed = (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE, Keys.General.QUANTIZATION_VERSION)
    yield from (pair for name, pair in pairs.items() if name.startswith("general.") and name not in changed)
    yield u32(key(Keys.LLM.BLOCK_COUNT), config["num_hidden_layers"])
    yield u32(key(Keys.LLM.CONTEXT_LENGTH), config["max_position_embeddings"])
    yield u32(key(Keys.LLM.EMBEDDING_LENGTH), config["hidden_size"])
    yield u32(key(Keys.LLM.FEED_FORWARD_LENGTH), config["intermediate_size"])
    yield u32(key(Keys.Attention.HEAD_COUNT), config["num_attention_heads"])
    yield u32(key(Keys.Attention.HEAD_COUNT_KV), config["num_key_value_heads"])
    yield f32(key(Keys.Rope.FREQ_BASE), config["rope_theta"])
    yield f32(key(Keys.Attention.LAYERNORM_RMS_EPS), config["rms_norm_eps"])
    yield u32(Keys.General.FILE_TYPE, file_type)
    yield u32(key(Keys.LLM.VOCAB_SIZE), config["vocab_size"])
    yield u32(key(Keys.Rope.DIMENSION_COUNT), config["hidden_size"] // config["num_attention_heads"])
    yield pairs[Keys.General.QUANTIZATION_VERSION]
    yield from (pair for name, pair in pairs.items() if name.startswith("tokenizer."))
