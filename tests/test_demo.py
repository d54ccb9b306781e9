"""The demonstration tells its story, and the README shows what it prints."""

from __future__ import annotations

import subprocess
import sys

import pytest
from checkpoints import REPOSITORY


@pytest.fixture(scope="module")
def story() -> list[str]:
    command = [sys.executable, str(REPOSITORY / "demo" / "story.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_right_file_tells_the_joke_the_broken_one_does_not_and_the_repaired_one_does_again(
    story: list[str],
) -> None:
    right, wrong, repaired = (line.partition("answered")[2].strip() for line in story if "answered" in line)
    assert right == "Why did the tokenizer leave the sentence? It needed some space."
    assert "Ġ" in wrong
    assert repaired == right


def test_the_readme_shows_what_it_prints(story: list[str]) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in story if line.startswith(("    asked", "    tokens", "    answered", "  27 tensors"))]
    assert len(shown) == 10
    assert [line for line in shown if line not in readme] == []
