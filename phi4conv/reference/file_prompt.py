"""A prompt as tokens, by a file's own chat template and tokenizer, the way llama.cpp's programs make them.

    >>> without_bos("<s>Hello", "<s>"), without_bos("Hello", "<s>")
    ('Hello', 'Hello')

Left out: tools, documents, and the templates that a file may have beside its default one.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf.constants import Keys

from phi4conv.errors import FormatError, Phi4ConvError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.reference.llama_metadata import until_nul
from phi4conv.reference.tokenizer import FileTokenizer, file_tokenizer
from phi4conv.template import Chat, Rendering, render_chats

TEMPLATE = Keys.Tokenizer.CHAT_TEMPLATE

# What llama.cpp hands to a template (common_chat_template_direct_apply_impl in common/chat.cpp); transformers has more.
TEMPLATE_ROLES = ("bos", "eos")


def chat_ids(file: GGUFFile, prompt: str, tokenizer: FileTokenizer | None = None) -> tuple[int, ...]:
    """The tokens of a user's message in the file's chat format, with the header of the model's answer behind it.

    As in llama.cpp a BOS that both the template and the tokenizer would put there stands there once. tokenizer is the
    file's, for a caller that has it.

    Raises:
        Phi4ConvError: The prompt is empty or no Unicode text.
        FormatError: The file has no chat template, the template refuses the message, or llama.cpp would refuse the
            vocabulary or end on the text.
        EngineError: The process that renders templates does not start.
    """
    require_prompt(prompt)
    tokenizer = tokenizer or file_tokenizer(file)
    chat = Chat(({"role": "user", "content": prompt},), add_generation_prompt=True, name="the prompt")
    (rendering,) = render_by_file(file, tokenizer, (chat,))
    if rendering.text is None:
        raise FormatError(unrendered(file, rendering.error))
    text = rendering.text
    if tokenizer.vocab.add_bos:
        text = without_bos(text, special_texts(tokenizer).get("bos_token", ""))
    return required(tokenizer.encode(text, add_special=True), file)


def plain_ids(file: GGUFFile, prompt: str, tokenizer: FileTokenizer | None = None) -> tuple[int, ...]:
    """The tokens of a text as it is, special tokens in it read as such, with BOS and EOS where the file asks for them.

    tokenizer is the file's, for a caller that has it.

    Raises:
        Phi4ConvError: The prompt is empty or no Unicode text.
        FormatError: llama.cpp would refuse the vocabulary or end on the text.
    """
    require_prompt(prompt)
    return required((tokenizer or file_tokenizer(file)).encode(prompt, add_special=True), file)


def render_by_file(file: GGUFFile, tokenizer: FileTokenizer, chats: Sequence[Chat]) -> list[Rendering]:
    """What a file's own template makes of each chat; without a template every chat has the same error.

    Raises:
        EngineError: The process that renders templates does not start.
    """
    template = file.text(TEMPLATE)
    if not template:
        return [Rendering(None, "the file has no chat template")] * len(chats)
    return render_chats(until_nul(template), chats, special_tokens=special_texts(tokenizer))


def special_texts(tokenizer: FileTokenizer) -> dict[str, str]:
    """The texts of BOS and EOS under the names that templates have for them; those that the file has."""
    special = tokenizer.vocab.special
    return {
        f"{role}_token": tokenizer.pieces([special[role]])[0].decode("utf-8", "surrogateescape")
        for role in TEMPLATE_ROLES
        if role in special
    }


def without_bos(text: str, bos: str) -> str:
    """A prompt without the BOS that its template put ahead of it: the tokenizer adds one."""
    return text.removeprefix(bos)


def require_prompt(prompt: str, where: str = "--prompt") -> None:
    """Raise Phi4ConvError for a prompt that is no text."""
    if not prompt:
        raise Phi4ConvError(Problem("the prompt is empty", where, "a text", "nothing", "write what is to be asked"))
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        found = f"half of a character at place {error.start:,}"
        advice = "give it in UTF-8, as the terminal should"
        raise Phi4ConvError(Problem("the prompt is no Unicode text", where, "UTF-8", found, advice)) from error


def required(ids: Sequence[int], file: GGUFFile) -> tuple[int, ...]:
    """The tokens of a prompt; raises FormatError when there are none, as where the vocabulary has none of its bytes."""
    if ids:
        return tuple(ids)
    raise FormatError(
        Problem(
            "the prompt becomes no tokens",
            where=str(file.path),
            expected="one or more",
            found="none",
            next_step="`phi4conv verify-tokenizer` tells what is wrong with the file's tokenizer",
        )
    )


def unrendered(file: GGUFFile, error: str) -> Problem:
    """What to say where a file's template makes no prompt."""
    where = f"{file.path}: {TEMPLATE}"
    if not file.text(TEMPLATE):
        found = "no such key" if TEMPLATE not in file.metadata else "an empty one, or no text"
        advice = "leave --chat out to give the prompt as it is, or restore the template with `phi4conv fix`"
        return Problem("the file has no chat template", where, "a Jinja template", found, advice)
    advice = "`phi4conv verify-tokenizer` tells whether it is the model's own template"
    return Problem("the file's chat template makes no prompt of this message", where, "a text", error, advice)
