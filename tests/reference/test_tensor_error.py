from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY
from gguf.constants import GGMLQuantizationType as Type
from golden import vectors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi4conv.arrays import Bytes, Floats
from phi4conv.convert import convert
from phi4conv.errors import FormatError
from phi4conv.files import PositionedReader
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import GGUFRows
from phi4conv.hf.checkpoint import Checkpoint
from phi4conv.phi3 import ConversionOptions
from phi4conv.quant import CODECS, encode
from phi4conv.reference.code_grid import CODES
from phi4conv.reference.file_model import file_model
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.parts import Model, Part
from phi4conv.reference.permuted_rows import PermutedRows
from phi4conv.reference.source_model import source_model
from phi4conv.reference.suspects import Region
from phi4conv.reference.tensor_error import PartError, part_error, part_errors
from phi4conv.reference.tensor_screen import FLOAT_TYPES, Place
from phi4conv.rows import RowSource, SlicedRows

pytestmark = pytest.mark.slow  # together they take a minute; a fault of each kind is in test_blame.py

QUANTIZED = tuple(CODES)
K_QUANTS = (Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K)
ROWS, WIDTH = 48, 1024


@dataclass(frozen=True)
class InMemory:
    """Rows of an array."""

    array: Floats
    names: tuple[str, ...] = ("source",)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def rows(self, start: int, stop: int) -> Floats:
        rows: Floats = self.array.reshape(-1, self.array.shape[-1])[start:stop].copy()
        return rows


Compare = Callable[..., PartError]


def part(rows: RowSource, qtype: Type | None = None, name: str = "blk.0.ffn_down") -> Part:
    return Part(name, rows, f"{name}.weight", qtype=qtype)


