"""The orders that converters have been seen to put rows in by mistake, each tried on some rows of a tensor.

A fused tensor's parts lie one below the other: q, k, v; gate, up. Rows of q and k belong to heads. Every function here
takes a case and yields hypotheses, the likelier ones first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from phi4conv.reference.permuted_rows import can_be_permuted
from phi4conv.verify.recognize_evidence import Case, Hypothesis, Indices, Segment, TensorView, arrangement, rows_at

# Devices that training programs split a model over, each with its own share of every part.
SHARD_COUNTS = (2, 4, 8, 16)

# The parts that rotary positions turn, and whose heads llama.cpp's converter shuffles for the llama architecture.
ROTATED = ("attn_q", "attn_k")


def laid_out(segments: tuple[Segment, ...]) -> Indices:
    """Row numbers of these parts, one part below the other."""
    return np.concatenate([np.arange(each.start, each.stop, dtype=np.int64) for each in segments])


def labels(segments: tuple[Segment, ...]) -> str:
    """The parts' labels as a list: "k, q, v"."""
    return ", ".join(each.label for each in segments)


def other_orders(case: Case) -> Iterator[Hypothesis]:
    """The parts of a fused tensor in any other order, or one of them twice and another not at all."""
    view = case.view
    segments = view.segments
    for order in product(segments, repeat=len(segments) if len(segments) > 1 else 0):
        if order == segments or sum(each.stop - each.start for each in order) != view.row_count:
            continue
        rows = laid_out(order)
        if np.array_equal(rows, np.arange(view.row_count)):
            continue
        is_swap = len(set(order)) == 2 == len(segments)
        if is_swap:
            yield arrangement(
                "gate-up-swapped",
                f"{labels(segments).replace(', ', ' and ')} halves are swapped",
                rows,
                view.expected,
                expected=f"{segments[0].label} above {segments[1].label}",
                actual=f"{order[0].label} above {order[1].label}",
            )
            continue
        is_order = len(set(order)) == len(order)
        yield arrangement(
            "qkv-order" if is_order else "part-doubled",
            f"its rows are in the order {labels(order)}"
            if is_order
            else f"it holds {labels(order)} where {labels(segments)} belong",
            rows,
            view.expected,
            expected=labels(segments),
            actual=labels(order),
        )


def grouped(case: Case) -> Iterator[Hypothesis]:
    """Parts cut into groups that follow each other: by row, by kv head, or by the devices of a training run."""
    view = case.view
    segments = view.segments
    if len(segments) < 2:
        return
    kv_heads = case.shape.kv_head_count
    is_qkv = len(segments) > 2
    counts = [kv_heads if is_qkv else min(each.stop - each.start for each in segments), *SHARD_COUNTS]
    for count in dict.fromkeys(counts):
        if count < 2 or any((each.stop - each.start) % count for each in segments):
            continue
        for order in (segments, segments[::-1]) if not is_qkv else (segments,):
            pieces = [np.arange(each.start, each.stop, dtype=np.int64).reshape(count, -1) for each in order]
            rows = np.concatenate(pieces, axis=1).reshape(-1)
            named = labels(order).replace(", ", " and ") if not is_qkv else labels(order)
            by_row = pieces[0].shape[1] == 1
            if is_qkv and count == kv_heads:
                code, sentence = "qkv-grouped", f"{named} are grouped by kv head instead of lying apart"
            elif by_row:
                code, sentence = "gate-up-interleaved", f"{named} are interleaved row by row"
            else:
                code, sentence = "parts-interleaved", f"{named} alternate in {count} pieces each"
            yield arrangement(
                code,
                sentence,
                rows,
                view.expected,
                expected=f"all of {segments[0].label} above {labels(segments[1:])}",
                actual=f"{', '.join(each.label for each in order)}, {order[0].label}, ...",
            )


