"""phi4conv verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi4conv.cli.findings import add_findings
from phi4conv.cli.page import Page, add_section
from phi4conv.cli.support import Command, gibibytes, output_options, show_json, show_warnings

if TYPE_CHECKING:
    from phi4conv.reference.compare import LogitFigures
    from phi4conv.verify import Verification

EXIT_WRONG = 1


@click.command(cls=Command)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("path", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="Ask this, in the model's chat format, instead of the built-in conversations; repeatable.",
)
@click.option(
    "--text",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Run over a text of yours, in UTF-8, in windows of 512 tokens as llama-perplexity does.",
)
@click.option(
    "--max-tokens",
    metavar="N",
    type=click.IntRange(1),
    help="How many tokens of --text to take.  [default: 4096]",
)
@click.option(
    "--max-kl",
    metavar="X",
    type=click.FloatRange(0),
    help="The largest mean KL divergence of a good file, in nats.  [default: by the file's type]",
)
@click.option(
    "--min-top1",
    metavar="P",
    type=click.FloatRange(0, 1),
    help="The least share, 0 to 1, of positions with the same likeliest token, among those where the source finds it "
    "twice as likely as the next.  [default: by the file's type]",
)
@click.option(
    "--runtime",
    type=click.Choice(("reference", "llama.cpp")),
    default="reference",
    show_default=True,
    help="Run the file on phi4conv's own page of arithmetic, or ask the real llama.cpp (package xllamacpp), too.",
)
@click.option("--device", metavar="D", default="cpu", show_default=True, help="Where torch computes: cpu, cuda, mps.")
@click.option(
    "--sliding-window",
    type=click.Choice(("off", "on")),
    default="off",
    show_default=True,
    help="Attend within the model's sliding window as transformers does, or to everything as llama.cpp does.",
)
@click.option(
    "--n-ctx",
    metavar="N",
    type=click.IntRange(1),
    help="Choose LongRoPE factors for a context of N tokens, as llama.cpp does.  [default: by each prompt's length]",
)
@output_options
@click.pass_context
def verify(
    context: click.Context,
    *,
    model_dir: Path,
    path: Path,
    prompts: tuple[str, ...],
    text: Path | None,
    max_tokens: int | None,
    max_kl: float | None,
    min_top1: float | None,
    runtime: str,
    device: str,
    sliding_window: str,
    n_ctx: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a GGUF beside the checkpoint that it was made from, and name what makes them differ.

    Every tensor is compared with the source's weights, every layer and the logits with the source's on the same
    tokens. Weights are read in pieces: memory does not grow with the model. Needs torch. Exit code 1 says that
    the file is wrong.
    """
    from phi4conv.progress import choose_progress
    from phi4conv.verify import VerifyOptions, verify
    from phi4conv.verify.prompts import DEFAULT_MAX_TOKENS, PromptOptions

    if model_dir.is_file() and path.is_dir():
        raise click.UsageError(f"the folder comes first: verify {path} {model_dir}")
    options = VerifyOptions(
        asked=PromptOptions(prompts=prompts, text=text, max_tokens=max_tokens or DEFAULT_MAX_TOKENS),
        max_kl=max_kl,
        min_top1=min_top1,
        llama_cpp=runtime == "llama.cpp",
        device=device,
        apply_window=sliding_window == "on",
        n_ctx=n_ctx,
    )
    outcome = verify(model_dir, path, options, choose_progress(quiet=quiet))
    show_warnings(outcome.notes, quiet=quiet)
    if as_json:
        from phi4conv.verify.report import verification_document

        show_json("verify", "verify", **verification_document(outcome))
    else:
        show(outcome)
    if not outcome.is_right:
        context.exit(EXIT_WRONG)


def show(outcome: Verification) -> None:
    """Print the verification for people: the verdict first."""
    from phi4conv.verify.report import verdict

    page = Page()
    name = outcome.sides.file.path.name
    page.add(f"{name}: {verdict(outcome)}", bold=True, fg="green" if outcome.is_right else "red")
    page.add()
    add_findings(page, outcome.findings)
    add_section(page, "compared", compared_rows(outcome))
    add_tensors(page, outcome)
    add_layers(page, outcome)
    add_logits(page, outcome)
    page.add(cost(outcome))
    page.show()


