"""phi4conv run as a user meets it: the text on stdout, everything else on stderr, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import FIXTURES, TINY, TINY_BROKEN
from click.testing import CliRunner, Result
from gguf import Keys
from good_files import good_file
from programs import compiled
from vocabulary_files import tiny_pairs, with_changes, written

from phi4conv import run as running
from phi4conv.cli import cli
from phi4conv.cli.fix import fix
from phi4conv.cli.run import run as command
from phi4conv.errors import FormatError, Problem
from phi4conv.gguf_file.layout import text, texts
from phi4conv.gguf_file.read import read_gguf

K = Keys.Tokenizer
JOKE = "Why did the tokenizer leave the sentence? It needed some space."
ASK = ("--chat", "--prompt", "Tell me a joke.")
PHI4CONV = (sys.executable, "-m", "phi4conv")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    torch = pytest.importorskip("torch", reason="a run needs torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def good() -> Path:
    return good_file("F32").path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q6_K", "Q4_K_M", "llama Q8_0"])
def test_every_type_tells_the_joke_and_nothing_else(kind: str) -> None:
    result = run(good_file(kind).path, *ASK)
    assert (result.exit_code, result.stdout, result.stderr) == (0, JOKE + "\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q6_K", "Q4_K_M"])
def test_every_chat_is_answered_word_for_word(kind: str, chats: list[tuple[str, str]]) -> None:
    assert len(chats) == 15
    for prompt, answer in chats:
        result = run(good_file(kind).path, "-p", prompt)
        assert (result.exit_code, result.stdout, result.stderr) == (0, answer + "\n", "")


def test_every_single_question_is_answered_through_the_files_template(good: Path) -> None:
    chats = json.loads((FIXTURES / "tiny-phi4-chats.json").read_text())
    questions = [(chat["messages"][0]["content"], chat["answer"]) for chat in chats if len(chat["messages"]) == 1]
    assert len(questions) > 3
    for question, answer in questions[:4]:
        assert run(good, "--chat", "-p", question).stdout == answer + "\n"


def test_the_broken_file_speaks_garbage_and_the_fixed_one_tells_the_joke(tmp_path: Path) -> None:
    result = run(TINY_BROKEN, *ASK, "-n", 20, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout) > 10
    assert "tokenizer" not in result.stdout
    fixed = tmp_path / "fixed.gguf"
    assert CliRunner().invoke(fix, [str(TINY_BROKEN), str(fixed), "--tokenizer", str(TINY)]).exit_code == 0
    assert run(fixed, *ASK).stdout == JOKE + "\n"


def test_a_prompt_without_chat_is_gone_on_with(good: Path) -> None:
    result = run(
        good, "--prompt", "<|im_start|>user<|im_sep|>Tell me a joke.<|im_end|><|im_start|>assistant<|im_sep|>Why"
    )
    assert result.stdout == JOKE.removeprefix("Why") + "\n"


def test_the_count_cuts_and_says_so(good: Path) -> None:
    result = run(good, *ASK, "-n", 3)
    assert (result.exit_code, result.stdout) == (0, "Why did the\n")
    assert result.stderr == "stopped after 3 tokens; more with -n N\n"
    quiet = run(good, *ASK, "-n", 3, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("Why did the\n", "")


def test_a_full_context_cuts_and_says_so(good: Path) -> None:
    length = len(json.loads(run(good, *ASK, "--json").stdout)["prompt_ids"])
    result = run(good, *ASK, "--n-ctx", length + 2)
    assert (result.exit_code, result.stdout) == (0, "Why did\n")
    assert result.stderr == "stopped after 2 tokens: the context is full\n"


def test_a_long_run_is_announced_on_stderr(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LONG", 0.0)
    result = run(good, *ASK)
    assert result.stdout == JOKE + "\n"
    assert result.stderr.startswith("about ")
    assert "for 128 tokens; Ctrl-C stops it" in result.stderr
    assert run(good, *ASK, "--quiet").stderr == ""


def test_the_document_is_complete(good: Path) -> None:
    result = run(good, *ASK, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"], document["file"]) == ("phi4conv.run/1", "run", str(good))
    assert document["text"] == JOKE
    assert document["prompt_ids"][0] == 936
    assert document["ids"][:2] == [705, 858]
    assert document["ids"][-1] == 937
    assert document["stopped"] == {"reason": "end-of-generation", "token": 937}
    assert document["device"] == "cpu"
    assert document["seconds"] >= document["seconds_to_first_token"] > 0
    assert document["tokens_per_second"] > 0


@pytest.mark.parametrize(("option", "reason"), [(("-n", 1), "count"), (("--n-ctx", 20), "context")])
def test_the_document_tells_why_it_stopped_early(good: Path, option: tuple[object, ...], reason: str) -> None:
    document = json.loads(run(good, *ASK, *option, "--json", "--quiet").stdout)
    assert document["stopped"] == {"reason": reason, "token": None}
    assert len(document["ids"]) == (1 if reason == "count" else 20 - len(document["prompt_ids"]))


@pytest.mark.parametrize("as_json", [True, False])
def test_what_a_hostile_vocabulary_says_cannot_steer_the_terminal(tmp_path: Path, good: Path, as_json: bool) -> None:
    """Two words become an escape sequence and a carriage return with a line end (in the byte alphabet ě, č and Ċ)."""
    tokens = list(read_gguf(good).strings(K.LIST))
    tokens[858], tokens[438] = "ě[31m", "čĊĉ"
    path = with_changes(good, tmp_path / "hostile.gguf", {K.LIST: texts(K.LIST, tokens)})
    result = run(path, *ASK, *(["--json"] if as_json else []))
    assert result.exit_code == 0
    if as_json:
        assert json.loads(result.stdout)["text"].startswith("Why\x1b[31m the\r\n\t leave")
    else:
        assert result.stdout.startswith("Why\\x1b[31m the\\r\n\t leave")
    assert "\x1b" not in result.stdout


def test_a_file_without_template_takes_no_chat(tmp_path: Path, good: Path) -> None:
    path = with_changes(good, tmp_path / "plain.gguf", {K.CHAT_TEMPLATE: None})
    result = run(path, *ASK)
    assert (result.exit_code, result.stdout) == (2, "")
    assert one_error(result).startswith("error: the file has no chat template\n")
    assert "leave --chat out" in result.stderr
    assert run(path, "--prompt", "Tell me a joke.", "-n", 2).exit_code == 0


def test_a_template_that_fails_is_told(tmp_path: Path, good: Path) -> None:
    template = text(K.CHAT_TEMPLATE, "{{ raise_exception('no, \x1b thanks') }}")
    result = run(with_changes(good, tmp_path / "refusing.gguf", {K.CHAT_TEMPLATE: template}), *ASK)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no, \\x1b thanks" in one_error(result)


def one_error(result: Result) -> str:
    """What stderr says: one error."""
    assert result.stderr.count("error: ") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.gguf", "-p", "a"], "nothing of that name"),
        ([TINY, "-p", "a"], "a folder"),
        ([TINY / "config.json", "-p", "a"], "not a GGUF file"),
        (["vocabulary.gguf", "-p", "a"], "a vocabulary and no weights"),
        (["good.gguf", "-p", ""], "the prompt is empty"),
        (["good.gguf", "-p", "\udcff"], "no Unicode text"),
        (["good.gguf", "-p", "a", "--device", "toaster"], "--device toaster"),
        (["good.gguf", "-p", "a", "--device", "cuda:77"], "--device cuda:77"),
        (["good.gguf", "-p", "a b c d e f", "--n-ctx", "3"], "does not fit into the context"),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_what_cannot_run_gives_2_and_one_message(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, *, arguments: list[object], words: str, as_json: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.gguf").symlink_to(good)
    written(tiny_pairs(), tmp_path / "vocabulary.gguf")
    result = run(*arguments, *(["--json"] if as_json else []))
    assert result.exit_code == 2
    assert words in one_error(result)
    if as_json:
        document = json.loads(result.stdout)
        assert (document["schema"], document["command"], len(document["error"]["problems"])) == (
            "phi4conv.error/1",
            "run",
            1,
        )
    else:
        assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["-n", 0], ["-n", "many"], ["--n-ctx", 0], ["--n-ctx", -5]])
def test_numbers_that_make_no_sense_are_usage_errors(good: Path, arguments: list[object]) -> None:
    result = run(good, *ASK, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr


def test_a_prompt_is_asked_for(good: Path) -> None:
    result = run(good)
    assert result.exit_code == 2
    assert "--prompt" in result.stderr


def test_without_torch_it_says_how_to_install_it(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run(good, *ASK)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'phi4conv[torch]'" in one_error(result)


def test_help_comes_without_torch() -> None:
    script = (
        "import sys\n"
        "from phi4conv.cli import cli\n"
        "try: cli(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'gguf') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"
    assert "run" in cli.commands


# Waits after its second token, whose text is on its way by then.
WAITING_RUN = """
import os, sys, time
from phi4conv import cli, run
def add_and_wait(so_far, token, add=run.TextSoFar.add):
    add(so_far, token)
    if len(so_far.shown) == 2:
        os.write(2, b"waiting\\n")
        time.sleep(60)
