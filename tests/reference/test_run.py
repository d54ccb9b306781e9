"""Runs with weights on the disk: chunks, held weights, devices, contexts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from checkpoints import TINY
from good_files import good_file
from model_runs import model_of_file, model_of_folder

from phi4conv.arrays import Floats
from phi4conv.errors import EngineError
from phi4conv.reference.parts import EMBEDDING, Model, Part
from phi4conv.rows import RowSource, row_count

pytest.importorskip("torch", reason="a run needs torch")

import torch
from torch import Tensor

from phi4conv.reference import run as running
from phi4conv.reference.model import Layer, Linear, run_layer
from phi4conv.reference.run import Runner, RunSettings, checked_device, devices, llama_context, read_ahead

IDS = (5, 900, 17, 5, 1023, 0, 300)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of_file(good_file("F32").path)


def all_of(part: Part) -> Tensor:
    return torch.from_numpy(part.rows.rows(0, row_count(part.shape)))


def dense_layer(model: Model, index: int) -> Layer:
    """A layer with every matrix in memory."""
    parts = model.layer(index)

    def linear(*names: str) -> Linear:
        matrix = torch.cat([all_of(parts[name]) for name in names])
        return lambda x: x @ matrix.T

    return Layer(
        attn_norm=all_of(parts["attn_norm"])[0],
        attn_qkv=linear("attn_q", "attn_k", "attn_v"),
        attn_output=linear("attn_output"),
        ffn_norm=all_of(parts["ffn_norm"])[0],
        ffn_gate_up=linear("ffn_gate", "ffn_up"),
        ffn_down=linear("ffn_down"),
    )


@pytest.mark.parametrize("weights", [1, 256, 1000, 256 * 7, 1 << 22])
def test_chunks_of_any_size_give_what_dense_matrices_give(
    weights: int, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CHUNK_WEIGHTS", weights)
    runner = Runner(model)
    x = runner.embed(IDS)
    expected = all_of(model.parts[EMBEDDING])[list(IDS)]
    assert torch.equal(x, expected)
    attention, eps = runner._attention, model.hyperparameters.rms_norm_eps
    for index in (0, 3):
        found = runner.layer(index, x, [runner.settings.stretch(len(IDS))])
        right = run_layer(x, dense_layer(model, index), attention, eps, [runner.settings.stretch(len(IDS))])
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
        x = found
    starts, chunks = zip(*runner.logits(x), strict=True)
    assert starts == tuple(itertools.accumulate([0, *(chunk.shape[1] for chunk in chunks)]))[:-1]
    norm = all_of(model.parts["output_norm"])[0]
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm
    torch.testing.assert_close(torch.cat(chunks, 1), normed @ all_of(model.head).T, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Watched:
    """Rows that tell which of them were asked for; from a broken row on there is nothing to be read."""

    of: RowSource
    asked: list[tuple[int, int]]
    broken: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.of.names

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def rows(self, start: int, stop: int) -> Floats:
        self.asked.append((start, stop))
        if self.broken is not None and stop > self.broken:
            raise OSError("the disk is gone")
        return self.of.rows(start, stop)


def test_rows_are_read_ahead_in_order_and_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Watched(model.parts["blk.1.ffn_down"].rows, [])
    monkeypatch.setattr(running, "usable_cores", lambda: 3)
    chunks = list(read_ahead(rows, 100))
    assert sorted(rows.asked) == [(0, 100), (100, 200), (200, 256)]
    assert [start for start, _ in chunks] == [0, 100, 200]
    np.testing.assert_array_equal(np.concatenate([chunk for _, chunk in chunks]), rows.of.rows(0, 256))


def test_no_more_is_read_ahead_than_the_workers_need(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Watched(model.parts["blk.1.ffn_down"].rows, [])
    monkeypatch.setattr(running, "usable_cores", lambda: 2)
    for done, _ in enumerate(read_ahead(rows, 1)):
        assert len(rows.asked) <= done + 4
    assert len(rows.asked) == 256


def test_an_error_while_reading_comes_out(model: Model) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        list(read_ahead(Watched(model.parts["blk.1.ffn_down"].rows, [], broken=5), 1))


def test_held_weights_are_read_once(model: Model) -> None:
    reads: list[int] = []
    weights = 256 * (384 + 256 + 1024 + 512)
    norms = 2 * 256
    runner = Runner(model, held_bytes=4 * weights, on_read=reads.append)
    x = runner.embed(IDS)
    first = runner.layer(0, x, [runner.settings.stretch(len(IDS))])
    assert sum(reads) == weights + norms
    reads.clear()
    assert torch.equal(runner.layer(0, x, [runner.settings.stretch(len(IDS))]), first)
    assert sum(reads) == norms
    reads.clear()
    runner.layer(1, x, [runner.settings.stretch(len(IDS))])
    assert sum(reads) == weights + norms, "there is no room for another layer"


def test_what_does_not_fit_is_read_each_time(model: Model) -> None:
    reads: list[int] = []
    runner = Runner(model, held_bytes=4 * 256 * 384, on_read=reads.append)  # room for qkv alone
    x = runner.embed(IDS)
    for expected in (256 * (384 + 256 + 1024 + 512), 256 * (256 + 1024 + 512)):
        reads.clear()
        runner.layer(0, x, [runner.settings.stretch(len(IDS))])
        assert sum(reads) == expected + 2 * 256


def test_held_heads_give_the_same_logits(model: Model) -> None:
    held, read = Runner(model, held_bytes=1 << 30), Runner(model)
    x = read.embed(IDS)
    expected = torch.cat([chunk for _, chunk in read.logits(x)], 1)
    for _ in range(2):
        torch.testing.assert_close(torch.cat([chunk for _, chunk in held.logits(x)], 1), expected)


def test_nothing_is_read_before_it_is_needed(model: Model) -> None:
    reads: list[int] = []
    Runner(model, on_read=reads.append)
    assert reads == []


def test_passages_in_one_call_are_those_of_calls_of_their_own(model: Model) -> None:
    runner = Runner(model)
    one, other = runner.embed(IDS), runner.embed(IDS[:3])
    together = runner.layer(2, torch.cat([one, other]), [runner.settings.stretch(7), runner.settings.stretch(3)])
    for part, x in ((together[:7], one), (together[7:], other)):
        torch.testing.assert_close(part, runner.layer(2, x, [runner.settings.stretch(len(x))]), rtol=1e-5, atol=1e-5)


def test_checkpoint_and_file_run_alike() -> None:
    source, file = (Runner(model) for model in (model_of_folder(TINY), model_of_file(good_file("F32").path)))
    x, y = source.embed(IDS), file.embed(IDS)
    for index in range(4):
        x = source.layer(index, x, [source.settings.stretch(len(IDS))])
        y = file.layer(index, y, [file.settings.stretch(len(IDS))])
    torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("token", [1024, -1])
def test_a_token_without_row_is_an_error(token: int, model: Model) -> None:
    with pytest.raises(ValueError, match="row"):
        Runner(model).embed([token])


@pytest.mark.parametrize(("n_ctx", "short"), [(None, True), (100, True), (512, True), (513, False), (4096, False)])
def test_the_context_chooses_longropes_factors(n_ctx: int | None, short: bool) -> None:
    model = model_of_folder(good_file("mini F32").folder)
    rope = model.hyperparameters.rope
    factors = rope.short_factors if short else rope.long_factors
    plain = replace(
        model,
        hyperparameters=replace(model.hyperparameters, rope=replace(rope, short_factors=factors, long_factors=factors)),
    )
    x = Runner(model).embed(IDS)
    chosen, expected = (
        runner.layer(0, x, [runner.settings.stretch(len(IDS))])
        for runner in (Runner(model, RunSettings(n_ctx=n_ctx)), Runner(plain))
    )
    assert torch.equal(chosen, expected)


def test_contexts_are_multiples_of_256_as_llama_cpps_are() -> None:
    assert [llama_context(n_ctx) for n_ctx in (1, 256, 257, 512)] == [256, 256, 512, 512]
    assert RunSettings(n_ctx=300).stretch(5, 9).context_length == 512
    assert RunSettings().stretch(5, 9).context_length == 9
    assert RunSettings().stretch(5).context_length == 5


def test_the_window_is_applied_on_request_alone() -> None:
    model = model_of_folder(TINY)
    model = replace(model, hyperparameters=replace(model.hyperparameters, sliding_window=2))
    whole, cut = Runner(model), Runner(model, RunSettings(apply_window=True))
    x = whole.embed(IDS)
    stretch = whole.settings.stretch
    found, full = (runner.layer(0, x, [stretch(len(IDS))]) for runner in (cut, whole))
    torch.testing.assert_close(found[:2], full[:2])
    assert not torch.allclose(found[2:], full[2:], atol=1e-3)


@pytest.mark.parametrize("name", ["toaster", "cuda:77", "", "cpu:x", "meta"])
def test_a_device_that_is_not_there_is_told(name: str, model: Model) -> None:
    with pytest.raises(EngineError, match="--device") as caught:
        Runner(model, RunSettings(device=name))
    assert caught.value.problems[0].where == f"--device {name}"
    assert "cpu" in caught.value.problems[0].expected


def test_the_cpu_is_always_there() -> None:
    assert devices()[0] == "cpu"
    assert checked_device("cpu").type == "cpu"
