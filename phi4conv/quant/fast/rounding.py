"""Rounding as ggml rounds, on sixteen lanes."""

from __future__ import annotations

import numpy as np

from phi4conv.quant.fast.compiler import helper
from phi4conv.quant.fast.vector import F32x16, I32x16, bits_of, from_bits, select, to_float

ZERO = np.float32(0)
ONE = np.float32(1)

# 1.5 * 2**23: added to a small float it leaves the nearest integer in the low bits (ggml-quants.c nearest_int).
MAGIC = np.float32(12582912.0)
MAGIC_BITS = 0x4B400000
EXPONENT_OF_MAGIC = 0x4B000000
LOW_23 = 0x7FFFFF


@helper
def nearest_code(value: F32x16, lowest: int, highest: int) -> F32x16:
    """nearest_int, then clamped to lowest .. highest, as a float.

    Outside of ±2**22 nearest_int wraps, for infinities and NaN too. The mask restores exactly that: what is
    left is the bit pattern of a float between 2**23 and 2**24, and those are in the order of their patterns.
    """
    pattern = (bits_of(value + MAGIC) & LOW_23) | EXPONENT_OF_MAGIC
    pattern = select(pattern < MAGIC_BITS + lowest, MAGIC_BITS + lowest, pattern)
    pattern = select(pattern > MAGIC_BITS + highest, MAGIC_BITS + highest, pattern)
    return from_bits(pattern) - MAGIC


@helper
def nearest_int(value: F32x16) -> I32x16:
    """Ggml's nearest_int: halves to even, wrapped outside of ±2**22."""
    return (bits_of(value + MAGIC) & LOW_23) - 0x400000


@helper
def smaller(one: F32x16, other: F32x16) -> F32x16:
    """The smaller lane; the second of equals."""
    return select(one < other, one, other)


@helper
def larger(one: F32x16, other: F32x16) -> F32x16:
    """The larger lane; the second of equals."""
    return select(one > other, one, other)


# float16 by integer arithmetic, which every machine has: 1 sign, 5 exponent and 10 fraction bits.
F16_SMALLEST_NORMAL = np.float32(2.0**-14)
F16_OVERFLOW = np.float32(65520.0)
F16_SUBNORMAL_UNIT = np.float32(2.0**-24)
F16_INFINITY = 0x7C00
F16_NAN = 0x7E00
EXPONENT_SHIFT = (127 - 15) << 23  # from float32's exponent bias to float16's


@helper
def f16_bits(value: F32x16) -> I32x16:
    """The float16 nearest to each lane, halves to even, as bits."""
    bits = bits_of(value)
    sign = (bits >> 16) & 0x8000
    bits = bits & 0x7FFFFFFF
    magnitude = from_bits(bits)
    # Half a unit of the last kept bit, less one, plus that bit: carries exactly when nearest-even rounds up.
    normal = (bits - EXPONENT_SHIFT + 0xFFF + ((bits >> 13) & 1)) >> 13
    # 0.5 has float16's subnormal unit 2**-24 as the unit of its last bit, so that the sum is rounded to it.
    subnormal = bits_of(magnitude + np.float32(0.5)) - 0x3F000000
    half = select(magnitude < F16_SMALLEST_NORMAL, subnormal, normal)
    half = select(magnitude >= F16_OVERFLOW, F16_INFINITY, half)
    return sign | select(magnitude != magnitude, F16_NAN, half)  # noqa: PLR0124  # only a NaN differs from itself


@helper
def f16_value(half: I32x16) -> F32x16:
    """The number that float16 bits stand for, infinities and NaN included."""
    sign = (half & 0x8000) << 16
    rest = half & 0x7FFF
    normal = from_bits((rest << 13) + EXPONENT_SHIFT)
    subnormal = to_float(rest) * F16_SUBNORMAL_UNIT
    value = select(rest < 0x0400, subnormal, normal)
    value = select(rest >= F16_INFINITY, from_bits((rest << 13) | 0x7F800000), value)
    return from_bits(bits_of(value) | sign)
