"""Pairs of neighbours joined, the best pair first: what byte-pair encoding and SentencePiece have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TypeVar

Part = TypeVar("Part", str, bytes)


def merged(parts: Sequence[Part], rank: Callable[[Part, Part], float | None]) -> list[Part]:
    """The parts after all joining: always the two neighbours of the lowest rank, of equal ones the leftmost.

    rank is of two neighbours, None where they must not be joined. The parts are a linked list and the pairs a heap, so
    that n parts take about n log n steps.

    >>> merged("aaab", lambda left, right: {"aa": 0, "aab": 1}.get(left + right))
    ['aa', 'a', 'b']
    """
    joined: list[Part] = list(parts)
    before = list(range(-1, len(joined) - 1))
    after = [*range(1, len(joined)), -1]
    # Rank, the places of both parts, and their length together, by which a part that has grown since is recognized.
    pairs = [
        (number, place, place + 1, len(left) + len(right))
        for place, (left, right) in enumerate(pairwise(joined))
        if (number := rank(left, right)) is not None
    ]
    heapify(pairs)
    while pairs:
        _, left_place, right_place, length = heappop(pairs)
        left, right = joined[left_place], joined[right_place]
        if not left or not right or len(left) + len(right) != length:
            continue
        joined[left_place] = left + right
        joined[right_place] = joined[right_place][:0]
        after[left_place] = after[right_place]
        if after[right_place] >= 0:
            before[after[right_place]] = left_place
        for first, second in ((before[left_place], left_place), (left_place, after[left_place])):
            if first >= 0 <= second and (number := rank(joined[first], joined[second])) is not None:
                heappush(pairs, (number, first, second, len(joined[first]) + len(joined[second])))
    return [part for part in joined if part]
