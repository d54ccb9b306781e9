"""What a file's vectors must be for llama.cpp to compute with them, and what torch says when it cannot go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from changed_models import good, written
from gguf import GGMLQuantizationType
from weight_files import encoded

from phi4conv.errors import EngineError, FormatError
from phi4conv.gguf_file.read import read_gguf
from phi4conv.runnable import is_out_of_memory, out_of_memory, runnable_model


def test_a_norm_that_llama_cpp_cannot_multiply_by_is_refused_by_name(tmp_path: Path) -> None:
    name = "blk.2.ffn_norm.weight"
    file = good()
    norm = encoded(file.tensors[name].values, file.tensors[name].shape, GGMLQuantizationType.F16)
    with pytest.raises(FormatError) as caught:
        runnable_model(read_gguf(written(file.with_tensor(name, norm), tmp_path)))
    (problem,) = caught.value.problems
    assert problem.where.endswith(name)
    assert (problem.expected, problem.found) == ("F32", "F16")


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [
        ("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("MPS backend out of memory (MPS allocated: 1 GB)", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_torchs_ways_to_say_that_memory_is_short(message: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) == is_memory


def test_the_cpu_is_offered_where_another_device_is_full() -> None:
    told = {device: out_of_memory(device) for device in ("cpu", "cuda")}
    assert all(isinstance(error, EngineError) for error in told.values())
    steps = {device: error.problems[0].next_step for device, error in told.items()}
    assert steps["cuda"].startswith(steps["cpu"])
    assert steps["cuda"].endswith("to run on the CPU")
