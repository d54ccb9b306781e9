"""A whole verification: what hides nothing, what is no defect, and what stops it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, TINY_BROKEN, copy_of_tiny, edit_json, replace_tensors, tiny_tensors
from click.testing import CliRunner
from good_files import good_file, good_weights
from weight_changes import halves_swapped, noisy, unrelated
from weight_files import WeightFile, encoded, write_weight_file

from phi4conv.check.model import Finding, Severity
from phi4conv.cli.fix import fix
from phi4conv.convert import convert
from phi4conv.errors import CheckpointError, EngineError, FormatError
from phi4conv.gguf_file.layout import f32, u32
from phi4conv.phi3 import ConversionOptions
from phi4conv.progress import Silent
from phi4conv.verify import Verification, VerifyOptions, explained, verify
from phi4conv.verify.prompts import PromptOptions
from phi4conv.verify.thresholds import DEFAULTS, Thresholds

pytest.importorskip("torch", reason="verify runs models with torch")

import torch

from phi4conv.verify.report import weights_are_right

pytestmark = pytest.mark.slow  # together they take a minute; a fault of each kind is in test_blame.py

ASKED = PromptOptions(prompts=("Tell me a joke.",))
QUICK = VerifyOptions(asked=ASKED)
BASE, WINDOW = "phi3.rope.freq_base", "phi3.attention.sliding_window"
UP = "blk.2.ffn_up.weight"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def good() -> WeightFile:
    return good_weights("F32")


def write(file: WeightFile, tmp_path: Path) -> Path:
    return write_weight_file(tmp_path / "wrong.gguf", file.pairs.values(), file.tensors)


def defects(outcome: Verification) -> list[Finding]:
    return [finding for finding in outcome.findings if finding.severity >= Severity.FAIL]


def test_a_broken_tokenizer_leaves_the_weights_right(tmp_path: Path) -> None:
    outcome = verify(TINY, TINY_BROKEN, QUICK)
    assert {finding.id for finding in defects(outcome)} == {"phi3/sliding-window", "verify/prompt-tokens"}
    assert weights_are_right(outcome)
    assert outcome.outcome.wrong_layers == ()
    remedies = {finding.id: finding.remedy for finding in outcome.findings}
    assert "phi4conv verify-tokenizer" in remedies["verify/prompt-tokens"]
    fixed = tmp_path / "fixed.gguf"
    assert CliRunner().invoke(fix, [str(TINY_BROKEN), str(fixed), "--tokenizer", str(TINY)]).exit_code == 0
    assert verify(TINY, fixed, QUICK).findings == ()


def test_a_folder_whose_tokenizer_was_changed_is_told_by_the_prompts_alone(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "other")

    def exchange(data: dict[str, dict[str, dict[str, int]]]) -> None:
        vocabulary = data["model"]["vocab"]
        vocabulary["T"], vocabulary["U"] = vocabulary["U"], vocabulary["T"]

    edit_json(folder / "tokenizer.json", exchange)
    outcome = verify(folder, good_file("Q8_0").path, QUICK)
    assert [finding.id for finding in outcome.findings] == ["verify/prompt-tokens"]
    assert weights_are_right(outcome)


def test_metadata_and_weights_that_are_wrong_are_both_told(tmp_path: Path, good: WeightFile) -> None:
    wrong = good.with_pairs(f32(BASE, 10000)).with_values(UP, halves_swapped(good.exact[UP]))
    outcome = verify(TINY, write(wrong, tmp_path), QUICK)
    assert [(finding.where, finding.code) for finding in outcome.findings] == [
        (BASE, "wrong"),
        (UP, "gate-up-swapped"),
    ]
    assert {finding.id for finding in outcome.findings[0].consequences} == {"verify/layer", "verify/answers"}
    assert not weights_are_right(outcome)


def test_two_layers_of_which_one_is_no_number_are_both_told(tmp_path: Path, good: WeightFile) -> None:
    norm, down = "blk.0.ffn_norm.weight", "blk.3.ffn_down.weight"
    wrong = good.with_values(norm, good.exact[norm] * np.nan).with_values(down, -good.exact[down])
    outcome = verify(TINY, write(wrong, tmp_path), QUICK)
    assert {finding.where for finding in outcome.findings} == {norm, down}
    assert outcome.outcome.wrong_layers == (0, 3)
    assert {finding.code for finding in outcome.findings[0].consequences} == {"unexplained", "not-finite"}


@pytest.mark.parametrize(("change", "code"), [(noisy(0.03), "other-checkpoint"), (unrelated, "unrelated")])
def test_a_file_of_another_checkpoint_is_one_defect(
    change: object, code: str, tmp_path: Path, good: WeightFile
) -> None:
    """As when the folder is that of another fine-tune."""
    assert callable(change)
    for name, tensor in good.tensors.items():
        if len(tensor.shape) > 1:
            good = good.with_values(name, change(good.exact[name]))
    outcome = verify(TINY, write(good, tmp_path), QUICK)
    (finding,) = outcome.findings
    assert finding.code == code
    assert len(finding.where.split(", ")) == 18
    assert outcome.outcome.wrong_layers == (0, 1, 2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e38])
def test_files_of_nothing_but_one_value_are_wrong_and_end_nothing(
    value: float, tmp_path: Path, good: WeightFile
) -> None:
    for name, tensor in good.tensors.items():
        good = good.with_tensor(name, encoded(np.full_like(good.exact[name], value), tensor.shape, tensor.qtype))
    outcome = verify(TINY, write(good, tmp_path), QUICK)
    assert not outcome.is_right
    assert {name for finding in outcome.findings for name in finding.where.split(", ")} >= set(good.tensors)
    assert outcome.outcome.wrong_layers == (0, 1, 2, 3)


@pytest.mark.parametrize("count", [64, -64])
def test_rows_too_many_or_too_few_are_one_defect_a_tensor(count: int, tmp_path: Path, good: WeightFile) -> None:
    """A fine-tune that adds tokens is another model: its file does not do what this folder does."""
    names = ("token_embd.weight", "output.weight")
    for name in names:
        rows = np.concatenate([good.exact[name], good.exact[name][:64]]) if count > 0 else good.exact[name][:count]
        good = good.with_tensor(name, encoded(rows, rows.shape, good.tensors[name].qtype))
    outcome = verify(TINY, write(good, tmp_path), QUICK)
    assert [finding.where for finding in outcome.findings] == list(names)
    embedding, head = outcome.findings
    assert [finding.code for finding in head.consequences] == ["rows-added" if count > 0 else "rows-missing"]
    # An embedding without a row for each token cannot run: the source's is run and judged in its place.
    assert [finding.code for finding in embedding.consequences] == (["rows-added"] if count > 0 else [])


def test_a_vocabulary_padded_on_both_sides_is_right(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "padded")
    tensors = {
        name: (dtype, np.concatenate([words, words[:64]]) if "embed" in name or "lm_head" in name else words)
        for name, (dtype, words) in tiny_tensors().items()
    }
    replace_tensors(folder, tensors)
    edit_json(folder / "config.json", lambda data: data.update(vocab_size=1088))
    convert(folder, tmp_path / "padded.gguf", ConversionOptions(file_type="Q4_K_M"))
    assert verify(folder, tmp_path / "padded.gguf", QUICK).findings == ()
    rows = {finding.code for finding in verify(TINY, tmp_path / "padded.gguf", QUICK).findings}
    assert rows == {"rows-added"}


@pytest.mark.parametrize(
    ("name", "place", "told"),
    [
        ("model.layers.1.mlp.down_proj.weight", (3, 3), "model.layers.1.mlp.down_proj.weight"),
        ("model.embed_tokens.weight", slice(None), "model.embed_tokens.weight"),
        ("model.norm.weight", (0,), "model.norm.weight"),
        ("lm_head.weight", (7, 7), "lm_head.weight"),
    ],
)
def test_a_checkpoint_with_nan_is_refused_by_the_tensor_that_has_it(
    name: str, place: object, told: str, tmp_path: Path
) -> None:
    folder = copy_of_tiny(tmp_path / "nan")
    tensors = tiny_tensors()
    words = tensors[name][1].copy()
    words[place] = 0x7FC0
    replace_tensors(folder, {**tensors, name: (tensors[name][0], words)})
    with pytest.raises(CheckpointError, match="no file can be held against it") as caught:
        verify(folder, good_file("Q8_0").path, QUICK)
    assert caught.value.problems[0].where == f"{folder}: {told}"


def test_answers_beyond_a_default_are_a_warning_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights bear quantization worse than trained ones; a file cannot be better than its types."""
    good = good_file("Q4_K_M")
    for limits, code in ((Thresholds(1e-6, 0.0), "divergence"), (Thresholds(10, 1.01), "top-1")):
        monkeypatch.setattr("phi4conv.verify.thresholds.DEFAULTS", dict.fromkeys(DEFAULTS, limits))
        outcome = verify(good.folder, good.path, QUICK)
        (finding,) = outcome.findings
        assert (finding.severity, finding.code, finding.where) == (Severity.WARN, code, "logits")
        assert "this model bears Q4_K worse than most" in finding.message
        assert outcome.is_right


