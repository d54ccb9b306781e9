"""What llama.cpp refuses or dies of is told by the key or the tensor, and so is what phi4conv does not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from changed_models import (
    F32,
    Change,
    assert_does_not_run,
    good,
    i32_array,
    random_factors,
    random_tensor,
    written,
)
from gguf import GGMLQuantizationType, GGUFValueType
from good_files import good_file
from weight_files import encoded

from phi4conv.errors import FormatError
from phi4conv.gguf_file.layout import MetadataPair, f32, text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.file_model import file_hyperparameters, file_model
from phi4conv.reference.file_problems import (
    KeyProblem,
    TensorProblem,
    TypeProblem,
    file_problems,
    key_problems,
    type_problems,
)
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.llama_metadata import RefusedByLlamaCpp


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


# Metadata that llama.cpp does not load, by the end of the key that is at fault.
REFUSED: Mapping[str, Change] = {
    "context_length": lambda file: file.without_pairs("phi3.context_length"),
    "embedding_length": lambda file: file.without_pairs("phi3.embedding_length"),
    "block_count": lambda file: file.without_pairs("phi3.block_count"),
    "layer_norm_rms_epsilon": lambda file: file.without_pairs("phi3.attention.layer_norm_rms_epsilon"),
    "head_count": lambda file: file.without_pairs("phi3.attention.head_count"),
    "freq_base": lambda file: file.with_pairs(u32("phi3.rope.freq_base", 250000)),
    "dimension_count": lambda file: file.with_pairs(f32("phi3.rope.dimension_count", 32.0)),
    "head_count_kv": lambda file: file.with_pairs(i32_array("phi3.attention.head_count_kv", [2] * 3)),
    "value_length": lambda file: file.with_pairs(u32("phi3.attention.value_length", 16)),
    "key_length": lambda file: file.with_pairs(u32("phi3.attention.key_length", 64)),
    "scaling.type": lambda file: file.with_pairs(text("phi3.rope.scaling.type", "su")),
}


@pytest.mark.parametrize("key", REFUSED)
def test_metadata_that_llama_cpp_refuses_are_refused_by_key(tmp_path: Path, llama: LlamaCpp, key: str) -> None:
    path = written(REFUSED[key](good()), tmp_path)
    with pytest.raises(RefusedByLlamaCpp) as error:
        file_hyperparameters(read_gguf(path))
    assert error.value.problems[0].where.endswith(key)
    assert_does_not_run(llama, path)


# What llama.cpp may run, and phi4conv does not.
NOT_RUN: Mapping[str, Change] = {
    "general.architecture": lambda file: file.with_pairs(text("general.architecture", "qwen2")),
    "scaling.type": lambda file: file.with_pairs(text("phi3.rope.scaling.type", "yarn")),
    "expert_count": lambda file: file.with_pairs(u32("phi3.expert_count", 4)),
    "causal": lambda file: file.with_pairs(MetadataPair("phi3.attention.causal", GGUFValueType.BOOL, False)),
    "feed_forward_length": lambda file: file.with_pairs(i32_array("phi3.feed_forward_length", [512, 512, 512, 256])),
    "blk.1.attn_qkv.bias": lambda file: file.with_tensor("blk.1.attn_qkv.bias", random_tensor(384)),
    "blk.1.ffn_gate_inp.weight": lambda file: file.with_tensor("blk.1.ffn_gate_inp.weight", random_tensor(4, 256)),
    "blk.01.attn_norm.weight": lambda file: file.with_tensor("blk.01.attn_norm.weight", random_tensor(256)),
}


@pytest.mark.parametrize("where", NOT_RUN)
def test_what_is_not_run_is_told_by_name(tmp_path: Path, where: str) -> None:
    path = written(NOT_RUN[where](good()), tmp_path)
    with pytest.raises(FormatError) as error:
        file_model(read_gguf(path))
    assert error.value.problems[0].where.endswith(where)


def test_many_unknown_tensors_are_not_all_listed(tmp_path: Path) -> None:
    file = good()
    for layer in range(7):
        file = file.with_tensor(f"blk.{layer}.attn_qkv.bias", random_tensor(384))
    with pytest.raises(FormatError) as error:
        file_model(read_gguf(written(file, tmp_path)))
    assert [problem.what for problem in error.value.problems][-1] == "and 2 more such tensors"


# Tensors that llama.cpp does not take, and what file_problems says of them.
TENSOR_FAULTS: Mapping[str, tuple[Change, list[TensorProblem]]] = {
    "missing matrix": (
        lambda file: file.without_tensors("blk.2.ffn_down.weight"),
        [TensorProblem("blk.2.ffn_down.weight", (256, 512), None)],
    ),
    "missing norm": (
        lambda file: file.without_tensors("output_norm.weight"),
        [TensorProblem("output_norm.weight", (256,), None)],
    ),
    "missing qkv": (
        lambda file: file.without_tensors("blk.0.attn_qkv.weight"),
        [TensorProblem("blk.0.attn_qkv.weight", (384, 256), None)],
    ),
    "transposed": (
        lambda file: file.with_tensor("blk.1.ffn_up.weight", random_tensor(256, 1024)),
        [TensorProblem("blk.1.ffn_up.weight", (1024, 256), (256, 1024))],
    ),
    "transposed qkv": (
        lambda file: file.with_tensor("blk.1.attn_qkv.weight", random_tensor(256, 384)),
        [TensorProblem("blk.1.attn_qkv.weight", (384, 256), (256, 384))],
    ),
    "qkv as a vector": (
        lambda file: file.with_tensor("blk.1.attn_qkv.weight", random_tensor(384)),
        [TensorProblem("blk.1.attn_qkv.weight", (384, 256), (384,))],
    ),
    "a gate by itself": (
        lambda file: file.with_tensor("blk.3.ffn_gate.weight", random_tensor(512, 256)),
        [TensorProblem("blk.3.ffn_gate.weight", None, (512, 256))],
    ),
    "fused and apart": (
        lambda file: file.with_tensor("blk.3.attn_q.weight", random_tensor(256, 256)),
        [TensorProblem("blk.3.attn_q.weight", None, (256, 256))],
    ),
    "a layer too many": (
        lambda file: file.with_tensor("blk.4.attn_norm.weight", random_tensor(256)),
        [TensorProblem("blk.4.attn_norm.weight", None, (256,))],
    ),
    "factors of another length": (
        lambda file: file.with_tensor("rope_factors_short.weight", random_factors(12)),
        [TensorProblem("rope_factors_short.weight", (16,), (12,))],
    ),
    "the factors of llama": (
        lambda file: file.with_tensor("rope_freqs.weight", random_factors(16)),
        [TensorProblem("rope_freqs.weight", None, (16,))],
    ),
    "head cut short": (
        lambda file: file.with_tensor("output.weight", random_tensor(1000, 256)),
        [TensorProblem("output.weight", (1024, 256), (1000, 256))],
    ),
    "embedding wider": (
        lambda file: file.with_tensor("token_embd.weight", random_tensor(1024, 288)),
        [TensorProblem("token_embd.weight", (1024, 256), (1024, 288))],
    ),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_tensors_that_llama_cpp_does_not_take_are_listed(tmp_path: Path, llama: LlamaCpp, fault: str) -> None:
    change, expected = TENSOR_FAULTS[fault]
    path = written(change(good()), tmp_path)
    file = read_gguf(path)
    assert list(file_problems(file, file_model(file))) == expected
    assert_does_not_run(llama, path)


def test_a_norm_of_two_dimensions_is_the_same_to_llama_cpp(tmp_path: Path, llama: LlamaCpp) -> None:
    norm = good().tensors["output_norm.weight"].values
    path = written(good().with_tensor("output_norm.weight", encoded(norm, (1, 256), F32)), tmp_path)
    file = read_gguf(path)
    assert file_problems(file, file_model(file)) == ()
    llama.load(path)


# Vectors that llama.cpp loads and cannot compute with: kind of file, tensor, type.
TYPE_FAULTS = [
    ("F32", "blk.1.attn_norm.weight", "F16"),
    ("F32", "blk.3.ffn_norm.weight", "BF16"),
    ("F32", "output_norm.weight", "Q8_0"),
    ("llama F32", "output_norm.weight", "F16"),
    ("mini F32", "rope_factors_short.weight", "F16"),
    ("mini F32", "rope_factors_long.weight", "BF16"),
    ("llama F32", "rope_freqs.weight", "F16"),
]


@pytest.mark.parametrize(("kind", "name", "qtype"), TYPE_FAULTS)
def test_vectors_of_a_type_that_llama_cpp_dies_of_are_listed(
    tmp_path: Path, llama: LlamaCpp, kind: str, name: str, qtype: str
) -> None:
    file = good(kind)
    vector = file.tensors.get(name, random_factors(16))
    bad = GGMLQuantizationType[qtype]
    path = written(file.with_tensor(name, encoded(vector.values, vector.shape, bad)), tmp_path)
    found = read_gguf(path)
    assert type_problems(found, file_model(found)) == (TypeProblem(name, F32, bad),)
    assert_does_not_run(llama, path)


@pytest.mark.parametrize("kind", ["Q4_K_M", "F16", "BF16", "mini Q8_0", "llama Q8_0"])
def test_good_files_have_vectors_that_llama_cpp_computes_with(kind: str) -> None:
    file = read_gguf(good_file(kind).path)
    assert type_problems(file, file_model(file)) == ()


KEY_FAULTS: Mapping[str, Change] = {
    "attention.head_count": lambda file: file.with_pairs(u32("phi3.attention.head_count", 12)),
    "rope.dimension_count": lambda file: file.with_pairs(u32("phi3.rope.dimension_count", 33)),
    "attention.head_count_kv": lambda file: file.with_pairs(u32("phi3.attention.head_count_kv", 3)),
}


@pytest.mark.parametrize("key", KEY_FAULTS)
def test_values_that_do_not_go_together_are_listed_by_key(tmp_path: Path, llama: LlamaCpp, key: str) -> None:
    path = written(KEY_FAULTS[key](good()), tmp_path)
    file = read_gguf(path)
    assert f"phi3.{key}" in [problem.key for problem in key_problems(file, file_hyperparameters(file))]
    assert_does_not_run(llama, path)


def test_llama_files_rotate_whole_heads(tmp_path: Path, llama: LlamaCpp) -> None:
    path = written(good("llama F32").with_pairs(u32("llama.rope.dimension_count", 24)), tmp_path)
    file = read_gguf(path)
    problem = KeyProblem("llama.rope.dimension_count", "32, an even number", "24")
    assert key_problems(file, file_hyperparameters(file)) == (problem,)
    assert_does_not_run(llama, path)
