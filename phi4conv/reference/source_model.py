"""A checkpoint as a Model: its config.json and its own tensor names, read as transformers reads them.

The rules are those of transformers' configuration_phi3.py, configuration_llama.py, modeling_phi3.py, modeling_llama.py
and modeling_rope_utils.py (version 5, which reads what version 4 wrote). Nothing here knows GGUF's tensors beyond the
names of the parts, and nothing is shared with the converter: were its table wrong, this side would not be wrong alike.
The folder is held to have been validated; see phi4conv.hf.config and phi4conv.phi3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from phi4conv.errors import CheckpointError, Problem
from phi4conv.reference.hyperparameters import Hyperparameters, Rope
from phi4conv.reference.parts import EMBEDDING, HEAD, OUTPUT_NORM, Model, Part
from phi4conv.rows import RowSource, SlicedRows

PHI3, LLAMA = "phi3", "llama"

# What Phi3Config and LlamaConfig take where config.json is silent.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        PHI3: {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        LLAMA: {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
        },
    }
)
DEFAULT_THETA = 10000.0

# Settings of layers that no Phi-4 has and model.py does not compute, with what they must be.
ONLY: Mapping[str, Any] = MappingProxyType({"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})

# Phi3Config reads the two early names as longrope. "yarn" is not the method of that name: in the first Phi-3
# configurations it stood for LongRoPE's two lists of factors with another attention factor.
YARN = "yarn"
LONGROPE_NAMES: Mapping[str, frozenset[str]] = MappingProxyType(
    {PHI3: frozenset({"longrope", "su", YARN}), LLAMA: frozenset({"longrope"})}
)


def source_model(config: Mapping[str, Any], tensors: Mapping[str, RowSource]) -> Model:
    """The source's side of a comparison. config is config.json parsed; tensors are the checkpoint's, by name.

    With tie_word_embeddings there is no "output", whether or not the checkpoint has a copy of it.

    Raises:
        CheckpointError: A tensor is missing, or see source_hyperparameters.
    """
    hyperparameters = source_hyperparameters(config)
    reader = TensorReader(tensors)
    parts = [
        reader.whole(EMBEDDING, "model.embed_tokens.weight"),
        reader.whole(OUTPUT_NORM, "model.norm.weight"),
    ]
    if not config.get("tie_word_embeddings"):
        parts.append(reader.whole(HEAD, "lm_head.weight"))
    for index in range(hyperparameters.layer_count):
        parts.extend(layer_parts(reader, index, hyperparameters))
    return Model(hyperparameters, {part.name: part for part in parts})


def layer_parts(reader: TensorReader, index: int, shape: Hyperparameters) -> Iterator[Part]:
    """The parts of a layer: projections apart, as LlamaForCausalLM has them, or fused, as Phi3ForCausalLM does."""
    own, part = f"model.layers.{index}.", f"blk.{index}."
    yield reader.whole(f"{part}attn_norm", f"{own}input_layernorm.weight")
    if f"{own}self_attn.q_proj.weight" in reader.tensors:
        for name in ("q", "k", "v"):
            yield reader.whole(f"{part}attn_{name}", f"{own}self_attn.{name}_proj.weight")
    else:
        # Phi3Attention.forward: query heads, then key heads, then value heads.
        kv_rows = shape.kv_head_count * shape.head_size
        heights = {"attn_q": shape.head_count * shape.head_size, "attn_k": kv_rows, "attn_v": kv_rows}
        yield from reader.stacked(part, heights, f"{own}self_attn.qkv_proj.weight")
    yield reader.whole(f"{part}attn_output", f"{own}self_attn.o_proj.weight")
    yield reader.whole(f"{part}ffn_norm", f"{own}post_attention_layernorm.weight")
    if f"{own}mlp.gate_proj.weight" in reader.tensors:
        for name in ("gate", "up"):
            yield reader.whole(f"{part}ffn_{name}", f"{own}mlp.{name}_proj.weight")
    else:
        # Phi3MLP.forward: the first half goes through the activation.
        heights = {"ffn_gate": shape.feed_forward_size, "ffn_up": shape.feed_forward_size}
        yield from reader.stacked(part, heights, f"{own}mlp.gate_up_proj.weight")
    yield reader.whole(f"{part}ffn_down", f"{own}mlp.down_proj.weight")


class TensorReader:
    """The checkpoint's tensors as parts."""

    def __init__(self, tensors: Mapping[str, RowSource]) -> None:
        self.tensors = tensors

    def whole(self, part: str, name: str) -> Part:
        """A part that is a tensor."""
        return Part(part, self._rows(name), name)

    def stacked(self, prefix: str, heights: Mapping[str, int], name: str) -> Iterator[Part]:
        """Parts that lie in one tensor, one below the other, by their names and numbers of rows."""
        rows = self._rows(name)
        for part, stop in zip(heights, accumulate(heights.values()), strict=True):
            start = stop - heights[part]
            yield Part(prefix + part, SlicedRows(rows, start, stop), name, start)

    def _rows(self, name: str) -> RowSource:
        if name not in self.tensors:
            raise CheckpointError(
                Problem("a tensor is missing", where=name, next_step="download the whole checkpoint again")
            )
        return self.tensors[name]


