"""Fixtures that several test files use."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from checkpoints import FIXTURES, TINY
from disks import mounted
from jinja2 import Environment

# A new seed for tests/quant/test_against_ggml.py, the same in every process of this run: it is part of test names.
os.environ.setdefault("GGML_SEED", str(secrets.randbits(32)))

# A machine at work on other things, or a first compilation, is no failure.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def chats() -> list[tuple[str, str]]:
    """Prompt, in the tiny checkpoint's own chat template, and the answer it was trained on."""
    source = json.loads((TINY / "tokenizer_config.json").read_text())["chat_template"]
    template = Environment(autoescape=False).from_string(source)  # noqa: S701  # a prompt is no HTML
    chats = json.loads((FIXTURES / "tiny-phi4-chats.json").read_text())
    return [(template.render(messages=chat["messages"], add_generation_prompt=True), chat["answer"]) for chat in chats]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB of our own; needs root."""
    yield from mounted(tmp_path / "mount")
