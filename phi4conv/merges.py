"""Merges derived from the order of the tokens alone.

In a vocabulary that was trained as BPE and numbered as it was trained, ids 0 to 255 are the bytes and merge i makes
token 256 + i. Which two tokens that merge joins then need not be stored: BPE with all earlier merges cuts the token's
text into exactly those two. cl100k_base (Phi-4) and o200k_base (Phi-4-mini) are such vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguf import TokenType

from phi4conv.vocab import byte_alphabet

BYTES = 256

# In characters, each one byte. Phi-4's longest token has 128. The work grows with the square of a token's length, so
# a file made to waste time is given up on.
LONGEST_TOKEN = 1024


def derive_merges(texts: Sequence[str], types: Sequence[int]) -> tuple[str, ...] | None:
    """The merges as "a b" in rank order, or None where the tokens do not follow from merges in id order.

    Args:
        texts: Every token in id order, spelled in byte characters (vocab.byte_alphabet).
        types: gguf.TokenType numbers, one for each token. Tokens from the first that is not NORMAL on are not made
            by merges, so none of them may be NORMAL.

    None says that one of these does not hold: the first 256 tokens are the 256 bytes in any order; every later NORMAL
    token is new, no longer than LONGEST_TOKEN, and what BPE with the merges before it leaves in two parts.

    >>> alphabet = byte_alphabet()
    >>> derive_merges([*alphabet, "he", "ll", "hell", "hello"], [TokenType.NORMAL] * 260)
    ('h e', 'l l', 'he ll', 'hell o')
    >>> derive_merges([*alphabet, "hell"], [TokenType.NORMAL] * 257) is None
    True
    """
    normal = next((index for index, kind in enumerate(types) if kind != TokenType.NORMAL), len(types))
    if len(texts) != len(types) or any(kind == TokenType.NORMAL for kind in types[normal:]):
        return None
    if normal < BYTES or set(texts[:BYTES]) != set(byte_alphabet()):
        return None
    ids = {text: token_id for token_id, text in enumerate(texts[:BYTES])}
    parts: list[tuple[int, int]] = [(token_id, token_id) for token_id in range(BYTES)]
    made: dict[tuple[int, int], int] = {}
    for token_id in range(BYTES, normal):
        text = texts[token_id]
        if text in ids or len(text) > LONGEST_TOKEN:
            return None
        pair = last_two_parts(text, ids, parts, made)
        if pair is None:
            return None
        ids[text] = made[pair] = token_id
        parts.append(pair)
    return tuple(f"{texts[left]} {texts[right]}" for left, right in parts[BYTES:])


def last_two_parts(
    text: str, ids: Mapping[str, int], parts: Sequence[tuple[int, int]], made: Mapping[tuple[int, int], int]
) -> tuple[int, int] | None:
    """The two tokens that BPE cuts text into, None where they are not two.

    ids has every token's id by its text, parts the two parts of every token beyond the bytes, made the opposite.
    """
    for cut in range(1, len(text)):
        left = ids.get(text[:cut])
        right = None if left is None else ids.get(text[cut:])
        if left is not None and right is not None and stay_apart(left, right, parts, made):
            return left, right
    return None


def stay_apart(left: int, right: int, parts: Sequence[tuple[int, int]], made: Mapping[tuple[int, int], int]) -> bool:
    """Whether BPE, given the text of left and right in one piece, makes these two tokens of it.

    A merge makes a token with a larger id than its parts have, so BPE makes tokens in the order of their ids, and
    what happens on either side of the edge between the two happens as it does alone, unless a merge crosses the edge.
    So the history of the edge is gone through backwards: of the two tokens beside it, the one with the larger id was
    made last; where its part at the edge and the other token are a pair that is merged earlier than that, it was
    merged. Of merges with one rank, the left one comes first.
    """
    while max(left, right) >= BYTES:
        if left > right:
            before, left = left, parts[left][1]
        else:
            before, right = right + 1, parts[right][0]
        if made.get((left, right), before) < before:
            return False
    return True
