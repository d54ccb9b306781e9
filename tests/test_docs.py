"""What the documents say of the code is true of the code."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

import click
import pytest
from checkpoints import REPOSITORY
from programs import script

from phi4conv.cli import cli
from phi4conv.quant.mix import FILE_TYPES

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_command_reference_is_current() -> None:
    made = script(REPOSITORY / "docs" / "make_commands.py").page()
    assert (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8") == made, "run docs/make_commands.py"


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: command.name)
def test_every_command_and_option_is_explained(command: click.Command) -> None:
    assert command.help
    assert f"phi4conv {command.name}" in README
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert any(f"`{name}" in README for name in parameter.opts), parameter.name


def test_every_link_of_the_documents_leads_somewhere() -> None:
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", FILE_TYPES)
def test_the_readme_lists_every_type(name: str) -> None:
    assert re.search(rf"\b{name}\b", README)


def test_the_readme_names_the_two_commands() -> None:
    assert "make demo" in README
    assert "make test" in README


def test_the_top_level_link_leads_to_the_codecs() -> None:
    assert (REPOSITORY / "quant").resolve() == REPOSITORY / "phi4conv" / "quant"


def test_the_changelog_knows_the_version() -> None:
    version = script(REPOSITORY / "phi4conv" / "__init__.py").__version__
    assert f"## {version}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_torch_is_pinned_for_development_and_optional_for_users() -> None:
    assert "torch==2.13.0" in (REPOSITORY / "requirements-dev.txt").read_text().splitlines()
    (needed,) = [line for line in importlib.metadata.requires("phi4conv") or () if line.startswith("torch")]
    assert "extra ==" in needed
