"""What holds for every K-quant: llama.cpp's bytes, and rows that know nothing of their neighbours."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from golden import GoldenCase, assert_decodes, assert_encodes, golden_cases
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant import QuantCodec, tiles
from phi4conv.quant.q2_k import Q2_K
from phi4conv.quant.q3_k import Q3_K
from phi4conv.quant.q4_k import Q4_K
from phi4conv.quant.q5_k import Q5_K
from phi4conv.quant.q6_k import Q6_K

K_QUANTS = {codec.name: codec for codec in (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)}

# The largest error of a weight, in parts of its superblock's largest magnitude; about twice what was ever seen.
WORST_ERROR = {"Q2_K": 1.0, "Q3_K": 0.5, "Q4_K": 0.2, "Q5_K": 0.1, "Q6_K": 0.04}

every_k_quant = pytest.mark.parametrize("codec", K_QUANTS.values(), ids=K_QUANTS)

ordinary_rows = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.just(512)), elements=st.floats(-4, 4, width=32)
)


@pytest.mark.parametrize("case", golden_cases(*K_QUANTS), ids=str)
def test_bytes_are_ggmls(case: GoldenCase) -> None:
    assert_encodes(K_QUANTS[case.type_name], case)


@pytest.mark.parametrize("case", golden_cases(*K_QUANTS, importance=False), ids=str)
def test_decoded_weights_are_ggmls(case: GoldenCase) -> None:
    assert_decodes(K_QUANTS[case.type_name], case)


def test_there_are_vectors_of_every_type() -> None:
    assert len(golden_cases(*K_QUANTS)) == 5 * 23 * 4


@every_k_quant
@given(ordinary_rows, st.booleans())
def test_a_row_is_encoded_alike_alone_and_among_others(codec: QuantCodec, rows: Floats, important: bool) -> None:
    importance = np.linspace(0, 2, 512, dtype=np.float32) if important else None
    together = codec.encode(rows, importance)
    for row, data in zip(rows, together, strict=True):
        np.testing.assert_array_equal(codec.encode(row, importance), data)


@every_k_quant
def test_a_superblock_is_encoded_alike_alone_and_in_a_full_tile(codec: QuantCodec) -> None:
    superblocks = np.random.default_rng(1).normal(0, 0.02, (tiles.TILE + 3, 256)).astype(np.float32)
    importance = np.linspace(0.5, 2, 256, dtype=np.float32)
    for given_importance in (None, importance):
        together = codec.encode(superblocks, given_importance)
        for place in (0, 1, tiles.TILE - 1, tiles.TILE, tiles.TILE + 2):
            np.testing.assert_array_equal(codec.encode(superblocks[place], given_importance), together[place])
        np.testing.assert_array_equal(codec.encode(superblocks[: tiles.TILE + 1]), codec.encode(superblocks)[:-2])


@every_k_quant
def test_importance_restarts_with_every_row_across_tiles(codec: QuantCodec) -> None:
    rows = np.random.default_rng(2).normal(0, 0.02, (tiles.TILE // 3 + 2, 768)).astype(np.float32)
    importance = np.linspace(0.1, 3, 768, dtype=np.float32)
    last_alone = codec.encode(rows[-1:], importance)
    np.testing.assert_array_equal(codec.encode(rows, importance)[-1:], last_alone)
    assert not np.array_equal(codec.encode(rows[-1:]), last_alone)


@every_k_quant
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-2, 1.0, 1e3]), mean=st.sampled_from([-1, 0, 0.5]))
def test_errors_are_bounded(codec: QuantCodec, seed: int, size: float, mean: float) -> None:
    normal = np.random.default_rng(seed).normal(mean, 1, (8, 256))
    weights = (size * normal).astype(np.float32)
    errors = np.abs(codec.decode(codec.encode(weights)) - weights).max(axis=1)
    assert (errors <= WORST_ERROR[codec.name] * np.abs(weights).max(axis=1)).all()


@every_k_quant
@given(ordinary_rows)
def test_ordinary_weights_stay_finite(codec: QuantCodec, rows: Floats) -> None:
    data = codec.encode(rows)
    assert np.isfinite(codec.decode(data)).all()
    assert codec.broken_block(data) is None


@every_k_quant
def test_an_overflowing_scale_is_found(codec: QuantCodec) -> None:
    weights = np.zeros((2, 512), np.float32)
    weights[1, 300] = -1e10
    assert codec.broken_block(codec.encode(weights)) == (1, 1)


@every_k_quant
@given(arrays.arrays(np.uint8, (3, 256)))
def test_any_bytes_decode_as_in_gguf(codec: QuantCodec, noise: Bytes) -> None:
    blocks = noise[:, : codec.block_bytes].copy()
    for offset in codec.scale_offsets:
        blocks[:, offset + 1] &= 0xBF  # no NaN and no infinity, whose signs and payloads are nobody's concern
    expected = gguf.quants.dequantize(blocks, codec.qtype)
    np.testing.assert_array_equal(codec.decode(blocks).view(np.uint32), expected.view(np.uint32))


@every_k_quant
def test_no_rows_give_no_bytes(codec: QuantCodec) -> None:
    assert codec.encode(np.zeros((0, 512), np.float32)).shape == (0, 2 * codec.block_bytes)
    assert codec.encode(np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert codec.decode(np.zeros((0, 2 * codec.block_bytes), np.uint8)).shape == (0, 512)


@every_k_quant
def test_rows_of_no_whole_superblock_are_refused(codec: QuantCodec) -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        codec.encode(np.zeros((1, 255), np.float32))


@every_k_quant
def test_zeros_decode_to_zeros(codec: QuantCodec) -> None:
    assert not codec.decode(codec.encode(np.zeros((2, 256), np.float32))).any()
