"""Source and file run layer by layer beside each other.

Every layer of the file runs twice over, on weights that are read once: on what the file's layers before it made (how
the error grows), and on what the source's did (the layer's own error, whatever came before). NaN in one layer thus
does not hide the next one's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phi4conv.reference.compare import HiddenError, LogitComparison, LogitFigures, hidden_error
from phi4conv.reference.model import Stretch
from phi4conv.reference.run import Runner

# Tokens that run through a layer at once. The widest states of Phi-4, (2 * 2048, 35840) in float32, take 0.6 GB.
MOST_TOKENS = 2048

# Called after each layer with the source's states before and after it, (tokens, hidden), and the errors.
LayerWatcher = Callable[[Tensor, Tensor, "LayerErrors"], None]

# Called with the first id of a chunk of the vocabulary, and both sides' logits: (scored positions, ids).
LogitWatcher = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Passage:
    """Tokens that are read from their beginning, and the positions among them whose logits are compared."""

    ids: tuple[int, ...]
    scored: range

    @property
    def targets(self) -> tuple[int | None, ...]:
        """For each scored position the token that follows it; None behind the last one."""
        return (*self.ids, None)[self.scored.start + 1 : self.scored.stop + 1]


@dataclass(frozen=True)
class LayerErrors:
    """What became of the hidden state in one layer.

    Attributes:
        index: Which layer; the embedding is -1.
        grown: The file's state after the layer against the source's.
        own: What the file's layer adds to the source's state against what the source's layer adds, every token
            counting alike.
    """

    index: int
    grown: HiddenError
    own: HiddenError


@dataclass(frozen=True)
class Comparison:
    """Both sides' run over the same passages: the embedding, every layer, and the logits."""

    layers: tuple[LayerErrors, ...]
    logits: LogitFigures


@dataclass(frozen=True)
class States:
    """Both sides' hidden states after the same layer: (tokens, hidden)."""

    source: Tensor
    file: Tensor


@dataclass(frozen=True)
class After(States):
    """The states after a layer, and what the file's layer made of the source's state: (tokens, hidden)."""

    forced: Tensor


def compare_runs(
    source: Runner,
    file: Runner,
    passages: Sequence[Passage],
    *,
    before_layer: Callable[[int], None] = lambda _: None,
    after_layer: LayerWatcher = lambda *_: None,
    on_logits: LogitWatcher = lambda *_: None,
) -> Comparison:
    """Run both sides over the passages; they must have the same number of layers and the same hidden size.

    Vocabularies may differ in length: the common ids are compared. before_layer is told of each layer's number, and of
    the head as the layer after the last.
    """
    ids = [token for passage in passages for token in passage.ids]
    states = States(source.embed(ids), file.embed(ids))
    at_first = hidden_error(states.source, states.file)
    layers = [LayerErrors(-1, at_first, at_first)]
    layer_count = source.model.hyperparameters.layer_count
    for index in range(layer_count):
        before_layer(index)
        after = run_both(source, file, index, states, passages)
        grown = hidden_error(after.source, after.file)
        layers.append(LayerErrors(index, grown, own_error(states.source, after.source, after.forced)))
        after_layer(states.source, after.source, layers[-1])
        states = after
    before_layer(layer_count)
    return Comparison(tuple(layers), compare_logits(source, file, states, passages, on_logits))


def run_both(source: Runner, file: Runner, index: int, states: States, passages: Sequence[Passage]) -> After:
    """One layer on both sides."""
    expected = run_layer_on(source, index, states.source, passages)
    own_memory, forced_memory = stretches(file, passages), stretches(file, passages)
    found, forced = [], []
    for group in batches(passages):
        rows = slice(group[0].row, group[-1].row + group[-1].count)
        both = torch.cat([states.file[rows], states.source[rows]])
        memory = [*remembered(own_memory, group), *remembered(forced_memory, group)]
        own, on_source = file.layer(index, both, memory).chunk(2)
        found.append(own)
        forced.append(on_source)
    return After(expected, torch.cat(found), torch.cat(forced))


def run_layer_on(runner: Runner, index: int, x: Tensor, passages: Sequence[Passage]) -> Tensor:
    """One layer of one side on the tokens of the passages: x (tokens, hidden) -> (tokens, hidden)."""
    memory = stretches(runner, passages)
    return torch.cat(
        [
            runner.layer(index, x[group[0].row : group[-1].row + group[-1].count], remembered(memory, group))
            for group in batches(passages)
        ]
    )


def own_error(before: Tensor, expected: Tensor, found: Tensor) -> HiddenError:
    """How what a layer added to a state differs: before and both states after it, (tokens, hidden)."""
    right, wrong = expected - before, found - before
    # One token of a text, often the first, can have a state a thousand times as large as the others'.
    size = right.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return hidden_error(right / size, wrong / size)


def compare_logits(
    source: Runner, file: Runner, states: States, passages: Sequence[Passage], on_logits: LogitWatcher
) -> LogitFigures:
    """The heads of both sides on the scored positions."""
    rows, start = list[int](), 0
    for passage in passages:
        rows += (start + position for position in passage.scored)
        start += len(passage.ids)
    comparison = LogitComparison([target for passage in passages for target in passage.targets])
    chunks = aligned(source.logits(states.source[rows]), file.logits(states.file[rows]))
    for first, base, other in chunks:
        comparison.add(first, base, other)
        on_logits(first, base, other)
    return comparison.figures()


def stretches(runner: Runner, passages: Sequence[Passage]) -> list[Stretch]:
    """The beginnings of all passages."""
    return [runner.settings.stretch(len(passage.ids)) for passage in passages]


@dataclass(frozen=True)
class Piece:
    """Some tokens of a passage that run together: which passage, their first row among all tokens, how many."""

    passage: int
    row: int
    count: int


def remembered(memory: Sequence[Stretch], pieces: Sequence[Piece]) -> list[Stretch]:
    """For each piece what its passage remembers of the pieces before it."""
    for piece in pieces:
        memory[piece.passage].count = piece.count
    return [memory[piece.passage] for piece in pieces]


def batches(passages: Sequence[Passage]) -> list[list[Piece]]:
    """The passages in groups of at most MOST_TOKENS tokens; only one that is longer is cut, into pieces of its own."""
    groups: list[list[Piece]] = []
    room = row = 0
    for number, passage in enumerate(passages):
        left = len(passage.ids)
        while left:
            if left > room:
                groups.append([])
                room = MOST_TOKENS
            piece = Piece(number, row, min(left, room))
            groups[-1].append(piece)
            row, left, room = row + piece.count, left - piece.count, room - piece.count
    return groups


def aligned(
    base: Iterator[tuple[int, Tensor]], other: Iterator[tuple[int, Tensor]]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Chunks of both sides' logits side by side, as far as both vocabularies go."""
    for (start, ours), (_, theirs) in zip(base, other, strict=False):
        count = min(ours.shape[1], theirs.shape[1])
        yield start, ours[:, :count], theirs[:, :count]
