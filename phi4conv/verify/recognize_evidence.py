"""One tensor of a file beside the source's weights, and whether rows of the file are what is expected of them.

A tensor is looked at as a whole, in the checkpoint's order: q, k and v one below the other, gate above up. How far
a good row may be from the source is measured by encoding the source's row in the tensor's type, so that every type
has its own limit and so have rows of odd distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Floats
from phi4conv.gguf_file.rows import GGUFRows
from phi4conv.quant import CODECS, decode, encode
from phi4conv.reference.hyperparameters import Hyperparameters
from phi4conv.reference.parts import HEAD, Model, Part
from phi4conv.reference.permuted_rows import PermutedRows
from phi4conv.rows import RowSource, SlicedRows, StackedRows, row_count

Indices = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Relative error that one row may have in a good file, by what the type leaves of it without an importance matrix.
# With one, rows of a single superblock had errors up to (measured on the tiny checkpoint's weights, importances spread
# log-normally by e^2 and e^3; most rows at 1.1 and 1.2 times their own error):
#     Q6_K 0.043, 0.089   Q5_K 0.053, 0.112   Q4_K 0.124, 0.199   Q3_K 0.227, 0.255   Q2_K 0.413, 0.471
# Where 16-bit words lie between, F32 differs by 2e-3.
LIMIT_TIMES_OWN, IMPORTANCE_LIMIT = 2.2, 0.06
SMALLEST_LIMIT, LARGEST_LIMIT = 0.004, 0.62

# When most rows are beyond this many times their own error, no importance matrix explains it.
USUAL_TIMES_OWN = 1.6
ROWS_FOR_USUAL = 8

# Rows of less than this part of the usual norm say nothing of where they come from (unused tokens are zeros).
EMPTY_ROW = 1e-4

# The share of the rows that a hypothesis must explain; the rest may lie at an edge, or be damaged besides.
EXPLAINED_SHARE = 0.9

# How much nearer than the source's own rows those of a hypothesis must be.
GAIN = 0.7

PART_LABELS = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "ffn_gate": "gate", "ffn_up": "up"}
GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class Segment:
    """Rows start to stop of a tensor that are one part of the model: "attn_k", which users call "k"."""

    part: str
    label: str
    start: int
    stop: int


@dataclass(frozen=True)
class TensorView:
    """A tensor of the file and what the source has for it.

    Attributes:
        tensor: Its name in the file.
        parts: The file's parts that it holds, in the order of its rows.
        found: All its rows.
        expected: The source's rows for the same parts, in the same order.
        segments: Where each part lies, by the source's shapes.
        qtype: The tensor's type; F32 where that is not known.
    """

    tensor: str
    parts: tuple[Part, ...]
    found: RowSource
    expected: RowSource
    segments: tuple[Segment, ...]
    qtype: GGMLQuantizationType

    @property
    def row_count(self) -> int:
        """How many rows the source has for it."""
        return row_count(self.expected.shape)

    @property
    def width(self) -> int:
        """Weights in a row."""
        return self.expected.shape[-1]

    def found_at(self, rows: Indices) -> Floats:
        """Some rows of the file."""
        return rows_at(self.found, rows)

    @property
    def stored(self) -> tuple[GGUFRows, Indices] | None:
        """The tensor as it lies in the file, and for each row that is seen here its row there; None in memory."""
        tensor: GGUFRows | None = None
        orders = []
        for part in self.parts:
            rows, order = part.rows, np.arange(row_count(part.shape), dtype=np.int64)
            while isinstance(rows, (SlicedRows, PermutedRows)):
                order = order + rows.start if isinstance(rows, SlicedRows) else rows.places(0, rows.shape[0])[order]
                rows = rows.whole
            if not isinstance(rows, GGUFRows):
                return None
            tensor = rows
            orders.append(order)
        return None if tensor is None else (tensor, np.concatenate(orders))

    @property
    def is_permuted(self) -> bool:
        """Whether the file's architecture shuffles q and k, so that they are put in order to be seen here."""
        return any(isinstance(part.rows, PermutedRows) for part in self.parts)


def tensor_view(tensor: str, found: Model, source: Model) -> TensorView | None:
    """The view of a tensor by its name in the file; None when a side has nothing of it."""
    names = parts_of(tensor, found)
    expected = [source.head if name == HEAD else source.parts.get(name) for name in names]
    sources = [part for part in expected if part is not None]
    if not names or len(sources) < len(names):
        return None
    segments, start = [], 0
    for name, part in zip(names, sources, strict=True):
        stop = start + row_count(part.shape)
        role = name.rpartition(".")[2]
        segments.append(Segment(role, PART_LABELS.get(role, role), start, stop))
        start = stop
    parts = tuple(found.parts[name] for name in names)
    qtype = parts[0].qtype or GGMLQuantizationType.F32
    return TensorView(tensor, parts, stacked(parts), stacked(tuple(sources)), tuple(segments), qtype)


