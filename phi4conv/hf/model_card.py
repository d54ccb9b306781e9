"""What a model folder says about itself: README.md's front matter, generation_config.json, its name.

The rules by which a name becomes a basename, a version and an organization are gguf-py's, so that a file
of ours is labelled as llama.cpp's converter would label it. Every value is checked before and after: what
the model's author wrote by hand and nobody can use is left out with a warning; what the user of phi4conv
asked for is written, or refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import Keys

from phi4conv.errors import CheckpointError, ConversionError, Problem
from phi4conv.hf.front_matter import CARD_FILE, read_front_matter
from phi4conv.hf.json_file import MAX_JSON_BYTES, parse_json_object, read_at_most, read_json_object, shortened

GENERAL = Keys.General
GENERATION_FILE = "generation_config.json"
MAX_FLOAT32 = float(np.finfo(np.float32).max)

# The fields of one base model or data set, in order; the key is general.base_model.{id}.FIELD.
ORIGIN_FIELDS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


@dataclass(frozen=True)
class CardReading:
    """The fields of gguf.Metadata that have a value, by gguf-py's names, and what the user should know about them.

    The values fit the kinds of FIELDS; there is always a name.
    """

    fields: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """What a field may hold: in words, and as a function that gives the value or raises TypeError or ValueError."""

    expected: str
    check: Callable[[Any], Any]


def one_text(value: Any) -> str:
    """The value, when it is a text that UTF-8 can hold, which half of a surrogate pair is not."""
    if not isinstance(value, str):
        raise TypeError(value)
    value.encode()
    return value


def joined_text(value: Any) -> str:
    """A text, or several joined by commas: a model may have two licenses."""
    return ",".join(map(one_text, value)) if isinstance(value, list) else one_text(value)


def text_list(value: Any) -> list[str]:
    """A list of texts."""
    if not isinstance(value, list):
        raise TypeError(value)
    return [one_text(item) for item in value]


def whole_number(value: Any) -> int:
    """A whole number that an INT32 holds; 50.0 is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    if not -(2**31) <= value < 2**31 or value != int(value):
        raise ValueError(value)
    return int(value)


