"""Which tokens are special, what the tokenizer adds to a text by itself, and where a folder's files disagree on either.

Roles (bos, eos, pad ...) are named by text in tokenizer_config.json and special_tokens_map.json, and by id in
config.json. Whether bos and eos are added is found by trying: the flags in tokenizer_config.json may be wrong, and
transformers 5 ignores them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gguf import TokenType

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.json_file import listed, shortened
from phi4conv.vocab import SpecialIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_MAP_FILE = "special_tokens_map.json"

DOWNLOAD_TOKENIZER = "download tokenizer.json again, or save it again from a tokenizer that works"

# End-of-turn tokens of Phi-4, Phi-4-mini and Llama 3 style fine-tunes, in order of preference.
END_OF_TURN = ("<|im_end|>", "<|end|>", "<|eot_id|>")


def special_ids(
    ids: Mapping[str, int],
    types: Sequence[TokenType],
    sources: Mapping[str, Mapping[str, Any]],
    config_ids: Mapping[str, int | None],
    where: str,
) -> tuple[SpecialIds, list[str]]:
    """The special ids, and a warning for each name that cannot be resolved and each file that was not followed.

    Args:
        ids: Every token's id by its text.
        types: The type of every id.
        sources: JSON objects by file name; the first one that names a token counts.
        config_ids: The ids that config.json gives to roles ("bos", "eos", "pad"), for what no source names.
        where: The folder, for messages.

    Raises:
        CheckpointError: Nothing names an eos token.
    """
    warnings = []
    known = set(ids.values())
    found: dict[str, int] = {}
    for role in (field.name for field in fields(SpecialIds) if field.name != "eot"):
        candidates: dict[str, int] = {}
        for file, content in sources.items():
            text = token_text(content.get(f"{role}_token"))
            if text and text in ids:
                candidates[file] = ids[text]
            elif text:
                warnings.append(f"{file}: {role}_token {shortened(repr(text))} is not in the vocabulary")
        config_id = config_ids.get(role)
        if config_id in known:
            candidates["config.json"] = config_id
        elif config_id is not None:
            warnings.append(f"config.json: {role}_token_id {config_id} is not the id of a token")
        if candidates:
            chosen, found[role] = next(iter(candidates.items()))
            warnings += [
                f"{role} is token {found[role]} in {chosen}, which is used, but token {token_id} in {file}"
                for file, token_id in candidates.items()
                if token_id != found[role]
            ]
    if "eos" not in found:
        raise CheckpointError(
            Problem(
                "no end-of-text token: llama.cpp would take token 11, a comma",
                where,
                expected=f"eos_token in {CONFIG_FILE} or {SPECIAL_MAP_FILE}, or eos_token_id in config.json",
                next_step=f"add eos_token to {CONFIG_FILE}; Phi-4's is {END_OF_TURN[0]!r}",
            )
        )
    if "bos" not in found:
        found["bos"] = ids.get("<|endoftext|>", found["eos"])
        warnings.append(f"no file names a bos token: {found['bos']} is used, since llama.cpp would take 11, a comma")
    control = [ids[text] for text in END_OF_TURN if text in ids and types[ids[text]] == TokenType.CONTROL]
    # Always set: without it llama.cpp takes the first text of a list that it meets in an unordered map, and Phi-4
    # has two of them, <|im_end|> and <|endoftext|>.
    return SpecialIds(eot=control[0] if control else found["eos"], **found), warnings


def token_text(entry: Any) -> str | None:
    """The text of a token in a configuration file: a string, or an object with its content."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def added_ends(tokenizer: Tokenizer, special: SpecialIds, where: str) -> tuple[bool, bool]:
    """Whether the tokenizer itself puts bos before and eos behind a text, found by trying.

    Raises CheckpointError when it adds anything else, for which GGUF has no key.
    """
    if lost := undeclared_tokens(tokenizer):
        raise CheckpointError(
            Problem(
                "the post_processor adds tokens that it does not declare",
                where,
                expected="each under special_tokens of its TemplateProcessing",
                found=listed(lost),
                next_step=DOWNLOAD_TOKENIZER,
            )
        )
    text = "Hello world"
    with library_errors("the tokenizers library cannot tokenize with the file", where):
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text, add_special_tokens=True).ids
    for add_bos in (False, True):
        for add_eos in (False, True):
            if [special.bos] * add_bos + plain + [special.eos] * add_eos == whole:
                return add_bos, add_eos
    raise CheckpointError(
        Problem(
            "the post_processor adds tokens that GGUF cannot express",
            where,
            expected=f"nothing, bos {special.bos} in front or eos {special.eos} behind {plain}",
            found=str(whole),
            next_step="remove post_processor from tokenizer.json, or name its tokens as bos_token and eos_token",
        )
    )


def undeclared_tokens(tokenizer: Tokenizer) -> list[str]:
    """The tokens that a TemplateProcessing adds and does not declare.

    The library panics when it meets one, and its Rust code fills the terminal before the panic can be caught.
    """
    if tokenizer.post_processor is None:
        return []
    steps = [json.loads(tokenizer.post_processor.__getstate__())]
    lost = []
    while steps:
        step = steps.pop()
        steps += step.get("processors", [])
        added = [piece["SpecialToken"]["id"] for piece in step.get("single", []) if "SpecialToken" in piece]
        lost += [text for text in added if text not in step["special_tokens"]]
    return lost


@contextlib.contextmanager
def library_errors(what: str, where: str) -> Iterator[None]:
    """Turn whatever the tokenizers library raises inside into a CheckpointError that says what."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        # The library raises bare Exceptions. A panic of its Rust code is none, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(Problem(what, where, "", shortened(str(error)), DOWNLOAD_TOKENIZER)) from error


def flag_warnings(settings: Mapping[str, Any], behaviour: Mapping[str, bool]) -> Iterator[str]:
    """Where tokenizer_config.json says otherwise than the tokenizer does; transformers 5 ignores it, too."""
    for key, does in behaviour.items():
        says = settings.get(key)
        if isinstance(says, bool) and says != does:
            verb = "adds" if does else "does not add"
            yield f"{CONFIG_FILE} is wrong about {key}: the tokenizer {verb} the token, and the GGUF says so too"
