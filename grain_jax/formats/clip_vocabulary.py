"""The vocabulary and merges of CLIP's byte-pair encoding, from `instant-clip-tokenizer`.

That library only encodes and decodes. A Hugging Face tokenizer takes the tables themselves, and
exports must not download anything, so the tables are reconstructed: the bytes of an id by decoding
it between bytes that complete its characters, its pair by encoding it with the earlier merges.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise, product

NUM_BYTES = 256
END_OF_WORD = "</w>"
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
BROKEN = "\ufffd"
# Bytes that may be required before or after those of an id to form complete characters.
_BEFORE = (b"", b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80")
_AFTER = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")

Merge = tuple[str, str]


@functools.cache
def byte_letters() -> dict[int, str]:
    """Byte -> GPT-2's printable character for it, in the order of CLIP's first 256 ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(NUM_BYTES + i) for i, byte in enumerate(others)}


@functools.cache
def clip_tables() -> tuple[dict[str, int], list[Merge]]:
    """(token -> id, merges in order), as `tokenizers.models.BPE` takes them."""
    import instant_clip_tokenizer

    tokenizer = instant_clip_tokenizer.Tokenizer()
    letters = byte_letters()
    single = list(letters.values())
    tokens = [*single, *(letter + END_OF_WORD for letter in single)]
    ids = {byte: i for i, byte in enumerate(letters)}

    def decode(token: int, before: bytes, after: bytes) -> str:
        return tokenizer.decode([*(ids[b] for b in before), token, *(ids[b] for b in after)])

    for token in range(len(tokens), tokenizer.start_of_text()):
        own, ends_word = _own_bytes(functools.partial(decode, token))
        tokens.append("".join(letters[byte] for byte in own) + (END_OF_WORD if ends_word else ""))
    merges = _merges(tokens, first=2 * NUM_BYTES)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    vocabulary[START_OF_TEXT] = tokenizer.start_of_text()
    vocabulary[END_OF_TEXT] = tokenizer.end_of_text()
    return vocabulary, merges


def _own_bytes(decode: Callable[[bytes, bytes], str]) -> tuple[bytes, bool]:
    """The bytes of an id, and whether it ends a word, which decodes as a space after it."""
    for before, after in product(_BEFORE, _AFTER):
        text = decode(before, after)
        ends_word = text.endswith(" ")
        if BROKEN in text or (ends_word and after):
            continue
        encoded = text.removesuffix(" ").encode()
        return encoded[len(before) : len(encoded) - len(after)], ends_word
    return BROKEN.encode(), decode(b"", b"").endswith(" ")  # the replacement character itself


def _merges(tokens: Sequence[str], *, first: int) -> list[Merge]:
    """The pair that each id from `first` on merges, found with the merges before it."""
    ranks: dict[Merge, int] = {}
    for rank, token in enumerate(tokens[first:]):
        parts = _split(token, ranks)
        if len(parts) != 2:
            raise ValueError(f"{token!r} is not a pair of earlier tokens: {parts}.")
        ranks[parts[0], parts[1]] = rank
    return list(ranks)


def _split(token: str, ranks: dict[Merge, int]) -> list[str]:
    """Byte-pair encoding of one word with the merges so far."""
    word, end = (token.removesuffix(END_OF_WORD), token.endswith(END_OF_WORD))
    parts = [*word[:-1], word[-1] + (END_OF_WORD if end else "")]
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts
