"""Chat templates, rendered in a child process with limits.

A template comes with the file and is code. Jinja's sandbox keeps it away from Python, but not from all memory or all
time; so it runs in a process that may be lost. That process has no environment variables, and, where the system can
refuse them, no further files, sockets, processes or memory. Elsewhere (Windows; memory under macOS) the clock alone
ends it. This is the parent's side; template_child.py is the other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from phi4conv.errors import EngineError, Problem

# The day Phi-4 was announced. A fixed one, so that strftime_now gives the same text every day.
PHI4_DAY = datetime(2024, 12, 12, 12, 0)  # noqa: DTZ001  # templates print local time, wherever that is

# What the child answers is a row of frames: one of these, the length in 4 bytes (big-endian), and that many bytes.
READY, TEXT, ERROR = b"R", b"T", b"E"
FRAME_HEAD_BYTES = 5

# The child gets the parent's sys.path, so that both see the same phi4conv and jinja2 wherever they are started.
CHILD_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from phi4conv.template_child import serve; serve()"

# Where a Python finds its own libraries; everything else in the environment is none of a template's business.
CHILD_ENVIRONMENT = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

MAX_MESSAGE_CHARACTERS = 500


@dataclass(frozen=True)
class Chat:
    """A conversation to render: messages with "role" and "content", and whether the model is to speak next."""

    messages: tuple[Mapping[str, str], ...]
    add_generation_prompt: bool
    name: str


@dataclass(frozen=True)
class Rendering:
    """What a template made of a chat: a text or, where text is None, the reason why there is none, in one line."""

    text: str | None
    error: str = ""


@dataclass(frozen=True)
class Limits:
    """What a template may use for all chats together; text_bytes, of UTF-8, for each.

    For scale: with Phi-4's template the process needs 0.1 s and 25 MB, nearly all of it to load jinja2.
    """

    memory_bytes: int = 512 << 20
    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    text_bytes: int = 4 << 20


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Ending:
    """What a child left behind: its answer, what it wrote to stderr, and its exit code, None when time was up."""

    answer: bytes
    complaint: str
    code: int | None


def render_chats(
    template: str,
    chats: Sequence[Chat],
    *,
    special_tokens: Mapping[str, str] | None = None,
    now: datetime = PHI4_DAY,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Rendering]:
    """Render each chat as apply_chat_template of transformers does, without tools or documents.

    A template that is broken, refuses a chat or exceeds a limit gives errors as values. When it takes the whole
    process with it, as an endless loop does, later chats have the same error as the one that it happened in.

    Args:
        template: The Jinja source.
        chats: What to render.
        special_tokens: Texts of tokens under the names that templates have for them ("bos_token", "eos_token").
        now: What strftime_now takes for the present.
        limits: What the process may use.

    Raises:
        EngineError: The process cannot be started, or has no jinja2.
    """
    if not chats:
        return []
    request = {
        "template": template,
        "chats": [
            {"messages": [*map(dict, chat.messages)], "add_generation_prompt": chat.add_generation_prompt}
            for chat in chats
        ],
        "special_tokens": dict(special_tokens or {}),
        "now": now.isoformat(),
        "limits": asdict(limits),
    }
    # Escaped to ASCII, because a template from a damaged file may hold what has no UTF-8.
    ending = run_child(json.dumps(request).encode("ascii"), limits, len(chats))
    is_ready, renderings = parsed(ending.answer, len(chats))
    if not is_ready and ending.code is not None:
        raise not_started(ending.complaint or f"exit code {ending.code}")
    missing = Rendering(None, reason_of(ending.code, limits))
    return renderings + [missing] * (len(chats) - len(renderings))


def run_child(request: bytes, limits: Limits, chat_count: int) -> Ending:
    """Start a child, hand it the request and wait for its end; raises EngineError when there is no starting it."""
    environment = {name: os.environ[name] for name in CHILD_ENVIRONMENT if name in os.environ}
    # Files rather than pipes: nothing that the child writes fills this process's memory.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaint:
        try:
            # sys.executable, fixed text and this process's own module path: nothing comes from the template.
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-c", CHILD_PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=answer,
                stderr=complaint,
                env=environment | {"LC_ALL": "C"},
            )
        except OSError as error:
            raise not_started(error.strerror or str(error)) from error
        code: int | None
        with process:
            try:
                process.communicate(request, timeout=limits.wall_seconds)
                code = process.returncode
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
        answer.seek(0)
        complaint.seek(0)
        return Ending(
            answer.read(answer_bytes(limits, chat_count)), complaint.read(1 << 16).decode("utf-8", "replace"), code
        )


def answer_bytes(limits: Limits, chat_count: int) -> int:
    """The most that a child may write: READY, and a frame for every chat; an escaped character takes up to 6 bytes."""
    return FRAME_HEAD_BYTES + chat_count * (FRAME_HEAD_BYTES + max(limits.text_bytes, 6 * MAX_MESSAGE_CHARACTERS))


def parsed(answer: bytes, chat_count: int) -> tuple[bool, list[Rendering]]:
    """Whether the child came as far as the template, and the chats that it answered, in order.

    Reading stops at the first thing that the child would not have written of its own accord.
    """
    if answer[:FRAME_HEAD_BYTES] != READY + bytes(4):
        return False, []
    renderings: list[Rendering] = []
    start = FRAME_HEAD_BYTES
    while len(renderings) < chat_count:
        head = answer[start : start + FRAME_HEAD_BYTES]
        kind, length = head[:1], int.from_bytes(head[1:], "big")
        start += FRAME_HEAD_BYTES
        content = answer[start : start + length]
        start += length
        if len(head) < FRAME_HEAD_BYTES or kind not in (TEXT, ERROR) or len(content) < length:
            break
        try:
            text = content.decode()
        except UnicodeDecodeError:
            break
        renderings.append(Rendering(text) if kind == TEXT else Rendering(None, printable(text)))
    return True, renderings


def reason_of(code: int | None, limits: Limits) -> str:
    """Why a chat has no answer, from the way its child ended."""
    if code is None:
        return f"the template was stopped after {limits.wall_seconds:g} s"
    if code < 0:
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        if name == "SIGXCPU":
            return f"the template was stopped after {limits.cpu_seconds} s of processor time"
        return f"the template ended the process that renders it ({name})"
    return f"the template ended the process that renders it (exit code {code})"


def not_started(found: str) -> EngineError:
    """The error for a child that never came as far as the template."""
    return EngineError(
        Problem(
            "the process that renders chat templates did not start",
            where=sys.executable,
            found=printable(found.strip()[-MAX_MESSAGE_CHARACTERS:]),
            next_step="check that this Python can run `import jinja2.sandbox`; install phi4conv again if not",
        )
    )


def printable(text: str) -> str:
    r"""A text from a stranger, fit for a terminal: in one line, of a bearable length.

    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    if len(text) > MAX_MESSAGE_CHARACTERS:
        text = text[:MAX_MESSAGE_CHARACTERS] + "..."
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
