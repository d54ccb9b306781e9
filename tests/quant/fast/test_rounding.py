"""ggml's roundings on sixteen lanes, against numpy, for bit patterns of every kind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("numba")

from phi4conv.arrays import Floats, Ints
from phi4conv.quant.fast.compiler import kernel
from phi4conv.quant.fast.rounding import f16_bits, f16_value, nearest_code, nearest_int
from phi4conv.quant.fast.vector import LANES, load, store

# Not every NaN: arithmetic makes only the default one, and what a sum keeps of another is the machine's choice.
any_numbers = arrays.arrays(
    np.float32, LANES, elements=st.floats(width=32, allow_nan=False) | st.just(np.float32(np.nan))
)


@kernel
def halves(values: Floats, out: Ints) -> None:
    for at in range(0, values.size, LANES):
        store(out, at, f16_bits(load(values, at)))


@kernel
def values_of_halves(bits: Ints, out: Floats) -> None:
    for at in range(0, bits.size, LANES):
        store(out, at, f16_value(load(bits, at)))


@kernel
def nearest_ints(values: Floats, out: Ints) -> None:
    for at in range(0, values.size, LANES):
        store(out, at, nearest_int(load(values, at)))


@kernel
def nearest_codes(values: Floats, out: Floats) -> None:
    for at in range(0, values.size, LANES):
        store(out, at, nearest_code(load(values, at), -32, 31))


def as_c_does(values: Floats) -> Ints:
    """nearest_int of ggml-quants.c, in integer arithmetic on the bits of one sum."""
    with np.errstate(all="ignore"):
        shifted = values + np.float32(12582912)
    pattern: npt.NDArray[np.int32] = shifted.view(np.int32) & 0x007FFFFF
    return pattern - 0x00400000


@given(any_numbers)
def test_nearest_int_wraps_as_ggmls_does(values: Floats) -> None:
    out = np.empty(LANES, np.int32)
    nearest_ints(values, out)
    assert out.tolist() == as_c_does(values).tolist()


@given(any_numbers)
def test_codes_are_nearest_int_clamped(values: Floats) -> None:
    out = np.empty(LANES, np.float32)
    nearest_codes(values, out)
    assert out.tolist() == np.clip(as_c_does(values), -32, 31).tolist()


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1e-5, 1e-3, 1, 1e3, 70000])
def test_float16_is_rounded_to_nearest_even(scale: float) -> None:
    values = (np.random.default_rng(1).standard_normal(1 << 16) * scale).astype(np.float32)
    out = np.empty(values.size, np.int32)
    halves(values, out)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    assert np.array_equal(out, expected)


def test_float16_halfway_cases_and_limits() -> None:
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (finite[:-1] + finite[1:]) / 2
    edges = np.array(
        [0.0, -0.0, 65504, 65519.99, 65520, np.inf, -np.inf, np.nan, 2**-24, 2**-25, 2**-25 * 1.0001], np.float32
    )
    values = np.concatenate([halfway, np.nextafter(halfway, np.float32(0)), edges])
    values = np.concatenate([values, -values])
    values = np.pad(values, (0, -values.size % LANES))
    out = np.empty(values.size, np.int32)
    halves(values, out)
    with np.errstate(over="ignore"):
        assert np.array_equal(out, values.astype(np.float16).view(np.uint16))


def test_every_float16_is_read_back_exactly() -> None:
    bits = np.array([b for b in range(1 << 16) if b & 0x7C00 != 0x7C00 or b & 0x3FF == 0], np.int32)
    bits = np.pad(bits, (0, -bits.size % LANES))
    out = np.empty(bits.size, np.float32)
    values_of_halves(bits, out)
    assert out.tobytes() == bits.astype(np.uint16).view(np.float16).astype(np.float32).tobytes()
