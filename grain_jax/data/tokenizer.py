"""Text to token ids: CLIP's BPE, a word vocabulary, or any fast tokenizer of Hugging Face.

Pooling at end-of-text relies on two properties, which every tokenizer but `PaddedTokenizer` has:
padding is 0, and end-of-text is the highest id of the vocabulary, so that `argmax(ids)` finds it.
`spec()` is JSON and complete: a checkpoint stores it, so that `tokenizer_from_spec` downloads and
reads nothing.
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
from grain_jax.data.clip_bpe import clip_ids
from grain_jax.data.text_normalization import ENTITIES, FTFY, entities, normalization
from grain_jax.extras import how_to_install
from grain_jax.paths import expand_home

Encoded = tuple[Int[np.ndarray, "T L"], Bool[np.ndarray, "T"]]


@runtime_checkable
class Tokenizer(Protocol):
    """Encodes texts as token ids of a fixed length."""

    vocab_size: int  # rows of the token embedding
    pad_id: int

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Ids int32 [T, L], and bool [T]: which texts were truncated; these keep end-of-text."""
        ...

    def spec(self) -> dict[str, Any]:
        """JSON that `tokenizer_from_spec` rebuilds this tokenizer from."""
        ...


class _Framed:
    """A tokenizer whose texts lie between ids of its own, and are padded on one side."""

    pad_id = 0
    _pad_left = False
    _before: Sequence[int] = ()
    _after: Sequence[int]

    def _tokens(self, texts: Sequence[str]) -> list[Sequence[int]]:
        raise NotImplementedError

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        room = length - len(self._before) - len(self._after)
        if room < 1:
            raise ValueError(
                f"A text length of {length} leaves no room for a word beside the tokenizer's "
                f"{length - room} special tokens; raise data.caption_length or "
                "data.description_length."
            )
        tokens = self._tokens(texts)
        ids = np.full((len(tokens), length), self.pad_id, np.int32)
        truncated = np.zeros(len(tokens), bool)
        for row, words in enumerate(tokens):
            kept = [*self._before, *words[:room], *self._after]
            start = length - len(kept) if self._pad_left else 0
            ids[row, start : start + len(kept)] = kept
            truncated[row] = len(words) > room
        return ids, truncated


def token_keys(ids: Int[np.ndarray, "T L"], *, pad_id: int = 0) -> UInt32[np.ndarray, "T"]:
    """32-bit hash of each row of `Tokenizer.encode`, without the padding at its end.

    Texts with the same tokens have the same hash, including those truncated to the same tokens. It
    does not depend on the amount of padding, the process or the run.
    """
    rows = np.ascontiguousarray(ids, "<i4")
    columns = np.arange(1, rows.shape[1] + 1)
    ends = np.where(rows != pad_id, columns, 0).max(axis=1, initial=0)
    keys = [zlib.crc32(row[:end]) for row, end in zip(rows, ends, strict=True)]
    return np.array(keys, np.uint32)


