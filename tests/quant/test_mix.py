"""Types by rule, by override, by fall-back; llama.cpp's own choices are what they are held against."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, LlamaFileType

from phi4conv.quant.mix import FILE_TYPES, Choice, TypeRules, file_type_in_name, type_warnings

F16, F32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32
Q4_0, Q4_K, Q5_0, Q5_1 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_K", "Q5_0", "Q5_1"))
Q5_K, Q6_K, Q8_0 = GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K, GGMLQuantizationType.Q8_0
MATRIX = (512, 256)

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"
FORTY_LAYERS: dict[str, dict[str, str]] = json.loads((GOLDEN / "mix-40-layers.json").read_text())
OTHER_MODELS: list[dict[str, Any]] = json.loads((GOLDEN / "mix-other-models.json").read_text())
*LIKE_LLAMA_CPP, SHIFTED = OTHER_MODELS


def rules(name: str, **fields: Any) -> TypeRules:
    """The rules of a file type for a model with the form of Phi-4, but for the given fields."""
    return TypeRules(**{"file_type": FILE_TYPES[name], "layer_count": 40, "head_ratio": 4, **fields})


def phi_4_types(name: str, **fields: Any) -> dict[str, GGMLQuantizationType]:
    """The type of every matrix of a model with 40 layers and an untied head."""
    made = rules(name, **fields)
    names = [f"blk.{layer}.{role}.weight" for layer in range(40) for role in ROLES]
    return {name: made.choose(name, MATRIX).qtype for name in ("token_embd.weight", "output.weight", *names)}


ROLES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


@pytest.mark.parametrize("name", ["blk.3.attn_norm.weight", "output_norm.weight", "rope_factors_long.weight"])
def test_vectors_stay_f32_whatever_is_asked(name: str) -> None:
    assert rules("Q8_0", overrides=((".", F16),)).choose(name, (256,)).qtype is F32


@pytest.mark.parametrize("name", FILE_TYPES)
def test_most_weights_get_the_file_types_type(name: str) -> None:
    choice = rules(name).choose("blk.0.ffn_up.weight", MATRIX)
    assert choice.qtype is FILE_TYPES[name].qtype
    assert choice.reason.startswith(f"{name}: ")


@pytest.mark.parametrize("name", [name for name in FORTY_LAYERS if name != "IQ4_XS"])
def test_forty_layers_have_the_types_that_llama_quantize_gives_them(name: str) -> None:
    made = rules(name)
    shapes = {tensor: (256,) if "norm" in tensor else MATRIX for tensor in FORTY_LAYERS[name]}
    assert {tensor: made.choose(tensor, shape).qtype.name for tensor, shape in shapes.items()} == FORTY_LAYERS[name]


def recorded_tensors(case: Mapping[str, Any], types: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Name, shape and llama.cpp's type of every matrix of a case of mix-other-models.json."""
    for role, runs in types.items():
        counted = [run.partition("x") for run in runs.split(" ")]
        in_order = [qtype for qtype, _, count in counted for _ in range(int(count or 1))]
        width = case["model"]["inner_width" if role == "ffn_down" else "width"]
        of_no_layer = role in {"token_embd", "output"}
        assert len(in_order) == (1 if of_no_layer else case["model"]["layers"])
        for layer, qtype in enumerate(in_order):
            yield f"{role}.weight" if of_no_layer else f"blk.{layer}.{role}.weight", (512, width), qtype


def recorded_rules(case: Mapping[str, Any], name: str) -> TypeRules:
    """The rules that a case of mix-other-models.json asks for."""
    model, options = case["model"], case["options"]
    return TypeRules(
        file_type=FILE_TYPES[name],
        layer_count=model["layers"],
        head_ratio=model["heads"] // model["kv_heads"],
        tied=model["tied"],
        overrides=tuple((pattern, GGMLQuantizationType[qtype]) for pattern, qtype in options["overrides"]),
        token_embedding=GGMLQuantizationType[options["embedding"]] if options["embedding"] else None,
        output=GGMLQuantizationType[options["output"]] if options["output"] else None,
        pure=options["pure"],
    )


def case_name(case: Mapping[str, Any]) -> str:
    """The fields of a case in short."""
    return "-".join(str(value) for part in ("model", "options") for value in case[part].values())


@pytest.mark.parametrize("case", LIKE_LLAMA_CPP, ids=case_name)
def test_other_models_and_options_give_the_types_that_llama_cpp_gives(case: dict[str, Any]) -> None:
    assert len(case["types"]) == 10
    for name, types in case["types"].items():
        made = recorded_rules(case, name)
        tensors = list(recorded_tensors(case, types))
        found = {tensor: made.choose(tensor, shape).qtype.name for tensor, shape, _ in tensors}
        assert found == {tensor: qtype for tensor, _, qtype in tensors}, name


