"""Every spelling of one configuration reads as the same values; what cannot be converted is refused by name."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from typing import Any

import pytest

from phi4conv.errors import CheckpointError
from phi4conv.hf.config import Phi3Config, parse_config

PHI4: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "bos_token_id": 100257,
    "eos_token_id": 100265,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "model_type": "phi3",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "pad_token_id": 100349,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 100352,
}


def changed(remove: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (PHI4 | changes).items() if key not in remove}


def values(config: Phi3Config) -> dict[str, Any]:
    return dataclasses.asdict(config) | {"architecture": None}


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        parse_config(data)
    return [problem.what + " " + problem.expected + " " + problem.found for problem in caught.value.problems]


def test_phi_4() -> None:
    config = parse_config(PHI4)
    assert (config.layer_count, config.head_count, config.kv_head_count) == (40, 40, 10)
    assert (config.rope.theta, config.rope.dimension_count, config.head_size) == (250000.0, 128, 128)
    assert config.sliding_window is None
    assert config.rope.long_rope is None
    assert config.special_ids == {"bos": 100257, "eos": 100265, "pad": 100349}


@pytest.mark.parametrize(
    "spelling",
    [
        changed(remove=("sliding_window",)),
        changed(remove=("rope_scaling", "torch_dtype"), dtype="bfloat16"),
        changed(
            remove=("rope_theta", "rope_scaling", "torch_dtype"),
            rope_parameters={"rope_theta": 250000, "rope_type": "default", "partial_rotary_factor": 1.0},
        ),
        changed(
            remove=("rope_theta", "original_max_position_embeddings"),
            rope_parameters={"rope_theta": 250000.0, "original_max_position_embeddings": 16384, "rope_type": "default"},
        ),
        changed(remove=("architectures",)),
        changed(eos_token_id=[100265, 100257]),
        changed(architectures="Phi3ForCausalLM"),
        changed(tie_word_embeddings=None),
        changed(remove=("original_max_position_embeddings",), architectures=["LlamaForCausalLM"], model_type="llama"),
        changed(architectures=["LlamaForCausalLM"], head_dim=128, attention_bias=False, mlp_bias=False),
    ],
)
def test_one_model_in_many_spellings(spelling: dict[str, Any]) -> None:
    assert values(parse_config(spelling)) == values(parse_config(PHI4))


def test_as_many_key_value_heads_as_heads_may_be_said_by_null() -> None:
    assert parse_config(changed(num_key_value_heads=None)).kv_head_count == 40


@pytest.mark.parametrize("value", [None, True, "1", [], {}, -1, 0, 2**80, 1e308, 1e-300, 0.5, [None], {"a": None}])
def test_whatever_a_value_is_nothing_but_a_message_comes_of_it(value: Any) -> None:
    for key in (*PHI4, "rope_parameters", "partial_rotary_factor", "head_dim", "quantization_config", "attention_bias"):
        for data in (changed(**{key: value}), changed(rope_scaling={"type": "longrope", key: value})):
            with suppress(CheckpointError):  # any other exception is the fault that this looks for
                parse_config(data)


def test_a_sliding_window_is_kept() -> None:
    assert parse_config(changed(sliding_window=2047)).sliding_window == 2047


LONGROPE: dict[str, Any] = {
    "hidden_size": 3072,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("kind", [{"type": "longrope"}, {"type": "su"}, {"rope_type": "longrope"}])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_longrope_of_phi_4_mini(kind: dict[str, Any], key: str) -> None:
    scaling = kind | {"short_factor": [1.0] * 48, "long_factor": [1.5] * 48}
    config = parse_config(changed((), **LONGROPE, **{key: scaling}))
    assert config.rope.dimension_count == 96
    assert config.tied_embeddings
    assert config.rope.long_rope is not None
    assert config.rope.long_rope.long_factors == (1.5,) * 48
    assert config.rope.long_rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


def test_an_explicit_attention_factor_wins() -> None:
    scaling = {"type": "longrope", "short_factor": [1] * 48, "long_factor": [1] * 48, "attention_factor": 1.25}
    config = parse_config(changed(**LONGROPE, rope_scaling=scaling))
    assert config.rope.long_rope is not None
    assert config.rope.long_rope.attention_factor == 1.25


def test_a_factor_stands_in_for_the_ratio_of_the_lengths() -> None:
    """As transformers' _compute_longrope_parameters has it; the lengths' ratio would be 32."""
    scaling = {"type": "longrope", "short_factor": [1] * 48, "long_factor": [1] * 48, "factor": 16}
    config = parse_config(changed(**LONGROPE, rope_scaling=scaling))
    assert config.rope.long_rope is not None
    assert config.rope.long_rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(16) / math.log(4096)))
    early = parse_config(changed(**LONGROPE, rope_scaling=scaling | {"type": "yarn"}))
    assert early.rope.long_rope is not None
    assert early.rope.long_rope.attention_factor == pytest.approx(0.1 * math.log(32) + 1)
    (problem,) = problems(changed(**LONGROPE, rope_scaling=scaling | {"factor": "16"}))
    assert "factor is not usable" in problem


@pytest.mark.parametrize("count", [0, 47, 64])
def test_a_wrong_number_of_factors_is_refused(count: int) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * count}
    assert any("long_factor" in problem for problem in problems(changed(**LONGROPE, rope_scaling=scaling)))


@pytest.mark.parametrize("kind", ["dynamic", "linear", "llama3", "longerope"])
def test_an_unknown_rope_type_is_refused_by_name(kind: str) -> None:
    (problem,) = problems(changed(rope_scaling={"type": kind, "factor": 2.0}))
    assert kind in problem


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["LlamaForCausalLM", "Phi3ForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"architectures": ["PhiMoEForCausalLM"]}, "PhiMoEForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "biases"),
        ({"head_dim": 96}, "head_dim"),
        ({"num_attention_heads": 48}, "num_attention_heads"),
        ({"num_key_value_heads": 7}, "num_key_value_heads"),
        ({"hidden_size": "5120"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_theta": None}, "rope_theta"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"original_max_position_embeddings": -1}, "original_max_position_embeddings"),
        ({"original_max_position_embeddings": 2**40}, "original_max_position_embeddings"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.37}, "rotates 47"),
        ({"partial_rotary_factor": 1e-9}, "rotates 0"),
        ({"rope_theta": 1e-60}, "rope_theta"),
        ({"rope_theta": 1e308}, "rope_theta"),
        ({"rms_norm_eps": 10**399}, "rms_norm_eps"),
        ({"rms_norm_eps": 1e-60}, "rms_norm_eps"),
        ({"rope_scaling": "longrope"}, "rope_scaling"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": None}}, "rope_parameters"),
        ({"head_dim": {}}, "head_dim"),
        ({"vocab_size": 2**31 - 1}, "vocab_size"),
        ({"architectures": "Qwen2ForCausalLM"}, "Qwen2ForCausalLM"),
    ],
)
def test_what_cannot_be_converted_is_named(changes: dict[str, Any], named: str) -> None:
    assert any(named in problem for problem in problems(changed(**changes)))


def test_a_multimodal_model_is_refused_as_one() -> None:
    with pytest.raises(CheckpointError, match="multimodal"):
        parse_config(changed(architectures=["Phi4ForCausalLMV"], vision_config={}))


def test_all_problems_are_told_at_once() -> None:
    assert len(problems(changed(hidden_size=None, vocab_size=-1, hidden_act="relu"))) >= 3
