"""The scale searches of ../scale_search.py on sixteen groups at a time, one in each lane.

A tile of n elements is a flat float32 array of n times sixteen: element i of all groups at 16 * i. Sums run
over the elements in order, so each lane has the bytes of a group computed alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from phi4conv.arrays import Floats, Ints
from phi4conv.quant.fast.compiler import helper
from phi4conv.quant.fast.rounding import ONE, ZERO, larger, nearest_code, nearest_int, smaller
from phi4conv.quant.fast.vector import (
    LANES,
    F32x16,
    I32x16,
    Mask16,
    absolute,
    any_lane,
    load,
    rint,
    select,
    splat,
    store,
    to_float,
    to_int,
)


class Steps(NamedTuple):
    """The candidates of search A: number k of them maps the group's range to highest + first + spacing * k."""

    first: np.float32
    spacing: np.float32
    candidates: int


# The inverse scale of a group of zeros, whose codes are all 0. No other group has it.
NOTHING = np.float32(np.nan)

# Below this a group counts as all zero (ggml-quants.c GROUP_MAX_EPS).
EPSILON = np.float32(1e-15)


@helper
def fit_scale_and_minimum(
    x: Floats,
    w: Floats,
    codes: Floats,
    n: int,
    highest: int,
    steps: Steps,
    absolute_error: bool,
) -> tuple[F32x16, F32x16, F32x16, F32x16]:
    """Search A (make_qkx2_quants, make_qkx3_quants): x is about scale * code + minimum, with codes 0 .. highest.

    Args:
        x: Tile of the weights.
        w: Tile of how much each weight counts.
        codes: Tile of scratch.
        n: Elements in a group.
        highest: Highest code.
        steps: The candidates.
        absolute_error: Count |error| instead of its square.

    Returns:
        scale and minimum of the best candidate, then the inverse scale and the minimum that its codes came
        from: code = nearest_code((x - base) * inverse). A constant group has scale 0 and inverse 0.
    """
    smallest = largest = load(x, 0)
    sum_w = load(w, 0)
    sum_x = sum_w * smallest
    for i in range(1, n):
        v, weight = load(x, i * LANES), load(w, i * LANES)
        smallest = smaller(v, smallest)
        largest = larger(v, largest)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * v
    smallest = select(smallest > ZERO, ZERO, smallest)
    constant = largest <= smallest

    top = np.float32(highest)
    inverse = splat(top) / (largest - smallest)
    scale = ONE / inverse
    minimum = base = smallest
    for i in range(n):
        store(codes, i * LANES, nearest_code(inverse * (load(x, i * LANES) - minimum), 0, highest))
    best = weighted_error(x, w, codes, n, scale, minimum, absolute_error)

    for k in range(steps.candidates):
        # The minimum is that of the best candidate so far: the path matters, and candidates cannot be reordered.
        candidate = splat(steps.first + steps.spacing * np.float32(k) + top) / (largest - minimum)
        sum_l = sum_ll = sum_xl = splat(ZERO)
        for i in range(n):
            v = load(x, i * LANES)
            code = nearest_code(candidate * (v - minimum), 0, highest)
            store(codes, i * LANES, code)
            weighted = load(w, i * LANES) * code
            sum_l = sum_l + weighted
            sum_ll = sum_ll + weighted * code
            sum_xl = sum_xl + weighted * v
        determinant = sum_w * sum_ll - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_minimum = (sum_ll * sum_x - sum_l * sum_xl) / determinant
        positive = new_minimum > ZERO
        new_scale = select(positive, sum_xl / sum_ll, new_scale)
        new_minimum = select(positive, ZERO, new_minimum)
        error = weighted_error(x, w, codes, n, new_scale, new_minimum, absolute_error)
        wins = (determinant > ZERO) & (error < best)
        best = select(wins, error, best)
        inverse = select(wins, candidate, inverse)
        base = select(wins, minimum, base)
        scale = select(wins, new_scale, scale)
        minimum = select(wins, new_minimum, minimum)
    return select(constant, ZERO, scale), select(constant, smallest, minimum), select(constant, ZERO, inverse), base


@helper
def weighted_error(
    x: Floats, w: Floats, codes: Floats, n: int, scale: F32x16, minimum: F32x16, absolute_error: bool
) -> F32x16:
    """The sum of w * error**2 or w * |error| over a group, in order."""
    total = splat(ZERO)
    for i in range(n):
        error = scale * load(codes, i * LANES) + minimum - load(x, i * LANES)
        cost = absolute(error) if absolute_error else error * error
        total = total + load(w, i * LANES) * cost
    return total


