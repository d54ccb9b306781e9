"""The options that choose tensor types, shared by the commands that write weights, and their parsing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from phi4conv.cli.support import show_warnings

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType

F = TypeVar("F", bound=Callable[..., Any])

# Written out, because quant.mix_table takes too long to import for --help; the tests hold the two together.
MIX_NAMES = ("current", "pre-2026")


def type_options(otherwise: str) -> Callable[[F], F]:
    """The decorator that adds the options; otherwise ends the help of --type: what neither it nor a name chooses."""
    options = (
        click.option(
            "--type",
            "file_type",
            metavar="T",
            help="F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_L, Q3_K_M, Q3_K_S or Q2_K; or "
            "Q6_K_L, Q5_K_L, Q4_K_L or Q3_K_XL, which are Q6_K, Q5_K_M, Q4_K_M and Q3_K_L with token embedding and "
            f"output at Q8_0. Default: what OUT's name says (phi-4-Q4_K_M.gguf), {otherwise}",
        ),
        click.option(
            "--tensor-type",
            "overrides",
            metavar="REGEX=T",
            multiple=True,
            help="Another type for the tensors whose GGUF name matches; repeatable, the first match decides.",
        ),
        click.option("--pure", is_flag=True, help="No mix: one type for every matrix that no other option names."),
        click.option(
            "--mix",
            type=click.Choice(MIX_NAMES),
            default=MIX_NAMES[0],
            show_default=True,
            help="Which of llama.cpp's rules a mix such as Q4_K_M follows: today's, or the one before February 2026, "
            "which treats attn_qkv differently.",
        ),
        click.option("--token-embedding-type", metavar="T", help="Another type for token_embd.weight."),
        click.option("--output-tensor-type", metavar="T", help="Another type for output.weight."),
        click.option(
            "--imatrix",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="An importance matrix of this model, made by llama-imatrix (GGUF or .dat): K-quants lose less where "
            "it matters more.",
        ),
    )

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def chosen_types(
    out: Path,
    *,
    file_type: str | None,
    overrides: tuple[str, ...],
    token_embedding_type: str | None,
    output_tensor_type: str | None,
    pure: bool,
    mix: str,
    quiet: bool,
) -> dict[str, Any]:
    """What the options of type_options choose, by the field names of ConversionOptions.

    Raises:
        click.UsageError: A type is unknown.
    """
    return {
        "file_type": chosen_file_type(file_type, out, quiet=quiet),
        "overrides": tuple(parse_override(text) for text in overrides),
        "token_embedding": parse_type("--token-embedding-type", token_embedding_type),
        "output": parse_type("--output-tensor-type", output_tensor_type),
        "pure": pure,
        "mix": mix,
    }


def chosen_file_type(asked: str | None, out: Path, *, quiet: bool) -> str | None:
    """The file type from --type, else from OUT's name; None when neither says one."""
    from phi4conv.quant.mix import FILE_TYPES, file_type_in_name, file_type_name

    in_name = file_type_in_name(out.name)
    name = in_name if asked is None else file_type_name(asked)
    if name is None or name in FILE_TYPES:
        if in_name and name != in_name:
            show_warnings((f"{out.name} says {in_name}, but --type is {name}",), quiet=quiet)
        return name
    source = f"the name {out.name}" if asked is None else "--type"
    raise click.UsageError(f"{source} asks for {name or 'nothing'}; this version writes {', '.join(FILE_TYPES)}")


def parse_type(option: str, name: str | None) -> GGMLQuantizationType | None:
    """A tensor type by name, None for none."""
    from phi4conv.quant import CODECS

    if name is None:
        return None
    for qtype in CODECS:
        if qtype.name == name.upper():
            return qtype
    raise click.UsageError(f"{option}: no tensor type {name!r}; known are {', '.join(qtype.name for qtype in CODECS)}")


def parse_override(text: str) -> tuple[str, GGMLQuantizationType]:
    """REGEX=TYPE as a pair."""
    pattern, _, name = text.rpartition("=")
    qtype = parse_type("--tensor-type", name) if pattern else None
    if qtype is None:
        raise click.UsageError(f"--tensor-type {text!r}: expected REGEX=TYPE, such as ffn_down=F16")
    return pattern, qtype
