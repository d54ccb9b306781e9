"""The rotary settings of config.json: plain embeddings, partial ones, and LongRoPE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi4conv.hf.config_fields import Fields, is_positive

# Names under which longrope has been published. "yarn" is not YaRN: the first Phi-3 configurations used
# the word for a pair of factor lists with an attention factor of their own.
LONGROPE_NAMES = ("longrope", "su", "yarn")

# Where transformers 4 has each setting; transformers 5 has them all in rope_parameters.
TOP_LEVEL_KEYS = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class LongRope:
    """LongRoPE: a factor per rotated pair of dimensions, for contexts up to and beyond the original length."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    attention_factor: float


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings.

    Attributes:
        theta: The base of the frequencies.
        dimension_count: How many of a head's dimensions are rotated.
        original_context_length: In tokens: the length before LongRoPE, without it the context length.
        long_rope: The factors, None for plain rotary embeddings.
    """

    theta: float
    dimension_count: int
    original_context_length: int
    long_rope: LongRope | None


def read_rope(fields: Fields, hidden_size: int, head_count: int, context_length: int) -> Rope:
    """The rotary settings, wherever the file has them; problems are noted in fields."""
    values = rope_values(fields)
    original_context_length = fields.count_in(values, "original_max_position_embeddings", default=context_length or 1)
    dimension_count = rotated_dimensions(fields, values, hidden_size, head_count)
    return Rope(
        theta=fields.number_in(values, "rope_theta"),
        dimension_count=dimension_count,
        original_context_length=original_context_length,
        long_rope=read_long_rope(fields, values, context_length, original_context_length or 1, dimension_count),
    )


def rope_values(fields: Fields) -> dict[str, Any]:
    """Every rotary setting under its transformers 5 name."""
    values = {key: fields.data[key] for key in TOP_LEVEL_KEYS if key in fields.data}
    for key in ("rope_scaling", "rope_parameters"):
        group = fields.data.get(key)
        if isinstance(group, Mapping):  # transformers 5 may group the settings by the kind of layer
            group = group.get("full_attention", group)
        if isinstance(group, Mapping):
            values.update({name: value for name, value in group.items() if value is not None})
        elif group is not None or "full_attention" in (fields.data.get(key) or ()):
            fields.add(key, "an object, or null", fields.data[key])
    if "rope_type" not in values and "type" in values:
        values["rope_type"] = values["type"]
    return values


def rotated_dimensions(fields: Fields, values: Mapping[str, Any], hidden_size: int, head_count: int) -> int:
    """How many dimensions of a head are rotated; 0 after a problem."""
    share = fields.number_in(values, "partial_rotary_factor", default=1.0)
    if not head_count or not share:
        return 0
    if share > 1:
        fields.add("partial_rotary_factor", "at most 1: the share of each head that is rotated", share)
        return 0
    # The rounding is llama.cpp's (conversion/phi.py): the share of the whole width, then per head.
    count = int(share * hidden_size) // head_count
    if count < 2 or count % 2:
        expected = f"a share that rotates an even number of a head's {hidden_size // head_count} dimensions"
        fields.add("partial_rotary_factor", expected, f"{share}, which rotates {count}")
    return count


def read_long_rope(
    fields: Fields, values: Mapping[str, Any], context_length: int, original_context_length: int, dimension_count: int
) -> LongRope | None:
    """The LongRoPE factors, None for plain rotary embeddings; an unknown kind is a problem by its name."""
    kind = values.get("rope_type", "default")
    if kind in ("default", None):
        return None
    if kind not in LONGROPE_NAMES:
        expected = f"default or one of {', '.join(LONGROPE_NAMES)}; llama.cpp's phi3 runs no other"
        fields.add("rope_scaling type", expected, kind)
        return None
    if values.get("original_max_position_embeddings") is None:
        fields.add("original_max_position_embeddings", f"the length that {kind} extends", None)
    short_factors, long_factors = (
        read_factors(fields, values, key, dimension_count // 2) for key in ("short_factor", "long_factor")
    )
    scale = context_length / original_context_length
    # transformers takes a factor in place of the lengths' ratio; the code published with "yarn" knew the lengths alone.
    if kind != "yarn" and values.get("factor") is not None:
        scale = fields.number_in(values, "factor")
    default = default_attention_factor(kind, scale, original_context_length)
    return LongRope(short_factors, long_factors, fields.number_in(values, "attention_factor", default=default))


def read_factors(fields: Fields, values: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """One list of LongRoPE factors; empty after a problem."""
    factors = values.get(key)
    if not isinstance(factors, list) or len(factors) != count or not all(map(is_positive, factors)):
        found = f"{len(factors)} values" if isinstance(factors, list) else factors
        fields.add(key, f"{count} positive numbers, one for each rotated pair of dimensions", found)
        return ()
    return tuple(map(float, factors))


def default_attention_factor(kind: str, scale: float, original_context_length: int) -> float:
    """How much attention is scaled for a context scale times the original; scale is the setting "factor" if given.

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
