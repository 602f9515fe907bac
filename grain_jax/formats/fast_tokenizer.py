"""Convert grain_jax's tokenizers to fast tokenizers of Hugging Face with the same ids."""

from typing import Any

from grain_jax.data.clip_bpe import (
    END_OF_TEXT,
    END_OF_WORD,
    START_OF_TEXT,
    byte_letters,
    clip_backend,
)
from grain_jax.data.text_normalization import ENTITIES, FTFY
from grain_jax.data.tokenizer import Tokenizer

# White space as in Python's `str.split`, which adds four control characters.
WHITE_SPACE = r"[\s\x1c-\x1f]+"
# A capital sigma at the end of its word, before characters that Unicode ignores (apostrophes).
LAST_SIGMA = (
    r"(?<=\p{L})Σ(?![\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:·\x{2018}\x{2019}\x{2024}\x{2027}]*\p{L})"
)
RECORD = "text_normalization"  # in tokenizer_config.json
FULL_WIDTH = {0x3000, *range(0xFF01, 0xFF5F)}  # of ASCII
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[BOS]", "[EOS]"
OWN_END = "<|end_of_text_of_grain|>"  # end-of-text of tokenizers without one; occurs in no text


def fast_tokenizer(tokenizer: Tokenizer, *, max_length: int) -> Any:
    """A `transformers.PreTrainedTokenizerFast` that gives the ids of `tokenizer`.

    It adds start and end of text, and truncates to `max_length` on request. Its normalizer does the
    part of `text_normalization` that a fast tokenizer can: HTML entities ("&amp;"), broken
    encodings and half-width katakana are not resolved. The exported processor resolves them before,
    according to `text_normalization` in tokenizer_config.json. Padding differs from grain_jax's
    without effect, as the text tower is causal and pools at the first end-of-text. Raises
    ValueError for a tokenizer that cannot be converted.
    """
    from transformers import PreTrainedTokenizerFast

    spec = tokenizer.spec()
    names: tuple[str | None, str, str, str | None]  # start, end, padding, unknown
    text_normalization = ENTITIES
    match spec["kind"]:
        case "clip":
            text_normalization = spec["text_normalization"]
            backend = _clip(text_normalization)
            names = (START_OF_TEXT, END_OF_TEXT, END_OF_TEXT, END_OF_TEXT)
        case "words":
            backend, names = _words(spec["words"]), (START, END, PAD, UNKNOWN)
        case "padded":
            return _padded(spec, max_length)
        case _:
            backend, names = _own(spec)
    start, end, pad, unknown = names
    recorded = {} if spec["kind"] == "words" else {RECORD: text_normalization}
    # For these tokenizers "<|endoftext|>" in a text is text; others keep their own behaviour.
    literal = spec["kind"] in ("clip", "words")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        truncation_side="right",
        split_special_tokens=literal,
        clean_up_tokenization_spaces=False,
        **recorded,
    )


def _padded(spec: dict[str, Any], max_length: int) -> Any:
    """A `PaddedTokenizer`, which is Hugging Face's with its special tokens and padding."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend.from_str(spec["tokenizer"])
    _collapse_white_space(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=backend.id_to_token(spec["pad_id"]),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left" if spec["pad_left"] else "right",
        truncation_side="right",
        **{RECORD: ENTITIES},
    )


def _clip(text_normalization: str) -> Any:
    from tokenizers import AddedToken, Regex, decoders, normalizers

    backend = clip_backend()
    backend.normalizer = normalizers.Sequence(
        [
            *(_as_ftfy() if text_normalization == FTFY else []),
            normalizers.Replace(Regex(WHITE_SPACE), " "),
            normalizers.Replace(Regex(LAST_SIGMA), "ς"),  # `Lowercase` ignores position
            normalizers.Lowercase(),
        ]
    )
    space = byte_letters()[ord(" ")]
    backend.decoder = decoders.Sequence(
        [decoders.Replace(END_OF_WORD, space), decoders.ByteLevel()]
    )
    backend.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in (START_OF_TEXT, END_OF_TEXT)]
    )
    return _framed(backend, START_OF_TEXT, END_OF_TEXT)


def _as_ftfy() -> list[Any]:
    """Replacements of single characters by `ftfy.fix_text`; of full-width letters only Latin."""
    from ftfy import chardata
    from tokenizers import Regex, normalizers

    plain = {chr(code): bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    plain = {control: text for control, text in plain.items() if text}  # some are unused in cp1252
    plain |= {chr(code): text for code, text in chardata.LIGATURES.items()}
    plain |= {chr(code): text for code, text in chardata.WIDTH_MAP.items() if code in FULL_WIDTH}
    controls = "".join(rf"\x{{{code:x}}}" for code in chardata.CONTROL_CHARS)
    return [
        *(normalizers.Replace(letter, text) for letter, text in plain.items()),
        normalizers.Replace(Regex(r"[\x{2bc}\x{2018}-\x{201b}]"), "'"),
        normalizers.Replace(Regex(r"[\x{201c}-\x{201f}]"), '"'),
        normalizers.Replace(Regex(r"\x1b\[[\d;]*[a-zA-Z]"), ""),
        normalizers.Replace(Regex(f"[{controls}]"), ""),
        normalizers.NFC(),
    ]


def _words(words: list[str]) -> Any:
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    names = [PAD, UNKNOWN, START, *words, END]
    backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex("[a-z0-9]+"), behavior="removed", invert=True
    )
    return _framed(backend, START, END)


def _own(spec: dict[str, Any]) -> tuple[Any, tuple[str | None, str, str, str | None]]:
    """A `HuggingFaceTokenizer`, whose end-of-text may be a new id after its vocabulary."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(spec["tokenizer"])
    _collapse_white_space(backend)
    start = None if spec["start"] is None else backend.id_to_token(spec["start"])
    end = backend.id_to_token(spec["end"])
    if end is None:
        end = OWN_END
        backend.add_special_tokens([AddedToken(end, normalized=False, special=True)])
        if backend.token_to_id(end) != spec["end"]:
            raise ValueError(
                f"The tokenizer gives end-of-text the id {backend.token_to_id(end)}, and the model "
                f"knows it as {spec['end']}; it cannot be written as a fast tokenizer."
            )
    return _framed(backend, start, end), (start, end, end, None)


def _collapse_white_space(backend: Any) -> None:
    """Adds white space collapsing before the normalizer, as `Tokenizer.encode` does."""
    from tokenizers import Regex, normalizers

    collapsed = [normalizers.Replace(Regex(WHITE_SPACE), " "), normalizers.Strip()]
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*collapsed, *own])


def _framed(backend: Any, start: str | None, end: str) -> Any:
    from tokenizers import processors

    special = [(name, backend.token_to_id(name)) for name in (start, end) if name is not None]
    single = f"{start} $A {end}" if start else f"$A {end}"
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return backend
