"""Types by rule, by override, by fall-back."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType

from phi4conv.quant.mix import FILE_TYPES, TypeRules, file_type_in_name

F16, F32, Q8_0 = GGMLQuantizationType.F16, GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
MATRIX = (512, 256)


@pytest.mark.parametrize("name", ["blk.3.attn_norm.weight", "output_norm.weight", "rope_factors_long.weight"])
def test_vectors_stay_f32_whatever_is_asked(name: str) -> None:
    rules = TypeRules(FILE_TYPES["Q8_0"], overrides=((".", F16),))
    assert rules.choose(name, (256,)).qtype is F32


@pytest.mark.parametrize("name", FILE_TYPES)
def test_matrices_get_the_file_types_type(name: str) -> None:
    choice = TypeRules(FILE_TYPES[name]).choose("blk.0.ffn_up.weight", MATRIX)
    assert choice.qtype is FILE_TYPES[name].qtype
    assert name in choice.reason


def test_the_first_matching_pattern_decides_in_either_case() -> None:
    rules = TypeRules(FILE_TYPES["Q8_0"], overrides=(("FFN_up", F16), (r"\Dffn_\Dow", F32)))
    assert rules.choose("blk.0.ffn_up.weight", MATRIX).qtype is F16
    assert rules.choose("blk.0.ffn_down.weight", MATRIX).qtype is F32
    assert rules.choose("blk.0.attn_qkv.weight", MATRIX).qtype is Q8_0


def test_the_roles_come_before_patterns() -> None:
    rules = TypeRules(FILE_TYPES["Q8_0"], overrides=((".", F32),), token_embedding=F16, output=Q8_0)
    assert rules.choose("token_embd.weight", MATRIX).qtype is F16
    assert rules.choose("output.weight", MATRIX).qtype is Q8_0


def test_a_tied_embedding_takes_the_outputs_type() -> None:
    assert TypeRules(FILE_TYPES["Q8_0"], output=F16, tied=True).choose("token_embd.weight", MATRIX).qtype is F16
    assert TypeRules(FILE_TYPES["Q8_0"], output=F16).choose("token_embd.weight", MATRIX).qtype is Q8_0


def test_rows_that_fill_no_block_fall_back_to_f16_and_say_so() -> None:
    choice = TypeRules(FILE_TYPES["Q8_0"]).choose("blk.0.ffn_up.weight", (512, 255))
    assert choice.qtype is F16
    assert "255" in choice.reason


@pytest.mark.parametrize(
    ("name", "file_type"),
    [
        ("phi-4-Q4_K_M.gguf", "Q4_K_M"),
        ("Phi-4-15B-v1.0-q8_0.gguf", "Q8_0"),
        ("phi-4.BF16.gguf", "BF16"),
        ("phi-4-F16-finetune-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("phi-4.gguf", None),
        ("phi-4-fp16.gguf", "F16"),
        ("phi4_q8_0.gguf", "Q8_0"),
        ("phi4_q8_0_v2.gguf", "Q8_0"),
        ("phi-4-Q8.gguf", "Q8"),
        ("phi-4-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("phi-4-Q6_K_L.gguf", "Q6_K_L"),
        ("phi-4-mxfp4.gguf", "MXFP4"),
        ("phi-4-int8.gguf", "INT8"),
        ("phi-4-IQ4_XS.gguf", "IQ4_XS"),
        ("faq8_0.gguf", None),
        ("phi-4-q9.gguf", None),
    ],
)
def test_a_file_name_may_announce_its_type(name: str, file_type: str | None) -> None:
    assert file_type_in_name(name) == file_type
