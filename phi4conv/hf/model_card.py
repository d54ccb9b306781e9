"""What a model folder says about itself: README.md's front matter, generation_config.json, its name.

The rules by which a name becomes a basename, a version and an organization are gguf-py's, so that a file
of ours is labelled as llama.cpp's converter would label it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.json_file import read_json_object


def read_model_card(
    folder: Path, *, parameter_count: int, name: str | None = None, overrides: Path | None = None
) -> dict[str, Any]:
    """The fields of gguf.Metadata for this folder that have a value, by gguf-py's field names.

    Args:
        folder: The model folder; README.md, config.json and generation_config.json are read where present.
        parameter_count: Number of weights, for the size label ("15B"); 0 when there are none to count.
        name: Overrides the model's name.
        overrides: A JSON file of GGUF keys ("general.license": …) that win over everything but name, as
            the --metadata file of llama.cpp's converter.

    Raises:
        CheckpointError: A file is there but cannot be understood.
    """
    import gguf  # noqa: PLC0415  # with yaml and requests it is slow to load

    if overrides is not None:
        read_json_object(overrides)  # gguf-py would pass over a missing file without a word
    generation: dict[str, Any] = {}
    if (folder / "generation_config.json").is_file():
        generation = read_json_object(folder / "generation_config.json")
    # A relative folder such as "." has no name of its own, and the name may become general.name.
    folder = folder.resolve()
    try:
        metadata = gguf.Metadata.load(overrides, folder, name, parameter_count)
    except Exception as error:  # any YAML or attribute error, from text that people write by hand
        raise CheckpointError(
            Problem(
                "the model card cannot be read",
                where=str(folder / "README.md"),
                expected="YAML between two lines of ---",
                found=" ".join(str(error).split()),
                next_step="mend the front matter, or remove it",
            )
        ) from error
    if metadata.sampling_penalty_repeat is None:  # transformers' name, which gguf-py knows only since 0.20
        metadata.sampling_penalty_repeat = generation.get("repetition_penalty")
    if metadata.name is None:
        metadata.name = folder.name
    if metadata.size_label is None and parameter_count:
        metadata.size_label = gguf.size_label(parameter_count, 0, 0, 0)
    return {field: value for field, value in vars(metadata).items() if value is not None}
