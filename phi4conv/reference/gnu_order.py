"""Two orders that C++ leaves to its standard library, and on which llama.cpp depends.

Where a file names no end-of-turn token, llama.cpp takes the first token with a fitting text that it meets in a
std::unordered_map; and of special tokens of one length, it looks in a text for the one first that std::sort has put
first. Both orders are defined here as in GNU's library (libstdc++, 64 bits), with which llama.cpp is built for Linux.
Builds for macOS and Windows may settle on another token.

Left out: the heap sort that std::sort resorts to after 2 log2 n divisions in vain, which takes an input made for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Bucket counts of a map that grows item by item: std::__detail::_Prime_rehash_policy doubles the count and takes
# the next prime of its list. A map rehashes before it would hold more items than buckets.
BUCKET_COUNTS = (
    *(13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061, 712697),
    *(1447153, 2938679),
)

# std::sort divides a range until it is no longer than this, and then sorts by insertion.
SHORT_RANGE = 16

_SEED = 0xC70F6907
_FACTOR = np.uint64(0xC6A4A7935BD1E995)


def in_map_order(texts: Sequence[str]) -> list[int]:
    """Indices of the texts in the order of a std::unordered_map that took them one after another.

    The texts differ from each other; lone surrogates stand for bytes that are no UTF-8 (surrogateescape).

    >>> texts = ["<|endoftext|>", "<|im_end|>", "a", "b"]
    >>> [texts[index] for index in in_map_order(texts)]
    ['b', 'a', '<|im_end|>', '<|endoftext|>']
    """
    numbers = hashes([text.encode("utf-8", "surrogateescape") for text in texts])
    order = np.empty(0, dtype=np.int64)
    taken = 0
    for buckets in BUCKET_COUNTS:
        inserted = np.concatenate([order, np.arange(taken, min(buckets, len(texts)))])
        # Both a rehash and an insertion put an item ahead of the others of its bucket, and in a bucket that was empty
        # ahead of all others. So the walk is the items grouped by bucket, backwards.
        _, first, group = np.unique(numbers[inserted] % np.uint64(buckets), return_index=True, return_inverse=True)
        order = inserted[np.lexsort((np.arange(len(inserted)), first[group]))[::-1]]
        taken = len(inserted)
        if taken == len(texts):
            break
    return [int(index) for index in order.tolist()]


def hashes(texts: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """std::hash of each as a std::string: MurmurHash64A, as _Hash_bytes in libstdc++'s hash_bytes.cc. -> (texts,).

    >>> [hex(number) for number in hashes([b"", b"a"])]
    ['0x553e93901e462a6e', '0x454ddee488c1ed6b']
    """
    by_length: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(index)
    answer = np.empty(len(texts), dtype=np.uint64)
    for length, indices in by_length.items():
        width = -(-length // 8)
        data = b"".join(texts[index].ljust(8 * width, b"\0") for index in indices)
        words = np.frombuffer(data, dtype="<u8").reshape(len(indices), width)
        answer[indices] = _hashes_of_length(words, length)
    return answer


def _hashes_of_length(words: npt.NDArray[np.uint64], length: int) -> npt.NDArray[np.uint64]:
    """Hashes of texts of one length in bytes; words: (texts, words of 8 bytes), filled up with zeros -> (texts,)."""
    state = np.full(len(words), _SEED ^ (length * int(_FACTOR) & 0xFFFF_FFFF_FFFF_FFFF), dtype=np.uint64)
    for column in range(length // 8):
        state = (state ^ _mixed(words[:, column] * _FACTOR) * _FACTOR) * _FACTOR
    if length % 8:
        state = (state ^ words[:, -1]) * _FACTOR
    return _mixed(_mixed(state) * _FACTOR)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return state ^ np.right_shift(state, 47, dtype=np.uint64)


def in_sort_order(keys: Sequence[int]) -> list[int]:
    """Indices of the keys, the smallest key first, in the order that std::sort gives to equal ones.

    >>> in_sort_order([2, 1, 2, 1])
    [1, 3, 0, 2]
    """
    order = list(range(len(keys)))
    ranges = [(0, len(keys))]
    while ranges:
        first, last = ranges.pop()
        while last - first > SHORT_RANGE:
            middle = _divide(order, keys, first, last)
            ranges.append((middle, last))
            last = middle
    # The insertion sort at the end of std::sort is a stable one.
    return sorted(order, key=keys.__getitem__)


def _divide(order: list[int], keys: Sequence[int], first: int, last: int) -> int:
    """Swap items of a range until none ahead of the returned place has a larger key than any from there on."""
    left, middle, right = (first + 1, first + (last - first) // 2, last - 1)
    place = _median(keys, order, left, middle, right)
    order[first], order[place] = order[place], order[first]
    pivot = keys[order[first]]
    low, high = first + 1, last - 1
    while True:
        while keys[order[low]] < pivot:
            low += 1
        while pivot < keys[order[high]]:
            high -= 1
        if low >= high:
            return low
        order[low], order[high] = order[high], order[low]
        low, high = low + 1, high - 1


def _median(keys: Sequence[int], order: Sequence[int], left: int, middle: int, right: int) -> int:
    """The place with the middle one of three keys; equal ones are told apart as in std::__move_median_to_first."""
    a, b, c = (keys[order[place]] for place in (left, middle, right))
    if a < b:
        return middle if b < c else right if a < c else left
    return left if a < c else right if b < c else middle
