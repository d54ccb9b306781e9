"""Opens both sides of a comparison, the checkpoint and the file, each read by its own rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from phi4conv.check.container import REFUSED as REFUSED_LAYOUTS
from phi4conv.check.model import Finding, Severity, listed
from phi4conv.errors import CheckpointError, FormatError, Problem
from phi4conv.gguf_file.edit import Change, with_metadata
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.read import read_gguf
from phi4conv.hf.checkpoint import Checkpoint
from phi4conv.hf.config import read_config
from phi4conv.hf.json_file import read_json_object
from phi4conv.phi3.tensors import HEAD as SAVED_HEAD
from phi4conv.phi3.tensors import check_tensors
from phi4conv.reference.file_hyperparameters import file_architecture
from phi4conv.reference.file_model import file_model, what_it_is
from phi4conv.reference.file_problems import TensorProblem, file_problems, key_problems, type_problems
from phi4conv.reference.parts import EMBEDDING, HEAD, Model, Part
from phi4conv.reference.source_model import source_model
from phi4conv.rows import row_count
from phi4conv.runnable import require_whole_model, type_reasons
from phi4conv.verify.hyperparameters import AGAIN, differences, mending_key, source_pair
from phi4conv.verify.thresholds import prevailing_type

REFUSED = "llama.cpp refuses to load the file"
METADATA_ID, HEAD_ID = "phi3/metadata", "phi3/head"
WRONG_SHAPE = "wrong-shape"

# Rows of a tied head that are held against the embedding's.
TRIED_ROWS = 256


@dataclass(frozen=True)
class Sides:
    """Checkpoint and file.

    Attributes:
        folder: The model folder.
        file: The file.
        checkpoint: The folder's tensors, for their sizes.
        source: The folder as a model.
        found: The file as a model: as its metadata say, or, where it cannot run so, with what it lacks taken from the
            source.
        findings: What differs before any weight is read.
        notes: What was taken from the source to make the file run.
    """

    folder: Path
    file: GGUFFile
    checkpoint: Checkpoint
    source: Model
    found: Model
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def type_name(self) -> str:
        """The type of most of the file's weights."""
        return prevailing_type(self.found).name


def open_sides(folder: Path, path: Path) -> Sides:
    """Read both sides' configuration and tensor tables; no weights.

    Raises:
        CheckpointError: The folder holds no checkpoint that phi4conv understands.
        FormatError: The file is no model that this page of arithmetic runs, is damaged, or is one part of several.
    """
    config = read_config(folder)  # refuses what is no Phi-4, with better words than the source's side has
    checkpoint = Checkpoint.open(folder)
    check_tensors(config, checkpoint.tensors)
    source = source_model(read_json_object(folder / "config.json"), checkpoint.tensors)
    require_tied_head(source, checkpoint)
    file = read_gguf(path)
    require_whole_model(file)
    readable, found, findings = read_file_side(file, source)
    if undecodable := list(type_reasons(file, found)):
        raise FormatError(*undecodable)
    require_same_width(source, found, folder, path)
    as_source = file_model(readable, source.hyperparameters, strict=False)
    misfits = file_problems(readable, as_source)
    findings += differences(
        found.hyperparameters,
        source.hyperparameters,
        file.architecture or "",
        stated_in=readable,
        tensors_fit=not misfits,
    )
    findings += head_findings(source, found)
    refused = bool(findings and findings[0].id == METADATA_ID)
    if key_problems(readable, found.hyperparameters) or file_problems(readable, found):
        refused, found = True, as_source
        # What a wrong key alone makes wrong is right with the source's.
        findings += tensor_findings(misfits)
    complete, taken = completed(found, source, {finding.where for finding in findings})
    findings += stand_in_findings(taken, found, source, findings)
    findings += refused_layout(file)
    findings += refused_types(readable, found)
    notes = []
    if refused:
        notes.append("as it is the file cannot run; to judge the rest it was run with what config.json says")
    if taken:
        notes.append(f"the source's took the place of what is missing or of another shape: {listed(taken)}")
    return Sides(folder, file, checkpoint, with_head(source, complete), complete, tuple(findings), tuple(notes))


def read_file_side(file: GGUFFile, source: Model) -> tuple[GGUFFile, Model, list[Finding]]:
    """The file as a model, and a finding for every value that llama.cpp refuses and the source's stands in for.

    Returns:
        The file with metadata that can be read, the model, the findings.

    Raises:
        FormatError: It is of another architecture.
    """
    architecture = file_architecture(file)
    findings: list[Finding] = []
    readable = file
    while True:
        try:
            return readable, file_model(readable, strict=False), findings
        except FormatError as error:
            problem = error.problems[0]
        key = problem.where.removeprefix(f"{file.path}: ")
        advice = mending_key(key, source.hyperparameters, architecture) or problem.next_step
        findings.append(unusable(problem, key, advice))
        # The next value, if it is wrong as well, is to be told, too.
        change = Change(key, source_pair(key, source.hyperparameters, architecture))
        if readable.metadata.get(key) == change.pair:
            return readable, file_model(readable, source.hyperparameters, strict=False), findings
        readable = with_metadata(readable, [change])


def unusable(problem: Problem, key: str, advice: str) -> Finding:
    """The finding for a value that llama.cpp refuses, or with which it runs what no Phi-4 needs."""
    shown = problem.expected, problem.found
    return Finding(METADATA_ID, Severity.FAIL, "unusable", problem.what, key, *shown, advice=advice)


