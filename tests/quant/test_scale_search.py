"""The arithmetic under the searches: order of sums, rounding, and what each search does at its edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from phi4conv.arrays import Floats
from phi4conv.quant.scale_search import Steps, first_largest, fit_scale, fit_scale_and_min, multiples_of_one
from phi4conv.quant.sweeps import fit_positive_scales, fit_scale_by_sweeps
from phi4conv.quant.tiles import (
    Groups,
    in_order,
    nearest_int,
    sum_in_order,
    to_columns,
    within_rounding_limit,
    wrapped_to_byte,
)

any_bits = arrays.arrays(np.uint32, 64).map(lambda bits: bits.view(np.float32))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Divisions by zero and the like are part of the searches; encode_in_tiles silences them."""
    with np.errstate(all="ignore"):
        yield


def column(*values: float) -> Floats:
    return np.array(values, np.float32)[:, None]


@pytest.mark.parametrize("terms", [8, 16, 32, 256])
@pytest.mark.parametrize("columns", [1, 2, 3, 8, 9, 100])
def test_sums_run_from_the_first_to_the_last(terms: int, columns: int) -> None:
    values = np.random.default_rng(terms * columns).standard_cauchy((terms, columns)).astype(np.float32)
    for index, total in enumerate(sum_in_order(values)):
        expected = np.float32(0)
        for value in values[:, index]:
            expected += value
        assert total == expected


def test_the_order_of_a_sum_matters() -> None:
    terms = np.full((32, 1), 2**-24, np.float32)
    terms[0] = 1
    assert sum_in_order(terms)[0] == 1
    assert terms.sum() > 1


@given(any_bits)
def test_nearest_int_is_ggmls_for_every_bit_pattern(values: Floats) -> None:
    for value, rounded in zip(values, nearest_int(values), strict=True):
        shifted = int((value + np.float32(12582912)).view(np.int32))
        assert rounded == (shifted & 0x007FFFFF) - 0x00400000


@given(arrays.arrays(np.float32, 64, elements=st.floats(-4194302, 4194302, width=32)))
def test_rint_rounds_like_nearest_int_within_the_limit(values: Floats) -> None:
    assert within_rounding_limit(values)
    np.testing.assert_array_equal(np.rint(values), nearest_int(values))


@pytest.mark.parametrize("value", [4194303.5, -4194304.5, np.inf, -np.inf, np.nan])
def test_beyond_the_limit_rint_is_not_used(value: float) -> None:
    assert not within_rounding_limit(np.array([[0.0, value]], np.float32))


def test_integers_wrap_as_in_a_uint8() -> None:
    assert wrapped_to_byte(np.array([-1, 0, 255, 256, -256], np.float32)).tolist() == [255, 0, 255, 0, 0]


@pytest.mark.parametrize("size", [16, 32])
def test_columns_are_groups_and_come_back_in_order(size: int) -> None:
    blocks = np.arange(3 * 256, dtype=np.float32).reshape(3, 256) % 251
    columns = to_columns(blocks, size)
    assert columns[:, 3 * 2 + 1].tolist() == blocks[1, 2 * size : 3 * size].tolist()  # group 2 of superblock 1
    np.testing.assert_array_equal(in_order(columns, 3), blocks.T)


def test_the_largest_magnitude_is_the_first_of_equals_and_never_nan() -> None:
    x = np.array([[1, -2, 0, np.nan], [-2, 2, -0.0, 3], [2, 1, 0, -4]], np.float32)
    assert first_largest(Groups.of_columns(x)).tolist() == [-2, -2, 0, -4]


STEPS = Steps(first=-1.0, spacing=0.1, count=21)


def test_step_widths_are_counted_in_float32() -> None:
    divisors = Steps(first=-0.9, spacing=0.05, count=37).divisors(15)
    assert divisors[1] == np.float32(np.float32(-0.9) + np.float32(0.05)) + np.float32(15)
    assert len(divisors) == 37


