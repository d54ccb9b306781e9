"""What both sides are asked: prompts in chat format, or windows of a text, as tokens that both sides agree on.

The source's side is rendered by the model folder's own chat template and read by its tokenizer, the file's side by
what the file carries (prompt_agreement.py). Where the two differ there is a finding, and the source's tokens are used,
so that the weights can be judged all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phi4conv.check.chats import user
from phi4conv.check.comparison import Sample, source_ids
from phi4conv.check.expectation import row_count
from phi4conv.check.mismatch import cut
from phi4conv.check.model import Finding
from phi4conv.errors import CheckpointError, FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.hf.chat_template import is_there
from phi4conv.hf.json_file import read_json_object
from phi4conv.hf.source import SourceTokenizer, read_source
from phi4conv.reference.file_prompt import require_prompt
from phi4conv.template import Chat, Rendering, render_chats
from phi4conv.verify.builtin_prompts import BUILT_IN
from phi4conv.verify.prompt_agreement import Agreement
from phi4conv.verify.prompt_text import TextTokens, read_text_tokens

# llama-perplexity's context.
DEFAULT_WINDOW = 512
DEFAULT_MAX_TOKENS = 8 * DEFAULT_WINDOW

# In the second half of a smaller one there is no token left to be predicted.
SMALLEST_WINDOW = 3

# What transformers hands to a template.
TEMPLATE_ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class PromptOptions:
    """What the user wants to be asked; without prompts and text the built-in conversations are.

    Attributes:
        prompts: Messages of a user, each put in chat format with the header of the answer behind it.
        text: A text that is read as it is, without chat format.
        window: Tokens to a window of the text, SMALLEST_WINDOW or more.
        max_tokens: How many tokens of the text are used at most, 1 or more; None for all.
    """

    prompts: tuple[str, ...] = ()
    text: Path | None = None
    window: int = DEFAULT_WINDOW
    max_tokens: int | None = DEFAULT_MAX_TOKENS


@dataclass(frozen=True)
class Window:
    """A sequence of one or more tokens that is read from its beginning, by itself.

    Attributes:
        name: For people; no two windows of a reading need have different ones.
        ids: The tokens.
        first_scored: The first position whose logits are compared: the middle, as in llama-perplexity.
        last_is_scored: Whether the logits of the last position are compared, though no token is known to follow it.
    """

    name: str
    ids: tuple[int, ...]
    first_scored: int
    last_is_scored: bool = True

    @property
    def scored(self) -> range:
        """The positions whose logits are compared; one or more."""
        return range(self.first_scored, len(self.ids) - (not self.last_is_scored))

    @property
    def targets(self) -> tuple[int | None, ...]:
        """The token that follows each of the scored positions; None behind the last token."""
        return (*self.ids[1:], None)[self.scored.start : self.scored.stop]


@dataclass(frozen=True)
class PromptReading:
    """Windows, and whether the file's own prompts and tokens are the same.

    Attributes:
        windows: What is to be run; the tokens are the source's. One or more.
        findings: Where the file makes other prompts or tokens, all with the id prompt_agreement.CHECK_ID.
        notes: What the user should know about the choice.
    """

    windows: tuple[Window, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def token_count(self) -> int:
        """The tokens of all windows."""
        return sum(len(window.ids) for window in self.windows)


def read_windows(folder: Path, file: GGUFFile, options: PromptOptions | None = None) -> PromptReading:
    """The tokens to run both sides on, made by the model folder and compared with what the file makes.

    Raises:
        ValueError: window or max_tokens is too small.
        Phi4ConvError: A prompt of the user's is empty or no Unicode text.
        FormatError: The user's text cannot be read, is empty or is not UTF-8; or the file has too few rows.
        CheckpointError: The folder has no tokenizer that phi4conv understands, or one with tokens that the model has
            no row for.
        EngineError: The process that renders chat templates does not start.
    """
    options = options or PromptOptions()
    require_sizes(options)
    for number, prompt in enumerate(options.prompts, 1):
        require_prompt(prompt, f"--prompt, number {number}")
    reading = read_source(folder)
    source = reading.source
    agreement = Agreement(file, source)
    windows: list[Window] = []
    notes = list(reading.warnings)
    if options.prompts or options.text is None:
        chats = asked_chats(options.prompts)
        windows += prompt_windows(chats, source, agreement, notes)
    if options.text is not None:
        text = read_text_tokens(options.text, source, options.window, options.max_tokens)
        agreement.compare_text(text.sample, text.ids, text.used)
        windows += text_windows(text, options.window)
        notes += text.notes
    require_rows(windows, source, folder, file)
    if agreement.known:
        names = ", ".join(f"{name} ({count:,})" for name, count in agreement.known.items())
        notes.append(
            f"some prompts become other tokens in llama.cpp than in Hugging Face's library, which is no fault of the "
            f"file: {names}"
        )
    return PromptReading(tuple(windows), tuple(agreement.findings), tuple(notes))


def require_sizes(options: PromptOptions) -> None:
    """Raise ValueError for a window, or a number of tokens, in which nothing could be scored."""
    if options.window < SMALLEST_WINDOW:
        raise ValueError(f"window is {options.window}, below {SMALLEST_WINDOW}")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise ValueError(f"max_tokens is {options.max_tokens}, below 1")


def asked_chats(prompts: Sequence[str]) -> tuple[Chat, ...]:
    """The user's prompts, or the built-in conversations where there are none."""
    own = tuple(Chat((user(prompt),), add_generation_prompt=True, name=cut(prompt)) for prompt in prompts)
    return own or BUILT_IN


