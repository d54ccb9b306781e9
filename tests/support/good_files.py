"""Good files of small models in every kind that weights come in, each made once in a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import TINY, Words, copy_of_tiny, edit_json, llamafied, replace_tensors, tiny_tensors
from gguf import GGMLQuantizationType
from llama_arch import write_llama_arch
from weight_files import WeightFile, read_weight_file

from phi4conv.arrays import Floats
from phi4conv.convert import convert
from phi4conv.phi3 import ConversionOptions
from phi4conv.quant.mix_table import PRE_2026

# Of the tiny checkpoint itself, and of its llama-fied twin, which gives the same bytes.
TINY_KINDS: Mapping[str, ConversionOptions] = {
    **{name: ConversionOptions(file_type=name) for name in ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")},
    "Q4_K_M pre-2026": ConversionOptions(file_type="Q4_K_M", mix=PRE_2026),
}
LLAMAFIED_KINDS: Mapping[str, ConversionOptions] = {
    f"llama-fied {name}": ConversionOptions(file_type=name) for name in ("F32", "Q4_K_M")
}
# Of a small Phi-4-mini: LongRoPE, partial rotary embedding, tied head.
MINI_KINDS: Mapping[str, ConversionOptions] = {
    f"mini {name}": ConversionOptions(file_type=name) for name in ("F32", "Q8_0", "Q4_K_M")
}
# Of the architecture llama, as llama.cpp's converter makes them of the llama-fied checkpoint.
LLAMA_ARCH_KINDS: Mapping[str, GGMLQuantizationType] = {
    f"llama {qtype.name}": qtype
    for qtype in (GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_K)
}
KINDS = (*TINY_KINDS, *LLAMAFIED_KINDS, *MINI_KINDS, *LLAMA_ARCH_KINDS)

# The small Phi-4-mini's lengths in tokens: short factors up to the first, long ones beyond it.
MINI_ORIGINAL_CONTEXT, MINI_CONTEXT = 512, 4096
MINI_ROTATED_PAIRS = 12  # int(0.75 * 256) // 8 heads, in pairs


@dataclass(frozen=True)
class GoodFile:
    """A good file.

    Attributes:
        kind: One of KINDS.
        folder: The checkpoint that it was made from.
        path: The file.
        exact: Its twin of type F32, the file itself where that is its type.
    """

    kind: str
    folder: Path
    path: Path
    exact: Path


@cache
def good_file(kind: str) -> GoodFile:
    """The good file of a kind.

    Raises:
        KeyError: There is no such kind.
    """
    path = scratch() / f"{kind.replace(' ', '-')}.gguf"
    if kind in LLAMA_ARCH_KINDS:
        folder, twin = llamafied_folder(), "llama F32"
        write_llama_arch(folder, path, LLAMA_ARCH_KINDS[kind])
    elif kind in MINI_KINDS:
        folder, twin = mini_folder(), "mini F32"
        convert(folder, path, MINI_KINDS[kind])
    elif kind in LLAMAFIED_KINDS:
        folder, twin = llamafied_folder(), "llama-fied F32"
        convert(folder, path, LLAMAFIED_KINDS[kind])
    else:
        folder, twin = TINY, "F32"
        convert(folder, path, TINY_KINDS[kind])
    return GoodFile(kind, folder, path, path if kind == twin else good_file(twin).path)


@cache
def good_weights(kind: str) -> WeightFile:
    """The good file of a kind, with everything in it."""
    good = good_file(kind)
    return read_weight_file(good.path, good.exact)


@cache
def scratch() -> Path:
    """A folder that is there until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="phi4conv-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def llamafied_folder() -> Path:
    """The llama-fied tiny checkpoint."""
    return llamafied(scratch() / "llamafied")


@cache
def mini_folder() -> Path:
    """Phi-4-mini's architecture in small, with random weights.

    Norms are not all ones and matrices have the tiny checkpoint's shapes, so that every tensor matters.
    """
    folder = copy_of_tiny(scratch() / "mini")
    generator = np.random.default_rng(11)
    short = generator.uniform(1, 1.5, MINI_ROTATED_PAIRS).tolist()
    long = generator.uniform(2, 8, MINI_ROTATED_PAIRS).tolist()

    def change(data: dict[str, Any]) -> None:
        data.update(
            partial_rotary_factor=0.75,
            tie_word_embeddings=True,
            max_position_embeddings=MINI_CONTEXT,
            original_max_position_embeddings=MINI_ORIGINAL_CONTEXT,
            rope_theta=10000.0,
            rope_scaling={"type": "longrope", "short_factor": short, "long_factor": long},
        )

    edit_json(folder / "config.json", change)
    shapes = {name: words.shape for name, (_, words) in tiny_tensors().items() if name != "lm_head.weight"}
    replace_tensors(folder, {name: ("BF16", bf16_words(shape, generator)) for name, shape in shapes.items()})
    return folder


def bf16_words(shape: tuple[int, ...], generator: np.random.Generator) -> Words:
    """Random weights that BF16 holds, as its words: norms around 1, matrices around 0."""
    weights: Floats = (
        generator.uniform(0.5, 1.5, shape) if len(shape) == 1 else generator.normal(0, 0.06, shape)
    ).astype(np.float32)
    return (weights.view(np.uint32) >> 16).astype(np.uint16)
