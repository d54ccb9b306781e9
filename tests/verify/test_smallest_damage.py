"""From which size on damage at random places is found, whatever the type: see the table of docs/verify.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY
from gguf.constants import GGMLQuantizationType as Type
from good_files import scratch
from model_runs import model_of_folder
from weight_files import WeightFile, read_weight_file, write_weight_file

from phi4conv.arrays import Floats
from phi4conv.convert import convert
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3 import ConversionOptions
from phi4conv.reference.file_model import file_model
from phi4conv.reference.tensor_error import PartError, part_errors

pytestmark = pytest.mark.slow  # together they take a minute; a fault of each kind is in test_blame.py

Generator = np.random.Generator

TENSORS = (
    "blk.0.ffn_down.weight",
    "blk.1.ffn_up.weight",
    "blk.2.attn_qkv.weight",
    "blk.3.attn_output.weight",
    "output.weight",
)
SEEDS = range(5)
TYPES = {"Q2_K": "Q2_K", "Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"} | {
    name: name for name in ("Q6_K", "Q8_0", "F16", "BF16", "F32")
}


def random_row(weights: Floats, generator: Generator) -> int:
    """The number of a row."""
    return int(generator.integers(len(weights)))


def weights_zeroed(weights: Floats, size: float, generator: Generator) -> None:
    """So many neighbours in a row."""
    start = int(generator.integers(weights.shape[1] // 256)) * 256
    weights[random_row(weights, generator), start : start + int(size)] = 0


def groups_zeroed(weights: Floats, size: float, generator: Generator) -> None:
    """A share of all groups of 32 weights."""
    groups = weights.reshape(-1, 32)
    groups[generator.random(len(groups)) < size] = 0


def halves_zeroed(weights: Floats, _: float, __: Generator) -> None:
    """The second half of every superblock."""
    weights.reshape(-1, 256)[:, 128:] = 0


def weight_multiplied(weights: Floats, size: float, generator: Generator) -> None:
    """The largest weight of a row, so many times as large."""
    row = weights[random_row(weights, generator)]
    row[np.abs(row).argmax()] *= np.float32(size)


def row_scaled(weights: Floats, size: float, generator: Generator) -> None:
    """A row, so many times as large."""
    weights[random_row(weights, generator)] *= np.float32(size)


def all_scaled(weights: Floats, size: float, _: Generator) -> None:
    """All of it, so many times as large."""
    weights *= np.float32(size)


def noise_in_row(weights: Floats, size: float, generator: Generator) -> None:
    """Noise on a row, by the tensor's root mean square."""
    weights[random_row(weights, generator)] += generator.normal(0, size * weights.std(), weights.shape[1])


def noise_everywhere(weights: Floats, size: float, generator: Generator) -> None:
    """Noise, by the tensor's root mean square."""
    weights += generator.normal(0, size * weights.std(), weights.shape).astype(np.float32)


def columns_exchanged(weights: Floats, _: float, generator: Generator) -> None:
    """Two columns."""
    one, other = generator.permutation(weights.shape[1])[:2]
    weights[:, [one, other]] = weights[:, [other, one]]


def rows_exchanged(weights: Floats, _: float, generator: Generator) -> None:
    """Two rows."""
    one, other = generator.permutation(len(weights))[:2]
    weights[[one, other]] = weights[[other, one]]


Damage = Callable[[Floats, float, Generator], None]

