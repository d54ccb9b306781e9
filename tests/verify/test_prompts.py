from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import SHARED_DATA, TINY, TINY_BROKEN, copy_of_tiny, edit_json, llamafied
from gguf import GGMLQuantizationType, Keys
from one_change import exchanged, with_merges
from phi4_folder import phi4_folder
from tokenizers import Tokenizer
from vocabulary_files import Pairs, changed, tiny_pairs, written

from phi4conv.carried import phi4_vocabulary
from phi4conv.check.known_differences import WHITE_SPACE
from phi4conv.check.model import Severity
from phi4conv.errors import CheckpointError, FormatError, Phi4ConvError
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, TensorEntry, text
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3.metadata import tokenizer_pairs
from phi4conv.verify.builtin_prompts import BUILT_IN
from phi4conv.verify.prompt_agreement import CHECK_ID
from phi4conv.verify.prompts import PromptOptions, PromptReading, Window, read_windows

K = Keys.Tokenizer
JOKE = "Tell me a joke."
HEADER = "<|im_start|>assistant<|im_sep|>"


def tiny(tmp_path: Path, *changes: MetadataPair, without: str = "") -> GGUFFile:
    """The tiny Phi-4's metadata, changed."""
    return good_file(tmp_path, {key: pair for key, pair in changed(tiny_pairs(), *changes).items() if key != without})


def good_file(tmp_path: Path, pairs: Pairs) -> GGUFFile:
    """A file of metadata alone."""
    return read_gguf(written(pairs, tmp_path / "tiny.gguf"))


def source_ids(content: str) -> tuple[int, ...]:
    """What the tokenizers library makes of a text by the tiny Phi-4's own tokenizer.json."""
    return tuple(Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(content, add_special_tokens=False).ids)


def decoded(window: Window) -> str:
    """The text of a window."""
    content: str = Tokenizer.from_file(str(TINY / "tokenizer.json")).decode(window.ids, skip_special_tokens=False)
    return content


def folder_with(tmp_path: Path, template: str | None) -> Path:
    """The tiny checkpoint with another chat template, or without one."""
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    path = folder / "tokenizer_config.json"
    if template is None:
        edit_json(path, lambda data: data.pop("chat_template"))
    else:
        edit_json(path, lambda data: data.update(chat_template=template))
    return folder


def found(reading: PromptReading) -> list[tuple[str, str]]:
    """Code and place of every finding."""
    assert all(finding.id == CHECK_ID and finding.severity is Severity.FAIL for finding in reading.findings)
    assert all("verify-tokenizer" in finding.remedy for finding in reading.findings)
    return [(finding.code, finding.where) for finding in reading.findings]


# What is asked


def test_both_sides_of_a_converted_model_agree_on_the_built_in_prompts(tmp_path: Path) -> None:
    reading = read_windows(TINY, tiny(tmp_path))
    assert [window.name for window in reading.windows] == [chat.name for chat in BUILT_IN]
    assert (reading.findings, reading.notes) == ((), ())
    assert reading.token_count == sum(len(window.ids) for window in reading.windows) > 0


def test_built_in_prompts_are_finished_exchanges_in_the_models_chat_format(tmp_path: Path) -> None:
    for chat, window in zip(BUILT_IN, read_windows(TINY, tiny(tmp_path)).windows, strict=True):
        turns = [f"<|im_start|>{turn['role']}<|im_sep|>{turn['content']}<|im_end|>" for turn in chat.messages]
        assert window.ids == source_ids("".join(turns))
        answer = source_ids(f"{chat.messages[-1]['content']}<|im_end|>")
        assert len(answer) >= len(window.ids) - len(window.ids) // 2, "the half that is scored is of the last answer"


def test_built_in_prompts_are_of_some_length_in_phi4s_tokens(tmp_path: Path) -> None:
    file = good_file(tmp_path, changed(tiny_pairs(), *tokenizer_pairs(phi4_vocabulary())))
    reading = read_windows(phi4_folder(tmp_path / "phi-4"), file)
    assert (reading.findings, reading.notes) == ((), ())
    assert all(40 <= len(window.ids) <= 120 for window in reading.windows)


@pytest.mark.skipif(
    not (SHARED_DATA / "phi-4").is_dir(), reason="needs the published tokenizer files beside the checkout"
)
def test_the_published_phi4_agrees_with_a_file_by_llama_cpps_converter() -> None:
    folder = SHARED_DATA / "phi-4"
    reading = read_windows(folder, read_gguf(folder / "vocab-by-llama.cpp.gguf"))
    assert reading.findings == ()
    assert len(reading.windows) == len(BUILT_IN)


