"""The faults that verify is tested with are real: each changes what it names, and what llama.cpp computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY
from good_files import KINDS, MINI_CONTEXT, MINI_KINDS, MINI_ORIGINAL_CONTEXT, good_file, good_weights
from tokenizers import Tokenizer
from weight_fault import Effect, Fault
from weight_faults import FAULTS, all_cases
from weight_files import WeightFile, read_weight_file

from phi4conv.arrays import Floats
from phi4conv.errors import FormatError
from phi4conv.reference.llama_cpp import LlamaCpp

pytestmark = pytest.mark.slow  # together they take a minute; a fault of each kind is in test_blame.py

# Values of n_ctx: the small Phi-4-mini takes its short factors for the first, its long ones for the second.
CONTEXTS = (MINI_ORIGINAL_CONTEXT, MINI_CONTEXT)
ENDS_OF_THE_VOCABULARY = (0, 1, 1022, 1023)

# Far more than the order of additions makes of the same weights, and far less than the mildest fault: 0.02.
SAME_LOGITS = 1e-3

by_name = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def changed_names(good: WeightFile, wrong: WeightFile) -> set[str]:
    """The keys and tensors that are not alike in both."""
    pairs = {key for key in {*good.pairs, *wrong.pairs} if good.pairs.get(key) != wrong.pairs.get(key)}
    tensors = {*good.tensors} ^ {*wrong.tensors}
    for name in {*good.tensors} & {*wrong.tensors}:
        one, other = good.tensors[name], wrong.tensors[name]
        if (one.shape, one.qtype) != (other.shape, other.qtype) or not np.array_equal(one.data, other.data):
            tensors.add(name)
    return pairs | tensors


@by_name
def test_a_fault_changes_what_it_names_and_nothing_else(fault: Fault) -> None:
    for kind in fault.kinds:
        good = good_weights(kind)
        changed = changed_names(good, fault.change(good))
        assert set(fault.where) <= changed <= {*fault.where, *fault.also}


def test_a_fault_is_written(tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if fault.name == "blk.2.ffn_up.weight: gate and up swapped")
    fault.apply(good_file("Q8_0"), tmp_path / "wrong.gguf")
    written = read_weight_file(tmp_path / "wrong.gguf")
    assert changed_names(good_weights("Q8_0"), written) == {"blk.2.ffn_up.weight"}
    before, after = (file.tensors["blk.2.ffn_up.weight"].data for file in (good_weights("Q8_0"), written))
    assert np.array_equal(after, np.concatenate([before[512:], before[:512]]))


def test_faults_have_names_of_their_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_first_kind_of_every_fault_is_unquantized() -> None:
    assert all(fault.kinds[0].endswith("F32") for fault in FAULTS)


def test_faults_stand_at_the_beginning_in_the_middle_and_at_the_end() -> None:
    layers = [match[1] for fault in FAULTS for where in fault.where if (match := re.match(r"blk\.(\d)\.", where))]
    assert min(layers.count(layer) for layer in "0123") >= 15


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def ids(chats: list[tuple[str, str]]) -> list[int]:
    prompt, answer = chats[1]
    encoded: list[int] = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(prompt + answer).ids
    return [*encoded, *ENDS_OF_THE_VOCABULARY]


class Answers:
    """What llama.cpp makes of files, and of the good ones once."""

    def __init__(self, llama: LlamaCpp, ids: list[int]) -> None:
        self.llama, self.ids = llama, ids
        self.good: dict[str, list[Floats]] = {}

    def of(self, path: Path, kind: str) -> list[Floats]:
        """Logits; for the small Phi-4-mini with both lists of factors.

        The weights are not checked, as llama.cpp's programs do not unless they are told to.
        """
        self.llama.load(path, check_tensors=False)
        return [self.llama.logits(self.ids, n_ctx=n_ctx) for n_ctx in (CONTEXTS if kind in MINI_KINDS else (None,))]

    def effect(self, fault: Fault, kind: str, target: Path) -> Effect:
        """What becomes of a good file of this kind with the fault."""
        if kind not in self.good:
            self.good[kind] = self.of(good_file(kind).path, kind)
        try:
            found = self.of(fault.apply(good_file(kind), target), kind)
        except FormatError:
            return Effect.REFUSED
        differences = [np.abs(one - other).max() for one, other in zip(found, self.good[kind], strict=True)]
        same = all(difference < SAME_LOGITS for difference in differences)  # NaN is not
        return Effect.SAME_LOGITS if same else Effect.OTHER_LOGITS


@pytest.fixture(scope="module")
def answers(llama: LlamaCpp, ids: list[int]) -> Answers:
    return Answers(llama, ids)


@by_name
def test_llama_cpp_computes_other_logits_with_a_fault_or_refuses_it(
    tmp_path: Path, answers: Answers, fault: Fault
) -> None:
    assert answers.effect(fault, fault.kinds[0], tmp_path / "wrong.gguf") == fault.effect


@pytest.mark.slow
def test_faults_have_their_effect_in_every_type(tmp_path: Path, answers: Answers) -> None:
    effects = {
        (fault.name, kind): (answers.effect(fault, kind, tmp_path / "wrong.gguf"), fault.effect)
        for fault, kind in all_cases()
    }
    assert {case: found for case, (found, expected) in effects.items() if found != expected} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_has_no_non_finite_weight_and_no_complaint(llama: LlamaCpp, kind: str) -> None:
    llama.load(good_file(kind).path, check_tensors=True)
    assert llama.log == []
