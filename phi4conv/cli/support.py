"""What the commands share: options, errors, and how results and messages are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from phi4conv.errors import Phi4ConvError, Problem

F = TypeVar("F", bound=Callable[..., Any])

OUT_OF_MEMORY = Problem(
    "out of memory",
    next_step="close other programs, or raise the limit (ulimit -v); convert needs less with --threads 1",
)


class Command(click.Command):
    """A command that shows a Phi4ConvError as a message (and, with --json, as a document) and exits with its code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Phi4ConvError as error:
            problems, exit_code = error.problems, error.exit_code
        except MemoryError:
            problems, exit_code = (OUT_OF_MEMORY,), Phi4ConvError.exit_code
        except click.UsageError as error:
            if ctx.params.get("as_json"):
                show_json("error", str(ctx.info_name), error={"problems": [vars(Problem(error.format_message()))]})
            raise
        if ctx.params.get("as_json"):
            show_json("error", str(ctx.info_name), error={"problems": [vars(problem) for problem in problems]})
        for problem in problems:
            click.echo("error: " + "\n".join(map(printable, problem.lines())), err=True)
        raise click.exceptions.Exit(exit_code)


class OutputFile(click.Path):
    """The path of a file to write. `new/` names a folder, which a Path would forget."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        if os.path.basename(value) in {"", os.curdir, os.pardir}:  # noqa: PTH119  # see above
            self.fail(f"{value!r} is a folder; add a file name: OUT.gguf", param, ctx)
        return super().convert(value, param, ctx)


def output_options(command: F) -> F:
    """--json and --quiet, as every command has them."""
    command = click.option("--quiet", "-q", is_flag=True, help="Show no progress and no messages but errors.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else.")(
        command
    )


def show_json(schema: str, command: str, **content: Any) -> None:
    """Print one document, with its schema's name and version, in ASCII: it stays JSON in every encoding."""
    document = {"schema": f"phi4conv.{schema}/1", "command": command, **content}
    click.echo(json.dumps(document, indent=1))


def show_lines(lines: Iterable[str]) -> None:
    """Print lines of a result on stdout."""
    click.echo("\n".join(map(printable, lines)))


def show_warnings(warnings: Iterable[str], *, quiet: bool) -> None:
    """Print warnings on stderr, one a line."""
    if not quiet:
        for warning in warnings:
            click.echo(f"warning: {printable(warning)}", err=True)


class Escapes(dict[int, str]):
    """A table for str.translate that fills itself: a text may have millions of characters, but few different ones."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = char if char.isprintable() else ascii(char)[1:-1]
        return self[code]


ESCAPES = Escapes()


def printable(text: str) -> str:
    r"""The text with everything that a terminal might act on, line ends included, written as an escape.

    Every text from a file passes through here on its way to people.

    >>> printable("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    return text if text.isprintable() else text.translate(ESCAPES)


def gibibytes(size: int) -> str:
    """A size for people: GiB as llama.cpp prints it, smaller units below 1 GiB.

    >>> gibibytes(9_051_000_000), gibibytes(5_400_000), gibibytes(900)
    ('8.43 GiB', '5.15 MiB', '0.88 KiB')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1024:.2f} KiB"
