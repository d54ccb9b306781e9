"""Both sides opened: what cannot be compared at all, and what stands in for what a file lacks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, copy_of_tiny, edit_json
from gguf import GGMLQuantizationType, Keys
from good_files import good_file, good_weights
from vocabulary_files import tiny_pairs, with_changes, written
from weight_files import StoredTensor, WeightFile, encoded, write_weight_file

from phi4conv.check.model import Severity
from phi4conv.errors import CheckpointError, FormatError
from phi4conv.gguf_file.layout import text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.parts import EMBEDDING, HEAD
from phi4conv.verify.hyperparameters import AGAIN
from phi4conv.verify.sides import HEAD_ID, METADATA_ID, WRONG_SHAPE, open_sides, shape_text

DOWN = "blk.2.ffn_down.weight"


def write(file: WeightFile, tmp_path: Path) -> Path:
    return write_weight_file(tmp_path / "wrong.gguf", file.pairs.values(), file.tensors)


@pytest.fixture
def good() -> WeightFile:
    return good_weights("F32")


@pytest.mark.parametrize("kind", ["F32", "Q4_K_M", "Q2_K", "mini Q8_0", "llama Q8_0", "llama-fied Q4_K_M"])
def test_a_good_file_has_every_part_of_its_source(kind: str) -> None:
    good = good_file(kind)
    sides = open_sides(good.folder, good.path)
    assert (sides.findings, sides.notes) == ((), ())
    assert set(sides.found.parts) == set(sides.source.parts)
    assert {name: part.shape for name, part in sides.found.parts.items()} == {
        name: part.shape for name, part in sides.source.parts.items()
    }
    assert sides.type_name == {"Q4_K_M": "Q4_K"}.get(kind.rsplit(maxsplit=1)[-1], kind.rsplit(maxsplit=1)[-1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({Keys.General.ARCHITECTURE: text(Keys.General.ARCHITECTURE, "gemma3")}, "no model of this architecture"),
        ({Keys.General.ARCHITECTURE: text(Keys.General.ARCHITECTURE, "phimoe")}, "no model of this architecture"),
        ({"split.count": u32("split.count", 3), "split.no": u32("split.no", 0)}, "part 1 of 3"),
        ({"split.count": u32("split.count", 3), "split.no": u32("split.no", 2)}, "part 3 of 3"),
    ],
)
def test_what_is_no_whole_phi_4_is_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    good = good_file("F32")
    pairs = {**read_gguf(good.path).metadata, **changes}
    wrong = WeightFile(pairs, good_weights("F32").tensors, {})  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=words):
        open_sides(good.folder, write(wrong, tmp_path))


def test_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a vocabulary and no weights"):
        open_sides(TINY, written(tiny_pairs(), tmp_path / "vocabulary.gguf"))


@pytest.mark.parametrize("size", [0, 3, 100, 5_000_000])
def test_a_file_that_is_cut_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(good_file("F32").path.read_bytes()[:size])
    with pytest.raises(FormatError):
        open_sides(TINY, path)


def test_a_file_of_another_width_is_refused_and_the_folder_named(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "wide")
    other = good_weights("F32").tensors
    width = Keys.LLM.EMBEDDING_LENGTH.format(arch="phi3")
    tensors = {
        name: encoded(tensor.values[:, :128], (tensor.shape[0], 128), tensor.qtype)
        for name, tensor in other.items()
        if len(tensor.shape) > 1
    }
    file = WeightFile({**good_weights("F32").pairs, width: u32(width, 128)}, tensors, {})
    with pytest.raises(FormatError, match="of another model than the folder") as caught:
        open_sides(folder, write(file, tmp_path))
    (problem,) = caught.value.problems
    assert (problem.expected, problem.found) == (f"an embedding of 256 components, as {folder} has", "128")


def test_a_type_without_decoder_is_one_refusal(tmp_path: Path, good: WeightFile) -> None:
    old = good.tensors[DOWN]
    data = np.zeros((256, 2 * 110), np.uint8)  # IQ3_S: 110 bytes for 256 weights
    file = good.with_tensor(DOWN, StoredTensor(old.shape, GGMLQuantizationType.IQ3_S, data))
    with pytest.raises(FormatError, match="no decoder for IQ3_S") as caught:
        open_sides(TINY, write(file, tmp_path))
    assert len(caught.value.problems) == 1
    assert DOWN in caught.value.problems[0].where


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in the folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"oid sha256:4d7a"), "model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"),
            "only a LoRA adapter",
        ),
        (
            lambda folder: edit_json(
                folder / "config.json", lambda data: data.update(quantization_config={"quant_method": "gptq"})
            ),
            "already quantized",
        ),
        (
            lambda folder: edit_json(
                folder / "config.json", lambda data: data.update(architectures=["GemmaForCausalLM"], model_type="gemma")
            ),
            "Phi3ForCausalLM",
        ),
        (
            lambda folder: edit_json(folder / "config.json", lambda data: data.update(num_hidden_layers=5)),
            "num_hidden_layers",
        ),
    ],
)
def test_a_folder_that_holds_no_such_model_is_refused(spoil: object, words: str, tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(CheckpointError, match=words):
        open_sides(folder, good_file("F32").path)


def test_a_missing_tensor_is_told_and_the_sources_takes_its_place(tmp_path: Path, good: WeightFile) -> None:
    sides = open_sides(TINY, write(good.without_tensors(DOWN), tmp_path))
    (finding,) = sides.findings
    assert (finding.code, finding.where, finding.expected, finding.actual) == (
        "missing",
        DOWN,
        "256 x 512",
        "no such tensor",
    )
    assert sides.found.parts["blk.2.ffn_down"] is sides.source.parts["blk.2.ffn_down"]
    assert sides.notes[1] == "the source's took the place of what is missing or of another shape: blk.2.ffn_down"


def test_a_tensor_too_many_and_one_of_another_shape_are_told(tmp_path: Path, good: WeightFile) -> None:
    bias = encoded(np.ones((1, 384), np.float32), (384,), GGMLQuantizationType.F32)
    half = encoded(good.exact[DOWN][:, :256], (256, 256), GGMLQuantizationType.F32)
    sides = open_sides(TINY, write(good.with_tensor("blk.1.attn_qkv.bias", bias).with_tensor(DOWN, half), tmp_path))
    assert {(finding.code, finding.where) for finding in sides.findings} == {
        ("unexpected", "blk.1.attn_qkv.bias"),
        (WRONG_SHAPE, DOWN),
    }
    assert all(finding.remedy == AGAIN for finding in sides.findings)


@pytest.mark.parametrize("count", [64, -64])
def test_a_vocabulary_of_another_length_runs_as_it_is(count: int, tmp_path: Path, good: WeightFile) -> None:
    """llama.cpp goes by the list of tokens, and refuses both; the rows that both sides have are judged."""
    for name in ("token_embd.weight", "output.weight"):
        rows = np.concatenate([good.exact[name], good.exact[name][:64]]) if count > 0 else good.exact[name][:count]
        good = good.with_tensor(name, encoded(rows, rows.shape, GGMLQuantizationType.F32))
    sides = open_sides(TINY, write(good, tmp_path))
    assert [finding.code for finding in sides.findings] == [WRONG_SHAPE, WRONG_SHAPE]
    assert sides.found.parts[HEAD].shape == (1024 + count, 256)
    # An embedding with fewer rows than the file has tokens cannot run.
    assert sides.found.parts[EMBEDDING].shape == (1024 + max(0, count), 256)


def test_a_lost_head_is_told_and_not_replaced(tmp_path: Path, good: WeightFile) -> None:
    sides = open_sides(TINY, write(good.without_tensors("output.weight"), tmp_path))
    assert [(finding.id, finding.where) for finding in sides.findings] == [(HEAD_ID, "output.weight")]
    assert HEAD not in sides.found.parts
    assert sides.notes == ()


def test_a_head_where_the_sources_is_tied_is_held_against_the_embedding(tmp_path: Path) -> None:
    good = good_file("mini F32")
    file = good_weights("mini F32")
    file = file.with_tensor("output.weight", file.tensors["token_embd.weight"])
    sides = open_sides(good.folder, write(file, tmp_path))
    assert sides.findings == ()
    assert sides.source.parts[HEAD].rows is sides.source.parts[EMBEDDING].rows


def test_a_lost_layer_is_told_by_its_tensors_or_by_the_key_that_leaves_it_out(tmp_path: Path, good: WeightFile) -> None:
    lost = [name for name in good.tensors if name.startswith("blk.3.")]
    sides = open_sides(TINY, write(good.without_tensors(*lost), tmp_path))
    assert {finding.where for finding in sides.findings} == set(lost)
    key = Keys.LLM.BLOCK_COUNT.format(arch="phi3")
    sides = open_sides(TINY, write(good.without_tensors(*lost).with_pairs(u32(key, 3)), tmp_path))
    assert [(finding.where, finding.remedy) for finding in sides.findings] == [(key, AGAIN)]
    assert sides.found.layer(3).keys() == sides.source.layer(3).keys()
    assert "of another shape: blk.3.attn_norm" in sides.notes[0]


def test_experts_are_told_by_their_key(tmp_path: Path) -> None:
    good = good_file("F32")
    path = with_changes(good.path, tmp_path / "experts.gguf", {"phi3.expert_count": u32("phi3.expert_count", 8)})
    (finding,) = open_sides(good.folder, path).findings
    assert (finding.id, finding.where, finding.severity) == (METADATA_ID, "phi3.expert_count", Severity.FAIL)


def test_shapes_are_shown_as_people_write_them() -> None:
    assert shape_text((5120,)) == "5120"
    assert json.dumps(shape_text((2, 3))) == '"2 x 3"'