def test_a_llama_files_tokens_agree_with_its_folders(tmp_path: Path) -> None:
    folder = llamafied(tmp_path / "model")
    pairs = {key: pair for key, pair in tiny_pairs().items() if not key.startswith("phi3.")}
    file = good_file(tmp_path, changed(pairs, text(Keys.General.ARCHITECTURE, "llama")))
    assert read_windows(folder, file).findings == ()


def test_the_users_prompts_take_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    reading = read_windows(TINY, tiny(tmp_path), PromptOptions(prompts=(JOKE, "What is a tokenizer?")))
    asked = [f"<|im_start|>user<|im_sep|>{prompt}<|im_end|>{HEADER}" for prompt in (JOKE, "What is a tokenizer?")]
    assert [window.ids for window in reading.windows] == [source_ids(prompt) for prompt in asked]
    assert reading.windows[0].name == repr(JOKE)
    assert (reading.findings, reading.notes) == ((), ())


def test_the_second_half_of_a_prompt_is_scored_and_its_last_token_has_no_target(tmp_path: Path) -> None:
    for window in read_windows(TINY, tiny(tmp_path)).windows:
        half = len(window.ids) // 2
        assert window.scored == range(half, len(window.ids))
        assert window.targets == (*window.ids[half + 1 :], None)


def test_a_prompt_of_one_token_is_scored_at_it() -> None:
    window = Window("one", (7,), 0)
    assert (window.scored, window.targets) == (range(1), (None,))


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "the prompt is empty"), ("caf\udce9", "the prompt is no Unicode text")]
)
def test_a_prompt_that_is_no_text_is_refused_with_its_number(tmp_path: Path, prompt: str, message: str) -> None:
    with pytest.raises(Phi4ConvError, match=message) as error:
        read_windows(TINY, tiny(tmp_path), PromptOptions(prompts=(JOKE, prompt)))
    assert error.value.problems[0].where == "--prompt, number 2"


# Where the file's side is another


def test_a_broken_file_is_told_by_a_prompt_and_the_sources_tokens_are_used(tmp_path: Path) -> None:
    reading, good = read_windows(TINY, read_gguf(TINY_BROKEN)), read_windows(TINY, tiny(tmp_path))
    assert found(reading) == [("other-tokens", BUILT_IN[0].name)]
    assert reading.windows == good.windows
    (finding,) = reading.findings
    assert finding.message.startswith(f"{len(BUILT_IN)} of {len(BUILT_IN)} prompts become other tokens")
    assert "'us' 615" in finding.expected
    assert "' us' 636" in finding.actual


def test_a_template_without_a_generation_prompt_is_told_beside_the_tokens() -> None:
    reading = read_windows(TINY, read_gguf(TINY_BROKEN), PromptOptions(prompts=(JOKE,)))
    assert found(reading) == [("other-prompt", repr(JOKE)), ("other-tokens", repr(JOKE))]
    prompts = reading.findings[0]
    assert (prompts.expected, prompts.actual) == (
        "'…ell me a joke.<|im_end|><|im_start|>assistant<|i…'",
        "'…ell me a joke.<|im_end|>'",
    )


def test_one_wrong_merge_is_shown_at_the_first_token_that_it_changes(tmp_path: Path) -> None:
    file = good_file(tmp_path, with_merges(lambda merges: exchanged(merges, 0, len(merges) - 1))(tiny_pairs()))
    ((code, name),) = found(reading := read_windows(TINY, file))
    assert code == "other-tokens"
    window = next(window for window in reading.windows if window.name == name)
    shown = reading.findings[0]
    place = int(shown.expected.split()[1])
    assert shown.expected.split()[:3] == shown.actual.split()[:3] == ["token", str(place), "on:"]
    assert f" {window.ids[place]} " in shown.expected
    assert f" {window.ids[place]} " not in shown.actual


def test_a_file_without_a_template_makes_no_prompts(tmp_path: Path) -> None:
    reading = read_windows(TINY, tiny(tmp_path, without=K.CHAT_TEMPLATE))
    assert found(reading) == [("other-prompt", BUILT_IN[0].name)]
    assert reading.findings[0].actual == "the file has no chat template"


