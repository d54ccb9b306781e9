"""Rows as wide as Phi-4's: one layer with a small vocabulary, 0.34 billion weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import REPOSITORY, copy_of_tiny, edit_json
from gguf import GGMLQuantizationType
from programs import phi4conv, script

from phi4conv.gguf_file.read import read_gguf
from phi4conv.hf.checkpoint import Checkpoint
from phi4conv.reference.llama_cpp import LlamaCpp

WIDE = {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40, "num_key_value_heads": 10}
MEMORY_LIMIT = 600e6


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    tiny = copy_of_tiny(folder / "tiny")
    edit_json(tiny / "config.json", lambda data: data.update(WIDE))
    script(REPOSITORY / "benchmarks" / "make_model.py").make_model(tiny, folder / "model", layers=1)
    return folder / "model"


@pytest.mark.slow
@pytest.mark.parametrize("file_type", ["BF16", "Q8_0", "Q4_K_M"])
def test_full_width_tensors_are_ggmls_and_memory_is_bounded(tmp_path: Path, wide_model: Path, file_type: str) -> None:
    out = tmp_path / f"wide-{file_type}.gguf"
    result = json.loads(phi4conv("convert", wide_model, out, "--json").stdout)
    assert result["peak_memory_bytes"] is None or result["peak_memory_bytes"] < MEMORY_LIMIT

    sources = Checkpoint.open(wide_model).tensors
    planned = {tensor["name"]: tensor["source"] for tensor in result["tensors"]}
    file = read_gguf(out)
    data = np.memmap(out, np.uint8, mode="r")
    with LlamaCpp(threads=1) as llama:
        for entry in file.tensors:
            (source,) = planned[entry.name]
            assert isinstance(entry.qtype, GGMLQuantizationType)
            weights = sources[source].rows(0, entry.weight_count // entry.shape[-1])
            start = file.data_offset + entry.offset
            written = data[start : start + entry.size_bytes]
            assert np.array_equal(llama.quantize(weights, entry.qtype).reshape(-1), written), entry.name
        llama.load(out)
        assert np.isfinite(llama.logits([1, 2, 3])).all()
