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
from phi4conv.cli.diff import diff
from phi4conv.cli.fix import fix
from phi4conv.cli.inspect import inspect
from phi4conv.cli.quantize import quantize
from phi4conv.cli.run import run
from phi4conv.cli.streams import guard_streams
from phi4conv.cli.verify import verify
from phi4conv.cli.verify_tokenizer import verify_tokenizer

EXIT_BUG = 3
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="phi4conv")
def cli() -> None:
    """Make and examine GGUF files of Microsoft's Phi-4 that speak sense.

    Exit codes: 0 good; 1 a file was found wrong; 2 the command could not do its work; 3 a bug in
    phi4conv; 130 interrupted.
    """


for command in (convert, quantize, verify_tokenizer, verify, fix, diff, inspect, run):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit with its code."""
    guard_streams()
    catch_signals()
    sys.exit(exit_code())


def exit_code() -> int:
    """Run the command line; returns the exit code."""
    try:
        # Without standalone mode click returns the code that a command asked to exit with.
        return int(cli.main(prog_name="phi4conv", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except SystemExit:  # click's, after shell completion
        raise
    except BaseException:  # noqa: BLE001  # the last resort, for the panics of Rust libraries too: it is a bug of ours
        traceback.print_exc()
        click.echo(f"\nThis is a bug in phi4conv {__version__}. Please report it with the lines above.", err=True)
        return EXIT_BUG


def catch_signals() -> None:
    """Let a polite kill and a closed terminal clean up as Ctrl-C does; what is ignored, as under nohup, stays so."""
    for number in polite_signals():
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)


def polite_signals() -> list[int]:
    """The signals that ask a process to end; Windows has no SIGHUP."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Stop as Ctrl-C does."""
    for number in polite_signals():  # shell and terminal may each send one: the second must not stop the cleaning
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
