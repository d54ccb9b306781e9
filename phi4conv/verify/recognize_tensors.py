"""Weights that belong to another tensor or part, and matrices that were transposed.

Every function here takes a case and yields hypotheses, the likelier ones first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from phi4conv.arrays import Floats
from phi4conv.rows import RowSource, SlicedRows, row_count
from phi4conv.verify.recognize_evidence import (
    Case,
    Hypothesis,
    Indices,
    TensorView,
    enough,
    fitting,
    on_bad_rows,
    row_errors,
    rows_at,
    spread,
    tensor_view,
)

Name = TypeVar("Name")

# Rows on which candidates are compared before one is tried in full.
SCREENING_ROWS = 4

GATE_AND_UP = {"ffn_gate.weight", "ffn_up.weight"}

# Rows on which two tensors are held to be exchanged.
COMPARED_ROWS = 24

# Weights read at once where a whole matrix is gone through: 16 MB as float32.
CHUNK_WEIGHTS = 1 << 22


def other_tensors(case: Case) -> Iterator[Hypothesis]:
    """Another tensor's weights: exchanged with it, a copy of it, or moved along."""
    view = case.view
    if not case.whole:
        return
    views = {
        name: other
        for name in dict.fromkeys(part.tensor for part in case.found.parts.values())
        if name != view.tensor
        and (other := tensor_view(name, case.found, case.source)) is not None
        and other.expected.shape == view.expected.shape
    }
    name = nearest(case, {name: other.expected for name, other in views.items()})
    if name is None:
        return
    other = views[name]
    if same(other, view.expected) and {one_role(name), one_role(view.tensor)} == GATE_AND_UP:
        code, sentence = "gate-up-swapped", f"gate and up are exchanged: it holds the weights of {name}"
    elif same(other, view.expected):
        code, sentence = "exchanged", f"exchanged with {name}"
    elif same(other, other.expected):
        code, sentence = "copy", f"a copy of {name}"
    else:
        code, sentence = "holds-other", f"it holds the weights of {name}"
    yield Hypothesis(
        code,
        sentence,
        lambda rows: rows_at(other.expected, rows),
        other_tensor=name,
        expected=f"the weights of {view.tensor}",
        actual=f"the weights of {name}",
    )


def one_role(tensor: str) -> str:
    """What a tensor is within its layer: "ffn_up.weight"."""
    return tensor.split(".", 2)[-1]


def nearest(case: Case, candidates: Mapping[Name, RowSource], first_row: int = 0) -> Name | None:
    """The candidate that is nearest to the file's bad rows, where each candidate's row 0 is the tensor's first_row."""
    bad = case.trial.where(case.trial.bad)
    chosen = bad.where(spread(len(bad.rows), SCREENING_ROWS))
    errors = {
        name: float(np.median(row_errors(chosen.found, rows_at(source, chosen.rows - first_row))))
        for name, source in candidates.items()
    }
    return min(errors, key=lambda name: errors[name], default=None)


def same(view: TensorView, expected: RowSource) -> bool:
    """Whether the file's tensor holds the rows of a source."""
    if view.found.shape != expected.shape:
        return False
    rows = spread(view.row_count, COMPARED_ROWS)
    return enough(fitting(view.qtype, rows_at(view.found, rows), rows_at(expected, rows)))


def other_parts(case: Case) -> Iterator[Hypothesis]:
    """One part of a fused tensor is another part of the model, another layer's for one."""
    view = case.view
    if case.whole or len(case.bad_segments) != 1:
        return
    segment = case.bad_segments[0]
    name = view.parts[view.segments.index(segment)].name
    shape = case.source.parts[name].shape
    parts = {other: part.rows for other, part in case.source.parts.items() if other != name and part.shape == shape}
    other = nearest(case, parts, segment.start)
    if other is None:
        return
    held_by = case.found.parts if other in case.found.parts else case.source.parts
    yield Hypothesis(
        "holds-other",
        f"its {segment.label} rows are those of {other}",
        on_bad_rows(case, lambda rows: rows_at(parts[other], rows - segment.start)),
        other_tensor=held_by[other].tensor,
        expected=name,
        actual=other,
    )


def transposed(case: Case) -> Iterator[Hypothesis]:
    """The transposed matrix in the declared shape: the whole tensor, or one square part of it."""
    view = case.view
    if not case.thorough or view.row_count == 1:
        return
    if case.whole:
        square = view.row_count == view.width
        yield Hypothesis(
            "transposed",
            "it is transposed" if square else "it is transposed, its data laid out in the declared shape",
            lambda rows: transposed_rows(view.expected, rows, view.width),
            expected="rows are outputs",
            actual="rows are inputs",
        )
    elif len(case.bad_segments) == 1:
        segment = case.bad_segments[0]
        if segment.stop - segment.start == view.width:
            part = SlicedRows(view.expected, segment.start, segment.stop)
            yield Hypothesis(
                "transposed",
                f"its {segment.label} rows are transposed",
                on_bad_rows(case, lambda rows: transposed_rows(part, rows - segment.start, view.width)),
                expected="rows are outputs",
                actual="rows are inputs",
            )


def transposed_rows(source: RowSource, rows: Indices, width: int) -> Floats:
    """Rows of the transposed matrix, its data read in rows of another width: (rows, width).

    The source (n, w) is read once, whole, but only some columns are kept: weight i of the transposed matrix's data is
    row i mod n, column i // n.
    """
    column, row = np.divmod(rows[:, None] * width + np.arange(width), row_count(source.shape))  # (rows, width)
    wanted, places = np.unique(column, return_inverse=True)
    kept = np.concatenate([chunk[:, wanted] for _, chunk in chunks(source)])  # (n, columns)
    weights: Floats = kept[row, places.reshape(row.shape)]
    return weights


def chunks(source: RowSource) -> Iterator[tuple[int, Floats]]:
    """All rows of a source, some megabytes at a time, each with the number of its first row."""
    count = row_count(source.shape)
    step = max(1, CHUNK_WEIGHTS // source.shape[-1])
    for start in range(0, count, step):
        yield start, source.rows(start, min(count, start + step))


TENSOR_CHANGES: tuple[Callable[[Case], Iterator[Hypothesis]], ...] = (other_tensors, other_parts)
