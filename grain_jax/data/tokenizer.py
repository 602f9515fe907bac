"""Text to token ids: CLIP's BPE, a word vocabulary, or any fast tokenizer of Hugging Face.

Every tokenizer but `PaddedTokenizer` keeps the two promises that pooling at end-of-text rests on:
padding is 0, and end-of-text is the highest id of the vocabulary, so that `argmax(ids)` finds it.
`spec()` is JSON and holds all that `tokenizer_from_spec` needs: a checkpoint carries it and never
downloads or re-reads anything.
"""

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt32

from grain_jax.config import DataConfig
from grain_jax.data.text_normalization import ENTITIES, FTFY, entities, normalization
from grain_jax.extras import how_to_install
from grain_jax.paths import expand_home

Encoded = tuple[Int[np.ndarray, "T L"], Bool[np.ndarray, "T"]]


@runtime_checkable
class Tokenizer(Protocol):
    """Turns texts into fixed-length ids."""

    vocab_size: int  # rows that the token embedding needs
    pad_id: int

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Ids int32 [T, L] and which texts were cut [T]; a cut text still ends in end-of-text."""
        ...

    def spec(self) -> dict[str, Any]:
        """JSON that `tokenizer_from_spec` rebuilds this tokenizer from."""
        ...


def _pad(tokens: Sequence[Sequence[int]], length: int, start: int | None, end: int) -> Encoded:
    first = [] if start is None else [start]
    if length < len(first) + 2:
        raise ValueError(
            f"A text length of {length} leaves no room for a word between start and end-of-text; "
            "raise data.caption_length or data.description_length to at least 3."
        )
    ids = np.zeros((len(tokens), length), np.int32)
    truncated = np.zeros(len(tokens), bool)
    room = length - len(first) - 1
    for row, words in enumerate(tokens):
        kept = [*first, *words[:room], end]
        ids[row, : len(kept)] = kept
        truncated[row] = len(words) > room
    return ids, truncated


def token_keys(ids: Int[np.ndarray, "T L"], *, pad_id: int = 0) -> UInt32[np.ndarray, "T"]:
    """32-bit hash of each row of `Tokenizer.encode`, without the padding at its end.

    Equal for texts that the model cannot tell apart, those that were cut to the same tokens among
    them; the same for every length of padding, and in every process and run.
    """
    rows = np.ascontiguousarray(ids, "<i4")
    columns = np.arange(1, rows.shape[1] + 1)
    ends = np.where(rows != pad_id, columns, 0).max(axis=1, initial=0)
    keys = [zlib.crc32(row[:end]) for row, end in zip(rows, ends, strict=True)]
    return np.array(keys, np.uint32)


class ClipTokenizer:
    """CLIP's byte-pair encoding, lower-cased; the vocabulary comes with `instant-clip-tokenizer`.

    The ids of OpenAI's tokenizer and open_clip's, with two exceptions: a literal "<|endoftext|>" in
    a text is spelled out here instead of ending the text, and an apostrophe before a long s
    (U+017F) is not taken for "'s".
    """

    vocab_size = 49408
    pad_id = 0

    def __init__(self, text_normalization: str = FTFY) -> None:
        """Raises ValueError for a `text_normalization` that is not known."""
        import instant_clip_tokenizer

        self.text_normalization = text_normalization
        self._clean = normalization(text_normalization)
        self._tokenizer = instant_clip_tokenizer.Tokenizer()
        self._start = self._tokenizer.start_of_text()
        self._end = self._tokenizer.end_of_text()

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        cleaned = [_SPECIAL.sub("< ", self._clean(text)) for text in texts]
        return _pad([self._tokenizer.encode(t) for t in cleaned], length, self._start, self._end)

    def spec(self) -> dict[str, Any]:
        return {"kind": "clip", "text_normalization": self.text_normalization}

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # The Rust object cannot be pickled; loader processes make their own.
        return ClipTokenizer, (self.text_normalization,)


# `instant-clip-tokenizer` takes these for its special tokens; a space never changes what "<" and a
# letter after it become.
_SPECIAL = re.compile(r"<(?=(?:start|end)_of_text>)", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9]+")


class WordTokenizer:
    """One id a word: 0 padding, 1 unknown, 2 start, then the words, last end-of-text."""

    pad_id = 0

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        if len(set(self.words)) != len(self.words):
            raise ValueError("The words of a WordTokenizer must differ from each other.")
        if odd := [word for word in self.words if not _WORD.fullmatch(word)]:
            raise ValueError(
                f"Words must match [a-z0-9]+, as texts are split that way; got {odd[:5]}."
            )
        self._ids = {word: 3 + i for i, word in enumerate(self.words)}
        self.vocab_size = len(self.words) + 4

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        tokens = [[self._ids.get(word, 1) for word in _WORD.findall(t.lower())] for t in texts]
        return _pad(tokens, length, 2, self.vocab_size - 1)

    def unknown_words_note(self, words: Sequence[str]) -> str:
        """What a user should know of `words` that all get the id of unknown."""
        shown = ", ".join(words[:5])
        return (
            f"This model has {len(self.words)} words of its own and takes these for one "
            f"and the same unknown word: {shown}{', ...' if len(words) > 5 else ''}."
        )

    def unknown_words(self, text: str) -> list[str]:
        """Words of the text that all get the id of unknown."""
        return [word for word in _WORD.findall(text.lower()) if word not in self._ids]

    def spec(self) -> dict[str, Any]:
        return {"kind": "words", "words": list(self.words)}


class HuggingFaceTokenizer:
    """A fast tokenizer by name or folder, lower-casing and all as it was trained.

    Where its own end-of-text is not the highest id (nearly everywhere but CLIP), a new id past the
    vocabulary is used instead, so `vocab_size` grows by one. Start is its bos (or cls) token, if it
    has one.
    """

    pad_id = 0

    def __init__(self, tokenizer: Any, *, start: int | None, end: int | None) -> None:
        self._tokenizer = tokenizer  # tokenizers.Tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=size - 1)
        self._start, self._end = start, highest if end == highest else highest + 1
        self.vocab_size = self._end + 1

    @classmethod
    def load(cls, name_or_folder: str) -> "HuggingFaceTokenizer":
        """Raises ValueError where there is no such tokenizer or it has no fast version."""
        loaded = _load_fast(name_or_folder)
        start = loaded.bos_token_id if loaded.bos_token_id is not None else loaded.cls_token_id
        return cls(loaded.backend_tokenizer, start=start, end=loaded.eos_token_id)

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        cleaned = [entities(text) for text in texts]
        encoded = self._tokenizer.encode_batch(cleaned, add_special_tokens=False)
        # A literal end-of-text inside a text would be pooled at; drop it.
        tokens = [[i for i in item.ids if i != self._end] for item in encoded]
        return _pad(tokens, length, self._start, self._end)

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "huggingface",
            "tokenizer": self._tokenizer.to_str(),
            "start": self._start,
            "end": self._end,
        }


class PaddedTokenizer:
    """A fast tokenizer as its model was trained with it, for a tower that pools at the last
    position (SigLIP): its own special tokens, and its own padding on its own side.
    """

    def __init__(self, tokenizer: Any, *, pad_id: int, pad_left: bool) -> None:
        """Raises ValueError where special tokens are not put just before and after a text."""
        self._tokenizer = tokenizer  # tokenizers.Tokenizer
        self._tokenizer.no_truncation()  # never changed again: loader threads share it
        self._tokenizer.no_padding()
        self._before, self._after = _special_tokens(tokenizer)
        self._pad_left = pad_left
        self.pad_id = pad_id
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        self.vocab_size = max(highest, pad_id) + 1

    @classmethod
    def load(cls, name_or_folder: str) -> "PaddedTokenizer":
        """Raises ValueError where there is no such tokenizer, or it has no padding of its own."""
        loaded = _load_fast(name_or_folder)
        if loaded.pad_token_id is None:
            raise ValueError(
                f"Tokenizer {name_or_folder!r} has no padding token, which a text tower that pools "
                'at the last position needs; set model.text.pooling="end" or another tokenizer.'
            )
        return cls(
            loaded.backend_tokenizer,
            pad_id=loaded.pad_token_id,
            pad_left=loaded.padding_side == "left",
        )

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        room = length - len(self._before) - len(self._after)
        if room < 1:
            raise ValueError(
                f"A text length of {length} leaves no room for a word beside the tokenizer's "
                f"{length - room} special tokens; raise data.caption_length or "
                "data.description_length."
            )
        cleaned = [entities(text) for text in texts]
        encoded = self._tokenizer.encode_batch(cleaned, add_special_tokens=False)
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        truncated = np.zeros(len(texts), bool)
        for i, item in enumerate(encoded):
            kept = [*self._before, *item.ids[:room], *self._after]
            start = length - len(kept) if self._pad_left else 0
            ids[i, start : start + len(kept)] = kept
            truncated[i] = len(item.ids) > room
        return ids, truncated

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "padded",
            "tokenizer": self._tokenizer.to_str(),
            "pad_id": self.pad_id,
            "pad_left": self._pad_left,
        }


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that a `tokenizers.Tokenizer` puts before and after every text."""
    whole = tokenizer.encode("a")
    text = tokenizer.encode("a", add_special_tokens=False).ids
    places = [i for i, sequence in enumerate(whole.sequence_ids) if sequence == 0]
    start = places[0] if places else 0
    end = start + len(text)
    if not text or places != list(range(start, end)) or whole.ids[start:end] != text:
        raise ValueError(
            f"The tokenizer makes {text} of the text 'a', and {whole.ids} with its special tokens; "
            "expected one that puts them just before and after a text."
        )
    return whole.ids[:start], whole.ids[end:]