def prompt_windows(
    chats: Sequence[Chat], source: SourceTokenizer, agreement: Agreement, notes: list[str]
) -> list[Window]:
    """A window for each chat, in the source's chat format where that works; what is to be said goes into notes."""
    renderings = render_by_source(source, chats)
    samples = [as_sample(chat, rendering) for chat, rendering in zip(chats, renderings, strict=True)]
    expected = source_ids(samples, source)
    notes += unformatted_notes(source, chats, renderings)
    agreement.compare_prompts(chats, renderings)
    agreement.compare_tokens(samples, expected)
    return [Window(sample.name, ids, len(ids) // 2) for sample, ids in zip(samples, expected, strict=True)]


def render_by_source(source: SourceTokenizer, chats: Sequence[Chat]) -> list[Rendering]:
    """What the model's own template makes of each chat; an empty text counts as none."""
    vocabulary = source.vocabulary
    if vocabulary.chat_template is None:
        return [Rendering(None)] * len(chats)
    present = vocabulary.special.present()
    texts = {f"{role}_token": vocabulary.texts[present[role]] for role in TEMPLATE_ROLES if role in present}
    renderings = render_chats(vocabulary.chat_template, chats, special_tokens=texts)
    return [one if one.text != "" else Rendering(None, "an empty text") for one in renderings]


def as_sample(chat: Chat, rendering: Rendering) -> Sample:
    """The prompt of a chat; without a rendering its bare messages, an empty line between two."""
    if rendering.text is not None:
        return Sample(chat.name, rendering.text)
    bare = "\n\n".join(message["content"] for message in chat.messages)
    return Sample(chat.name, bare, parse_special=False, add_special=True)


def unformatted_notes(source: SourceTokenizer, chats: Sequence[Chat], renderings: Sequence[Rendering]) -> Iterator[str]:
    """What is to be said of prompts without chat format."""
    failed = [(chat.name, one.error) for chat, one in zip(chats, renderings, strict=True) if one.text is None]
    if source.vocabulary.chat_template is None:
        yield "the model folder has no chat template: the prompts are given without chat format"
    elif failed:
        (name, error), count = failed[0], len(failed)
        yield (
            f"the model folder's chat template makes no prompt of {count:,} of {len(chats):,} conversations, which are "
            f"given without chat format; the first is {name}: {error}"
        )


def text_windows(text: TextTokens, window: int) -> list[Window]:
    """The windows of a text. As in llama-perplexity the last position of a whole one is not scored."""
    return [
        Window(
            f"{text.sample.name}, window {number} of {len(text.windows)}",
            ids,
            len(ids) // 2,
            last_is_scored=len(ids) < window,
        )
        for number, ids in enumerate(text.windows, 1)
    ]


def require_rows(windows: Sequence[Window], source: SourceTokenizer, folder: Path, file: GGUFFile) -> None:
    """Raise CheckpointError, or FormatError for the file, where a token has no row in the embedding."""
    highest = max(token for window in windows for token in window.ids)
    found = f"token {highest:,} ({source.vocabulary.texts[highest]!r})"
    path = folder / "config.json"
    rows = read_json_object(path).get("vocab_size") if is_there(path) else None
    if isinstance(rows, int) and highest >= rows:
        raise CheckpointError(
            Problem(
                "config.json and tokenizer.json disagree: the model has no row for a token that its tokenizer makes",
                where=f"{folder}: vocab_size of config.json",
                expected=f"more than {highest:,}",
                found=f"{rows:,}, and {found}",
                next_step="the two files are of different models, or one was edited: download the folder again",
            )
        )
    file_rows = row_count(file)
    if file_rows is not None and highest >= file_rows:
        raise FormatError(
            Problem(
                "the file has no row for a token that the model's tokenizer makes",
                where=f"{file.path}: token_embd.weight",
                expected=f"more than {highest:,} rows",
                found=f"{file_rows:,} rows, and {found}",
                next_step="hold the file against the model that it was made from, or convert that one again",
            )
        )
