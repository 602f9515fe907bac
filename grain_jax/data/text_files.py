"""Read files of class names, templates and descriptions: .txt, .json, and CLIP's .md.

Anything damaged or ambiguous is an error that names it: encodings, duplicate keys, NaN.
"""

import ast
import difflib
import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from grain_jax.paths import expand_home, no_file

SUFFIXES = (".txt", ".json", ".md")
MAX_BYTES = 256 * 2**20  # of a text file; descriptions of 21,000 classes take about 20 MB
MAX_MARKDOWN_BYTES = 8 * 2**20  # parsed as Python, which takes about 100 times as much memory
ROLES = ("classes", "templates")  # lists of one data set in a Markdown file


def split_entry(source: str) -> tuple[str, str]:
    """(file, entry) of `file#entry`; the entry is "" where there is none.

    A `source` that exists is a file without an entry. Otherwise the last "#" that follows an
    existing file separates the two, as the names of folders, files and entries may contain "#".
    """
    source = expand_home(source)
    end = len(source)
    while not os.path.isfile(source) and (end := source.rfind("#", 0, end)) >= 0:
        if os.path.isfile(source[:end]):
            return source[:end], source[end + 1 :]
    return source, ""


def read_texts(source: str, role: str = "") -> Any:
    """The content of a file: of .json its value, of .txt its lines, of .md the list called `role`.

    `file#entry` selects a key of a JSON object, or a section of a Markdown file, whose code block
    assigns Python lists to `classes` and `templates` (`ROLES`). Raises ValueError where the file or
    the entry does not exist or cannot be read.
    """
    name, entry = split_entry(source)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{no_file(path)}.")
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{name!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    text = read_text_file(path, max_bytes=MAX_MARKDOWN_BYTES if kind == ".md" else MAX_BYTES)
    if kind == ".txt":
        if entry:
            raise ValueError(f"{name!r} has no entries, so {entry!r} cannot be taken; use .json.")
        return _lines(text, name)
    if kind == ".md":
        return _markdown_list(text, name, entry, role)
    content = _parse_json(text, name)
    if not entry:
        return content
    if not isinstance(content, dict):
        raise ValueError(f"{name!r} has no entry {entry!r}; it has none, as it is a list.")
    return content[_entry_key(entry, list(content), name)]


def read_text_file(path: Path, *, max_bytes: int) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises ValueError where it cannot be read, is too large, or has another encoding.
    """
    try:
        with path.open("rb") as opened:
            data = opened.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    if len(data) > max_bytes:
        raise ValueError(f"{str(path)!r} is larger than {max_bytes} bytes; give a smaller file.")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{str(path)!r} is not text in UTF-8: line {line} has the byte "
            f"0x{data[error.start]:02x}. Save it as UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{str(path)!r} has a zero byte in line {line}: it is damaged, or UTF-16 without a "
            "byte order mark. Save it as UTF-8."
        )
    return text


def entries_hint(given: Any) -> str:
    """Hint for an error about an object of lists or objects, which may be a file of many sets."""
    nested = list | dict
    if not isinstance(given, dict) or not all(isinstance(v, nested) for v in given.values()):
        return ""
    return f"; pick one entry with 'file.json#key': {', '.join(sorted(given)[:20])}"


def _lines(text: str, name: str) -> list[str]:
    lines = re.split(r"\r\n|\n|\r", text)  # `splitlines` also splits at characters within a line
    for number, line in enumerate(lines, start=1):
        if "\t" in line.strip():
            raise ValueError(
                f"Line {number} of {name!r} has a tab; expected one text per line. For columns, "
                "such as labels with their names, write a JSON object {label: name}."
            )
    return [line.strip() for line in lines if line.strip()]


def _parse_json(text: str, name: str) -> Any:
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name!r} holds half a character, \\u{ord(error.object[error.start]):04x}: a "
            "surrogate without its pair. Write the character itself."
        ) from None
    except RecursionError:
        raise ValueError(f"{name!r} is nested too deeply to be class texts.") from None
    except ValueError as error:
        raise ValueError(f"{name!r} is not valid JSON: {error}") from error
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return content


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a value of JSON")


def _entry_key(entry: str, known: list[str], name: str) -> str:
    """The key `entry`, or the only one that differs from it in case. Raises ValueError."""
    if entry in known:
        return entry
    alike = [key for key in known if key.casefold() == entry.casefold()]
    if len(alike) == 1:
        return alike[0]
    near = difflib.get_close_matches(entry, known, n=20, cutoff=0.5)
    listed = list(dict.fromkeys([*near, *sorted(known)]))[:20]
    raise ValueError(f"{name!r} has no entry {entry!r}; it has {', '.join(listed) or 'none'}.")


def _markdown_list(text: str, name: str, entry: str, role: str) -> list[Any]:
    if role not in ROLES:
        raise ValueError(
            f"{name!r} can hold class names and templates only; expected a .txt or .json file here."
        )
    sections = _markdown_sections(text)
    if not sections:
        raise ValueError(
            f"{name!r} has no section with a code block; expected blocks with Python lists called "
            f"{' and '.join(ROLES)}, each under a heading."
        )
    if not entry and len(sections) > 1:
        raise ValueError(
            f"{name!r} has {len(sections)} sections; pick one with 'file.md#heading': "
            f"{', '.join(list(sections)[:40])}."
        )
    heading = _entry_key(entry, list(sections), name) if entry else next(iter(sections))
    try:
        assigned = [
            (target.id, node.value)
            for block in sections[heading]
            for node in ast.parse(block).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        found = [ast.literal_eval(value) for variable, value in assigned if variable == role]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"The code block of {heading!r} in {name!r} is not lists of texts in Python: {error}."
        ) from None
    if len(found) != 1 or not isinstance(found[0], list):
        raise ValueError(
            f"The section {heading!r} of {name!r} has {len(found)} lists called {role!r}; expected "
            "one."
        )
    return found[0]


def _markdown_sections(text: str) -> dict[str, list[str]]:
    """Heading -> its code blocks, for headings with code blocks."""
    sections: dict[str, list[str]] = {}
    block: list[str] = []
    heading = fence = ""
    for line in re.split(r"\r\n|\n|\r", text):
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                sections.setdefault(heading, []).append("\n".join(block))
                fence = ""
            else:
                block.append(line)
        elif opened := re.match(r" {0,3}(`{3,}|~{3,})", line):
            fence, block = opened[1], []
        elif titled := re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*\s*$", line):
            heading = titled[1]
    return sections
