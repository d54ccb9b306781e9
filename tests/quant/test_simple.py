"""The codecs without a search, against vectors made by llama.cpp and against gguf-py."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from golden import GoldenCase, assert_decodes, assert_encodes, golden_cases
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Floats
from phi4conv.quant import BF16, F16, F32, Q8_0, QuantCodec, decode, encode

any_bits = arrays.arrays(np.uint32, (3, 64)).map(lambda bits: bits.view(np.float32))


@pytest.mark.parametrize("case", golden_cases("Q8_0"), ids=str)
def test_q8_0_is_byte_for_byte_ggmls(case: GoldenCase) -> None:
    assert_encodes(Q8_0, case)
    assert_decodes(Q8_0, case)


def test_there_are_vectors() -> None:
    assert len(golden_cases("Q8_0")) == 22


@given(any_bits)
def test_bf16_rounds_as_gguf_does_for_every_bit_pattern(weights: Floats) -> None:
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.BF16)
    assert np.array_equal(encode(BF16, weights), expected.view(np.uint8))


@given(arrays.arrays(np.float32, (2, 32), elements=st.floats(-65504, 65504, width=32)))
def test_f16_rounds_to_nearest_even(weights: Floats) -> None:
    assert np.array_equal(encode(F16, weights), weights.astype(np.float16).view(np.uint8))


@given(arrays.arrays(np.uint16, (2, 32)))
def test_every_16_bit_number_survives_a_round_trip(bits: np.ndarray) -> None:
    for codec in (F16, BF16):
        data = bits.view(np.uint8)
        weights = decode(codec, data)
        finite = np.isfinite(weights)
        assert np.array_equal(encode(codec, weights).view(np.uint16)[finite], bits[finite])


@given(any_bits)
def test_f32_is_the_identity(weights: Floats) -> None:
    assert decode(F32, encode(F32, weights)).tobytes() == weights.tobytes()


def test_q8_0_rounds_halves_away_from_zero() -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, :5] = [127, 0.5, -0.5, 1.5, 0.49999997]
    codes = encode(Q8_0, weights)[0, 2:].view(np.int8)
    assert codes[:5].tolist() == [127, 1, -1, 2, 0]


def test_q8_0_of_zeros_is_zeros() -> None:
    assert not encode(Q8_0, np.zeros((2, 64), np.float32)).any()


@pytest.mark.parametrize("codec", [F32, F16, BF16, Q8_0], ids=lambda codec: codec.name)
def test_the_largest_weight_stays_finite_and_the_next_does_not(codec: QuantCodec) -> None:
    largest = np.float32(codec.largest)
    if largest > codec.largest:
        largest = np.nextafter(largest, np.float32(0))
    row = np.full((1, 32), largest, np.float32)
    assert np.isfinite(decode(codec, encode(codec, row))).all()
    if codec is not F32:
        row[0, 0] = np.nextafter(largest, np.float32(np.inf))
        with np.errstate(over="ignore"):
            assert not np.isfinite(decode(codec, encode(codec, row))).all()


def test_shapes_beyond_two_axes_are_kept() -> None:
    weights = np.ones((2, 3, 64), np.float32)
    data = encode(Q8_0, weights)
    assert data.shape == (2, 3, 68)
    assert decode(Q8_0, data).shape == weights.shape


def test_wrong_widths_and_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        encode(Q8_0, np.ones((1, 33), np.float32))
    with pytest.raises(ValueError, match="float32"):
        encode(F16, np.ones((1, 32), np.float64))
    with pytest.raises(ValueError, match="multiple of 34"):
        decode(Q8_0, np.ones((1, 35), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        decode(Q8_0, np.ones((1, 34), np.int8))
