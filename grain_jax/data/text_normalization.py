"""Text normalization before tokenization; recorded with the tokenizer.

"ftfy" is what OpenAI's CLIP and open_clip do: `ftfy.fix_text` (typographic quotes become straight,
ligatures and full-width letters plain, letters with combining accents composed, broken encodings
repaired), HTML entities resolved twice, white space collapsed. "entities" does not use `ftfy`: for
runs and exports made before it was recorded, and for tokenizers of other models, whose own file has
the rest.
"""

import html
import re
from collections.abc import Callable

from grain_jax.data.captions import clean_text

FTFY, ENTITIES = "ftfy", "entities"

# Texts in which `ftfy.fix_text` changes only these quotes: printable ASCII without "&", and marks
# that language models write, which alone do not make up a broken encoding.
_SINGLE, _DOUBLE = "\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
_DASHES = "\u2013\u2014\u2026"  # and the ellipsis, which is kept
_STRAIGHT = str.maketrans(dict.fromkeys(_SINGLE, "'") | dict.fromkeys(_DOUBLE, '"'))
PLAIN = re.compile(rf"[\t\n\r !-%'-~{_SINGLE}{_DOUBLE}{_DASHES}]*")


def entities(text: str) -> str:
    """The text with HTML entities resolved (twice, as in web text) and white space collapsed."""
    return clean_text(html.unescape(html.unescape(text)))


def ftfy_cleaned(text: str) -> str:
    """The text cleaned as by OpenAI's CLIP, except for lower case."""
    if PLAIN.fullmatch(text):  # most texts; ftfy would take ten times as long as the rest
        return clean_text(text.translate(_STRAIGHT))
    import ftfy  # slow to import, and unused in runs on plain ASCII

    return entities(ftfy.fix_text(text))


NORMALIZATIONS: dict[str, Callable[[str], str]] = {FTFY: ftfy_cleaned, ENTITIES: entities}


def normalization(name: str) -> Callable[[str], str]:
    """The normalization of that name. Raises ValueError for an unknown name."""
    if not isinstance(name, str) or name not in NORMALIZATIONS:
        raise ValueError(
            f"Unknown text_normalization {name!r} of a tokenizer; known: "
            f"{', '.join(NORMALIZATIONS)}. It may come from a later version of grain_jax."
        )
    return NORMALIZATIONS[name]
