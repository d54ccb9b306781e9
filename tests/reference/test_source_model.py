"""The source's side is transformers' own run of the checkpoint, in whatever way it is spelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import SPELLINGS, TINY, copy_of_tiny, edit_json, llamafied, replace_tensors, tiny_tensors
from good_files import MINI_ORIGINAL_CONTEXT, bf16_words, mini_folder
from model_runs import logits_of, model_of_folder, relative_error

from phi4conv.arrays import Floats
from phi4conv.errors import CheckpointError
from phi4conv.hf.checkpoint import Checkpoint
from phi4conv.hf.config import parse_config
from phi4conv.reference.hyperparameters import Hyperparameters, Rope
from phi4conv.reference.parts import LAYER_PARTS
from phi4conv.reference.source_model import source_hyperparameters, source_model

IDS = [936, 615, 262, 938, 51, 565, 564, 258, 552, 486, 68, 13, 937, 936, 819, 72, 271, 413, 938]
WITHIN = 1e-5  # of the logits' norm


def ids_of(length: int) -> list[int]:
    return (IDS * (length // len(IDS) + 1))[:length]


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def logits_of_transformers(folder: Path, ids: list[int]) -> Floats:
    transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
    torch = pytest.importorskip("torch")
    # Weights widened as they are loaded: a model in bfloat16 made float() afterwards has rounded frequencies.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits: Floats = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def error_against_transformers(folder: Path, ids: list[int], *, apply_window: bool = False) -> float:
    found = logits_of(model_of_folder(folder), ids, apply_window=apply_window)
    return relative_error(found, logits_of_transformers(folder, ids))


def saved_again(folder: Path) -> Path:
    """The tiny checkpoint as the installed transformers saves it."""
    transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
    transformers.AutoModelForCausalLM.from_pretrained(TINY).save_pretrained(folder)
    return folder


def with_window(folder: Path) -> Path:
    copy_of_tiny(folder)
    edit_json(folder / "config.json", lambda data: data.update(sliding_window=7))
    return folder


def wide_heads(folder: Path) -> Path:
    """A Llama whose heads together are wider than the hidden state: 8 of 48 components, and 256."""
    llamafied(folder)
    edit_json(folder / "config.json", lambda data: data.update(head_dim=48))
    generator = np.random.default_rng(3)
    shapes = {
        name: (8 * 48, 256) if "q_proj" in name else (2 * 48, 256) if "k_proj" in name or "v_proj" in name else shape
        for name, shape in ((name, rows.shape) for name, rows in Checkpoint.open(folder).tensors.items())
    }
    shapes |= {name: (256, 8 * 48) for name in shapes if "o_proj" in name}
    replace_tensors(folder, {name: ("BF16", bf16_words(shape, generator)) for name, shape in shapes.items()})
    return folder


OTHER_FOLDERS: dict[str, Callable[[Path], Path]] = {
    "saved again by transformers": saved_again,
    "sliding window": with_window,
    "wide heads": wide_heads,
    "small Phi-4-mini": lambda _: mini_folder(),
}
every_folder = pytest.mark.parametrize("kind", [*SPELLINGS, *OTHER_FOLDERS])


def folder_of(kind: str, tmp_path: Path) -> Path:
    return (SPELLINGS | OTHER_FOLDERS)[kind](tmp_path / "model")


@every_folder
def test_hyperparameters_are_those_of_transformers_own_config(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
    folder = folder_of(kind, tmp_path)
    found = source_hyperparameters(config_of(folder))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    attention = model.model.layers[0].self_attn
    assert (found.layer_count, found.hidden_size) == (len(model.model.layers), model.model.embed_tokens.embedding_dim)
    assert found.feed_forward_size == model.model.layers[0].mlp.down_proj.in_features
    assert found.head_size == attention.head_dim
    assert found.head_count * found.head_size == attention.o_proj.in_features
    assert found.head_count // found.kv_head_count == attention.num_key_value_groups
    assert found.rms_norm_eps == model.model.norm.variance_epsilon
    assert found.context_length == config.max_position_embeddings
    assert found.sliding_window == getattr(config, "sliding_window", None)
    assert_same_rope(found.rope, model.model.rotary_emb)


def assert_same_rope(rope: Rope, expected: Any) -> None:
    frequencies = rope.base ** (-np.arange(0, rope.dimension_count, 2) / rope.dimension_count)
    frequencies /= np.array(rope.short_factors or 1.0)
    assert np.allclose(frequencies, expected.inv_freq.numpy(), rtol=1e-6)
    assert rope.magnitude == pytest.approx(expected.attention_scaling)
    parameters = expected.config.rope_parameters
    if "original_max_position_embeddings" in parameters and rope.long_factors is not None:
        assert rope.original_context_length == parameters["original_max_position_embeddings"]
        assert list(rope.long_factors) == parameters["long_factor"]


@every_folder
def test_logits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    folder = folder_of(kind, tmp_path)
    assert error_against_transformers(folder, IDS, apply_window=True) < WITHIN


@pytest.mark.parametrize("length", [MINI_ORIGINAL_CONTEXT, MINI_ORIGINAL_CONTEXT + 1])
def test_longropes_factors_are_chosen_by_the_length_of_the_text(length: int) -> None:
    assert error_against_transformers(mini_folder(), ids_of(length)) < WITHIN


def test_a_window_that_is_not_applied_makes_a_difference(tmp_path: Path) -> None:
    assert error_against_transformers(with_window(tmp_path / "model"), IDS) > 1e-2


def test_every_part_is_there_and_knows_its_tensor() -> None:
    model = source_model(config_of(TINY), Checkpoint.open(TINY).tensors)
    expected = ["token_embd", "output_norm", "output", *(f"blk.{n}.{name}" for n in range(4) for name in LAYER_PARTS)]
    assert list(model.parts) == expected
    value = model.parts["blk.2.attn_v"]
    assert (value.tensor, value.first_row, value.shape) == ("model.layers.2.self_attn.qkv_proj.weight", 320, (64, 256))
    assert value.qtype is None


def test_both_spellings_have_the_same_parts(tmp_path: Path) -> None:
    folder = llamafied(tmp_path / "model")
    fused = source_model(config_of(TINY), Checkpoint.open(TINY).tensors)
    apart = source_model(config_of(folder), Checkpoint.open(folder).tensors)
    assert fused.parts.keys() == apart.parts.keys()
    for name, part in fused.parts.items():
        rows = part.shape[0] if len(part.shape) == 2 else 1
        assert np.array_equal(part.rows.rows(0, rows), apart.parts[name].rows.rows(0, rows)), name


def test_a_tied_head_is_no_part_even_where_the_checkpoint_has_a_copy() -> None:
    config = config_of(TINY) | {"tie_word_embeddings": True}
    model = source_model(config, Checkpoint.open(TINY).tensors)
    assert "output" not in model.parts
    assert model.head.tensor == "model.embed_tokens.weight"


@pytest.mark.parametrize("name", sorted(tiny_tensors()))
def test_a_missing_tensor_is_told_by_name(name: str) -> None:
    tensors = {key: rows for key, rows in Checkpoint.open(TINY).tensors.items() if key != name}
    with pytest.raises(CheckpointError) as error:
        source_model(config_of(TINY), tensors)
    assert error.value.problems[0].where == name


def test_what_config_json_leaves_out_is_what_transformers_takes() -> None:
    transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
    for name, config in (
        ("Phi3ForCausalLM", transformers.Phi3Config()),
        ("LlamaForCausalLM", transformers.LlamaConfig()),
    ):
        assert source_hyperparameters({"architectures": [name]}) == Hyperparameters(
            layer_count=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            feed_forward_size=config.intermediate_size,
            head_count=config.num_attention_heads,
            kv_head_count=config.num_key_value_heads,
            head_size=config.hidden_size // config.num_attention_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope=Rope(
                dimension_count=config.hidden_size // config.num_attention_heads,
                base=config.rope_parameters["rope_theta"],
                original_context_length=config.max_position_embeddings,
            ),
            context_length=config.max_position_embeddings,
            sliding_window=None,
        )


@pytest.mark.parametrize("group", ["rope_scaling", "rope_parameters"])
def test_an_explicit_attention_factor_counts(group: str) -> None:
    factors = [1.0] * 16
    settings = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.5}
    assert source_hyperparameters(config_of(TINY) | {group: settings}).rope.magnitude == 1.5


def longrope_of(rope_type: str, **settings: Any) -> dict[str, Any]:
    """The tiny checkpoint's config.json with LongRoPE: a context of 4096 tokens, 128 of them original."""
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 128}
    # transformers 5 finds the original length of "su" within the group alone.
    original = {"original_max_position_embeddings": 128}
    return config_of(TINY) | lengths | {"rope_scaling": {"type": rope_type, **factors, **original, **settings}}


