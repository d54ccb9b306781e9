"""config.json, however it is spelled, as one Phi3Config.

Read are transformers 4 (rope_theta, rope_scaling, torch_dtype) and 5 (rope_parameters, dtype), and
Phi-4 saved as a Llama (LlamaForCausalLM with separate q, k, v and gate, up). Weights are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.json_file import read_json_object

PHI3 = "Phi3ForCausalLM"
LLAMA = "LlamaForCausalLM"

# Names under which longrope has been published. "yarn" is not YaRN: the first Phi-3 configurations used
# the word for a pair of factor lists with an attention factor of their own.
LONGROPE_NAMES = ("longrope", "su", "yarn")


@dataclass(frozen=True)
class LongRope:
    """LongRoPE: a factor per rotated pair of dimensions, for contexts up to and beyond the original length."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    attention_factor: float


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
    original_context_length: int
    rope_theta: float
    rope_dimension_count: int
    long_rope: LongRope | None
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
    kv_head_count = fields.count("num_key_value_heads", default=head_count)
    context_length = fields.count("max_position_embeddings")
    rope = rope_values(data)
    original_context_length = original_length(fields, rope, context_length)
    rope_dimension_count = 0
    if head_count:
        fields.require("num_attention_heads", hidden_size % head_count == 0, f"a divisor of hidden_size {hidden_size}")
        share = fields.number_in(rope, "partial_rotary_factor", default=1.0)
        # The rounding is llama.cpp's (conversion/phi.py): the share of the whole width, then per head.
        rope_dimension_count = int(share * hidden_size) // head_count
    if kv_head_count:
        fields.require("num_key_value_heads", head_count % kv_head_count == 0, f"a divisor of {head_count} heads")
    check_llama_like(fields, hidden_size, head_count)
    config = Phi3Config(
        architecture=architecture,
        hidden_size=hidden_size,
        intermediate_size=fields.count("intermediate_size"),
        layer_count=fields.count("num_hidden_layers"),
        head_count=head_count,
        kv_head_count=kv_head_count,
        rms_norm_eps=fields.number("rms_norm_eps"),
        vocab_size=fields.count("vocab_size"),
        context_length=context_length,
        original_context_length=original_context_length,
        rope_theta=fields.number_in(rope, "rope_theta"),
        rope_dimension_count=rope_dimension_count,
        long_rope=read_long_rope(fields, rope, context_length, original_context_length, rope_dimension_count),
        sliding_window=fields.optional_count("sliding_window"),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        special_ids={name: special_id(data.get(f"{name}_token_id")) for name in ("bos", "eos", "pad")},
    )
    fields.raise_problems()
    return config


class Fields:
    """Typed access to config.json that collects every problem instead of stopping at the first."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where
        self.problems: list[Problem] = []

    def add(self, key: str, expected: str, found: Any) -> None:
        """Note that key does not hold what is expected."""
        shown = "missing" if found is None else repr(found)
        self.problems.append(Problem(f"{key} is not usable", where=self.where, expected=expected, found=shown))

    def require(self, key: str, condition: bool, expected: str) -> None:
        """Note a problem with key unless the condition holds."""
        if not condition:
            self.add(key, expected, self.data.get(key))

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer; 0 after a problem."""
        value = self.data.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
        self.add(key, "a positive integer", value)
        return 0

    def optional_count(self, key: str) -> int | None:
        """A positive integer, or None where the key is missing, null or 0."""
        return self.count(key) if self.data.get(key) else None

    def flag(self, key: str) -> bool:
        """A truth value; false where the key is missing, as Phi3Config and LlamaConfig have it."""
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            self.add(key, "true or false", value)
        return bool(value)

    def number(self, key: str) -> float:
        """A positive finite number; 0.0 after a problem."""
        return self.number_in(self.data, key)

    def number_in(self, data: Mapping[str, Any], key: str, default: float | None = None) -> float:
        """A positive finite number of data; 0.0 after a problem."""
        value = data.get(key)
        value = default if value is None else value
        if value is not None and is_positive(value):
            return float(value)
        self.add(key, "a positive number", value)
        return 0.0

    def raise_problems(self) -> None:
        """Raise CheckpointError when any problem was noted."""
        if self.problems:
            raise CheckpointError(*self.problems)


