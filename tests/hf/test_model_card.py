from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import gguf
import hypothesis
import pytest
from hypothesis import strategies as st

from phi4conv.errors import CheckpointError, ConversionError
from phi4conv.hf.model_card import FIELDS, CardReading, model_id, read_model_card

COUNT = 14_659_507_200
COMMIT = "187ef0342fff0eb3333be9f00389385e95ef0b61"


def read(folder: Path, **options: Any) -> CardReading:
    return read_model_card(folder, parameter_count=COUNT, **options)


def model_folder(parent: Path, name: str = "phi-4", card: str = "", **files: Any) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# Title\n", encoding="utf-8")
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def override(folder: Path, content: Any) -> CardReading:
    path = folder.parent / "metadata.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read(folder, overrides=path)


def refusal(folder: Path, content: Any) -> str:
    with pytest.raises(ConversionError) as caught:
        override(folder, content)
    assert "metadata.json" in str(caught.value)
    assert "download" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["phi-4", "Phi-4-mini-instruct", "my tune", "x-7b-v2-chat"])
@pytest.mark.parametrize("config", [{}, {"_name_or_path": "microsoft/phi-4"}, {"_name_or_path": "/home/me/models/x"}])
@pytest.mark.parametrize(
    "card",
    [
        "",
        "license: mit\nlanguage:\n- en\n- no\ntags: [a, b]\npipeline_tag: text-generation\nbase_model: microsoft/phi-4",
        "base_model: [a/b-7b, https://huggingface.co/c/d]\ndatasets:\n- x/y\n- name: z\n  url: u\nmodel_creator: me",
        "license: other\nlicense_name: own\nlicense_link: LICENSE\nname: Mine\nbase_model:\ntags:\nurl: https://x.y",
    ],
)
def test_labels_are_those_of_gguf_py(tmp_path: Path, name: str, config: dict[str, Any], card: str) -> None:
    folder = model_folder(tmp_path, name, card, config=config, generation_config={"top_k": 50, "temperature": 0.5})
    known = {key: value for key, value in vars(gguf.Metadata.load(None, folder, None, COUNT)).items() if value}
    known.setdefault("size_label", "15B")
    reading = read(folder)
    assert {key: value for key, value in reading.fields.items() if value} == known
    assert reading.warnings == ()


def test_overrides_win_over_the_card_and_null_leaves_out(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, card="license: mit\ntags: [a]\nauthor: them", generation_config={"top_k": 50})
    given = {
        "general.license": "apache-2.0",
        "general.sampling.top_k": 20.0,
        "general.tags": None,
        "general.base_models": [{"name": "Phi 4", "repo_url": "https://huggingface.co/microsoft/phi-4"}],
    }
    fields = override(folder, given).fields
    assert (fields["license"], fields["sampling_top_k"], fields["author"]) == ("apache-2.0", 20, "them")
    assert fields["base_models"] == given["general.base_models"]
    assert "tags" not in fields


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("general.tags", "phi,chat", "a list of texts"),
        ("general.tags", 3, "a list of texts"),
        ("general.tags", ["a", 3], "a list of texts"),
        ("general.languages", True, "a list of texts"),
        ("general.base_models", 3, "a list of objects"),
        ("general.base_models", [1], "a list of objects"),
        ("general.base_models", [{"name": 4}], "a list of objects"),
        ("general.datasets", [{"nmae": "x"}], "a list of objects"),
        ("general.version", 4, "a text"),
        ("general.license", {"id": "mit"}, "a text"),
        ("general.sampling.temp", 1e308, "a number that fits 32 bits"),
        ("general.sampling.temp", True, "a number that fits 32 bits"),
        ("general.sampling.top_k", 2**40, "a whole number"),
        ("general.sampling.top_k", 1.5, "a whole number"),
        ("general.name", "", "a text in UTF-8 that is not empty"),
        ("general.name", " ", "a text in UTF-8 that is not empty"),
        ("general.name", None, "a text in UTF-8 that is not empty"),
    ],
)
def test_overrides_of_a_wrong_type_are_refused(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    message = refusal(model_folder(tmp_path), {key: value})
    assert f"{key} is not usable" in message
    assert expected in message


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("general.licence", "expected: general.license?"),
        ("general.architecture", "no key that --metadata can set: 'general.architecture'"),
        ("phi3.context_length", "expected: a key of the model card, such as general.license"),
    ],
)
def test_unknown_overrides_are_refused_and_all_at_once(tmp_path: Path, key: str, expected: str) -> None:
    message = refusal(model_folder(tmp_path), {key: "mit", "general.tags": 3})
    assert expected in message
    assert "general.tags is not usable" in message


def test_a_broken_metadata_file_is_no_download(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    path = tmp_path / "metadata.json"
    for text, words in (('{"general.name": ', "stops before its end"), ("[]", "not a JSON object")):
        path.write_text(text)
        with pytest.raises(ConversionError, match=words) as caught:
            read(folder, overrides=path)
        assert "give --metadata a JSON file such as" in str(caught.value)
        assert "download" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_overrides_may_come_through_a_pipe(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"general.author": "me"}',))
    writer.start()
    assert read(folder, overrides=pipe).fields["author"] == "me"
    writer.join()


@pytest.mark.parametrize("name", ["", " ", "x\udcff"])
def test_a_name_that_no_file_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConversionError, match=r"general\.name is not usable\n  where:    --name"):
        read(model_folder(tmp_path), name=name)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"temperature": 1e308}, "general.sampling.temp"),
        ({"temperature": float("inf")}, "general.sampling.temp"),
        ({"top_k": 2**40}, "general.sampling.top_k"),
        ({"top_p": True}, "general.sampling.top_p"),
        ({"repetition_penalty": "high"}, "general.sampling.penalty_repeat"),
        ({"sequence": ["a", 1]}, "general.sampling.sequence"),
    ],
)
def test_generation_settings_that_no_key_holds_are_refused(tmp_path: Path, given: dict[str, Any], key: str) -> None:
    folder = model_folder(tmp_path, generation_config=given)
    with pytest.raises(CheckpointError, match=f"{key} is not usable\n.*generation_config.json, {next(iter(given))}"):
        read(folder)