def number(value: Any) -> float:
    """A finite number that a FLOAT32 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    if not abs(value) <= MAX_FLOAT32:
        raise ValueError(value)
    return float(value)


def origin(value: Any) -> dict[str, str]:
    """One base model or data set; what is null has no value."""
    if not isinstance(value, dict):
        raise TypeError(value)
    if unknown := value.keys() - set(ORIGIN_FIELDS):
        raise ValueError(unknown)
    return {field: one_text(item) for field, item in value.items() if item is not None}


def origin_list(value: Any) -> list[dict[str, str]]:
    """A list of base models or data sets."""
    if not isinstance(value, list):
        raise TypeError(value)
    return [origin(item) for item in value]


TEXT = Kind("a text", joined_text)
TEXTS = Kind("a list of texts", text_list)
WHOLE = Kind("a whole number from -2147483648 to 2147483647", whole_number)
NUMBER = Kind("a number that fits 32 bits", number)
ORIGINS = Kind(f"a list of objects with texts under {', '.join(ORIGIN_FIELDS)}", origin_list)


@dataclass(frozen=True)
class Field:
    """A field of gguf.Metadata, its GGUF key, and its names in generation_config.json, the first present counting.

    The keys of ORIGINS stand in --metadata files only; a GGUF numbers the entries instead.
    """

    name: str
    key: str
    kind: Kind = TEXT
    generation_names: tuple[str, ...] = ()


# In the order in which llama.cpp's converter writes them (gguf-py's metadata.py).
FIELDS: tuple[Field, ...] = (
    Field("sampling_sequence", GENERAL.SAMPLING_SEQUENCE, TEXT, ("sequence",)),
    Field("sampling_top_k", GENERAL.SAMPLING_TOP_K, WHOLE, ("top_k",)),
    Field("sampling_top_p", GENERAL.SAMPLING_TOP_P, NUMBER, ("top_p",)),
    Field("sampling_min_p", GENERAL.SAMPLING_MIN_P, NUMBER, ("min_p",)),
    Field("sampling_xtc_probability", GENERAL.SAMPLING_XTC_PROBABILITY, NUMBER, ("xtc_probability",)),
    Field("sampling_xtc_threshold", GENERAL.SAMPLING_XTC_THRESHOLD, NUMBER, ("xtc_threshold",)),
    Field("sampling_temp", GENERAL.SAMPLING_TEMP, NUMBER, ("temperature",)),
    Field("sampling_penalty_last_n", GENERAL.SAMPLING_PENALTY_LAST_N, WHOLE, ("penalty_last_n",)),
    # transformers' name is the second one, which gguf-py knows only since 0.20.
    Field("sampling_penalty_repeat", GENERAL.SAMPLING_PENALTY_REPEAT, NUMBER, ("penalty_repeat", "repetition_penalty")),
    Field("sampling_mirostat", GENERAL.SAMPLING_MIROSTAT, WHOLE, ("mirostat",)),
    Field("sampling_mirostat_tau", GENERAL.SAMPLING_MIROSTAT_TAU, NUMBER, ("mirostat_tau",)),
    Field("sampling_mirostat_eta", GENERAL.SAMPLING_MIROSTAT_ETA, NUMBER, ("mirostat_eta",)),
    Field("name", GENERAL.NAME),
    Field("author", GENERAL.AUTHOR),
    Field("version", GENERAL.VERSION),
    Field("organization", GENERAL.ORGANIZATION),
    Field("finetune", GENERAL.FINETUNE),
    Field("basename", GENERAL.BASENAME),
    Field("description", GENERAL.DESCRIPTION),
    Field("quantized_by", GENERAL.QUANTIZED_BY),
    Field("size_label", GENERAL.SIZE_LABEL),
    Field("license", GENERAL.LICENSE),
    Field("license_name", GENERAL.LICENSE_NAME),
    Field("license_link", GENERAL.LICENSE_LINK),
    Field("url", GENERAL.URL),
    Field("doi", GENERAL.DOI),
    Field("uuid", GENERAL.UUID),
    Field("repo_url", GENERAL.REPO_URL),
    Field("source_url", GENERAL.SOURCE_URL),
    Field("source_doi", GENERAL.SOURCE_DOI),
    Field("source_uuid", GENERAL.SOURCE_UUID),
    Field("source_repo_url", GENERAL.SOURCE_REPO_URL),
    Field("base_models", "general.base_models", ORIGINS),
    Field("datasets", "general.datasets", ORIGINS),
    Field("tags", GENERAL.TAGS, TEXTS),
    Field("languages", GENERAL.LANGUAGES, TEXTS),
)


def read_model_card(
    folder: Path, *, parameter_count: int, name: str | None = None, overrides: Path | None = None
) -> CardReading:
    """What is known about the model in this folder.

    Args:
        folder: The model folder; README.md, config.json and generation_config.json are read where present.
        parameter_count: Number of weights, for the size label ("15B"); 0 when there are none to count.
        name: Overrides the model's name.
        overrides: A JSON file or pipe of GGUF keys ("general.license": …) that win over everything but name,
            as the --metadata file of llama.cpp's converter; null leaves a key out.

    Raises:
        CheckpointError: generation_config.json is broken or holds what is no setting.
        ConversionError: name or overrides hold what cannot be written.
    """
    asked = {} if overrides is None else read_overrides(overrides)
    if name is not None:
        asked["name"] = usable_name(name, "--name")
    config = optional_object(folder / "config.json")
    generation = generation_settings(folder / GENERATION_FILE)
    card, warnings = read_card(folder / CARD_FILE)
    # A relative folder such as "." has no name of its own.
    folder_id = model_id(folder.resolve())
    readable_id = folder_id.encode(errors="replace").decode()
    if readable_id != folder_id:
        warnings.append(f"the folder's name is not UTF-8; where the model is named after it, it is {readable_id!r}")

    metadata = gguf.Metadata()
    # gguf-py lets what it found first stand, and takes names like the Hub's apart under this key only.
    for known, called in ((card, config.get("_name_or_path")), (None, readable_id)):
        named = {"_name_or_path": called} if isinstance(called, str) and called else None
        metadata = gguf.Metadata.apply_metadata_heuristic(metadata, known, named, None, parameter_count)
    metadata.name = metadata.name or readable_id or "model"
    if metadata.size_label is None and parameter_count:
        metadata.size_label = gguf.size_label(parameter_count, 0, 0, 0)
    fields = vars(metadata) | generation | asked
    return CardReading({field: value for field, value in fields.items() if value is not None}, tuple(warnings))


def optional_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file."""
    return read_json_object(path) if path.is_file() else {}


def model_id(folder: Path) -> str:
    """ORG/NAME for a snapshot in the Hub's cache, whose own name is a commit; the folder's name otherwise.

    >>> model_id(Path("hub/models--microsoft--phi-4/snapshots/187ef0342fff0eb3333be9f00389385e95ef0b61"))
    'microsoft/phi-4'
    """
    kind, *parts = folder.parent.parent.name.split("--")
    if folder.parent.name == "snapshots" and kind == "models" and all(parts) and len(parts) in (1, 2):
        return "/".join(parts)
    return folder.name


