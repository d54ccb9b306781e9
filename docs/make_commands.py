"""Writes docs/commands.md from the commands' own --help, so that no flag goes undocumented.

python docs/make_commands.py
"""

from __future__ import annotations

from pathlib import Path

import click

from phi4conv.cli import cli

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100

INTRODUCTION = """\
# Commands

What `phi4conv COMMAND --help` prints, for every command. This page is made by `docs/make_commands.py`.

Exit codes: **0** good; **1** a file was examined and found wrong; **2** the command could not do its work (a wrong
option, an input that it refuses, an output that cannot be written); **3** a bug in phi4conv; **130** interrupted.
Results go to stdout; progress, warnings and errors go to stderr. With `--json` stdout holds one document, which names
its `schema` and `command`; after an error it is a `phi4conv.error/1` document with the list of problems. (Options
that cannot even be parsed are told on stderr alone.)
"""


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    parent = click.Context(cli, info_name="phi4conv", terminal_width=WIDTH)
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
        sections.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
