"""The files that verify is tested with: read and written again alike, and of the llama architecture as llama.cpp's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from good_files import KINDS, MINI_CONTEXT, MINI_ORIGINAL_CONTEXT, good_file, good_weights, llamafied_folder
from llama_arch import permuted_rows, unpermuted_rows, write_llama_arch
from weight_files import encoded, read_weight_file, write_weight_file

from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.llama_cpp import LlamaCpp

IDS = [936, 615, 262, 938, 51, 565, 564, 258, 552, 486, 68, 13, 937, 936, 819, 72, 271, 413, 938]


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_written_again_is_the_same_byte_for_byte(tmp_path: Path, kind: str) -> None:
    path = good_file(kind).path
    file = read_weight_file(path)
    write_weight_file(tmp_path / "again.gguf", file.pairs.values(), file.tensors)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_weights_encoded_again_give_the_same_bytes(kind: str) -> None:
    file = good_weights(kind)
    for name, tensor in file.tensors.items():
        again = encoded(file.exact[name], tensor.shape, tensor.qtype)
        assert np.array_equal(again.data, tensor.data), name


def test_changed_weights_leave_the_bytes_of_other_rows_alone() -> None:
    name, file = "blk.1.ffn_up.weight", good_weights("Q4_K_M")
    weights = file.exact[name].copy()
    weights[7] *= 3
    before, after = (
        each.tensors["blk.1.ffn_up.weight"] for each in (file, file.with_values("blk.1.ffn_up.weight", weights))
    )
    assert (before.data != after.data).any(axis=1).nonzero()[0].tolist() == [7]
    slope = (before.values[7] * after.values[7]).sum() / np.square(before.values[7]).sum()
    assert abs(slope - 3) < 0.1


def test_permuting_rows_and_back_gives_the_same_rows() -> None:
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    assert permuted_rows(rows, 2)[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]
    assert np.array_equal(unpermuted_rows(permuted_rows(rows, 2), 2), rows)


def test_the_llama_file_computes_what_the_phi3_file_does(llama: LlamaCpp) -> None:
    """Were its rows or its metadata not those of llama.cpp's converter, it could not."""
    logits = []
    for kind in ("F32", "llama F32"):
        llama.load(good_file(kind).path)
        logits.append(llama.logits(IDS))
    assert np.abs(logits[0] - logits[1]).max() < 1e-4


def test_a_llama_file_without_the_permutation_computes_something_else(tmp_path: Path, llama: LlamaCpp) -> None:
    path = write_llama_arch(llamafied_folder(), tmp_path / "wrong.gguf", GGMLQuantizationType.F32, permuted=False)
    llama.load(path)
    found = llama.logits(IDS)
    llama.load(good_file("llama F32").path)
    assert np.abs(llama.logits(IDS) - found).max() > 1


def test_the_small_phi_4_mini_has_two_lists_of_factors_that_matter_and_no_head(llama: LlamaCpp) -> None:
    path = good_file("mini F32").path
    assert read_gguf(path).tensor("output.weight") is None
    llama.load(path)
    short, long = (llama.logits(IDS, n_ctx=n_ctx) for n_ctx in (MINI_ORIGINAL_CONTEXT, MINI_CONTEXT))
    assert np.abs(short - long).max() > 0.1


def test_the_mixes_of_both_times_differ() -> None:
    types = [
        {entry.name: entry.qtype for entry in read_gguf(good_file(kind).path).tensors}
        for kind in ("Q4_K_M", "Q4_K_M pre-2026")
    ]
    assert types[0] != types[1]
