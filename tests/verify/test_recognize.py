"""What happened to a tensor, by name: every fault in several types, and no fault in good tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import TINY
from gguf import GGMLQuantizationType

from phi4conv.arrays import Floats
from phi4conv.hf.checkpoint import Checkpoint
from phi4conv.quant import CODECS, decode, encode
from phi4conv.reference.parts import Model, Part
from phi4conv.reference.source_model import source_model
from phi4conv.rows import SlicedRows, StackedRows, row_count
from phi4conv.verify.recognize import Recognition, recognize, recognize_all

pytestmark = pytest.mark.slow  # together they take a minute; a fault of each kind is in test_blame.py

TYPE = GGMLQuantizationType
TYPES = (TYPE.F32, TYPE.Q8_0, TYPE.Q4_K, TYPE.Q2_K)
KV_HEADS, HEAD_SIZE = 2, 32
Q, K, V = slice(0, 256), slice(256, 320), slice(320, 384)
FUSED = {"attn_q": "attn_qkv", "attn_k": "attn_qkv", "attn_v": "attn_qkv", "ffn_gate": "ffn_up"}
Change = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class MemoryRows:
    """Weights in memory as a RowSource."""

    values: Floats
    names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> Floats:
        rows: Floats = self.values.reshape(-1, self.values.shape[-1])[start:stop].copy()
        return rows


@cache
def source() -> Model:
    """The tiny checkpoint."""
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    return source_model(config, Checkpoint.open(TINY).tensors)


def tensor_of(part: str) -> str:
    """The tensor of a phi3 file that holds a part."""
    prefix, _, role = part.rpartition(".")
    return f"{prefix}{'.' if prefix else ''}{FUSED.get(role, role)}.weight"


@cache
def exact() -> Mapping[str, Floats]:
    """The tensors of a phi3 file before they are encoded."""
    held: dict[str, list[Part]] = {}
    for name, part in source().parts.items():
        held.setdefault(tensor_of(name), []).append(part)
    tensors = {}
    for name, parts in held.items():
        rows = parts[0].rows if len(parts) == 1 else StackedRows(tuple(part.rows for part in parts))
        tensors[name] = rows.rows(0, row_count(rows.shape)).reshape(rows.shape)
    return tensors


def stored(values: Floats, qtype: GGMLQuantizationType, importance: Floats | None = None) -> Floats:
    """Weights as a file of this type gives them back; norms are F32 in every file."""
    if values.ndim == 1 or not np.isfinite(values).all():
        return values
    return decode(CODECS[qtype], encode(CODECS[qtype], np.ascontiguousarray(values), importance))


@cache
def good(tensor: str, qtype: GGMLQuantizationType) -> Floats:
    return stored(exact()[tensor], qtype)


def file_with(qtype: GGMLQuantizationType, changed: Mapping[str, Floats], *, encoded: bool = False) -> Model:
    """A file all of whose matrices are of one type, some tensors changed (before they are encoded, by default)."""
    parts: dict[str, Part] = {}
    starts: dict[str, int] = {}
    for name, part in source().parts.items():
        tensor = tensor_of(name)
        values = changed.get(tensor)
        values = good(tensor, qtype) if values is None else values if encoded else stored(values, qtype)
        rows = MemoryRows(values)
        start = starts.get(tensor, 0)
        starts[tensor] = start + row_count(part.shape)
        is_fused = tensor.endswith(("attn_qkv.weight", "ffn_up.weight"))
        kind = TYPE.F32 if values.ndim == 1 else qtype
        parts[name] = Part(name, SlicedRows(rows, start, starts[tensor]) if is_fused else rows, tensor, start, kind)
    return Model(source().hyperparameters, parts)


def found(qtype: GGMLQuantizationType, tensor: str, change: Change) -> Recognition:
    recognition = recognize(tensor, file_with(qtype, {tensor: change(exact()[tensor].copy())}), source())
    assert recognition is not None
    assert recognition.tensors == (tensor,)
    return recognition


def matrix_types(*types: GGMLQuantizationType) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("qtype", types or TYPES, ids=lambda qtype: qtype.name)


def heads_shuffled(part: Floats) -> Floats:
    """As llama.cpp's converter does for the llama architecture."""
    shuffled: Floats = part.reshape(-1, 2, HEAD_SIZE // 2, part.shape[1]).swapaxes(1, 2).reshape(part.shape)
    return shuffled


def heads_shuffled_back(part: Floats) -> Floats:
    shuffled: Floats = part.reshape(-1, HEAD_SIZE // 2, 2, part.shape[1]).swapaxes(1, 2).reshape(part.shape)
    return shuffled


def on(rows: slice, change: Change) -> Change:
    """The change in some rows alone."""

    def changed(weights: Floats) -> Floats:
        weights[rows] = change(weights[rows].copy())
        return weights

    return changed


def ordered(*parts: slice) -> Change:
    return lambda weights: np.concatenate([weights[part] for part in parts])


def grouped(count: int, *parts: slice) -> Change:
    """Parts in turn, cut into so many pieces each."""
    return lambda weights: np.concatenate(
        [weights[part].reshape(count, -1, weights.shape[1]) for part in parts], axis=1
    ).reshape(weights.shape)


def rolled(count: int) -> Change:
    return lambda weights: np.roll(weights, count, axis=0)


def picked(order: list[int], first: int = 0) -> Change:
    """Rows from the first on in another order."""

    def change(weights: Floats) -> Floats:
        weights[first : first + len(order)] = weights[first + np.array(order)]
        return weights

    return change


def replaced(row: int, column: int, value: float) -> Change:
    def change(weights: Floats) -> Floats:
        weights.reshape(-1, weights.shape[-1])[row, column] = value
        return weights

    return change


GATE, UP = slice(0, 512), slice(512, 1024)
QKV, GATE_UP, DOWN, OUT = (
    "blk.1.attn_qkv.weight",
    "blk.2.ffn_up.weight",
    "blk.3.ffn_down.weight",
    "blk.0.attn_output.weight",
)
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

# Tensor, change, code, sentence.
CHANGES: tuple[tuple[str, Change, str, str], ...] = (
    (GATE_UP, rolled(512), "gate-up-swapped", "gate and up halves are swapped"),
    (GATE_UP, grouped(512, GATE, UP), "gate-up-interleaved", "gate and up are interleaved row by row"),
    (GATE_UP, grouped(512, UP, GATE), "gate-up-interleaved", "up and gate are interleaved row by row"),
    (GATE_UP, grouped(4, GATE, UP), "parts-interleaved", "gate and up alternate in 4 pieces each"),
    (GATE_UP, ordered(UP, UP), "part-doubled", "it holds up, up where gate, up belong"),
    (QKV, ordered(K, Q, V), "qkv-order", "its rows are in the order k, q, v"),
    (QKV, ordered(Q, V, K), "qkv-order", "its rows are in the order q, v, k"),
    (QKV, ordered(V, K, Q), "qkv-order", "its rows are in the order v, k, q"),
    (QKV, ordered(Q, K, K), "part-doubled", "it holds q, k, k where q, k, v belong"),
    (QKV, grouped(KV_HEADS, Q, K, V), "qkv-grouped", "q, k, v are grouped by kv head instead of lying apart"),
    (QKV, on(slice(0, 320), heads_shuffled), "qk-permuted", "q and k are permuted as for the llama architecture"),
    (QKV, on(Q, heads_shuffled), "qk-permuted", "q is permuted as for the llama architecture"),
    (QKV, on(K, heads_shuffled), "qk-permuted", "k is permuted as for the llama architecture"),
    (
        QKV,
        on(Q, heads_shuffled_back),
        "qk-unpermuted",
        "q is permuted back, as out of a llama file that had not been permuted",
    ),
    (QKV, on(K, np.negative), "negated", "the k rows are negated"),
    (QKV, on(Q, lambda q: q * np.float32(3)), "scaled", "the q rows are scaled by 3"),
    (QKV, on(Q, lambda q: np.ascontiguousarray(q.T)), "transposed", "its q rows are transposed"),
    (QKV, on(K, lambda k: np.roll(k, 32, axis=0)), "heads-reordered", "heads 0 and 1 of k are swapped"),
    (
        QKV,
        on(Q, lambda q: np.roll(q, 32, axis=0)),
        "heads-reordered",
        "the heads of q are in another order: 7, 0, 1, 2, 3, 4, ...",
    ),
    (QKV, on(V, lambda _: exact()["blk.3.attn_qkv.weight"][V]), "holds-other", "its v rows are those of blk.3.attn_v"),
    (OUT, np.transpose, "transposed", "it is transposed"),
    (
        DOWN,
        lambda weights: np.ascontiguousarray(weights.T).reshape(weights.shape),
        "transposed",
        "it is transposed, its data laid out in the declared shape",
    ),
    (
        HEAD,
        lambda weights: np.ascontiguousarray(weights.T).reshape(weights.shape),
        "transposed",
        "it is transposed, its data laid out in the declared shape",
    ),
    (DOWN, np.negative, "negated", "all weights are negated"),
    (DOWN, on(slice(7, 8), np.negative), "negated", "row 7 is negated"),
    (DOWN, lambda weights: weights * np.float32(1.25), "scaled", "all weights are scaled by 1.25"),
    (DOWN, on(slice(9, 10), lambda row: row * np.float32(0.5)), "scaled", "row 9 is scaled by 0.5"),
    (DOWN, np.zeros_like, "all-zero", "all weights are zero"),
    (DOWN, on(slice(250, 256), np.zeros_like), "all-zero", "rows 250 to 255 are zero"),
    (EMBEDDING, rolled(1), "rows-shifted", "all rows are shifted 1 row down, cyclically (row 1 holds row 0)"),
    (HEAD, rolled(-3), "rows-shifted", "all rows are shifted 3 rows up, cyclically (row 0 holds row 3)"),
    (
        HEAD,
        lambda weights: np.concatenate([weights[1:], np.zeros_like(weights[:1])]),
        "rows-shifted",
        "all rows are shifted 1 row up (row 0 holds row 1)",
    ),
    (
        HEAD,
        on(slice(600, None), rolled(1)),
        "rows-shifted",
        "rows 600 to 1023 are shifted 1 row down, cyclically (row 601 holds row 600)",
    ),
    (HEAD, picked([1, 0], 936), "rows-swapped", "rows 936 and 937 are swapped"),
    (DOWN, picked([*range(10, 20), *range(10)]), "rows-swapped", "rows 0 to 9 and rows 10 to 19 are swapped"),
    (DOWN, picked([1], 30), "row-copied", "row 30 holds the weights of row 31"),
    (DOWN, picked([0] * 12, 30), "rows-copied", "rows 31 to 41 all hold the weights of row 30"),
    (DOWN, np.flipud, "rows-reversed", "its rows are in reverse order"),
    (DOWN, on(slice(20, 40), np.flipud), "rows-reversed", "rows 20 to 39 are in reverse order"),
    (OUT, np.fliplr, "columns-reversed", "its columns are in reverse order"),
    (
        DOWN,
        lambda weights: np.roll(weights, 5, axis=1),
        "columns-shifted",
        "its columns are shifted cyclically, 5 columns to the right",
    ),
    (DOWN, lambda _: exact()["blk.1.ffn_down.weight"], "copy", "a copy of blk.1.ffn_down.weight"),
    (HEAD, lambda _: exact()[EMBEDDING], "copy", "a copy of token_embd.weight"),
)


@matrix_types()
@pytest.mark.parametrize(("tensor", "change", "code", "sentence"), CHANGES, ids=[each[3] for each in CHANGES])
def test_a_changed_matrix_is_recognized(
    qtype: GGMLQuantizationType, tensor: str, change: Change, code: str, sentence: str
) -> None:
    recognition = found(qtype, tensor, change)
    assert (recognition.code, recognition.sentence) == (code, sentence)


NORM = "blk.1.ffn_norm.weight"
NORM_CHANGES: tuple[tuple[Change, str, str], ...] = (
    (lambda norm: norm + 1, "norm-offset", "1 was added to all weights, as for models that scale by 1 + weight"),
    (lambda norm: norm - 1, "norm-offset", "1 was taken away from all weights, as for models that scale by 1 + weight"),
    (np.negative, "negated", "all weights are negated"),
    (lambda norm: norm * np.float32(1.05), "scaled", "all weights are scaled by 1.05"),
    (np.ones_like, "constant", "all weights are 1, one constant"),
    (lambda norm: norm[::-1], "columns-reversed", "its weights are in reverse order"),
    (
        lambda norm: np.roll(norm, -1),
        "columns-shifted",
        "its weights are shifted cyclically, 1 weight to the left",
    ),
    (lambda _: exact()["blk.3.ffn_norm.weight"], "copy", "a copy of blk.3.ffn_norm.weight"),
    (lambda _: exact()["blk.1.attn_norm.weight"], "copy", "a copy of blk.1.attn_norm.weight"),
    (
        replaced(0, 100, 1e4),
        "absurd-value",
        "one weight is absurd: 10000 at row 0, column 100, where the source has {:.6g}",
    ),
    (replaced(0, 5, 0), "single-value", "one weight is wrong: 0 at row 0, column 5, where the source has {:.6g}"),
    (replaced(0, -1, np.inf), "non-finite", "one weight is NaN or infinite, at row 0, column 255"),
)


@pytest.mark.parametrize(("change", "code", "sentence"), NORM_CHANGES, ids=[each[2][:40] for each in NORM_CHANGES])
def test_a_changed_norm_is_recognized(change: Change, code: str, sentence: str) -> None:
    recognition = found(TYPE.F32, NORM, change)
    column = {"absurd-value": 100, "single-value": 5}.get(code, 0)
    assert (recognition.code, recognition.sentence) == (code, sentence.format(exact()[NORM][column]))


@pytest.mark.parametrize("qtype", CODECS, ids=lambda qtype: qtype.name)
def test_good_tensors_are_not_accused(qtype: GGMLQuantizationType) -> None:
    model = file_with(qtype, {})
    assert not [tensor for tensor in exact() if recognize(tensor, model, source())]


@matrix_types(TYPE.Q6_K, TYPE.Q5_K, TYPE.Q4_K, TYPE.Q3_K, TYPE.Q2_K)
@pytest.mark.parametrize("spread", [1, 2, 3])
def test_an_importance_matrix_is_no_fault(qtype: GGMLQuantizationType, spread: int) -> None:
    generator = np.random.default_rng(spread)
    tensors = {
        tensor: stored(values, qtype, np.exp(generator.normal(0, spread, values.shape[-1])).astype(np.float32))
        for tensor, values in exact().items()
    }
    model = file_with(qtype, tensors, encoded=True)
    assert not [tensor for tensor in exact() if recognize(tensor, model, source())]


DISTRIBUTIONS: Mapping[str, Callable[[np.random.Generator], npt.NDArray[np.float64]]] = {
    "heavy tails": lambda generator: generator.standard_cauchy((64, 512)) * 0.01,
    "one sign": lambda generator: generator.exponential(0.02, (64, 512)),
    "outliers": lambda generator: (
        generator.normal(0, 0.02, (64, 512)) * (1 + 100 * (generator.random((64, 512)) < 1e-3))
    ),
    "constant rows": lambda generator: generator.normal(0, 0.02, (64, 1)).repeat(512, axis=1),
    "tiny rows": lambda generator: generator.normal(0, 0.02, (64, 512)) * np.where(np.arange(64) % 7, 1, 1e-8)[:, None],
    "zero rows": lambda generator: generator.normal(0, 0.02, (64, 512)) * (np.arange(64) % 3 > 0)[:, None],
}


@pytest.mark.parametrize("qtype", CODECS, ids=lambda qtype: qtype.name)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_odd_weights_are_no_fault(qtype: GGMLQuantizationType, name: str) -> None:
    values = DISTRIBUTIONS[name](np.random.default_rng(8)).astype(np.float32)
    shape = source().hyperparameters
    sides = [
        Model(
            shape,
            {
                "output": Part("output", MemoryRows(rows), "output.weight", qtype=kind),
                "token_embd": source().parts["token_embd"],
            },
        )
        for rows, kind in ((stored(values, qtype), qtype), (values, None))
    ]
    assert recognize("output.weight", *sides) is None


@matrix_types()
def test_an_absurd_weight_is_told_with_its_place(qtype: GGMLQuantizationType) -> None:
    recognition = found(qtype, GATE_UP, replaced(600, 130, 1e4))
    assert (recognition.code, recognition.rows) == ("absurd-value", (600, 600))
    assert "at row 600, column 130, where the source has" in recognition.sentence
    assert float(recognition.actual) == pytest.approx(1e4, rel=0.01)
    assert float(recognition.expected) == pytest.approx(float(exact()[GATE_UP][600, 130]), rel=1e-4)


@matrix_types()
def test_weights_that_are_no_numbers_are_counted(qtype: GGMLQuantizationType) -> None:
    values = good(DOWN, qtype).copy()
    values[100, 256:] = np.nan
    values[200, 0] = np.inf
    values[200, 1:256] = np.nan
    recognition = recognize(DOWN, file_with(qtype, {DOWN: values}, encoded=True), source())
    assert recognition is not None
    assert recognition.code == "non-finite"
    assert recognition.sentence == "512 weights are NaN or infinite, the first at row 100, column 256"
    assert recognition.rows == (100, 200)


@matrix_types()
def test_a_zeroed_block_is_placed(qtype: GGMLQuantizationType) -> None:
    def change(weights: Floats) -> Floats:
        weights[77, 256:] = 0
        return weights

    recognition = found(qtype, DOWN, change)
    assert (recognition.code, recognition.sentence) == ("zeroed", "columns 256 to 511 of row 77 are zero")
    assert recognition.rows == (77, 77)
    assert recognition.share == pytest.approx(1 / 256)


@matrix_types(TYPE.F32, TYPE.BF16, TYPE.Q8_0, TYPE.Q6_K, TYPE.Q5_K, TYPE.Q4_K)
def test_weights_of_another_training_step_are_told_from_rounding(qtype: GGMLQuantizationType) -> None:
    def change(weights: Floats) -> Floats:
        noise = np.random.default_rng(5).normal(0, 0.25, weights.shape)
        changed: Floats = (weights + noise * weights.std()).astype(np.float32)
        return changed

    recognition = found(qtype, GATE_UP, change)
    assert recognition.code == "other-checkpoint"
    assert float(recognition.actual.split()[-1]) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("lower", [TYPE.Q2_K, TYPE.Q3_K, TYPE.Q4_0], ids=lambda qtype: qtype.name)
@matrix_types(TYPE.F32, TYPE.F16, TYPE.Q8_0, TYPE.Q6_K)
def test_a_lower_type_before_is_named(qtype: GGMLQuantizationType, lower: GGMLQuantizationType) -> None:
    recognition = found(qtype, DOWN, lambda weights: stored(weights, lower))
    assert recognition.code == "requantized"
    assert f"made from weights that had been {lower.name}: relative error" in recognition.sentence


@matrix_types()
def test_weights_of_another_model_are_unrelated(qtype: GGMLQuantizationType) -> None:
    other = np.random.default_rng(6).normal(0, 0.05, (384, 256)).astype(np.float32)
    assert found(qtype, QKV, lambda _: other).code == "unrelated"


@matrix_types(TYPE.F32, TYPE.Q8_0, TYPE.Q4_K)
def test_factors_of_columns_are_told_from_factors_of_rows(qtype: GGMLQuantizationType) -> None:
    factors = np.random.default_rng(7).uniform(0.3, 3, 512).astype(np.float32)
    assert found(qtype, DOWN, lambda weights: weights * factors).code == "columns-scaled"
    assert found(qtype, DOWN, lambda weights: weights * factors[:256, None]).code == "rows-scaled"


def test_a_norm_folded_into_the_matrix_behind_it_is_named() -> None:
    recognition = found(TYPE.F32, QKV, lambda weights: weights * exact()["blk.1.attn_norm.weight"])
    assert recognition.code == "norm-folded"
    assert "blk.1.attn_norm.weight" in recognition.sentence


@matrix_types()
def test_a_small_factor_shows_in_all_rows_together(qtype: GGMLQuantizationType) -> None:
    recognition = found(qtype, GATE_UP, lambda weights: weights * np.float32(1.05))
    assert recognition.code == "scaled"
    assert float(recognition.actual.split()[-1]) == pytest.approx(1.05, abs=0.01)


def test_a_norm_of_another_training_step_is_not_damage() -> None:
    def change(norm: Floats) -> Floats:
        noise = np.random.default_rng(5).normal(0, 0.5 * norm.std(), norm.shape)
        changed: Floats = (norm + noise).astype(np.float32)
        return changed

    assert found(TYPE.F32, NORM, change).code == "other-checkpoint"


def test_a_norm_that_is_hardly_off_is_told_all_the_same() -> None:
    def change(norm: Floats) -> Floats:
        changed: Floats = norm + np.float32(0.01) * np.cos(np.arange(256)).astype(np.float32)
        return changed

    assert found(TYPE.F32, NORM, change).code == "other-checkpoint"


@matrix_types()
def test_half_of_every_row_zeroed_is_damage(qtype: GGMLQuantizationType) -> None:
    def change(weights: Floats) -> Floats:
        weights[:120, 256:] = 0
        return weights

    recognition = found(qtype, DOWN, change)
    assert (recognition.code, recognition.rows) == ("zeroed", (0, 119))


def test_a_transposed_shape_is_recognized() -> None:
    values = {DOWN: np.ascontiguousarray(exact()[DOWN].T)}
    model = file_with(TYPE.Q8_0, values)
    recognition = recognize(DOWN, model, source())
    assert recognition is not None
    assert (recognition.code, recognition.actual) == ("transposed", "shape (512, 256)")


def test_missing_rows_are_counted() -> None:
    recognition = recognize(EMBEDDING, file_with(TYPE.Q8_0, {EMBEDDING: exact()[EMBEDDING][:1000]}), source())
    assert recognition is not None
    assert (recognition.code, recognition.sentence) == ("rows-missing", "24 rows are missing; the others are right")


def test_a_tensor_that_one_side_lacks_is_not_recognized() -> None:
    assert recognize("blk.9.ffn_up.weight", file_with(TYPE.F32, {}), source()) is None


def swapped(one: str, other: str) -> dict[str, Floats]:
    return {one: exact()[other], other: exact()[one]}


@matrix_types()
def test_exchanged_tensors_are_one_fault(qtype: GGMLQuantizationType) -> None:
    one, other = "blk.0.ffn_down.weight", "blk.3.ffn_down.weight"
    [recognition] = recognize_all((one, other), file_with(qtype, swapped(one, other)), source())
    assert (recognition.code, recognition.tensors) == ("exchanged", (one, other))
    assert f"{recognition.subject}: {recognition.sentence}" == f"{one}: exchanged with {other}"


def layer(index: int) -> tuple[str, ...]:
    return tuple(name for name in exact() if name.startswith(f"blk.{index}."))


def moved(*pairs: tuple[int, int]) -> dict[str, Floats]:
    """Layers that hold the weights of others."""
    return {
        name: exact()[name.replace(f"blk.{target}.", f"blk.{origin}.")]
        for target, origin in pairs
        for name in layer(target)
    }


@pytest.mark.parametrize(
    ("pairs", "code", "words"),
    [
        (((1, 3), (3, 1)), "exchanged", "layers 1 and 3: all their tensors are exchanged"),
        (((2, 0),), "copy", "layer 2: all its tensors are those of layer 0"),
        (((0, 1), (1, 2), (2, 3)), "layers-shifted", "layers 0 to 2: their tensors are those of layers 1 to 3"),
    ],
)
@matrix_types(TYPE.F32, TYPE.Q2_K)
def test_whole_layers_are_one_fault(
    qtype: GGMLQuantizationType, pairs: tuple[tuple[int, int], ...], code: str, words: str
) -> None:
    suspects = [name for target, _ in pairs for name in layer(target)]
    [recognition] = recognize_all(suspects, file_with(qtype, moved(*pairs)), source())
    assert recognition.code == code
    assert f"{recognition.subject}: {recognition.sentence}" == words
    assert set(recognition.tensors) == set(suspects)


def test_the_same_fault_in_every_layer_is_one() -> None:
    suspects = [f"blk.{index}.ffn_up.weight" for index in range(4)]
    model = file_with(TYPE.Q4_K, {name: np.roll(exact()[name], 512, axis=0) for name in suspects})
    [recognition] = recognize_all(suspects, model, source())
    assert recognition.subject == "blk.0.ffn_up.weight and 3 more"
    assert (recognition.code, recognition.tensors) == ("gate-up-swapped", tuple(suspects))


def test_two_faults_stay_two() -> None:
    changed = {DOWN: -exact()[DOWN], OUT: exact()[OUT].T}
    recognitions = recognize_all(tuple(changed), file_with(TYPE.Q8_0, changed), source())
    assert [(each.code, each.subject) for each in recognitions] == [("negated", DOWN), ("transposed", OUT)]


def test_a_file_of_another_training_step_is_one_fault() -> None:
    generator = np.random.default_rng(1)
    changed = {
        name: (values + generator.normal(0, 0.3, values.shape) * values.std()).astype(np.float32)
        for name, values in exact().items()
        if values.ndim == 2
    }
    [recognition] = recognize_all(tuple(changed), file_with(TYPE.Q6_K, changed), source())
    assert recognition.code == "other-checkpoint"
    assert recognition.sentence.startswith("not made from this checkpoint; ")
    assert len(recognition.tensors) == len(changed)


def test_a_suspect_that_nothing_is_wrong_with_stays_in_the_list() -> None:
    [recognition] = recognize_all((DOWN,), file_with(TYPE.Q8_0, {}), source())
    assert (recognition.code, recognition.tensors) == ("unexplained", (DOWN,))