def test_the_record_covers_depths_ratios_tied_heads_and_fall_backs() -> None:
    models = [case["model"] for case in LIKE_LLAMA_CPP]
    assert {1, 2, 3, 5, 8, 12, 16, 17, 24, 31, 32, 33, 40, 48, 63} <= {model["layers"] for model in models}
    assert {1, 2, 3, 4, 5, 8} <= {model["heads"] // model["kv_heads"] for model in models}
    assert {model["tied"] for model in models} == {True, False}
    assert {255, 256, 272, 288} <= {model["width"] for model in models}


@pytest.mark.parametrize("name", SHIFTED["types"])
def test_an_override_does_not_shift_the_types_of_other_layers_as_it_does_in_llama_quantize(name: str) -> None:
    plain, asked = rules(name), recorded_rules(SHIFTED, name)
    tensors = list(recorded_tensors(SHIFTED, SHIFTED["types"][name]))
    named = {"blk.0.ffn_down.weight": Q8_0, "blk.2.attn_qkv.weight": F16}
    for tensor, shape, _ in tensors:
        assert asked.choose(tensor, shape).qtype is named.get(tensor, plain.choose(tensor, shape).qtype)
    differ = [tensor for tensor, shape, qtype in tensors if asked.choose(tensor, shape).qtype.name != qtype]
    assert bool(differ) == (name in {"Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M"})


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("Q2_K", "Q2_K"),
        ("Q3_K_S", "Q3_K"),
        ("Q3_K_M", "Q4_K"),
        ("Q3_K_L", "Q4_K"),
        ("Q4_K_S", "Q4_K"),
        ("Q4_K_M", "Q5_K"),
        ("Q5_K_S", "Q5_K"),
        ("Q5_K_M", "Q6_K"),
        ("Q6_K", "Q6_K"),
        ("Q8_0", "Q8_0"),
        ("F16", "F16"),
    ],
)
def test_before_2026_attn_qkv_had_one_type_in_every_layer_and_all_else_was_as_today(name: str, before: str) -> None:
    old, new = phi_4_types(name, mix="pre-2026"), phi_4_types(name)
    assert {qtype.name for tensor, qtype in old.items() if "attn_qkv" in tensor} == {before}
    assert all(new[tensor] is qtype for tensor, qtype in old.items() if "attn_qkv" not in tensor)


def test_q4_k_m_of_phi_4_before_and_since_2026_as_published_logs_count_it() -> None:
    assert Counter(phi_4_types("Q4_K_M", mix="pre-2026").values()) == {Q4_K: 101, Q5_K: 40, Q6_K: 21}
    assert Counter(phi_4_types("Q4_K_M").values()) == {Q4_K: 121, Q6_K: 41}


def test_another_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="known are current, pre-2026"):
        rules("Q4_K_M", mix="2025")


@pytest.mark.parametrize(
    ("name", "base"), [("Q3_K_XL", "Q3_K_L"), ("Q4_K_L", "Q4_K_M"), ("Q5_K_L", "Q5_K_M"), ("Q6_K_L", "Q6_K")]
)
def test_a_preset_is_a_mix_with_embedding_and_output_at_q8_0(name: str, base: str) -> None:
    in_q8_0 = dict.fromkeys(("token_embd.weight", "output.weight"), Q8_0)
    for fields in ({}, {"mix": "pre-2026"}, {"pure": True}):
        assert phi_4_types(name, **fields) == phi_4_types(base, **fields) | in_q8_0
    assert FILE_TYPES[name].number is FILE_TYPES[base].number
    assert rules(name, tied=True).choose("token_embd.weight", MATRIX).qtype is Q8_0


def test_what_is_asked_for_wins_over_a_preset() -> None:
    asked = rules("Q4_K_L", overrides=(("token", F16),), output=Q6_K)
    assert asked.choose("token_embd.weight", MATRIX).qtype is F16
    assert asked.choose("output.weight", MATRIX).qtype is Q6_K


def test_file_types_have_llama_cpps_numbers() -> None:
    numbers = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13}
    numbers |= {"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18}
    assert {name: FILE_TYPES[name].number for name in numbers} == {
        name: LlamaFileType(number) for name, number in numbers.items()
    }
    assert FILE_TYPES.keys() - numbers.keys() == {"Q3_K_XL", "Q4_K_L", "Q5_K_L", "Q6_K_L"}


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("Q4_K_M", "blk.0.ffn_down.weight", "Q4_K_M: ffn_down, first eighth of the layers"),
        ("Q4_K_M", "blk.5.ffn_down.weight", "Q4_K_M: ffn_down, other layers"),
        ("Q4_K_M", "blk.7.ffn_down.weight", "Q4_K_M: ffn_down, every third layer between first and last eighth"),
        ("Q4_K_M", "blk.35.attn_qkv.weight", "Q4_K_M: attn_qkv, last eighth of the layers"),
        ("Q4_K_M", "blk.35.ffn_up.weight", "Q4_K_M: ffn_up"),
        ("Q4_K_M", "output.weight", "Q4_K_M: output"),
        ("Q2_K", "blk.9.attn_qkv.weight", "Q2_K: attn_qkv, four or more heads share a key and value head"),
        ("Q3_K_M", "blk.1.attn_qkv.weight", "Q3_K_M: attn_qkv, first two layers"),
        ("Q6_K", "token_embd.weight", "Q6_K: every matrix"),
    ],
)
def test_reasons_say_which_rule_applied(name: str, tensor: str, reason: str) -> None:
    assert rules(name).choose(tensor, MATRIX).reason == reason


