"""Q3_K's own layout and scales."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Bytes
from phi4conv.quant.q3_k import Q3_K, pack_scales, unpack_scales


@given(arrays.arrays(np.uint8, 108))
def test_every_weight_is_where_the_picture_says(noise: Bytes) -> None:
    block = np.concatenate([noise, np.array([0.5], np.float16).view(np.uint8)])
    weights = Q3_K.decode(block)
    for index in range(256):
        half, quarter, i = index // 128, index // 32 % 4, index % 32
        upper_bit = block[i] >> index // 32 & 1
        code = upper_bit << 2 | (block[32 + 32 * half + i] >> 2 * quarter & 3)
        group = index // 16
        lower = block[96 + group % 8] >> 4 * (group // 8) & 15
        scale = int(lower) | int(block[104 + group % 4] >> 2 * (group // 4) & 3) << 4
        assert weights[index] == 0.5 * (scale - 32) * (int(code) - 4)


@given(arrays.arrays(np.uint8, (16, 3)))
def test_scales_survive_packing(noise: Bytes) -> None:
    scales: Bytes = np.bitwise_and(noise, 63)
    np.testing.assert_array_equal(unpack_scales(pack_scales(scales).T), scales.T)


def test_a_superblock_of_zeros_is_all_zero_bytes_but_decodes_to_zero() -> None:
    assert not Q3_K.encode(np.zeros(256, np.float32)).any()


def test_a_group_of_zeros_beside_others_has_code_0_and_scale_0() -> None:
    weights = np.zeros(256, np.float32)
    weights[16:] = np.random.default_rng(0).normal(size=240)
    data = Q3_K.encode(weights)
    assert data[96] & 15 == 0
    assert data[104] & 3 == 2  # 32, which stands for 0
    assert not (data[32:48] & 3).any()
    assert not (data[0:16] & 1).any()
