"""What Q2_K, Q4_K and Q5_K share: groups with a scale and a minimum, sixteen superblocks at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from phi4conv.arrays import Floats, Ints
from phi4conv.quant.fast.compiler import helper
from phi4conv.quant.fast.rounding import ZERO, larger, nearest_int
from phi4conv.quant.fast.searches import Steps, fit_nonnegative, fit_scale_and_minimum
from phi4conv.quant.fast.superblocks import Batch, store_scale, sum_of_group
from phi4conv.quant.fast.vector import LANES, load, select, splat, store


class Fits(NamedTuple):
    """What search A found: tiles with an element for each group.

    Attributes:
        scales: The scale of each group.
        minima: How far below zero the group's range begins; not negative.
        inverses, bases: Where the codes of the search come from: nearest_code(inverse * (x - base)).
        weights: How much the group counts: the sum over its weights.
    """

    scales: Floats
    minima: Floats
    inverses: Floats
    bases: Floats
    weights: Floats


class Header(NamedTuple):
    """What the superblocks will hold beside the codes of the weights.

    Attributes:
        halves: (2, 16) float16 bits of d and dmin.
        readings: (2, 16) d and dmin as they are read back.
        scale_codes, min_codes: Tiles with an element for each group, cut to 8 bits.
    """

    halves: Ints
    readings: Floats
    scale_codes: Ints
    min_codes: Ints


@helper
def new_fits(groups: int) -> Fits:
    """Room for the fits of so many groups."""
    room = np.empty((5, groups * LANES), np.float32)
    return Fits(room[0], room[1], room[2], room[3], room[4])


@helper
def new_header(groups: int) -> Header:
    """Room for the headers of sixteen superblocks of so many groups."""
    codes = np.empty((2, groups * LANES), np.int32)
    return Header(np.empty((2, LANES), np.int32), np.empty((2, LANES), np.float32), codes[0], codes[1])


@helper
def fit_group(batch: Batch, group: int, n: int, highest: int, steps: Steps, absolute_error: bool, fits: Fits) -> None:
    """Search A on group number `group` of n weights."""
    x, w = batch.x[group * n * LANES :], batch.w[group * n * LANES :]
    scale, minimum, inverse, base = fit_scale_and_minimum(x, w, batch.spare, n, highest, steps, absolute_error)
    at = group * LANES
    store(fits.scales, at, scale)
    store(fits.minima, at, -minimum)
    store(fits.inverses, at, inverse)
    store(fits.bases, at, base)
    store(fits.weights, at, sum_of_group(w, n))


@helper
def quantize_by_largest(values: Floats, groups: int, highest: int, codes: Ints, halves: Ints, readings: Floats) -> None:
    """Scales (or minima) as codes of the largest one, which gets the highest code; it over highest is d."""
    largest = splat(ZERO)
    for group in range(groups):
        largest = larger(load(values, group * LANES), largest)
    inverse = select(largest > ZERO, splat(np.float32(highest)) / largest, ZERO)
    for group in range(groups):
        # ggml keeps the code in a byte: that of a negative scale, which the fit can produce, wraps.
        store(codes, group * LANES, nearest_int(inverse * load(values, group * LANES)) & 255)
    store_scale(largest / np.float32(highest), halves, readings)


@helper
def quantize_by_search(
    values: Floats, weights: Floats, groups: int, highest: int, codes: Ints, halves: Ints, readings: Floats
) -> None:
    """Scales (or minima) as codes of the scale that search B finds."""
    scale = fit_nonnegative(values, weights, groups, highest, codes)
    store_scale(scale, halves, readings)


@helper
def quantize_scales(fits: Fits, groups: int, highest: int, by_search: bool, header: Header) -> None:
    """d, dmin and the codes of all scales and minima."""
    if by_search:
        quantize_by_search(
            fits.scales, fits.weights, groups, highest, header.scale_codes, header.halves[0], header.readings[0]
        )
        quantize_by_search(
            fits.minima, fits.weights, groups, highest, header.min_codes, header.halves[1], header.readings[1]
        )
    else:
        quantize_by_largest(fits.scales, groups, highest, header.scale_codes, header.halves[0], header.readings[0])
        quantize_by_largest(fits.minima, groups, highest, header.min_codes, header.halves[1], header.readings[1])
