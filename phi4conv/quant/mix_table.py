"""The mixes as tables: for each file type, role and layer the tensor type that llama-quantize takes.

Source: llama.cpp's src/llama-quant.cpp, llama_tensor_get_type_impl. Only exceptions are listed: a matrix that no
line names has the file type's main type. Layers count from 0, and every division is an integer division.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType

Q3_K, Q4_K = GGMLQuantizationType.Q3_K, GGMLQuantizationType.Q4_K
Q5_K, Q6_K = GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K


@dataclass(frozen=True)
class Place:
    """Where in a model a tensor stands.

    Attributes:
        layer: Its layer's number.
        layer_count: How many layers the model has.
        head_ratio: How many attention heads share one key and value head.
    """

    layer: int
    layer_count: int
    head_ratio: int


@dataclass(frozen=True)
class Condition:
    """At which places a line of the table holds, and how that is said."""

    words: str
    holds: Callable[[Place], bool]


ALWAYS = Condition("", lambda _: True)
FIRST_TWO = Condition("first two layers", lambda at: at.layer < 2)
FIRST_FOUR = Condition("first four layers", lambda at: at.layer < 4)
FIRST_SIXTEENTH = Condition("first sixteenth of the layers", lambda at: at.layer < at.layer_count // 16)
FIRST_EIGHTH = Condition("first eighth of the layers", lambda at: at.layer < at.layer_count // 8)
LAST_EIGHTH = Condition("last eighth of the layers", lambda at: at.layer >= 7 * at.layer_count // 8)
EVERY_THIRD = Condition(
    "every third layer between first and last eighth", lambda at: (at.layer - at.layer_count // 8) % 3 == 2
)
SHARED_BY_FOUR = Condition("four or more heads share a key and value head", lambda at: at.head_ratio >= 4)


@dataclass(frozen=True)
class Line:
    """A type, and where it is taken."""

    qtype: GGMLQuantizationType
    condition: Condition = ALWAYS


Lines = tuple[Line, ...]  # the first whose condition holds decides

# llama.cpp's use_more_bits: about half of the layers.
MORE_BITS = (Line(Q6_K, FIRST_EIGHTH), Line(Q6_K, LAST_EIGHTH), Line(Q6_K, EVERY_THIRD))

# File type -> role -> lines. File types that are absent have one type for every matrix.
MIXES: Mapping[str, Mapping[str, Lines]] = {
    "Q2_K": {
        "attn_v": (Line(Q4_K, SHARED_BY_FOUR), Line(Q3_K)),
        "attn_output": (Line(Q3_K),),
        "ffn_down": (Line(Q3_K),),
    },
    "Q3_K_S": {},
    "Q3_K_M": {
        "attn_v": (Line(Q5_K, FIRST_TWO), Line(Q4_K)),
        "attn_output": (Line(Q4_K),),
        "ffn_down": (Line(Q5_K, FIRST_SIXTEENTH), Line(Q4_K)),
    },
    "Q3_K_L": {"attn_v": (Line(Q5_K),), "attn_output": (Line(Q5_K),), "ffn_down": (Line(Q5_K),)},
    "Q4_K_S": {"attn_v": (Line(Q5_K, FIRST_FOUR),), "ffn_down": (Line(Q5_K, FIRST_EIGHTH),)},
    "Q4_K_M": {"attn_v": MORE_BITS, "ffn_down": MORE_BITS},
    "Q5_K_S": {},
    "Q5_K_M": {"attn_v": MORE_BITS, "ffn_down": MORE_BITS},
}

# The output of every mix, and a token embedding that serves as the output.
OUTPUT_LINES = (Line(Q6_K),)

# A fused attn_qkv before llama.cpp's pull request 19770 (February 2026), which made it an attn_v.
QKV_PRE_2026: Mapping[str, Lines] = {
    "Q3_K_M": (Line(Q4_K),),
    "Q3_K_L": (Line(Q4_K),),
    "Q4_K_M": (Line(Q5_K),),
    "Q5_K_M": (Line(Q6_K),),
}

CURRENT, PRE_2026 = "current", "pre-2026"
MIX_NAMES = (CURRENT, PRE_2026)


def lines_for(rule: str, role: str, mix: str) -> Lines:
    """What a mix says of a role such as attn_qkv or output: of most roles nothing."""
    if role == "output":
        return OUTPUT_LINES
    if role == "attn_qkv":
        if mix == PRE_2026:
            return QKV_PRE_2026.get(rule, ())
        role = "attn_v"
    return MIXES[rule].get(role, ())
