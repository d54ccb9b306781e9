"""Layers as wide as Phi-4's: two of them with a small vocabulary, 0.69 billion weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import REPOSITORY, copy_of_tiny, edit_json
from programs import phi4conv, script

from phi4conv.gguf_file.read import read_gguf

pytest.importorskip("torch", reason="verify runs models with torch")

WIDE = {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40, "num_key_value_heads": 10}
TENSOR = "blk.1.ffn_up.weight"

# Of it some 400 MB are torch itself. One layer in float32 would be 1.4 GB for each side.
MEMORY_LIMIT = 2e9


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    tiny = copy_of_tiny(folder / "tiny")
    edit_json(tiny / "config.json", lambda data: data.update(WIDE))
    script(REPOSITORY / "benchmarks" / "make_model.py").make_model(tiny, folder / "model", layers=2)
    return folder / "model"


@pytest.mark.slow
def test_full_width_layers_are_judged_in_bounded_memory_and_a_fault_is_blamed(tmp_path: Path, wide_model: Path) -> None:
    path = tmp_path / "wide-Q4_K_M.gguf"
    phi4conv("convert", wide_model, path, "--quiet")
    good = json.loads(phi4conv("verify", wide_model, path, "--json").stdout)
    assert good["verdict"]["right"], good["findings"]
    assert failures(good) == []
    assert all(tensor["same_bytes"] for tensor in good["tensors"])
    assert good["peak_memory"] is None or good["peak_memory"] < MEMORY_LIMIT

    swap_halves(path, TENSOR)
    wrong = json.loads(phi4conv("verify", wide_model, path, "--json").stdout)
    (finding,) = failures(wrong)
    assert (finding["code"], finding["where"]) == ("gate-up-swapped", TENSOR)
    assert [layer["layer"] for layer in wrong["blame"]] == [1]
    assert wrong["blame"][0]["culprits"] == [TENSOR]


def failures(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What is worse than a warning: random weights have no answers to keep, and may be warned of for that."""
    return [finding for finding in document["findings"] if finding["severity"] == "FAIL"]


def swap_halves(path: Path, name: str) -> None:
    """Exchange the first and the second half of a tensor's rows, in place."""
    file = read_gguf(path)
    entry = file.tensor(name)
    assert entry is not None
    start, half = file.data_offset + entry.offset, entry.size_bytes // 2
    with path.open("r+b") as stream:
        stream.seek(start)
        first, second = stream.read(half), stream.read(half)
        stream.seek(start)
        stream.write(second + first)