def compared_rows(outcome: Verification) -> list[tuple[str, str]]:
    """Both sides, and what they were asked."""
    sides, reading = outcome.sides, outcome.reading
    scored = sum(len(window.scored) for window in reading.windows)
    kind = "prompts" if len(reading.windows) != 1 else "prompt"
    identical = sum(error.expectation.identical is True for error in outcome.outcome.tensors)
    return [
        ("source", f"{sides.folder}, {sides.checkpoint.parameter_count:,} weights in {sides.checkpoint.dtype}"),
        ("file", f"{sides.file.path}, {sides.file.architecture}, most weights in {sides.type_name}"),
        ("asked", f"{len(reading.windows)} {kind}, {reading.token_count:,} tokens, {scored:,} of them scored"),
        ("bytes", f"{identical} of {len(outcome.outcome.tensors)} parts have the bytes that llama.cpp's encoder gives"),
    ]


def add_table(page: Page, rows: list[tuple[str, ...]]) -> None:
    """Rows in columns, numbers to the right; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, (name, *cells) in enumerate(rows):
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        page.add("  ".join([name.ljust(widths[0]), *aligned]).rstrip(), cut=True, **({} if number else {"bold": True}))
    page.add()


def add_tensors(page: Page, outcome: Verification) -> None:
    """How far the weights of each type are from the source's, beside what the type should give."""
    from phi4conv.verify.report import by_type

    rows: list[tuple[str, ...]] = [
        ("weights by type", "parts", "relative error", "signal to noise", "should give", "furthest from it")
    ]
    rows += (
        (
            f"  {each.name}",
            f"{each.parts}",
            f"{each.relative:.3g}",
            signal_to_noise(each.relative),
            signal_to_noise(each.expected_relative),
            each.worst.part,
        )
        for each in by_type(outcome.outcome.tensors)
    )
    add_table(page, rows)


def signal_to_noise(relative: float) -> str:
    """A relative error in decibels."""
    from phi4conv.verify.report import decibels

    return f"{decibels(relative):.1f} dB" if relative else "exact"


def add_layers(page: Page, outcome: Verification) -> None:
    """The hidden state after each layer, and what each layer got wrong by itself."""
    rows: list[tuple[str, ...]] = [("hidden state after", "relative error", "cosine", "layer's own error", "")]
    wrong = set(outcome.outcome.wrong_layers)
    rows += (
        (
            "  the embedding" if errors.index < 0 else f"  layer {errors.index}",
            f"{errors.grown.relative:.3g}",
            f"{errors.grown.cosine:.6f}",
            "" if errors.index < 0 else f"{errors.own.relative:.3g}",
            "more than its types explain" if errors.index in wrong else "",
        )
        for errors in outcome.outcome.comparison.layers
    )
    add_table(page, rows)


def add_logits(page: Page, outcome: Verification) -> None:
    """The tables that llama-perplexity prints, and how real llama.cpp does."""
    from phi4conv.reference.perplexity_table import perplexity_table

    figures, thresholds = outcome.outcome.comparison.logits, outcome.thresholds
    page.add("logits, in the words of llama-perplexity --kl-divergence (Q: the file, base: the source)", bold=True)
    section = ""
    for row in perplexity_table(figures):
        if row.section != section:
            section = row.section
            page.add(f"  ====== {section} ======")
        page.add(f"  {row.text}")
    if (top := figures.same_top_where_decided) is not None:
        shown = f"{100 * top.value:.3f} ± {100 * top.error:.3f} %"
        page.add(f"  Same top p: {shown} at the {figures.decided} positions where the source is decided")
    page.add(
        f"  a good {outcome.sides.type_name} file: mean KLD at most {thresholds.max_kl:g}, same top p at least "
        f"{100 * thresholds.min_top1:g} % there"
    )
    page.add()
    if outcome.outcome.llama_cpp is not None:
        add_third_column(page, *outcome.outcome.llama_cpp)


def add_third_column(page: Page, from_source: LogitFigures, from_file: LogitFigures) -> None:
    """What real llama.cpp makes of the file; it rounds activations of quantized files, so this is no verdict."""
    rows: list[tuple[str, ...]] = [("real llama.cpp, for information", "mean KLD", "max KLD", "same top p")]
    for name, figures in (("  against the source", from_source), ("  against this run of the file", from_file)):
        kl, top = figures.kl, figures.same_top
        rows.append((name, f"{kl.mean.value:.6f}", f"{kl.maximum:.6f}", f"{100 * top.value:.2f} %"))
    add_table(page, rows)


def cost(outcome: Verification) -> str:
    """How long it took, and what it read and held."""
    memory = "" if outcome.peak_memory is None else f", {gibibytes(outcome.peak_memory)} of memory at most"
    return f"{outcome.seconds:.1f} s, {gibibytes(outcome.outcome.bytes_read)} read{memory}"
