"""phi4conv quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phi4conv.cli.plan_output import show_dry_run, show_result, writing_options
from phi4conv.cli.support import Command, OutputFile, output_options
from phi4conv.cli.type_options import chosen_types, type_options


@click.command(cls=Command)
@click.argument("source", metavar="IN.gguf", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.gguf", type=OutputFile(path_type=Path))
@type_options("else there is none.")
@writing_options
@output_options
def quantize(
    source: Path,
    out: Path,
    *,
    imatrix: Path | None,
    threads: int | None,
    allow_non_finite: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    **types: Any,
) -> None:
    """Quantize a GGUF of F32, F16, BF16 or Q8_0: the same metadata, tensors of other types.

    IN.gguf is a phi3 model in one file. A tensor that has its type already is copied bit for bit. From a
    checkpoint, `convert --type` does it in one pass and gives the same tensors as by way of a BF16 file.
    """
    from phi4conv.progress import choose_progress
    from phi4conv.quantize import QuantizeOptions, plan
    from phi4conv.quantize import quantize as run

    chosen = chosen_types(out, quiet=quiet, **types)
    if chosen["file_type"] is None:
        raise click.UsageError(f"--type is missing, and the name {out.name} says none: --type Q4_K_M, for example")
    options = QuantizeOptions(**chosen, imatrix=imatrix, allow_non_finite=allow_non_finite)
    if dry_run:
        show_dry_run("quantize", plan(source, options), as_json=as_json, quiet=quiet)
    else:
        result = run(source, out, options, force=force, workers=threads, progress=choose_progress(quiet=quiet))
        show_result("quantize", result, as_json=as_json, quiet=quiet)
