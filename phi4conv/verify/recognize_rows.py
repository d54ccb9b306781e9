"""Which row of the source each row of the file holds, found by comparing them all, and what the pattern is called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from phi4conv.arrays import Floats
from phi4conv.verify.recognize_evidence import (
    GAIN,
    Case,
    Doubles,
    Hypothesis,
    Indices,
    Mask,
    Segment,
    TensorView,
    arrangement,
    enough,
    fitting,
    row_errors,
    rows_at,
    squares,
)
from phi4conv.verify.recognize_tensors import chunks

# The share of the compared rows that must be found in the source for a pattern to be looked for.
FOUND_SHARE = 0.7

# The share of the rows that move alike in a shift; the others are at its edges.
ALIKE_SHARE = 0.6

# Heads or rows that a sentence lists.
SHOWN = 6

EDGE_ROWS = 8


@dataclass(frozen=True)
class Matches:
    """Rows of the file and the rows of the source whose weights they hold.

    Attributes:
        rows: The file's, ascending.
        origins: The source's.
    """

    rows: Indices
    origins: Indices

    @property
    def moves(self) -> Indices:
        """How many rows further down the source has them."""
        return self.origins - self.rows


def best_matches(view: TensorView, found: Floats) -> Indices:
    """For each of these rows (rows, width) the source's row of the highest cosine, (rows,); the source is read once."""
    norms = np.sqrt(squares(found))
    unit = np.divide(found, norms[:, None], out=np.zeros(found.shape), where=norms[:, None] > 0).astype(np.float32)
    best: Doubles = np.full(len(found), -np.inf)
    origins = np.zeros(len(found), np.int64)
    for start, chunk in chunks(view.expected):
        lengths = np.sqrt(np.einsum("rc,rc->r", chunk, chunk))
        products = chunk @ unit.T  # (chunk rows, rows)
        cosines = np.divide(products, lengths[:, None], out=np.zeros_like(products), where=lengths[:, None] > 0)
        places = cosines.argmax(axis=0)
        values = cosines[places, np.arange(len(found))]
        better = values > best
        best[better] = values[better]
        origins[better] = start + places[better]
    return origins


def matched(case: Case) -> Matches | None:
    """Where the bad rows come from; None when too few of them are rows of this tensor at all."""
    view = case.view
    rows = np.union1d(case.trial.rows[case.trial.bad], case.proof.rows[case.proof.bad])
    heads = head_rows(case)
    rows = np.union1d(rows, heads)
    found = rows_at(view.found, rows)
    if not np.isfinite(found).any():
        return None
    found = np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
    origins = best_matches(view, found)
    predicted, own = rows_at(view.expected, origins), rows_at(view.expected, rows)
    fits = fitting(view.qtype, found, predicted)
    fits_own = fitting(view.qtype, found, own)
    # Rows that are alike in the source, such as those of unused tokens, count as unmoved.
    origins[fits_own] = rows[fits_own]
    fits |= fits_own
    moved = ~fits_own & fits & (row_errors(found, predicted) < GAIN * row_errors(found, own))
    wrong = ~fits_own
    if not wrong.any() or moved.sum() < FOUND_SHARE * wrong.sum():
        return None
    keep = moved | np.isin(rows, heads) & fits
    return Matches(rows[keep], origins[keep])


def head_rows(case: Case) -> Indices:
    """One row of each head of q, k and v where they hold bad rows."""
    size = case.shape.head_size
    starts = [
        np.arange(each.start, each.stop, size, dtype=np.int64)
        for each in case.bad_segments
        if each.part in ("attn_q", "attn_k", "attn_v") and (each.stop - each.start) % size == 0
    ]
    return np.concatenate([np.empty(0, np.int64), *starts]) + size // 3


def row_patterns(case: Case) -> Iterator[Hypothesis]:
    """What the bad rows hold of the source's other rows, as a pattern, the plainest first."""
    if not case.thorough or case.view.row_count == 1:
        return
    matches = matched(case)
    if matches is None:
        return
    moved = Matches(matches.rows[matches.moves != 0], matches.origins[matches.moves != 0])
    if not len(moved.rows):
        return
    yield from heads_in_order(case, matches)
    yield from swapped_rows(case, moved)
    yield from shifted_rows(case, moved)
    yield from reversed_run(case, moved)
    yield from any_order(case, moved)


def unchanged(case: Case) -> Indices:
    """The order of a good tensor."""
    return np.arange(case.view.row_count, dtype=np.int64)


def run(first: int, last: int) -> str:
    """Rows in words."""
    return f"row {first}" if first == last else f"rows {first} to {last}"


def swapped_rows(case: Case, moved: Matches) -> Iterator[Hypothesis]:
    """Two rows, or two runs of rows, in each other's place."""
    distances = np.unique(np.abs(moved.moves))
    if len(distances) != 1 or not case.complete:
        return
    distance = int(distances[0])
    down = moved.rows[moved.moves > 0]
    up = moved.rows[moved.moves < 0]
    if not len(down) or not len(up) or down.max() >= up.min():
        return
    bad = case.bad_rows
    upper = bad[np.isin(bad + distance, bad) & (bad < up.min())]
    order = unchanged(case)
    order[upper], order[upper + distance] = upper + distance, upper
    if len(upper) == 1:
        sentence = f"rows {upper[0]} and {upper[0] + distance} are swapped"
    else:
        first, last = int(upper[0]), int(upper[-1])
        sentence = f"{run(first, last)} and {run(first + distance, last + distance)} are swapped"
    yield arrangement("rows-swapped", sentence, order, case.view.expected)


