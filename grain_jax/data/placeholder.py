"""The "{}" of a template or prompt, where a name, a phrase or another text is put in."""

PLACEHOLDER = "{}"


def check_placeholder(text: str, what: str, *, takes: str) -> None:
    """Raises ValueError unless `text` has exactly one "{}".

    Args:
        what: how the message calls the text, as "Template 'a photo' of t.json".
        takes: what is put in, as "the name".
    """
    if (count := text.count(PLACEHOLDER)) != 1:
        raise ValueError(
            f"{what} has {count or 'no'} {PLACEHOLDER!r} and needs exactly one {PLACEHOLDER!r}, "
            f"where {takes} goes."
        )