def test_a_pure_file_has_one_type_and_a_tied_embedding_says_that_it_is_the_output() -> None:
    assert set(phi_4_types("Q4_K_M", pure=True).values()) == {Q4_K}
    assert rules("Q4_K_M", pure=True).choose("output.weight", MATRIX).reason == "Q4_K_M --pure: every matrix"
    tied = rules("Q4_K_M", tied=True).choose("token_embd.weight", MATRIX)
    assert tied == Choice(Q6_K, "Q4_K_M: token_embd is tied to the output")


def test_the_first_matching_pattern_decides_in_either_case() -> None:
    made = rules("Q8_0", overrides=(("FFN_up", F16), (r"\Dffn_\Dow", F32)))
    assert made.choose("blk.0.ffn_up.weight", MATRIX).qtype is F16
    assert made.choose("blk.0.ffn_down.weight", MATRIX).qtype is F32
    assert made.choose("blk.0.attn_qkv.weight", MATRIX).qtype is Q8_0


def test_a_role_is_a_pattern() -> None:
    made = rules("Q4_K_M", overrides=(("ffn_down", Q8_0),))
    assert {made.choose(f"blk.{layer}.ffn_down.weight", MATRIX).qtype for layer in range(40)} == {Q8_0}


def test_the_roles_come_before_patterns() -> None:
    made = rules("Q8_0", overrides=((".", F32),), token_embedding=F16, output=Q8_0)
    assert made.choose("token_embd.weight", MATRIX).qtype is F16
    assert made.choose("output.weight", MATRIX).qtype is Q8_0


def test_a_tied_embedding_takes_the_outputs_type() -> None:
    assert rules("Q8_0", output=F16, tied=True).choose("token_embd.weight", MATRIX).qtype is F16
    assert rules("Q8_0", output=F16).choose("token_embd.weight", MATRIX).qtype is Q8_0


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("Q2_K", 288, Q4_0),
        ("Q3_K_S", 288, Q4_0),
        ("Q4_K_S", 288, Q5_0),
        ("Q5_K_S", 288, Q5_1),
        ("Q6_K", 288, Q8_0),
        ("Q8_0", 288, Q8_0),
        ("F16", 255, F16),
        ("BF16", 255, GGMLQuantizationType.BF16),
        *((name, 255, F16) for name in ("Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "Q8_0")),
    ],
)
def test_rows_that_fill_no_block_fall_back_and_say_so(name: str, width: int, expected: GGMLQuantizationType) -> None:
    choice = rules(name).choose("blk.0.ffn_up.weight", (512, width))
    assert choice.qtype is expected
    fell = expected is not FILE_TYPES[name].qtype
    assert choice.wanted is (FILE_TYPES[name].qtype if fell else None)
    assert (f"rows of {width} do not fill" in choice.reason) is fell


def test_a_type_that_is_asked_for_falls_back_too() -> None:
    asked = rules("F16", token_embedding=Q4_K, output=Q4_0, overrides=((".", Q6_K),))
    fallen = {"token_embd.weight": Q5_0, "output.weight": Q4_0, "blk.0.ffn_up.weight": Q8_0}
    assert {name: asked.choose(name, (512, 288)).qtype for name in fallen} == fallen


def test_fall_backs_are_counted_in_one_warning() -> None:
    made = rules("Q4_K_M")
    widths = {
        "output.weight": 288,
        "blk.0.ffn_down.weight": 288,
        "blk.1.ffn_up.weight": 288,
        "blk.2.ffn_up.weight": 255,
    }
    choices = {name: made.choose(name, (512, width)) for name, width in widths.items()}
    (warning,) = type_warnings(made, {**choices, "blk.3.ffn_up.weight": made.choose("blk.3.ffn_up.weight", MATRIX)})
    assert warning.startswith("4 of 5 tensors fell back")
    assert "2 from Q6_K to Q8_0, 1 from Q4_K to Q5_0, 1 from Q4_K to F16" in warning


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, False),
        ({"tied": True}, False),
        ({"tied": True, "pure": True}, True),
        ({"tied": True, "token_embedding": F16}, True),
        ({"tied": True, "overrides": (("token", F16),)}, True),
    ],
)
def test_an_output_type_without_effect_is_told(fields: dict[str, Any], told: bool) -> None:
    made = rules("Q4_K_M", output=Q8_0, **fields)
    names = ["token_embd.weight"] if made.tied else ["token_embd.weight", "output.weight"]
    choices = {name: made.choose(name, MATRIX) for name in names}
    assert any("--output-tensor-type has no effect" in text for text in type_warnings(made, choices)) is told


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
        ("phi-4-Q4_K.gguf", "Q4_K_M"),
        ("phi-4-q2_k.gguf", "Q2_K"),
        ("phi-4-Q3_K_XL.gguf", "Q3_K_XL"),
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