def _load_fast(name_or_folder: str) -> Any:
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError as error:
        raise ValueError(
            f"Tokenizer {name_or_folder!r} needs transformers: "
            f"{how_to_install('tokenizers')}; or set data.tokenizer to 'clip'."
        ) from error
    name_or_folder = expand_home(name_or_folder)
    try:
        if _is_whole(Path(name_or_folder)):
            loaded = PreTrainedTokenizerFast.from_pretrained(name_or_folder)
        else:  # without the False it asks whether to run code of the folder
            loaded = AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Tokenizer {name_or_folder!r} is no folder with a tokenizer.json, and cannot be read "
            f"otherwise: {reason} Give a folder that holds its fast form, tokenizer.json."
        ) from error
    except Exception as error:  # tokenizers raises bare exceptions on a damaged file
        raise ValueError(
            f"No tokenizer {name_or_folder!r}: give 'clip', 'world', a name on the Hugging "
            f"Face hub, or a folder that holds a tokenizer ({error})."
        ) from error
    if getattr(loaded, "backend_tokenizer", None) is None:
        raise ValueError(
            f"Tokenizer {name_or_folder!r} has no fast (tokenizers) version; convert it to a "
            "tokenizer.json first."
        )
    return loaded


def _is_whole(folder: Path) -> bool:
    """Whether tokenizer.json says it all, whatever class the folder names: some have no fast form
    in transformers 5 (SiglipTokenizer), some are code of the folder.

    Siglip2Tokenizer lower-cases by itself, which older files of its kind do not say.
    """
    if not (folder / "tokenizer.json").is_file():
        return False
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return True
    given = json.loads(settings.read_text(encoding="utf-8"))
    return given.get("tokenizer_class") != "Siglip2Tokenizer"


