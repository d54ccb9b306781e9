"""Greedy generation: llama.cpp's tokens, kept keys and values, where it ends, and how often weights are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from good_files import MINI_ORIGINAL_CONTEXT, good_file
from model_runs import logits_of, model_of_file

from phi4conv.arrays import Floats
from phi4conv.errors import FormatError
from phi4conv.reference.hyperparameters import Hyperparameters, Rope
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.parts import EMBEDDING, HEAD, LAYER_PARTS, OUTPUT_NORM, Model, Part

torch = pytest.importorskip("torch", reason="generation needs torch")

from phi4conv.reference import generate as generating  # noqa: E402  # needs torch
from phi4conv.reference.generate import Pace, generate, measured_pace, total_weights  # noqa: E402
from phi4conv.reference.run import Runner, RunSettings  # noqa: E402

# "Tell me a joke." in the tiny model's chat format is ids 936 ... 938.
IDS = [936, 615, 262, 938, 51, 565, 564, 258, 552, 486, 68, 13, 937, 936, 819, 72, 271, 413, 938]
END = {929, 937}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny() -> Runner:
    return Runner(model_of_file(good_file("F32").path), held_bytes=1 << 30)


@dataclass(frozen=True)
class ArrayRows:
    """Weights in memory, a RowSource."""

    values: Floats

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> Floats:
        return np.atleast_2d(self.values)[start:stop]


def with_logits(*logits: float) -> Runner:
    """A model of one layer that adds nothing; whatever it is given, its logits are these."""
    hidden = 2
    parts: dict[str, Floats] = {name: np.zeros((hidden, hidden), np.float32) for name in LAYER_PARTS}
    parts |= {name: np.ones(hidden, np.float32) for name in ("attn_norm", "ffn_norm")}
    named = {f"blk.0.{name}": values for name, values in parts.items()}
    named[EMBEDDING] = np.ones((len(logits), hidden), np.float32)
    named[OUTPUT_NORM] = np.ones(hidden, np.float32)
    named[HEAD] = np.array([[value, 0] for value in logits], np.float32)
    shape = Hyperparameters(1, hidden, hidden, 1, 1, hidden, 0.0, Rope(hidden, 10000.0, 64), 64, None)
    return Runner(Model(shape, {name: Part(name, ArrayRows(values), name) for name, values in named.items()}))


@pytest.mark.parametrize("kind", ["F32", "llama F32"])
def test_ids_are_those_of_llama_cpp(llama: LlamaCpp, chats: list[tuple[str, str]], kind: str) -> None:
    path = good_file(kind).path
    llama.load(path)
    runner = Runner(model_of_file(path), held_bytes=1 << 30)
    prompts = [*llama.tokenize([prompt for prompt, _ in chats[:3]]), IDS[:1], IDS[4:9]]
    for ids in prompts:
        assert list(generate(runner, ids, 40, END)) == llama.generate(ids, 40)


@pytest.mark.parametrize("n_ctx", [256, 1024])
def test_ids_are_those_of_llama_cpp_with_either_factors_of_longrope(llama: LlamaCpp, n_ctx: int) -> None:
    path = good_file("mini F32").path
    llama.load(path)
    runner = Runner(model_of_file(path), RunSettings(n_ctx=n_ctx), held_bytes=1 << 30)
    found = list(generate(runner, IDS, 60, END))
    assert found == llama.generate(IDS, 60, n_ctx=n_ctx)
    other = Runner(model_of_file(path), RunSettings(n_ctx=1280 - n_ctx), held_bytes=1 << 30)
    assert list(generate(other, IDS, 60, END)) != found  # else the factors do not matter here


def test_the_factors_of_longrope_are_those_of_the_length_in_the_end() -> None:
    """They must not change on the way: keys that are kept were turned by the old ones."""
    model = model_of_file(good_file("mini F32").path)
    held = 1 << 30
    ids = (IDS * 27)[: MINI_ORIGINAL_CONTEXT - 6]
    long = Runner(model, RunSettings(n_ctx=MINI_ORIGINAL_CONTEXT + 1), held_bytes=held)
    short = Runner(model, RunSettings(n_ctx=MINI_ORIGINAL_CONTEXT), held_bytes=held)
    free = Runner(model, held_bytes=held)
    expected = list(generate(long, ids, 7, ())), list(generate(short, ids, 6, ()))
    assert list(generate(free, ids, 7, ())) == expected[0]
    assert list(generate(free, ids, 6, ())) == expected[1]
    assert expected[0][:6] != expected[1]
    assert list(generate(free, ids, 6, (), context_length=MINI_ORIGINAL_CONTEXT + 1)) == expected[0][:6]


def test_every_token_is_the_likeliest_after_all_before_it(tiny: Runner) -> None:
    """Keys and values that are kept give what a pass over everything gives."""
    found = list(generate(tiny, IDS, 12, END))
    for place, token in list(enumerate(found))[::3]:
        assert int(logits_of(tiny.model, [*IDS, *found[:place]])[-1].argmax()) == token


@pytest.mark.parametrize("most", [1, 4, 19, 1000])
def test_a_long_prompt_goes_in_pieces_and_nothing_changes(
    tiny: Runner, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    expected = list(generate(tiny, IDS, 8, END))
    monkeypatch.setattr(generating, "MOST_TOKENS", most)
    assert list(generate(tiny, IDS, 8, END)) == expected


def test_it_ends_after_a_token_that_ends_generation_and_yields_it(tiny: Runner) -> None:
    everything = list(generate(tiny, IDS, 60, END))
    assert everything[-1] in END
    assert len(everything) < 60
    assert not END & set(everything[:-1])
    assert list(generate(tiny, IDS, 60, {everything[4]})) == everything[: everything.index(everything[4]) + 1]


def test_it_ends_after_count_tokens(tiny: Runner) -> None:
    everything = list(generate(tiny, IDS, 60, END))
    for count in (0, 1, 5):
        assert list(generate(tiny, IDS, count, END)) == everything[:count]


def test_suppressed_tokens_are_passed_over(tiny: Runner) -> None:
    first = next(generate(tiny, IDS, 1, END))
    expected = np.argsort(-logits_of(tiny.model, IDS)[-1])[1]
    assert list(generate(tiny, IDS, 1, END, suppressed=[first, 1 << 20])) == [expected]


def test_of_equal_logits_the_lowest_id_counts() -> None:
    assert list(generate(with_logits(0, 3, 1, 3, 3), [0], 2, ())) == [1, 1]
    assert list(generate(with_logits(-1, -1), [0], 1, ())) == [0]


def test_the_likeliest_is_found_over_the_bounds_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi4conv.reference.run.CHUNK_WEIGHTS", 4)  # two ids a chunk
    logits = (0.0, 3.0, 1.0, 5.0, 5.0, 2.0, 4.0)
    assert list(generate(with_logits(*logits), [0], 1, ())) == [3]
    assert list(generate(with_logits(*logits), [0], 1, (), suppressed=[3, 4])) == [6]
    assert list(generate(with_logits(*logits), [0], 1, (), suppressed=[3, 4, 6])) == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_that_computes_no_number_is_an_error_and_not_a_token(value: float) -> None:
    with pytest.raises(FormatError) as caught:
        next(generate(with_logits(1, 2, value, 0), [0], 1, ()))
    (problem,) = caught.value.problems
    assert problem.what == "the model computes NaN or infinity: it can say nothing"
    assert problem.where == "the logit of token 2, by output"
    assert "phi4conv verify" in problem.next_step


def test_a_file_that_suppresses_every_token_is_an_error() -> None:
    with pytest.raises(FormatError, match="no token is left to generate"):
        next(generate(with_logits(1, 2), [0], 1, (), suppressed=[0, 1]))


def test_a_prompt_is_needed(tiny: Runner) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        next(generate(tiny, [], 1, ()))


@pytest.mark.parametrize("held", [True, False])
def test_each_token_costs_one_pass_over_the_weights_unless_they_are_held(held: bool) -> None:
    model = model_of_file(good_file("F32").path)
    read: list[int] = []
    runner = Runner(model, held_bytes=4 * total_weights(model) if held else 0, on_read=read.append)
    layers: list[int] = []
    assert len(list(generate(runner, IDS, 5, (), on_layer=layers.append))) == 5
    norms = sum(part.shape[0] for part in model.parts.values() if len(part.shape) == 1)
    one_pass = total_weights(model) + model.parts[OUTPUT_NORM].shape[0]
    assert sum(read) == (one_pass + 4 * norms if held else 5 * one_pass)
    assert layers == [0, 1, 2, 3] * 5


@pytest.mark.parametrize("cached", [True, False])
def test_measuring_the_pace_changes_nothing(cached: bool) -> None:
    """Whether the pace is right is for a benchmark to say."""
    model = model_of_file(good_file("Q4_K_M").path)
    expected = list(generate(Runner(model), IDS, 5, ()))
    runner = Runner(model, held_bytes=1 << 30)
    pace = measured_pace(runner, IDS, cached=cached)
    assert pace.first_token > 0
    assert pace.later_token > 0
    assert list(generate(runner, IDS, 5, ())) == expected


def test_the_first_token_takes_its_own_time() -> None:
    assert Pace(10.0, 2.0).total(1) == 10
    assert Pace(10.0, 2.0).total(4) == 16
