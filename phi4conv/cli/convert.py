"""phi4conv convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phi4conv.cli.support import Command, OutputFile, gibibytes, output_options, show_json, show_lines, show_warnings

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType

    from phi4conv.convert import ConversionResult
    from phi4conv.plan import ConversionPlan


@click.command(cls=Command)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.gguf", type=OutputFile(path_type=Path))
@click.option(
    "--type",
    "file_type",
    metavar="T",
    help="F32, F16, BF16 or Q8_0. Default: what OUT's name says (phi-4-Q8_0.gguf), else the checkpoint's own type.",
)
@click.option(
    "--tensor-type",
    "overrides",
    metavar="REGEX=T",
    multiple=True,
    help="Another type for the tensors whose GGUF name matches; repeatable, the first match decides.",
)
@click.option("--token-embedding-type", metavar="T", help="Another type for token_embd.weight.")
@click.option("--output-tensor-type", metavar="T", help="Another type for output.weight.")
@click.option("--name", help="general.name, instead of the model card's or the folder's.")
@click.option(
    "--metadata",
    "metadata_file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON file of general.* keys that override the model card's.",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1),
    help="Threads that encode. Default: one for each usable core, at most 16.",
)
@click.option("--vocab-only", is_flag=True, help="Write metadata and vocabulary, and no tensors.")
@click.option(
    "--allow-non-finite",
    is_flag=True,
    help="Write NaN, Inf and weights beyond the type's range as they come instead of stopping.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, tensor by tensor, and write nothing.")
@click.option("--force", is_flag=True, help="Replace OUT when it exists.")
@output_options
def convert(
    model_dir: Path,
    out: Path,
    *,
    file_type: str | None,
    overrides: tuple[str, ...],
    token_embedding_type: str | None,
    output_tensor_type: str | None,
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

    options = phi3.ConversionOptions(
        file_type=chosen_file_type(file_type, out, quiet=quiet),
        overrides=tuple(parse_override(text) for text in overrides),
        token_embedding=parse_type("--token-embedding-type", token_embedding_type),
        output=parse_type("--output-tensor-type", output_tensor_type),
        **rest,
    )
    if dry_run:
        plan = phi3.plan(model_dir, options)
        plan.check()
        show_warnings(plan.warnings, quiet=quiet)
        if as_json:
            show_json("convert", "convert", dry_run=True, **plan_document(plan))
        else:
            show_plan(plan)
        return
    result = run(model_dir, out, options, force=force, workers=threads, progress=choose_progress(quiet=quiet))
    show_warnings(result.warnings, quiet=quiet)
    if as_json:
        show_json("convert", "convert", dry_run=False, **plan_document(result.plan) | result_document(result))
    elif not quiet:
        show_result(result)


def chosen_file_type(asked: str | None, out: Path, *, quiet: bool) -> str | None:
    """The file type from --type, else from OUT's name; None for the checkpoint's own."""
    from phi4conv.quant.mix import FILE_TYPES, file_type_in_name

    in_name = file_type_in_name(out.name)
    name = asked.upper() if asked else in_name
    if name is None or name in FILE_TYPES:
        if in_name and name != in_name:
            show_warnings((f"{out.name} says {in_name}, but --type is {name}",), quiet=quiet)
        return name
    source = "--type" if asked else f"the name {out.name}"
    raise click.UsageError(f"{source} asks for {name}; this version writes {', '.join(FILE_TYPES)}")


def parse_type(option: str, name: str | None) -> GGMLQuantizationType | None:
    """A tensor type by name, None for none."""
    from phi4conv.quant import CODECS

    if name is None:
        return None
    for qtype in CODECS:
        if qtype.name == name.upper():
            return qtype
    raise click.UsageError(f"{option}: no tensor type {name!r}; known are {', '.join(qtype.name for qtype in CODECS)}")


def parse_override(text: str) -> tuple[str, GGMLQuantizationType]:
    """REGEX=TYPE as a pair."""
    pattern, _, name = text.rpartition("=")
    qtype = parse_type("--tensor-type", name) if pattern else None
    if qtype is None:
        raise click.UsageError(f"--tensor-type {text!r}: expected REGEX=TYPE, such as ffn_down=F16")
    return pattern, qtype


def plan_document(plan: ConversionPlan) -> dict[str, Any]:
    """The plan for --json."""
    from phi4conv.inspect import metadata_document

    return {
        "type": plan.file_type,
        "size_bytes": plan.size_bytes,
        "weights": plan.weight_count,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "warnings": list(plan.warnings),
        "metadata": metadata_document(plan.metadata),
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "type": tensor.qtype.name,
                "source": list(tensor.source.names),
                "reason": tensor.reason,
            }
            for tensor in plan.tensors
        ],
        "left_out": [{"name": left.name, "reason": left.reason} for left in plan.left_out],
    }


def result_document(result: ConversionResult) -> dict[str, Any]:
    """What --json adds to the plan after a conversion, and in its place."""
    return {
        "warnings": list(result.warnings),
        "out": str(result.target),
        "tensors_by_type": result.tensors_by_type,
        "seconds": round(result.seconds, 3),
        "peak_memory_bytes": result.peak_memory,
        "threads": result.workers,
    }


def show_plan(plan: ConversionPlan) -> None:
    """Print the plan as a table."""
    rows = [
        (tensor.name, " x ".join(map(str, tensor.shape)), tensor.qtype.name, tensor.reason) for tensor in plan.tensors
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {shape:>{widths[1]}}  {qtype:<{widths[2]}}  {reason}"
        for name, shape, qtype, reason in rows
    ]
    lines += [f"left out: {left.name} ({left.reason})" for left in plan.left_out]
    lines.append(
        f"{len(plan.metadata)} metadata pairs, {len(plan.tensors)} tensors, {plan.weight_count:,} weights, "
        f"{gibibytes(plan.size_bytes)} ({plan.bits_per_weight:.2f} bits per weight)"
    )
    show_lines(lines)


def show_result(result: ConversionResult) -> None:
    """Print the closing summary."""
    plan = result.plan
    kinds = ", ".join(f"{count} {name}" for name, count in result.tensors_by_type.items())
    memory = f", peak memory {result.peak_memory / 1e6:.0f} MB" if result.peak_memory else ""
    lines = [f"wrote {result.target}"]
    if plan.tensors:
        weights = f"{plan.bits_per_weight:.2f} bits per weight, {plan.weight_count:,} weights"
        lines.append(f"  {len(plan.tensors)} tensors: {kinds}")
        lines.append(f"  {gibibytes(plan.size_bytes)}, {weights}")
    else:
        lines.append(f"  metadata and vocabulary only, {gibibytes(plan.size_bytes)}")
    lines.append(f"  {result.seconds:.1f} s with {result.workers} threads{memory}")
    show_lines(lines)
