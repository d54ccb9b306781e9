"""Values that a file states otherwise than config.json, and that what is advised mends them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFValueType, Keys
from good_files import good_file, good_weights
from model_runs import model_of_folder
from vocabulary_files import with_changes
from weight_files import WeightFile, encoded, write_weight_file

from phi4conv.carried import phi4_vocabulary
from phi4conv.check.model import Finding, Severity
from phi4conv.cli.fix import fix
from phi4conv.gguf_file.layout import MetadataPair, f32, text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.file_hyperparameters import file_hyperparameters
from phi4conv.reference.hyperparameters import Hyperparameters
from phi4conv.settings import parse_setting
from phi4conv.verify.hyperparameters import (
    AGAIN,
    FIELDS,
    IDS,
    IDS_WITHOUT_EFFECT,
    differences,
    mending,
    mending_key,
    source_pair,
)
from phi4conv.verify.sides import METADATA_ID, Sides, open_sides


def key(pattern: str, architecture: str = "phi3") -> str:
    return pattern.format(arch=architecture)


BASE, HEADS, KV_HEADS = key(Keys.Rope.FREQ_BASE), key(Keys.Attention.HEAD_COUNT), key(Keys.Attention.HEAD_COUNT_KV)
EPSILON, WIDTH = key(Keys.Attention.LAYERNORM_RMS_EPS), key(Keys.LLM.EMBEDDING_LENGTH)
FEED_FORWARD, LAYERS = key(Keys.LLM.FEED_FORWARD_LENGTH), key(Keys.LLM.BLOCK_COUNT)
CONTEXT, WINDOW = key(Keys.LLM.CONTEXT_LENGTH), key(Keys.Attention.SLIDING_WINDOW)
ROTATED, ORIGINAL = key(Keys.Rope.DIMENSION_COUNT), key(Keys.Rope.SCALING_ORIG_CTX_LEN)
FACTOR, SCALING = key(Keys.Rope.SCALING_FACTOR), key(Keys.Rope.SCALING_TYPE)
MAGNITUDE = key(Keys.Rope.SCALING_ATTN_FACTOR)
KEY_LENGTH, VALUE_LENGTH = key(Keys.Attention.KEY_LENGTH), key(Keys.Attention.VALUE_LENGTH)


@pytest.fixture(scope="module")
def shape() -> Hyperparameters:
    return model_of_folder(good_file("F32").folder).hyperparameters


@pytest.fixture(scope="module")
def longrope() -> Hyperparameters:
    return model_of_folder(good_file("mini F32").folder).hyperparameters


@pytest.mark.parametrize("kind", ["F32", "Q4_K_M", "mini F32", "llama F32", "llama-fied F32"])
def test_a_good_file_says_what_its_source_says(kind: str) -> None:
    good = good_file(kind)
    assert open_sides(good.folder, good.path).findings == ()


def test_every_field_has_a_finding_of_its_own(shape: Hyperparameters) -> None:
    others: dict[str, Any] = {
        "layer_count": 3,
        "hidden_size": 128,
        "feed_forward_size": 256,
        "head_count": 4,
        "kv_head_count": 1,
        "rms_norm_eps": 1e-6,
        "context_length": 4096,
        "sliding_window": 2048,
    }
    for name, value in others.items():
        (finding,) = differences(replace(shape, **{name: value}), shape, "phi3")
        assert finding.id == next(field.id for field in FIELDS if field.name == name)
        assert str(value) in finding.actual or finding.actual == "1e-06"
        assert finding.where.startswith("phi3.")
        assert finding.severity == (Severity.WARN if name == "context_length" else Severity.FAIL)


def test_every_id_is_listed(shape: Hyperparameters, longrope: Hyperparameters) -> None:
    other = replace(longrope, layer_count=1, hidden_size=128, head_count=2, kv_head_count=1, head_size=16)
    found = {finding.id for finding in differences(other, shape, "phi3")}
    assert found <= IDS
    assert IDS_WITHOUT_EFFECT < IDS


def test_the_size_of_heads_follows_from_their_number(shape: Hyperparameters) -> None:
    halved = replace(shape, head_count=4, head_size=64)
    assert [finding.where for finding in differences(halved, shape, "phi3")] == [HEADS]
    alone = replace(shape, head_size=64)
    assert [finding.where for finding in differences(alone, shape, "phi3")] == [KEY_LENGTH]


def test_a_scaling_factor_is_told_as_the_file_states_it(shape: Hyperparameters) -> None:
    scaled = replace(shape, rope=replace(shape.rope, position_scale=0.25))
    (finding,) = differences(scaled, shape, "phi3")
    assert (finding.where, finding.expected, finding.actual) == (FACTOR, "1", "4")


def test_values_are_held_against_each_other_as_float32(shape: Hyperparameters) -> None:
    stored = replace(shape, rms_norm_eps=float(f32("x", shape.rms_norm_eps).value))
    assert stored.rms_norm_eps != shape.rms_norm_eps
    assert list(differences(stored, shape, "phi3")) == []


def test_the_original_context_length_matters_with_longrope_alone(
    shape: Hyperparameters, longrope: Hyperparameters
) -> None:
    for right, severity in ((shape, Severity.INFO), (longrope, Severity.FAIL)):
        other = replace(right, rope=replace(right.rope, original_context_length=7))
        (finding,) = differences(other, right, "phi3")
        assert (finding.where, finding.severity) == (ORIGINAL, severity)


def test_factors_of_1_are_no_defect(shape: Hyperparameters) -> None:
    ones = (1.0,) * 16
    idle = replace(shape, rope=replace(shape.rope, short_factors=ones, long_factors=ones, original_context_length=7))
    for stated, right in ((idle, shape), (shape, idle)):
        found = list(differences(stated, right, "phi3"))
        assert [finding.id for finding in found] == ["phi3/rope-factors"] * 2 + ["phi3/rope-original-context-length"]
        assert {finding.severity for finding in found} == {Severity.INFO}
    turned = replace(idle, rope=replace(idle.rope, long_factors=(1.0,) * 15 + (2.0,)))
    severities = [finding.severity for finding in differences(turned, shape, "phi3")]
    assert severities == [Severity.INFO, Severity.FAIL, Severity.INFO]


def found_in(file: WeightFile, tmp_path: Path, right: Hyperparameters) -> list[Finding]:
    """The differences of a file from right."""
    written = read_gguf(write_weight_file(tmp_path / "wrong.gguf", file.pairs.values(), file.tensors))
    stated = file_hyperparameters(written)
    return list(differences(stated, right, written.architecture or "", stated_in=written))


def test_the_old_key_of_the_scaling_factor_is_blamed_where_it_is_the_one(
    tmp_path: Path, shape: Hyperparameters
) -> None:
    old = "phi3.rope.scale_linear"
    (finding,) = found_in(good_weights("F32").with_pairs(f32(old, 4)), tmp_path, shape)
    assert (finding.where, finding.expected, finding.actual) == (old, "1", "4")
    assert advised(finding) == [f"{old}=1"]
    assert source_pair(old, shape, "phi3") == f32(old, 1)


def test_the_factors_of_a_llama_file_are_one_finding(tmp_path: Path, shape: Hyperparameters) -> None:
    factors = encoded(np.linspace(1, 8, 16, dtype=np.float32), (16,), GGMLQuantizationType.F32)
    (finding,) = found_in(good_weights("llama F32").with_tensor("rope_freqs.weight", factors), tmp_path, shape)
    assert (finding.where, finding.severity, finding.expected) == ("rope_freqs.weight", Severity.FAIL, "none")
    assert finding.message == "positions turn at other frequencies"


@pytest.mark.parametrize("factor", [1e-45, float("inf")])
def test_a_scaling_factor_without_a_float32_inverse_is_told(
    tmp_path: Path, shape: Hyperparameters, factor: float
) -> None:
    pair = MetadataPair(FACTOR, GGUFValueType.FLOAT32, float(np.float32(factor)))
    (finding,) = found_in(good_weights("F32").with_pairs(pair), tmp_path, shape)
    assert (finding.where, finding.expected, finding.actual) == (FACTOR, "1", str(np.float32(factor)))


def test_lost_factors_are_told_with_the_tensor_and_no_setting(longrope: Hyperparameters) -> None:
    lost = replace(longrope, rope=replace(longrope.rope, long_factors=None))
    (finding,) = differences(lost, longrope, "phi3")
    assert (finding.where, finding.actual, finding.remedy) == ("rope_factors_long.weight", "none", AGAIN)
    assert finding.expected.startswith("12 factors, ")


def test_sizes_that_the_tensors_do_not_have_are_not_mended_by_a_setting(shape: Hyperparameters) -> None:
    other = replace(shape, feed_forward_size=256, rms_norm_eps=1e-3)
    remedies = {finding.where: finding.remedy for finding in differences(other, shape, "phi3", tensors_fit=False)}
    assert remedies[FEED_FORWARD] == AGAIN
    assert "--set" in remedies[EPSILON]


def test_keys_that_nobody_knows_have_no_right_value(shape: Hyperparameters) -> None:
    assert mending_key("phi3.expert_count", shape, "phi3") == ""
    assert source_pair("phi3.expert_count", shape, "phi3") is None
    assert source_pair(WINDOW, shape, "phi3") is None
    assert source_pair(BASE, shape, "phi3") == f32(BASE, 250000)
    assert "llama.rope.freq_base=250000" in mending("rope.base", shape.rope.base, "llama")


# What is wrong with a file, and the key that has to be blamed. None: the key is not there.
WRONG: Mapping[str, tuple[str, Mapping[str, MetadataPair | None], str]] = {
    "base of 10000": ("F32", {BASE: f32(BASE, 10000)}, BASE),
    "no base": ("Q4_K_M", {BASE: None}, BASE),
    "epsilon": ("F32", {EPSILON: f32(EPSILON, 1e-6)}, EPSILON),
    "no epsilon": ("F32", {EPSILON: None}, EPSILON),
    "epsilon as text": ("F32", {EPSILON: text(EPSILON, "1e-5")}, EPSILON),
    "heads": ("F32", {HEADS: u32(HEADS, 4)}, HEADS),
    "no heads": ("F32", {HEADS: None}, HEADS),
    "kv heads": ("F32", {KV_HEADS: u32(KV_HEADS, 1)}, KV_HEADS),
    "no kv heads": ("F32", {KV_HEADS: None}, KV_HEADS),
    "kv heads of another type": ("F32", {KV_HEADS: MetadataPair(KV_HEADS, GGUFValueType.INT64, 2)}, KV_HEADS),
    "kv heads by layer": (
        "F32",
        {KV_HEADS: MetadataPair(KV_HEADS, GGUFValueType.ARRAY, (2, 2, 2, 1), GGUFValueType.INT32)},
        KV_HEADS,
    ),
    "feed forward": ("F32", {FEED_FORWARD: u32(FEED_FORWARD, 256)}, FEED_FORWARD),
    "no feed forward": ("F32", {FEED_FORWARD: None}, FEED_FORWARD),
    "width": ("F32", {WIDTH: u32(WIDTH, 128)}, WIDTH),
    "layers": ("F32", {LAYERS: u32(LAYERS, 3)}, LAYERS),
    "no layers": ("F32", {LAYERS: None}, LAYERS),
    "rotated": ("F32", {ROTATED: u32(ROTATED, 16)}, ROTATED),
    "window": ("F32", {WINDOW: u32(WINDOW, 1024)}, WINDOW),
    "context": ("F32", {CONTEXT: u32(CONTEXT, 4096)}, CONTEXT),
    "no context": ("F32", {CONTEXT: None}, CONTEXT),
    "head size": ("F32", {KEY_LENGTH: u32(KEY_LENGTH, 16), VALUE_LENGTH: u32(VALUE_LENGTH, 16)}, KEY_LENGTH),
    "key length": ("F32", {KEY_LENGTH: u32(KEY_LENGTH, 64)}, KEY_LENGTH),
    "value length": ("F32", {VALUE_LENGTH: u32(VALUE_LENGTH, 64)}, VALUE_LENGTH),
    "linear scaling": ("F32", {FACTOR: f32(FACTOR, 4)}, FACTOR),
    "yarn": ("F32", {SCALING: text(SCALING, "yarn")}, SCALING),
    "scaling type of another type": ("F32", {SCALING: u32(SCALING, 1)}, SCALING),
    "no attention factor": ("mini F32", {MAGNITUDE: None}, MAGNITUDE),
    "attention factor": ("mini F32", {MAGNITUDE: f32(MAGNITUDE, 1)}, MAGNITUDE),
    "no original length": ("mini F32", {ORIGINAL: None}, ORIGINAL),
    "original length": ("mini F32", {ORIGINAL: u32(ORIGINAL, 256)}, ORIGINAL),
    "yarn in place of longrope": ("mini F32", {SCALING: text(SCALING, "yarn")}, SCALING),
    "llama, no base": ("llama F32", {"llama.rope.freq_base": None}, "llama.rope.freq_base"),
    "llama, kv heads": (
        "llama F32",
        {key(Keys.Attention.HEAD_COUNT_KV, "llama"): u32(key(Keys.Attention.HEAD_COUNT_KV, "llama"), 1)},
        key(Keys.Attention.HEAD_COUNT_KV, "llama"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_setting_that_is_advised_mends_the_file(name: str, tmp_path: Path) -> None:
    kind, changes, blamed = WRONG[name]
    good = good_file(kind)
    wrong, mended = tmp_path / "IN.gguf", tmp_path / "OUT.gguf"
    with_changes(good.path, wrong, changes)
    (finding,) = open_sides(good.folder, wrong).findings
    assert (finding.where, finding.severity >= Severity.WARN) == (blamed, True)
    settings = advised(finding)
    assert settings, finding.remedy
    file = read_gguf(wrong)
    set_by = [parse_setting(setting, file, phi4_vocabulary()) for setting in settings]
    with_changes(wrong, mended, {change.key: change.pair for change in set_by})
    assert open_sides(good.folder, mended).findings == ()


def advised(finding: Finding) -> list[str]:
    """The settings of the command that a finding advises."""
    return re.findall(r"--set (\S+?)(?=`| )", finding.remedy)


@pytest.mark.parametrize(
    "name",
    [
        "no epsilon",
        "rotated",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in WRONG
            if not name.startswith(("no ep", "kv heads of"))
        ),
    ],
)
def test_fix_runs_the_command_that_is_advised(name: str, tmp_path: Path) -> None:
    kind, changes, _ = WRONG[name]
    good = good_file(kind)
    wrong, mended = tmp_path / "IN.gguf", tmp_path / "OUT.gguf"
    with_changes(good.path, wrong, changes)
    (finding,) = open_sides(good.folder, wrong).findings
    options = [option for setting in advised(finding) for option in ("--set", setting)]
    result = CliRunner().invoke(fix, [str(wrong), str(mended), "--tokenizer", str(good.folder), "--quiet", *options])
    assert result.exit_code == 0, result.output
    assert open_sides(good.folder, mended).findings == ()


def test_several_wrong_values_are_all_told(tmp_path: Path) -> None:
    """Neither a value that llama.cpp refuses nor one that no Phi-4 has hides the others."""
    good = good_file("F32")
    changes = {
        EPSILON: None,
        KV_HEADS: text(KV_HEADS, "2"),
        SCALING: text(SCALING, "yarn"),
        "phi3.expert_count": u32("phi3.expert_count", 8),
        BASE: f32(BASE, 10000),
        WINDOW: u32(WINDOW, 1024),
    }
    sides = open_sides(good.folder, with_changes(good.path, tmp_path / "wrong.gguf", changes))
    assert {finding.where for finding in sides.findings} == set(changes)
    assert {finding.where for finding in sides.findings if finding.id == METADATA_ID} == set(changes) - {BASE, WINDOW}
    assert sides.notes == ("as it is the file cannot run; to judge the rest it was run with what config.json says",)
    assert runs_with(sides).rope.base == 10000


def runs_with(sides: Sides) -> Hyperparameters:
    return sides.found.hyperparameters


def test_keys_and_values_of_other_lengths_are_both_told(tmp_path: Path) -> None:
    good = good_file("F32")
    changes = {KEY_LENGTH: u32(KEY_LENGTH, 16), VALUE_LENGTH: u32(VALUE_LENGTH, 64)}
    sides = open_sides(good.folder, with_changes(good.path, tmp_path / "wrong.gguf", changes))
    assert [(finding.id, finding.where) for finding in sides.findings] == [
        (METADATA_ID, KEY_LENGTH),
        (METADATA_ID, VALUE_LENGTH),
    ]
    assert runs_with(sides).head_size == sides.source.hyperparameters.head_size


def test_a_value_that_cannot_be_put_right_ends_the_reading(tmp_path: Path) -> None:
    """With fewer heads the right length of a key does not go with the length that values have without their key."""
    good = good_file("F32")
    changes = {KEY_LENGTH: u32(KEY_LENGTH, 32), HEADS: u32(HEADS, 4)}
    sides = open_sides(good.folder, with_changes(good.path, tmp_path / "wrong.gguf", changes))
    assert [(finding.id, finding.where) for finding in sides.findings] == [(METADATA_ID, KEY_LENGTH)]
    assert runs_with(sides) == sides.source.hyperparameters
