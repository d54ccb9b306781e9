"""Files of the tiny model with other metadata or other tensors, to be run or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from good_files import good_file
from weight_files import StoredTensor, WeightFile, encoded, read_weight_file, write_weight_file

from phi4conv.errors import EngineError, FormatError
from phi4conv.gguf_file.layout import MetadataPair
from phi4conv.reference.llama_cpp import LlamaCpp

Change = Callable[[WeightFile], WeightFile]

F32 = GGMLQuantizationType.F32
# A chat prompt in the tiny model's tokens.
IDS = [936, 615, 262, 938, 51, 565, 564, 258, 552, 486, 68, 13, 937, 936, 819, 72, 271, 413, 938]


def good(kind: str = "F32") -> WeightFile:
    return read_weight_file(good_file(kind).path)


def written(file: WeightFile, tmp_path: Path) -> Path:
    return write_weight_file(tmp_path / "file.gguf", file.pairs.values(), file.tensors)


def random_tensor(*shape: int, seed: int = 3, size: float = 0.06) -> StoredTensor:
    values = np.random.default_rng(seed).normal(0, size, shape).astype(np.float32)
    return encoded(values, shape, F32)


def i32_array(key: str, values: list[int]) -> MetadataPair:
    return MetadataPair(key, GGUFValueType.ARRAY, tuple(values), GGUFValueType.INT32)


def random_factors(count: int) -> StoredTensor:
    values = np.random.default_rng(count).uniform(1, 8, count).astype(np.float32)
    return encoded(values, values.shape, F32)


def assert_does_not_run(llama: LlamaCpp, path: Path) -> None:
    with pytest.raises((FormatError, EngineError)):
        llama.load(path)
        llama.logits(IDS)
