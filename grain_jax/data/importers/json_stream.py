"""The members of a JSON file of any size, one at a time, with their places in the file.

Annotation files have hundreds of megabytes in one object. Read as a whole they take ten times that
in memory; an importer keeps only where each member is, and reads it again when it is asked for.
"""

import codecs
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from grain_jax.data.importers.item import InvalidRecordError
from grain_jax.data.importers.json_values import parse_object

BLOCK = 2**20  # bytes that are read at once
MAX_MEMBER = 64 * 2**20  # characters of one member
SPACE = " \t\n\r"
NUMBER = re.compile(r"[-+.eE0-9]*")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the file's object, or an element of one of its lists."""

    key: str  # of the object; "" for elements of a file that is a list
    value: Any
    start: int  # in bytes
    size: int  # in bytes


def members(path: Path, lists: Collection[str] = ()) -> Iterator[Member]:
    """The members of the object in a file; of members named in `lists`, each element.

    A file that is a list yields its elements under the key "". Objects with a key twice are yielded
    with the last value; `read_member` refuses them. Raises ValueError that names the file and the
    byte where it is not JSON.
    """
    with path.open("rb") as file:
        yield from _Reader(path, file).members(lists)


def read_member(path: Path, start: int, size: int) -> dict[str, Any]:
    """The object at a place in a file. Raises `InvalidRecordError` that names the place."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    try:
        return parse_object(data)
    except InvalidRecordError as error:
        raise InvalidRecordError(f"{path}, byte {start}: {error}") from None


class _Reader:
    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text, self._at = "", 0  # what is read and not used yet starts at `_at`
        self._byte, self._ended = 0, False  # the place of `_at` in the file
        if file.read(3) == codecs.BOM_UTF8:
            self._byte = 3
        file.seek(self._byte)

    def members(self, lists: Collection[str]) -> Iterator[Member]:
        opening = self._take("{[", "an object or a list")
        if opening == "[":
            yield from self._elements("")
        elif self._next() == "}":
            self._skip(1)
        else:
            while True:
                key = self._value()[0] if self._next() == '"' else self._fail("expected a key")
                self._take(":", "':'")
                if key in lists and self._next() == "[":
                    self._skip(1)
                    yield from self._elements(key)
                else:
                    yield Member(key, *self._value())
                if self._take(",}", "',' or '}'") == "}":
                    break
        if self._next():
            self._fail("more text after the end")

    def _elements(self, key: str) -> Iterator[Member]:
        if self._next() == "]":
            self._skip(1)
            return
        while True:
            yield Member(key, *self._value())
            if self._take(",]", "',' or ']'") == "]":
                return

    def _value(self) -> tuple[Any, int, int]:
        """A value with its place in bytes."""
        self._next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                # The next block may continue a number, also behind what is read of its end: "1" "."
                if self._number_end(end) < len(self._text) or not self._more():
                    break
            except json.JSONDecodeError as error:
                if not self._more():
                    self._fail(error.msg)
            except (RecursionError, ValueError) as error:
                self._fail(str(error))
        start = self._byte
        self._skip(end - self._at)
        return value, start, self._byte - start

    def _number_end(self, start: int) -> int:
        match = NUMBER.match(self._text, start)
        return match.end() if match else start

    def _take(self, choices: str, expected: str) -> str:
        character = self._next()
        if not character or character not in choices:
            self._fail(f"expected {expected}")
        self._skip(1)
        return character

    def _next(self) -> str:
        """The next character that is not a space; "" at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in SPACE:
                end += 1
            self._skip(end - self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _skip(self, count: int) -> None:
        if count:
            self._byte += len(self._text[self._at : self._at + count].encode())
            self._at += count

    def _more(self) -> bool:
        """Reads on, as much again as is waiting; whether there was more."""
        waiting = len(self._text) - self._at
        if self._ended or waiting > MAX_MEMBER:
            return False
        data = self._file.read(max(BLOCK, waiting))
        self._ended = not data
        try:
            text = self._decode.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            self._fail(f"not UTF-8 text ({error.reason})")
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(data)

    def _fail(self, message: str) -> NoReturn:
        raise ValueError(
            f"{self._path} is not JSON that can be read: {message} near byte {self._byte}."
        )
