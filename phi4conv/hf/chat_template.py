"""Where the chat templates of a model folder are, and which one counts.

They have been kept in four places: the key chat_template of tokenizer_config.json (a string, or a list of named
templates), chat_template.jinja with additional_chat_templates/*.jinja beside it, and, for processors,
chat_template.json. The choice is transformers' (_from_pretrained in tokenization_utils_base.py, 5.23), since that
is what the model was tried with; llama.cpp's own converter prefers tokenizer_config.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.json_file import listed, read_at_most, read_json_object, recognised, require_file, shortened

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
PROCESSOR_FILE = "chat_template.json"
DEFAULT = "default"

# The Hub's parser of GGUF headers gives up on longer strings.
MAX_TEMPLATE_BYTES = 10_000_000

MEND = "repair the file, or download it again"


@dataclass(frozen=True)
class ChatTemplates:
    """The default template, the others by name, and what the user should know about the choice.

    The names are those that stand in GGUF keys: ASCII letters, digits and underscores.
    """

    default: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplates:
    """The chat templates of a model folder; texts are kept as they are, final newlines included.

    tokenizer_config is the parsed tokenizer_config.json, empty where there is none.

    Raises:
        CheckpointError: A place holds something that is no template.
    """
    places = {
        f"{TEMPLATE_FILE} and {TEMPLATE_FOLDER}": templates_in_files(folder),
        "tokenizer_config.json": templates_in_json(tokenizer_config, str(folder / "tokenizer_config.json")),
        PROCESSOR_FILE: templates_in_processor(folder),
    }
    filled = {place: templates for place, templates in places.items() if templates}
    if not filled:
        return ChatTemplates()
    chosen_place, chosen = next(iter(filled.items()))
    warnings = [
        f"the chat template in {place} differs from the one in {chosen_place}, which is used, as transformers does"
        for place, templates in filled.items()
        if templates != chosen
    ]
    others = {name: text for name, text in chosen.items() if name != DEFAULT}
    if DEFAULT not in chosen:
        warnings.append(f"{chosen_place} has the chat templates {listed(others)} but no default one")
    named, renamed = named_for_keys(others)
    return ChatTemplates(chosen.get(DEFAULT), named, (*warnings, *renamed))


def named_for_keys(templates: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Templates under names that fit into GGUF keys, and a warning for each that llama.cpp's converter would lose.

    As there (gguf-py's add_chat_template) whatever is no ASCII letter or digit becomes an underscore and a template
    without a name is left out; names that become alike are numbered, where that one keeps the last.

    >>> named_for_keys({"tool-use": "a", "tool.use": "b"})[0]
    {'tool_use': 'a', 'tool_use_2': 'b'}
    """
    named: dict[str, str] = {}
    warnings = []
    uses: Counter[str] = Counter()
    for name, text in templates.items():
        if not name:
            warnings.append("a chat template without a name is left out, since a GGUF names each but the default one")
            continue
        plain = re.sub(r"[^A-Za-z0-9]", "_", name)
        uses[plain] += 1
        free = plain if uses[plain] == 1 else f"{plain}_{uses[plain]}"
        while free in named:
            free += "_"
        if free != plain:
            warnings.append(
                f"the chat template {shortened(repr(name))} is called {shortened(free)} in the GGUF, since "
                f"{shortened(plain)} is taken"
            )
        named[free] = text
    return named, warnings


def templates_in_json(settings: Mapping[str, Any], where: str) -> dict[str, str]:
    """The templates under the key chat_template: one, a list of {"name", "template"}, or an object by name."""
    value = settings.get("chat_template")
    if value is None:
        return {}
    pairs: Any = None
    if isinstance(value, str):
        pairs = [(DEFAULT, value)]
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        pairs = [(entry.get("name"), entry.get("template")) for entry in value]
    if pairs is None or not all(isinstance(item, str) for pair in pairs for item in pair):
        raise CheckpointError(
            Problem(
                "chat_template is no chat template",
                where=where,
                expected='a string, or a list of {"name": ..., "template": ...}',
                found=shortened(repr(value)),
                next_step=MEND,
            )
        )
    return without_empty(dict(pairs))


def templates_in_files(folder: Path) -> dict[str, str]:
    """chat_template.jinja as the default, additional_chat_templates/NAME.jinja as NAME."""
    paths = {DEFAULT: folder / TEMPLATE_FILE} if is_there(folder / TEMPLATE_FILE) else {}
    extra = sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    paths |= {path.name.removesuffix(".jinja"): path for path in extra}
    return without_empty({name: read_template(path) for name, path in paths.items()})


def templates_in_processor(folder: Path) -> dict[str, str]:
    """The templates in chat_template.json, where processors of transformers 4 kept them."""
    path = folder / PROCESSOR_FILE
    return templates_in_json(read_json_object(path), str(path)) if is_there(path) else {}


def is_there(path: Path) -> bool:
    """Whether the folder lists the file; a link that leads nowhere counts, so that reading it tells what is wrong."""
    return path.exists() or path.is_symlink()


def read_template(path: Path) -> str:
    """The text of one template file; raises CheckpointError when it is no UTF-8 text of a sensible size."""
    require_file(path)
    data = read_at_most(path, MAX_TEMPLATE_BYTES, kind="chat template")
    if problem := recognised(data, str(path), expected="a Jinja template"):
        raise CheckpointError(problem)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise CheckpointError(Problem("not UTF-8", str(path), "a Jinja template in UTF-8", found, MEND)) from error
    # transformers reads the file in text mode, so a checkout with CRLF line ends means the same template.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def without_empty(templates: Mapping[str, str]) -> dict[str, str]:
    """The templates that have a text; an empty one would hide the next place and render to nothing."""
    return {name: text for name, text in templates.items() if text}
