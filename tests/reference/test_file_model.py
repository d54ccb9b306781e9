"""The file's side is real llama.cpp's run of the file: its logits, its defaults, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from changed_models import F32, IDS, Change, good, i32_array, random_factors, random_tensor, written
from checkpoints import TINY_BROKEN
from gguf import GGMLQuantizationType
from good_files import MINI_CONTEXT, MINI_ORIGINAL_CONTEXT, good_file
from model_runs import logits_of, logits_of_pieces, model_of_file, runner_of
from weight_files import StoredTensor, WeightFile, encoded

from phi4conv.arrays import Floats
from phi4conv.gguf_file.layout import f32, text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import gguf_rows
from phi4conv.quant import CODECS
from phi4conv.reference.file_hyperparameters import HYPERPARAMETER_KEYS, hyperparameter_key, stated_by
from phi4conv.reference.file_model import file_hyperparameters, file_model
from phi4conv.reference.file_problems import file_problems, key_problems
from phi4conv.reference.hyperparameters import Hyperparameters, Rope
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.parts import LAYER_PARTS, Part
from phi4conv.rows import row_count

WITHIN = 1e-4  # absolute, in logits

TINY_SHAPE = Hyperparameters(
    layer_count=4,
    hidden_size=256,
    feed_forward_size=512,
    head_count=8,
    kv_head_count=2,
    head_size=32,
    rms_norm_eps=float(np.float32(1e-5)),
    rope=Rope(dimension_count=32, base=250000.0, original_context_length=16384),
    context_length=16384,
    sliding_window=None,
)


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def weights(part: Part) -> Floats:
    return part.rows.rows(0, row_count(part.shape))


def error_against_llama_cpp(path: Path, llama: LlamaCpp, length: int = len(IDS), n_ctx: int = 256) -> float:
    """The largest difference between logits, for a text of so many tokens in a context of n_ctx."""
    ids = (IDS * (length // len(IDS) + 1))[:length]
    llama.load(path)
    expected = llama.logits(ids, n_ctx=n_ctx)
    return float(np.abs(logits_of(model_of_file(path), ids, n_ctx=n_ctx) - expected).max())


@pytest.mark.parametrize("kind", ["F32", "llama-fied F32", "mini F32", "llama F32"])
def test_logits_are_those_of_llama_cpp(llama: LlamaCpp, kind: str) -> None:
    assert error_against_llama_cpp(good_file(kind).path, llama) < WITHIN


@pytest.mark.parametrize(("length", "n_ctx"), [(40, MINI_ORIGINAL_CONTEXT), (40, 1024), (600, 1024)])
def test_longropes_factors_are_chosen_by_n_ctx(llama: LlamaCpp, length: int, n_ctx: int) -> None:
    assert error_against_llama_cpp(good_file("mini F32").path, llama, length, n_ctx) < WITHIN


def test_kept_keys_and_values_give_what_one_pass_gives() -> None:
    for kind in ("F32", "mini F32"):
        model = model_of_file(good_file(kind).path)
        pieces = [IDS[:10], *([token] for token in IDS[10:])]
        found = logits_of_pieces(runner_of(model), pieces, len(IDS))
        assert np.abs(found - logits_of(model, IDS)).max() < WITHIN


# Changes of metadata that llama.cpp runs with: to the same file other logits.
PHI3_CHANGES: Mapping[str, Change] = {
    "no rope base": lambda file: file.without_pairs("phi3.rope.freq_base"),
    "another rope base": lambda file: file.with_pairs(f32("phi3.rope.freq_base", 10.0)),
    "another epsilon": lambda file: file.with_pairs(f32("phi3.attention.layer_norm_rms_epsilon", 0.1)),
    "partly rotated": lambda file: file.with_pairs(u32("phi3.rope.dimension_count", 20)),
    "no dimension count": lambda file: file.without_pairs("phi3.rope.dimension_count"),
    "scaled positions": lambda file: file.with_pairs(f32("phi3.rope.scaling.factor", 4.0)),
    "linear scaling": lambda file: file.with_pairs(
        text("phi3.rope.scaling.type", "linear"), f32("phi3.rope.scaling.factor", 4.0)
    ),
    "no scaling": lambda file: file.with_pairs(
        text("phi3.rope.scaling.type", "none"), f32("phi3.rope.scaling.factor", 4.0)
    ),
    "a factor of zero": lambda file: file.with_pairs(f32("phi3.rope.scaling.factor", 0.0)),
    "the old scaling key": lambda file: file.with_pairs(f32("phi3.rope.scale_linear", 4.0)),
    "both scaling keys": lambda file: file.with_pairs(
        f32("phi3.rope.scaling.factor", 2.0), f32("phi3.rope.scale_linear", 4.0)
    ),
    "an attention factor": lambda file: file.with_pairs(f32("phi3.rope.scaling.attn_factor", 1.2)),
    "a sliding window": lambda file: file.with_pairs(u32("phi3.attention.sliding_window", 4)),
    "other head sizes": lambda file: file.with_pairs(
        u32("phi3.attention.head_count", 16),
        u32("phi3.attention.head_count_kv", 4),
        u32("phi3.rope.dimension_count", 16),
    ),
    "head sizes spelled out": lambda file: file.with_pairs(
        u32("phi3.attention.key_length", 32), u32("phi3.attention.value_length", 32)
    ),
    "counts for each layer": lambda file: file.with_pairs(
        i32_array("phi3.attention.head_count", [8] * 4), i32_array("phi3.attention.head_count_kv", [2] * 4)
    ),
    "no head": lambda file: file.without_tensors("output.weight"),
    "short factors alone": lambda file: file.with_tensor("rope_factors_short.weight", random_factors(16)),
    "factors without a type": lambda file: file.with_tensor(
        "rope_factors_short.weight", random_factors(16)
    ).with_tensor("rope_factors_long.weight", random_factors(16)),
}
SAME_LOGITS = {
    "no dimension count", "no scaling", "a factor of zero", "a sliding window", "head sizes spelled out",
    "counts for each layer",
}  # fmt: skip


@pytest.mark.parametrize("change", PHI3_CHANGES)
def test_metadata_mean_what_they_mean_to_llama_cpp(tmp_path: Path, llama: LlamaCpp, change: str) -> None:
    path = written(PHI3_CHANGES[change](good()), tmp_path)
    assert error_against_llama_cpp(path, llama) < WITHIN
    found = llama.logits(IDS, n_ctx=256)
    llama.load(good_file("F32").path)
    changed = float(np.abs(found - llama.logits(IDS, n_ctx=256)).max())
    assert (changed < 1e-6) == (change in SAME_LOGITS)
    file = read_gguf(path)
    assert file_problems(file, file_model(file)) == ()
    assert key_problems(file, file_hyperparameters(file)) == ()


def separate_qkv(file: WeightFile) -> WeightFile:
    for layer in range(4):
        fused = file.tensors[f"blk.{layer}.attn_qkv.weight"].values
        file = file.without_tensors(f"blk.{layer}.attn_qkv.weight")
        for name, rows in zip("qkv", np.split(fused, [256, 320]), strict=True):
            file = file.with_tensor(f"blk.{layer}.attn_{name}.weight", encoded(rows, rows.shape, F32))
    return file


def test_phi3_files_may_have_q_k_and_v_apart(tmp_path: Path, llama: LlamaCpp) -> None:
    path = written(separate_qkv(good()), tmp_path)
    assert error_against_llama_cpp(path, llama) < WITHIN
    file = read_gguf(path)
    assert file_problems(file, file_model(file)) == ()
    expected = file_model(read_gguf(good_file("F32").path)).parts
    for name, part in file_model(file).parts.items():
        assert np.array_equal(weights(part), weights(expected[name])), name


def fused_llama(file: WeightFile) -> WeightFile:
    for layer in range(4):
        names = [f"blk.{layer}.attn_{name}.weight" for name in "qkv"]
        rows = np.concatenate([file.tensors[name].values for name in names])
        file = file.without_tensors(*names).with_tensor(f"blk.{layer}.attn_qkv.weight", encoded(rows, rows.shape, F32))
    return file


def wide_heads(file: WeightFile) -> WeightFile:
    """8 heads of 48 components, which is more than the 256 of the hidden state."""
    for layer in range(4):
        for name, shape in {"q": (384, 256), "k": (96, 256), "v": (96, 256), "output": (256, 384)}.items():
            file = file.with_tensor(f"blk.{layer}.attn_{name}.weight", random_tensor(*shape, seed=layer + shape[0]))
    return file.with_pairs(
        u32("llama.attention.key_length", 48),
        u32("llama.attention.value_length", 48),
        u32("llama.rope.dimension_count", 48),
    )


LLAMA_CHANGES: Mapping[str, Change] = {
    "fused qkv": fused_llama,
    "wide heads": wide_heads,
    "wide heads, fused": lambda file: fused_llama(wide_heads(file)),
    "llama 3's factors": lambda file: file.with_tensor("rope_freqs.weight", random_factors(16)),
    "longrope": lambda file: (
        file.with_pairs(
            text("llama.rope.scaling.type", "longrope"), u32("llama.rope.scaling.original_context_length", 128)
        )
        .with_tensor("rope_factors_short.weight", random_factors(16))
        .with_tensor("rope_factors_long.weight", random_tensor(16, size=1.0))
    ),
    "tied": lambda file: file.without_tensors("output.weight"),
    "no rope base": lambda file: file.without_pairs("llama.rope.freq_base"),
    "other head sizes": lambda file: file.with_pairs(
        u32("llama.attention.head_count", 16),
        u32("llama.attention.head_count_kv", 4),
        u32("llama.rope.dimension_count", 16),
    ),
}


@pytest.mark.parametrize("change", LLAMA_CHANGES)
def test_llama_files_mean_what_they_mean_to_llama_cpp(tmp_path: Path, llama: LlamaCpp, change: str) -> None:
    path = written(LLAMA_CHANGES[change](good("llama F32")), tmp_path)
    assert error_against_llama_cpp(path, llama) < WITHIN
    file = read_gguf(path)
    assert file_problems(file, file_model(file)) == ()
    assert key_problems(file, file_hyperparameters(file)) == ()


def test_a_llama_file_shows_q_and_k_in_the_checkpoints_order() -> None:
    expected = file_model(read_gguf(good_file("F32").path)).parts
    found = file_model(read_gguf(good_file("llama F32").path)).parts
    assert found.keys() == expected.keys()
    for name, part in found.items():
        assert np.array_equal(weights(part), weights(expected[name])), name


def test_hyperparameters_of_the_tiny_file() -> None:
    assert file_hyperparameters(read_gguf(good_file("F32").path)) == TINY_SHAPE
    assert file_hyperparameters(read_gguf(good_file("llama F32").path)) == TINY_SHAPE
    assert file_hyperparameters(read_gguf(TINY_BROKEN)).sliding_window == 1024


def test_hyperparameters_of_longrope() -> None:
    found = file_hyperparameters(read_gguf(good_file("mini F32").path))
    rope = found.rope
    assert (rope.dimension_count, rope.original_context_length) == (24, MINI_ORIGINAL_CONTEXT)
    assert found.context_length == MINI_CONTEXT
    assert rope.short_factors is not None
    assert rope.long_factors is not None
    assert (len(rope.short_factors), len(rope.long_factors)) == (12, 12)
    assert rope.magnitude == pytest.approx((1 + np.log(8) / np.log(512)) ** 0.5)


def test_every_field_has_its_key() -> None:
    fields = {*Hyperparameters.__dataclass_fields__, *(f"rope.{name}" for name in Rope.__dataclass_fields__)}
    assert set(HYPERPARAMETER_KEYS) == fields - {"rope"}
    pairs, tensors = good("mini F32").pairs, good("mini F32").tensors
    absent = {"head_size", "rope.position_scale"}  # a file says nothing where the default is meant
    for field in fields - {"rope"} - absent:
        assert hyperparameter_key(field, "phi3") in {*pairs, *tensors}, field


# A field, the file's kind and what it has besides, and what states the field there.
STATED: Mapping[str, tuple[str, str, Change, str]] = {
    "no key": ("rope.position_scale", "F32", lambda file: file, "phi3.rope.scaling.factor"),
    "old key": (
        "rope.position_scale",
        "F32",
        lambda file: file.with_pairs(f32("phi3.rope.scale_linear", 4)),
        "phi3.rope.scale_linear",
    ),
    "both keys": (
        "rope.position_scale",
        "F32",
        lambda file: file.with_pairs(f32("phi3.rope.scale_linear", 4), f32("phi3.rope.scaling.factor", 2)),
        "phi3.rope.scaling.factor",
    ),
    "values alone": (
        "head_size",
        "F32",
        lambda file: file.with_pairs(u32("phi3.attention.value_length", 32)),
        "phi3.attention.value_length",
    ),
    "llama without factors": ("rope.long_factors", "llama F32", lambda file: file, "rope_factors_long.weight"),
    "factors of llama": (
        "rope.long_factors",
        "llama F32",
        lambda file: file.with_tensor("rope_freqs.weight", random_factors(16)),
        "rope_freqs.weight",
    ),
    "factors": ("rope.short_factors", "mini F32", lambda file: file, "rope_factors_short.weight"),
}


@pytest.mark.parametrize("name", STATED)
def test_what_states_a_field_is_what_the_file_has(tmp_path: Path, name: str) -> None:
    field, kind, change, expected = STATED[name]
    assert stated_by(field, read_gguf(written(change(good(kind)), tmp_path))) == expected


def test_every_part_is_there_and_knows_its_tensor() -> None:
    model = file_model(read_gguf(good_file("Q4_K_M").path))
    expected = ["token_embd", "output_norm", "output", *(f"blk.{n}.{name}" for n in range(4) for name in LAYER_PARTS)]
    assert list(model.parts) == expected
    up = model.parts["blk.2.ffn_up"]
    assert (up.tensor, up.first_row, up.shape) == ("blk.2.ffn_up.weight", 512, (512, 256))
    assert up.qtype == GGMLQuantizationType.Q4_K


def test_mended_hyperparameters_stand_in_for_the_files_own(tmp_path: Path) -> None:
    path = written(good().without_pairs("phi3.embedding_length"), tmp_path)
    model = file_model(read_gguf(path), TINY_SHAPE)
    assert model.hyperparameters is TINY_SHAPE
    assert len(model.parts) == 3 + 4 * len(LAYER_PARTS)


def test_factors_too_long_to_be_any_are_not_read(tmp_path: Path) -> None:
    file = good().with_tensor("rope_factors_long.weight", encoded(np.ones(1 << 17, np.float32), (1 << 17,), F32))
    path = written(file, tmp_path)
    assert file_hyperparameters(read_gguf(path)).rope.long_factors is None


def test_no_weights_are_read_for_the_parts() -> None:
    file = read_gguf(good_file("F32").path)
    rows = gguf_rows(file)
    assert file_model(file).parts["output"].rows == rows["output.weight"]


@pytest.mark.parametrize("qtype", CODECS, ids=lambda qtype: qtype.name)
def test_rows_are_decoded_to_the_bits_that_llama_cpp_decodes(
    tmp_path: Path, llama: LlamaCpp, qtype: GGMLQuantizationType
) -> None:
    data = np.random.default_rng(int(qtype)).integers(0, 256, (32, CODECS[qtype].row_bytes(1024)), np.uint8)
    file = WeightFile(good().pairs, {"output.weight": StoredTensor((32, 1024), qtype, data)}, {})
    part = file_model(read_gguf(written(file, tmp_path))).parts["output"]
    found, expected = weights(part), llama.dequantize(data, qtype, 1024)
    both_nan = np.isnan(found) & np.isnan(expected)  # of which there are many kinds
    assert both_nan.mean() < 0.1
    assert np.array_equal(found.view(np.uint32)[~both_nan], expected.view(np.uint32)[~both_nan])
