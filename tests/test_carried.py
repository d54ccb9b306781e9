from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from checkpoints import SHARED_DATA
from gguf import TokenType
from jinja2 import Environment

from phi4conv import carried
from phi4conv.carried import PHI4_ROWS, first_release_template, phi4_vocabulary
from phi4conv.errors import FormatError
from phi4conv.hf.chat_template import read_chat_templates
from phi4conv.hf.json_file import read_json_object
from phi4conv.hf.tokenizer import read_vocabulary
from phi4conv.vocab import SpecialIds

PUBLISHED = pytest.mark.skipif(
    not (SHARED_DATA / "phi-4").is_dir(), reason="needs the published tokenizer files beside the checkout"
)
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Bye"}]


@pytest.fixture
def damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, Callable[[Path], object]], None]]:
    """Makes the package find a copy of its data in which one file was changed."""

    def forget() -> None:
        carried.phi4_vocabulary.cache_clear()
        carried.template.cache_clear()

    def copy_and_change(name: str, change: Callable[[Path], object]) -> None:
        shutil.copytree(Path(str(files("phi4conv"))) / "data", tmp_path / "data")
        change(tmp_path / "data" / name)
        monkeypatch.setattr(carried, "files", lambda _: tmp_path)
        forget()

    yield copy_and_change
    forget()


def rendered(template: str, *, add_generation_prompt: bool) -> str:
    compiled = Environment(autoescape=False).from_string(template)  # noqa: S701  # a prompt is no HTML
    return compiled.render(messages=CHAT, add_generation_prompt=add_generation_prompt)


def test_it_has_a_token_for_every_row_of_phi_4() -> None:
    phi4 = phi4_vocabulary()
    assert len(phi4) == PHI4_ROWS
    assert phi4.types == (TokenType.NORMAL,) * 100_256 + (TokenType.CONTROL,) * 96
    assert len(phi4.merges) == 100_000
    assert len(set(phi4.texts)) == PHI4_ROWS


def test_tokens_and_merges_are_those_of_the_published_model() -> None:
    # The figures that stand in carried.py, computed here without its help.
    phi4 = phi4_vocabulary()
    tokens = hashlib.sha256(b"".join(text.encode() + b"\0" for text in phi4.texts))
    merges = hashlib.sha256(b"".join(merge.encode() + b"\0" for merge in phi4.merges))
    assert tokens.hexdigest() == "62916ca5b5628762db2c869b1e1a5e32c7e304692ae37b2365fa862948d0fe54"
    assert merges.hexdigest() == "463a8a98983bfe6c750d19de658d7bb1b2313831d81d18e450de182d97d677b9"


def test_every_merge_makes_the_token_of_its_rank() -> None:
    phi4 = phi4_vocabulary()
    assert [merge.replace(" ", "") for merge in phi4.merges] == list(phi4.texts[256:100_256])


def test_special_tokens_have_the_roles_of_todays_release() -> None:
    phi4 = phi4_vocabulary()
    assert phi4.special == SpecialIds(bos=100257, eos=100265, eot=100265, pad=100349)
    assert phi4.texts[100257] == "<|endoftext|>"
    assert phi4.texts[100264:100267] == ("<|im_start|>", "<|im_end|>", "<|im_sep|>")
    assert phi4.texts[100349] == "<|dummy_85|>"
    assert (phi4.add_bos, phi4.add_eos, phi4.pre) == (False, False, "dbrx")


def test_todays_template_opens_an_assistant_turn_when_asked_to() -> None:
    template = phi4_vocabulary().chat_template
    assert template is not None
    turns = (
        "<|im_start|>user<|im_sep|>Hi<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Yes?<|im_end|>"
        "<|im_start|>user<|im_sep|>Bye<|im_end|>"
    )
    assert rendered(template, add_generation_prompt=False) == turns
    assert rendered(template, add_generation_prompt=True) == turns + "<|im_start|>assistant<|im_sep|>"


def test_the_first_template_opens_an_assistant_turn_after_every_user_turn() -> None:
    for add_generation_prompt in (False, True):
        assert rendered(first_release_template(), add_generation_prompt=add_generation_prompt) == (
            "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Yes?<|im_end|>"
            "<|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>"
        )


@PUBLISHED
def test_it_is_what_reading_the_published_folder_gives() -> None:
    ids = {"bos": 100257, "eos": 100265, "pad": 100349}
    reading = read_vocabulary(SHARED_DATA / "phi-4", ids)
    assert reading.warnings == ()
    assert reading.vocabulary == phi4_vocabulary()


@PUBLISHED
@pytest.mark.parametrize(
    ("release", "template"),
    [
        ("phi-4", lambda: phi4_vocabulary().chat_template),
        ("phi-4-original-release", first_release_template),
    ],
)
def test_templates_are_the_published_ones(release: str, template: Callable[[], str]) -> None:
    folder = SHARED_DATA / release
    published = read_chat_templates(folder, read_json_object(folder / "tokenizer_config.json"))
    assert template() == published.default


def test_it_is_loaded_once() -> None:
    assert phi4_vocabulary() is phi4_vocabulary()


def swap_parts_of_two_tokens(path: Path) -> None:
    planes = bytearray(zlib.decompress(path.read_bytes()))
    lowest = 2 * len(planes) // 3
    first, second = slice(lowest + 2000, lowest + 2002), slice(lowest + 2002, lowest + 2004)
    planes[first], planes[second] = planes[second], planes[first]
    path.write_bytes(zlib.compress(bytes(planes)))


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(zlib.compress(b"")),
        lambda path: path.write_bytes(zlib.compress(bytes(5))),
        lambda path: path.write_bytes(zlib.compress(bytes([1] * 6))),
        lambda path: path.write_bytes(zlib.compress(bytes(600_000))),
        swap_parts_of_two_tokens,
    ],
)
def test_a_damaged_vocabulary_is_an_error_that_says_so(
    damage: Callable[[str, Callable[[Path], object]], None], change: Callable[[Path], object]
) -> None:
    damage("phi4-vocabulary.zlib", change)
    with pytest.raises(FormatError, match=r"(?s)own copy of Phi-4's vocabulary is damaged.*install phi4conv again"):
        phi4_vocabulary()


@pytest.mark.parametrize("name", ["phi-4.jinja", "phi-4-first-release.jinja"])
@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes() + b"\n"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"user", b"User", 1)),
    ],
)
def test_a_damaged_template_is_an_error_that_says_so(
    damage: Callable[[str, Callable[[Path], object]], None], name: str, change: Callable[[Path], object]
) -> None:
    damage(name, change)
    with pytest.raises(FormatError, match="is damaged") as caught:
        phi4_vocabulary() if name == "phi-4.jinja" else first_release_template()
    assert caught.value.problems[0].where.endswith(name)
