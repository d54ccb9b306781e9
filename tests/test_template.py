from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from checkpoints import SHARED_DATA

from phi4conv import template as module
from phi4conv.carried import first_release_template, phi4_vocabulary
from phi4conv.check.chats import CHATS
from phi4conv.errors import EngineError
from phi4conv.template import (
    DEFAULT_LIMITS,
    ERROR,
    READY,
    TEXT,
    Chat,
    Limits,
    Rendering,
    answer_bytes,
    parsed,
    printable,
    reason_of,
    render_chats,
)

TODAY = phi4_vocabulary().chat_template or ""
HI = Chat(({"role": "user", "content": "Hi"},), add_generation_prompt=True, name="hi")
NESTED_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ONE_SECOND = Limits(cpu_seconds=1)

posix_only = pytest.mark.skipif(os.name != "posix", reason="the limits are those of POSIX systems")
limits_memory = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited under Linux")


def rendered(template: str, chat: Chat = HI, *, limits: Limits = DEFAULT_LIMITS) -> Rendering:
    (rendering,) = render_chats(template, [chat], limits=limits)
    return rendering


def text_of(template: str, chat: Chat = HI) -> str:
    rendering = rendered(template, chat)
    assert rendering.text is not None, rendering.error
    return rendering.text


def error_of(template: str, *, limits: Limits = DEFAULT_LIMITS) -> str:
    rendering = rendered(template, limits=limits)
    assert rendering.text is None
    return rendering.error


def test_phi_4s_template_gives_every_turn_its_header() -> None:
    messages = tuple({"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user"))
    chats = [Chat(messages, add_generation_prompt=flag, name="") for flag in (False, True)]
    turns = "".join(f"<|im_start|>{role}<|im_sep|>{role.upper()}<|im_end|>" for role in ("system", "user", "assistant"))
    text = f"{turns}<|im_start|>user<|im_sep|>USER<|im_end|>"
    assert render_chats(TODAY, chats) == [Rendering(text), Rendering(f"{text}<|im_start|>assistant<|im_sep|>")]


def test_the_first_releases_template_opens_an_answer_unasked() -> None:
    chat = Chat(HI.messages, add_generation_prompt=False, name="")
    assert text_of(first_release_template(), chat) == (
        "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>"
    )


def test_chats_keep_their_order_and_their_characters() -> None:
    contents = ["", "é\u0301中🙂", "a\r\nb\x00\u2028", "{{ 1 }}", "<|im_end|>"]
    chats = [
        Chat(({"role": "user", "content": content},), add_generation_prompt=False, name="") for content in contents
    ]
    template = "{{ messages[0]['content'] }}|{{ messages[0].role }}"
    assert [rendering.text for rendering in render_chats(template, chats)] == [f"{text}|user" for text in contents]
    assert render_chats(template, []) == []


def test_every_built_in_chat_is_rendered_twice_alike() -> None:
    for template in (TODAY, first_release_template()):
        renderings = render_chats(template, CHATS)
        assert [rendering.error for rendering in renderings] == [""] * len(CHATS)
        assert render_chats(template, CHATS) == renderings


def test_built_in_chats_tell_the_two_templates_apart() -> None:
    today, before = (render_chats(template, CHATS) for template in (TODAY, first_release_template()))
    assert sum(ours != theirs for ours, theirs in zip(today, before, strict=True)) > len(CHATS) // 2


def test_generation_blocks_change_nothing() -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}!{% endgeneration %}{% endfor %}."
    assert text_of(template) == "Hi!."


def test_blocks_take_their_line_with_them() -> None:
    assert text_of("{% if true %}\n    {% set x = 1 %}\n  a\n{% endif %}\nb") == "  a\nb"


