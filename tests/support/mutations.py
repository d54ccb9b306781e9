"""Good Phi-4 vocabularies with exactly one thing wrong, and the one defect that the checks have to name for it.

A mutation knows tokens by their texts and places, never by Phi-4's ids, so that it fits the tiny vocabulary and the
full one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from gguf import GGUFValueType, Keys, TokenType
from one_change import (
    ABORTS,
    LOADS,
    REFUSED,
    RIGHT,
    UNKNOWN_HERE,
    Mutation,
    all_specials,
    beyond,
    drop,
    exchanged,
    first_special,
    put,
    raw,
    raw_bytes,
    replaced,
    stored,
    told_by,
    with_merges,
    with_rows,
    with_template,
    with_tokens,
    with_types,
)
from vocabulary_changes import NAME, SCORES, SPECIALS, respelled, retyped, tokens_of, without
from vocabulary_files import changed

from phi4conv.carried import first_release_template
from phi4conv.check.model import Severity
from phi4conv.gguf_file.layout import MetadataPair, boolean, f32s, i32, i32s, text, u32, u64
from phi4conv.vocab import byte_alphabet

K = Keys.Tokenizer
WINDOW = "phi3.attention.sliding_window"
WARN = Severity.WARN

BEGIN, START, END, SEPARATOR = SPECIALS[0], SPECIALS[1], SPECIALS[2], SPECIALS[3]
MINUS_ONE = 2**32 - 1
WRONG_TYPE = ("tokenizer/value-types", "wrong-type")

# Places in the middle of a list, of the tiny vocabulary's and of the full one's.
MERGE, TOKEN = 300, 500


def split_regex() -> Iterator[Mutation]:
    """tokenizer.ggml.pre."""
    check = "tokenizer/pre"
    yield Mutation("pre missing", drop(K.PRE), (check, "missing"))
    yield Mutation("pre empty", put(text(K.PRE, "")), (check, "empty"))
    yield Mutation("pre default", put(text(K.PRE, "default")), (check, "default"))
    for name in ("gpt-2", "phi-2", "qwen2", "gpt-4o"):
        yield Mutation(f"pre {name}", put(text(K.PRE, name)), (check, "wrong"))
    for name in ("starcoder", "falcon", "command-r"):
        yield Mutation(f"pre {name}", put(text(K.PRE, name)), (check, "wrong"), llama_cpp=UNKNOWN_HERE)
    for name in ("phi-4", "DBRX", "cl100k_base"):
        yield Mutation(f"pre {name}", put(text(K.PRE, name)), (check, "unknown"), llama_cpp=REFUSED)
    yield Mutation("pre a number", put(u32(K.PRE, 7)), WRONG_TYPE, llama_cpp=REFUSED)
    yield Mutation("pre smaug-bpe", put(text(K.PRE, "smaug-bpe")), None)
    yield Mutation("pre llama-bpe", put(text(K.PRE, "llama-bpe")), None)
    yield Mutation(
        "pre llama-bpe, which adds bos",
        lambda good: without(changed(good, text(K.PRE, "llama-bpe")), K.ADD_BOS),
        ("tokenizer/add-bos", "added"),
        mended=RIGHT,
    )


def merge_lists() -> Iterator[Mutation]:
    """tokenizer.ggml.merges."""

    def named(name: str, code: str, change: Callable[[list[str]], Sequence[str]]) -> Mutation:
        return Mutation(name, with_merges(change), ("tokenizer/merges", code))

    yield Mutation("merges missing", drop(K.MERGES), ("tokenizer/merges", "missing"), llama_cpp=REFUSED)
    yield named("merges empty", "missing", lambda _: [])
    yield named("last merge dropped", "dropped", lambda merges: merges[:-1])
    yield named("first merge dropped", "dropped", lambda merges: merges[1:])
    yield named("a merge from the middle dropped", "dropped", lambda merges: merges[:MERGE] + merges[MERGE + 1 :])
    yield named("half of the merges dropped", "dropped", lambda merges: merges[: len(merges) // 2])
    yield named("two adjacent merges swapped", "swapped", lambda merges: exchanged(merges, MERGE, MERGE + 1))
    yield named("first and last merge swapped", "swapped", lambda merges: exchanged(merges, 0, -1))
    yield named("merges in reverse", "reordered", lambda merges: merges[::-1])
    yield named("merges in alphabetical order", "reordered", sorted)
    yield named(
        "a merge without its space", "malformed", lambda merges: replaced(merges, 5, merges[5].replace(" ", ""))
    )
    yield named("a merge of three parts", "malformed", lambda merges: replaced(merges, MERGE, "a b c"))
    yield named("a merge twice", "duplicate", lambda merges: [*merges[:20], merges[10], *merges[20:]])
    yield named("a merge in the place of another", "duplicate", lambda merges: replaced(merges, 20, merges[10]))
    yield named("a merge cut elsewhere", "different", cut_elsewhere)
    yield named("one merge too many", "different", lambda merges: [*merges, "Ġ zq"])
    yield named("merges of another vocabulary", "different", other_merges)
    yield Mutation(
        "merges numbers",
        lambda good: changed(good, i32s(K.MERGES, range(len(good[K.MERGES].value)))),
        WRONG_TYPE,
        llama_cpp=REFUSED,
    )


def cut_elsewhere(merges: list[str]) -> list[str]:
    """The merges with the last one that has room for it cut at another place."""
    place = max(rank for rank, merge in enumerate(merges) if len(merge.partition(" ")[0]) > 1)
    left, _, right = merges[place].partition(" ")
    return replaced(merges, place, f"{left[:-1]} {left[-1]}{right}")


def other_merges(merges: list[str]) -> list[str]:
    """Merges of two bytes each, as many as there are, up to all."""
    alphabet = byte_alphabet()
    return [f"{one} {other}" for one in alphabet for other in alphabet][-len(merges) :]


def token_lists() -> Iterator[Mutation]:
    """tokenizer.ggml.tokens."""

    def named(name: str, code: str, change: Callable[[list[str]], Sequence[str]], llama_cpp: str = LOADS) -> Mutation:
        return Mutation(name, with_tokens(change), ("tokenizer/tokens", code), llama_cpp=llama_cpp)

    yield Mutation("tokens missing", drop(K.LIST), ("tokenizer/tokens", "missing"), llama_cpp=REFUSED)
    yield Mutation(
        "tokens numbers",
        lambda good: changed(good, i32s(K.LIST, range(len(tokens_of(good))))),
        WRONG_TYPE,
        llama_cpp=REFUSED,
    )
    yield named("a token twice", "duplicate", lambda tokens: replaced(tokens, TOKEN, tokens[400]), ABORTS)
    yield Mutation(
        "tokens as raw text",
        lambda good: respelled(good, dict(enumerate(map(raw, tokens_of(good)[: first_special(good)])))),
        ("tokenizer/tokens", "raw-text"),
        llama_cpp=ABORTS,
    )
    yield Mutation(
        "tokens as raw bytes",
        lambda good: respelled(
            good,
            {
                token_id: raw_bytes(token).decode("utf-8", "surrogateescape")
                for token_id, token in enumerate(tokens_of(good)[: first_special(good)])
            },
        ),
        ("tokenizer/tokens", "raw-text"),
    )
    yield named("two tokens swapped", "swapped", lambda tokens: exchanged(tokens, TOKEN, TOKEN + 1))
    yield Mutation(
        "two special tokens swapped",
        lambda good: respelled(good, {tokens_of(good).index(START): END, tokens_of(good).index(END): START}),
        ("tokenizer/tokens", "swapped"),
    )
    yield named("a token's text changed", "different", lambda tokens: replaced(tokens, TOKEN, "ĠnoĠsuchĠtoken"))
    yield named("a byte's token renamed", "different", lambda tokens: replaced(tokens, tokens.index("z"), "<0x7A>"))
    yield Mutation(
        "a special token renamed",
        lambda good: respelled(good, {SEPARATOR: "<|sep|>"}),
        ("tokenizer/tokens", "different"),
    )
    yield named("an empty token", "different", lambda tokens: replaced(tokens, TOKEN, ""))
    yield named("tokens shifted up", "shifted", lambda tokens: ["<unk>", *tokens[:-1]])
    yield named("tokens shifted down", "shifted", lambda tokens: [*tokens[1:], "<unk>"])
    yield named("tokens in reverse", "reordered", lambda tokens: tokens[::-1])
    yield Mutation(
        "a token and its type dropped",
        with_rows(lambda rows: [*rows[:TOKEN], *rows[TOKEN + 1 :]]),
        ("tokenizer/tokens", "count"),
    )
    yield named("a token dropped", "count", lambda tokens: [*tokens[:TOKEN], *tokens[TOKEN + 1 :]])
    yield Mutation(
        "a token and its type added",
        with_rows(lambda rows: [*rows, ("<|mine|>", int(TokenType.CONTROL))]),
        ("tokenizer/tokens", "count"),
    )
    yield named("a token added", "count", lambda tokens: [*tokens, "<|mine|>"], REFUSED)
    yield named("half of the tokens dropped", "count", lambda tokens: tokens[: len(tokens) // 2])


def type_lists() -> Iterator[Mutation]:
    """tokenizer.ggml.token_type."""
    check = "tokenizer/token-types"

    def single(token: str, kind: TokenType, code: str) -> Mutation:
        return Mutation(f"{token} typed {kind.name}", lambda good: retyped(good, {token: kind}), (check, code))

    yield Mutation("types missing", drop(K.TOKEN_TYPE), (check, "missing"))
    yield Mutation("types empty", with_types(lambda _: []), (check, "missing"), llama_cpp=REFUSED)
    yield Mutation("types one short", with_types(lambda types: types[:-1]), (check, "short"), llama_cpp=REFUSED)
    yield Mutation("types one too many", with_types(lambda types: [*types, 1]), (check, "long"))
    yield Mutation(
        "types unsigned",
        lambda good: changed(
            good,
            MetadataPair(K.TOKEN_TYPE, GGUFValueType.ARRAY, tuple(good[K.TOKEN_TYPE].value), GGUFValueType.UINT32),
        ),
        WRONG_TYPE,
        llama_cpp=REFUSED,
    )
    yield Mutation("specials typed NORMAL", all_specials(TokenType.NORMAL), (check, "special-as-normal"))
    yield Mutation("specials typed UNUSED", all_specials(TokenType.UNUSED), (check, "special-as-unused"))
    yield Mutation(
        "specials typed USER_DEFINED", all_specials(TokenType.USER_DEFINED), (check, "special-as-user-defined")
    )
    for token in (START, END, SEPARATOR):
        yield single(token, TokenType.NORMAL, "special-as-normal")
        yield single(token, TokenType.UNUSED, "special-as-unused")
        yield single(token, TokenType.USER_DEFINED, "special-as-user-defined")
    yield Mutation(
        "specials of several types",
        lambda good: retyped(good, {START: TokenType.NORMAL, SEPARATOR: TokenType.UNUSED}),
        (check, "different"),
    )
    yield Mutation(
        "a word typed CONTROL", lambda good: retyped(good, {TOKEN: TokenType.CONTROL}), (check, "normal-as-special")
    )
    yield Mutation(
        "a word typed USER_DEFINED", lambda good: retyped(good, {TOKEN: TokenType.USER_DEFINED}), (check, "different")
    )
    yield Mutation("a word typed UNUSED", lambda good: retyped(good, {TOKEN: TokenType.UNUSED}), (check, "different"))
    yield Mutation("a word of no known type", lambda good: retyped(good, {TOKEN: 77}), (check, "different"))
    yield Mutation(
        "a byte typed BYTE", lambda good: retyped(good, {"z": TokenType.BYTE}), (check, "different"), llama_cpp=REFUSED
    )
    yield Mutation(
        "all tokens CONTROL",
        with_types(lambda types: [int(TokenType.CONTROL)] * len(types)),
        (check, "normal-as-special"),
    )


def kinds() -> Iterator[Mutation]:
    """tokenizer.ggml.model, and what a SentencePiece vocabulary has besides."""
    check = "tokenizer/model"
    yield Mutation("model missing", drop(K.MODEL), (check, "missing"), llama_cpp=REFUSED)
    yield Mutation("model llama", put(text(K.MODEL, "llama")), (check, "wrong"))
    yield Mutation("model bert", put(text(K.MODEL, "bert")), (check, "wrong"), llama_cpp=UNKNOWN_HERE)
    yield Mutation("model gpt4", put(text(K.MODEL, "gpt4")), (check, "wrong"), llama_cpp=REFUSED)
    yield Mutation("model GPT2", put(text(K.MODEL, "GPT2")), (check, "wrong"), llama_cpp=REFUSED)
    yield Mutation("model a number", put(u32(K.MODEL, 2)), WRONG_TYPE, llama_cpp=REFUSED)
    yield Mutation("scores left over", lambda good: changed(good, f32s(SCORES, [0.0] * len(tokens_of(good)))), None)
    yield Mutation(
        "scores one short",
        lambda good: changed(good, f32s(SCORES, [0.0] * (len(tokens_of(good)) - 1))),
        ("tokenizer/scores", "short"),
        llama_cpp=REFUSED,
    )


ROLE_KEYS: Mapping[str, str] = {"bos": K.BOS_ID, "eos": K.EOS_ID, "eot": K.EOT_ID, "pad": K.PAD_ID}
ROLE_TOKENS: Mapping[str, str] = {"bos": BEGIN, "eos": END, "eot": END, "pad": "<|dummy_85|>"}


def special_ids() -> Iterator[Mutation]:
    """The ids of tokens with a role."""
    for role, key in ROLE_KEYS.items():
        check = f"tokenizer/{role}-id"
        yield Mutation(f"{role} a word", put(u32(key, TOKEN)), (check, "wrong"))
        yield Mutation(f"{role} one too high", told_by(key, ROLE_TOKENS[role], 1), (check, "wrong"))
        yield Mutation(f"{role} one too low", told_by(key, ROLE_TOKENS[role], -1), (check, "wrong"))
        yield Mutation(f"{role} out of range", beyond(key), (check, "out-of-range"))
        yield Mutation(f"{role} -1", put(u32(key, MINUS_ONE)), (check, "out-of-range"))
        for kind, as_pair in (
            ("INT32", i32),
            ("UINT64", u64),
            ("a string", lambda key, value: text(key, str(value))),
            ("a list", lambda key, value: i32s(key, [value])),
        ):
            yield Mutation(
                f"{role} stored as {kind}",
                stored(key, as_pair),
                WRONG_TYPE,
                llama_cpp=REFUSED,
            )
    for role in ("bos", "eos"):
        yield Mutation(f"{role} missing", drop(ROLE_KEYS[role]), (f"tokenizer/{role}-id", "missing"))
    yield Mutation("eot missing", drop(K.EOT_ID), None)
    yield Mutation("pad missing", drop(K.PAD_ID), ("tokenizer/pad-id", "missing"), WARN)
    yield Mutation("eos of the first release", told_by(K.EOS_ID, BEGIN), ("tokenizer/eos-id", "first-release"))
    yield Mutation("eot of the first release", told_by(K.EOT_ID, BEGIN), ("tokenizer/eot-id", "first-release"))
    yield Mutation("pad of the first release", told_by(K.PAD_ID, BEGIN), ("tokenizer/pad-id", "first-release"))
    for role, key in (("unk", K.UNK_ID), ("sep", K.SEP_ID), ("mask", K.MASK_ID)):
        check = f"tokenizer/{role}-id"
        yield Mutation(f"{role} where there is none", told_by(key, BEGIN), (check, "unexpected"), WARN)
        yield Mutation(f"{role} out of range", beyond(key), (check, "unexpected"), WARN)
    for role, key in (("eom", K.EOM_ID), ("fim_pre", K.FIM_PRE_ID), ("fim_rep", K.FIM_REP_ID)):
        yield Mutation(f"{role} out of range", beyond(key), ("tokenizer/other-role-ids", "out-of-range"), WARN)
    yield Mutation("eom a comma", put(u32(K.EOM_ID, 11)), ("tokenizer/end-of-generation", "extra"))
    yield Mutation("eom stored as INT32", put(i32(K.EOM_ID, 11)), WRONG_TYPE, llama_cpp=REFUSED)


def flags() -> Iterator[Mutation]:
    """What is put around a text."""
    for role, key in (("bos", K.ADD_BOS), ("eos", K.ADD_EOS)):
        yield Mutation(f"add_{role} true", put(boolean(key, value=True)), (f"tokenizer/add-{role}", "added"))
        yield Mutation(f"add_{role} missing", drop(key), None)
        yield Mutation(f"add_{role} a number", put(u32(key, 0)), WRONG_TYPE, llama_cpp=REFUSED)


def names_and_windows() -> Iterator[Mutation]:
    """general.name and the attention window."""
    for name in ("Phi-3", "phi3", "my-PHI-3-tune", "Phi3 Medium", "not pHi-3"):
        yield Mutation(
            f"called {name}", put(text(NAME, name)), ("general/name", "phi-3-in-name"), llama_cpp=REFUSED, mended=RIGHT
        )
    yield Mutation("called Phi 3", put(text(NAME, "Phi 3")), None)
    yield Mutation("name a number", put(u32(NAME, 3)), WRONG_TYPE, llama_cpp=REFUSED, mended=RIGHT)
    check = "phi3/sliding-window"
    yield Mutation("no sliding window", drop(WINDOW), (check, "missing"))
    yield Mutation("sliding window of Phi-3", put(u32(WINDOW, 2047)), (check, "wrong"))
    yield Mutation(
        "sliding window as large as the vocabulary",
        lambda good: changed(good, u32(WINDOW, len(tokens_of(good)))),
        (check, "wrong"),
    )
    yield Mutation("sliding window stored as INT32", put(i32(WINDOW, 0)), (check, "wrong-type"))


def templates() -> Iterator[Mutation]:
    """tokenizer.chat_template."""
    check = "tokenizer/chat-template"

    def named(name: str, code: str, change: Callable[[str], str]) -> Mutation:
        return Mutation(name, with_template(change), (check, code))

    yield Mutation("template missing", drop(K.CHAT_TEMPLATE), (check, "missing"))
    yield named("template empty", "missing", lambda _: "")
    yield Mutation("template a number", put(u32(K.CHAT_TEMPLATE, 1)), (check, "no-text"))
    yield named("template changed at its start", "different", lambda template: f" {template}")
    yield named("template changed in the middle", "different", lambda template: template.replace("'user'", "'User'", 1))
    yield named("template with a line end for the separator", "different", separated_by_line_ends)
    yield named("template changed at its end", "different", lambda template: f"{template}.")
    yield named("template with a trailing line end", "different", lambda template: f"{template}\n")
    yield named("template of the first release", "first-release", lambda _: first_release_template())
    yield named(
        "template without generation prompt",
        "no-generation-prompt",
        lambda template: template.partition("{% if add_generation_prompt %}")[0],
    )
    yield named("template that is no Jinja", "different", lambda template: template.replace("{% endif %}", ""))
    yield named(
        "template that never ends",
        "different",
        lambda template: "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + template,
    )
    yield named("ChatML's template", "different", lambda template: template.replace("<|im_sep|>", "\\n"))


def separated_by_line_ends(template: str) -> str:
    """The template with its last separator replaced."""
    before, _, behind = template.rpartition("<|im_sep|>")
    return f"{before}\\n{behind}"


MUTATIONS: Mapping[str, Mutation] = {
    mutation.name: mutation
    for family in (
        split_regex,
        merge_lists,
        token_lists,
        type_lists,
        kinds,
        special_ids,
        flags,
        names_and_windows,
        templates,
    )
    for mutation in family()
}
