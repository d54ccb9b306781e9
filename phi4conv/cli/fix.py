"""phi4conv fix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phi4conv.cli.findings import add_comparisons, add_findings, add_wrapped
from phi4conv.cli.page import Page, add_section
from phi4conv.cli.support import Command, OutputFile, output_options, show_json, show_warnings

if TYPE_CHECKING:
    from phi4conv.fix import Repair
    from phi4conv.gguf_file.layout import MetadataPair

# Of the values that were changed so many characters are shown, old and new.
LONGEST_VALUE, SHORTEST_VALUE = 48, 24
LONGEST_KEY = 41  # "  tokenizer.ggml.padding_token_id", and what stands between the two values


@click.command(cls=Command)
@click.argument("broken", metavar="IN.gguf", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.gguf", required=False, type=OutputFile(path_type=Path))
@click.option(
    "--tokenizer",
    metavar="MODEL_DIR",
    type=click.Path(path_type=Path),
    help="The folder with the model's tokenizer.json; not needed for Phi-4 itself.",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Another value for a metadata key, typed as the key is (an array in JSON); repeatable.",
)
@click.option("--in-place", is_flag=True, help="Replace IN itself, in one step and only after success. No OUT then.")
@click.option("--dry-run", is_flag=True, help="Show what would be changed, and write nothing; needs no OUT.")
@click.option("--force", is_flag=True, help="Replace OUT when it exists.")
@output_options
def fix(
    *,
    broken: Path,
    out: Path | None,
    tokenizer: Path | None,
    settings: tuple[str, ...],
    in_place: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Repair a GGUF's tokenizer and metadata; the weights are copied byte for byte.

    IN is examined as verify-tokenizer does, and never modified. OUT appears when the repaired file is
    proved right. A file without defects is copied as it is. Exit code 1 says that new metadata cannot
    repair the file; nothing is written then.
    """
    from phi4conv.fix import check_output, plan_repair, write_repaired
    from phi4conv.progress import choose_progress
    from phi4conv.settings import SettingError

    if (in_place and out) or not (in_place or out or dry_run):
        raise click.UsageError("expected IN.gguf OUT.gguf, or IN.gguf --in-place")
    target = out or broken
    progress = choose_progress(quiet=quiet)
    if not dry_run:
        check_output(broken, target, force=force, in_place=in_place)
    try:
        repair = plan_repair(broken, tokenizer, settings, progress)
    except SettingError as error:
        raise click.UsageError(f"--set {error}") from error
    show_warnings(repair.proof.notes, quiet=quiet)
    written = not dry_run and not (in_place and not repair.changes)
    if written:
        write_repaired(repair, target, force=force, in_place=in_place, progress=progress)
    if as_json:
        show_json("fix", "fix", dry_run=dry_run, out=str(target) if written else None, **document(repair))
    elif not quiet:
        show(repair, target, written=written)


def show(repair: Repair, target: Path, *, written: bool) -> None:
    """Print what was changed, and the proof of the result."""
    from phi4conv.check.model import Severity

    page = Page()
    page.add(headline(repair, target, written=written), bold=True, fg="green" if repair.proof.is_right else "yellow")
    page.add()
    for finding in repair.roots:
        page.add(f"repaired  {finding.id} ({finding.code})", bold=True)
        add_wrapped(page, finding.message, first="  ", indent="  ")
    if repair.roots:
        page.add()
    add_section(page, "changed", changed_rows(repair, longest_value(page)))
    add_findings(page, [finding for finding in repair.proof.findings if finding.severity >= Severity.WARN])
    add_section(page, "held against", [("source", repair.expected.origin_text)])
    add_comparisons(page, repair.proof.comparisons)
    count = len(repair.file.tensors)
    page.add(f"weights: {count:,} tensors, their bytes untouched" if count else "weights: none in this file")
    page.show()


def headline(repair: Repair, target: Path, *, written: bool) -> str:
    """What was done, and how the result stands."""
    from phi4conv.check.report import verdict

    name = repair.file.path.name
    if repair.changes:
        what = f"wrote {target}" if written else f"{name} would be changed; nothing was written"
    else:
        what = f"{name}: nothing to repair; "
        what += f"{target} is a copy, byte for byte" if written else "nothing was written"
    asked = "" if repair.proof.is_right else ", by what --set asked for"
    return f"{what}: {verdict(repair.proof)}{asked}"


def longest_value(page: Page) -> int:
    """How many characters of a value fit twice beside the longest of the usual keys."""
    return LONGEST_VALUE if page.width is None else max(SHORTEST_VALUE, (page.width - LONGEST_KEY) // 2)


def changed_rows(repair: Repair, longest: int) -> list[tuple[str, str]]:
    """Every changed key with its old and its new value, of longer ones where they differ."""
    rows = []
    for change in repair.changes:
        before, after = old_and_new(repair.file.metadata.get(change.key), change.pair)
        rows.append((change.key, f"{shortened(before, longest)} → {shortened(after, longest)}"))
    return rows


def old_and_new(old: MetadataPair | None, new: MetadataPair | None) -> tuple[str, str]:
    """Two values of a key in words: what tells the one from the other."""
    from gguf import GGUFValueType

    from phi4conv.check.template import around, first_difference
    from phi4conv.inspect import shown_value

    if old is None or new is None:
        return ("absent" if old is None else shown_value(old), "removed" if new is None else shown_value(new))
    if (old.type, old.item_type) != (new.type, new.item_type):
        kind = old.type if old.item_type is None else old.item_type
        return f"{kind.name} {shown_value(old)}", shown_value(new)
    if isinstance(old.value, str) and min(len(old.value), len(new.value)) > SHORTEST_VALUE:
        place = first_difference(old.value, new.value)
        return around(old.value, place, 12), around(new.value, place, 12)
    if old.type == GGUFValueType.ARRAY and len(old.value) == len(new.value):
        wrong = [place for place, pair in enumerate(zip(old.value, new.value, strict=True)) if pair[0] != pair[1]]
        if wrong and 2 * len(wrong) < len(new.value):
            place = wrong[0]
            return f"[{len(wrong):,} of {len(new.value):,}] {place}: {old.value[place]}", str(new.value[place])
    return shown_value(old), shown_value(new)


def shortened(text: str, longest: int) -> str:
    """The beginning of a long value."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def document(repair: Repair) -> dict[str, Any]:
    """The content of the phi4conv.fix/1 document."""
    from phi4conv.check.report import comparison_document, finding_document, verdict
    from phi4conv.inspect import metadata_document

    proof = repair.proof
    olds = [repair.file.metadata[change.key] for change in repair.changes if change.key in repair.file.metadata]
    return {
        "file": str(repair.file.path),
        "source": {"kind": repair.expected.origin.name.lower(), "origin": repair.expected.origin_text},
        "verdict": {"right": proof.is_right, "text": verdict(proof)},
        "findings": [finding_document(finding) for finding in repair.roots],
        "before": metadata_document(olds),
        "after": metadata_document(change.pair for change in repair.changes if change.pair is not None),
        "removed": [change.key for change in repair.changes if change.pair is None],
        "left": [finding_document(finding) for finding in proof.findings],
        "comparisons": [comparison_document(comparison) for comparison in proof.comparisons],
        "tensors": len(repair.file.tensors),
        "size_bytes": repair.size_bytes,
        "notes": list(proof.notes),
    }