def test_a_template_that_fails_is_shown_with_its_reason(tmp_path: Path) -> None:
    template = "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    original = tiny_pairs()[K.CHAT_TEMPLATE].value
    reading = read_windows(TINY, tiny(tmp_path, text(K.CHAT_TEMPLATE, f"{template}{{% endfor %}}{original}")))
    assert found(reading) == [("other-prompt", "an explanation")]
    assert reading.findings[0].message.startswith("the file's chat template makes other prompts of 2 of 8")
    assert reading.findings[0].actual == "the template refuses the chat: no"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda pairs: {key: pair for key, pair in pairs.items() if key != K.MERGES}, K.MERGES),
        (lambda pairs: changed(pairs, text(K.PRE, "nonsense")), K.PRE),
        (lambda pairs: changed(pairs, text(K.PRE, "chameleon")), K.PRE),
        (lambda pairs: {key: pair for key, pair in pairs.items() if not key.startswith("tokenizer.")}, K.MODEL),
    ],
    ids=["no merges", "an unknown regex", "a regex not known here", "no vocabulary"],
)
def test_a_tokenizer_that_cannot_be_used_is_told_once(
    tmp_path: Path, change: Callable[[Pairs], Pairs], where: str
) -> None:
    reading = read_windows(TINY, good_file(tmp_path, change(tiny_pairs())))
    assert [code for code, _ in found(reading)] == ["unusable-tokenizer"]
    assert where in reading.findings[0].where
    assert [window.ids for window in reading.windows] == [w.ids for w in read_windows(TINY, tiny(tmp_path)).windows]


def test_known_differences_are_noted_and_are_no_finding(tmp_path: Path) -> None:
    reading = read_windows(TINY, tiny(tmp_path), PromptOptions(prompts=(" leading space", JOKE, "trailing ")))
    assert reading.findings == ()
    (note,) = reading.notes
    assert f"{WHITE_SPACE} (2)" in note
    assert decoded(reading.windows[0]).startswith("<|im_start|>user<|im_sep|>leading")


# The folder


def test_without_a_template_prompts_are_bare_texts_whatever_the_file_has(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, None)
    for file in (tiny(tmp_path), tiny(tmp_path, without=K.CHAT_TEMPLATE)):
        reading = read_windows(folder, file)
        assert reading.findings == ()
        assert reading.notes == ("the model folder has no chat template: the prompts are given without chat format",)
        bare = "\n\n".join(message["content"] for message in BUILT_IN[1].messages)
        assert reading.windows[1].ids == source_ids(bare)


def test_a_conversation_that_the_models_template_refuses_is_a_bare_text(tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template = refusing + tiny_pairs()[K.CHAT_TEMPLATE].value
    reading = read_windows(folder_with(tmp_path, template), tiny(tmp_path, text(K.CHAT_TEMPLATE, template)))
    assert reading.findings == ()
    (note,) = reading.notes
    assert "no prompt of 2 of 8 conversations" in note
    assert note.endswith("an explanation: the template refuses the chat: no system role")
    assert decoded(reading.windows[0]).startswith("<|im_start|>")
    assert decoded(reading.windows[1]) == "\n\n".join(message["content"] for message in BUILT_IN[1].messages)


@pytest.mark.parametrize("template", ["{# nothing #}", "{% for %}", "{{ missing.value }}"])
def test_a_template_of_the_models_that_makes_nothing_is_noted(tmp_path: Path, template: str) -> None:
    reading = read_windows(folder_with(tmp_path, template), tiny(tmp_path, text(K.CHAT_TEMPLATE, template)))
    assert reading.findings == ()
    assert "no prompt of 8 of 8" in reading.notes[0]
    assert all(window.ids for window in reading.windows)


def test_a_folder_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        read_windows(folder, tiny(tmp_path))


def test_warnings_of_the_folders_files_are_notes(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    (folder / "chat_template.jsonl").write_text("")
    edit_json(folder / "tokenizer_config.json", lambda data: data.update(add_bos_token=True))
    assert any("add_bos_token" in note for note in read_windows(folder, tiny(tmp_path)).notes)


def test_tokens_without_a_row_in_the_model_are_an_error(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    edit_json(folder / "config.json", lambda data: data.update(vocab_size=900))
    with pytest.raises(CheckpointError, match=r"config\.json and tokenizer\.json disagree") as error:
        read_windows(folder, tiny(tmp_path))
    assert error.value.problems[0].found == "900, and token 938 ('<|im_sep|>')"


def test_tokens_without_a_row_in_the_file_are_an_error(tmp_path: Path) -> None:
    for rows in (938, 939):
        entry = TensorEntry("token_embd.weight", (rows, 256), GGMLQuantizationType.F32, 0)
        file = replace(tiny(tmp_path), tensors=(entry,))
        if rows == 939:
            assert read_windows(TINY, file).windows
            continue
        with pytest.raises(FormatError, match="no row for a token") as error:
            read_windows(TINY, file)
        assert error.value.problems[0].found.startswith("938 rows")


def test_a_tokenizer_alone_will_do(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    (folder / "config.json").unlink()
    assert read_windows(folder, tiny(tmp_path)).windows == read_windows(TINY, tiny(tmp_path)).windows
