"""Q2_K's own layout."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Bytes
from phi4conv.quant.q2_k import Q2_K


@given(arrays.arrays(np.uint8, 80))
def test_every_weight_is_where_the_picture_says(noise: Bytes) -> None:
    block = np.concatenate([noise, np.array([0.5, 2.0], np.float16).view(np.uint8)])
    weights = Q2_K.decode(block)
    for index in range(256):
        half, quarter, i = index // 128, index // 32 % 4, index % 32
        code = block[16 + 32 * half + i] >> 2 * quarter & 3
        group = block[index // 16]
        assert weights[index] == 0.5 * (group & 15) * code - 2.0 * (group >> 4)


def test_codes_of_the_search_stay_where_the_scale_rounds_to_zero() -> None:
    weights = np.linspace(0, 1e-9, 256, dtype=np.float32)
    data = Q2_K.encode(weights)
    assert not data[80:84].any()
    assert data[16:80].any()
