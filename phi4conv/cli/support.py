"""What the commands share: options, errors, and the two places that output goes to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from phi4conv.errors import Phi4ConvError

F = TypeVar("F", bound=Callable[..., Any])


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
            if ctx.params.get("as_json"):
                show_json("error", str(ctx.info_name), error={"problems": [vars(p) for p in error.problems]})
            for problem in error.problems:
                click.echo("error: " + "\n".join(problem.lines()), err=True)
            ctx.exit(error.exit_code)


def output_options(command: F) -> F:
    """--json and --quiet, as every command has them."""
    command = click.option("--quiet", "-q", is_flag=True, help="Show no progress and no messages but errors.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else.")(
        command
    )


def show_json(schema: str, command: str, **content: Any) -> None:
    """Print one document, with its schema's name and version."""
    document = {"schema": f"phi4conv.{schema}/1", "command": command, **content}
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))


def show_warnings(warnings: tuple[str, ...], *, quiet: bool) -> None:
    """Print warnings on stderr, one a line."""
    if not quiet:
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)


def gibibytes(size: int) -> str:
    """A size for people: GiB as llama.cpp prints it, smaller units below 1 GiB.

    >>> gibibytes(9_051_000_000), gibibytes(5_400_000), gibibytes(900)
    ('8.43 GiB', '5.15 MiB', '0.88 KiB')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1024:.2f} KiB"
