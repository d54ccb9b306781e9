"""JSON files of a model folder, read strictly, and the things that are saved under their names by mistake.

A download that went wrong leaves a Git LFS pointer, a login page or half a file under the right name. Each
is recognised by its content, so that the message says what lies there and how to get the real file.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4conv.errors import CheckpointError, Problem

# Phi-4's largest JSON file, tokenizer.json, is under 10 MB. Python objects take several times the text.
MAX_JSON_BYTES = 64 << 20
# Longer than any number a model file needs, and short enough that converting it costs nothing.
MAX_DIGITS = 400

DOWNLOAD_AGAIN = "download the file again"
SHOWN_CHARACTERS = 100
SHOWN_NAMES = 6


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file, every key once.

    Raises CheckpointError when the file is missing, no regular file, larger than max_bytes, something
    else under a JSON name, not UTF-8, broken, not an object, or says a key twice.
    """
    require_file(path)
    return parse_json_object(read_at_most(path, max_bytes), str(path))


def read_at_most(path: Path, max_bytes: int, *, cut: bool = False, kind: str = "JSON file of a model") -> bytes:
    """The bytes of a file or a pipe; with cut only the first max_bytes of a larger one. kind names it in messages.

    Raises CheckpointError when it cannot be read or, without cut, is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    if len(data) > max_bytes and not cut:
        raise CheckpointError(
            Problem(
                f"too large to be a {kind}",
                where=str(path),
                expected=f"at most {max_bytes:,} bytes",
                found=f"{max(path.stat().st_size, len(data)):,} bytes",
                next_step=DOWNLOAD_AGAIN,
            )
        )
    return data[:max_bytes]


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object that data spells in UTF-8, every key once and every string encodable.

    where names the source in messages. Raises CheckpointError.
    """
    if not data.strip():
        raise CheckpointError(Problem("empty file", where=where, expected="JSON", next_step=DOWNLOAD_AGAIN))
    if problem := recognised(data, where, expected="JSON"):
        raise CheckpointError(problem)
    text = _decoded(data, where)
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_int=_bounded_int)
        if LONE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise CheckpointError(_broken(error, text, where)) from error
    except UnicodeEncodeError as error:
        problem = Problem("a string that is no Unicode text: half of a surrogate pair", where, next_step=DOWNLOAD_AGAIN)
        raise CheckpointError(problem) from error
    except ValueError as error:  # from the two hooks
        raise CheckpointError(Problem(str(error), where=where, next_step=DOWNLOAD_AGAIN)) from error
    except RecursionError as error:
        raise CheckpointError(Problem("JSON nested too deeply", where=where, next_step=DOWNLOAD_AGAIN)) from error
    if not isinstance(value, dict):
        found = f"JSON of another kind ({type(value).__name__})"
        raise CheckpointError(Problem("not a JSON object", where, "{...}", found, DOWNLOAD_AGAIN))
    return value


# An escape that may be half of a pair; whether it is, only encoding the parsed text tells.
LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shortened(repr(key))} appears twice in one object")
            seen.add(key)
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _decoded(data: bytes, where: str) -> str:
    encoding = "UTF-8 without a byte order mark"
    save_again = f"save the file as {encoding}, or download it again"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CheckpointError(Problem("not UTF-8", where, encoding, "UTF-16, to judge by its first bytes", save_again))
    if data.startswith(b"\xef\xbb\xbf"):
        raise CheckpointError(Problem("starts with a byte order mark", where, encoding, next_step=save_again))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise CheckpointError(Problem("not UTF-8", where, encoding, found, save_again)) from error


def _broken(error: json.JSONDecodeError, text: str, where: str) -> Problem:
    # An unterminated string is reported where it starts, though it is the end of the file that is missing.
    cut_short = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    at = f"line {error.lineno}, column {error.colno}"
    return Problem(
        "JSON that stops before its end; the file was cut short" if cut_short else f"broken JSON at {at}: {error.msg}",
        where=where,
        found=f"{at}: {error.msg}" if cut_short else shortened(repr(text[error.pos : error.pos + 40])),
        next_step=DOWNLOAD_AGAIN,
    )


@dataclass(frozen=True)
class _Mistake:
    """Something that is not the file whose name it bears."""

    starts: re.Pattern[bytes]
    what: str
    next_step: str


NOT_PICKLE = "phi4conv reads no pickles, because loading one runs the code in it; get the .safetensors files"
MISTAKES = (
    _Mistake(
        re.compile(rb"version https://git-lfs\.github\.com/spec/"),
        "a Git LFS pointer, not the file itself",
        "run `git lfs install` and `git lfs pull` in the model folder",
    ),
    _Mistake(
        re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|title|body)\b", re.I | re.S),
        "an HTML page, probably a login or error page saved by a download",
        "download the file again; for a private or gated model log in first (`hf auth login`)",
    ),
    _Mistake(
        re.compile(rb"\s*<(?:\?xml|error>)", re.I),
        "an XML page, probably an error message saved by a download",
        DOWNLOAD_AGAIN,
    ),
    _Mistake(re.compile(rb"PK\x03\x04"), "a ZIP archive, probably a pickled PyTorch file renamed", NOT_PICKLE),
    _Mistake(re.compile(rb"\x80[\x02-\x05]"), "a Python pickle, probably a PyTorch file renamed", NOT_PICKLE),
    _Mistake(
        re.compile(rb"GGUF"),
        "a GGUF file under another name",
        "name the Hugging Face files that the GGUF was made from",
    ),
    _Mistake(re.compile(rb"\x1f\x8b"), "a gzip archive", "unpack it, or download the file itself"),
    _Mistake(
        re.compile(rb"\x00{8}"),
        "zeros at the start: a download that reserved the space and did not finish",
        DOWNLOAD_AGAIN,
    ),
)


def recognised(head: bytes, where: str, *, expected: str) -> Problem | None:
    """What lies under a wrong name, to judge by its first bytes (a few hundred are enough), or None."""
    for mistake in MISTAKES:
        if mistake.starts.match(head):
            return Problem(mistake.what, where=where, expected=expected, next_step=mistake.next_step)
    return None


def require_file(path: Path) -> None:
    """Raise CheckpointError unless path is a regular file or a link that leads to one.

    A pipe is refused before it is opened, since opening one waits for its writer.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise CheckpointError(
                Problem(
                    "a link to a file that is not there",
                    where=str(path),
                    found=f"a link to {path.readlink()}",
                    next_step="download the model again; its cache has lost the file",
                )
            ) from error
        raise CheckpointError(
            Problem("file not found", where=str(path), next_step="download the whole model folder")
        ) from error
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise CheckpointError(Problem(f"{kind}, not a file", where=str(path), next_step=DOWNLOAD_AGAIN))


def unreadable(path: Path, error: OSError) -> Problem:
    """The operating system's refusal to read path, as a problem."""
    return Problem(
        "cannot be read",
        where=str(path),
        found=error.strerror or str(error),
        next_step="check that the file is there, that you may read it and that its disk works",
    )


def shortened(text: str) -> str:
    """Text from a file, cut so that a hostile file cannot fill the screen."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def listed(names: Iterable[str]) -> str:
    """The first few names for a message, and how many more there are.

    >>> listed(["a", "b"]), listed("abcdefgh")
    ("'a', 'b'", "'a', 'b', 'c', 'd', 'e', 'f' and 2 more")
    """
    every = list(names)
    text = ", ".join(shortened(repr(name)) for name in every[:SHOWN_NAMES])
    return text if len(every) <= SHOWN_NAMES else f"{text} and {len(every) - SHOWN_NAMES} more"