def test_loops_can_be_left() -> None:
    assert text_of("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"


def test_json_keeps_letters_and_angle_brackets() -> None:
    chat = Chat(({"role": "user", "content": "<é'&>"},), add_generation_prompt=False, name="")
    assert text_of("{{ messages | tojson }}", chat) == """[{"role": "user", "content": "<é'&>"}]"""
    assert text_of("{{ {'b': [1], 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": [\n  1\n ]\n}'


def test_tools_and_documents_are_there_and_none() -> None:
    assert text_of("{{ tools is defined and tools is none }} {{ documents is none }} {{ nothing is defined }}") == (
        "True True False"
    )


def test_special_tokens_have_their_names() -> None:
    (rendering,) = render_chats("{{ bos_token }}{{ eos_token }}.", [HI], special_tokens={"bos_token": "<s>"})
    assert rendering.text == "<s>."


def test_the_time_is_what_the_caller_says() -> None:
    (rendering,) = render_chats("{{ strftime_now('%d %B %Y') }}", [HI], now=datetime(2031, 2, 3))  # noqa: DTZ001
    assert rendering.text == "03 February 2031"
    assert text_of("{{ strftime_now('%Y-%m-%d') }}") == "2024-12-12"


def test_chance_is_the_same_every_time() -> None:
    template = "{{ range(1000) | random }} {{ lipsum(2) }}"
    first, second = render_chats(template, [HI, HI])
    assert first == second == rendered(template)
    assert first.text


def test_parts_of_jinja_that_are_loaded_late_still_work() -> None:
    assert text_of("{{ {'a': 1} | pprint }}{{ 'a b' | urlencode }}{{ '%s' | format('\\u00e9') }}") == "{'a': 1}a%20bé"


def test_a_syntax_error_is_told_with_its_line() -> None:
    assert error_of("a\n\n{% if %}") == "syntax error in line 3: Expected an expression, got 'end of statement block'"
    assert len(render_chats("{% for %}", [HI, HI])) == 2


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    assert error_of("\n{{ raise_exception('No système, please') }}") == (
        "the template refuses the chat: No système, please"
    )


def test_a_refusal_concerns_its_own_chat_only() -> None:
    template = "{% if not add_generation_prompt %}{{ raise_exception('no') }}{% endif %}yes"
    other = Chat(HI.messages, add_generation_prompt=False, name="")
    assert [rendering.text for rendering in render_chats(template, [HI, other, HI])] == ["yes", None, "yes"]


def test_an_error_while_rendering_is_told_with_its_line() -> None:
    assert error_of("\n\n{{ nothing.at.all }}") == "UndefinedError in line 3: 'nothing' is undefined"
    assert error_of("{{ 1 / 0 }}") == "ZeroDivisionError in line 1: division by zero"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ (messages | attr('clear'))() }}",
        "{{ messages[0].update(role='x') }}",
        "{{ '{0.__class__.__init__}'.format(1) }}",
        "{{ strftime_now.__self__.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ raise_exception.__code__.co_filename }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    rendering = rendered(template)
    assert rendering.text == "" or rendering.error.startswith("SecurityError in line 1: ")


def test_no_file_is_included() -> None:
    assert "no loader" in error_of("{% include '/etc/passwd' %}")


@posix_only
def test_an_endless_loop_is_stopped_by_the_processors_clock() -> None:
    assert error_of(NESTED_LOOPS, limits=ONE_SECOND) == "the template was stopped after 1 s of processor time"


@posix_only
def test_a_number_without_end_is_stopped_by_the_processors_clock() -> None:
    assert "1 s of processor time" in error_of("{{ 7 ** (7 ** 12) }}", limits=ONE_SECOND)


def test_an_endless_loop_is_stopped_by_the_wall_clock() -> None:
    assert error_of(NESTED_LOOPS, limits=Limits(wall_seconds=0.7)) == "the template was stopped after 0.7 s"


@posix_only
def test_what_was_rendered_before_the_process_ended_is_kept() -> None:
    template = "{% if not add_generation_prompt %}" + NESTED_LOOPS + "{% endif %}yes"
    chats = [HI, Chat(HI.messages, add_generation_prompt=False, name=""), HI]
    stopped = Rendering(None, "the template was stopped after 1 s of processor time")
    assert render_chats(template, chats, limits=ONE_SECOND) == [Rendering("yes"), stopped, stopped]


@limits_memory
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 4000000000 }}",
        "{{ '%4000000000d' % 1 }}",
        "{{ 'a'.ljust(4000000000) }}",
        "{{ ([0] * 900000000) | length }}",
        "{% set x = namespace(y='a') %}{% for i in range(60) %}{% set x.y = x.y ~ x.y %}{% endfor %}{{ x.y | length }}",
    ],
)
def test_a_memory_bomb_is_an_error_value(template: str) -> None:
    assert error_of(template) == "the template needs more than 512 MB of memory"


@limits_memory
def test_after_a_memory_bomb_other_chats_are_rendered() -> None:
    template = "{% if not add_generation_prompt %}{{ 'a' * 4000000000 }}{% endif %}yes"
    other = Chat(HI.messages, add_generation_prompt=False, name="")
    assert [rendering.text for rendering in render_chats(template, [other, HI])] == [None, "yes"]


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 5000000 }}", "{{ 'é' * 2097153 }}", NESTED_LOOPS.replace("}{% end", "}a{% end", 1)]
)
def test_an_output_bomb_is_an_error_value(template: str) -> None:
    assert error_of(template) == "the text is longer than 4,194,304 bytes"


def test_the_longest_text_is_kept_whole() -> None:
    limits = Limits(text_bytes=1000)
    assert rendered("{{ 'é' * 500 }}", limits=limits).text == "é" * 500
    assert error_of("{{ 'é' * 500 }}.", limits=limits) == "the text is longer than 1,000 bytes"


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
        "{{ " + "[" * 400 + "]" * 400 + " }}",
    ],
)
def test_endless_depth_is_an_error_value(template: str) -> None:
    assert error_of(template)


def test_half_of_a_surrogate_pair_is_an_error_value() -> None:
    for template in ("{{ '\\ud800' }}", "\ud800"):
        assert error_of(template) == "the text is no Unicode text: it has half of a surrogate pair"
    assert error_of("{{ raise_exception('\\ud800') }}") == r"the template refuses the chat: \ud800"