class ClipTokenizer(_Framed):
    """CLIP's byte-pair encoding, lower-cased.

    The ids are those of OpenAI's and open_clip's tokenizers, with two exceptions: a literal
    "<|endoftext|>" in a text is encoded as text and does not end it, and an apostrophe before a
    long s (U+017F) is not read as "'s".
    """

    vocab_size = 49408
    _before, _after = (vocab_size - 2,), (vocab_size - 1,)

    def __init__(self, text_normalization: str = FTFY) -> None:
        """Raises ValueError for an unknown `text_normalization`."""
        self.text_normalization = text_normalization
        self._clean = normalization(text_normalization)

    def _tokens(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [clip_ids(self._clean(text)) for text in texts]

    def spec(self) -> dict[str, Any]:
        return {"kind": "clip", "text_normalization": self.text_normalization}


_WORD = re.compile(r"[a-z0-9]+")


class WordTokenizer(_Framed):
    """One id a word: 0 padding, 1 unknown, 2 start, then the words, last end-of-text."""

    _before = (2,)

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
        self._after = (self.vocab_size - 1,)

    def _tokens(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [[self._ids.get(word, 1) for word in _WORD.findall(t.lower())] for t in texts]

    def unknown_words_note(self, words: Sequence[str]) -> str:
        """A note on `words`, which all become the unknown token."""
        shown = ", ".join(words[:5])
        return (
            f"This model has a vocabulary of {len(self.words)} words and maps these to the "
            f"same unknown word: {shown}{', ...' if len(words) > 5 else ''}."
        )

    def unknown_words(self, text: str) -> list[str]:
        """Words of the text that become the unknown token."""
        return [word for word in _WORD.findall(text.lower()) if word not in self._ids]

    def spec(self) -> dict[str, Any]:
        return {"kind": "words", "words": list(self.words)}


class HuggingFaceTokenizer(_Framed):
    """A fast tokenizer of Hugging Face, with its own normalization.

    Where its end-of-text does not have the highest id (nearly all but CLIP's), a new id after the
    vocabulary is used instead, which adds one to `vocab_size`. The start token is its bos (or cls)
    token, if it has one.
    """

    def __init__(self, tokenizer: Any, *, start: int | None, end: int | None) -> None:
        self._tokenizer = tokenizer  # tokenizers.Tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=size - 1)
        self._end = highest if end == highest else highest + 1
        self._before, self._after = () if start is None else (start,), (self._end,)
        self.vocab_size = self._end + 1

    @classmethod
    def load(cls, name_or_folder: str) -> "HuggingFaceTokenizer":
        """Loads a name or folder. Raises ValueError where it does not exist or is not fast."""
        loaded = _load_fast(name_or_folder)
        start = loaded.bos_token_id if loaded.bos_token_id is not None else loaded.cls_token_id
        return cls(loaded.backend_tokenizer, start=start, end=loaded.eos_token_id)

    def _tokens(self, texts: Sequence[str]) -> list[Sequence[int]]:
        # A literal end-of-text inside a text would be pooled; remove it.
        found = _library_ids(self._tokenizer, texts)
        return [[i for i in ids if i != self._end] for ids in found]

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "huggingface",
            "tokenizer": self._tokenizer.to_str(),
            "start": self._before[0] if self._before else None,
            "end": self._end,
        }


class PaddedTokenizer(_Framed):
    """A fast tokenizer with its own special tokens and padding, on its own side.

    For text towers that pool at the last position (SigLIP).
    """

    def __init__(self, tokenizer: Any, *, pad_id: int, pad_left: bool) -> None:
        """Raises ValueError unless special tokens are directly before and after a text."""
        self._tokenizer = tokenizer  # tokenizers.Tokenizer
        self._tokenizer.no_truncation()  # not changed later: loader threads share it
        self._tokenizer.no_padding()
        self._before, self._after = _special_tokens(tokenizer)
        self._pad_left = pad_left
        self.pad_id = pad_id
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        self.vocab_size = max(highest, pad_id) + 1

    @classmethod
    def load(cls, name_or_folder: str) -> "PaddedTokenizer":
        """Loads a name or folder. Raises ValueError where it does not exist or has no padding."""
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

    def _tokens(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return _library_ids(self._tokenizer, texts)

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "padded",
            "tokenizer": self._tokenizer.to_str(),
            "pad_id": self.pad_id,
            "pad_left": self._pad_left,
        }


def _library_ids(tokenizer: Any, texts: Sequence[str]) -> list[Sequence[int]]:
    encoded = tokenizer.encode_batch([entities(text) for text in texts], add_special_tokens=False)
    return [item.ids for item in encoded]


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that a `tokenizers.Tokenizer` adds before and after every text."""
    whole = tokenizer.encode("a")
    text = tokenizer.encode("a", add_special_tokens=False).ids
    places = [i for i, sequence in enumerate(whole.sequence_ids) if sequence == 0]
    start = places[0] if places else 0
    end = start + len(text)
    if not text or places != list(range(start, end)) or whole.ids[start:end] != text:
        raise ValueError(
            f"The tokenizer encodes 'a' as {text}, and as {whole.ids} with its special tokens; "
            "expected special tokens just before and after a text."
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
        else:  # without False it would ask whether to run code of the folder
            loaded = AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Tokenizer {name_or_folder!r} is not a folder with a tokenizer.json, and cannot be "
            f"read otherwise: {reason} Give a folder that holds its fast form, tokenizer.json."
        ) from error
    except Exception as error:  # tokenizers raises bare exceptions on a damaged file
        raise ValueError(
            f"No tokenizer {name_or_folder!r}: give 'clip', 'synthetic_birds', a name on the "
            f"Hugging Face hub, or a folder that holds a tokenizer ({error})."
        ) from error
    if getattr(loaded, "backend_tokenizer", None) is None:
        raise ValueError(
            f"Tokenizer {name_or_folder!r} has no fast (tokenizers) version; convert it to a "
            "tokenizer.json first."
        )
    return loaded


def _is_whole(folder: Path) -> bool:
    """Whether tokenizer.json alone is the tokenizer, so that its class is not used.

    Some of these classes have no fast form in transformers 5 (SiglipTokenizer), others are code in
    the folder. Siglip2Tokenizer lower-cases in its class, which older tokenizer.json files lack.
    """
    if not (folder / "tokenizer.json").is_file():
        return False
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return True
    given = json.loads(settings.read_text(encoding="utf-8"))
    return given.get("tokenizer_class") != "Siglip2Tokenizer"


def build_tokenizer(config: DataConfig, *, pooling: str = "end") -> Tokenizer:
    """The tokenizer that `config.tokenizer` names: "clip", "synthetic_birds", or a name or folder.

    `pooling`: that of the text tower (model.text.pooling), which decides how texts end. Raises
    ValueError where the tokenizer does not exist or does not suit the pooling.
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
            raise ValueError(
                "data.tokenizer is empty; give 'clip', 'synthetic_birds', or a name or folder."
            )
        case name:
            return HuggingFaceTokenizer.load(name)


def _vocabulary(config: DataConfig) -> list[str]:
    from grain_jax.data.source import (
        data_source,
    )  # here, as other tokenizers do not use the data set

    words = data_source(config, image_size=1).vocabulary()
    if words is None:
        raise ValueError(
            f"data.tokenizer = {config.tokenizer!r} takes its vocabulary from the data set, and "
            f"data.dataset = {config.dataset!r} does not list one; give 'clip', or a name or "
            "folder."
        )
    return words


def tokenizer_from_spec(spec: dict[str, Any]) -> Tokenizer:
    """Rebuilds a tokenizer from its `spec()`, without any file.

    Raises ValueError for an unknown kind, and where it cannot be read.
    """
    match spec.get("kind"):
        case "clip":  # not recorded by earlier versions, which did not use ftfy
            return ClipTokenizer(spec.get("text_normalization", ENTITIES))
        case "words":
            return WordTokenizer(spec["words"])
        case "huggingface" | "padded":
            import tokenizers  # here, as a tokenizer of words does without

            try:
                tokenizer = tokenizers.Tokenizer.from_str(spec["tokenizer"])
            except Exception as error:  # its library raises bare Exception
                raise ValueError(f"A stored tokenizer cannot be read: {error}") from error
            if spec["kind"] == "huggingface":
                return HuggingFaceTokenizer(tokenizer, start=spec["start"], end=spec["end"])
            return PaddedTokenizer(tokenizer, pad_id=spec["pad_id"], pad_left=spec["pad_left"])
    raise ValueError(f"Unknown tokenizer {spec!r}; known kinds: clip, words, huggingface, padded.")
