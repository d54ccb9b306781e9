"""The YAML between two lines of --- at the start of a README.md, as the Hub and llama.cpp's converter read it.

People write it by hand, and a hostile one may come with any model. So every value is a text or null (YAML
would turn `no` into false and 4.10 into 4.1), and aliases, which a few lines can blow up without limit, are
not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML has no types of its own

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.chat_template import is_there
from phi4conv.hf.json_file import read_at_most, require_file, shortened

CARD_FILE = "README.md"

# Front matter with hundreds of benchmark results has about 100 kB; PyYAML reads some 100 kB a second.
MAX_CARD_BYTES = 256 << 10
MAX_DEPTH = 32

TAGS = {kind: f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "seq", "map")}
RESOLVERS = {
    start: [resolver for resolver in resolvers if resolver[0] == TAGS["null"]]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# The entry None refuses any other tag.
CONSTRUCTORS = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (*TAGS.values(), None)}


def read_front_matter(path: Path) -> dict[str, Any]:
    """The front matter of a README.md, empty where there is no file or no front matter.

    Raises:
        CheckpointError: The file cannot be read, or what it begins with is no front matter.
    """
    if not is_there(path):
        return {}
    require_file(path)
    lines = read_at_most(path, MAX_CARD_BYTES, cut=True).removeprefix(b"\xef\xbb\xbf").splitlines()
    if not lines or lines[0].rstrip() != b"---":
        return {}
    end = next((index for index, line in enumerate(lines) if index and line.rstrip() == b"---"), None)
    if end is None:
        found = f"no second --- in the first {MAX_CARD_BYTES:,} bytes"
        raise CheckpointError(Problem("front matter without an end", where=str(path), found=found))
    try:
        # A tab is an error in YAML that gguf-py forgives, too.
        data = parse_yaml(b"\n".join(lines[1:end]).decode().replace("\t", "  "))
    except Exception as error:  # PyYAML lets some of Python's own through, such as chr()'s OverflowError
        found = shortened(" ".join(str(error).split()))
        raise CheckpointError(Problem("front matter that is no YAML", where=str(path), found=found)) from error
    if not isinstance(data, dict):
        if data is None:
            return {}
        raise CheckpointError(Problem("front matter that is no YAML mapping", where=str(path)))
    return data


def parse_yaml(source: str) -> Any:
    r"""The YAML document as texts, nulls, lists and dicts.

    Raises:
        yaml.YAMLError: It is broken, nested too deeply, or has an alias or a tag such as !!int.

    >>> parse_yaml("language: [en, no]\nversion: 4.10\nlicense:")
    {'language': ['en', 'no'], 'version': '4.10', 'license': None}
    """
    depth = 0
    for event in yaml.parse(source, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{event.anchor}, which is not read in a model card")
    loader = yaml.SafeLoader(source)
    loader.yaml_implicit_resolvers = RESOLVERS
    loader.yaml_constructors = CONSTRUCTORS
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