def recognised_architecture(data: Mapping[str, Any], where: str) -> str:
    """The architecture's class name, when it is one that phi4conv converts."""
    names = data.get("architectures") or []
    if isinstance(names, list) and len(names) == 1 and names[0] in (PHI3, LLAMA):
        return str(names[0])
    if not names and data.get("model_type") == "phi3":
        return PHI3
    found = ", ".join(map(str, names)) if isinstance(names, list) and names else str(data.get("model_type", "nothing"))
    advice = "only text models of the Phi-3 and Phi-4 family are converted"
    if "vision_config" in data or "audio_processor" in data:
        advice = f"this is a multimodal model; {advice}"
    problem = Problem("not a Phi-4 checkpoint", where=where, expected=f"{PHI3} or {LLAMA}", found=found)
    raise CheckpointError(Problem(**{**problem.__dict__, "next_step": advice}))


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


def rope_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Every rotary setting under its transformers 5 name, wherever the file has it."""
    values = {key: data[key] for key in ("rope_theta", "partial_rotary_factor") if key in data}
    if "original_max_position_embeddings" in data:
        values["original_max_position_embeddings"] = data["original_max_position_embeddings"]
    for key in ("rope_scaling", "rope_parameters"):
        group = data.get(key)
        if isinstance(group, Mapping):
            group = group.get("full_attention", group)  # transformers 5 may group them by the kind of layer
            values.update({name: value for name, value in group.items() if value is not None})
    if "rope_type" not in values and "type" in values:
        values["rope_type"] = values["type"]
    return values


def original_length(fields: Fields, rope: Mapping[str, Any], context_length: int) -> int:
    """The context length before LongRoPE; without it, the context length itself."""
    value = rope.get("original_max_position_embeddings")
    if value is None:
        return context_length
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        fields.add("original_max_position_embeddings", "a positive integer", value)
        return context_length
    return value


def read_long_rope(
    fields: Fields, rope: Mapping[str, Any], context_length: int, original_context_length: int, dimension_count: int
) -> LongRope | None:
    """The LongRoPE factors, None for plain rotary embeddings; an unknown kind is a problem by its name."""
    kind = rope.get("rope_type", "default")
    if kind in ("default", None):
        return None
    if kind not in LONGROPE_NAMES:
        expected = f"default or one of {', '.join(LONGROPE_NAMES)}; llama.cpp's phi3 runs no other"
        fields.add("rope_scaling type", expected, kind)
        return None
    if rope.get("original_max_position_embeddings") is None:
        fields.add("original_max_position_embeddings", f"the length that {kind} extends", None)
    short_factors, long_factors = (
        read_factors(fields, rope, key, dimension_count // 2) for key in ("short_factor", "long_factor")
    )
    scale = context_length / original_context_length
    default = default_attention_factor(str(kind), scale, original_context_length)
    attention_factor = fields.number_in(rope, "attention_factor", default=default)
    return LongRope(short_factors, long_factors, attention_factor)


def read_factors(fields: Fields, rope: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """One list of LongRoPE factors; empty after a problem."""
    values = rope.get(key)
    if not isinstance(values, list) or len(values) != count or not all(is_positive(value) for value in values):
        found = f"{len(values)} values" if isinstance(values, list) else values
        fields.add(key, f"{count} positive numbers, one a rotated pair of dimensions", found)
        return ()
    return tuple(float(value) for value in values)


def is_positive(value: Any) -> bool:
    """Whether a value of JSON is a positive finite number; true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def default_attention_factor(kind: str, scale: float, original_context_length: int) -> float:
    """How much attention is scaled for a context scale times the original.

    For longrope, sqrt(1 + ln(scale) / ln(original)): LongRoPE (arXiv 2402.13753) as transformers and
    llama.cpp compute it; the early "yarn" spelling used 0.1 ln(scale) + 1 (llama.cpp conversion/phi.py).

    >>> round(default_attention_factor("longrope", 131072 / 4096, 4096), 6)
    1.190238
    """
    if scale <= 1 or original_context_length == 1:
        return 1.0
    if kind == "yarn":
        return 0.1 * math.log(scale) + 1.0
    return math.sqrt(1 + math.log(scale) / math.log(original_context_length))


def check_llama_like(fields: Fields, hidden_size: int, head_count: int) -> None:
    """Note settings that the phi3 architecture of llama.cpp cannot express."""
    head_size = fields.data.get("head_dim")
    if head_size is not None and head_count:
        fields.require(
            "head_dim", head_size * head_count == hidden_size, f"hidden_size / heads = {hidden_size // head_count}"
        )
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
