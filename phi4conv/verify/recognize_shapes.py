"""Tensors of another shape than the source's, which llama.cpp refuses: whether the weights at least are there."""

from __future__ import annotations

from phi4conv.rows import row_count
from phi4conv.verify.recognize_evidence import Hypothesis, TensorView, enough, fitting, rows_at, spread
from phi4conv.verify.recognize_tensors import transposed_rows

COMPARED_ROWS = 24


def other_shape(view: TensorView) -> Hypothesis:
    """What a tensor of another shape holds."""
    here, there = view.found.shape, view.expected.shape
    texts = {"expected": f"shape {there}", "actual": f"shape {here}"}

    def named(code: str, sentence: str) -> Hypothesis:
        return Hypothesis(code, sentence, lambda rows: rows_at(view.expected, rows), **texts)

    if len(here) == 2 and here == there[::-1]:
        rows = spread(here[0], COMPARED_ROWS)
        found = rows_at(view.found, rows)
        if enough(fitting(view.qtype, found, transposed_rows(view.expected, rows, here[1]))):
            return named("transposed", f"it is transposed, shape {here} instead of {there}")
    if here[-1] == there[-1]:
        count, wanted = row_count(here), row_count(there)
        rows = spread(min(count, wanted), COMPARED_ROWS)
        agree = enough(fitting(view.qtype, rows_at(view.found, rows), rows_at(view.expected, rows)))
        difference = f"{abs(wanted - count):,} rows are {'missing' if count < wanted else 'too many'}"
        those = "the others are right" if agree else "and the others are not the source's in this order"
        return named("rows-missing" if count < wanted else "rows-added", f"{difference}; {those}")
    return named("other-shape", f"it has the shape {here} instead of {there}")