@pytest.mark.parametrize(("value", "minimum"), [(0.0, 0.0), (-0.5, 0.5)])
def test_a_group_without_a_range_has_scale_0(value: float, minimum: float) -> None:
    groups = Groups.of_columns(np.full((32, 2), value, np.float32))
    weights = np.ones_like(groups.x)
    fit = fit_scale_and_min(groups, weights, sum_in_order(weights), 15, STEPS)
    assert fit.scale.tolist() == [0, 0]
    assert fit.minimum.tolist() == [minimum, minimum]
    assert not fit.final_codes(groups, fit.scale, fit.minimum, 15).any()


def test_positive_groups_have_minimum_0() -> None:
    groups = Groups.of_columns(np.linspace(1, 2, 64, dtype=np.float32).reshape(32, 2))
    weights = np.ones_like(groups.x)
    fit = fit_scale_and_min(groups, weights, sum_in_order(weights), 15, STEPS)
    assert fit.minimum.tolist() == [0, 0]


def test_weights_on_a_grid_are_found_exactly() -> None:
    codes = np.arange(32, dtype=np.float32)[:, None] % 16
    groups = Groups.of_columns(np.float32(0.25) * codes - np.float32(1.5))
    weights = np.ones_like(groups.x)
    fit = fit_scale_and_min(groups, weights, sum_in_order(weights), 15, STEPS)
    assert (fit.scale[0], fit.minimum[0]) == (0.25, 1.5)
    np.testing.assert_array_equal(fit.final_codes(groups, fit.scale, fit.minimum, 15), codes)


def test_the_largest_magnitude_of_a_signed_group_gets_the_lowest_code() -> None:
    groups = Groups.of_columns(np.concatenate([column(8), column(*range(-7, 8))]))
    fit = fit_scale(groups, np.ones_like(groups.x), 32)
    assert fit.scale[0] < 0
    assert fit.searched_codes(groups, 32)[0, 0] == 0


def test_negligible_groups_have_scale_0_and_codes_0() -> None:
    groups = Groups.of_columns(np.full((16, 1), 9e-16, np.float32))
    fit = fit_scale(groups, np.ones_like(groups.x), 32)
    assert fit.scale[0] == 0
    assert not fit.searched_codes(groups, 32).any()
    scale, codes = fit_scale_by_sweeps(groups, 4)
    assert scale[0] == 0
    assert not codes.any()


def test_sweeps_find_weights_on_a_grid() -> None:
    codes = column(-4, *range(-4, 4), *range(-3, 4))
    scale, stored = fit_scale_by_sweeps(Groups.of_columns(codes * np.float32(0.5)), 4)
    assert scale[0] == 0.5
    np.testing.assert_array_equal(stored - 4, codes)


def test_scales_become_multiples_of_the_largest() -> None:
    d, codes = multiples_of_one(column(0.63, 0.32, 0.0), 63)
    assert d[0] == np.float32(0.63) / np.float32(63)
    assert codes[:, 0].tolist() == [63, 32, 0]


def test_a_negative_scale_wraps() -> None:
    _, codes = multiples_of_one(column(0.63, -0.02), 63)
    assert codes[:, 0].tolist() == [63, 254]


def test_scales_that_are_all_zero_or_negative_have_none_in_common() -> None:
    d, codes = multiples_of_one(column(0, -1), 63)
    assert d[0] == 0
    assert not codes.any()


def test_positive_scales_on_a_grid_are_found_exactly() -> None:
    wanted = column(63, 1, 0, 32, 5, 17, 44, 2)
    scale, codes = fit_positive_scales(wanted * np.float32(0.125), np.ones_like(wanted), 63)
    assert scale[0] == 0.125
    np.testing.assert_array_equal(codes, wanted)


def test_negligible_scales_have_none_in_common() -> None:
    scale, codes = fit_positive_scales(column(9e-16, 0), column(1, 1), 63)
    assert scale[0] == 0
    assert not codes.any()
