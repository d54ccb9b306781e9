"""The texts that a user wants compared."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from phi4conv.errors import FormatError, Problem

# A text is held in memory several times over, as text, tokens and cache.
MAX_TEXT_BYTES = 256 << 20


def read_user_texts(paths: Iterable[Path]) -> tuple[tuple[str, str], ...]:
    """The content of each file with its name; line ends are kept as they are.

    Raises:
        FormatError: A file cannot be read, is too large or is not UTF-8.
    """
    return tuple((str(path), read_text(path)) for path in paths)


def read_text(path: Path) -> str:
    """The text of one file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise FormatError(
            Problem("the text cannot be read", str(path), "a file", error.strerror or str(error))
        ) from error
    if len(data) > MAX_TEXT_BYTES:
        raise FormatError(
            Problem(
                "the text is too large",
                str(path),
                f"at most {MAX_TEXT_BYTES:,} bytes",
                "more",
                "give it in parts, each with a --text of its own",
            )
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start:,}"
        raise FormatError(
            Problem("the text is not UTF-8", str(path), "UTF-8", found, "save it as UTF-8 first")
        ) from error
