"""Typed access to the values of config.json, which comes from many hands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from phi4conv.errors import CheckpointError, Problem

LARGEST_COUNT = 2**31 - 1  # what llama.cpp holds sizes in
# Beyond these a number that GGUF keeps in 32 bits would become zero or infinite.
SMALLEST_FLOAT32 = 2.0**-126
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


class Fields:
    """The values of a parsed config.json; collects every problem instead of stopping at the first."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where
        self.problems: list[Problem] = []

    def add(self, key: str, expected: str, found: Any) -> None:
        """Note that key does not hold what is expected."""
        shown = "missing" if found is None else repr(found)[:100]
        self.problems.append(Problem(f"{key} is not usable", where=self.where, expected=expected, found=shown))

    def require(self, key: str, condition: bool, expected: str) -> None:
        """Note a problem with key unless the condition holds."""
        if not condition:
            self.add(key, expected, self.data.get(key))

    def count(self, key: str, default: int | None = None, largest: int = LARGEST_COUNT) -> int:
        """A positive integer; 0 after a problem. The default stands in for a missing key and for null."""
        return self.count_in(self.data, key, default, largest)

    def count_in(
        self, data: Mapping[str, Any], key: str, default: int | None = None, largest: int = LARGEST_COUNT
    ) -> int:
        """A positive integer of data, as count()."""
        value = data.get(key)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= largest:
            return value
        self.add(key, "a positive integer" if largest == LARGEST_COUNT else f"1 to {largest:,}", value)
        return 0

    def optional_count(self, key: str) -> int | None:
        """A positive integer, or None where the key is missing, null or 0."""
        return self.count(key) if self.data.get(key) else None

    def flag(self, key: str) -> bool:
        """A truth value; false where the key is missing or null, as Phi3Config and LlamaConfig have it."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, bool):
            self.add(key, "true or false", value)
        return value is True

    def number(self, key: str) -> float:
        """A positive number that float32 can hold; 0.0 after a problem."""
        return self.number_in(self.data, key)

    def number_in(self, data: Mapping[str, Any], key: str, default: float | None = None) -> float:
        """A positive number of data that float32 can hold; 0.0 after a problem."""
        value = data.get(key)
        value = default if value is None else value
        if is_positive(value):
            return float(value)
        self.add(key, "a positive number that fits a float32", value)
        return 0.0

    def raise_problems(self) -> None:
        """Raise CheckpointError when any problem was noted."""
        if self.problems:
            raise CheckpointError(*self.problems)


def is_positive(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a number above zero, in float32 as well; true is none."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and SMALLEST_FLOAT32 <= value <= LARGEST_FLOAT32
    )
