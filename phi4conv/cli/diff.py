"""phi4conv diff."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi4conv.cli.page import Page, Row, add_defects, add_section
from phi4conv.cli.support import Command, gibibytes, output_options, show_json

if TYPE_CHECKING:
    from phi4conv.diff import Difference
    from phi4conv.diff.tensors import TensorDifference
    from phi4conv.diff.values import ArrayDifference, PairDifference
    from phi4conv.diff.vocabulary import ListDifference, VocabularyDifference
    from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, TensorEntry
    from phi4conv.inspect import SpecialToken

# Of long lists people see the beginning; --json has all of it.
SHOWN_ITEMS = 5
SHOWN_TENSORS = 40

# A text up to this length is shown whole, a longer one around its first difference.
SHORT_TEXT = 100

EXIT_DIFFERENT = 1


@click.command(cls=Command)
@click.argument("a", metavar="A.gguf", type=click.Path(path_type=Path))
@click.argument("b", metavar="B.gguf", type=click.Path(path_type=Path))
@click.option("--no-data", is_flag=True, help="Compare headers only: the bytes of the tensors are not read.")
@output_options
def diff(a: Path, b: Path, *, no_data: bool, as_json: bool, quiet: bool) -> None:
    """Show what differs between two GGUFs: metadata, vocabulary, tensors.

    Tensors are compared byte by byte. The order of keys and tensors and their places in the file make no
    difference. Exit code 0 when all that was compared is equal, 1 when something differs, 2 when a file
    cannot be read.
    """
    from phi4conv.diff import compare
    from phi4conv.diff.document import as_document
    from phi4conv.gguf_file.read import read_gguf
    from phi4conv.progress import choose_progress

    found = compare(read_gguf(a), read_gguf(b), data=not no_data, progress=choose_progress(quiet=quiet))
    if as_json:
        show_json("diff", "diff", **as_document(found))
    else:
        show(found)
    if not found.equal:
        raise click.exceptions.Exit(EXIT_DIFFERENT)


def show(difference: Difference) -> None:
    """Print the differences for people."""
    page = Page()
    page.add(difference.verdict, bold=True, fg="green" if difference.equal else "red")
    for label, value in file_rows(difference):
        page.add(f"  {label}  {value}", cut=True)
    page.add()
    add_section(page, "container", [(fact.name, f"A {fact.a}, B {fact.b}") for fact in difference.container])
    for side, defects in (("A", difference.defects_a), ("B", difference.defects_b)):
        if defects:
            page.add(f"only {side} has", bold=True)
            add_defects(page, defects)
            page.add()
    add_metadata(page, difference)
    add_vocabulary(page, difference.vocabulary)
    add_tensors(page, difference.tensors.different)
    page.lines = page.lines[:-1] if page.lines[-1] == "" else page.lines
    page.show()


def file_rows(difference: Difference) -> Iterator[Row]:
    """Which file is which, and what is to be said of both but makes no difference."""
    for label, file in (("A", difference.a), ("B", difference.b)):
        yield label, f"{file.path}  {file_in_words(file)}"
    if difference.one_file and difference.a.path != difference.b.path:
        yield " ", "both names lead to one file"
    if difference.other_key_order:
        yield " ", "metadata keys in another order, which makes no difference"
    if difference.tensors.other_order:
        yield " ", "tensors in another order, which makes no difference"


def file_in_words(file: GGUFFile) -> str:
    """A file in a line."""
    return f"{gibibytes(file.file_size)}, {len(file.metadata):,} keys, {len(file.tensors):,} tensors"


def add_metadata(page: Page, difference: Difference) -> None:
    """Every key that differs, but for those that the vocabulary tells of."""
    told = difference.vocabulary.keys
    left = [each for each in difference.metadata if each.key not in told or each.kind == "type"]
    if not left:
        return
    page.add("metadata", bold=True)
    for each in left:
        add_pair(page, each)
    page.add()


def add_pair(page: Page, difference: PairDifference) -> None:
    """A key, then its two values or the first places where they differ."""
    only = difference.a or difference.b
    if only is not None and difference.kind in {"only-in-a", "only-in-b"}:
        side = "B" if difference.a is None else "A"
        page.add(f"  only in {side}: {difference.key}  {value_in_words(only, with_type=True)}", cut=True)
        return
    note = pair_note(difference)
    page.add(f"  {difference.key}{f'  ({note})' if note else ''}", cut=True)
    if difference.array is not None and difference.kind == "value":
        add_items(page, difference.array)
        return
    if difference.text is not None and not is_short(difference):
        page.add(f"    A  {difference.text.a}")
        page.add(f"    B  {difference.text.b}")
        return
    for side, pair in (("A", difference.a), ("B", difference.b)):
        if pair is not None:
            page.add(f"    {side}  {value_in_words(pair, with_type=difference.kind != 'value')}", cut=True)


def is_short(difference: PairDifference) -> bool:
    """Whether both strings are short enough to be shown whole."""
    return all(pair is not None and len(pair.value) <= SHORT_TEXT for pair in (difference.a, difference.b))


def pair_note(difference: PairDifference) -> str:
    """What stands behind a key that both have."""
    if difference.array is not None:
        count = items_in_words(difference.array)
        return f"other type; {count}" if difference.kind == "type" else count
    if difference.kind == "type":
        return "other type"
    if difference.text is not None and difference.a and difference.b and not is_short(difference):
        text = difference.text
        lengths = f"{len(difference.a.value):,} characters in A, {len(difference.b.value):,} in B"
        return f"{lengths}; they differ from line {text.line:,}, column {text.column:,} on"
    return ""


def items_in_words(array: ArrayDifference) -> str:
    """How many items differ."""
    lengths = f"{len(array.a):,} items in A, {len(array.b):,} in B"
    if not array.indices:
        return "the same items"
    if len(array.a) == len(array.b):
        return f"{len(array.indices):,} of {len(array.a):,} items differ"
    return f"{lengths}; they differ at {len(array.indices):,} indices, from {array.indices[0]:,} on"


def value_in_words(pair: MetadataPair, *, with_type: bool) -> str:
    """A value, with its type where that matters."""
    from phi4conv.inspect import shown_value

    kind = f"{pair.type.name} of {pair.item_type.name}" if pair.item_type is not None else pair.type.name
    return f"{kind} {shown_value(pair)}" if with_type else shown_value(pair)


def add_items(page: Page, array: ArrayDifference) -> None:
    """The first items that differ."""
    for item in array.items(SHOWN_ITEMS):
        page.add(f"    [{item.index}]  A {item_in_words(item.a)}  B {item_in_words(item.b)}", cut=True)
    add_rest(page, len(array.indices) - SHOWN_ITEMS)


def item_in_words(item: object) -> str:
    """One item of an array, or that there is none."""
    return "no item" if item is None else str(item)


def add_rest(page: Page, count: int) -> None:
    """How much of a list is not shown, if anything."""
    if count > 0:
        page.add(f"    … and {count:,} more; --json lists all")


def add_vocabulary(page: Page, difference: VocabularyDifference) -> None:
    """Tokens, merges, types and special tokens that differ."""
    if not difference.keys:
        return
    page.add("vocabulary", bold=True)
    add_list(page, "tokens", "ids", difference.tokens)
    add_list(page, "merges", "ranks", difference.merges)
    for change in difference.types:
        ids = shortened(map(str, change.ids), len(change.ids))
        tokens = f"{len(change.ids):,} token{'' if len(change.ids) == 1 else 's'}"
        page.add(f"  {tokens} of type {change.a} in A, {change.b} in B: {ids}", cut=True)
    for special in difference.special:
        page.add(f"  {special.role}  A {special_in_words(special.a)}  B {special_in_words(special.b)}", cut=True)
    page.add()


def add_list(page: Page, what: str, places: str, difference: ListDifference | None) -> None:
    """How two lists of texts differ: the places, and the texts that only one side has."""
    if difference is None:
        return
    array = difference.array
    page.add(f"  {what}: {len(array.a):,} in A, {len(array.b):,} in B; {len(array.indices):,} {places} differ")
    if array.a and array.b:
        add_items(page, array)
    for side, only in (("A", difference.only_a), ("B", difference.only_b)):
        if only:
            page.add(f"    {len(only):,} only in {side}: {shortened(only, len(only))}", cut=True)


def shortened(texts: Iterable[str], count: int) -> str:
    """The first texts of count, quoted only by what is between them."""
    shown = [text for text, _ in zip(texts, range(SHOWN_ITEMS), strict=False)]
    return "  ".join((*shown, "…")) if count > SHOWN_ITEMS else "  ".join(shown)


def special_in_words(token: SpecialToken | None) -> str:
    """A special token's id and text."""
    if token is None:
        return "not given"
    return f"{token.id} {'not in the vocabulary' if token.text is None else token.text}"


def add_tensors(page: Page, tensors: Sequence[TensorDifference]) -> None:
    """The tensors that differ."""
    if not tensors:
        return
    page.add("tensors", bold=True)
    for tensor in tensors[:SHOWN_TENSORS]:
        page.add(f"  {tensor.name}  {tensor_in_words(tensor)}", cut=True)
    add_rest(page, len(tensors) - SHOWN_TENSORS)
    page.add()


def tensor_in_words(difference: TensorDifference) -> str:
    """What is the matter with a tensor."""
    if difference.a is None or difference.b is None:
        side, entry = ("A", difference.a) if difference.a is not None else ("B", difference.b)
        return f"only in {side}: {kind_in_words(entry)}"
    if difference.first_byte is None:
        return f"A {kind_in_words(difference.a)}, B {kind_in_words(difference.b)}"
    return f"bytes differ from byte {difference.first_byte:,} of {difference.a.size_bytes:,} on"


def kind_in_words(entry: TensorEntry | None) -> str:
    """A tensor's type and shape."""
    return "" if entry is None else f"{entry.type_name} {' x '.join(map(str, entry.shape))}"
