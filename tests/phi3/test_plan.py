"""Plans from names, shapes and configuration: no weights are read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SHARED_DATA, SPELLINGS, TINY, copy_of_tiny, edit_json, llamafied, replace_tensors, tiny_tensors
from gguf import GGMLQuantizationType

from phi4conv import phi3
from phi4conv.arrays import Floats
from phi4conv.errors import CheckpointError, ConversionError
from phi4conv.hf.config import Phi3Config, parse_config
from phi4conv.phi3 import ConversionOptions
from phi4conv.phi3.metadata import safe_name
from phi4conv.phi3.planner import plan_tensors
from phi4conv.phi3.tensors import check_tensors, expected_shapes
from phi4conv.plan import ConversionPlan, LeftOut
from phi4conv.quant.mix import FILE_TYPES

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"
Q8_0, F16, F32 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16, GGMLQuantizationType.F32


@dataclass(frozen=True)
class Shape:
    """A source with a shape and no weights."""

    name: str
    shape: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def rows(self, start: int, stop: int) -> Floats:  # noqa: ARG002  # the protocol's
        raise AssertionError("a plan reads no weights")


def values(plan: ConversionPlan, *prefixes: str) -> dict[str, Any]:
    return {
        pair.key: (pair.type, pair.item_type, pair.value) for pair in plan.metadata if pair.key.startswith(prefixes)
    }


def tiny_plan(folder: Path = TINY, **options: Any) -> ConversionPlan:
    plan = phi3.plan(folder, ConversionOptions(**options))
    plan.check()
    return plan


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_file(tmp_path: Path, spelling: str) -> None:
    plan, expected = tiny_plan(SPELLINGS[spelling](tmp_path / "model")), tiny_plan()
    assert values(plan, "phi3.", "tokenizer.") == values(expected, "phi3.", "tokenizer.")
    shown = [(tensor.name, tensor.shape, tensor.qtype, tensor.reason) for tensor in plan.tensors]
    assert shown == [(tensor.name, tensor.shape, tensor.qtype, tensor.reason) for tensor in expected.tensors]
    assert plan.size_bytes == expected.size_bytes or spelling == "llama-fied"  # general.name and tags may differ


def test_tensors_stand_in_llama_quantizes_order() -> None:
    golden = json.loads((GOLDEN / "metadata-phi-4.json").read_text())["tensor_order_quantize"]
    names = [tensor.name for tensor in tiny_plan().tensors]
    assert names[: len(golden)] == golden
    assert names[len(golden) :: 6] == [f"blk.{index}.attn_norm.weight" for index in (1, 2, 3)]


PHI_4 = parse_config(
    {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": 250000,
        "vocab_size": 100352,
    }
)


def phi_4_plan(config: Phi3Config = PHI_4, **options: Any) -> ConversionPlan:
    """The plan for a model of these sizes, without metadata and weights."""
    sources = {name: Shape(name, shape) for name, shape in expected_shapes(config).items()}
    check_tensors(config, sources)
    chosen = ConversionOptions(**options)
    tensors, warnings = plan_tensors(config, sources, FILE_TYPES[options["file_type"]], chosen)
    plan = ConversionPlan(options["file_type"], (), tensors, tuple(sources), warnings=warnings)
    plan.check()
    return plan


def counts(plan: ConversionPlan) -> dict[str, int]:
    """How many tensors have each type."""
    return Counter(tensor.qtype.name for tensor in plan.tensors)


def test_phi_4_has_243_tensors_of_14_66_billion_weights() -> None:
    plan = phi_4_plan(file_type="F16")
    assert len(plan.tensors) == 243
    assert plan.weight_count == 14_659_507_200
    assert {tensor.name: tensor.shape for tensor in plan.tensors}["blk.39.ffn_up.weight"] == (35840, 5120)


def test_phi_4_in_q6_k_with_an_f16_embedding_is_the_published_file() -> None:
    """The mirror's phi-4.etf16-Q6_K.gguf, with which this project began."""
    plan = phi_4_plan(file_type="Q6_K", token_embedding=F16)
    assert counts(plan) == {"F32": 81, "F16": 1, "Q6_K": 161}
    assert f"{plan.tensor_bytes / 2**30:.2f}" == "11.77"
    assert f"{plan.bits_per_weight:.2f}" == "6.89"


def test_phi_4_in_q4_k_m_before_and_since_2026() -> None:
    old, new = phi_4_plan(file_type="Q4_K_M", mix="pre-2026"), phi_4_plan(file_type="Q4_K_M")
    assert counts(old) == {"F32": 81, "Q4_K": 101, "Q5_K": 40, "Q6_K": 21}
    assert f"{old.tensor_bytes / 2**30:.2f} GiB, {old.bits_per_weight:.2f}" == "8.43 GiB, 4.94"
    assert counts(new) == {"F32": 81, "Q4_K": 121, "Q6_K": 41}
    assert old.warnings == new.warnings == ()


