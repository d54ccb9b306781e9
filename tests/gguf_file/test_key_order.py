"""New keys stand where llama.cpp's converter puts them."""

from __future__ import annotations

import pytest
from gguf import Keys

from phi4conv.gguf_file.key_order import KEY_ORDER, place_for

# The keys of a Phi-4 as llama.cpp's converter writes them, in its order.
CONVERTED = [
    "general.architecture",
    "general.type",
    "general.name",
    "general.license",
    "general.tags",
    "general.languages",
    "phi3.context_length",
    "phi3.rope.scaling.original_context_length",
    "phi3.embedding_length",
    "phi3.feed_forward_length",
    "phi3.block_count",
    "phi3.attention.head_count",
    "phi3.attention.head_count_kv",
    "phi3.attention.layer_norm_rms_epsilon",
    "phi3.rope.dimension_count",
    "phi3.rope.freq_base",
    "general.file_type",
    "phi3.attention.sliding_window",
    "general.quantization_version",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.chat_template",
]
# llama-quantize takes two keys out and puts them at the end.
MOVED = ("general.quantization_version", "general.file_type")
QUANTIZED = [*(key for key in CONVERTED if key not in MOVED), *MOVED]


def placed(key: str, keys: list[str], architecture: str | None = "phi3") -> list[str]:
    place = place_for(key, keys, architecture)
    return [*keys[:place], key, *keys[place:]]


@pytest.mark.parametrize("key", CONVERTED)
def test_a_key_that_was_taken_out_comes_back_to_its_place(key: str) -> None:
    assert placed(key, [other for other in CONVERTED if other != key]) == CONVERTED


@pytest.mark.parametrize("key", [key for key in QUANTIZED if key not in MOVED])
def test_keys_that_llama_quantize_has_moved_draw_nothing_after_them(key: str) -> None:
    assert placed(key, [other for other in QUANTIZED if other != key]) == QUANTIZED


@pytest.mark.parametrize("keys", [CONVERTED, QUANTIZED])
@pytest.mark.parametrize(
    ("key", "ahead"),
    [
        ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id"),
        ("tokenizer.ggml.unknown_token_id", "tokenizer.ggml.eos_token_id"),
        ("tokenizer.ggml.scores", "tokenizer.ggml.tokens"),
        ("tokenizer.chat_template.tool_use", "tokenizer.ggml.add_eos_token"),
        ("tokenizer.ggml.of_tomorrow", "tokenizer.chat_template"),
        ("phi3.of_tomorrow", "phi3.attention.sliding_window"),
        ("general.sampling.temp", "general.type"),
        ("general.base_model.0.name", "general.license"),
        ("general.of_tomorrow", "general.languages"),
    ],
)
def test_a_new_key_stands_behind_what_precedes_it(key: str, ahead: str, keys: list[str]) -> None:
    found = placed(key, keys)
    assert found[found.index(key) - 1] == ahead


def test_a_key_of_which_nothing_is_known_stands_at_the_end() -> None:
    assert placed("mine.own", CONVERTED)[-1] == "mine.own"
    assert placed("llama.context_length", CONVERTED)[-1] == "llama.context_length"


def test_the_first_key_of_a_file_is_the_first() -> None:
    assert place_for("general.name", [], None) == 0
    assert placed("general.architecture", CONVERTED[1:]) == CONVERTED


def test_a_file_without_an_architecture_has_no_family_for_its_keys() -> None:
    assert placed("phi3.block_count", ["general.name", "tokenizer.ggml.model"], None)[-1] == "phi3.block_count"


def test_every_key_stands_in_the_order_once() -> None:
    assert len(set(KEY_ORDER)) == len(KEY_ORDER)
    assert Keys.Tokenizer.LIST in KEY_ORDER