def shuffled(start: int, stop: int, head_size: int) -> Indices:
    """Rows start to stop as llama.cpp's converter shuffles heads: place 2 i takes row i, place 2 i + 1 row i + n/2.

    >>> shuffled(0, 4, 4).tolist()
    [0, 2, 1, 3]
    """
    heads = np.arange(start, stop, dtype=np.int64).reshape(-1, 2, head_size // 2)  # (heads, half, within)
    places: Indices = heads.swapaxes(1, 2).reshape(-1)
    return places


def permuted(case: Case) -> Iterator[Hypothesis]:
    """q, k or both with the rows of each head shuffled for the llama architecture, or shuffled back once too often."""
    view = case.view
    rotated = [each for each in view.segments if each.part in ROTATED]
    size = case.shape.head_size
    sizes = {each: (size, *other_head_sizes(case, each)) for each in rotated}
    states: dict[Segment, list[tuple[str, Indices]]] = {}
    for each in rotated:
        keep = np.arange(each.start, each.stop, dtype=np.int64)
        states[each] = [("", keep)]
        for head_size in sizes[each]:
            if not can_be_permuted((len(keep), view.width), head_size):
                continue
            forth = shuffled(each.start, each.stop, head_size)
            back = np.empty_like(forth)
            back[forth - each.start] = keep
            wrong_heads = "" if head_size == size else f" in heads of {head_size} rows instead of {size}"
            states[each] += [(f"forth{wrong_heads}", forth), (f"back{wrong_heads}", back)]
    for chosen in product(*states.values()):
        done = {kind for kind, _ in chosen if kind}
        if len(done) != 1:
            continue
        rows = np.arange(view.row_count, dtype=np.int64)
        for each, (_, order) in zip(rotated, chosen, strict=True):
            rows[each.start : each.stop] = order
        names = " and ".join(each.label for each, (kind, _) in zip(rotated, chosen, strict=True) if kind)
        names = names.replace("attn_", "")
        yield permutation(view, names, done.pop(), rows)


def permutation(view: TensorView, names: str, kind: str, rows: Indices) -> Hypothesis:
    """What it means that rows were shuffled forth, or back, depends on the file's architecture."""
    verb = "are" if " and " in names else "is"
    way, _, heads = kind.partition(" ")
    heads = heads and f" {heads}"
    if not view.is_permuted:
        expected, actual = "rows as in the checkpoint", "rows of each head shuffled"
        if way == "forth":
            code, sentence = "qk-permuted", f"{names} {verb} permuted{heads} as for the llama architecture"
        else:
            code = "qk-unpermuted"
            sentence = f"{names} {verb} permuted back{heads}, as out of a llama file that had not been permuted"
    else:
        expected = "rows of each head shuffled for llama's rotation"
        if way == "back":
            code, actual = "qk-not-permuted", "rows as in the checkpoint"
            sentence = f"{names} {verb} not permuted{heads}, as the llama architecture needs it"
        else:
            code, actual = "qk-permuted-twice", "rows shuffled twice"
            sentence = f"{names} {verb} permuted twice{heads} for the llama architecture"
    return arrangement(code, sentence, rows, view.expected, expected=expected, actual=actual)


def other_head_sizes(case: Case, segment: Segment) -> Iterator[int]:
    """The size that k's heads seem to have where the number of q's heads is taken for theirs."""
    rows = segment.stop - segment.start
    heads = case.shape.head_count
    if segment.part == "attn_k" and rows % heads == 0 and rows // heads != case.shape.head_size:
        yield rows // heads


def reversed_orders(case: Case) -> Iterator[Hypothesis]:
    """Rows or columns from the last to the first."""
    view = case.view
    if view.row_count > 1:
        order = np.arange(view.row_count, dtype=np.int64)[::-1]
        yield arrangement("rows-reversed", "its rows are in reverse order", order, view.expected)
    weights = "weights" if view.row_count == 1 else "columns"
    yield Hypothesis(
        "columns-reversed",
        f"its {weights} are in reverse order",
        lambda rows: np.ascontiguousarray(rows_at(view.expected, rows)[:, ::-1]),
    )


ARRANGEMENTS: tuple[Callable[[Case], Iterator[Hypothesis]], ...] = (
    other_orders,
    grouped,
    permuted,
    reversed_orders,
)