LONGROPE_SETTINGS: list[dict[str, Any]] = [{}, {"factor": 8.0}, {"factor": 0.5}, {"factor": 8, "attention_factor": 1.5}]


@pytest.mark.parametrize("rope_type", ["longrope", "su"])
@pytest.mark.parametrize("settings", LONGROPE_SETTINGS)
def test_the_attention_factor_is_transformers_and_the_converters(rope_type: str, settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
    config = longrope_of(rope_type, **settings)
    expected = transformers.AutoModelForCausalLM.from_config(transformers.Phi3Config(**json.loads(json.dumps(config))))
    found = source_hyperparameters(config).rope
    assert_same_rope(found, expected.model.rotary_emb)
    converted = parse_config(config).rope.long_rope
    assert converted is not None
    assert converted.attention_factor == found.magnitude


@pytest.mark.parametrize("settings", LONGROPE_SETTINGS)
def test_the_early_spelling_yarn_has_the_attention_factor_that_it_was_published_with(settings: dict[str, Any]) -> None:
    config = longrope_of("yarn", **settings)
    found = source_hyperparameters(config).rope
    assert found.magnitude == pytest.approx(settings.get("attention_factor", 0.1 * np.log(32) + 1))
    converted = parse_config(config).rope.long_rope
    assert converted is not None
    assert converted.attention_factor == pytest.approx(found.magnitude)


def test_an_original_context_of_one_token_has_no_attention_factor() -> None:
    config = longrope_of("longrope") | {"original_max_position_embeddings": 1}
    assert source_hyperparameters(config).rope.magnitude == 1.0


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True)])
def test_layers_of_another_kind_are_refused_by_the_setting(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        source_hyperparameters(config_of(TINY) | {key: value})
    assert error.value.problems[0].where == f"config.json: {key}"


@pytest.mark.parametrize("rope_type", ["yarn", "linear", "llama3"])
def test_other_rotary_embeddings_are_refused_by_name(tmp_path: Path, rope_type: str) -> None:
    config = config_of(llamafied(tmp_path / "model"))
    with pytest.raises(CheckpointError) as error:
        source_hyperparameters(config | {"rope_scaling": {"type": rope_type, "factor": 2.0}})
    assert error.value.problems[0].found == rope_type


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError) as error:
        source_hyperparameters({"architectures": ["GPT2LMHeadModel"]})
    assert error.value.problems[0].found == "GPT2LMHeadModel"