def source_hyperparameters(config: Mapping[str, Any]) -> Hyperparameters:
    """The shape of the model that a config.json describes, with transformers' defaults.

    Raises:
        CheckpointError: It is neither Phi3ForCausalLM nor LlamaForCausalLM, has another activation than silu, or
            biases, or rotary embeddings of another kind than default and longrope.
    """
    kind = model_kind(config)
    require_plain_layers(config)
    values = {**DEFAULTS[kind], **{key: value for key, value in config.items() if value is not None}}
    hidden_size, head_count = values["hidden_size"], values["num_attention_heads"]
    head_size = values.get("head_dim") or hidden_size // head_count
    return Hyperparameters(
        layer_count=values["num_hidden_layers"],
        hidden_size=hidden_size,
        feed_forward_size=values["intermediate_size"],
        head_count=head_count,
        kv_head_count=values.get("num_key_value_heads") or head_count,
        head_size=head_size,
        rms_norm_eps=float(values["rms_norm_eps"]),
        rope=source_rope(kind, config, values, head_size),
        context_length=values["max_position_embeddings"],
        # LlamaConfig has no window, and modeling_llama.py none to apply.
        sliding_window=(values.get("sliding_window") or None) if kind == PHI3 else None,
    )


def model_kind(config: Mapping[str, Any]) -> str:
    """PHI3 or LLAMA, by the class that config.json names, else by its model_type."""
    classes = config.get("architectures") or [config.get("model_type")]
    name = classes[0] if isinstance(classes, list) else classes
    kind = {"Phi3ForCausalLM": PHI3, "LlamaForCausalLM": LLAMA, PHI3: PHI3, LLAMA: LLAMA}.get(name)
    if kind is None:
        raise CheckpointError(
            Problem(
                "not a Phi-4 checkpoint", "config.json: architectures", "Phi3ForCausalLM or LlamaForCausalLM", str(name)
            )
        )
    return kind


def require_plain_layers(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with every setting that ONLY has otherwise."""
    problems = [
        Problem(
            "phi4conv runs no model with this setting",
            where=f"config.json: {key}",
            expected=json.dumps(right),
            found=json.dumps(config[key]),
            next_step="give a checkpoint of Phi-3 or Phi-4",
        )
        for key, right in ONLY.items()
        if config.get(key) not in (None, right)
    ]
    if problems:
        raise CheckpointError(*problems)


def source_rope(kind: str, config: Mapping[str, Any], values: Mapping[str, Any], head_size: int) -> Rope:
    """The rotary settings. values are config's with defaults; raises as source_hyperparameters does."""
    settings = rope_settings(config)
    context_length = values["max_position_embeddings"]
    plain = Rope(
        dimension_count=int(head_size * settings.get("partial_rotary_factor", 1.0)),
        base=float(settings.get("rope_theta", DEFAULT_THETA)),
        # Without factors the length changes nothing; transformers' default for Phi-3 is not the model's own.
        original_context_length=config.get("original_max_position_embeddings") or context_length,
    )
    rope_type = settings.get("rope_type") or settings.get("type") or "default"
    if rope_type == "default":
        return plain
    if rope_type not in LONGROPE_NAMES[kind]:
        raise CheckpointError(
            Problem(
                "phi4conv runs no rotary embeddings of this type",
                where="config.json: rope_scaling",
                expected=f"default or one of {', '.join(sorted(LONGROPE_NAMES[kind]))}",
                found=str(rope_type),
            )
        )
    original_length = (
        values.get("original_max_position_embeddings")
        or settings.get("original_max_position_embeddings")
        or context_length
    )
    return Rope(
        dimension_count=plain.dimension_count,
        base=plain.base,
        original_context_length=original_length,
        short_factors=tuple(map(float, settings["short_factor"])),
        long_factors=tuple(map(float, settings["long_factor"])),
        magnitude=attention_factor(rope_type, settings, context_length, original_length),
    )


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every rotary setting under its name in rope_parameters, where transformers 5 has them.

    Version 4 has theta and the rotated share beside rope_scaling; what is inside of the group counts first.
    """
    group = config.get("rope_scaling") or config.get("rope_parameters") or {}
    group = group.get("full_attention", group)
    outside = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    return {key: value for key, value in {**outside, **group}.items() if value is not None}


def attention_factor(rope_type: str, settings: Mapping[str, Any], context_length: int, original_length: int) -> float:
    """What LongRoPE multiplies cosine and sine by (arXiv 2402.13753; _compute_longrope_parameters).

    settings' factor counts in place of the lengths' ratio s. In the early spelling "yarn" it is 0.1 ln(s) + 1: the
    formula that the first Phi-3 models were published with (Phi3YarnScaledRotaryEmbedding in their modeling_phi3.py)
    and that llama.cpp's converter writes (conversion/phi.py). transformers 5 reads that spelling as longrope.

    >>> round(attention_factor("longrope", {}, 131072, 4096), 6), round(attention_factor("yarn", {}, 131072, 4096), 6)
    (1.190238, 1.346574)
    """
    if "attention_factor" in settings:
        return float(settings["attention_factor"])
    ratio = context_length / original_length
    stretch = ratio if rope_type == YARN else settings.get("factor", ratio)
    # To a base of 1 there is no logarithm.
    if stretch <= 1 or original_length == 1:
        return 1.0
    if rope_type == YARN:
        return 0.1 * math.log(stretch) + 1
    return math.sqrt(1 + math.log(stretch) / math.log(original_length))