def parts_of(tensor: str, model: Model) -> tuple[str, ...]:
    """The names of the parts that a tensor holds, in the order of its rows."""
    held = [(part.first_row, name) for name, part in model.parts.items() if part.tensor == tensor]
    return tuple(name for _, name in sorted(held, key=lambda each: each[0]))


def stacked(parts: tuple[Part, ...]) -> RowSource:
    """The rows of all parts, one part below the other."""
    return parts[0].rows if len(parts) == 1 else StackedRows(tuple(part.rows for part in parts))


def rows_at(source: RowSource, rows: Indices) -> Floats:
    """Some rows of a source, in the order asked for: float32 (rows, width)."""
    wanted, places = np.unique(rows, return_inverse=True)
    pieces = [
        source.rows(int(run[0]), int(run[-1]) + 1)
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        if len(run)
    ]
    taken: Floats = np.concatenate(pieces)[places.reshape(-1)]
    return taken


def spread(count: int, wanted: int) -> Indices:
    """Up to `wanted` row numbers below count, ascending: one in each of equal stretches, and both ends.

    The place within a stretch follows the golden ratio, because even steps meet the same row of every head.
    """
    if count <= wanted:
        return np.arange(count, dtype=np.int64)
    within = np.modf((np.arange(wanted) + 1) * GOLDEN_RATIO)[0]
    places = ((np.arange(wanted) + within) * (count / wanted)).astype(np.int64)
    return np.unique(np.concatenate([places, [0, 1, count - 2, count - 1]]))


def halves_of(count: int) -> tuple[Indices, Indices]:
    """Every other number below count, and the rest; all of them twice where there is one."""
    numbers = np.arange(count, dtype=np.int64)
    return (numbers[::2], numbers[1::2]) if count > 1 else (numbers, numbers)


def squares(weights: npt.NDArray[np.floating]) -> Doubles:
    """The sum of squares of each row, in float64, where no float32 overflows: (rows, width) -> (rows,)."""
    wide = weights.astype(np.float64)
    sums: Doubles = np.einsum("rc,rc->r", wide, wide)
    return sums


def row_errors(found: Floats, expected: Floats) -> Doubles:
    """The relative error of each row, (rows,): 0 for two rows of zeros, infinite for a row that is not finite."""
    wide = expected.astype(np.float64)
    norms = squares(expected)
    usual = float(np.median(norms[norms > 0])) if (norms > 0).any() else 1.0
    errors = np.sqrt(squares(found.astype(np.float64) - wide) / np.maximum(norms, usual * EMPTY_ROW**2))
    errors[np.isnan(errors)] = np.inf
    return errors


def through(qtype: GGMLQuantizationType, weights: Floats) -> Floats:
    """Weights as they come out of a type; what is not finite goes in as zero."""
    codec = CODECS[qtype]
    finite = np.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0)
    return decode(codec, encode(codec, np.ascontiguousarray(finite)))


def encoding_errors(qtype: GGMLQuantizationType, rows: Floats) -> Doubles:
    """The relative error of each row once encoded in the type, (rows,)."""
    return row_errors(through(qtype, rows), rows)


def limits(qtype: GGMLQuantizationType, own: Doubles, smallest: float = SMALLEST_LIMIT) -> Doubles:
    """The relative errors of a good file's rows or cells, by what encoding alone leaves of each."""
    more = IMPORTANCE_LIMIT if CODECS[qtype].uses_importance else 0.0
    return np.maximum(np.clip(own * LIMIT_TIMES_OWN + more, smallest, LARGEST_LIMIT), own * 1.1)


def slope_limits(own: Doubles, count: int) -> Doubles:
    """How far from 1 the factor between file and source may be over so many weights, by the type's own errors.

    An importance matrix makes superblocks smaller, by 26 % at most at Q2_K (error 0.30) and 13 % at Q3_K (0.15),
    measured as above; six times the noise is added. In rows of one value all errors go the same way.
    """
    return 0.012 + np.maximum(own * (0.5 + own + 6 / math.sqrt(count)), own * 1.1)


def fitting(qtype: GGMLQuantizationType, found: Floats, expected: Floats) -> Mask:
    """Which rows of the file are the expected ones as far as the type can tell, (rows,)."""
    if not np.isfinite(expected).all():
        return np.zeros(len(found), np.bool_)
    errors = row_errors(found, expected)
    if (errors > 2).all():  # spares the encoding of what nothing can make fit
        return np.zeros(len(found), np.bool_)
    own = encoding_errors(qtype, expected)
    usual: Mask = errors <= np.maximum(own * USUAL_TIMES_OWN, SMALLEST_LIMIT)
    if len(usual) >= ROWS_FOR_USUAL and usual.mean() < 0.5:
        return usual
    norms = squares(expected)
    products = np.einsum("rc,rc->r", found.astype(np.float64), expected.astype(np.float64))
    fits: Mask = errors <= limits(qtype, own)
    fits &= np.abs(products - norms) <= norms * slope_limits(own, expected.shape[1])
    return fits