def refused_layout(file: GGUFFile) -> Iterator[Finding]:
    """A finding for each kind of flaw in where tensors lie, which llama.cpp refuses although nothing of it is lost."""
    flaws = {flaw.code: flaw for flaw in reversed(file.defects) if flaw.code in REFUSED_LAYOUTS}
    for code, flaw in flaws.items():
        yield Finding(
            f"container/{code}",
            Severity.FAIL,
            code,
            f"{REFUSED}: {flaw.message}",
            where=flaw.where,
            advice="`phi4conv fix` writes the file anew",
        )


def refused_types(file: GGUFFile, found: Model) -> Iterator[Finding]:
    """A finding for each vector of a type that llama.cpp cannot compute with, although it holds the right weights."""
    for problem in type_problems(file, found):
        yield Finding(
            "phi3/vector-types",
            Severity.FAIL,
            "wrong-type",
            "llama.cpp loads the file and then stops with an assertion: it computes with F32 here",
            where=problem.tensor,
            expected=problem.expected.name,
            actual=problem.found.name,
            advice=AGAIN,
        )


def require_tied_head(source: Model, checkpoint: Checkpoint) -> None:
    """Refuse a folder that ties the head to the embedding and yet has a head of its own, which is another.

    Raises:
        CheckpointError: With the tensor.
    """
    rows, own = checkpoint.tensors.get(SAVED_HEAD), source.parts[EMBEDDING].rows
    if rows is None or HEAD in source.parts:
        return
    height = row_count(own.shape)
    step = max(1, height // TRIED_ROWS)
    same = rows.shape == own.shape and all(
        np.array_equal(rows.rows(row, row + 1), own.rows(row, row + 1), equal_nan=True)
        for row in range(0, height, step)
    )
    if not same:
        raise CheckpointError(
            Problem(
                "config.json ties the output to the embedding, but the checkpoint holds a different output",
                where=SAVED_HEAD,
                expected=f"the same weights as {source.parts[EMBEDDING].tensor}",
                next_step='if the output is a layer of its own, set "tie_word_embeddings": false in config.json',
            )
        )


def with_head(source: Model, found: Model) -> Model:
    """The source with its embedding as a head of its own where the file has one: the two must be equal."""
    if HEAD in source.parts or HEAD not in found.parts:
        return source
    return replace(source, parts={**source.parts, HEAD: replace(source.parts[EMBEDDING], name=HEAD)})


def head_findings(source: Model, found: Model) -> Iterator[Finding]:
    """A head that one side has and the other ties to the embedding."""
    if HEAD in source.parts and HEAD not in found.parts:
        yield Finding(
            HEAD_ID,
            Severity.FAIL,
            "missing",
            "the head is lost: llama.cpp silently takes the embedding in its place, and answers turn to nonsense",
            where=f"{HEAD}.weight",
            expected=source.parts[HEAD].tensor,
            actual="no such tensor",
            advice=AGAIN,
        )


def tensor_findings(problems: Iterable[TensorProblem]) -> Iterator[Finding]:
    """A finding for each tensor that is missing, too many, or of another shape than the model calls for."""
    for problem in problems:
        code = "missing" if problem.found is None else "unexpected" if problem.expected is None else WRONG_SHAPE
        yield Finding(
            "phi3/tensors",
            Severity.FAIL,
            code,
            what_it_is(problem.tensor) if problem.expected is None else REFUSED,
            where=problem.tensor,
            expected=shape_text(problem.expected),
            actual=shape_text(problem.found),
            advice=AGAIN,
        )


def shape_text(shape: tuple[int, ...] | None) -> str:
    """A shape for people.

    >>> shape_text((17920, 5120)), shape_text(None)
    ('17920 x 5120', 'no such tensor')
    """
    return "no such tensor" if shape is None else " x ".join(map(str, shape))


def completed(found: Model, source: Model, told: Collection[str]) -> tuple[Model, tuple[str, ...]]:
    """The file's model with the source's part where its own is missing or of a shape that does not fit; their names.

    A head may be missing, and embedding and head may have other numbers of rows: they run as they are, unless the
    embedding has fewer rows than the file has tokens, and so is among the tensors of which something has been told.
    """
    taken = {
        name: part
        for name, part in source.parts.items()
        if (unfit(found.parts[name], part.shape, told) if name in found.parts else name != HEAD)
    }
    return replace(found, parts={**found.parts, **taken}), tuple(taken)


def unfit(own: Part, shape: tuple[int, ...], told: Collection[str]) -> bool:
    """Whether a part of the file cannot run in the place of one of the source's of this shape."""
    if own.name in {EMBEDDING, HEAD}:
        short = own.name == EMBEDDING and own.shape[0] < shape[0] and own.tensor in told
        return short or len(own.shape) != len(shape) or own.shape[1:] != shape[1:]
    return own.shape != shape


def stand_in_findings(taken: Iterable[str], found: Model, source: Model, told: Sequence[Finding]) -> Iterator[Finding]:
    """A finding for every part that the source stands in for, unless what is wrong with its tensor has been told."""
    places = {finding.where for finding in told}
    for own in (found.parts[name] for name in taken if name in found.parts):  # file_problems knows what is missing
        if not any(own.tensor in where for where in places):
            yield from tensor_findings([TensorProblem(own.tensor, source.parts[own.name].shape, own.shape)])


def require_same_width(source: Model, found: Model, folder: Path, path: Path) -> None:
    """Refuse a file of another model altogether.

    Raises:
        FormatError: Its hidden states are of another size.
    """
    embedding = found.parts.get(EMBEDDING)
    expected = source.hyperparameters.hidden_size
    if embedding is not None and (width := embedding.shape[-1]) != expected:
        raise FormatError(
            Problem(
                "the file is of another model than the folder",
                where=str(path),
                expected=f"an embedding of {expected} components, as {folder} has",
                found=str(width),
                next_step="give the folder that the file was made from",
            )
        )
