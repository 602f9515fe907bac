"""Check templates and descriptions of classes, and bind descriptions to classes by name."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from grain_jax.data.classification.class_names import (
    joined_key,
    listed,
    name_key,
    spaced_words,
    with_nearest,
)
from grain_jax.data.placeholder import check_placeholder
from grain_jax.data.text_files import entries_hint

# What evaluation does with classes without descriptions.
SCORED_BY_NAME = " and are scored by their name instead"


def check_templates(given: Any, source: str) -> tuple[str, ...]:
    """The templates read from `source`. Raises ValueError unless each has exactly one "{}"."""
    if not isinstance(given, list) or not given or not all(isinstance(t, str) for t in given):
        raise ValueError(
            f"{source!r} must hold a list of templates, such as 'a photo of a {{}}.'"
            f"{entries_hint(given)}. Texts of single classes are given with --descriptions."
        )
    templates = tuple(template.replace("{c}", "{}") for template in given)
    for template in templates:
        check_placeholder(template, f"Template {template!r} of {source!r}", takes="the name")
    return templates


def bind_descriptions(
    given: Any,
    names: dict[str, str],
    source: str,
    title: str,
    note: Callable[[str], None],
    *,
    name_texts: Mapping[str, str] | None = None,
    undescribed: str = SCORED_BY_NAME,
) -> dict[str, tuple[str, ...]]:
    """Class name -> descriptions, from the content of `source`.

    Args:
        given: {key: [description, ...]}. A key is a label or a class name, compared by `name_key`,
            or the name of several classes in `name_texts`, whose descriptions all of them get.
        names: label -> class name.
        source: file of the descriptions, for messages.
        title: the set, for messages.
        note: called with sentences on classes without descriptions and on unused entries.
        name_texts: as in `ZeroShotSet`.
        undescribed: end of the sentence on classes without descriptions: what becomes of them.

    Raises ValueError for another structure, and for ambiguous, repeated or only unknown keys.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{source!r} must hold an object {{class: [description, ...]}}.")
    found: dict[str, tuple[str, ...]] = {}
    others: list[str] = []
    for key, described in classes_of_keys(given, names, source, name_texts=name_texts or {}):
        texts = given[key]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"The descriptions of {key!r} in {source!r} must be a list of strings"
                f"{entries_hint(given) if isinstance(texts, dict) else ''}."
            )
        if not described:
            others.append(key)
            continue
        for name in described:
            if name in found:
                raise ValueError(
                    f"{source!r} describes class {name!r} more than once (again as {key!r})."
                )
            found[name] = tuple(text.strip() for text in texts if text.strip())
    if not found:
        wanted = list(dict.fromkeys(names.values()))
        raise ValueError(
            f"No key of {source!r} is a class of {title!r}: of its {len(given)} keys ("
            f"{listed(list(given))}) the nearest to each of {len(wanted)} classes are "
            f"{with_nearest(wanted, list(given))}. Keys must be class names or labels"
            f"{entries_hint(given)}; spell them as these, or give the file of these classes."
        )
    classes = len(set(names.values()))
    empty = [name for name in names.values() if not found.get(name)]
    if empty:
        note(undescribed_note(title, empty, classes, undescribed))
    if others:
        unused = (
            f"{title}: {len(others)} of {len(given)} entries of {source!r} are of other classes"
        )
        if empty:
            unused += (
                f"; the nearest of them to those without one are {with_nearest(empty, others)}. "
                "Where the same class is meant, spell its key as the class"
            )
        note(f"{unused}.")
    return found


def classes_of_keys(
    keys: Iterable[str],
    names: Mapping[str, str],
    source: str,
    *,
    name_texts: Mapping[str, str],
) -> Iterator[tuple[str, list[str]]]:
    """Each key of a file about classes, and the class names that it means, [] for other classes.

    A key is a label or a class name, compared by `name_key`, or the name of several classes in
    `name_texts`. One that equals none may have spaces in other places, as "chainsaw" for "chain
    saw", where no second key and no second class has its letters. `names`: label -> class name.
    Raises ValueError for a key that is ambiguous.
    """
    shared = {name: name_key(text) for name, text in name_texts.items()}
    by_key: dict[str, list[str]] = defaultdict(list)
    for label, name in names.items():
        meant = {name_key(text) for text in (label, name, spaced_words(label))}
        for key in meant | ({shared[name]} if name in shared else set()):
            by_key[key].append(name)
    by_letters: dict[str, dict[str, None]] = defaultdict(dict)
    for key, classes in by_key.items():
        by_letters[joined_key(key)] |= dict.fromkeys(classes)
    keys = list(keys)
    times = Counter(map(joined_key, keys))
    for key in keys:
        classes = list(dict.fromkeys(by_key.get(name_key(key), ())))
        alike = list(by_letters.get(joined_key(key), ()))
        if not classes and len(alike) == times[joined_key(key)] == 1:
            classes = alike
        if len(classes) > 1 and any(shared.get(name) != name_key(key) for name in classes):
            raise ValueError(
                f"{key!r} of {source!r} could be class {classes[0]!r} or {classes[1]!r}, as it "
                "is the label of one and the name of another; use the labels of both."
            )
        yield key, classes


def undescribed_note(
    title: str, undescribed: Sequence[str], num_classes: int, consequence: str = SCORED_BY_NAME
) -> str:
    """A note on classes without descriptions, with the consequence as its end."""
    return (
        f"{title}: {len(undescribed)} of {num_classes} classes have no description "
        f"({listed(undescribed)}){consequence}."
    )
