"""The child process of phi4conv.template: renders the chats of one request with one template, and ends.

The environment is the one of transformers' apply_chat_template (_compile_jinja_template in
utils/chat_template_utils.py, 5.23). Before it sees the template the process gives up what it can do without.
"""

from __future__ import annotations

import contextlib
import json
import math
import pprint  # noqa: F401  # jinja2 imports it when it needs it, and then no file can be opened any more
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

import jinja2.constants
import jinja2.debug  # noqa: F401  # as pprint
from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from phi4conv.template import (
    ERROR,
    FRAME_HEAD_BYTES,
    MAX_MESSAGE_CHARACTERS,
    READY,
    TEXT,
    Limits,
    answer_bytes,
)

# What jinja2 calls a template that has no file.
TEMPLATE_NAME = "<template>"

T = TypeVar("T")


class ChatError(Exception):
    """A chat that has no rendering; the message says why."""

    def frame(self) -> tuple[bytes, bytes]:
        """Kind and content of the frame that says so."""
        return ERROR, str(self)[:MAX_MESSAGE_CHARACTERS].encode("utf-8", "backslashreplace")


class RefusalError(TemplateError):
    """What a template raises by itself."""


class Generation(Extension):
    """{% generation %}: marks what the model said, for training, and changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012  # declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call, so that variables set inside stay inside, as they do in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    def _unchanged(self, caller: Callable[[], str]) -> str:
        return caller()


def serve() -> None:
    """Answer the request on stdin: READY, then a frame for each chat, in order."""
    request = json.load(sys.stdin.buffer)
    limits = Limits(**request["limits"])
    environment = chat_environment(datetime.fromisoformat(request["now"]))
    warm_up(environment)
    give_up_resources(limits, len(request["chats"]))
    write_frame(READY, b"")
    for kind, content in answers(environment, request, limits):
        write_frame(kind, content)


def answers(
    environment: ImmutableSandboxedEnvironment, request: Mapping[str, Any], limits: Limits
) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the frame for each chat of a request."""
    try:
        template = attempt(lambda: environment.from_string(request["template"]), limits)
    except ChatError as error:
        yield from [error.frame()] * len(request["chats"])
        return
    for chat in request["chats"]:
        variables = {**chat, "tools": None, "documents": None, **request["special_tokens"]}
        random.seed(0)  # so that the filter `random` and lipsum() give the same every time
        try:
            yield TEXT, attempt(lambda: rendered(template, variables, limits.text_bytes), limits)  # noqa: B023
        except ChatError as error:
            yield error.frame()


def write_frame(kind: bytes, content: bytes) -> None:
    """Write one frame to stdout, all at once."""
    sys.stdout.buffer.write(kind + len(content).to_bytes(FRAME_HEAD_BYTES - 1, "big") + content)
    sys.stdout.buffer.flush()


def rendered(template: Template, variables: Mapping[str, Any], text_bytes: int) -> bytes:
    """The text in UTF-8; raises ChatError when it is longer than text_bytes or no Unicode text."""
    content = bytearray()
    for part in template.generate(variables):
        # Characters first: the text may be as long as memory allows, and encoding it takes as much again.
        if len(content) + len(part) > text_bytes or len(content) + len(encoded := part.encode()) > text_bytes:
            raise ChatError(f"the text is longer than {text_bytes:,} bytes")
        content += encoded
    return bytes(content)


def attempt(work: Callable[[], T], limits: Limits) -> T:
    """What work gives; whatever a template can raise becomes a ChatError."""
    try:
        return work()
    except ChatError:
        raise
    except RefusalError as error:
        message = f"the template refuses the chat: {error.message}"
    except TemplateSyntaxError as error:
        message = f"syntax error in line {error.lineno}: {error.message}"
    except MemoryError:
        message = f"the template needs more than {limits.memory_bytes >> 20} MB of memory"
    except UnicodeEncodeError:
        message = "the text is no Unicode text: it has half of a surrogate pair"
    except Exception as error:  # noqa: BLE001  # a template calls methods of any kind
        message = f"{type(error).__name__}{line_of(error)}: {error}"
    raise ChatError(message)


def line_of(error: Exception) -> str:
    """Where in the template an error arose, as far as is known."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == TEMPLATE_NAME]
    return f" in line {lines[-1]}" if lines else ""


def chat_environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """The environment that chat templates are written for; strftime_now prints now."""

    def raise_exception(message: Any) -> None:
        raise RefusalError(str(message))

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def warm_up(environment: ImmutableSandboxedEnvironment) -> None:
    """Load what Python and jinja2 load when they need it first: codecs, the parts that handle errors."""
    with contextlib.suppress(UndefinedError):
        environment.from_string("{{ '\\u00e9' ~ ([1] | tojson) ~ strftime_now('%B') }}{{ missing.value }}").render()


def give_up_resources(limits: Limits, chat_count: int) -> None:
    """Have the system refuse this process memory, processor time, files, sockets and processes, where it can."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  # not there on Windows

    used = resource.getrusage(resource.RUSAGE_SELF)
    ceilings = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": math.ceil(used.ru_utime + used.ru_stime) + limits.cpu_seconds,
        "RLIMIT_NOFILE": 3,  # stdin, stdout and stderr; without a free number there are no sockets either
        "RLIMIT_NPROC": 0,
        "RLIMIT_FSIZE": answer_bytes(limits, chat_count),
        "RLIMIT_CORE": 0,
    }
    for name, ceiling in ceilings.items():
        which = getattr(resource, name, None)
        if which is None:
            continue
        hard = resource.getrlimit(which)[1]
        # At the soft limit of time comes SIGXCPU, which says what happened; at the hard one SIGKILL.
        lowest = ceiling + 1 if name == "RLIMIT_CPU" else ceiling
        lowest = lowest if hard == resource.RLIM_INFINITY else min(lowest, hard)
        # macOS knows RLIMIT_AS and refuses to set it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (min(ceiling, lowest), lowest))
