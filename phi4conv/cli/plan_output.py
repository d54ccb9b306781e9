"""What convert and quantize share: the options of a run, and how a plan and its result are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from phi4conv.cli.support import gibibytes, show_json, show_lines, show_warnings

if TYPE_CHECKING:
    from phi4conv.plan import ConversionPlan
    from phi4conv.stream import ConversionResult

F = TypeVar("F", bound=Callable[..., Any])


def writing_options(command: F) -> F:
    """--threads, --allow-non-finite, --dry-run and --force, as both commands have them."""
    options = (
        click.option(
            "--threads",
            metavar="N",
            type=click.IntRange(1),
            help="Threads that encode. Default: one for each usable core, at most 16.",
        ),
        click.option(
            "--allow-non-finite",
            is_flag=True,
            help="Write NaN, Inf and overflowing weights of F32, F16 and BF16 tensors as they come, and do not stop.",
        ),
        click.option("--dry-run", is_flag=True, help="Show the plan, tensor by tensor, and write nothing."),
        click.option("--force", is_flag=True, help="Replace OUT when it exists."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def show_dry_run(command: str, plan: ConversionPlan, *, as_json: bool, quiet: bool) -> None:
    """Check a plan and show it."""
    plan.check()
    show_warnings(plan.warnings, quiet=quiet)
    if as_json:
        show_json(command, command, dry_run=True, **plan_document(plan))
    else:
        show_lines(plan_lines(plan))


def show_result(command: str, result: ConversionResult, *, as_json: bool, quiet: bool) -> None:
    """Show what was done."""
    show_warnings(result.warnings, quiet=quiet)
    if as_json:
        show_json(command, command, dry_run=False, **plan_document(result.plan) | result_document(result))
    elif not quiet:
        show_lines(result_lines(result))


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
                "importance": tensor.importance is not None,
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
        "paths": dict(result.paths),
    }


def plan_lines(plan: ConversionPlan) -> list[str]:
    """The plan as a table."""
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
        f"{gibibytes(plan.size_bytes)} ({plan.bits_per_weight:.2f} bits per weight){importance_note(plan)}"
    )
    return lines


def importance_note(plan: ConversionPlan) -> str:
    """How many tensors an importance matrix changes; nothing when none does."""
    count = sum(tensor.importance is not None for tensor in plan.tensors)
    return f", importance for {count} tensors" if count else ""


def result_lines(result: ConversionResult) -> list[str]:
    """The closing summary."""
    plan = result.plan
    kinds = ", ".join(f"{count} {name}" for name, count in result.tensors_by_type.items())
    memory = f", peak memory {result.peak_memory / 1e6:.0f} MB" if result.peak_memory else ""
    lines = [f"wrote {result.target}"]
    if plan.tensors:
        weights = f"{plan.bits_per_weight:.2f} bits per weight, {plan.weight_count:,} weights"
        lines.append(f"  {len(plan.tensors)} tensors: {kinds}{importance_note(plan)}")
        lines.append(f"  {gibibytes(plan.size_bytes)}, {weights}")
    else:
        lines.append(f"  metadata and vocabulary only, {gibibytes(plan.size_bytes)}")
    lines.append(f"  {result.seconds:.1f} s with {result.workers} threads{memory}{path_note(result)}")
    return lines


def path_note(result: ConversionResult) -> str:
    """Whether compiled code encoded; where it could have and did not, why."""
    from phi4conv.quant import CODECS, fast

    slow = [codec for codec in CODECS.values() if result.paths.get(codec.name) == "numpy"]
    if not slow:
        return ", encoded by numba" if result.paths else ""
    reasons = "; ".join(sorted({fast.why_not(codec) or "no reason known" for codec in slow}))
    names = f" {', '.join(codec.name for codec in slow)}" if len(slow) < len(result.paths) else ""
    return f", encoded{names} by numpy, which is slower: {reasons}"
