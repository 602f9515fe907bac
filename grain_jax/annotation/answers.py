"""What a multimodal model answered, as subject, caption and phrases.

Models that were asked for JSON answer with JSON in a fence, bullets, numbers, an apology, a thought
before the answer, one phrase a thousand times, or stop in the middle of a word. Whatever can be
used of that is used; the rest is an `AnswerError` with a reason to count.
"""

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grain_jax.data.captions import clean_text, normalize_text

MAX_ANSWER = 20_000  # characters that are looked at
MAX_PHRASE, MAX_SUBJECT, MAX_CAPTION = 150, 80, 2_000  # characters; longer is not an answer
SUBJECT_SCHEMA = {
    "type": "object",
    "properties": {"caption": {"type": "string"}, "primary_subject": {"type": "string"}},
    "required": ["caption", "primary_subject"],
    "additionalProperties": False,
}
FEATURES_SCHEMA = {
    "type": "object",
    "properties": {"features": {"type": "array", "items": {"type": "string"}}},
    "required": ["features"],
    "additionalProperties": False,
}
_CAPTION_KEYS = ("caption", "description", "sentence")
_SUBJECT_KEYS = ("primary_subject", "subject", "primary subject", "main_subject")
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[a-zA-Z]*")
_BULLET = re.compile(
    r"\s*(?:[-*+\u2022\u2023\u25aa\u25cf\u25e6\u00b7\u2013\u2014]+\s+"  # marks with a space
    r"|[-\u2022\u2023\u25aa\u25cf\u25e6])"  # and those that also stand without
)
_NUMBER = re.compile(r"\s*\(?(\d{1,3})[.):](?!\d)\s*")  # 1. (2)
_LETTER = re.compile(r"\s*\(?([a-zA-Z])[.)]\s+")  # a) B.
_REFUSAL = re.compile(  # of a caption or a phrase too; "Sorry!" is also a game
    r"\W*((i'?m|i am|we are) (very |really |so )?(sorry|unable|not able)"
    r"|(sorry|apologies|unfortunately)\W+(but\W+)?(i|we)\b|as an ai\b"
    r"|i (can ?not|can'?t|could ?n'?t|won'?t|do(es)? ?n'?t see)\b)",
    re.IGNORECASE,
)
_APOLOGY = re.compile(r"\W*(sorry|apologies)\b", re.IGNORECASE)  # of an answer without JSON
_STRAIGHT = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)
_NOTHING = {"", "none", "n/a", "na", "null", "unknown", "nothing", "no subject", "..."}


