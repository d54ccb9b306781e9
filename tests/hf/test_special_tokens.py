from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_tokenizers import (
    DUMMY,
    ENDOFTEXT,
    IM_END,
    IM_START,
    NO_IDS,
    SETTINGS,
    Json,
    end_with,
    read_changed,
    small_tokenizer,
    write_folder,
)
from tokenizers import Tokenizer

from phi4conv.errors import CheckpointError
from phi4conv.hf.special_tokens import library_errors
from phi4conv.hf.tokenizer import read_vocabulary
from phi4conv.vocab import SpecialIds


@pytest.mark.parametrize(
    ("before", "after"), [(None, None), ("<|endoftext|>", None), (None, "<|im_end|>"), ("<|endoftext|>", "<|im_end|>")]
)
def test_what_the_tokenizer_adds_is_found_by_trying(tmp_path: Path, before: str | None, after: str | None) -> None:
    reading = read_changed(tmp_path, lambda data: end_with(data, before, after))
    assert (reading.vocabulary.add_bos, reading.vocabulary.add_eos) == (before is not None, after is not None)


def test_truncation_and_padding_do_not_hide_what_is_added(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        end_with(data, "<|endoftext|>", None)
        tokenizer = Tokenizer.from_str(json.dumps(data))
        tokenizer.enable_truncation(1)
        tokenizer.enable_padding(length=40)
        data.update(json.loads(tokenizer.to_str()))

    assert read_changed(tmp_path, change).vocabulary.add_bos


def test_a_flag_that_contradicts_the_tokenizer_is_a_warning(tmp_path: Path) -> None:
    settings = SETTINGS | {"add_bos_token": True, "add_eos_token": False}
    reading = read_vocabulary(write_folder(tmp_path, settings=settings), NO_IDS)
    assert not reading.vocabulary.add_bos
    [warning] = reading.warnings
    assert warning.startswith(
        "tokenizer_config.json is wrong about add_bos_token: the tokenizer does not add the token"
    )


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    settings = SETTINGS | {"eos_token": {"content": "<|im_end|>", "__type": "AddedToken"}, "mask_token": "hello"}
    special = read_vocabulary(write_folder(tmp_path, settings=settings), NO_IDS).vocabulary.special
    assert special == SpecialIds(bos=ENDOFTEXT, eos=IM_END, eot=IM_END, pad=DUMMY, mask=259)


def test_tokenizer_config_comes_first_then_the_map_then_config(tmp_path: Path) -> None:
    settings = {"eos_token": "<|im_end|>"}
    special_map = {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"}
    folder = write_folder(tmp_path, settings=settings, special_tokens_map=special_map)
    reading = read_vocabulary(folder, {"bos": ENDOFTEXT, "eos": IM_END, "pad": DUMMY})
    assert reading.vocabulary.special == SpecialIds(bos=IM_START, eos=IM_END, eot=IM_END, pad=DUMMY)
    assert reading.warnings == (
        "bos is token 262 in special_tokens_map.json, which is used, but token 261 in config.json",
        "eos is token 263 in tokenizer_config.json, which is used, but token 261 in special_tokens_map.json",
    )


def test_without_configuration_files_config_ids_are_used(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    reading = read_vocabulary(folder, {"bos": ENDOFTEXT, "eos": ENDOFTEXT, "pad": None})
    assert reading.vocabulary.special == SpecialIds(bos=ENDOFTEXT, eos=ENDOFTEXT, eot=IM_END)
    assert reading.vocabulary.chat_template is None
    assert reading.warnings == ()


def test_what_does_not_resolve_is_left_out_with_a_warning(tmp_path: Path) -> None:
    settings = SETTINGS | {"unk_token": "<unk>", "pad_token": None}
    reading = read_vocabulary(write_folder(tmp_path, settings=settings), {"pad": 300})
    assert reading.vocabulary.special == SpecialIds(bos=ENDOFTEXT, eos=IM_END, eot=IM_END)
    assert reading.warnings == (
        "tokenizer_config.json: unk_token '<unk>' is not in the vocabulary",
        "config.json: pad_token_id 300 is not the id of a token",
    )


def test_no_eos_anywhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no end-of-text token[^~]*Phi-4's is '<\|im_end\|>'"):
        read_vocabulary(write_folder(tmp_path, settings={"bos_token": "<|endoftext|>"}), {"eos": 266})


def test_no_bos_anywhere_is_replaced_with_a_warning(tmp_path: Path) -> None:
    reading = read_vocabulary(write_folder(tmp_path, settings={"eos_token": "<|im_end|>"}), NO_IDS)
    assert reading.vocabulary.special.bos == ENDOFTEXT
    assert reading.warnings == ("no file names a bos token: 261 is used, since llama.cpp would take 11, a comma",)


@pytest.mark.parametrize(("text", "eot"), [("<|end|>", 263), ("<|eot_id|>", 263), ("<|other|>", ENDOFTEXT)])
def test_end_of_turn_is_always_set(tmp_path: Path, text: str, eot: int) -> None:
    renamed = json.loads(json.dumps(small_tokenizer()).replace("<|im_end|>", text))
    reading = read_vocabulary(write_folder(tmp_path, renamed, {"eos_token": "<|endoftext|>"}), NO_IDS)
    assert reading.vocabulary.special.eot == eot


def undeclared(data: Json) -> None:
    end_with(data, "<|endoftext|>", None)
    data["post_processor"]["special_tokens"] = {}


def undeclared_in_a_sequence(data: Json) -> None:
    byte_level = data["post_processor"]
    undeclared(data)
    data["post_processor"] = {"type": "Sequence", "processors": [byte_level, data["post_processor"]]}


@pytest.mark.parametrize("change", [undeclared, undeclared_in_a_sequence])
def test_undeclared_tokens_are_refused_before_the_library_panics(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Json], None]
) -> None:
    with pytest.raises(CheckpointError, match=r"tokens that it does not declare(.|\n)*'<\|endoftext\|>'"):
        read_changed(tmp_path, change)
    assert capfd.readouterr().err == ""


def test_a_panic_of_the_library_is_a_problem_of_the_file() -> None:
    data = small_tokenizer()
    undeclared(data)
    tokenizer = Tokenizer.from_str(json.dumps(data))
    with pytest.raises(CheckpointError, match="cannot tokenize"), library_errors("cannot tokenize", "tokenizer.json"):
        tokenizer.encode("Hello world")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interruption_is_no_problem_of_the_file(error: type[BaseException]) -> None:
    with pytest.raises(error), library_errors("the tokenizers library cannot read the file", "tokenizer.json"):
        raise error
