"""phi4conv verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phi4conv.cli.findings import add_findings, add_wrapped
from phi4conv.cli.page import Page, add_section
from phi4conv.cli.support import Command, gibibytes, output_options, show_json

if TYPE_CHECKING:
    from phi4conv.check.model import Finding
    from phi4conv.reference.compare import LogitFigures
    from phi4conv.verify import Verification

EXIT_WRONG = 1

OWN_ERROR = "Own error: what a layer adds to the source's hidden state, against what the source's layer adds."
DECIDED = "Decided positions: those where the source finds one token at least twice as likely as any other."

# Of a finding about many tensors so many are named.
SHOWN_PLACES = 6

# A model of more layers is shown by some of them, and by those that are wrong.
MOST_LAYERS, SPREAD_LAYERS = 16, 8


class Limit(click.FloatRange):
    """A number from a range; NaN, which no comparison finds too large, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        number = super().convert(value, param, ctx)
        if number != number:  # noqa: PLR0124  # by this NaN is known
            self.fail(f"{value!r} is no number", param, ctx)
        return number


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
    type=Limit(0),
    help="The largest mean KL divergence of a good file, in nats.  [default: by the file's type]",
)
@click.option(
    "--min-top1",
    metavar="P",
    type=Limit(0, 1),
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

    if model_dir.is_file():
        if path.is_dir():
            raise click.UsageError(f"the folder comes first: verify {path} {model_dir}")
        raise click.UsageError(f"MODEL_DIR is the folder that the file was made from, and {model_dir} is a file")
    if max_tokens is not None and text is None:
        raise click.UsageError("--max-tokens says how much of --text FILE to take, and there is no --text")
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
    add_findings(page, [shortened(finding) for finding in outcome.findings])
    add_section(page, "compared", compared_rows(outcome))
    add_notes(page, outcome.notes)
    add_tensors(page, outcome)
    add_layers(page, outcome)
    add_logits(page, outcome)
    page.add(cost(outcome))
    page.show()


def shortened(finding: Finding) -> Finding:
    """A finding that names no more tensors than people read; --json has all of them."""
    from phi4conv.check.model import listed

    where = listed(finding.where.split(", "), SHOWN_PLACES)
    return replace(finding, where=where, consequences=tuple(map(shortened, finding.consequences)))


def compared_rows(outcome: Verification) -> list[tuple[str, str]]:
    """Both sides, what they were asked, and how much of it came out alike."""
    from phi4conv.check.report import counted

    sides, reading, tensors = outcome.sides, outcome.reading, outcome.outcome.tensors
    passages = counted(len(reading.windows), "passage")
    scored = sum(len(window.scored) for window in reading.windows)
    good = sum(error.good for error in tensors)
    identical = sum(error.expectation.identical is True for error in tensors)
    return [
        ("source", f"{sides.folder}, {sides.checkpoint.parameter_count:,} weights in {sides.checkpoint.dtype}"),
        ("file", f"{sides.file.path}, {sides.file.architecture}, most weights in {sides.type_name}"),
        (
            "asked",
            f"{passages}, {reading.token_count:,} tokens; the next one is compared behind {scored:,} of them",
        ),
        ("weights", f"{good:,} of {len(tensors):,} parts hold the source's, as well as their types can"),
        ("", f"{identical:,} with the bytes of llama.cpp's encoder, in the rows that were encoded again"),
        *answer_rows(outcome),
    ]


def answer_rows(outcome: Verification) -> list[tuple[str, str]]:
    """The two figures that are held against limits."""
    from phi4conv.check.report import counted

    figures, limits = outcome.outcome.comparison.logits, outcome.thresholds
    kl, top = figures.kl.mean.value, figures.same_top_where_decided
    good = f"a good {outcome.sides.type_name} file"
    of_kl, of_top = ("asked for" if own else good for own in (limits.kl_asked_for, limits.top1_asked_for))
    if isfinite(kl):
        rows = [("answers", f"mean KL divergence {kl:.4g} nats ({of_kl}: at most {limits.max_kl:g})")]
    elif figures.other_not_finite:
        broken = f"{figures.other_not_finite:,} of {figures.positions:,} positions"
        rows = [("answers", f"NaN or infinite at {broken}, so that no KL divergence can be told")]
    else:
        rows = [("answers", f"infinite mean KL divergence ({of_kl}: at most {limits.max_kl:g})")]
    if top is not None:
        share = f"{100 * top.value:.1f} % of {counted(figures.decided, 'decided position')}"
        rows.append(("", f"same likeliest token at {share} ({of_top}: at least {100 * limits.min_top1:g} %)"))
    return rows


def add_notes(page: Page, notes: Sequence[str]) -> None:
    """What is to be known of how it was run."""
    if not notes:
        return
    page.add("notes", bold=True)
    for note in notes:
        add_wrapped(page, note, first="  - ", indent="    ")
    page.add()


def add_table(page: Page, rows: Sequence[tuple[str, ...]]) -> None:
    """Rows in columns, numbers to the right; the first row is the heading, and what the last column says is a text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, (name, *cells, last) in enumerate(rows):
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False)]
        page.add("  ".join([name.ljust(widths[0]), *aligned, last]).rstrip(), cut=True, bold=number == 0)
    page.add()


def add_tensors(page: Page, outcome: Verification) -> None:
    """How far the weights of each type are from the source's, beside what the type should give."""
    from phi4conv.verify.report import by_type

    rows: list[tuple[str, ...]] = [
        ("weights by type", "parts", "error", "by its type", "signal to noise", "by its type", "furthest from it")
    ]
    rows += (
        (
            f"  {each.name}",
            f"{each.parts:,}",
            share(each.relative),
            share(each.expected_relative),
            signal_to_noise(each.relative),
            signal_to_noise(each.expected_relative),
            each.worst.part,
        )
        for each in by_type(outcome.outcome.tensors)
    )
    add_table(page, rows)


def share(relative: float) -> str:
    """An error as a share of what is right, in per cent.

    >>> share(0.0712), share(1.3e-6), share(0.0), share(7.9e29), share(float("inf"))
    ('7.12 %', '0.0001 %', '0 %', '7.9e+29 times', 'not finite')
    """
    if not isfinite(relative):
        return "not finite"
    if relative >= 100:
        return f"{relative:.2g} times"
    digits = 2 if relative >= 1e-4 else 4
    return f"{100 * relative:.{digits}f} %" if relative else "0 %"


def signal_to_noise(relative: float) -> str:
    """A relative error in decibels."""
    from phi4conv.verify.report import decibels

    if not isfinite(relative):
        return "no signal"
    return f"{decibels(relative):.1f} dB" if relative else "exact"


def add_layers(page: Page, outcome: Verification) -> None:
    """The hidden state after each layer, and what each layer got wrong by itself."""
    layers, explained, wrong = (
        outcome.outcome.comparison.layers,
        outcome.outcome.explained,
        outcome.outcome.wrong_layers,
    )
    chosen = shown_layers(len(layers) - 1, wrong)
    rows: list[tuple[str, ...]] = [
        ("hidden state after", "error so far", "cosine", "layer's own error", "explained up to", "")
    ]
    rows += (
        (
            "  the embedding" if errors.index < 0 else f"  layer {errors.index}",
            share(errors.grown.relative),
            f"{errors.grown.cosine:.6f}",
            "" if errors.index < 0 else share(errors.own.relative),
            "" if errors.index < 0 else share(explained[errors.index]),
            "wrong" if errors.index in wrong else "",
        )
        for errors in layers
        if errors.index < 0 or errors.index in chosen
    )
    add_table(page, rows)
    page.lines.pop()
    if len(chosen) < len(layers) - 1:
        shown = f"{len(chosen)} of {len(layers) - 1} layers are shown, {len(wrong)} of all are wrong; --json has all."
        add_wrapped(page, shown, first="  ", indent="  ")
    add_wrapped(page, OWN_ERROR, first="  ", indent="  ")
    page.add()


def shown_layers(count: int, wrong: Sequence[int]) -> set[int]:
    """The layers that people are shown: of many the first wrong ones, and some between the first and the last.

    >>> sorted(shown_layers(40, [17])), sorted(shown_layers(3, []))
    ([0, 5, 10, 15, 17, 20, 25, 30, 35, 39], [0, 1, 2])
    """
    if count <= MOST_LAYERS:
        return set(range(count))
    return {*range(0, count, -(-count // SPREAD_LAYERS)), count - 1, *wrong[: MOST_LAYERS - SPREAD_LAYERS - 1]}


def add_logits(page: Page, outcome: Verification) -> None:
    """The tables that llama-perplexity prints, and how real llama.cpp does."""
    from phi4conv.reference.perplexity_table import perplexity_table

    page.add("logits, in the words of llama-perplexity --kl-divergence (Q: the file, base: the source)", bold=True)
    section = ""
    figures = outcome.outcome.comparison.logits
    for row in perplexity_table(figures):
        if row.section != section:
            section = row.section
            page.add(f"  ====== {section} ======")
        page.add(f"  {row.text}")
    if figures.decided:
        add_wrapped(page, DECIDED, first="  ", indent="  ")
    page.add()
    if outcome.outcome.llama_cpp is not None:
        add_third_column(page, *outcome.outcome.llama_cpp)


def add_third_column(page: Page, from_source: LogitFigures, from_file: LogitFigures) -> None:
    """What real llama.cpp makes of the file; it rounds activations of quantized files, so this is no verdict."""
    rows: list[tuple[str, ...]] = [("logits of real llama.cpp, for information", "mean KLD", "max KLD", "same top p")]
    for name, figures in (("  against the source", from_source), ("  against this run of the file", from_file)):
        kl, top = figures.kl, figures.same_top
        rows.append((name, f"{kl.mean.value:.6f}", f"{kl.maximum:.6f}", f"{100 * top.value:.2f} %"))
    add_table(page, rows)


def cost(outcome: Verification) -> str:
    """How long it took, and what it read and held."""
    memory = "" if outcome.peak_memory is None else f", {gibibytes(outcome.peak_memory)} of memory at most"
    return f"{outcome.seconds:.1f} s, {gibibytes(outcome.outcome.bytes_read)} read{memory}"
