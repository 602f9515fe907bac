"""Suites of evaluation sets, as files in TOML or JSON that a person can write.

A file names sets of labelled images and prepared records, their texts, what is expected of them,
and which metric of each is averaged. It holds data only. Those in `suites/` go by their name.
"""

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from grain_jax.data.classification.class_counts import published_counts
from grain_jax.data.classification.templates import TEMPLATE_LISTS
from grain_jax.evaluation.digests import sha256_of
from grain_jax.paths import user_path
from grain_jax.zero_shot.methods import check_methods

PACKAGED = Path(__file__).parent / "suites"
SUFFIXES = (".toml", ".json")
NAME = re.compile(r"[^/\s][^/]*")  # of a set: the first part of its metrics' keys
Binding = Literal["name", "order", "elimination"]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images, as `python -m grain_jax.evaluate --data` takes them."""

    name: str
    data: str = ""  # the folder; "": the name, in --suite_data or beside the file
    metric: Literal["top1", "per_class"] = "top1"  # what is shown and averaged
    in_average: bool = True
    num_classes: int | None = None  # expected, images of any number of them
    num_images: int | None = None
    methods: tuple[str, ...] = ()  # (): those of the suite
    classes: str = ""
    templates: str = ""
    descriptions: str = ""
    description_template: str = "{}"
    counts: str = ""
    keep_names: bool = False
    classes_by: Binding = "name"
    allow_equal_names: bool = False


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """A split of prepared records, for retrieval and grounding."""

    name: str
    data: str = ""
    split: str = "test"
    tasks: tuple[Literal["retrieval", "grounding"], ...] = ("retrieval", "grounding")
    metric: Literal["mean_R@1", "phrase_accuracy", "box_recall"] = "mean_R@1"
    in_average: bool = True
    num_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is measured together."""

    name: str
    note: str = ""  # printed with the results
    methods: tuple[str, ...] = ()  # (): the default ones
    alphas: tuple[float, ...] = ()  # (): those of the run
    images: tuple[ImageSet, ...] = ()
    records: tuple[RecordSet, ...] = ()
    folder: Path = field(default_factory=Path)  # what its paths are relative to
    packaged: bool = False

    @property
    def sets(self) -> tuple[ImageSet | RecordSet, ...]:
        """All of them."""
        return (*self.images, *self.records)

    @property
    def sha256(self) -> str:
        """Of what the file says, without where it lies."""
        said = {name: getattr(self, name) for name in _fields(Suite)}
        sets = {key: [dataclasses.asdict(one) for one in said.pop(key)] for key in TABLES}
        return sha256_of(said | sets)

    def place(self, one: ImageSet | RecordSet, suite_data: Path | None) -> Path:
        """The folder of a set. Raises ValueError where a packaged suite needs `suite_data`."""
        if one.data:
            return self.folder / user_path(one.data)
        if suite_data is None and self.packaged:
            raise ValueError(
                f"Suite {self.name!r} says nothing of where its sets are; give "
                f"--suite_data=FOLDER, a folder that holds one folder a set, named "
                f"{', '.join(repr(known.name) for known in self.sets[:3])}, ..."
            )
        return (self.folder if suite_data is None else suite_data) / one.name

    def text(self, given: str) -> str:
        """A text file of a set, relative to the suite's; published counts, and templates of the
        package, go by their name.
        """
        if not given or given in (*published_counts(), *TEMPLATE_LISTS):
            return given
        return str(self.folder / user_path(given))


TABLES: Mapping[str, type[ImageSet] | type[RecordSet]] = {"images": ImageSet, "records": RecordSet}
_NOT_WRITTEN = ("folder", "packaged")


def packaged_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def read_suite(given: str) -> Suite:
    """The suite of a packaged name, or of a file.

    Raises ValueError for a file that is not one: unknown keys (with the nearest that exists),
    values of another type, sets of one name, no sets.
    """
    if given in packaged_suites():
        return _parse(PACKAGED / f"{given}.toml", packaged=True)
    path = user_path(given)
    if path.suffix not in SUFFIXES or not path.is_file():
        near = difflib.get_close_matches(given, packaged_suites(), n=1)
        raise ValueError(
            f"There is no suite {given!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" Expected {', '.join(packaged_suites())}, or a file that ends in .toml or .json."
        )
    return _parse(path, packaged=False)


def _parse(path: Path, *, packaged: bool) -> Suite:
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:  # bytes that are no text, too
        raise ValueError(f"{str(path)!r} is not {path.suffix[1:].upper()}: {error}") from error
    title = f"Suite {str(path)!r}"
    if not isinstance(content, dict):
        raise ValueError(f"{title} is a {type(content).__name__}, and a table was expected.")
    content = {"name": path.stem, **content}
    for key, kind in TABLES.items():
        listed = content.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ValueError(f"{title}: {key} is a list of tables, [[{key}]] in TOML.")
        content[key] = tuple(
            kind(**_checked(one, kind, f"{title}, {key}[{number}]"))
            for number, one in enumerate(listed)
        )
    sets = {key: content.pop(key) for key in TABLES}
    suite = Suite(
        **_checked(content, Suite, title), **sets, folder=path.parent.absolute(), packaged=packaged
    )
    _check(suite, title)
    return suite


def _check(suite: Suite, title: str) -> None:
    names = [one.name for one in suite.sets]
    if not names:
        raise ValueError(f"{title} has no sets; give [[images]] or [[records]].")
    for name in (suite.name, *names):
        if not NAME.fullmatch(name):
            raise ValueError(f"{title}: {name!r} is not a name of a set: no '/', no space first.")
    if twice := [name for i, name in enumerate(names) if name in (suite.name, *names[:i])]:
        raise ValueError(f"{title}: {twice[0]!r} is the name of two; give each its own.")
    for methods in (suite.methods, *(one.methods for one in suite.images)):
        try:
            check_methods(methods)
        except ValueError as error:
            raise ValueError(f"{title}: {error}") from error
    if any(not 0 <= alpha <= 1 for alpha in suite.alphas):
        raise ValueError(f"{title}: alphas are numbers from 0 to 1, not {list(suite.alphas)}.")
    for one in suite.sets:
        for what in ("num_classes", "num_images"):
            expected = getattr(one, what, None)
            if expected is not None and expected < 1:
                raise ValueError(f"{title}: {what} of {one.name!r} should be at least 1.")


def _fields(kind: type) -> dict[str, Any]:
    """Name -> type of what a file may say."""
    hints = typing.get_type_hints(kind)
    return {name: hints[name] for name in hints if name not in _NOT_WRITTEN}


def _checked(given: Mapping[str, Any], kind: type, title: str) -> dict[str, Any]:
    """The values of a table as the fields of `kind` have them."""
    known = _fields(kind)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"{title}: unknown key {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(known)}.")
            )
    if "name" not in given:
        raise ValueError(f"{title} has no name; give it one.")
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
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        words = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"{title} is {words[kind]}, not {value!r}.")
    return value
