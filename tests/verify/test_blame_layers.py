"""Which tensor makes a layer wrong, by running it with the source's in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from good_files import good_file, good_weights
from model_runs import model_of_file, model_of_folder
from weight_changes import halves_swapped, scaled
from weight_files import WeightFile, write_weight_file

from phi4conv.reference.parts import Model

pytest.importorskip("torch", reason="a run needs torch")

import torch

from phi4conv.reference.run import Runner, RunSettings
from phi4conv.reference.side_by_side import Passage, compare_runs
from phi4conv.verify.blame import METADATA, MOST_BLAMED, TRIAL_TOKENS, Blamed, LayerBlame, first_passages, with_parts

PASSAGES = (Passage((936, 615, 262, 938, 51, 565, 564, 258), range(4, 8)), Passage((17, 5, 1023), range(1, 3)))
UP, DOWN, QKV = "blk.1.ffn_up.weight", "blk.1.ffn_down.weight", "blk.1.attn_qkv.weight"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source() -> Model:
    return model_of_folder(good_file("F32").folder)


def as_model(file: WeightFile, folder: Path) -> Model:
    return model_of_file(write_weight_file(folder / "wrong.gguf", file.pairs.values(), file.tensors))


def blame(source: Model, file: Model, *suspects: str, explained: float = 1e-3) -> LayerBlame:
    limits = dict.fromkeys(range(4), explained)
    found = LayerBlame(source, file, PASSAGES, RunSettings(), explained=limits, suspects=set(suspects))
    compare_runs(Runner(source), Runner(file), PASSAGES, after_layer=found.after_layer)
    return found


def test_a_good_file_has_no_wrong_layer(source: Model) -> None:
    found = blame(source, model_of_file(good_file("F32").path))
    assert (found.wrong, found.blamed) == ([], [])


def test_a_limit_is_what_counts(source: Model) -> None:
    quantized = model_of_file(good_file("Q4_K_M").path)
    assert blame(source, quantized, explained=0.5).wrong == []
    assert blame(source, quantized, explained=1e-6).wrong == [0, 1, 2, 3]


def test_one_wrong_tensor_is_found(source: Model, tmp_path: Path) -> None:
    good = good_weights("F32")
    wrong = as_model(good.with_values(UP, halves_swapped(good.exact[UP])), tmp_path)
    for suspects in ((UP,), ()):
        found = blame(source, wrong, *suspects)
        assert found.wrong == [1]
        (blamed,) = found.blamed
        assert (blamed.index, blamed.culprits) == (1, (UP,))
        assert blamed.trials[(UP,)] < 1e-5
        assert blamed.trials[(DOWN,)] > 0.1
        assert blamed.error > 0.1


def test_two_wrong_tensors_are_found_together_when_both_are_suspects(source: Model, tmp_path: Path) -> None:
    good = good_weights("F32")
    file = good.with_values(UP, halves_swapped(good.exact[UP])).with_values(QKV, scaled(-1)(good.exact[QKV]))
    (blamed,) = blame(source, as_model(file, tmp_path), UP, QKV).blamed
    assert set(blamed.culprits) == {UP, QKV}
    assert blamed.trials[blamed.culprits] < 1e-5


def test_wrong_metadata_are_found_by_themselves_and_beside_a_tensor(source: Model, tmp_path: Path) -> None:
    good = good_weights("F32")
    shape = source.hyperparameters
    other = replace(shape, rope=replace(shape.rope, base=100.0))
    wrong = replace(model_of_file(good_file("F32").path), hyperparameters=other)
    assert [each.culprits for each in blame(source, wrong).blamed] == [(METADATA,)] * MOST_BLAMED
    file = as_model(good.with_values(UP, halves_swapped(good.exact[UP])), tmp_path)
    found = blame(source, replace(file, hyperparameters=other), UP)
    assert [each.culprits for each in found.blamed] == [(METADATA,), (METADATA, UP), (METADATA,)]
    assert found.wrong == [0, 1, 2, 3]


def test_the_first_wrong_layers_alone_are_looked_into(source: Model, tmp_path: Path) -> None:
    good = good_weights("F32")
    for layer in range(4):
        name = f"blk.{layer}.ffn_down.weight"
        good = good.with_values(name, -good.exact[name])
    found = blame(source, as_model(good, tmp_path))
    assert found.wrong == [0, 1, 2, 3]
    assert [each.culprits for each in found.blamed] == [(f"blk.{layer}.ffn_down.weight",) for layer in range(3)]


def test_what_is_no_number_is_found_and_no_number_itself(source: Model, tmp_path: Path) -> None:
    good = good_weights("F32")
    norm = "blk.1.ffn_norm.weight"
    (blamed,) = blame(source, as_model(good.with_values(norm, good.exact[norm] * float("nan")), tmp_path)).blamed
    assert blamed.culprits == (norm,)
    assert blamed.trials[(DOWN,)] == float("inf")


def test_of_what_mends_a_layer_as_well_the_fewest_things_are_blamed() -> None:
    trials = {("a",): 0.5, ("b",): 0.011, ("a", "b"): 0.010, (METADATA,): 0.6}
    assert Blamed(0, 0.9, 0.05, trials).culprits == ("b",)
    assert Blamed(0, 0.9, 0.05, {**trials, ("b",): 0.4}).culprits == ("a", "b")


def test_trials_run_the_first_tokens_alone() -> None:
    long = Passage(tuple(range(200)), range(100, 200))
    assert [len(passage.ids) for passage in first_passages([long, long, long])] == [200, TRIAL_TOKENS - 200]
    assert [len(passage.ids) for passage in first_passages([long])] == [200]
    assert first_passages([]) == ()


def test_parts_are_exchanged_by_name(source: Model) -> None:
    other = replace(source.parts["blk.0.attn_k"], tensor="elsewhere")
    exchanged = with_parts(source, [other])
    assert exchanged.parts["blk.0.attn_k"].tensor == "elsewhere"
    assert exchanged.parts["blk.0.attn_v"] is source.parts["blk.0.attn_v"]
