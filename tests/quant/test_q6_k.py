"""Q6_K's own layout and zeros."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Bytes
from phi4conv.quant.q6_k import Q6_K


@given(arrays.arrays(np.uint8, 208))
def test_every_weight_is_where_the_picture_says(noise: Bytes) -> None:
    block = np.concatenate([noise, np.array([0.5], np.float16).view(np.uint8)])
    weights = Q6_K.decode(block)
    scales = block[192:208].view(np.int8)
    for index in range(256):
        half, quarter, i = index // 128, index // 32 % 4, index % 32
        lower = block[64 * half + index % 64] >> 4 * (quarter // 2) & 15
        upper = block[128 + 32 * half + i] >> 2 * quarter & 3
        assert weights[index] == 0.5 * int(scales[index // 16]) * (int(lower | upper << 4) - 32)


def test_a_superblock_too_small_to_matter_is_all_zero_bytes() -> None:
    assert not Q6_K.encode(np.full(256, 1e-16, np.float32)).any()


def test_a_group_of_zeros_beside_others_has_codes_of_0() -> None:
    weights = np.zeros(256, np.float32)
    weights[16:] = np.random.default_rng(0).normal(size=240)
    data = Q6_K.encode(weights)
    assert data[192] == 0
    assert not (data[0:16] & 15).any()
    assert not (data[128:144] & 3).any()


def test_the_largest_scale_is_minus_128_of_d() -> None:
    data = Q6_K.encode(np.random.default_rng(0).normal(size=(50, 256)).astype(np.float32))
    scales = data[:, 192:208].view(np.int8)
    assert (scales.min(axis=1) == -128).all()


def test_weights_whose_squares_overflow_become_zeros_as_in_ggml() -> None:
    # A weight counts by its square, so the sums are infinite, no scale is a number, and C's comparisons pass over it.
    assert not Q6_K.encode(np.linspace(-1e30, 1e30, 256, dtype=np.float32)).any()