def heads_in_order(case: Case, matches: Matches) -> Iterator[Hypothesis]:
    """Whole heads of q, k or v in other places of the same part."""
    size = case.shape.head_size
    order = unchanged(case)
    sentences = []
    for segment in case.bad_segments:
        heads = head_order(segment, matches, size)
        if heads is None:
            return
        order[segment.start : segment.stop] = (segment.start + heads[:, None] * size + np.arange(size)).reshape(-1)
        sentences.append(heads_in_words(segment.label, heads))
    if sentences:
        yield arrangement("heads-reordered", "; ".join(sentences), order, case.view.expected)


def head_order(segment: Segment, matches: Matches, size: int) -> Indices | None:
    """The source's head that each head of a part holds; None when heads did not move as a whole."""
    starts = np.arange(segment.start, segment.stop, size) + size // 3
    known = np.isin(starts, matches.rows)
    if segment.part not in ("attn_q", "attn_k", "attn_v") or (segment.stop - segment.start) % size or not known.all():
        return None
    origins = matches.origins[np.searchsorted(matches.rows, starts)]
    inside = (origins >= segment.start) & (origins < segment.stop)
    if not inside.all() or ((origins - starts) % size).any():
        return None
    heads: Indices = (origins - segment.start) // size
    moved = (heads != np.arange(len(heads))).any()
    return heads if moved and len(np.unique(heads)) == len(heads) else None


def heads_in_words(label: str, heads: Indices) -> str:
    """What happened to the heads of a part."""
    moved = np.flatnonzero(heads != np.arange(len(heads)))
    if len(moved) == 2:
        return f"heads {moved[0]} and {moved[1]} of {label} are swapped"
    shown = ", ".join(str(head) for head in heads[:SHOWN])
    return f"the heads of {label} are in another order: {shown}{', ...' if len(heads) > SHOWN else ''}"


def shifted_rows(case: Case, moved: Matches) -> Iterator[Hypothesis]:
    """All rows, or one run of them, so many places from where they belong."""
    moves, counts = np.unique(moved.moves, return_counts=True)
    move = int(moves[counts.argmax()])
    bad, count = case.bad_rows, case.view.row_count
    if case.whole and not case.complete:
        first, last = 0, count - 1
    elif case.complete:
        first, last = int(bad[0]), int(bad[-1])
    else:
        first, last = case.bad_segments[0].start, case.bad_segments[-1].stop - 1
    length = last - first + 1
    if length == 1:
        order = unchanged(case)
        order[first] = first + move
        yield arrangement(
            "row-copied", f"row {first} holds the weights of row {first + move}", order, case.view.expected
        )
        return
    if counts.max() < ALIKE_SHARE * len(moved.rows):
        return
    # Round the run's own end, out of the run, or round the tensor's end.
    inside = unchanged(case)
    inside[first : last + 1] = first + (np.arange(length) + move) % length
    outside = unchanged(case)
    outside[first : last + 1] = (outside[first : last + 1] + move) % count
    everywhere = length >= count - abs(move)
    name = "all rows are" if everywhere else f"{run(first, last)} are"
    way = f"{abs(move)} {'rows' if abs(move) > 1 else 'row'} {'up' if move > 0 else 'down'}"
    holds = f"row {first + max(0, -move)} holds row {first + max(0, -move) + move}"
    rounds = edge_fits(case, inside, first, last, move)
    options = [(inside, f"{name} shifted {way}, cyclically ({holds})"), (outside, f"{name} shifted {way} ({holds})")]
    for order, sentence in options if rounds else reversed(options):
        yield arrangement("rows-shifted", sentence, order, case.view.expected)


def edge_fits(case: Case, order: Indices, first: int, last: int, move: int) -> bool:
    """Whether the rows that a shift pushes over the edge have come in at the other one."""
    edge = np.arange(last - move + 1, last + 1) if move > 0 else np.arange(first, first - move)
    edge = edge[(edge >= first) & (edge <= last)][:EDGE_ROWS]
    found = rows_at(case.view.found, edge)
    fits: Mask = fitting(case.view.qtype, found, rows_at(case.view.expected, order[edge]))
    return enough(fits)


def reversed_run(case: Case, moved: Matches) -> Iterator[Hypothesis]:
    """A run of rows from its last to its first."""
    sums = np.unique(moved.rows + moved.origins)
    if len(sums) != 1 or not case.complete:
        return
    first, last = int(case.bad_rows[0]), int(case.bad_rows[-1])
    order = unchanged(case)
    order[first : last + 1] = sums[0] - order[first : last + 1]
    if order.min() < 0 or order.max() >= case.view.row_count:
        return
    yield arrangement("rows-reversed", f"{run(first, last)} are in reverse order", order, case.view.expected)


def any_order(case: Case, moved: Matches) -> Iterator[Hypothesis]:
    """Rows that are all the source's, without a pattern that has a name."""
    order = unchanged(case)
    order[moved.rows] = moved.origins
    one_row = len(np.unique(moved.origins)) == 1
    pairs = [f"row {row} holds row {origin}" for row, origin in zip(moved.rows, moved.origins, strict=True)]
    shown = ", ".join(pairs[:3]) + (", ..." if len(pairs) > 3 else "")
    if one_row:
        first, last = int(moved.rows[0]), int(moved.rows[-1])
        sentence = f"rows {first} to {last} all hold the weights of row {moved.origins[0]}"
        yield arrangement("rows-copied", sentence, order, case.view.expected)
    else:
        yield arrangement("rows-permuted", f"its rows are in another order: {shown}", order, case.view.expected)