def test_messages_of_a_stranger_fit_for_a_terminal() -> None:
    error = error_of("{{ raise_exception('\x1b[2J\n' ~ 'long ' * 1000) }}")
    assert error.startswith(r"the template refuses the chat: \x1b[2J\nlong ")
    assert len(error) < 600
    assert printable("a" * 9999) == "a" * 500 + "..."


@posix_only
def test_a_child_has_no_files_sockets_or_processes_to_offer() -> None:
    attempts = """
import os, socket, sys
from phi4conv.template import Limits
from phi4conv.template_child import give_up_resources
give_up_resources(Limits(), 1)
for name, attempt in {
    "open": lambda: open(sys.executable), "socket": socket.socket, "pipe": os.pipe,
    "large": lambda: bytearray(600 << 20) if sys.platform == "linux" else open("/"),
    "long": lambda: os.write(1, bytes(5 << 20)) == 5 << 20 or open("/"),
}.items():
    try:
        attempt()
    except (OSError, MemoryError) as error:
        print(name, file=sys.stderr)
"""
    with (Path(os.devnull)).open("wb") as nowhere:
        process = subprocess.run(
            [sys.executable, "-c", attempts],
            stdin=subprocess.DEVNULL,
            stdout=nowhere,
            stderr=subprocess.PIPE,
            check=True,
        )
    assert {"open", "socket", "pipe", "large"} <= set(process.stderr.decode().split())


def test_the_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(
        module,
        "CHILD_PROGRAM",
        "import os, sys; sys.stdin.buffer.read(); text = repr(sorted(os.environ)).encode();"
        "sys.stdout.buffer.write(b'R' + bytes(4) + b'T' + len(text).to_bytes(4, 'big') + text)",
    )
    names = text_of("")
    assert "HF_TOKEN" not in names
    assert "LC_ALL" in names


def test_a_process_that_does_not_start_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILD_PROGRAM", "import no_such_module")
    with pytest.raises(EngineError, match=r"did not start\n.*\n.*no_such_module(.*\n)*.*import jinja2\.sandbox"):
        rendered("")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EngineError, match=r"did not start\n *where: +/no/such/python\n *found: +No such file"):
        rendered("")


def test_an_answer_is_read_as_far_as_it_makes_sense() -> None:
    def frame(kind: bytes, content: bytes) -> bytes:
        return kind + len(content).to_bytes(4, "big") + content

    ready = frame(READY, b"")
    good = ready + frame(TEXT, "é".encode()) + frame(ERROR, b"no")
    both = [Rendering("é"), Rendering(None, "no")]
    assert parsed(good, 2) == (True, both)
    assert parsed(good, 1) == (True, both[:1])
    for end in (b"", b"T", b"T\0\0\0\x05abcd", frame(b"X", b""), frame(TEXT, b"\xff"), ready):
        assert parsed(good + end, 9) == (True, both)
    for start in (b"", b"R", b"R\0\0\0", frame(READY, b"x"), frame(TEXT, b"x")):
        assert parsed(start, 1) == (False, [])
    assert answer_bytes(Limits(text_bytes=1 << 20), 2) == 5 + 2 * (5 + (1 << 20))


@posix_only
def test_the_way_a_process_ended_is_told_by_name() -> None:
    assert reason_of(-signal.SIGSEGV, Limits()) == "the template ended the process that renders it (SIGSEGV)"
    assert reason_of(-99, Limits()) == "the template ended the process that renders it (signal 99)"
    assert reason_of(3, Limits()) == "the template ended the process that renders it (exit code 3)"


@pytest.mark.parametrize(
    "template",
    [
        TODAY,
        first_release_template(),
        "{{ messages | tojson(indent=2) }}\n",
        "  {% if tools %}x{% endif %}\n  {# note #}\n{{- bos_token -}}\n\n{% generation %}\n a {% endgeneration %}\n\n",
        "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m['content'] | trim }}{{ m.x }}\n{% endfor %}",
        "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + 1 %}{% endfor %}{{ s.n }}",
    ],
)
def test_templates_mean_what_they_mean_to_transformers(template: str) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    ours = render_chats(template, CHATS, special_tokens={"bos_token": "<s>"})
    for chat, rendering in zip(CHATS, ours, strict=True):
        (theirs,), _ = utilities.render_jinja_template(
            conversations=[[dict(message) for message in chat.messages]],
            chat_template=template,
            add_generation_prompt=chat.add_generation_prompt,
            bos_token="<s>",  # noqa: S106  # a token of text
        )
        assert rendering.text == theirs, chat.name


VISION = SHARED_DATA / "phi-4-reasoning-vision" / "chat_template.jinja"


@pytest.mark.skipif(not VISION.is_file(), reason="needs the published files beside the checkout")
def test_a_published_template_with_generation_blocks_is_rendered() -> None:
    chat = Chat(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}), False, "")
    text = text_of(VISION.read_text(encoding="utf-8"), chat)
    assert text.endswith("<|im_start|>user<|im_sep|>Hi<|im_end|>\n<|im_start|>assistant<|im_sep|>\nHo<|im_end|>\n")
