"""The types that K-quants fall back to."""

from __future__ import annotations

import numpy as np
import pytest
from golden import GoldenCase, assert_decodes, golden_cases

from phi4conv.arrays import Bytes
from phi4conv.quant import QuantCodec
from phi4conv.quant.legacy import Q4_0, Q4_1, Q5_0, Q5_1

LEGACY = {codec.name: codec for codec in (Q4_0, Q4_1, Q5_0, Q5_1)}
CASES = golden_cases(*LEGACY, importance=False)

# Of blocks in which all weights, or the smallest ones, are zeros of both signs, another zero than ggml's may be taken.
SIGNED_ZEROS = "sparse"


def without_signs_of_zero(codec: QuantCodec, data: Bytes) -> Bytes:
    """The blocks with every scale or minimum of -0.0 made 0.0."""
    blocks: Bytes = data.reshape(-1, codec.block_bytes).copy()
    for offset in codec.scale_offsets:
        scales = blocks[:, offset : offset + 2].copy().view(np.float16)
        blocks[:, offset : offset + 2] = (scales + np.float16(0)).view(np.uint8)
    return blocks


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != SIGNED_ZEROS], ids=str)
def test_bytes_without_importance_are_ggmls(case: GoldenCase) -> None:
    np.testing.assert_array_equal(LEGACY[case.type_name].encode(case.weights), case.encoded)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == SIGNED_ZEROS], ids=str)
def test_bytes_of_zeros_of_both_signs_are_ggmls_but_for_signs_of_zero(case: GoldenCase) -> None:
    codec = LEGACY[case.type_name]
    encoded = codec.encode(case.weights)
    np.testing.assert_array_equal(without_signs_of_zero(codec, encoded), without_signs_of_zero(codec, case.encoded))
    np.testing.assert_array_equal(codec.decode(encoded), codec.decode(case.encoded))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decoded_weights_are_ggmls(case: GoldenCase) -> None:
    assert_decodes(LEGACY[case.type_name], case)


def test_there_are_vectors_of_every_type() -> None:
    assert len(CASES) == 4 * 23


@pytest.mark.parametrize("codec", LEGACY.values(), ids=LEGACY)
def test_importance_changes_nothing(codec: QuantCodec) -> None:
    weights = np.random.default_rng(0).normal(size=(2, 96)).astype(np.float32)
    importance = np.linspace(0, 1, 96, dtype=np.float32)
    np.testing.assert_array_equal(codec.encode(weights, importance), codec.encode(weights))


@pytest.mark.parametrize("codec", LEGACY.values(), ids=LEGACY)
def test_an_overflowing_scale_is_found(codec: QuantCodec) -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[1, 40] = 1e9
    assert codec.broken_block(codec.encode(weights)) == (1, 1)
