"""config.json, however it is spelled, as one Phi3Config.

Read are transformers 4 (rope_theta, rope_scaling, torch_dtype) and 5 (rope_parameters, dtype), and
Phi-4 saved as a Llama (LlamaForCausalLM with separate q, k, v and gate, up). Weights are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.config_fields import Fields
from phi4conv.hf.json_file import read_json_object
from phi4conv.hf.rope import Rope, read_rope
from phi4conv.vocab import LARGEST_VOCABULARY

PHI3 = "Phi3ForCausalLM"
LLAMA = "LlamaForCausalLM"


@dataclass(frozen=True)
class Phi3Config:
    """What the conversion needs to know about the model. Lengths and sizes are in tokens and weights."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    rms_norm_eps: float
    vocab_size: int
    context_length: int
    rope: Rope
    sliding_window: int | None
    tied_embeddings: bool
    special_ids: Mapping[str, int | None]

    @property
    def is_llamafied(self) -> bool:
        """Whether the checkpoint is spelled as a Llama, with separate q, k, v and gate, up."""
        return self.architecture == LLAMA

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.head_count


def read_config(folder: Path) -> Phi3Config:
    """Read and validate folder/config.json.

    Raises:
        CheckpointError: The file is missing or broken, the model is not a Phi-3 or Phi-4, the checkpoint is
            quantized already, or a value is missing, of the wrong kind or inconsistent. All problems found
            are in one error.
    """
    path = folder / "config.json"
    return parse_config(read_json_object(path), str(path))


def parse_config(data: Mapping[str, Any], where: str = "config.json") -> Phi3Config:
    """The configuration in a parsed config.json; where names it in errors. Raises as read_config does."""
    architecture = recognised_architecture(data, where)
    refuse_quantized(data, where)
    fields = Fields(data, where)
    hidden_size = fields.count("hidden_size")
    head_count = fields.count("num_attention_heads")
    kv_head_count = fields.count("num_key_value_heads", default=head_count or None)
    if head_count:
        fields.require("num_attention_heads", hidden_size % head_count == 0, f"a divisor of hidden_size {hidden_size}")
    if kv_head_count:
        fields.require("num_key_value_heads", head_count % kv_head_count == 0, f"a divisor of {head_count} heads")
    check_llama_like(fields, hidden_size, head_count)
    context_length = fields.count("max_position_embeddings")
    config = Phi3Config(
        architecture=architecture,
        hidden_size=hidden_size,
        intermediate_size=fields.count("intermediate_size"),
        layer_count=fields.count("num_hidden_layers"),
        head_count=head_count,
        kv_head_count=kv_head_count,
        rms_norm_eps=fields.number("rms_norm_eps"),
        vocab_size=fields.count("vocab_size", largest=LARGEST_VOCABULARY),
        context_length=context_length,
        rope=read_rope(fields, hidden_size, head_count, context_length),
        sliding_window=fields.optional_count("sliding_window"),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        special_ids={name: special_id(data.get(f"{name}_token_id")) for name in ("bos", "eos", "pad")},
    )
    fields.raise_problems()
    return config


def recognised_architecture(data: Mapping[str, Any], where: str) -> str:
    """The architecture's class name, when it is one that phi4conv converts."""
    names = data.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    if len(names) == 1 and names[0] in (PHI3, LLAMA):
        return str(names[0])
    if not names and data.get("model_type") == "phi3":
        return PHI3
    advice = "only text models of the Phi-3 and Phi-4 family are converted"
    if "vision_config" in data or "audio_processor" in data:
        advice = f"this is a multimodal model; {advice}"
    found = ", ".join(map(str, names)) or f"model_type {data.get('model_type', 'missing')}"
    raise CheckpointError(Problem("not a Phi-4 checkpoint", where, f"{PHI3} or {LLAMA}", found[:100], advice))


def refuse_quantized(data: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for a checkpoint whose weights were quantized by another tool."""
    quantization = data.get("quantization_config")
    if not quantization:
        return
    method = (
        quantization.get("quant_method", "an unnamed method") if isinstance(quantization, Mapping) else quantization
    )
    raise CheckpointError(
        Problem(
            f"the checkpoint is already quantized ({method})",
            where=where,
            expected="F32, F16 or BF16 weights",
            found=f"quantization_config: {method}",
            next_step="convert the model that it was made from, or save it dequantized first",
        )
    )


def check_llama_like(fields: Fields, hidden_size: int, head_count: int) -> None:
    """Note settings that the phi3 architecture of llama.cpp cannot express."""
    if head_count and fields.data.get("head_dim") is not None:
        head_size = hidden_size // head_count
        fields.require("head_dim", fields.data["head_dim"] == head_size, f"hidden_size / heads = {head_size}")
    if fields.data.get("hidden_act", "silu") != "silu":
        fields.add("hidden_act", "silu", fields.data["hidden_act"])
    for key in ("attention_bias", "mlp_bias"):
        if fields.data.get(key):
            fields.add(key, "false: phi3 has no biases", fields.data[key])


def special_id(value: Any) -> int | None:
    """A token id of config.json; the first where a list is given, as generation settings do for eos."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
