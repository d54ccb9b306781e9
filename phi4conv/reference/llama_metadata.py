"""Metadata as llama.cpp reads them: a value has the one type that it asks for, or the file is refused.

As there, strings end at their first NUL character (llama-model-loader.cpp, gguf.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguf import GGUFValueType

from phi4conv.errors import FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile


class RefusedByLlamaCpp(FormatError):  # noqa: N818  # the name says by whom, which is all that matters
    """A vocabulary that llama.cpp refuses, or a vocabulary or text that ends its process.

    reason is one short kebab-case word for programs, such as "unknown-pre". aborts tells whether the process ends
    instead of reporting an error.
    """

    def __init__(self, reason: str, problem: Problem, *, aborts: bool = False) -> None:
        self.reason = reason
        self.aborts = aborts
        super().__init__(problem)


def string(file: GGUFFile, key: str) -> str | None:
    """The value of a STRING pair, or None without the key."""
    value = scalar(file, key, GGUFValueType.STRING)
    return None if value is None else until_nul(value)


def flag(file: GGUFFile, key: str, default: bool) -> bool:
    """The value of a BOOL pair, or the default."""
    value = scalar(file, key, GGUFValueType.BOOL)
    return default if value is None else bool(value)


def scalar(file: GGUFFile, key: str, value_type: GGUFValueType) -> Any:
    """The value of a pair of this type, or None without the key; raises RefusedByLlamaCpp for another type."""
    pair = file.metadata.get(key)
    if pair is None:
        return None
    if pair.type != value_type:
        raise wrong_type(file, key, value_type.name, pair.type.name)
    return pair.value


def array(file: GGUFFile, key: str, item_types: tuple[GGUFValueType, ...]) -> Sequence[Any] | None:
    """The items of an array of one of these types, or None without the key; raises RefusedByLlamaCpp otherwise."""
    pair = file.metadata.get(key)
    if pair is None:
        return None
    if pair.item_type not in item_types:
        expected = " or ".join(f"array of {item_type.name}" for item_type in item_types)
        found = pair.type.name if pair.item_type is None else f"array of {pair.item_type.name}"
        raise wrong_type(file, key, expected, found)
    items: Sequence[Any] = pair.value
    return items


def wrong_type(file: GGUFFile, key: str, expected: str, found: str) -> RefusedByLlamaCpp:
    """The error for a key whose value has not the one type that llama.cpp reads."""
    return RefusedByLlamaCpp(
        "wrong-type",
        Problem(
            f"llama.cpp refuses the file: {key} has the wrong type",
            f"{file.path}: {key}",
            expected,
            found,
            next_step="write the value with the expected type",
        ),
    )


def until_nul(text: str) -> str:
    """The text as C sees it."""
    return text if "\0" not in text else text[: text.index("\0")]
