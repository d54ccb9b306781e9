"""K-quants against the ggml that made the golden vectors, on fresh random weights with every run.

The seed is part of the test's name. To repeat a run: GGML_SEED=123 pytest -m slow tests/quant/test_against_ggml.py
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from ggml import Ggml
from llama_quantize import engine_or_skip

from phi4conv.arrays import Floats
from phi4conv.quant import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, QuantCodec, fast

pytestmark = pytest.mark.slow

SEED = int(os.environ["GGML_SEED"])

every_path = pytest.mark.parametrize("path", ["numpy", "numba"])
every_codec = pytest.mark.parametrize("codec", [Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0], ids=lambda codec: codec.name)

SHAPE = (128, 2048)  # 262,144 weights of each kind, each with four importance matrices and without

Random = np.random.Generator


def normal(size: float) -> Callable[[Random], Floats]:
    return lambda random: random.normal(0, size, SHAPE).astype(np.float32)


def heavy_tails(random: Random) -> Floats:
    return (0.02 * random.standard_t(2, SHAPE)).astype(np.float32)


def rounded_to_bf16(random: Random) -> Floats:
    bits = normal(0.02)(random).view(np.uint32) & 0xFFFF0000
    return bits.view(np.float32)


def near_constant_groups(random: Random) -> Floats:
    groups = random.normal(0, 1, (SHAPE[0], SHAPE[1] // 16)).repeat(16, axis=1)
    return (groups * (1 + 1e-6 * random.normal(size=SHAPE))).astype(np.float32)


def zeros_but_for(share: float) -> Callable[[Random], Floats]:
    """Zeros of both signs, and so large a share of other weights."""
    return lambda random: normal(1)(random) * (random.random(SHAPE) < share)


def one_signed(random: Random) -> Floats:
    """Rows of positive and rows of negative weights, with some 0 among the ones and -0 among the others."""
    rows = np.abs(normal(0.02)(random)) * (random.random(SHAPE) < 0.95)
    rows[::2] *= -1
    return rows


def few_values_with_ties(random: Random) -> Floats:
    return random.choice(np.array([-1, -0.5, -0.0, 0, 0.5, 1], np.float32), SHAPE)


def groups_of_many_sizes(random: Random) -> Floats:
    sizes = np.exp2(random.integers(-24, 10, (SHAPE[0], SHAPE[1] // 16))).repeat(16, axis=1)
    return (random.normal(size=SHAPE) * sizes).astype(np.float32)


def every_magnitude(random: Random) -> Floats:
    """Far beyond any model: from denormal numbers to those whose squares overflow."""
    return (random.choice([-1, 1], SHAPE) * 10.0 ** random.uniform(-44, 38, SHAPE)).astype(np.float32)


KINDS: dict[str, Callable[[Random], Floats]] = {
    "normal 0.02": normal(0.02),
    "normal 1": normal(1),
    "normal 1e-6": normal(1e-6),
    "heavy tails": heavy_tails,
    "bf16": rounded_to_bf16,
    "near constant": near_constant_groups,
    "sparse": zeros_but_for(0.05),
    "zeros": zeros_but_for(0.001),
    "one-signed": one_signed,
    "ties": few_values_with_ties,
    "many sizes": groups_of_many_sizes,
    "every magnitude": every_magnitude,
}


def importance_matrices(random: Random) -> dict[str, Floats | None]:
    width = SHAPE[1]
    smooth = random.uniform(0.1, 3, width).astype(np.float32)
    return {
        "no importance": None,
        "smooth importance": smooth,
        "importance with zeros": smooth * (random.random(width) < 0.5),
        "importance of few columns": smooth * (random.random(width) < 0.02),
        "extreme importance": (10.0 ** random.uniform(-12, 6, width)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    return Ggml(engine_or_skip().folder)


def computed_by(path: str, codec: QuantCodec, twin: Callable[[QuantCodec], QuantCodec]) -> QuantCodec:
    """The codec, or its compiled twin; the test is skipped where there is no numba."""
    if path == "numba":
        pytest.importorskip("numba")
        codec = twin(codec)
    assert codec.path == path, fast.why_not(codec)
    return codec


@pytest.mark.parametrize("seed", [SEED], ids=lambda seed: f"seed-{seed}")
@pytest.mark.parametrize("kind", KINDS)
@every_codec
@every_path
def test_fresh_weights_give_ggmls_bytes(ggml: Ggml, path: str, codec: QuantCodec, kind: str, seed: int) -> None:
    codec = computed_by(path, codec, fast.encoder)
    random = np.random.default_rng([seed, list(KINDS).index(kind)])
    weights = KINDS[kind](random)
    matrices = importance_matrices(random) if codec.uses_importance else {"no importance": None}
    for name, importance in matrices.items():
        expected = ggml.encode(codec, weights, importance)
        differing = (codec.encode(weights, importance) != expected).reshape(-1, codec.block_bytes).any(axis=1)
        assert not differing.any(), f"seed {seed}, {name}: {differing.sum()} of {len(differing)} superblocks differ"


@pytest.mark.parametrize("seed", [SEED], ids=lambda seed: f"seed-{seed}")
@every_codec
@every_path
def test_fresh_bytes_decode_to_ggmls_weights(ggml: Ggml, path: str, codec: QuantCodec, seed: int) -> None:
    codec = computed_by(path, codec, fast.decoder)
    blocks = np.random.default_rng(seed).integers(
        0, 256, (4096, 256 // codec.block_weights, codec.block_bytes), np.uint8
    )
    for offset in codec.scale_offsets:
        blocks[..., offset + 1] &= 0xBF  # no NaN and no infinity
    blocks = blocks.reshape(len(blocks), -1)
    expected = ggml.decode(codec, blocks)
    np.testing.assert_array_equal(codec.decode(blocks).view(np.uint32), expected.view(np.uint32))