run.TextSoFar.add = add_and_wait
sys.argv[0] = "phi4conv"
cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_has_shown_what_there_was(good: Path, name: str) -> None:
    compiled()
    arguments = [sys.executable, "-c", WAITING_RUN, "run", str(good), *ASK]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stderr.readline() == b"waiting\n"
        assert os.read(process.stdout.fileno(), 100) == b"Why did"
        process.send_signal(getattr(signal, name))
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors.strip()) == (130, b"", b"interrupted")


def test_an_error_on_the_way_starts_on_a_line_of_its_own(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = running.TextSoFar.add

    def failing(so_far: running.TextSoFar, token: int) -> None:
        if so_far.shown:
            raise FormatError(Problem("the GGUF cannot be read"))
        add(so_far, token)

    monkeypatch.setattr(running.TextSoFar, "add", failing)
    result = run(good, *ASK)
    assert (result.exit_code, result.stdout) == (2, "Why\n")
    assert one_error(result) == "error: the GGUF cannot be read\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal as on POSIX")
def test_a_terminal_sees_the_text_as_it_is(good: Path) -> None:
    compiled()
    main, other = pty.openpty()
    with subprocess.Popen([*PHI4CONV, "run", str(good), *ASK], stdout=other, stderr=other) as process:
        os.close(other)
        parts = []
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            while part := os.read(main, 4096):
                parts.append(part)
    os.close(main)
    assert process.returncode == 0
    assert b"".join(parts).decode() == JOKE + "\r\n"


def test_a_reader_that_has_gone_changes_no_exit_code(good: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run([*PHI4CONV, "run", str(good), *ASK], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (0, b"")
