"""Both sides run beside each other: own and grown errors, passages kept apart, NaN kept where it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from checkpoints import TINY
from good_files import good_file
from model_runs import logits_of, model_of_file, model_of_folder

from phi4conv.arrays import Floats
from phi4conv.reference.parts import Model, Part
from phi4conv.rows import RowSource

pytest.importorskip("torch", reason="a run needs torch")

import torch
from torch import Tensor

from phi4conv.reference import side_by_side
from phi4conv.reference.run import Runner
from phi4conv.reference.side_by_side import Comparison, LayerErrors, Passage, batches, compare_runs, own_error

PASSAGES = (
    Passage((936, 615, 262, 938, 51, 565), range(3, 6)),
    Passage((17, 5, 1023), range(1, 3)),
    Passage((300, 301, 302, 303), range(2, 3)),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source() -> Model:
    return model_of_folder(TINY)


@pytest.fixture(scope="module")
def quantized() -> Model:
    return model_of_file(good_file("Q4_K_M").path)


@dataclass(frozen=True)
class Changed:
    """Other weights in the place of some."""

    of: RowSource
    change: Callable[[Floats], Floats]

    @property
    def names(self) -> tuple[str, ...]:
        return self.of.names

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def rows(self, start: int, stop: int) -> Floats:
        return self.change(self.of.rows(start, stop))


def changed(model: Model, name: str, change: Callable[[Floats], Floats]) -> Model:
    part = model.parts[name]
    other = Part(name, Changed(part.rows, change), part.tensor, part.first_row, part.qtype)
    return replace(model, parts={**model.parts, name: other})


def compare(source: Model, file: Model, passages: tuple[Passage, ...] = PASSAGES) -> Comparison:
    return compare_runs(Runner(source), Runner(file), passages)


def test_a_model_beside_itself_differs_in_nothing(source: Model) -> None:
    comparison = compare(source, source)
    assert [errors.index for errors in comparison.layers] == [-1, 0, 1, 2, 3]
    # The file's side runs twice as many tokens at once, which may round otherwise.
    assert max(errors.grown.relative for errors in comparison.layers) < 1e-5
    assert max(errors.own.relative for errors in comparison.layers) < 1e-5
    assert comparison.logits.kl.maximum < 1e-8
    assert (comparison.logits.positions, comparison.logits.scored) == (6, 4)


def test_the_logits_are_those_of_each_passage_by_itself(source: Model, quantized: Model) -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []
    compare_runs(
        Runner(source), Runner(quantized), PASSAGES, on_logits=lambda *chunk: seen.append((chunk[0], *chunk[1:]))
    )
    for side, model in ((1, source), (2, quantized)):
        found = torch.cat([chunk[side] for chunk in seen], 1).numpy()  # type: ignore[misc]
        expected = [logits_of(model, passage.ids)[list(passage.scored)] for passage in PASSAGES]
        np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-4)
    assert seen[0][0] == 0


@pytest.mark.parametrize("most", [1, 5, 7, 9])
def test_batches_of_any_size_give_the_same(
    most: int, source: Model, quantized: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = compare(source, quantized)
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", most)
    found = compare(source, quantized)
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.grown.relative == pytest.approx(other.grown.relative, rel=1e-4)
        assert one.own.relative == pytest.approx(other.own.relative, rel=1e-4)
    assert found.logits.kl.mean.value == pytest.approx(expected.logits.kl.mean.value, rel=1e-4)


def test_batches_keep_passages_whole_and_in_order_and_cut_only_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [len(passage.ids) for passage in PASSAGES]
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", max(counts))
    for group in batches(PASSAGES):
        assert sum(piece.count for piece in group) <= max(counts)
    assert [piece.count for group in batches(PASSAGES) for piece in group] == counts
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", 4)
    pieces = [piece for group in batches([Passage(tuple(range(10)), range(1))]) for piece in group]
    assert [(piece.passage, piece.row, piece.count) for piece in pieces] == [(0, 0, 4), (0, 4, 4), (0, 8, 2)]
    assert batches(()) == []


def test_the_order_of_passages_changes_no_figure(source: Model, quantized: Model) -> None:
    one, other = compare(source, quantized), compare(source, quantized, PASSAGES[::-1])
    assert one.layers[3].own.relative == pytest.approx(other.layers[3].own.relative, rel=1e-4)
    assert one.logits.kl.maximum == pytest.approx(other.logits.kl.maximum, rel=1e-4)


def test_a_wrong_layer_is_wrong_by_itself_and_grows_into_the_next(source: Model) -> None:
    errors = compare(source, changed(source, "blk.1.ffn_down", lambda rows: -rows)).layers
    own = [each.own.relative for each in errors]
    grown = [each.grown.relative for each in errors]
    assert own[2] > 0.5
    assert max(own[:2] + own[3:]) < 1e-5
    assert max(grown[:2]) < 1e-5
    assert min(grown[2:]) > 0.1


def test_two_wrong_layers_are_both_seen(source: Model) -> None:
    wrong = changed(changed(source, "blk.0.attn_v", lambda rows: -rows), "blk.3.ffn_up", lambda rows: 2 * rows)
    own = [each.own.relative for each in compare(source, wrong).layers]
    assert [value > 0.05 for value in own] == [False, True, False, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_in_one_layer_does_not_hide_the_next_ones_fault(bad: float, source: Model) -> None:
    wrong = changed(source, "blk.1.ffn_norm", lambda rows: np.full_like(rows, bad))
    wrong = changed(wrong, "blk.2.attn_output", lambda rows: 3 * rows)
    comparison = compare(source, wrong)
    own, grown = ([getattr(each, name).relative for each in comparison.layers] for name in ("own", "grown"))
    assert np.isinf(own[2])
    assert 0.05 < own[3] < 10
    assert own[4] < 1e-5
    assert np.isinf(grown[2:]).all()
    assert comparison.logits.other_not_finite == comparison.logits.positions
    assert comparison.logits.base_not_finite == 0


def test_a_wrong_embedding_is_no_layers_fault(source: Model) -> None:
    errors = compare(source, changed(source, "token_embd", lambda rows: -rows)).layers
    assert errors[0].grown.relative == pytest.approx(2)
    assert errors[0].own == errors[0].grown
    assert max(each.own.relative for each in errors[1:]) < 1e-5


def test_the_own_error_counts_every_token_alike() -> None:
    before = torch.zeros(2, 4)
    right = torch.tensor([[1000.0, 0, 0, 0], [0, 1, 0, 0]])
    wrong = torch.tensor([[1000.0, 0, 0, 0], [0, 0, 1, 0]])
    # Of the second token all is wrong: 2 of 2 in squares, and nothing of the first.
    assert own_error(before, right, wrong).relative == pytest.approx(1.0)
    assert own_error(before, right, right).relative == 0
    assert own_error(before + 5, right + 5, wrong + 5).relative == pytest.approx(1.0, rel=1e-4)


def test_a_layer_that_adds_nothing_has_no_error_by_itself() -> None:
    state = torch.ones(3, 4)
    assert own_error(state, state, state).relative == 0
    assert np.isinf(own_error(state, state, state + 1).relative)


def test_watchers_are_told_in_order(source: Model, quantized: Model) -> None:
    told: list[tuple[str, int]] = []
    states: list[tuple[Tensor, Tensor]] = []

    def after(before: Tensor, expected: Tensor, errors: LayerErrors) -> None:
        told.append(("after", errors.index))
        states.append((before, expected))

    runner = Runner(source)
    compare_runs(
        runner,
        Runner(quantized),
        PASSAGES,
        before_layer=lambda index: told.append(("before", index)),
        after_layer=after,
    )
    layers = [(word, index) for index in range(4) for word in ("before", "after")]
    assert told == [*layers, ("before", 4)]
    ids = [token for passage in PASSAGES for token in passage.ids]
    assert torch.equal(states[0][0], runner.embed(ids))
    assert all(torch.equal(one[1], other[0]) for one, other in itertools.pairwise(states))


def test_the_targets_of_a_passage_follow_its_scored_positions() -> None:
    assert Passage((1, 2, 3), range(1, 3)).targets == (3, None)
    assert Passage((1, 2, 3), range(2)).targets == (2, 3)


def test_vocabularies_of_other_lengths_are_compared_as_far_as_both_go(source: Model) -> None:
    @dataclass(frozen=True)
    class Cut(Changed):
        @property
        def shape(self) -> tuple[int, ...]:
            return (1000, *self.of.shape[1:])

    shorter = source
    for name in ("token_embd", "output"):
        part = source.parts[name]
        cut = Part(name, Cut(part.rows, lambda rows: rows), part.tensor)
        shorter = replace(shorter, parts={**shorter.parts, name: cut})
    passages = (Passage((1, 2, 3), range(1, 3)),)
    seen: list[tuple[int, int]] = []

    def watch(_: int, base: Tensor, other: Tensor) -> None:
        seen.append((base.shape[1], other.shape[1]))

    comparison = compare_runs(Runner(source), Runner(shorter), passages, on_logits=watch)
    assert seen == [(1000, 1000)]
    assert comparison.logits.kl.maximum < 1e-8