@dataclass(frozen=True)
class Evidence:
    """Some rows of a tensor as both sides have them.

    Attributes:
        rows: Their numbers, ascending.
        found: The file's: (rows, width).
        expected: The source's: (rows, width).
        errors: Relative error of each, (rows,).
        bad: Which of them are not what the source calls for, (rows,).
    """

    rows: Indices
    found: Floats
    expected: Floats
    errors: Doubles
    bad: Mask

    def where(self, chosen: Mask | Indices) -> Evidence:
        """Some of the rows."""
        return Evidence(
            self.rows[chosen], self.found[chosen], self.expected[chosen], self.errors[chosen], self.bad[chosen]
        )


def gather(view: TensorView, rows: Indices) -> Evidence:
    """Rows of a tensor from both sides, judged."""
    found, expected = rows_at(view.found, rows), rows_at(view.expected, rows)
    return Evidence(rows, found, expected, row_errors(found, expected), ~fitting(view.qtype, found, expected))


@dataclass(frozen=True)
class Case:
    """A tensor that is wrong, and what is known of it.

    Attributes:
        view: The tensor.
        found: The whole file.
        source: The whole source.
        trial: Rows on which hypotheses are tried, bad ones and some good ones.
        proof: Other rows, if the tensor has them, on which they must hold, too.
        bad_rows: The numbers of the bad rows that are known, ascending.
        whole: Whether (nearly) all rows are bad.
        complete: Whether bad_rows are all there are; otherwise they are a sample.
        thorough: Whether hypotheses that read the whole tensor are worth their time.
    """

    view: TensorView
    found: Model
    source: Model
    trial: Evidence
    proof: Evidence
    bad_rows: Indices
    whole: bool
    complete: bool
    thorough: bool = True

    @property
    def shape(self) -> Hyperparameters:
        """What the source says of heads and sizes."""
        return self.source.hyperparameters

    @property
    def bad_segments(self) -> tuple[Segment, ...]:
        """The parts that hold bad rows."""
        return tuple(
            segment
            for segment in self.view.segments
            if ((self.bad_rows >= segment.start) & (self.bad_rows < segment.stop)).any()
        )


@dataclass(frozen=True)
class Hypothesis:
    """What may have happened to a tensor.

    Attributes:
        code: Its kebab-case name.
        sentence: What happened, to follow the tensor's name and a colon.
        weights: The rows of these numbers as the file would hold them before they are encoded: (rows, width).
        other_tensor: The tensor whose weights these are.
        expected: What should be there, in few words.
        actual: What would be there instead.
    """

    code: str
    sentence: str
    weights: Callable[[Indices], Floats]
    other_tensor: str | None = None
    expected: str = ""
    actual: str = ""


def arrangement(code: str, sentence: str, order: Indices, source: RowSource, **texts: str) -> Hypothesis:
    """A hypothesis of rows in another order: row i of the file holds row order[i] of the source."""
    return Hypothesis(code, sentence, lambda rows: rows_at(source, order[rows]), **texts)


def on_bad_rows(case: Case, weights: Callable[[Indices], Floats]) -> Callable[[Indices], Floats]:
    """The source's rows, but other weights where the case is bad: everywhere, in whole parts, or in known rows."""

    def changed(rows: Indices) -> Floats:
        if case.whole:
            return weights(rows)
        if case.complete:
            chosen = np.isin(rows, case.bad_rows)
        else:
            chosen = np.zeros(len(rows), np.bool_)
            for each in case.bad_segments:
                chosen |= (rows >= each.start) & (rows < each.stop)
        expected = rows_at(case.view.expected, rows)
        if chosen.any():
            expected[chosen] = weights(rows[chosen])
        return expected

    return changed


def changed_rows(case: Case, change: Callable[[Floats], Floats]) -> Callable[[Indices], Floats]:
    """The source's rows, changed where the case is bad."""
    return on_bad_rows(case, lambda rows: change(rows_at(case.view.expected, rows)))


def explains(case: Case, hypothesis: Hypothesis) -> bool:
    """Whether the hypothesis holds on the rows of the trial, and then on those of the proof."""
    return holds(case.view.qtype, case.trial, hypothesis) and holds(case.view.qtype, case.proof, hypothesis)


def holds(qtype: GGMLQuantizationType, evidence: Evidence, hypothesis: Hypothesis) -> bool:
    """Whether the file's rows are those of the hypothesis, bad ones and good ones, and not just as far from both."""
    predicted = hypothesis.weights(evidence.rows)
    fits = fitting(qtype, evidence.found, predicted)
    bad = evidence.bad
    if not (enough(fits[bad]) and enough(fits[~bad])):
        return False
    gained = row_errors(evidence.found, predicted)[bad] < GAIN * evidence.errors[bad]
    return enough(gained)


def enough(fits: Mask) -> bool:
    """Whether so many of the rows fit that the others may be an edge: all of fewer than ten."""
    return bool(fits.all()) if len(fits) < 10 else float(fits.mean()) >= EXPLAINED_SHARE
