"""Q4_K's own layout, and the six-bit scales that it shares with Q5_K."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Bytes
from phi4conv.quant.q4_k import Q4_K
from phi4conv.quant.six_bit_scales import pack_six_bits, unpack_six_bits


@given(arrays.arrays(np.uint8, 128))
def test_every_weight_is_where_the_picture_says(nibbles: Bytes) -> None:
    scales, minima = np.arange(1, 65, 8, dtype=np.uint8), np.arange(63, 0, -8, dtype=np.uint8)
    header = np.array([0.5, 2.0], np.float16).view(np.uint8)
    packed = pack_six_bits(scales[:, None], minima[:, None])[:, 0]
    weights = Q4_K.decode(np.concatenate([header, packed, nibbles]))
    for index in range(256):
        code = nibbles[index // 64 * 32 + index % 32] >> 4 * (index // 32 % 2) & 15
        group = index // 32
        assert weights[index] == 0.5 * scales[group] * code - 2.0 * minima[group]


@given(arrays.arrays(np.uint8, (2, 8, 3)))
def test_six_bit_scales_survive_packing(noise: Bytes) -> None:
    scales, minima = noise & 63
    unpacked_scales, unpacked_minima = unpack_six_bits(pack_six_bits(scales, minima))
    np.testing.assert_array_equal(unpacked_scales, scales)
    np.testing.assert_array_equal(unpacked_minima, minima)


def test_a_scale_beyond_six_bits_spills_into_the_group_four_places_on() -> None:
    scales = np.zeros((8, 1), np.uint8)
    scales[1] = 255
    unpacked, minima = unpack_six_bits(pack_six_bits(scales, np.zeros_like(scales)))
    assert unpacked[:, 0].tolist() == [0, 63, 0, 0, 0, 48, 0, 0]
    assert not minima.any()


def test_codes_of_the_search_stay_where_the_scale_rounds_to_zero() -> None:
    weights = np.tile(np.linspace(0, 1e-9, 16, dtype=np.float32), 16)
    data = Q4_K.encode(weights)
    assert not data[0:4].any()
    assert data[16:32].tolist() == [code | code << 4 for code in range(16)]


def test_a_group_of_one_negative_value_has_a_minimum_and_no_scale() -> None:
    weights = np.full(256, -0.75, np.float32)
    data = Q4_K.encode(weights)
    assert not data[0:2].any()
    assert not data[16:].any()
    np.testing.assert_allclose(Q4_K.decode(data), weights, rtol=1e-3)