def build_tokenizer(config: DataConfig, *, pooling: str = "end") -> Tokenizer:
    """The tokenizer `config.tokenizer` names: "clip", "synthetic_birds", or one of transformers.

    `pooling`: of the text tower (model.text.pooling), which decides how texts end.
    """
    if pooling == "last":
        if config.tokenizer in ("clip", "synthetic_birds", ""):
            raise ValueError(
                'model.text.pooling = "last" needs a tokenizer that pads, a name or folder for '
                f"transformers; data.tokenizer = {config.tokenizer!r}."
            )
        return PaddedTokenizer.load(config.tokenizer)
    match config.tokenizer:
        case "clip":
            return ClipTokenizer()
        case "synthetic_birds":
            return WordTokenizer(_vocabulary(config))
        case "":
            raise ValueError("data.tokenizer is empty; give 'clip', 'world', or a name or folder.")
        case name:
            return HuggingFaceTokenizer.load(name)


def _vocabulary(config: DataConfig) -> list[str]:
    from grain_jax.data.source import data_source  # here, as no other tokenizer asks the data

    words = data_source(config, image_size=1).vocabulary()
    if words is None:
        raise ValueError(
            f"data.tokenizer = {config.tokenizer!r} takes the words of its data, and "
            f"data.dataset = {config.dataset!r} does not list them; give 'clip', or a name or "
            "folder."
        )
    return words


def tokenizer_from_spec(spec: dict[str, Any]) -> Tokenizer:
    """Rebuilds a tokenizer from its `spec()`, without any file. Raises ValueError on an unknown
    kind.
    """
    match spec.get("kind"):
        case "clip":  # from before it was recorded: without ftfy
            return ClipTokenizer(spec.get("text_normalization", ENTITIES))
        case "words":
            return WordTokenizer(spec["words"])
        case "huggingface" | "padded":
            try:
                import tokenizers
            except ImportError as error:
                raise ValueError(
                    f"This checkpoint's tokenizer needs: {how_to_install('tokenizers')}"
                ) from error
            try:
                tokenizer = tokenizers.Tokenizer.from_str(spec["tokenizer"])
            except Exception as error:  # the class of what its library raises is no other
                raise ValueError(f"A stored tokenizer cannot be read: {error}") from error
            if spec["kind"] == "huggingface":
                return HuggingFaceTokenizer(tokenizer, start=spec["start"], end=spec["end"])
            return PaddedTokenizer(tokenizer, pad_id=spec["pad_id"], pad_left=spec["pad_left"])
    raise ValueError(f"Unknown tokenizer {spec!r}; known kinds: clip, words, huggingface, padded.")
