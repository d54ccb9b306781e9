"""phi4conv convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phi4conv.cli.plan_output import show_dry_run, show_result, writing_options
from phi4conv.cli.support import Command, OutputFile, output_options
from phi4conv.cli.type_options import chosen_types, type_options


@click.command(cls=Command)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.gguf", type=OutputFile(path_type=Path))
@type_options("else the checkpoint's own type.")
@click.option("--name", help="general.name, instead of the model card's or the folder's.")
@click.option(
    "--metadata",
    "metadata_file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON file of general.* keys that override the model card's.",
)
@click.option("--vocab-only", is_flag=True, help="Write metadata and vocabulary, and no tensors.")
@writing_options
@output_options
def convert(
    model_dir: Path,
    out: Path,
    *,
    file_type: str | None,
    overrides: tuple[str, ...],
    token_embedding_type: str | None,
    output_tensor_type: str | None,
    pure: bool,
    mix: str,
    threads: int | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Convert a Hugging Face Phi-4 checkpoint to GGUF in one streaming pass.

    MODEL_DIR holds config.json, tokenizer.json and *.safetensors. OUT.gguf appears when it is complete
    and checked; until then whatever has its name is untouched.
    """
    from phi4conv import phi3
    from phi4conv.convert import convert as run
    from phi4conv.progress import choose_progress

    types = chosen_types(
        out,
        file_type=file_type,
        overrides=overrides,
        token_embedding_type=token_embedding_type,
        output_tensor_type=output_tensor_type,
        pure=pure,
        mix=mix,
        quiet=quiet,
    )
    options = phi3.ConversionOptions(**types, **rest)
    if dry_run:
        plan = phi3.plan(model_dir, options)
        show_dry_run("convert", plan, as_json=as_json, quiet=quiet)
    else:
        result = run(model_dir, out, options, force=force, workers=threads, progress=choose_progress(quiet=quiet))
        show_result("convert", result, as_json=as_json, quiet=quiet)