@helper
def fit_nonnegative(values: Floats, w: Floats, n: int, highest: int, codes: Ints) -> F32x16:
    """Search B (make_qp_quants): values that are not negative are about scale * code, with codes 0 .. highest.

    Args:
        values: Tile of the n scales (or minima) of each superblock.
        w: Tile of how much each counts.
        n: Number of groups.
        highest: Highest code.
        codes: Tile, filled with 8-bit codes; those of negative values wrap.

    Returns:
        The scales.
    """
    largest = splat(ZERO)
    for i in range(n):
        largest = larger(load(values, i * LANES), largest)
    nothing = largest < EPSILON
    top = np.float32(highest)
    inverse = splat(top) / largest
    scale = ONE / inverse
    best = splat(ZERO)
    for i in range(n):
        v = load(values, i * LANES)
        error = v - scale * to_float(nearest_int(inverse * v) & 255)
        best = best + load(w, i * LANES) * error * error
    for k in range(-4, 5):
        if k != 0:
            candidate = splat(np.float32(0.1) * np.float32(k) + top) / largest
            scale = ONE / candidate
            total = splat(ZERO)
            for i in range(n):
                v = load(values, i * LANES)
                error = v - scale * at_most(nearest_int(candidate * v), highest)
                total = total + load(w, i * LANES) * error * error
            wins = total < best
            best = select(wins, total, best)
            inverse = select(wins, candidate, inverse)
    sum_xl = sum_ll = splat(ZERO)
    for i in range(n):
        v, weight = load(values, i * LANES), load(w, i * LANES)
        code = at_most(nearest_int(inverse * v), highest)
        store(codes, i * LANES, to_int(code) & 255)
        sum_xl = sum_xl + weight * v * code
        sum_ll = sum_ll + weight * code * code
    for _sweep in range(5):
        changed = False
        for i in range(n):
            v, weight = load(values, i * LANES), load(w, i * LANES)
            old = to_float(load(codes, i * LANES))
            rest_xl = sum_xl - weight * v * old
            rest_ll = sum_ll - weight * old * old
            code = at_most(nearest_int(v * rest_ll / rest_xl), highest)
            new_xl = rest_xl + weight * v * code
            new_ll = rest_ll + weight * code * code
            improves = (rest_xl > ZERO) & (rest_ll > ZERO) & (code != old)
            improves = improves & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
            store(codes, i * LANES, to_int(select(improves, code, old)) & 255)
            sum_xl = select(improves, new_xl, sum_xl)
            sum_ll = select(improves, new_ll, sum_ll)
            changed = changed or any_lane(improves)
        # A lane that did not change in a sweep does not in the next one either, so all may go on together.
        if not changed:
            break
    for i in range(n):
        store(codes, i * LANES, select(nothing, 0, load(codes, i * LANES)))
    scale = select(sum_ll > ZERO, sum_xl / sum_ll, ZERO)
    return select(nothing, ZERO, scale)


@helper
def at_most(code: I32x16, highest: int) -> F32x16:
    """An integer code limited from above, as a float."""
    return to_float(select(code > highest, highest, code))


@helper
def fit_symmetric(x: Floats, w: Floats, wx: Floats, n: int, highest: int, finite: bool) -> tuple[F32x16, F32x16]:
    """Search C (make_qx_quants): x is about scale * code, with codes -highest .. highest - 1.

    Args:
        x: Tile of the weights.
        w: Tile of how much each weight counts.
        wx: Tile of scratch.
        n: Elements in a group.
        highest: See above.
        finite: Whether all weights are known to be finite, so that no code can wrap.

    Returns:
        The scale and the inverse scale that the best codes came from: code = nearest_code(inverse * x). A group
        of zeros has scale 0 and inverse NOTHING.
    """
    extreme = extreme_value(x, n)
    nothing = absolute(extreme) < EPSILON
    top = np.float32(highest)
    for i in range(n):
        store(wx, i * LANES, load(w, i * LANES) * load(x, i * LANES))
    inverse = splat(-top) / extreme
    sum_xl, sum_ll = sums_of_codes(x, w, wx, n, highest, inverse, finite, False)
    scale = select(sum_ll != ZERO, sum_xl / sum_ll, ZERO)
    best = scale * sum_xl
    for k in range(-9, 10):
        if k != 0:
            candidate = splat(-(top + np.float32(0.1) * np.float32(k))) / extreme
            # The extreme weight gets -(highest + 0.1 * k): that of k = 5 is the first to round below -highest.
            sum_xl, sum_ll = sums_of_codes(x, w, wx, n, highest, candidate, finite, k >= 5)
            wins = (sum_ll > ZERO) & (sum_xl * sum_xl > best * sum_ll)
            scale = select(wins, sum_xl / sum_ll, scale)
            best = select(wins, scale * sum_xl, best)
            inverse = select(wins, candidate, inverse)
    return select(nothing, ZERO, scale), select(nothing, NOTHING, inverse)


