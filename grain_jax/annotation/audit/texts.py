"""Faults of single texts: refusals, sentences about what is absent, and texts without their end.

English only. Each function sees one text, so what needs knowledge of the image is not found here.
"""

import re

from grain_jax.data.captions import normalize_text

_STRAIGHT = str.maketrans(dict.fromkeys("\u2018\u2019", "'") | dict.fromkeys("\u201c\u201d", '"'))
_IMAGE = r"(?:image|photo|photograph|pic|scene|frame|drawing|painting|illustration|snapshot)"
_NOT = r"(?:(?:do|does|did|is|are|was|were|can|could)\s?(?:n't|\s*not)|cannot|can't)"
_SHOWN = (
    r"(?:visible|present|shown|seen|depicted|discernible|apparent|evident|identifiable"
    r"|noticeable|included|displayed|pictured|mentioned|specified)"
)
# Signs and names that say "no" themselves.
_NO_SIGN = (
    r"(?:parking|smoking|entry|stopping|standing|trespassing|swimming|diving|fishing|dogs|turns?"
    r"|u-?turns?|exit|vacancy|littering|dumping|name|one|man's|way|longer|more|less|fewer|doubt"
    r"|single|\d)\b"
)
_ABSENCE = re.compile(
    rf"""\bthere\s(?:is|are|was|were|seems?\sto\sbe|appears?\sto\sbe)\s(?:also\s)?
            (?:no\b(?!-|\s{_NO_SIGN})|n[o']t\s(?:any|a)\b|none\b|nothing\b(?!\s(?:but|like)))
    | \bthere(?:\s(?:is|are|was|were)|'s)n't\s(?:any|an?)\b
    | \b{_IMAGE}\s(?:itself\s)?{_NOT}\s(?:\w+\s)?
            (?:contain|show|include|feature|have|depict|display|provide|reveal|present|appear)
    | \b(?:contains?|contained|shows?|shown|features?|depicts?|includes?|has|have|having|with|of)
            \sno\b(?!-|\s{_NO_SIGN})
    | \bno\b(?!-|\s{_NO_SIGN})(?:\s[\w-]+){{1,6}}?\s(?:is|are|was|were|can\sbe)?\s?{_SHOWN}\b
    | \b(?:is|are|was|were)\s?(?:n't|\snot)\s(?:\w+\s)?{_SHOWN}\b
    | \b(?:cannot|can't|can\snot|could\snot|couldn't)\sbe\s(?:\w+\s)?(?:seen|determined|identified)
    | \b(?:not|never)\s(?:clearly\s|directly\s)?visible\b
    | \bwithout\s(?:any|an?y?\svisible|visible)\b
    | \b(?:absence\sof|lack\sof|lacks\b|lacking\b|devoid\sof|absent\b)
    | ^no\s(?!-|{_NO_SIGN})(?:\w+)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL = re.compile(
    r"""^\W*(?:(?:i'?m|i\sam|we're|we\sare)\s(?:very\s|really\s|so\s)?
            (?:sorry|unable|not\sable|afraid)\b
        | sorry\b[,.!\s] | apologies\b | my\sapologies | unfortunately,?\s(?:i|the\simage)\b
        | i\s(?:can\s?not|can't|could\s?n[o']t|won't|will\snot|do\s?n[o']t|does\sn[o']t)\b
        | (?:please|kindly|could\syou)\s(?:provide|upload|share|attach)\b)
    | \bas\san?\s(?:ai|artificial\sintelligence|(?:large\s)?language\smodel|assistant)\b
    | \bi(?:\s(?:can't|cannot|can\snot)|(?:'m|\sam)\s(?:unable|not\sable)\sto)
            \s(?:assist|help|see|view|provide|identify|process|describe|comply|fulfill|answer)
    | \bi\sdo(?:n't|\snot)\s(?:see|have)\s(?:an|any|access|the)\b
    | \bno\s(?:definitive|definite|single|one|right|correct|clear)\sanswer\b
    | \bno\simage\s(?:was|is|has\sbeen)\s(?:provided|attached|uploaded|given)
    | \b(?:against|violates?)\s(?:my|the|our)\s(?:content\s)?(?:policy|policies|guidelines)
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Words after which an English sentence or noun phrase does not end.
_DANGLING = frozenset(
    (
        *("a", "an", "the", "and", "or", "of", "with", "for", "from", "to", "at", "as", "nor"),
        *("onto", "its", "my", "our", "their", "his", "is", "are", "was", "were", "which", "that"),
        *("while", "where", "whose", "than", "but", "because", "between", "including", "such"),
        *("very", "some", "against", "during"),
    )
)
_ENDS = (".", "!", "?", "...", "\u2026")
_CLOSING = "\"')]}*\u201d\u2019"
_SENTENCE_BEFORE = re.compile(r"[.!?][\"')\]]?\s+\w")
_ABBREVIATION = re.compile(
    r"\b(?:st|mr|mrs|ms|dr|no|vs|u\.s|e\.g|i\.e|etc|ft|\w)\.\s", re.IGNORECASE
)


def is_about_absence(text: str) -> bool:
    """Whether a text says what cannot be seen, which no region shows and CLIP cannot learn from."""
    return _ABSENCE.search(_plain(text)) is not None


def is_refusal(text: str) -> bool:
    """Whether a model said that it will not or cannot describe the image."""
    return _REFUSAL.search(_plain(text)) is not None


def is_truncated(text: str) -> bool:
    """Whether a text stops before its end.

    True where it ends in a word that cannot be last, a comma, a hyphen or an open bracket or
    quotation mark, and where it has several sentences of which the last has no end.
    """
    plain = _plain(text)
    if not plain:
        return False
    if plain.count("(") > plain.count(")") or plain.count("[") > plain.count("]"):
        return True
    if plain.count('"') % 2 and not re.search(r"\d\"", plain):  # 12" is inches
        return True
    bare = plain.rstrip(_CLOSING)
    if bare.endswith((",", ";", ":", "-", "\u2013", "\u2014", "&", "/")):
        return True
    if bare.endswith(_ENDS):
        return bare.endswith(("...", "\u2026"))
    if normalize_text(bare).rpartition(" ")[2] in _DANGLING and " " in bare:
        return True
    return _SENTENCE_BEFORE.search(_ABBREVIATION.sub(" ", plain)) is not None


def _plain(text: str) -> str:
    return " ".join(text.translate(_STRAIGHT).split())