def test_generation_settings_have_two_names_for_one(tmp_path: Path) -> None:
    for index, given in enumerate(({"repetition_penalty": 1.5}, {"penalty_repeat": 1.5, "repetition_penalty": 2})):
        folder = model_folder(tmp_path, str(index), generation_config={"top_k": None} | given)
        fields = read(folder).fields
        assert fields["sampling_penalty_repeat"] == 1.5
        assert "sampling_top_k" not in fields


def test_every_field_of_gguf_py_has_its_key() -> None:
    assert {field.name for field in FIELDS} == set(vars(gguf.Metadata()))


@pytest.mark.parametrize(
    ("card", "key"),
    [
        ('license: "\\ud800"', "license"),
        ('tags: ["a\\udfff"]', "tags"),
        ("tags: {a: b}", "tags"),
        ("tags: [a, [b]]", "tags"),
        ("language: [{a: b}]", "language"),
        ("license: {id: mit}", "license"),
        ("base_model: [[a]]", "base_model"),
        ("base_model: [{name: [a]}]", "base_model"),
        ("base_model: [null]", "base_model"),
        ("name: [a, {b: c}]", "name"),
    ],
)
def test_what_cannot_be_used_of_a_card_is_left_out(
    tmp_path: Path, card: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    reading = read(model_folder(tmp_path, card=f"{card}\nauthor: me"))
    assert reading.fields == read(model_folder(tmp_path / "other", card="author: me")).fields
    (warning,) = reading.warnings
    assert warning.startswith(f"{key} in the model card {tmp_path}")
    assert capfd.readouterr() == ("", "")  # gguf-py logs what it does not know


def test_odd_parts_that_no_key_needs_do_not_matter(tmp_path: Path) -> None:
    card = "model-index: [{results: [{value: 1, task: {type: t}}]}]\nwidget: 3\nlicense: [mit, apache-2.0]\nname: ''"
    reading = read(model_folder(tmp_path, card=card))
    assert (reading.fields["license"], reading.fields["name"], reading.warnings) == ("mit,apache-2.0", "Phi 4", ())


def test_words_that_yaml_takes_for_something_else_stay_words(tmp_path: Path) -> None:
    fields = read(model_folder(tmp_path, card="language: [en, no]\nversion: 4.10\ntags: [on, 2024-99-99]")).fields
    assert (fields["languages"], fields["version"], fields["tags"]) == (["en", "no"], "4.10", ["on", "2024-99-99"])


def test_a_card_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, generation_config={"top_k": 5})
    (folder / "README.md").write_bytes(b"---\nlicense: mit\nauthor: Andr\xe9\n---\n")
    reading = read(folder)
    assert (reading.fields["name"], reading.fields["sampling_top_k"]) == ("Phi 4", 5)
    assert "license" not in reading.fields
    (warning,) = reading.warnings
    assert warning.startswith(f"the model card {folder / 'README.md'} is not used, so that the GGUF lacks its license")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("models--microsoft--phi-4", "snapshots", COMMIT), "microsoft/phi-4"),
        (("models--gpt2", "snapshots", COMMIT), "gpt2"),
        (("models--microsoft--phi-4", "other", "phi"), "phi"),
        (("models", "snapshots", "phi"), "phi"),
        (("models----x", "snapshots", "phi"), "phi"),
        (("datasets--a--b", "snapshots", "phi"), "phi"),
        (("phi",), "phi"),
    ],
)
def test_a_snapshot_of_the_hub_is_named_after_its_repository(parts: tuple[str, ...], expected: str) -> None:
    assert model_id(Path(*parts)) == expected


def test_a_snapshot_without_a_card_has_name_and_organization(tmp_path: Path) -> None:
    fields = read(model_folder(tmp_path, f"models--microsoft--phi-4/snapshots/{COMMIT}")).fields
    shown = [fields[key] for key in ("name", "organization", "basename", "version", "size_label")]
    assert shown == ["Phi 4", "Microsoft", "phi", "4", "15B"]


@pytest.mark.parametrize("name", ["---", "-"])
def test_there_is_always_a_name(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path, name, config={"_name_or_path": ""})
    assert read(folder).fields["name"] == name
    assert read(model_folder(tmp_path, "phi-4", config={"_name_or_path": ""})).fields["name"] == "Phi 4"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode here")
def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    reading = read(model_folder(tmp_path, os.fsdecode(b"phi-\xff")))
    assert reading.fields["name"] == "Phi ?"
    assert reading.warnings == ("the folder's name is not UTF-8; where the model is named after it, it is 'phi-?'",)


ODD_NAMES = st.text() | st.text(st.sampled_from("aA1vx./-_:7bBMK"))


@hypothesis.given(st.lists(ODD_NAMES, max_size=3))
def test_no_name_is_too_odd_for_gguf_py(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = model_folder(Path(parent), card=f"base_model: {json.dumps(names)}")
        for name in names:
            (folder / "config.json").write_text(json.dumps({"_name_or_path": name}), encoding="utf-8")
            assert read(folder).fields["name"]