def test_the_mix_follows_depth_head_ratio_and_tied_heads_of_the_configuration() -> None:
    ungrouped = replace(PHI_4, layer_count=8, kv_head_count=40, tied_embeddings=True)
    types = {tensor.name: tensor.qtype.name for tensor in phi_4_plan(ungrouped, file_type="Q2_K").tensors}
    assert (types["blk.0.attn_qkv.weight"], types["token_embd.weight"]) == ("Q3_K", "Q6_K")
    mixed = {tensor.name: tensor.qtype.name for tensor in phi_4_plan(ungrouped, file_type="Q4_K_M").tensors}
    in_q6_k = [layer for layer in range(8) if mixed[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
    assert in_q6_k == [0, 3, 6, 7]


def test_rows_that_fill_no_block_fall_back_with_reason_and_warning() -> None:
    odd = replace(PHI_4, layer_count=2, intermediate_size=255)
    plan = phi_4_plan(odd, file_type="Q4_K_S")
    (reason,) = {tensor.reason for tensor in plan.tensors if tensor.name == "blk.1.ffn_down.weight"}
    assert reason == "Q4_K_S: ffn_down, other layers: Q4_K, but rows of 255 do not fill its blocks of 256"
    assert counts(plan)["F16"] == 2
    (warning,) = plan.warnings
    assert warning.startswith("2 of 15 tensors fell back")


def test_longrope_adds_factors_and_a_tied_head_is_left_out(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for name in ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        tensors[name] = ("F32", tensors["model.norm.weight"][1][:16])
    replace_tensors(folder, tensors)
    scaling = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    edit_json(
        folder / "config.json",
        lambda data: data.update(rope_scaling=scaling, tie_word_embeddings=True, original_max_position_embeddings=4096),
    )
    plan = tiny_plan(folder, output=Q8_0)
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert "output.weight" not in by_name
    assert by_name["token_embd.weight"].qtype is Q8_0
    assert by_name["rope_factors_long.weight"].source.rows(0, 1).tolist() == [[2.0] * 16]
    assert by_name["rope_factors_short.weight"].qtype is F32
    assert [tensor.name for tensor in plan.tensors[:4]] == [
        "output_norm.weight",
        "rope_factors_long.weight",
        "rope_factors_short.weight",
        "token_embd.weight",
    ]
    assert {left.name for left in plan.left_out} == {
        "lm_head.weight",
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    }
    assert "phi3.rope.scaling.attn_factor" in values(plan, "phi3.")


def test_a_sliding_window_is_written_and_none_is_zero(tmp_path: Path) -> None:
    key = "phi3.attention.sliding_window"
    assert values(tiny_plan(), key)[key][2] == 0
    folder = copy_of_tiny(tmp_path / "model")
    edit_json(folder / "config.json", lambda data: data.update(sliding_window=2047))
    assert values(tiny_plan(folder), key)[key][2] == 2047


def test_the_embeddings_spare_rows_become_pads(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    tensors = tiny_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        dtype, words = tensors[name]
        tensors[name] = (dtype, words.repeat(2, axis=0)[:1030])
    replace_tensors(folder, tensors)
    edit_json(folder / "config.json", lambda data: data.update(vocab_size=1030))
    tokens = values(tiny_plan(folder), "tokenizer.ggml.tokens")["tokenizer.ggml.tokens"][2]
    assert tokens[1023:] == ("<|dummy_87|>", *(f"[PAD{index}]" for index in range(1024, 1030)))


def test_types_by_option() -> None:
    plan = tiny_plan(file_type="Q8_0", token_embedding=F16, output=F32, overrides=(("blk\\.0\\..*down", F16),))
    assert Counter(tensor.qtype for tensor in plan.tensors) == {F32: 10, Q8_0: 15, F16: 2}
    assert values(plan, "general.file_type")["general.file_type"][2] == 7
    assert tiny_plan(file_type="BF16").file_type == tiny_plan().file_type == "BF16"


@pytest.mark.parametrize(("name", "number"), [("Q4_K_M", 15), ("Q4_K_L", 15), ("Q3_K_XL", 13), ("Q6_K", 18)])
def test_mixes_and_presets_write_llama_cpps_file_type(name: str, number: int) -> None:
    plan = tiny_plan(file_type=name)
    assert plan.file_type == name
    assert values(plan, "general.file_type")["general.file_type"][2] == number


def test_pure_and_mix_are_options() -> None:
    assert counts(tiny_plan(file_type="Q4_K_M", pure=True)) == {"F32": 9, "Q4_K": 18}
    assert counts(tiny_plan(file_type="Q4_K_M", mix="pre-2026")) == {"F32": 9, "Q4_K": 11, "Q5_K": 4, "Q6_K": 3}
    assert counts(tiny_plan(file_type="Q4_K_M")) == {"F32": 9, "Q4_K": 13, "Q6_K": 5}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("blk.9", "matches no tensor"),
        ("norm", "matches no tensor"),
        ("(", "regular"),
        ("(" * 3000, "regular"),
        ("a{99999999999}", "regular"),
    ],
)
def test_an_override_that_changes_nothing_is_an_error(pattern: str, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        tiny_plan(overrides=((pattern, F16),))


def test_an_override_without_tensors_is_an_error_too() -> None:
    with pytest.raises(ConversionError, match="--vocab-only writes no tensors"):
        tiny_plan(vocab_only=True, overrides=(("ffn", F16),))


def test_the_size_is_exact_and_the_weights_are_counted() -> None:
    plan = tiny_plan(file_type="Q8_0")
    assert plan.size_bytes == plan.header.data_offset + sum(
        -(-entry.size_bytes // 32) * 32 for entry in plan.header.tensors
    )
    assert plan.bits_per_weight == pytest.approx(8.5, abs=0.03)


def remove(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.pop(name)


def add(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update({name: tensors["model.norm.weight"]})


def prefixed(tensors: dict[str, Any], prefix: str) -> None:
    for name in list(tensors):
        tensors[prefix + name] = tensors.pop(name)


def cut(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update({name: (tensors[name][0], tensors[name][1][:-1])})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("model.norm.weight"), "a tensor is missing\n  where:    model.norm.weight"),
        (remove("lm_head.weight"), "llama.cpp would silently use the embedding"),
        (remove("model.layers.2.mlp.gate_up_proj.weight"), "model.layers.2.mlp.gate_up_proj.weight"),
        (add("model.layers.4.input_layernorm.weight"), "num_hidden_layers 4"),
        (lambda tensors: prefixed(tensors, "base_model.model."), "merge_and_unload"),
        (lambda tensors: prefixed(tensors, "_orig_mod."), "do not begin as those of a saved model"),
        (add("model.layers.0.self_attn.qkv_proj.bias"), "no GGUF name for this tensor"),
        (add("base_model.model.layers.0.lora_A.weight"), "merge the LoRA adapter"),
        (cut("model.layers.1.self_attn.o_proj.weight"), r"config.json and the weights disagree(.|\n)*\(255, 256\)"),
        (cut("model.embed_tokens.weight"), r"\(1024, 256\), from config.json"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    tensors = tiny_tensors()
    change(tensors)
    replace_tensors(folder, tensors)
    with pytest.raises(CheckpointError, match=words):
        tiny_plan(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_hidden_layers", 5, "expected: 4, as the weights have"),
        ("num_hidden_layers", 2**31 - 1, "expected: 4, as the weights have"),
        ("vocab_size", 1_000_000, r"\(1000000, 256\), from config.json"),
    ],
)
def test_sizes_are_held_against_the_weights_before_they_are_believed(
    tmp_path: Path, key: str, value: int, words: str
) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    edit_json(folder / "config.json", lambda data: data.update({key: value}))
    with pytest.raises(CheckpointError, match=words):
        tiny_plan(folder)


def test_matrices_of_another_type_than_most_are_told(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = ("F32", tensors["lm_head.weight"][1].astype("<f4"))
    tensors["model.norm.weight"] = ("F32", tensors["model.norm.weight"][1].astype("<f4"))
    replace_tensors(folder, tensors)
    (warning,) = tiny_plan(folder).warnings
    assert "rounded to theirs: 'output.weight';" in warning
    assert tiny_plan(folder, file_type="BF16").warnings == ()


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "additional_chat_templates/tool.jinja"])
def test_every_file_of_the_folder_is_an_input(tmp_path: Path, name: str) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (folder / "notes.txt").write_text("mine")
    (folder / "old.gguf").write_bytes(b"")
    for options in ({}, {"vocab_only": True}):
        inputs = tiny_plan(folder, **options).inputs
        assert folder / name in inputs
        assert folder / "old.gguf" not in inputs


def test_many_problems_of_one_kind_are_counted(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    edit_json(folder / "config.json", lambda data: data.update(intermediate_size=500))
    with pytest.raises(CheckpointError, match="and 3 more like these") as caught:
        tiny_plan(folder)
    assert len(caught.value.problems) == 6


def test_another_llama_is_refused_by_name(tmp_path: Path) -> None:
    folder = llamafied(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<|im_sep|>", "<|eot_id|>"))
    with pytest.raises(CheckpointError, match="this LlamaForCausalLM is not Phi-4"):
        tiny_plan(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    tensors = tiny_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = (tensors[name][0], tensors[name][1][:1000])
    replace_tensors(folder, tensors)
    edit_json(folder / "config.json", lambda data: data.update(vocab_size=1000))
    with pytest.raises(ConversionError, match="more tokens than the embedding has rows"):
        tiny_plan(folder)


@pytest.mark.parametrize("name", ["my-phi3-tune", "Phi-3 mini", "PHI-3.5", "aphi3b"])
def test_no_name_that_llama_cpp_takes_for_phi_3(name: str) -> None:
    safe, warning = safe_name(name, asked_for=False)
    assert "phi3" not in safe.lower()
    assert "phi-3" not in safe.lower()
    assert warning is not None
    assert name in warning
    with pytest.raises(ConversionError, match="--name"):
        safe_name(name, asked_for=True)


def test_other_names_are_kept() -> None:
    assert safe_name("Phi 4 mini", asked_for=True) == ("Phi 4 mini", None)


def test_generation_settings_and_model_card(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    settings = {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    card = "license: mit\nversion: 4\nbase_model: microsoft/phi-4\nlanguage:\n- en\n- no\ntags: [chat]\n"
    (folder / "README.md").write_text(f"---\n{card}---\n# Title\n")
    general = {key: value[2] for key, value in values(tiny_plan(folder), "general.").items()}
    assert general["general.sampling.top_k"] == 50
    assert general["general.sampling.penalty_repeat"] == pytest.approx(1.1)
    assert general["general.license"] == "mit"
    assert general["general.version"] == "4"
    assert general["general.languages"] == ("en", "no")
    assert general["general.base_model.0.repo_url"] == "https://huggingface.co/microsoft/phi-4"
    assert general["general.quantization_version"] == 2


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("generation_config.json", '{"top_k": 1.5}', "general.sampling.top_k is not usable"),
        ("generation_config.json", '{"temperature": "hot"}', "general.sampling.temp is not usable"),
        ("generation_config.json", "<html>", "HTML"),
    ],
)
def test_a_broken_card_is_refused(tmp_path: Path, file: str, text: str, words: str) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        tiny_plan(folder)


def test_the_users_metadata_wins(tmp_path: Path) -> None:
    overrides = tmp_path / "metadata.json"
    overrides.write_text(json.dumps({"general.quantized_by": "me", "general.name": "Other"}))
    general = values(tiny_plan(metadata_file=overrides), "general.")
    assert (general["general.quantized_by"][2], general["general.name"][2]) == ("me", "Other")
    assert values(tiny_plan(metadata_file=overrides, name="Mine"), "general.name")["general.name"][2] == "Mine"


def test_a_plan_must_use_every_source_exactly_once() -> None:
    plan = tiny_plan()
    for wrong in (
        replace(plan, tensors=plan.tensors[1:]),
        replace(plan, tensors=(*plan.tensors, plan.tensors[0])),
        replace(plan, source_names=(*plan.source_names, "extra")),
        replace(plan, left_out=(LeftOut("model.norm.weight", "no reason"),)),
        replace(plan, tensors=(replace(plan.tensors[0], shape=(1,)), *plan.tensors[1:])),
        replace(plan, tensors=(replace(plan.tensors[0], name="x" * 64), *plan.tensors[1:])),
    ):
        with pytest.raises(ConversionError):
            wrong.check()


def test_vocabulary_only_needs_no_weights(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    plan = tiny_plan(folder, vocab_only=True)
    assert plan.tensors == ()
    assert values(plan, "tokenizer.", "phi3.") == values(tiny_plan(), "tokenizer.", "phi3.")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the published tokenizer files beside the checkout")
def test_real_phi_4_metadata_is_llama_cpps() -> None:
    """Against the golden list, but for sizes, which there come from a smaller model, and eot_token_id, which we add."""
    golden = json.loads((GOLDEN / "metadata-phi-4.json").read_text())["convert_bf16"]
    plan = phi3.plan(SHARED_DATA / "phi-4", ConversionOptions(vocab_only=True, file_type="BF16"))
    written = {
        pair.key: pair.type.name if pair.item_type is None else f"ARRAY[{pair.item_type.name}]"
        for pair in plan.metadata
    }
    expected = {key: kind for key, (kind, _) in golden.items()}
    del expected["general.size_label"]  # no weights here
    assert [key for key in written if key != "tokenizer.ggml.eot_token_id"] == list(expected)
    assert {key: kind for key, kind in written.items() if key in expected} == expected
    ours = {pair.key: pair.value for pair in plan.metadata}
    sizes = ("embedding_length", "feed_forward_length", "block_count", "head_count", "head_count_kv", "dimension_count")
    for key, (_, value) in golden.items():
        if key in expected and not key.endswith(sizes) and not str(value).endswith("entries"):
            assert (list(ours[key]) if isinstance(value, list) else ours[key]) == value, key
    assert ours["tokenizer.ggml.eot_token_id"] == 100265