def test_answers_beyond_a_limit_of_the_users_are_a_defect() -> None:
    good = good_file("Q4_K_M")
    tight = verify(good.folder, good.path, VerifyOptions(asked=ASKED, max_kl=1e-6))
    (finding,) = tight.findings
    assert (finding.severity, finding.code) == (Severity.FAIL, "divergence")
    assert "--max-kl" in finding.message
    assert verify(good.folder, good.path, VerifyOptions(asked=ASKED, max_kl=1.0, min_top1=0.0)).is_right
    every = verify(good.folder, good.path, VerifyOptions(min_top1=1.0))
    assert [finding.code for finding in every.findings] == ["top-1"], "two of 316 positions differ"


@pytest.mark.parametrize("options", [{"max_kl": float("nan")}, {"max_kl": -1.0}, {"min_top1": 2.0}])
def test_limits_that_nothing_can_keep_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no number"):
        verify(TINY, good_file("F32").path, replace(QUICK, **options))  # type: ignore[arg-type]


def test_a_limit_that_could_not_be_applied_is_noted(tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("a")
    good = good_file("Q8_0")
    outcome = verify(good.folder, good.path, VerifyOptions(asked=PromptOptions(text=text), min_top1=0.5))
    decided = outcome.outcome.comparison.logits.decided
    assert any("--min-top1 could not be applied" in note for note in outcome.notes) == (decided == 0)


def test_a_wrong_window_is_not_what_wrong_answers_follow_from(tmp_path: Path, good: WeightFile) -> None:
    down = "blk.3.ffn_down.weight"
    wrong = good.with_pairs(u32(WINDOW, 1024)).with_values(down, -good.exact[down])
    window, weights = verify(TINY, write(wrong, tmp_path), QUICK).findings
    assert (window.where, window.consequences) == (WINDOW, ())
    assert [finding.id for finding in weights.consequences] == ["verify/layer", "verify/answers"]


class Cutting(Silent):
    """Cuts a file short as soon as a layer is at work."""

    def __init__(self, path: Path, layer: str) -> None:
        self.path, self.layer = path, layer

    def advance(self, count: int, label: str) -> None:
        if count and label.startswith(self.layer):
            with self.path.open("r+b") as file:
                file.truncate(100_000)


@pytest.mark.parametrize("layer", ["layer 2", "embedding"])
def test_a_file_that_becomes_shorter_meanwhile_ends_it(layer: str, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(good_file("F32").path.read_bytes())
    with pytest.raises(FormatError, match=r"short\.gguf"):
        verify(TINY, path, QUICK, Cutting(path, layer))


def test_a_checkpoint_that_becomes_shorter_meanwhile_ends_it(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        verify(folder, good_file("F32").path, QUICK, Cutting(folder / "model.safetensors", "layer 2"))


def test_nothing_is_written(tmp_path: Path) -> None:
    """Folder and file may lie where nothing can be written."""
    folder, path = copy_of_tiny(tmp_path / "model"), tmp_path / "good.gguf"
    path.write_bytes(good_file("Q8_0").path.read_bytes())
    before = {each: each.stat().st_mtime_ns for each in tmp_path.rglob("*")}
    for each in before:
        each.chmod(0o555 if each.is_dir() else 0o444)
    try:
        assert verify(folder, path, QUICK).is_right
        assert {each: each.stat().st_mtime_ns for each in tmp_path.rglob("*")} == before
    finally:
        folder.chmod(0o755)


class Told(Silent):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.labels: list[str] = []

    def begin(self, total: int) -> None:
        self.total = total

    def advance(self, count: int, label: str) -> None:
        self.done += count
        if label not in self.labels:
            self.labels.append(label)


@pytest.mark.parametrize("kind", ["F32", "Q4_K_M", "mini Q8_0", "llama Q4_K"])
def test_progress_is_told_of_about_as_much_as_was_announced(kind: str) -> None:
    good, told = good_file(kind), Told()
    outcome = verify(good.folder, good.path, QUICK, told)
    assert told.done == outcome.outcome.bytes_read
    assert told.done == pytest.approx(told.total, rel=0.05)
    assert told.labels == ["layer 1 of 4", "layer 2 of 4", "layer 3 of 4", "layer 4 of 4", "embedding and head"]


def test_which_behaviour_ran_is_noted(tmp_path: Path) -> None:
    mini = good_file("mini Q8_0")
    (note,) = verify(mini.folder, mini.path, QUICK).notes
    assert note.startswith(
        "LongRoPE ran with its short factors (the long ones begin beyond 512 tokens), chosen by each"
    )
    (note,) = verify(mini.folder, mini.path, replace(QUICK, n_ctx=1000)).notes
    assert "long factors (" in note
    assert note.endswith("chosen by a context of 1,024 tokens, as llama.cpp does (--n-ctx)")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps. " * 400)
    both = PromptOptions(prompts=("Hello",), text=text, window=600, max_tokens=600)
    notes = verify(mini.folder, mini.path, VerifyOptions(asked=both)).notes
    assert any("short factors and its long factors" in note for note in notes)


@pytest.mark.parametrize(
    ("window", "apply", "words"),
    [
        (8, False, "of 8 tokens was left out, as llama.cpp does"),
        (8, True, "of 8 tokens was applied, as transformers does"),
        (5000, True, "of 5,000 tokens is longer than all that was asked"),
    ],
)
def test_what_became_of_a_window_is_noted(window: int, apply: bool, words: str, tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "windowed")
    edit_json(folder / "config.json", lambda data: data.update(sliding_window=window))
    convert(folder, tmp_path / "windowed.gguf", ConversionOptions(file_type="Q8_0"))
    outcome = verify(folder, tmp_path / "windowed.gguf", replace(QUICK, apply_window=apply))
    assert outcome.findings == ()
    assert any(words in note for note in outcome.notes)


def test_a_prompt_that_is_longer_than_the_context_is_refused() -> None:
    mini = good_file("mini Q8_0")
    with pytest.raises(FormatError, match="does not fit into the context"):
        verify(mini.folder, mini.path, VerifyOptions(asked=PromptOptions(prompts=("word " * 300,)), n_ctx=200))
    assert verify(mini.folder, mini.path, replace(QUICK, n_ctx=1)).is_right, "llama.cpp's contexts have 256 tokens"


def test_a_device_that_is_not_there_ends_it_before_any_work() -> None:
    told = Told()
    with pytest.raises(EngineError, match="--device toaster"):
        verify(TINY, good_file("F32").path, replace(QUICK, device="toaster", llama_cpp=True), told)
    assert told.total == 0


def test_real_llama_cpp_has_a_column_of_its_own() -> None:
    pytest.importorskip("xllamacpp")
    good = good_file("F32")
    columns = verify(good.folder, good.path, replace(QUICK, llama_cpp=True, n_ctx=5)).outcome.llama_cpp
    assert columns is not None
    for figures in columns:
        assert figures.kl.maximum < 1e-6
        assert figures.same_top.value == 1
        assert figures.positions == 10


def test_a_file_that_real_llama_cpp_refuses_is_examined_all_the_same(tmp_path: Path, good: WeightFile) -> None:
    pytest.importorskip("xllamacpp")
    rows = good.exact["token_embd.weight"][:1000]
    wrong = good.with_tensor("token_embd.weight", encoded(rows, rows.shape, good.tensors["token_embd.weight"].qtype))
    outcome = verify(TINY, write(wrong, tmp_path), replace(QUICK, llama_cpp=True))
    (finding,) = outcome.findings
    assert finding.where == "token_embd.weight"
    refused = finding.consequences[-1]
    assert (refused.id, refused.code) == ("verify/llama-cpp", "refused")
    assert "wrong shape" in refused.actual
    assert outcome.outcome.llama_cpp is None


def test_a_file_that_ends_real_llama_cpp_is_examined_all_the_same(tmp_path: Path, good: WeightFile) -> None:
    pytest.importorskip("xllamacpp")
    outcome = verify(
        TINY, write(good.with_pairs(u32("phi3.expert_count", 8)), tmp_path), replace(QUICK, llama_cpp=True)
    )
    (finding,) = outcome.findings
    assert finding.where == "phi3.expert_count"
    assert "SIGABRT" in finding.consequences[0].message


def test_the_json_of_what_is_wrong_everywhere_is_json(tmp_path: Path, good: WeightFile) -> None:
    from phi4conv.verify.report import verification_document  # noqa: PLC0415

    for name, tensor in good.tensors.items():
        good = good.with_tensor(name, encoded(good.exact[name] * np.nan, tensor.shape, tensor.qtype))
    document = verification_document(verify(TINY, write(good, tmp_path), QUICK))
    json.dumps(document, allow_nan=False)


def test_a_layer_beyond_its_types_is_a_warning_where_nothing_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explained, "MARGIN", 0.01)
    good = good_file("Q4_K_M")
    outcome = verify(good.folder, good.path, QUICK)
    assert outcome.is_right
    assert {(finding.severity, finding.code) for finding in outcome.findings} == {(Severity.WARN, "unexplained")}
    assert "no tensor is wrong" in outcome.findings[0].message
