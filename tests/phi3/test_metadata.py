"""General keys from what a model folder and the user say; the rest of the metadata is tested with whole plans."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import copy_of_tiny, edit_json
from gguf import GGUFValueType
from gguf.constants import Keys

from phi4conv import phi3
from phi4conv.errors import ConversionError
from phi4conv.gguf_file.layout import MetadataPair, f32, i32, text, texts, u32
from phi4conv.gguf_file.write import encode_header
from phi4conv.phi3 import ConversionOptions
from phi4conv.phi3.metadata import general_pairs
from phi4conv.plan import ConversionPlan

GENERAL = Keys.General


def plan(folder: Path, **options: Any) -> ConversionPlan:
    made = phi3.plan(folder, ConversionOptions(vocab_only=True, **options))
    encode_header(made.metadata, ())  # every pair can be written
    return made


def values(made: ConversionPlan, prefix: str) -> dict[str, Any]:
    return {pair.key: pair.value for pair in made.metadata if pair.key.startswith(prefix)}


def test_each_kind_of_field_has_its_type_and_place() -> None:
    card = {
        "tags": ["a", "b"],
        "datasets": [],
        "base_models": [{"url": "u", "name": "n"}, {}],
        "license": "mit",
        "name": "Phi 4",
        "sampling_temp": 0.5,
        "sampling_top_k": 50,
        "author": "",
        "languages": [],
    }
    assert list(general_pairs(card)) == [
        i32(GENERAL.SAMPLING_TOP_K, 50),
        f32(GENERAL.SAMPLING_TEMP, 0.5),
        text(GENERAL.NAME, "Phi 4"),
        text(GENERAL.LICENSE, "mit"),
        u32(GENERAL.BASE_MODEL_COUNT, 2),
        text(GENERAL.BASE_MODEL_NAME.format(id=0), "n"),
        text(GENERAL.BASE_MODEL_URL.format(id=0), "u"),
        u32(GENERAL.DATASET_COUNT, 0),
        texts(GENERAL.TAGS, ["a", "b"]),
    ]


def test_what_is_wrong_with_the_card_reaches_the_plans_warnings(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "my-phi3", single_file=False)
    (folder / "README.md").write_text('---\nlicense: "\\ud800"\ntags: [a]\nname: my-phi3\n---\n')
    made = plan(folder)
    assert values(made, "general.tags") == {"general.tags": ("a",)}
    assert values(made, "general.license") == {}
    left_out, renamed = made.warnings
    assert left_out.startswith("license in the model card")
    assert renamed.startswith("general.name 'my-phi3' is written as 'my-Phi 3'")


@pytest.mark.parametrize("card", ["---\nlicense: [mit\n---\n", "---\nA rule, and no front matter.\n"])
def test_a_broken_card_stops_no_conversion(tmp_path: Path, card: str) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    (folder / "README.md").write_text(card)
    made = plan(folder)
    assert values(made, "general.license") == {}
    assert values(made, "general.name") == {"general.name": "Tiny Phi 4"}
    (warning,) = made.warnings
    assert "README.md is not used" in warning


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": ""}, "where:    --name"),
        ({"name": "x\udcff"}, "where:    --name"),
        ({"metadata": {"general.tags": "phi,chat"}}, "general.tags is not usable"),
        ({"metadata": {"general.licence": "mit"}}, "general.license?"),
        ({"metadata": {"general.name": ""}}, "general.name is not usable"),
    ],
)
def test_what_the_user_asks_for_is_written_or_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    if "metadata" in options:
        path = tmp_path / "metadata.json"
        path.write_text(json.dumps(options["metadata"]))
        options = {"metadata_file": path}
    with pytest.raises(ConversionError) as caught:
        plan(folder, **options)
    assert words in str(caught.value)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode here")
def test_a_folder_whose_name_is_no_text_can_be_converted(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / os.fsdecode(b"phi-\xff"), single_file=False)
    (folder / "README.md").unlink()
    edit_json(folder / "config.json", lambda data: data.pop("_name_or_path", None))
    assert values(plan(folder), "general.name") == {"general.name": "Phi ?"}


def test_named_templates_are_all_written(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    named = [{"name": "default", "template": "d"}, {"name": "工具", "template": "t"}, {"name": "思考", "template": "u"}]
    edit_json(folder / "tokenizer_config.json", lambda data: data.update(chat_template=named))
    written = [pair for pair in plan(folder).metadata if pair.key.startswith("tokenizer.chat_template")]
    assert written == [
        text("tokenizer.chat_template.__", "t"),
        text("tokenizer.chat_template.___2", "u"),
        MetadataPair("tokenizer.chat_templates", GGUFValueType.ARRAY, ("__", "___2"), GGUFValueType.STRING),
        text("tokenizer.chat_template", "d"),
    ]
