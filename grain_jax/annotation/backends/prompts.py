"""Phrases to the prompts of Grounding DINO, and scores of tokens to scores of phrases.

The model reads "a dog. a red ball." and scores tokens, not phrases. Which token belongs to which
phrase is decided here by character offsets in a prompt that was built here. To look a phrase up in
the prompt again, or to decode tokens into text, is how phrases come to be shifted against their
boxes: "bus" is found in "bus stop", a repeated phrase at its first place, a phrase with a full stop
nowhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Offset = tuple[int, int]  # of a token: first character, and the one after the last
SEPARATOR = ". "
SPECIAL_TOKENS = 2  # [CLS] and [SEP], which stand round every prompt
# The model's attention ends at these marks, so inside a phrase they would cut it in two.
_NOT_INSIDE = str.maketrans({".": " ", "?": " "})


@dataclass(frozen=True)
class Prompt:
    """Some phrases of an image as one text."""

    text: str
    spans: tuple[Offset, ...]  # characters of each phrase that the prompt has
    phrases: tuple[tuple[int, ...], ...]  # for each span, the numbers of the phrases it stands for


def build_prompts(
    phrases: Sequence[str], offsets: Callable[[str], Sequence[Offset]], *, limit: int
) -> list[Prompt]:
    """Prompts of at most `limit` tokens, in the order of the phrases.

    Equal phrases share a span. A phrase is in lower case, without full stops and question marks;
    one of more than `limit` tokens is cut; one of no token is in no prompt.

    Args:
        offsets: of the tokens of a text, without special tokens.
    """
    numbers: dict[str, list[int]] = {}
    lengths: dict[str, int] = {}
    for number, phrase in enumerate(phrases):
        text, length = _cut(prompt_phrase(phrase), offsets, limit - SPECIAL_TOKENS - 1)
        if length:
            numbers.setdefault(text, []).append(number)
            lengths[text] = length + 1  # its full stop
    prompts: list[Prompt] = []
    waiting: list[str] = []
    room = limit - SPECIAL_TOKENS
    for text, length in lengths.items():
        if waiting and length > room:
            prompts.append(_prompt(waiting, numbers))
            waiting, room = [], limit - SPECIAL_TOKENS
        waiting.append(text)
        room -= length
    return [*prompts, _prompt(waiting, numbers)] if waiting else prompts


def prompt_phrase(phrase: str) -> str:
    """The phrase as it stands in a prompt."""
    return " ".join(phrase.translate(_NOT_INSIDE).lower().split())


def token_map(spans: Sequence[Offset], offsets: Sequence[Offset]) -> Bool[np.ndarray, "S L"]:
    """Which tokens lie in which span. Tokens without characters (special ones) lie in none."""
    starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
    first, last = np.asarray(spans, np.int64).reshape(-1, 2).T
    inside = (starts[None] >= first[:, None]) & (ends[None] <= last[:, None])
    return inside & (ends > starts)[None]


def phrase_scores(
    token_scores: Float[np.ndarray, "P L"],
    prompt: Prompt,
    offsets: Sequence[Offset],
    num_phrases: int,
) -> Float[np.ndarray, "P T"]:
    """The mean score of the tokens of each phrase; 0 for phrases that the prompt does not have.

    The mean, as in the official evaluation on COCO, and not the maximum: "a red ball" is not found
    where only "a" is.
    """
    scores = np.zeros((len(token_scores), num_phrases), np.float32)
    inside = token_map(prompt.spans, offsets)
    for tokens, numbers in zip(inside, prompt.phrases, strict=True):
        if tokens.any():
            scores[:, list(numbers)] = token_scores[:, tokens].mean(axis=1, keepdims=True)
    return scores


def _prompt(texts: Sequence[str], numbers: dict[str, list[int]]) -> Prompt:
    spans, start = [], 0
    for text in texts:
        spans.append((start, start + len(text)))
        start += len(text) + len(SEPARATOR)
    # The last phrase needs its full stop too: without it, its tokens would not see each other.
    whole = SEPARATOR.join(texts) + SEPARATOR.strip()
    return Prompt(whole, tuple(spans), tuple(tuple(numbers[text]) for text in texts))


def _cut(text: str, offsets: Callable[[str], Sequence[Offset]], limit: int) -> tuple[str, int]:
    """The text up to `limit` tokens, and how many it has."""
    found = [offset for offset in offsets(text) if offset[1] > offset[0]]
    if len(found) <= limit:
        return text, len(found)
    return text[: found[limit - 1][1]].strip(), limit