class AnswerError(ValueError):
    """An answer that cannot be used; `reason` is the line of the report that counts it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {clean_text(text)[:200]!r}")
        self.reason = reason


@dataclass(frozen=True)
class Subject:
    """The answer to the first question."""

    caption: str
    primary_subject: str


def parse_subject(text: str) -> Subject:
    """Caption and primary subject of an answer. Raises `AnswerError`."""
    plain = _plain(text)
    content = _json(plain)
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if isinstance(content, dict):
        fields = {str(key).casefold(): value for key, value in content.items()}
        caption = _first_text(fields, _CAPTION_KEYS)
        subject = _first_text(fields, _SUBJECT_KEYS)
    else:
        caption, subject = _field(plain, _CAPTION_KEYS), _field(plain, _SUBJECT_KEYS)
    caption, subject = _caption(caption), _phrase(subject)
    if _REFUSAL.match(caption) or _REFUSAL.match(subject):
        raise AnswerError("refusal", text)
    if normalize_text(subject) in _NOTHING or len(subject) > MAX_SUBJECT:
        raise AnswerError("refusal" if _is_refusal(plain) else "no subject", text)
    if normalize_text(caption) in _NOTHING or len(caption) > MAX_CAPTION:
        raise AnswerError("no caption", text)
    return Subject(caption, subject)


def parse_features(text: str, *, max_phrases: int, finished: bool = True) -> tuple[str, ...]:
    """The phrases of an answer, each once, at most `max_phrases`. Raises `AnswerError`.

    Args:
        finished: False where the answer was cut off at the limit of tokens, so that its last
            phrase may lack its end and is left out.
    """
    plain = _plain(text)
    phrases = _texts(_json(plain))
    if phrases is None:
        phrases = _cut_texts(plain)
    if phrases:
        phrases = _without_marks(phrases)
    elif phrases is None:
        if _is_refusal(plain):
            raise AnswerError("refusal", text)
        phrases = _lines(plain)
        if not finished:
            phrases = phrases[:-1]
    found: dict[str, str] = {}
    for phrase in map(_phrase, phrases):
        if normalize_text(phrase) not in _NOTHING and len(phrase) <= MAX_PHRASE:
            found.setdefault(normalize_text(phrase), phrase)
    kept = [phrase for phrase in found.values() if not _REFUSAL.match(phrase)]
    if not kept:
        raise AnswerError("refusal" if found else "no phrases", text)
    return tuple(kept[:max_phrases])


def _plain(text: str) -> str:
    """The answer without thoughts and fences. Raises `AnswerError` where nothing is left."""
    plain = _FENCE.sub("", _THOUGHT.sub("", text[:MAX_ANSWER])).translate(_STRAIGHT).strip()
    if not plain:
        raise AnswerError("empty answer", text)
    return plain


def _json(text: str) -> Any:
    """The first JSON object or list in a text; None where there is none."""
    decoder = json.JSONDecoder()
    for start in [match.start() for match in re.finditer(r"[{\[]", text)][:5]:
        try:
            content, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict | list) and content:
            return content
    return None


def _first_text(fields: dict[str, Any], keys: Iterable[str]) -> str:
    return next((fields[key] for key in keys if isinstance(fields.get(key), str)), "")


def _field(text: str, keys: tuple[str, ...]) -> str:
    """The value behind one of the names in a text that is almost JSON, or lines of `Name: value`.

    A value without its end is none.
    """
    for key in keys:
        name = re.escape(key).replace("_", "[_ ]").replace(r"\ ", "[_ ]")
        if match := re.search(rf'"{name}"\s*:\s*"((?:[^"\\]|\\.)*)"', text, re.IGNORECASE):
            return _unescaped(match[1])
        pattern = rf"^[\s*#>-]*{name}\**\s*[:=]\s*(.+)$"
        if match := re.search(pattern, text, re.IGNORECASE | re.MULTILINE):
            return match[1]
    return ""


def _texts(content: Any) -> list[str] | None:
    """The texts in the first list of a JSON answer; None where it has no list."""
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if lists else None
    if not isinstance(content, list):
        return None
    found = []
    for value in content:
        if isinstance(value, dict):  # {"feature": "..."}
            value = next((each for each in value.values() if isinstance(each, str)), None)
        if isinstance(value, str):
            found.append(value)
    return found


def _cut_texts(text: str) -> list[str] | None:
    """The quoted texts of a JSON list without its end, those that are whole; None without any."""
    match = re.search(r'\[\s*"', text)
    if match is None:
        return None
    rest = text[match.end() - 1 :]
    found = [_unescaped(each[1]) for each in re.finditer(r'"((?:[^"\\]|\\.)*)"', rest)]
    return found or None


def _unescaped(text: str) -> str:
    try:
        return json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text


def _is_refusal(plain: str) -> bool:
    """Whether an answer that holds nothing else is one."""
    return bool(_REFUSAL.match(plain) or _APOLOGY.match(plain))


def _without_marks(texts: list[str]) -> list[str]:
    """The texts of a list without bullets, and without numbers or letters that count all of them.

    Others belong to the text: "E. coli", "12. row".
    """
    bare = [_BULLET.sub("", text, count=1) for text in texts]
    for mark in (_NUMBER, _LETTER):
        if _counts([mark.match(text) for text in bare]):
            return [mark.sub("", text, count=1) for text in bare]
    return bare


def _counts(marks: list[re.Match[str] | None]) -> bool:
    """Whether several marks are 1, 2, 3 or a, b, c, wherever they begin."""
    names = [mark[1].lower() for mark in marks if mark is not None]
    if len(names) < max(2, len(marks)):
        return False
    values = [int(name) if name.isdecimal() else ord(name) for name in names]
    return all(after == before + 1 for before, after in itertools.pairwise(values))


def _lines(text: str) -> list[str]:
    """Lines without marks, or the parts of one line between commas or semicolons.

    Where some lines have bullets, numbers or letters that count, the others are talk around them.
    """
    lines = [line for line in _bare(text).splitlines() if line.strip()]
    lines = [line for line in lines if not line.rstrip().endswith(":")]  # "Here they are:"
    if bullets := [line for line in lines if _BULLET.match(line)]:
        return _without_marks(bullets)
    if numbered := [line for line in lines if _NUMBER.match(line)]:
        return [_NUMBER.sub("", line, count=1) for line in numbered]
    lettered = [place for place, line in enumerate(lines) if _LETTER.match(line)]
    if lettered:
        together = lines[lettered[0] : lettered[-1] + 1]
        if _counts([_LETTER.match(line) for line in together]):
            return [_LETTER.sub("", line, count=1) for line in together]
    if len(lines) == 1:
        return re.split(r"[;,]", lines[0].rpartition(":")[2])
    return lines


def _bare(text: str) -> str:
    return text.replace("**", "").replace("`", "")


def _phrase(text: str) -> str:
    """A phrase without a bullet, markdown, quotes and a full stop."""
    return _BULLET.sub("", _bare(clean_text(text)), count=1).strip(" \"'*_.,;:!?[]{}")


def _caption(text: str) -> str:
    return clean_text(text).replace("**", "").strip(' "“”*')
