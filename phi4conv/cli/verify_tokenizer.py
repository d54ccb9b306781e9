"""phi4conv verify-tokenizer."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi4conv.cli.findings import add_comparisons, add_findings
from phi4conv.cli.page import Page, add_section
from phi4conv.cli.support import Command, output_options, show_json, show_warnings

if TYPE_CHECKING:
    from phi4conv.check.proof import Proof

EXIT_WRONG = 1


@click.command("verify-tokenizer", cls=Command)
@click.argument("paths", metavar="[MODEL_DIR] OUT.gguf", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--text",
    "text_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A text of yours, in UTF-8, to compare as well; repeatable.",
)
@click.option("--fuzz", metavar="N", type=click.IntRange(0), default=0, help="Compare N random texts as well.")
@click.option("--seed", metavar="S", type=int, default=0, show_default=True, help="Which random texts.")
@click.option(
    "--runtime",
    type=click.Choice(("reference", "llama.cpp")),
    default="reference",
    show_default=True,
    help="Run the file's tokenizer as llama.cpp does, or ask the real llama.cpp (package xllamacpp), too.",
)
@output_options
@click.pass_context
def verify_tokenizer(
    context: click.Context,
    *,
    paths: tuple[Path, ...],
    text_files: tuple[Path, ...],
    fuzz: int,
    seed: int,
    runtime: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prove that a GGUF's tokenizer is the one that its model was trained with, id by id.

    MODEL_DIR is the folder with tokenizer.json that the file was made from. Without it the file is held
    against the vocabulary of Phi-4 that phi4conv carries. Exit code 1 says that the tokenizer is wrong.
    """
    from phi4conv.check.expectation import expected_from_folder, expected_of_phi4
    from phi4conv.check.proof import ProofOptions, prove
    from phi4conv.check.readable import format_notes, require_first_part, require_readable
    from phi4conv.check.report import proof_document
    from phi4conv.check.user_texts import read_user_texts
    from phi4conv.gguf_file.read import read_gguf
    from phi4conv.progress import choose_progress

    if len(paths) > 2:
        raise click.UsageError(f"expected [MODEL_DIR] OUT.gguf, found {len(paths)} paths")
    *folder, path = paths
    if path.is_dir() and folder and folder[0].is_file():
        raise click.UsageError(f"the folder comes first: verify-tokenizer {path} {folder[0]}")
    texts = read_user_texts(text_files)
    file = read_gguf(path)
    require_readable(file)
    require_first_part(file)
    expected = expected_from_folder(file, folder[0]) if folder else expected_of_phi4(file)
    expected = replace(expected, notes=(*format_notes(file), *expected.notes))
    options = ProofOptions(user_texts=texts, fuzz=fuzz, seed=seed, llama_cpp=runtime == "llama.cpp")
    progress = choose_progress(quiet=quiet)
    progress.note(f"examining the tokenizer of {path.name} ...")
    proof = prove(file, expected, options, progress)
    show_warnings(proof.notes, quiet=quiet)
    if as_json:
        show_json("verify-tokenizer", "verify-tokenizer", **proof_document(proof))
    else:
        show(proof)
    if not proof.is_right:
        context.exit(EXIT_WRONG)


def show(proof: Proof) -> None:
    """Print the proof for people: the verdict first."""
    from phi4conv.check.report import verdict

    page = Page()
    right = proof.is_right
    page.add(f"{proof.file.path.name}: {verdict(proof)}", bold=True, fg="green" if right else "red")
    page.add()
    add_findings(page, proof.findings)
    add_section(page, "held against", held_rows(proof))
    add_comparisons(page, proof.comparisons)
    page.add(time_taken(proof))
    if not right and all(finding.remedy for finding in proof.findings if finding.severity.name == "FAIL"):
        page.add()
        page.add(f"repair it: {repair_command(proof)}")
    page.show()


def held_rows(proof: Proof) -> list[tuple[str, str]]:
    """What the file was held against, and whether the tables are the same."""
    vocabulary = proof.expected.vocabulary
    return [
        ("source", proof.expected.origin_text),
        ("tokens", f"{len(vocabulary):,}, {digest_words(proof.digests['tokens'])}"),
        ("merges", f"{len(vocabulary.merges):,}, {digest_words(proof.digests['merges'])}"),
    ]


def digest_words(digests: tuple[str, str]) -> str:
    """Whether two digests are equal, with the beginning of them."""
    expected, actual = digests
    if expected == actual:
        return f"sha256 {expected[:16]}… on both sides"
    return f"sha256 {expected[:16]}… expected, {actual[:16]}… found"


def time_taken(proof: Proof) -> str:
    """How long it took, and how fast both sides were."""
    from phi4conv.check.report import tokens_per_second

    source, own = tokens_per_second(proof.comparisons)
    speed = f"; tokens/s: {source:,.0f} by tokenizers, {own:,.0f} by phi4conv" if own else ""
    return f"{proof.seconds:.1f} s{speed}"


def repair_command(proof: Proof) -> str:
    """The command that repairs the file."""
    from phi4conv.check.expectation import Origin

    command = ["phi4conv", "fix", str(proof.file.path), "FIXED.gguf"]
    if proof.expected.origin is Origin.MODEL_FOLDER:
        command += ["--tokenizer", proof.expected.origin_text]
    return shlex.join(command)