@helper
def is_nothing(inverse: F32x16) -> Mask16:
    """Whether an inverse scale, of lanes or of one group, is NOTHING."""
    return inverse != inverse  # noqa: PLR0124  # as no other number


@helper
def extreme_value(x: Floats, n: int) -> F32x16:
    """The element of largest magnitude, with its sign; the first one of equals."""
    extreme = splat(ZERO)
    for i in range(n):
        v = load(x, i * LANES)
        extreme = select(absolute(v) > absolute(extreme), v, extreme)
    return extreme


@helper
def sums_of_codes(
    x: Floats, w: Floats, wx: Floats, n: int, highest: int, inverse: F32x16, finite: bool, below: bool
) -> tuple[F32x16, F32x16]:
    """The sums of w * x * code and w * code * code for the codes that an inverse scale gives.

    finite leaves out what only infinite weights need, and then below says whether a code can be under -highest.
    """
    sum_xl = sum_ll = splat(ZERO)
    lowest, limit = splat(np.float32(-highest)), splat(np.float32(highest - 1))
    for i in range(n):
        value = inverse * load(x, i * LANES)
        if finite:
            code = smaller(rint(value), limit)
            if below:
                code = larger(code, lowest)
        else:
            code = nearest_code(value, -highest, highest - 1)
        sum_xl = sum_xl + load(wx, i * LANES) * code
        sum_ll = sum_ll + load(w, i * LANES) * code * code
    return sum_xl, sum_ll


@helper
def fit_by_sweeps(x: Floats, n: int, highest: int, codes: Floats) -> F32x16:
    """Search D (make_q3_quants): as search C, by changing one code at a time while the fit gains.

    Args:
        x: Tile of the weights.
        n: Elements in a group.
        highest: Codes are -highest .. highest - 1.
        codes: Tile, filled with the codes plus highest; 0 for a group of zeros.

    Returns:
        The scale, 0 for a group of zeros.
    """
    extreme = extreme_value(x, n)
    nothing = absolute(extreme) < EPSILON
    inverse = splat(np.float32(-highest)) / extreme
    sum_xl = sum_ll = splat(ZERO)
    for i in range(n):
        v = load(x, i * LANES)
        weight = v * v
        code = nearest_code(inverse * v, -highest, highest - 1)
        store(codes, i * LANES, code)
        sum_xl = sum_xl + weight * v * code
        sum_ll = sum_ll + weight * code * code
    for _sweep in range(5):
        changed = False
        for i in range(n):
            v, old = load(x, i * LANES), load(codes, i * LANES)
            weight = v * v
            rest_xl = sum_xl - weight * v * old
            rest_ll = sum_ll - weight * old * old
            code = nearest_code(v * rest_ll / rest_xl, -highest, highest - 1)
            new_xl = rest_xl + weight * v * code
            new_ll = rest_ll + weight * code * code
            improves = (rest_xl > ZERO) & (code != old) & (new_ll > ZERO)
            improves = improves & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
            store(codes, i * LANES, select(improves, code, old))
            sum_xl = select(improves, new_xl, sum_xl)
            sum_ll = select(improves, new_ll, sum_ll)
            changed = changed or any_lane(improves)
        # A lane that did not change in a sweep does not in the next one either, so all may go on together.
        if not changed:
            break
    for i in range(n):
        store(codes, i * LANES, select(nothing, ZERO, load(codes, i * LANES) + np.float32(highest)))
    scale = select(sum_ll > ZERO, sum_xl / sum_ll, ZERO)
    return select(nothing, ZERO, scale)
