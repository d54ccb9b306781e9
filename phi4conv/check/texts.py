"""The texts that a tokenizer is tried on when nobody names others.

Each is there for something that splits or merges differently in some tokenizer: see the modules that they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from phi4conv.check.texts_characters import LONG_RUNS, NEWER_THAN_UNICODE_15_1, UNICODE, WHITE_SPACE
from phi4conv.check.texts_code import CODE
from phi4conv.check.texts_languages import LANGUAGES
from phi4conv.check.texts_prose import CHAT, CONTRACTIONS, NUMBERS, PUNCTUATION


class NamedText(NamedTuple):
    """A text under a name that says what is in it."""

    name: str
    text: str


GROUPS: Mapping[str, Mapping[str, str]] = {
    "chat": CHAT,
    "language": LANGUAGES,
    "code": CODE,
    "numbers": NUMBERS,
    "contractions": CONTRACTIONS,
    "punctuation": PUNCTUATION,
    "white space": WHITE_SPACE,
    "Unicode": UNICODE,
    "newer than Unicode 15.1": NEWER_THAN_UNICODE_15_1,
    "long run": LONG_RUNS,
}

TEXTS: tuple[NamedText, ...] = (
    NamedText("nothing", ""),
    *(NamedText(f"{group}: {name}", text) for group, texts in GROUPS.items() for name, text in texts.items()),
)

# Where a special token can stand. head and tail are its halves, other_case is the token with its case swapped.
SPECIAL_TOKEN_PLACES: Mapping[str, str] = {
    "alone": "{token}",
    "inside a word": "be{token}fore",
    "between words": "one {token} two",
    "in a chat": "{token}user\nHello!{token}\n{token}assistant\n",
    "doubled": "{token}{token}",
    "many times": "{token}{token}{token}a{token}{token}b{token}",
    "doubled with a space": "{token} {token}",
    "spaces around": "a  {token}  b",
    "a space before": " {token}",
    "a space behind": "{token} ",
    "line ends around": "a\n{token}\nb\n\n{token}\n\nc",
    "CRLF and tabs around": "a\r\n{token}\r\n\t{token}\tb",
    "rare white space around": "a\u00a0{token}\u3000b\u2028{token}\x0bc\x85{token}\u202fd",
    "characters without a shape around": "a\u200b{token}\ufeffb\u200d{token}\u0301c",
    "beside digits": "1{token}2 12{token}345",
    "beside punctuation": ".{token}, ({token}) '{token}' -{token}- /{token}/",
    "inside a contraction": "it'{token}s I{token}'ll",
    "beside other scripts": "中{token}文 é{token}é ж{token} {token}ب 🙂{token}🙂",
    "beside NUL": "\x00{token}\x00",
    "in code": 'print("{token}")  # {token}\nx = [\'{token}\', {{"{token}": 1}}]\n',
    "in markup": "<b>{token}</b> &lt;{token}&gt; [{token}](#{token})",
    "escaped": "\\{token} `{token}` {{{{{token}}}}} %{token}%",
    "broken by a space": "{head} {tail}",
    "broken by a line end": "{head}\n{tail}",
    "broken by a character without a shape": "{head}\u200b{tail}",
    "broken by itself": "{head}{token}{tail}",
    "its beginning": "{head}",
    "its end": "{tail}",
    "its beginning before it": "{head}{token}",
    "its end behind it": "{token}{tail}",
    "in another case": "{other_case}",
    "in another case beside it": "{other_case}{token}{other_case}",
}


def special_token_texts(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and text for each special token in each awkward place, then for the tokens side by side.

    texts are the tokens' own, in the order of their ids.
    """
    for token in texts:
        middle = len(token) // 2
        words = {"token": token, "head": token[:middle], "tail": token[middle:], "other_case": token.swapcase()}
        for place, pattern in SPECIAL_TOKEN_PLACES.items():
            yield f"{token}: {place}", pattern.format(**words)
    for before, behind in pairwise(texts):
        yield f"{before} before {behind}", f"{before}{behind}x{behind}{before}"
    for name, separator in {"nothing": "", "spaces": " ", "line ends": "\n", "words": "word"}.items():
        yield f"all special tokens with {name} between", separator.join(texts)