# By type the size from which on the damage was found at every one of sixty places, with some room.
SMALLEST: Mapping[Damage, Mapping[str, float]] = {
    columns_exchanged: dict.fromkeys(tuple(TYPES)[1:], 0),  # in Q2_K not always: its codes cannot be far apart
    rows_exchanged: dict.fromkeys(TYPES, 0),
    halves_zeroed: dict.fromkeys(TYPES, 0),
    groups_zeroed: dict.fromkeys(TYPES, 0.1),
    weights_zeroed: {"Q2_K": 64, "Q3_K": 64, "Q4_K": 64, "Q5_K": 64, "Q6_K": 64, "Q8_0": 8}
    | dict.fromkeys(("F16", "BF16", "F32"), 4),
    weight_multiplied: {"Q2_K": 100, "Q3_K": 30, "Q4_K": 30, "Q5_K": 10, "Q6_K": 10, "Q8_0": 3}
    | dict.fromkeys(("F16", "BF16", "F32"), 1.1),
    row_scaled: {"Q2_K": 1.4, "Q3_K": 1.3, "Q4_K": 1.15, "Q5_K": 1.1, "Q6_K": 1.05, "Q8_0": 1.02}
    | {"F16": 1.01, "BF16": 1.02, "F32": 1.001},
    all_scaled: dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), 1.04)
    | {"Q8_0": 1.02, "F16": 1.01, "BF16": 1.02, "F32": 1.001},
    noise_in_row: {"Q2_K": 2, "Q3_K": 0.6, "Q4_K": 0.3, "Q5_K": 0.15, "Q6_K": 0.1, "Q8_0": 0.02}
    | {"F16": 0.01, "BF16": 0.02, "F32": 0.001},
    noise_everywhere: {"Q2_K": 0.6, "Q3_K": 0.3, "Q4_K": 0.25, "Q5_K": 0.12, "Q6_K": 0.05, "Q8_0": 0.02}
    | {"F16": 0.01, "BF16": 0.02, "F32": 0.001},
}


def file_of(name: str) -> WeightFile:
    """The tiny checkpoint, every matrix in one type."""
    paths = [scratch() / f"damage-{kind}.gguf" for kind in (TYPES[name], "F32")]
    for path, kind in zip(paths, (TYPES[name], "F32"), strict=True):
        if not path.exists():
            convert(TINY, path, ConversionOptions(file_type=kind, pure=True))
    return read_weight_file(*paths)


def errors_of(file: WeightFile, tensor: str, path: Path) -> list[PartError]:
    """The parts of a tensor, held against the checkpoint's."""
    write_weight_file(path, file.pairs.values(), file.tensors)
    source, found = model_of_folder(TINY), file_model(read_gguf(path))
    pairs = [(part, source.parts[name]) for name, part in found.parts.items() if part.tensor == tensor]
    return part_errors(pairs)


@pytest.mark.parametrize(
    ("damage", "name"),
    [(damage, name) for damage, sizes in SMALLEST.items() for name in sizes],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_damage_is_found_from_this_size_on(damage: Damage, name: str, tmp_path: Path) -> None:
    good = file_of(name)
    for seed in SEEDS:
        tensor = TENSORS[seed % len(TENSORS)]
        weights = good.exact[tensor].copy()
        damage(weights, SMALLEST[damage][name], np.random.default_rng(seed))
        errors = errors_of(good.with_values(tensor, weights), tensor, tmp_path / "wrong.gguf")
        assert not all(error.good for error in errors), (tensor, seed)


@pytest.mark.parametrize("name", TYPES)
def test_a_run_of_random_bytes_is_found(name: str, tmp_path: Path) -> None:
    good = file_of(name)
    for seed in SEEDS:
        tensor, generator = TENSORS[seed % len(TENSORS)], np.random.default_rng(seed)
        data = good.tensors[tensor].data.copy().reshape(-1)
        start = int(generator.integers(data.size - 16))
        data[start : start + 16] = generator.integers(0, 256, 16, dtype=np.uint8)
        errors = errors_of(good.with_bytes(tensor, data), tensor, tmp_path / "wrong.gguf")
        assert not all(error.good for error in errors), (tensor, seed)


@pytest.mark.parametrize("name", TYPES)
def test_without_damage_nothing_is_found(name: str, tmp_path: Path) -> None:
    good = file_of(name)
    for tensor in TENSORS:
        assert all(error.good for error in errors_of(good, tensor, tmp_path / "good.gguf"))


def test_a_type_of_every_kind_is_tried() -> None:
    assert {file_of(name).tensors[TENSORS[0]].qtype for name in TYPES} == {Type[name] for name in TYPES}
