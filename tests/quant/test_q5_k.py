"""Q5_K's own layout."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Bytes
from phi4conv.quant.q5_k import Q5_K
from phi4conv.quant.six_bit_scales import pack_six_bits


@given(arrays.arrays(np.uint8, 160))
def test_every_weight_is_where_the_picture_says(codes: Bytes) -> None:
    scales, minima = np.arange(1, 65, 8, dtype=np.uint8), np.arange(63, 0, -8, dtype=np.uint8)
    header = np.array([0.5, 2.0], np.float16).view(np.uint8)
    packed = pack_six_bits(scales[:, None], minima[:, None])[:, 0]
    weights = Q5_K.decode(np.concatenate([header, packed, codes]))
    for index in range(256):
        group, i = index // 32, index % 32
        code = codes[32 + group // 2 * 32 + i] >> 4 * (group % 2) & 15 | (codes[i] >> group & 1) << 4
        assert weights[index] == 0.5 * scales[group] * code - 2.0 * minima[group]
