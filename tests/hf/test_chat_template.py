from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phi4conv.errors import CheckpointError
from phi4conv.hf.chat_template import ChatTemplates, read_chat_templates

TEMPLATE = "{% for message in messages %}\n{{ message['content'] }}é{% endfor %}\n\n"
OTHER = "{{ bos_token }}"


def read(folder: Path, chat_template: Any = None) -> ChatTemplates:
    return read_chat_templates(folder, {} if chat_template is None else {"chat_template": chat_template})


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize(
    ("files", "chat_template"),
    [
        ({}, TEMPLATE),
        ({}, [{"name": "default", "template": TEMPLATE}]),
        ({}, {"default": TEMPLATE}),
        ({"chat_template.jinja": TEMPLATE}, None),
        ({"chat_template.jinja": TEMPLATE.replace("\n", "\r\n")}, None),
        ({"chat_template.json": json.dumps({"chat_template": TEMPLATE})}, None),
        ({"additional_chat_templates/default.jinja": TEMPLATE}, None),
        ({"chat_template.jinja": TEMPLATE}, TEMPLATE),
        ({"chat_template.jinja": TEMPLATE, "chat_template.json": json.dumps({"chat_template": TEMPLATE})}, TEMPLATE),
    ],
)
def test_one_template_is_the_same_wherever_it_is_kept(
    tmp_path: Path, files: dict[str, str], chat_template: Any
) -> None:
    assert read(write(tmp_path, files), chat_template) == ChatTemplates(TEMPLATE)


def test_a_folder_without_templates_has_none(tmp_path: Path) -> None:
    assert read(tmp_path) == ChatTemplates()


def test_named_templates_are_the_same_in_either_place(tmp_path: Path) -> None:
    expected = ChatTemplates(TEMPLATE, {"tool_use": OTHER, "rag": "{{ x }}"})
    entries = [("default", TEMPLATE), ("tool_use", OTHER), ("rag", "{{ x }}")]
    assert read(tmp_path, [{"name": name, "template": text} for name, text in entries]) == expected
    files = {
        "chat_template.jinja": TEMPLATE,
        "additional_chat_templates/tool_use.jinja": OTHER,
        "additional_chat_templates/rag.jinja": "{{ x }}",
    }
    assert read(write(tmp_path, files)) == expected


def test_names_that_become_alike_in_a_gguf_are_numbered(tmp_path: Path) -> None:
    names = ["工具", "思考", "a-b", "a.b", "a_b_2"]
    templates = read(tmp_path, {"default": TEMPLATE} | {name: f"{{{{ {name!r} }}}}" for name in names})
    assert dict(zip(templates.named, templates.named.values(), strict=True)) == {
        "__": "{{ '工具' }}",
        "___2": "{{ '思考' }}",
        "a_b": "{{ 'a-b' }}",
        "a_b_2": "{{ 'a.b' }}",
        "a_b_2_": "{{ 'a_b_2' }}",
    }
    assert templates.warnings == (
        "the chat template '思考' is called ___2 in the GGUF, since __ is taken",
        "the chat template 'a.b' is called a_b_2 in the GGUF, since a_b is taken",
        "the chat template 'a_b_2' is called a_b_2_ in the GGUF, since a_b_2 is taken",
    )


def test_a_template_without_a_name_is_left_out(tmp_path: Path) -> None:
    templates = read(tmp_path, [{"name": "default", "template": TEMPLATE}, {"name": "", "template": OTHER}])
    assert (templates.default, templates.named) == (TEMPLATE, {})
    [warning] = templates.warnings
    assert warning.startswith("a chat template without a name is left out")


def test_the_file_wins_over_tokenizer_config_as_in_transformers(tmp_path: Path) -> None:
    templates = read(write(tmp_path, {"chat_template.jinja": OTHER}), TEMPLATE)
    assert templates.default == OTHER
    [warning] = templates.warnings
    assert warning.startswith("the chat template in tokenizer_config.json differs from the one in chat_template.jinja")


def test_files_replace_all_templates_of_tokenizer_config(tmp_path: Path) -> None:
    templates = read(write(tmp_path, {"additional_chat_templates/rag.jinja": OTHER}), TEMPLATE)
    assert templates.default is None
    assert templates.named == {"rag": OTHER}
    assert len(templates.warnings) == 2
    assert "'rag' but no default one" in templates.warnings[1]


def test_the_tokenizers_own_template_wins_over_the_processors(tmp_path: Path) -> None:
    templates = read(write(tmp_path, {"chat_template.json": json.dumps({"chat_template": OTHER})}), TEMPLATE)
    assert templates.default == TEMPLATE
    [warning] = templates.warnings
    assert warning.startswith("the chat template in chat_template.json differs from the one in tokenizer_config.json")


def test_an_empty_template_does_not_hide_the_next_place(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"chat_template.jinja": ""}), TEMPLATE) == ChatTemplates(TEMPLATE)


@pytest.mark.parametrize(
    "value",
    [
        5,
        ["text"],
        [{"name": "default"}],
        [{"template": TEMPLATE}],
        {"default": None},
        [{"name": [], "template": TEMPLATE}],
    ],
)
def test_what_is_no_template_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="chat_template is no chat template"):
        read(tmp_path, value)


def test_a_file_that_is_no_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(CheckpointError, match=r"not UTF-8\n.*chat_template\.jinja\n.*\n.*byte 0xff at offset 4"):
        read(tmp_path)
    write(tmp_path, {"chat_template.jinja": "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"})
    with pytest.raises(CheckpointError, match="a Git LFS pointer"):
        read(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * 10_000_001)
    with pytest.raises(CheckpointError, match="too large to be a chat template"):
        read(tmp_path)


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    try:
        (tmp_path / "chat_template.jinja").symlink_to(tmp_path / "blobs" / "gone")
    except OSError:
        pytest.skip("no symbolic links on this system")
    with pytest.raises(CheckpointError, match="a link to a file that is not there"):
        read(tmp_path, TEMPLATE)
