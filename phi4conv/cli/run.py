"""phi4conv run."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi4conv.cli.support import Command, output_options, printable, show_json

if TYPE_CHECKING:
    from phi4conv.run import Answer

# Invisible characters that scripts and emoji need: soft hyphen, zero-width joiners, marks of direction.
NEEDED_FORMATS = frozenset("\u00ad\u200c\u200d\u200e\u200f")


@click.command(cls=Command)
@click.argument("file", metavar="FILE.gguf", type=click.Path(path_type=Path))
@click.option("--prompt", "-p", metavar="TEXT", required=True, help="What the model is to go on from, or to answer.")
@click.option("--chat", is_flag=True, help="Put the prompt into the file's own chat template, as a user's message.")
@click.option(
    "-n",
    "count",
    metavar="N",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Stop after N tokens, if the model has not ended by itself.",
)
@click.option(
    "--n-ctx",
    metavar="N",
    type=click.IntRange(1),
    help="Room for N tokens, by which LongRoPE factors are chosen, as llama.cpp does. "
    "[default: what prompt and answer take]",
)
@click.option(
    "--device", metavar="D", default="cpu", show_default=True, help="Where torch computes: cpu, cuda, cuda:1, mps."
)
@output_options
def run(
    file: Path,
    *,
    prompt: str,
    chat: bool,
    count: int,
    n_ctx: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Let a GGUF speak, by its own tokenizer, template and weights.

    The likeliest token each time, until one that ends generation for this file. Needs torch; a big model
    is slow, and says how slow before it starts. Standard output gets the generated text and nothing else.
    """
    from phi4conv.progress import choose_progress
    from phi4conv.run import RunOptions
    from phi4conv.run import run as run_file

    options = RunOptions(prompt=prompt, chat=chat, count=count, n_ctx=n_ctx, device=device)
    progress = choose_progress(quiet=quiet)
    if as_json:
        answer = run_file(file, options, progress, lambda _: None)
        show_json("run", "run", **document(file, answer, options.device))
    else:
        stream = Stream()
        try:
            answer = run_file(file, options, progress, stream.show)
        except Exception:  # not Ctrl-C, after which click ends the line
            if stream.is_open:
                click.echo()
            raise
        click.echo()
    if not quiet and (note := cut_note(answer)):
        click.echo(note, err=True)


class Stream:
    """Generated text on its way to stdout."""

    def __init__(self) -> None:
        self.is_open = False

    def show(self, text: str) -> None:
        """Print some text at once."""
        self.is_open = True
        click.echo(harmless(text), nl=False)


def harmless(text: str) -> str:
    r"""A generated text with its lines, and whatever else a terminal might act on written as an escape.

    >>> harmless("a\tb\n\x1b[31m\r\u202e"), harmless("n\u00a0b \u200d") == "n\u00a0b \u200d"
    ('a\tb\n\\x1b[31m\\r\\u202e', True)
    """
    return "".join(
        character
        if character in "\n\t" or character in NEEDED_FORMATS or unicodedata.category(character) == "Zs"
        else printable(character)
        for character in text
    )


def cut_note(answer: Answer) -> str | None:
    """What to say when the model had not ended."""
    from phi4conv.run import Ending

    if answer.ending is Ending.COUNT:
        return f"stopped after {len(answer.ids):,} tokens; more with -n N"
    if answer.ending is Ending.CONTEXT:
        return f"stopped after {len(answer.ids):,} tokens: the context is full"
    return None


def document(file: Path, answer: Answer, device: str) -> dict[str, object]:
    """The answer as JSON."""
    from phi4conv.run import Ending

    ended = answer.ending is Ending.END_OF_GENERATION
    return {
        "file": str(file),
        "prompt_ids": list(answer.prompt_ids),
        "ids": list(answer.ids),
        "text": answer.text,
        "stopped": {"reason": answer.ending.value, "token": answer.ids[-1] if ended else None},
        "device": device,
        "seconds": round(answer.seconds, 3),
        "seconds_to_first_token": round(answer.seconds_to_first, 3),
        "tokens_per_second": answer.tokens_per_second and round(answer.tokens_per_second, 3),
    }
