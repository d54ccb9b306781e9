"""The command line. Each command parses its options, calls one library function and shows the result.

The library is imported inside the commands: numpy, gguf and tokenizers take longer to load than --help
should take to answer.
"""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType

import click

from phi4conv import __version__
from phi4conv.cli.convert import convert
from phi4conv.cli.inspect import inspect

EXIT_BUG = 3
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="phi4conv")
def cli() -> None:
    """Make and examine GGUF files of Microsoft's Phi-4 that speak sense.

    Exit codes: 0 good; 1 a file was found wrong; 2 the command could not do its work; 3 a bug in
    phi4conv; 130 interrupted.
    """


cli.add_command(convert)
cli.add_command(inspect)


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        # Without standalone mode click returns the code that a command asked to exit with.
        sys.exit(cli.main(prog_name="phi4conv", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        sys.exit(0)
    except Exception:  # noqa: BLE001  # the last resort: whatever was not foreseen is a bug of ours
        traceback.print_exc()
        click.echo(f"\nThis is a bug in phi4conv {__version__}. Please report it with the lines above.", err=True)
        sys.exit(EXIT_BUG)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Let a polite kill clean up as Ctrl-C does."""
    raise KeyboardInterrupt
