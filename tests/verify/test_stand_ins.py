"""What the source stands in for is always told, and what ggml reads in spite of its looks is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import copy_of_tiny, edit_json
from gguf import GGMLQuantizationType
from good_files import good_file, good_weights
from weight_files import WeightFile, encoded, write_weight_file

from phi4conv.check.model import Severity
from phi4conv.errors import CheckpointError
from phi4conv.gguf_file.read import read_gguf
from phi4conv.verify import Verification, VerifyOptions, verify
from phi4conv.verify.prompts import PromptOptions
from phi4conv.verify.sides import open_sides

pytest.importorskip("torch", reason="verify runs models with torch")

F32 = GGMLQuantizationType.F32
ASKED = VerifyOptions(asked=PromptOptions(prompts=("Tell me a joke.",)))


def verified(file: WeightFile, target: Path) -> Verification:
    good = good_file("F32")
    return verify(good.folder, write_weight_file(target, file.pairs.values(), file.tensors), ASKED)


@pytest.mark.parametrize(
    "name", ["output_norm", "blk.0.attn_norm", "blk.1.attn_output", "blk.2.ffn_down", "token_embd"]
)
@pytest.mark.parametrize("change", [1.0, -1.0])
def test_a_leading_one_of_a_shape_is_no_shape_of_its_own(name: str, change: float, tmp_path: Path) -> None:
    good = good_weights("F32")
    exact = good.exact[f"{name}.weight"]
    tensor = encoded(exact * np.float32(change), (1, *exact.shape), F32)
    outcome = verified(good.with_tensor(f"{name}.weight", tensor), tmp_path / "wrong.gguf")
    assert outcome.is_right == (change == 1.0), outcome.findings
    assert {finding.where for finding in outcome.findings} == (set() if change == 1.0 else {f"{name}.weight"})


@pytest.mark.parametrize("name", ["token_embd", "output_norm", "blk.3.ffn_norm"])
def test_a_missing_tensor_is_told_and_the_rest_is_judged(name: str, tmp_path: Path) -> None:
    outcome = verified(good_weights("F32").without_tensors(f"{name}.weight"), tmp_path / "wrong.gguf")
    (finding,) = outcome.findings
    assert (finding.code, finding.where) == ("missing", f"{name}.weight")


@pytest.mark.parametrize("shape", [(256,), (1000, 256), (1024, 1, 256)])
def test_an_embedding_of_another_shape_is_told(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = encoded(np.ones(shape, np.float32), shape, F32)
    outcome = verified(good_weights("F32").with_tensor("token_embd.weight", tensor), tmp_path / "wrong.gguf")
    assert [finding.where for finding in outcome.findings] == ["token_embd.weight"]
    assert outcome.findings[0].severity is Severity.FAIL


def test_tensors_in_an_order_that_llama_cpp_refuses_are_told(tmp_path: Path) -> None:
    good = good_file("F32")
    data = bytearray(good.path.read_bytes())
    file = read_gguf(good.path)
    one, other = (file.tensor(f"blk.{layer}.attn_norm.weight") for layer in (0, 1))
    assert one is not None
    assert other is not None
    swapped = {one.offset: other.offset, other.offset: one.offset}
    for entry in (one, other):  # the rows of the tensor table that say where the data are
        place = data.index(entry.name.encode()) + len(entry.name) + 4 + 8 + 4
        data[place : place + 8] = swapped[entry.offset].to_bytes(8, "little")
    first, second = (file.data_offset + entry.offset for entry in (one, other))
    size = one.size_bytes
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )
    path = tmp_path / "disordered.gguf"
    path.write_bytes(data)
    outcome = verify(good.folder, path, ASKED)
    assert "tensor-order" in {finding.code for finding in outcome.findings}
    assert not outcome.is_right


@pytest.mark.parametrize("qtype", ["F16", "BF16"])
def test_a_norm_that_llama_cpp_cannot_compute_with_is_told(qtype: str, tmp_path: Path) -> None:
    good = good_weights("BF16")  # whose norms both types hold exactly enough
    exact = good.exact["blk.1.ffn_norm.weight"]
    tensor = encoded(exact, exact.shape, GGMLQuantizationType[qtype])
    path = tmp_path / "wrong.gguf"
    changed = good.with_tensor("blk.1.ffn_norm.weight", tensor)
    outcome = verify(good_file("BF16").folder, write_weight_file(path, changed.pairs.values(), changed.tensors), ASKED)
    assert [(finding.code, finding.where) for finding in outcome.findings] == [("wrong-type", "blk.1.ffn_norm.weight")]


def test_a_folder_that_contradicts_itself_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    edit_json(folder / "config.json", lambda data: data.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match="ties the output to the embedding"):
        open_sides(folder, good_file("F32").path)