def in_file(folder: Path, data: Bytes, qtype: Type, shape: tuple[int, ...]) -> GGUFRows:
    """Encoded rows as a tensor of a file; nothing but its bytes is in it."""
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    path.write_bytes(data.tobytes())
    return GGUFRows("blk.0.ffn_down.weight", qtype, shape, PositionedReader(path), 0)


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Hold encoded rows against weights."""

    def run(data: Bytes, qtype: Type, weights: Floats, **options: Any) -> PartError:
        rows = in_file(tmp_path, data, qtype, weights.shape)
        return part_error(part(rows, qtype), part(InMemory(weights)), workers=1, **options)

    return run


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def normal(seed: int = 1, rows: int = ROWS, width: int = WIDTH) -> Floats:
    return (np.random.default_rng(seed).standard_normal((rows, width)) * 0.02).astype(np.float32)


def heavy(seed: int = 2) -> Floats:
    """Cauchy tails, up to the range of float16."""
    return np.clip(np.random.default_rng(seed).standard_cauchy((ROWS, WIDTH)) * 0.01, -500, 500).astype(np.float32)


def positive(seed: int = 3) -> Floats:
    return np.random.default_rng(seed).uniform(0.01, 0.11, (ROWS, WIDTH)).astype(np.float32)


FAMILIES: dict[str, Callable[[], Floats]] = {"normal": normal, "heavy": heavy, "positive": positive}


def importances(width: int, seed: int = 5) -> dict[str, Floats]:
    random = np.random.default_rng(seed)
    spread = {f"e^{power}": np.exp(power * random.standard_normal(width)) for power in (1, 2, 3)}
    few = np.full(width, 1e-4)
    few[::64] = 1e3
    return {name: values.astype(np.float32) for name, values in {**spread, "few columns": few}.items()}


# Figures.


def test_figures_are_those_of_float64(compare: Compare) -> None:
    weights = normal()
    data = encode(CODECS[Type.Q4_K], weights)
    found, exact = CODECS[Type.Q4_K].decode(data).astype(float), weights.astype(float)
    error = compare(data, Type.Q4_K, weights)
    difference = found - exact
    assert error.weights == weights.size
    assert error.rmse == pytest.approx(math.sqrt((difference**2).mean()), rel=1e-6)
    assert error.signal == pytest.approx(math.sqrt((exact**2).mean()), rel=1e-6)
    assert error.cosine == pytest.approx((found * exact).sum() / np.sqrt((found**2).sum() * (exact**2).sum()), rel=1e-6)
    assert error.slope == pytest.approx((found * exact).sum() / (exact**2).sum(), rel=1e-6)
    assert error.largest == pytest.approx(np.abs(difference).max(), rel=1e-6)
    row, column = divmod(int(np.abs(difference).argmax()), WIDTH)
    assert error.largest_at == Place(row, column)
    assert error.snr_db == pytest.approx(10 * math.log10((exact**2).sum() / (difference**2).sum()), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e10, 1e25])
def test_weights_beyond_the_range_of_float32_squares_have_figures(scale: float) -> None:
    weights = (normal().astype(float) * scale).astype(np.float32)
    error = part_error(part(InMemory(weights * np.float32(1.5))), part(InMemory(weights)))
    assert error.slope == pytest.approx(1.5, rel=1e-6)
    assert error.cosine == pytest.approx(1, rel=1e-6)
    assert error.signal == pytest.approx(0.02 * scale, rel=0.02)
    assert error.relative == pytest.approx(0.5, rel=1e-6)
    assert error.verdict == "everywhere"


def test_equal_weights_have_no_error() -> None:
    error = part_error(part(InMemory(normal()), Type.F32), part(InMemory(normal())))
    assert (error.rmse, error.largest, error.largest_at, error.snr_db) == (0.0, 0.0, None, None)
    assert (error.cosine, error.slope, error.verdict) == (1.0, 1.0, "good")


def test_zeros_on_both_sides_are_good(compare: Compare) -> None:
    weights = np.zeros((4, 256), np.float32)
    for qtype in CODECS:
        error = compare(encode(CODECS[qtype], weights), qtype, weights)
        assert (error.verdict, error.cosine, error.slope, error.snr_db) == ("good", None, None, None), qtype.name


@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
def test_what_phi4conv_writes_is_identical_and_as_expected(compare: Compare, qtype: Type) -> None:
    weights = normal()
    error = compare(encode(CODECS[qtype], weights), qtype, weights, sample_rows=ROWS)
    assert error.good
    assert error.expectation.identical
    assert error.expectation.rows == ROWS
    assert error.expectation.found_rmse == pytest.approx(error.expectation.rmse, rel=1e-9)
    assert error.rmse == pytest.approx(error.expectation.rmse, rel=1e-6)
    assert error.expected_relative == pytest.approx(error.relative, rel=1e-6)


def test_relative_errors_of_normal_weights_are_those_in_the_table(compare: Compare) -> None:
    weights = normal(rows=64)
    table = {Type.Q2_K: 0.297, Type.Q3_K: 0.151, Type.Q4_K: 0.0715, Type.Q5_K: 0.0362, Type.Q6_K: 0.0178}
    table |= {Type.Q8_0: 0.00536, Type.F16: 0.00021, Type.BF16: 0.0017}
    for qtype, expected in table.items():
        found = compare(encode(CODECS[qtype], weights), qtype, weights)
        assert found.relative == pytest.approx(expected, rel=0.03), qtype.name
        assert found.expected_relative == pytest.approx(expected, rel=0.03), qtype.name


def test_any_number_of_workers_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi4conv.reference.tensor_screen.CHUNK_WEIGHTS", 4096)
    weights = normal()
    pairs = [
        (part(in_file(tmp_path, encode(CODECS[qtype], weights), qtype, weights.shape), qtype), part(InMemory(weights)))
        for qtype in (Type.Q4_K, Type.Q8_0, Type.F16)
    ]
    counted: list[int] = []
    one = part_errors(pairs, workers=1, on_found=counted.append)
    assert one == part_errors(pairs, workers=7)
    assert sum(counted) == 3 * weights.size


# Shapes.


def test_another_width_is_not_compared() -> None:
    error = part_error(part(InMemory(normal(width=512))), part(InMemory(normal())))
    assert (error.verdict, error.weights) == ("shape", 0)


def test_of_fewer_rows_the_common_ones_are_compared() -> None:
    weights = normal()
    error = part_error(part(InMemory(weights[:40])), part(InMemory(weights)))
    assert (error.verdict, error.weights, error.rmse) == ("shape", 40 * WIDTH, 0.0)
    assert (error.shape, error.expected_shape) == ((40, WIDTH), (48, WIDTH))


def test_rows_that_are_wrong_are_told_before_those_that_are_missing() -> None:
    weights = normal()
    assert part_error(part(InMemory(-weights[:40])), part(InMemory(weights))).verdict == "everywhere"


def test_a_type_without_decoder_is_refused(tmp_path: Path) -> None:
    rows = in_file(tmp_path, np.zeros(1000, np.uint8), Type.IQ4_XS, (4, 256))
    with pytest.raises(FormatError, match="no decoder for IQ4_XS"):
        part_error(part(rows, Type.IQ4_XS), part(InMemory(np.zeros((4, 256), np.float32))))


def test_a_type_without_encoder_is_expected_to_be_as_it_typically_is() -> None:
    weights = normal()
    error = part_error(part(InMemory(weights + normal(7) * np.float32(0.08)), Type.IQ4_XS), part(InMemory(weights)))
    assert (error.expectation.basis, error.expected_relative, error.verdict) == ("typical", 0.0768, "good")


# No false alarms.


@pytest.mark.parametrize("qtype", QUANTIZED, ids=lambda each: each.name)
@pytest.mark.parametrize("kind", [name.removeprefix("input/") for name in vectors() if name.startswith("input/")])
def test_every_kind_of_weights_is_good(compare: Compare, qtype: Type, kind: str) -> None:
    weights = vectors()[f"input/{kind}"]
    if np.abs(weights).max() > min(CODECS[qtype].largest, 1e5):
        pytest.skip("beyond the type's range")
    error = compare(encode(CODECS[qtype], weights), qtype, weights)
    assert (error.verdict, error.suspects) == ("good", ())


@pytest.mark.slow
@pytest.mark.parametrize("qtype", K_QUANTS, ids=lambda each: each.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_importance_raises_no_alarm(compare: Compare, qtype: Type, family: str) -> None:
    weights = FAMILIES[family]()
    for name, importance in importances(WIDTH).items():
        error = compare(encode(CODECS[qtype], weights, importance), qtype, weights)
        assert (error.verdict, error.suspects, error.expectation.identical) == ("good", (), False), name


@pytest.mark.parametrize("qtype", K_QUANTS, ids=lambda each: each.name)
@pytest.mark.parametrize("kind", [name.removeprefix("input/") for name in vectors() if name.startswith("input/")])
def test_importance_raises_no_alarm_on_any_kind_of_weights(compare: Compare, qtype: Type, kind: str) -> None:
    weights = vectors()[f"input/{kind}"]
    if np.abs(weights).max() > 1e5:
        pytest.skip("beyond the types' range")
    for name in ("smooth", "extreme"):
        importance = vectors()[f"imatrix/{name}"]
        error = compare(encode(CODECS[qtype], weights, importance), qtype, weights)
        assert (error.verdict, error.suspects) == ("good", ()), name


@pytest.mark.parametrize("qtype", [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1], ids=lambda each: each.name)
def test_importance_raises_no_alarm_where_llama_cpp_keeps_the_codes_of_its_search(
    compare: Compare, llama: LlamaCpp, qtype: Type
) -> None:
    for family, make in FAMILIES.items():
        for power in ("e^1", "e^2", "e^3"):
            weights = make()
            error = compare(llama.quantize(weights, qtype, importances(WIDTH)[power]), qtype, weights)
            assert (error.verdict, error.suspects) == ("good", ()), (family, power)


# Where the lowest bits of the codes are: exchanged, a code is one more or one less.
LOWEST_BITS = {
    Type.Q2_K: (16, 80, 0x55),
    Type.Q3_K: (32, 96, 0x55),
    Type.Q4_K: (16, 144, 0x11),
    Type.Q5_K: (48, 176, 0x11),
    Type.Q6_K: (0, 128, 0x11),
    Type.Q8_0: (2, 34, 0x01),
    Type.Q4_0: (2, 18, 0x11),
    Type.Q4_1: (4, 20, 0x11),
    Type.Q5_0: (6, 22, 0x11),
    Type.Q5_1: (8, 24, 0x11),
}


@pytest.mark.parametrize("qtype", QUANTIZED, ids=lambda each: each.name)
def test_codes_that_a_tool_changed_by_one_are_no_fault(compare: Compare, qtype: Type) -> None:
    weights = normal()
    data = encode(CODECS[qtype], weights)
    start, stop, bits = LOWEST_BITS[qtype]
    blocks = data.reshape(-1, CODECS[qtype].block_bytes).copy()
    some = np.random.default_rng(4).random((len(blocks), stop - start)) < 0.08
    blocks[:, start:stop] ^= np.where(some, bits, 0).astype(np.uint8)
    error = compare(blocks.reshape(data.shape), qtype, weights)
    assert error.expectation.identical is False
    assert error.relative > 1.05 * error.expected_relative
    assert (error.verdict, error.suspects) == ("good", ())


FINITE = st.floats(-1000, 1000, width=32)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    qtype=st.sampled_from(tuple(CODECS)),
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(["normal", "cauchy", "uniform", "exponential", "two values", "sparse"]),
    scale=st.floats(-9, 1),
    offset=st.sampled_from([0.0, 0.0, 1.0, -10.0]),
    bf16=st.booleans(),
    special=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 511), FINITE), max_size=4),
    special_rows=st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0.0, 1e-8, -0.25])), max_size=3),
    importance=st.one_of(st.none(), st.floats(0, 2.5)),
)
def test_no_weights_raise_an_alarm(
    compare: Compare,
    *,
    qtype: Type,
    seed: int,
    shape: str,
    scale: float,
    offset: float,
    bf16: bool,
    special: list[tuple[int, int, float]],
    special_rows: list[tuple[int, float]],
    importance: float | None,
) -> None:
    random = np.random.default_rng(seed)
    draw: dict[str, Callable[[], Any]] = {
        "normal": lambda: random.standard_normal((8, 512)),
        "cauchy": lambda: np.clip(random.standard_cauchy((8, 512)), -1000, 1000),
        "uniform": lambda: random.uniform(-1, 1, (8, 512)),
        "exponential": lambda: random.exponential(1, (8, 512)),
        "two values": lambda: random.choice([-0.3, 1.0], (8, 512)),
        "sparse": lambda: random.standard_normal((8, 512)) * (random.random((8, 512)) < 0.03),
    }
    weights = ((draw[shape]() + offset) * 10.0**scale).astype(np.float32)
    for row, value in special_rows:
        weights[row] = value
    for row, column, value in special:
        weights[row, column] = value
    if bf16:
        weights = CODECS[Type.BF16].decode(CODECS[Type.BF16].encode(weights))
    given_importance = None
    if importance is not None:
        given_importance = np.exp(importance * random.standard_normal(512)).astype(np.float32)
    error = compare(encode(CODECS[qtype], weights, given_importance), qtype, weights)
    assert (error.verdict, error.suspects) == ("good", ())


@pytest.mark.parametrize("qtype", FLOAT_TYPES, ids=lambda each: each.name)
def test_weights_rounded_on_the_way_are_no_fault(compare: Compare, qtype: Type) -> None:
    for family, make in FAMILIES.items():
        weights = make()
        weights[3] *= np.float32(1e-6)
        for way in (Type.BF16, Type.F16):
            through = CODECS[way].decode(CODECS[way].encode(weights))
            error = compare(encode(CODECS[qtype], through), qtype, weights)
            assert error.verdict == ("good" if way is qtype else "rounded"), (family, way.name)
            assert error.suspects == ()


def test_bf16_cut_off_instead_of_rounded_is_no_fault(compare: Compare) -> None:
    weights = normal()
    cut = np.ascontiguousarray(weights.view("<u2")[:, 1::2]).view(np.uint8)
    error = compare(cut, Type.BF16, weights)
    assert (error.verdict, error.suspects, error.expectation.identical) == ("rounded", (), False)


# Damage.


def damaged_block(qtype: Type, blocks: Bytes, number: int, damage: str) -> None:
    """Ruin one block in place: uint8 (blocks, block bytes)."""
    random = np.random.default_rng(number)
    if damage == "zeroed":
        blocks[number] = 0
    elif damage == "random bytes":
        blocks[number] = random.integers(0, 256, blocks.shape[1])
    elif damage == "random codes":
        start, stop = (CODES[qtype].start, CODES[qtype].stop) if qtype in CODES else (0, blocks.shape[1])
        blocks[number, start:stop] = random.integers(0, 256, stop - start)
    elif damage == "shifted codes":
        start, stop = (CODES[qtype].start, CODES[qtype].stop) if qtype in CODES else (0, blocks.shape[1])
        blocks[number, start:stop] = np.roll(blocks[number, start:stop], 1)
    elif damage == "codes off by one":
        start, stop, bits = LOWEST_BITS[qtype]
        blocks[number, start:stop] ^= bits
    else:
        raise ValueError(damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["zeroed", "random bytes", "random codes", "shifted codes", "codes off by one"])
@pytest.mark.parametrize("qtype", QUANTIZED, ids=lambda each: each.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_ruined_block_is_found(compare: Compare, qtype: Type, family: str, damage: str) -> None:
    if damage == "codes off by one" and not CODES[qtype].nearest:
        pytest.skip("an importance matrix does as much to these types")
    weights = FAMILIES[family]()
    data = encode(CODECS[qtype], weights)
    size = CODECS[qtype].block_weights
    per_row = WIDTH // size
    for row, column in ((0, 0), (17, per_row // 2), (ROWS - 1, per_row - 1)):
        blocks = data.reshape(-1, CODECS[qtype].block_bytes).copy()
        damaged_block(qtype, blocks, row * per_row + column, damage)
        error = compare(blocks.reshape(data.shape), qtype, weights, sample_rows=4)
        assert error.verdict in {"region", "non-finite"}, (row, column)
        assert len(error.suspects) == 1
        (region,) = error.suspects
        assert (region.first_row, region.last_row) == (row, row)
        assert region.first_column <= column * size < column * size + size - 1 <= region.last_column
        assert region.last_column - region.first_column < 256


@pytest.mark.parametrize("qtype", QUANTIZED, ids=lambda each: each.name)
def test_a_ruined_block_is_found_in_a_file_made_with_importance(compare: Compare, qtype: Type) -> None:
    if not CODECS[qtype].uses_importance:
        pytest.skip("makes no use of importance")
    weights = normal()
    for importance in importances(WIDTH).values():
        data = encode(CODECS[qtype], weights, importance)
        for damage in ("zeroed", "random bytes", "random codes", "shifted codes"):
            blocks = data.reshape(-1, CODECS[qtype].block_bytes).copy()
            damaged_block(qtype, blocks, 30, damage)
            error = compare(blocks.reshape(data.shape), qtype, weights)
            assert error.verdict in {"region", "non-finite"}, damage
            assert [(region.first_row, region.last_row) for region in error.suspects] == [(7, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_replaced_by_its_neighbour_is_found(compare: Compare, qtype: Type, family: str) -> None:
    weights = FAMILIES[family]()
    data = encode(CODECS[qtype], weights)
    data[20] = data[21]
    error = compare(data, qtype, weights)
    assert error.verdict == "region"
    assert {(region.first_row, region.last_row) for region in error.suspects} == {(20, 20)}
    assert error.suspect_weights > 0.9 * WIDTH


@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
def test_two_rows_swapped_are_found(compare: Compare, qtype: Type) -> None:
    weights = normal()
    data = encode(CODECS[qtype], weights)
    data[[3, 40]] = data[[40, 3]]
    error = compare(data, qtype, weights)
    assert error.verdict == "region"
    assert {region.first_row for region in error.suspects} == {3, 40}
    assert error.suspect_weights > 1.9 * WIDTH


@pytest.mark.slow
@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_negated_tensor_corresponds_nowhere(compare: Compare, qtype: Type, family: str) -> None:
    weights = FAMILIES[family]()
    error = compare(encode(CODECS[qtype], -weights), qtype, weights)
    assert error.verdict == "everywhere"
    assert error.slope == pytest.approx(-1, abs=0.05)
    assert error.cosine is not None
    assert error.cosine < -0.9


@pytest.mark.slow
@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factor", [0.5, 0.95, 1.05, 1.1, 2.0])
def test_a_scaled_tensor_corresponds_nowhere(compare: Compare, qtype: Type, family: str, factor: float) -> None:
    weights = FAMILIES[family]()
    error = compare(encode(CODECS[qtype], weights * np.float32(factor)), qtype, weights)
    assert error.verdict == "everywhere"
    assert error.slope == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
@pytest.mark.parametrize("kind", ["another tensor", "rows shifted", "transposed", "one value"])
def test_a_tensor_of_other_weights_corresponds_nowhere(compare: Compare, qtype: Type, kind: str) -> None:
    weights = normal(rows=256, width=256)
    other = {
        "another tensor": normal(9, rows=256, width=256),
        "rows shifted": np.roll(weights, 1, axis=0),
        "transposed": weights.T.copy(),
        "one value": np.full_like(weights, 0.02),
    }[kind]
    error = compare(encode(CODECS[qtype], other), qtype, weights)
    assert error.verdict == "everywhere"


@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
def test_a_zeroed_tensor_corresponds_nowhere(compare: Compare, qtype: Type) -> None:
    weights = normal()
    error = compare(np.zeros_like(encode(CODECS[qtype], weights)), qtype, weights)
    assert error.verdict == "everywhere"
    # Bytes of zero are codes of -8 in Q4_0, say, but of a scale of zero.
    assert (error.cosine, error.slope) == (None, 0.0)


@pytest.mark.parametrize("qtype", QUANTIZED, ids=lambda each: each.name)
def test_a_block_whose_scale_is_nan_is_found(compare: Compare, qtype: Type) -> None:
    weights = normal()
    data = encode(CODECS[qtype], weights)
    codec = CODECS[qtype]
    number = 5 * (WIDTH // codec.block_weights) + 1
    offset = codec.scale_offsets[0]
    data.reshape(-1, codec.block_bytes)[number, offset : offset + 2] = (0x00, 0x7E)
    error = compare(data, qtype, weights)
    assert error.verdict == "non-finite"
    assert error.non_finite == codec.block_weights
    assert error.first_non_finite == Place(5, codec.block_weights)
    assert [(region.first_row, region.last_row) for region in error.suspects] == [(5, 5)]
    assert error.weights == weights.size - codec.block_weights
    assert error.relative == pytest.approx(error.expected_relative, rel=0.1)


@pytest.mark.parametrize("qtype", FLOAT_TYPES, ids=lambda each: each.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_found(compare: Compare, qtype: Type, value: float) -> None:
    weights = normal()
    bad = weights.copy()
    bad[30, 700] = value
    error = compare(encode(CODECS[qtype], bad), qtype, weights)
    assert (error.verdict, error.non_finite, error.first_non_finite) == ("non-finite", 1, Place(30, 700))
    assert (error.suspects, error.suspect_weights) == ((Region(30, 30, 700, 700),), 1)


def test_a_nan_that_the_source_has_as_well_is_not_the_files(compare: Compare) -> None:
    weights = normal()
    weights[30, 700] = np.nan
    error = compare(encode(CODECS[Type.F16], weights), Type.F16, weights)
    assert (error.verdict, error.non_finite, error.weights) == ("good", 0, weights.size - 1)


def test_weights_that_float16_cannot_hold_are_told(compare: Compare) -> None:
    weights = normal()
    weights[2, 9] = 1e5
    error = compare(encode(CODECS[Type.F16], weights), Type.F16, weights)
    assert (error.verdict, error.first_non_finite) == ("non-finite", Place(2, 9))


@pytest.mark.parametrize("qtype", CODECS, ids=lambda each: each.name)
def test_one_absurd_value_is_found(compare: Compare, qtype: Type) -> None:
    weights = normal()
    absurd = weights.copy()
    absurd[11, 300] = 1e4
    error = compare(encode(CODECS[qtype], absurd), qtype, weights)
    assert error.verdict == "region"
    assert error.largest == pytest.approx(1e4, rel=0.1)
    assert error.largest_at == Place(11, 300)
    (region,) = error.suspects
    assert (region.first_row, region.last_row) == (11, 11)
    assert region.first_column <= 300 <= region.last_column


@pytest.mark.parametrize("qtype", FLOAT_TYPES, ids=lambda each: each.name)
def test_a_corrupt_byte_range_of_a_float_type_is_one_region(compare: Compare, qtype: Type) -> None:
    weights = normal()
    data = encode(CODECS[qtype], weights)
    size = CODECS[qtype].block_bytes
    data[9, 100 * size : 164 * size] = np.random.default_rng(1).integers(0, 120, 64 * size)
    error = compare(data, qtype, weights)
    assert error.verdict == "region"
    (region,) = error.suspects
    assert (region.first_row, region.last_row) == (9, 9)
    assert 100 <= region.first_column <= 116
    assert 147 <= region.last_column <= 163


def test_a_norm_with_one_added_corresponds_nowhere(compare: Compare) -> None:
    norm = normal(rows=1)[0] + np.float32(1)
    assert compare(encode(CODECS[Type.F32], norm), Type.F32, norm).verdict == "good"
    assert compare(encode(CODECS[Type.F32], norm + np.float32(1)), Type.F32, norm).verdict == "everywhere"


def test_the_regions_of_neighbouring_rows_are_one(compare: Compare) -> None:
    weights = normal()
    data = encode(CODECS[Type.Q4_K], weights)
    data[10:14] = data[20:24]
    assert compare(data, Type.Q4_K, weights).suspects == (Region(10, 13, 0, WIDTH - 1),)


def test_more_bad_rows_than_are_judged_are_all_told(compare: Compare) -> None:
    weights = normal(rows=2048, width=256)
    data = encode(CODECS[Type.Q4_K], weights)
    data[1000:1700] = np.roll(data[1000:1700], 1, axis=0)
    error = compare(data, Type.Q4_K, weights)
    assert error.verdict == "region"
    assert error.suspects == (Region(1000, 1699, 0, 255),)
    assert error.suspect_weights == 700 * 256


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    qtype=st.sampled_from(QUANTIZED),
    family=st.sampled_from(tuple(FAMILIES)),
    number=st.integers(0, ROWS * WIDTH // 256 - 1),
    damage=st.sampled_from(["zeroed", "random bytes", "random codes", "shifted codes"]),
)
def test_damage_is_found_wherever_it_is(compare: Compare, qtype: Type, family: str, number: int, damage: str) -> None:
    weights = FAMILIES[family]()
    data = encode(CODECS[qtype], weights)
    blocks = data.reshape(-1, CODECS[qtype].block_bytes)
    damaged_block(qtype, blocks, number, damage)
    error = compare(data, qtype, weights)
    row = number * CODECS[qtype].block_weights // WIDTH
    assert error.verdict in {"region", "non-finite"}
    assert {(region.first_row, region.last_row) for region in error.suspects} == {(row, row)}


# Rows that a part sees in another order, or some of.


def test_a_part_of_a_tensor_is_seen_by_its_own_bytes(tmp_path: Path) -> None:
    weights = normal()
    whole = in_file(tmp_path, encode(CODECS[Type.Q5_K], weights), Type.Q5_K, weights.shape)
    error = part_error(part(SlicedRows(whole, 16, 32), Type.Q5_K), part(InMemory(weights[16:32])))
    assert (error.verdict, error.expectation.identical) == ("good", True)
    assert (
        part_error(part(SlicedRows(whole, 17, 33), Type.Q5_K), part(InMemory(weights[16:32]))).verdict == "everywhere"
    )


def test_permuted_rows_are_seen_by_their_own_bytes(tmp_path: Path) -> None:
    weights = normal()
    stored = weights.reshape(6, 2, 4, WIDTH).swapaxes(1, 2).reshape(ROWS, WIDTH)
    permuted = PermutedRows(in_file(tmp_path, encode(CODECS[Type.Q4_K], stored), Type.Q4_K, weights.shape), 8)
    error = part_error(part(permuted, Type.Q4_K), part(InMemory(weights)))
    assert (error.verdict, error.expectation.identical) == ("good", True)
    assert part_error(part(permuted, Type.Q4_K), part(InMemory(stored))).verdict == "everywhere"


def test_rows_without_bytes_are_compared_by_their_errors() -> None:
    weights = normal()
    decoded = CODECS[Type.Q4_K].decode(encode(CODECS[Type.Q4_K], weights))
    error = part_error(part(InMemory(decoded), Type.Q4_K), part(InMemory(weights)))
    assert (error.verdict, error.expectation.identical) == ("good", None)
    decoded[9] = -decoded[9]
    assert part_error(part(InMemory(decoded), Type.Q4_K), part(InMemory(weights))).suspects == (
        Region(9, 9, 0, WIDTH - 1),
    )


# Whole files.


def models(target: Path, file_type: str, **options: Any) -> tuple[Model, Model]:
    convert(TINY, target, ConversionOptions(file_type=file_type, **options))
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    return file_model(read_gguf(target)), source_model(config, Checkpoint.open(TINY).tensors)


@pytest.mark.parametrize("mix", ["current", "pre-2026"])
@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"])
def test_every_part_of_a_good_file_is_good(tmp_path: Path, file_type: str, mix: str) -> None:
    found, source = models(tmp_path / "out.gguf", file_type, mix=mix)
    errors = part_errors([(found.parts[name], source.parts[name]) for name in found.parts])
    assert {error.verdict for error in errors} == {"good"}
    assert all(error.expectation.identical for error in errors)
    assert [error.part for error in errors] == list(found.parts)
    assert sum(error.weights for error in errors) == sum(math.prod(each.shape) for each in source.parts.values())
