"""Tables of a suite's file, checked against the fields of the class that they become."""

import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

_NOT_WRITTEN = ("folder", "packaged", "included")  # fields that the place of the file decides


def fields_of(kind: type) -> dict[str, Any]:
    """Name -> type of what a file may say."""
    hints = typing.get_type_hints(kind)
    return {name: hints[name] for name in hints if name not in _NOT_WRITTEN}


def checked_table(given: Mapping[str, Any], kind: type, title: str) -> dict[str, Any]:
    """The values of a table as the fields of `kind` have them.

    Raises ValueError, which begins with `title`, for an unknown key, with the nearest that exists,
    a missing name or format, and a value of another type.
    """
    known = fields_of(kind)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"{title}: unknown key {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(known)}.")
            )
    for required in ("name", "format"):
        if required in known and required not in given:
            raise ValueError(f"{title} has no {required}; give it one.")
    return {key: _value(value, known[key], f"{title}: {key}") for key, value in given.items()}


def _value(value: Any, kind: Any, title: str) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # "X | None"; None is not given
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        if value not in (choices := typing.get_args(kind)):
            raise ValueError(f"{title} is one of {', '.join(choices)}, not {value!r}.")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{title} is a list, not {value!r}.")
        return tuple(_value(one, typing.get_args(kind)[0], title) for one in value)
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f'{title} is a table, as {{cupl = "cupl.json"}}, not {value!r}.')
        return {key: _value(one, str, f"{title}.{key}") for key, one in value.items()}
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        words = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"{title} is {words[kind]}, not {value!r}.")
    return value