def usable_name(name: Any, where: str) -> str:
    """A general.name that the user asked for; raises ConversionError when it is empty or no text."""
    try:
        if one_text(name).strip():
            return one_text(name)
    except (TypeError, ValueError):  # refused below
        pass
    raise ConversionError(
        Problem(f"{GENERAL.NAME} is not usable", where, "a text in UTF-8 that is not empty", shortened(repr(name)))
    )


def generation_settings(path: Path) -> dict[str, Any]:
    """The recommended sampling, by gguf-py's field names; raises CheckpointError for what is no setting."""
    settings = optional_object(path)
    found = {}
    for field in FIELDS:
        given = ((name, settings[name]) for name in field.generation_names if settings.get(name) is not None)
        name, value = next(given, ("", None))
        if value is None:
            continue
        try:
            found[field.name] = field.kind.check(value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                Problem(
                    f"{field.key} is not usable",
                    where=f"{path}, {name}",
                    expected=field.kind.expected,
                    found=shortened(repr(value)),
                    next_step=f"mend or remove it; {GENERATION_FILE} only recommends how to sample",
                )
            ) from error
    return found


def read_overrides(path: Path) -> dict[str, Any]:
    """The keys of a --metadata file, by gguf-py's field names; None for what is to be left out.

    Raises:
        ConversionError: The file is no JSON object, or has a key or a value that a converter cannot write.
    """
    try:
        given = parse_json_object(read_at_most(path, MAX_JSON_BYTES), str(path))
    except CheckpointError as error:  # its advice is for files of a model
        mend = f'give --metadata a JSON file such as {{"{GENERAL.LICENSE}": "mit"}}'
        raise ConversionError(*(replace(problem, next_step=mend) for problem in error.problems)) from error
    by_key = {field.key: field for field in FIELDS}
    problems = []
    found = {}
    for key, value in given.items():
        if key not in by_key:
            close = difflib.get_close_matches(key[:100], by_key, n=1)
            expected = f"{close[0]}?" if close else f"a key of the model card, such as {GENERAL.LICENSE}"
            problems.append(Problem(f"no key that --metadata can set: {shortened(repr(key))}", str(path), expected))
            continue
        field = by_key[key]
        try:
            found[field.name] = None if value is None else field.kind.check(value)
        except (TypeError, ValueError):
            problem = Problem(f"{key} is not usable", str(path), field.kind.expected, shortened(repr(value)))
            problems.append(problem)
    if problems:
        raise ConversionError(*problems)
    if "name" in found:
        usable_name(found["name"], str(path))
    return found


def card_origins(value: Any) -> list[str | dict[str, str]]:
    """Base models or data sets in a card: one or several, by id or by fields."""
    items = value if isinstance(value, list) else [value]
    return [origin(item) if isinstance(item, dict) else one_text(item) for item in items]


def card_texts(value: Any) -> list[str]:
    """One text or a list of them."""
    return text_list(value if isinstance(value, list) else [value])


# The keys that gguf-py's apply_metadata_heuristic looks at; a card may hold anything else besides.
NAMED_KEYS = ("name", "author", "version", "organization", "description", "finetune", "basename", "size_label")
SOURCE_KEYS = ("url", "doi", "uuid", "repo_url")
CARD_TEXTS = (*NAMED_KEYS, *SOURCE_KEYS, "creator", "type")
CARD_KEYS: Mapping[str, Kind] = {
    **dict.fromkeys((*NAMED_KEYS, *SOURCE_KEYS, "license", "license_name", "license_link"), TEXT),
    **dict.fromkeys((f"model_{key}" for key in CARD_TEXTS), TEXT),
    **dict.fromkeys(("tags", "pipeline_tag", "language", "languages"), Kind("a text or a list of texts", card_texts)),
    **dict.fromkeys(
        ("base_model", "base_models", "base_model_sources", "dataset", "datasets", "dataset_sources"),
        Kind("an id such as microsoft/phi-4, or a list of them", card_origins),
    ),
}


def read_card(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The part of the front matter that gguf-py uses, and a warning for whatever had to be left out."""
    try:
        card = read_front_matter(path)
    except CheckpointError as error:
        problem = error.problems[0]
        reason = f"{problem.what}: {problem.found}" if problem.found else problem.what
        return {}, [
            f"the model card {path} is not used, so that the GGUF lacks its license, tags and languages ({reason})"
        ]
    found = {}
    warnings = []
    for key, kind in CARD_KEYS.items():
        value = card.get(key)
        if value == "" or key not in card:
            continue
        try:
            found[key] = None if value is None else kind.check(value)
        except (TypeError, ValueError):
            warnings.append(
                f"{key} in the model card {path} is left out: expected {kind.expected}, found {shortened(repr(value))}"
            )
    return found, warnings
