"""Checkpoints as transformers itself saves and runs them: spellings, LongRoPE, tied embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, Words, copy_of_tiny, edit_json, llamafied, replace_tensors

from phi4conv.convert import convert
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3 import ConversionOptions
from phi4conv.reference.llama_cpp import LlamaCpp

torch = pytest.importorskip("torch", reason="the comparison needs torch")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

IDS = [936, 615, 262, 938, 51, 565, 564, 258, 552, 486, 68, 13, 937, 936, 819, 72, 271, 413, 938]


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def converted(folder: Path, target: Path) -> GGUFFile:
    convert(folder, target, ConversionOptions(file_type="F32"))
    return read_gguf(target)


def model_pairs(file: GGUFFile) -> list[Any]:
    return [pair for key, pair in file.metadata.items() if key.startswith(("phi3.", "tokenizer."))]


def logits(folder: Path, ids: list[int]) -> Words:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        result: Words = model(torch.tensor([ids])).logits[0].numpy()
    return result


def test_a_checkpoint_that_transformers_saved_again_gives_the_same_file(tmp_path: Path) -> None:
    again = tmp_path / "again"
    transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16).save_pretrained(again)
    transformers.AutoTokenizer.from_pretrained(TINY).save_pretrained(again)
    config = json.loads((again / "config.json").read_text())
    assert "rope_parameters" in config  # else this is not the spelling that the test is about
    assert "rope_theta" not in config
    expected, found = converted(TINY, tmp_path / "a.gguf"), converted(again, tmp_path / "b.gguf")
    assert model_pairs(found) == model_pairs(expected)
    weights = [file.path.read_bytes()[file.data_offset :] for file in (expected, found)]
    assert weights[0] == weights[1]


def test_the_llama_spelling_is_one_that_transformers_runs_alike(tmp_path: Path) -> None:
    folder = llamafied(tmp_path / "model")
    assert np.abs(logits(folder, IDS) - logits(TINY, IDS)).max() < 1e-4


@pytest.fixture(scope="module")
def small_phi_4_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phi-4-mini's architecture in small: partial rotary embedding, LongRoPE, tied embeddings, random weights."""
    folder = copy_of_tiny(tmp_path_factory.mktemp("mini") / "model")
    generator = np.random.default_rng(11)
    pairs = 12  # int(0.75 * 256) // 8 heads, in pairs

    def change(data: dict[str, Any]) -> None:
        data.update(
            partial_rotary_factor=0.75,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            original_max_position_embeddings=512,
            rope_theta=10000.0,
            rope_scaling={
                "type": "longrope",
                "short_factor": generator.uniform(1, 1.5, pairs).tolist(),
                "long_factor": generator.uniform(2, 8, pairs).tolist(),
            },
        )

    edit_json(folder / "config.json", change)
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(11)
    model = transformers.Phi3ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.06)
    state = {
        name: ("F32", value.detach().numpy()) for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    replace_tensors(folder, state)
    return folder


SHORT, LONG = 256, 1024  # values of n_ctx on either side of the original context length


@pytest.mark.parametrize(("length", "n_ctx", "other"), [(40, SHORT, LONG), (600, LONG, None)])
def test_longrope_runs_in_llama_cpp_as_in_transformers(
    tmp_path: Path, llama: LlamaCpp, small_phi_4_mini: Path, *, length: int, n_ctx: int, other: int | None
) -> None:
    """llama.cpp chooses the factors by n_ctx, transformers by the length of the text: here both choose alike."""
    converted(small_phi_4_mini, tmp_path / "mini.gguf")
    llama.load(tmp_path / "mini.gguf")
    ids = (IDS * (length // len(IDS) + 1))[:length]
    expected = logits(small_phi_4_mini, ids)
    assert np.abs(llama.logits(ids, n_ctx=n_ctx) - expected).max() < 1e-4
    if other:  # the other factors give other logits, so that the comparison could fail
        assert np.abs(llama.logits(ids, n_ctx=other) - expected).max() > 1e-2
