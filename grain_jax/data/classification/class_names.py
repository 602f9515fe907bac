"""Class names, bound to the labels of a zero-shot set by name.

Published lists of names differ from labels in ways that are errors or notes here: another order,
underscores and HTML entities, another Unicode composition of letters, many more classes.
"""

import difflib
import html
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from grain_jax.data.text_files import entries_hint

# Methods of binding a list of names to labels; those other than "name" must be chosen explicitly.
Binding = Literal["name", "order", "elimination"]
BINDINGS: tuple[Binding, ...] = get_args(Binding)
SHOWN = 10  # pairs and names listed in a message
ENTITY = re.compile(r"&(#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);")


def names_of_labels(
    labels: Sequence[str],
    given: Any,
    source: str,
    note: Callable[[str], None],
    *,
    binding: str = "name",
) -> dict[str, str]:
    """Label -> class name for every class, also those without an image.

    Labels and names are compared by `name_key`, and where that finds no partner
    `equal_but_for_spaces`.

    Args:
        labels: label of each image.
        given: the content of `source`: {label: name}, or a list of names; None: labels are names.
        source: file of the names, for messages.
        note: called with sentences that the user should know.
        binding: how a list is bound to labels, one of `BINDINGS` (`docs/evaluation.md`).

    Raises ValueError unless each label has exactly one name.
    """
    unique = sorted(set(labels))
    if binding not in BINDINGS:
        raise ValueError(f"Unknown binding {binding!r} of class names; choose among {BINDINGS}.")
    if binding != "name" and not isinstance(given, list):
        raise ValueError(
            f"Class names are bound by {binding} only where they are a list; "
            + (f"{source!r} is not a list." if source else "no file of them was given.")
        )
    if given is None:
        return {label: label for label in unique}
    if isinstance(given, dict):
        _check_names(given, source, entries_hint(given))
        return _bind_keys(unique, given, source)
    if isinstance(given, list):
        _check_names({str(name): name for name in given}, source, "")
        by_key = {name_key(name): name for name in given}
        if binding == "order":
            return _bind_by_order(unique, given, source, note)
        if len(by_key) != len(given):
            keys = [name_key(name) for name in given]
            twice = next(name for name in given if keys.count(name_key(name)) > 1)
            raise ValueError(
                f"{source!r} lists class {twice!r} more than once; tell them apart with a JSON "
                "object {label: name}."
            )
        return _bind_list(unique, by_key, source, note, eliminate=binding == "elimination")
    raise ValueError(f"{source!r} must hold a list of names or an object {{label: name}}.")


def name_key(text: str) -> str:
    """The key that names are compared by; ignores case, underscores, spacing and composition."""
    folded = unicodedata.normalize("NFC", text).replace("_", " ").casefold()
    return unicodedata.normalize("NFC", " ".join(folded.split()))


def joined_key(text: str) -> str:
    """`name_key` without its spaces: "chain saw" and "chainsaw" have the same."""
    return name_key(text).replace(" ", "")


def equal_but_for_spaces(left: Iterable[str], right: Iterable[str]) -> dict[str, str]:
    """Text of `left` -> text of `right` with the same `joined_key`, where neither side has a second
    one.
    """
    sides = []
    for texts in (left, right):
        alike: dict[str, list[str]] = defaultdict(list)
        for text in dict.fromkeys(texts):
            alike[joined_key(text)].append(text)
        sides.append({key: found[0] for key, found in alike.items() if len(found) == 1})
    return {text: sides[1][key] for key, text in sides[0].items() if key in sides[1]}


def spaced_words(label: str) -> str:
    """A name in camel case with its words separated: "AnnualCrop" becomes "Annual Crop"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)


def _check_names(given: Mapping[str, Any], source: str, hint: str) -> None:
    for label, name in given.items():
        if not isinstance(name, str) or not name.strip():
            several = (
                " It lists several; choose one." if isinstance(name, list) and not hint else ""
            )
            raise ValueError(
                f"{source!r} has no name (one string) for label {label!r}{hint}.{several}"
            )


def _bind_keys(labels: Sequence[str], given: dict[str, str], source: str) -> dict[str, str]:
    """Binds labels to the keys that equal them, or else to those with the same `name_key`, or else
    to those that are `equal_but_for_spaces`.
    """
    by_key: dict[str, list[str]] = defaultdict(list)
    for key in given:
        by_key[name_key(key)].append(key)
    joined = equal_but_for_spaces(labels, given)
    key_of: dict[str, str] = {}
    for label in labels:
        alike = by_key[name_key(label)] or by_key[name_key(spaced_words(label))]
        if label in given:
            key_of[label] = label
        elif len(alike) > 1:
            raise ValueError(
                f"Label {label!r} could be {alike[0]!r} or {alike[1]!r} of {source!r}; spell it "
                "there as it is."
            )
        elif alike:
            key_of[label] = alike[0]
        elif label in joined:
            key_of[label] = joined[label]
    for key in set(key_of.values()):
        if len(same := [label for label in labels if key_of.get(label) == key]) > 1:
            raise ValueError(
                f"Labels {same[0]!r} and {same[1]!r} are both {key!r} of {source!r}; give each its "
                "own."
            )
    _refuse_unnamed(labels, key_of, given, source)
    taken = set(key_of.values())
    rest = {key: name for key, name in given.items() if key not in taken}
    return {label: given[key] for label, key in key_of.items()} | rest


def _bind_list(
    labels: Sequence[str],
    by_key: dict[str, str],
    source: str,
    note: Callable[[str], None],
    *,
    eliminate: bool,
) -> dict[str, str]:
    """Binds by `name_key`, or where that finds none `equal_but_for_spaces`; else one to one by
    words, and with `eliminate` the last pair so.
    """
    found: dict[str, str] = {}
    for label in labels:
        for key in (name_key(label), name_key(spaced_words(label))):
            if key in by_key:
                found.setdefault(label, by_key[key])
    joined = equal_but_for_spaces(labels, by_key.values())
    found |= {label: name for label, name in joined.items() if label not in found}
    _refuse_shared(found, source)
    if len(found) == len(labels):
        return found | {name: name for name in by_key.values() if name not in found.values()}
    if len(labels) != len(by_key):
        _refuse_unnamed(labels, found, list(by_key.values()), source)
    exact = set(found)
    rest = [label for label in labels if label not in found]
    names = [name for name in by_key.values() if name not in found.values()]
    found |= bind_by_words(rest, names)
    left = [label for label in labels if label not in found]
    if eliminate and len(left) == 1:
        found |= {left[0]: next(n for n in by_key.values() if n not in found.values())}
    _refuse_unnamed(labels, found, list(by_key.values()), source)
    loose = [f"{label!r} is {found[label]!r}" for label in labels if label not in exact]
    note(
        f"{len(loose)} of {len(labels)} class names of {source!r} were bound by their words"
        f"{' and by elimination' if left else ''}, one to one: {', '.join(loose[:20])}."
    )
    return found


def bind_by_words(labels: Collection[str], names: Collection[str]) -> dict[str, str]:
    """Label -> name, for pairs where the words of one contain those of the other.

    Such a pair is bound if neither is in another such pair: "SeaLake" to "lake or sea",
    "annual_crop" to "annual crop land". Pairs of equal words are bound first.
    """
    found: dict[str, str] = {}
    of_label = {label: _words(label) for label in labels}
    of_name = {name: _words(name) for name in names}
    for holds in (frozenset.__eq__, frozenset.__le__, frozenset.__ge__):
        free_names = [name for name in names if name not in found.values()]
        by_word: dict[str, list[str]] = defaultdict(list)
        for name in free_names:
            for word in of_name[name]:
                by_word[word].append(name)
        pairs = [
            (label, name)
            for label in labels
            if label not in found
            for name in dict.fromkeys(n for word in of_label[label] for n in by_word[word])
            if holds(of_label[label], of_name[name])
        ]
        by_label, by_name = _counts(pairs, 0), _counts(pairs, 1)
        found |= {label: name for label, name in pairs if by_label[label] == by_name[name] == 1}
    return found


def _counts(pairs: Sequence[tuple[str, str]], side: int) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for pair in pairs:
        counts[pair[side]] += 1
    return counts


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+", name_key(spaced_words(text))))


def _bind_by_order(
    labels: Sequence[str], names: Sequence[str], source: str, note: Callable[[str], None]
) -> dict[str, str]:
    """Binds the k-th name to the k-th label, sorted by number where all labels are numbers.

    Otherwise labels are sorted as strings, as by torchvision's `ImageFolder`.
    """
    if len(labels) != len(names):
        raise ValueError(
            f"{source!r} has {len(names)} names for {len(labels)} labels; by order, their numbers "
            "must be equal."
        )
    numbers = all(label.isascii() and label.isdigit() for label in labels)
    ordered = sorted(labels, key=int) if numbers else sorted(labels)
    bound = dict(zip(ordered, names, strict=True))
    by_key = {name_key(name): name for name in names}
    joined = equal_but_for_spaces(labels, names)
    rest = []
    for label in ordered:
        keys = {name_key(label), name_key(spaced_words(label)), name_key(joined.get(label, label))}
        if name_key(bound[label]) in keys:
            by_key.pop(name_key(bound[label]), None)
        elif alike := next((by_key[key] for key in keys if key in by_key), ""):
            raise _contradicts(label, bound[label], alike, source)
        else:
            rest.append(label)
    for label, name in bind_by_words(rest, list(by_key.values())).items():
        if name_key(name) != name_key(bound[label]):
            raise _contradicts(label, bound[label], name, source)
    shown = ", ".join(f"{label!r} is {bound[label]!r}" for label in ordered[:SHOWN])
    note(
        f"The names of {source!r} were bound in the order of the labels as "
        f"{'numbers' if numbers else 'texts'}: {shown}{', ...' if len(names) > SHOWN else ''}."
    )
    return bound


def _contradicts(label: str, by_order: str, by_name: str, source: str) -> ValueError:
    return ValueError(
        f"{source!r} is not in the order of the labels: {label!r} would be {by_order!r}, but "
        f"{by_name!r} is in the list too. Write a JSON object {{label: name}}."
    )


def _refuse_shared(found: Mapping[str, str], source: str) -> None:
    labels_of: dict[str, list[str]] = defaultdict(list)
    for label, name in found.items():
        labels_of[name].append(label)
    for name, labels in labels_of.items():
        if len(labels) > 1:
            raise ValueError(
                f"Labels {labels[0]!r} and {labels[1]!r} are both {name!r} of {source!r}; give "
                "each its own with a JSON object {label: name}."
            )


def _refuse_unnamed(
    labels: Sequence[str], found: Mapping[str, str], given: dict[str, str] | list[str], source: str
) -> None:
    """Raises ValueError, with the nearest names and how to bind them, where labels lack a name."""
    unnamed = [label for label in labels if label not in found]
    if not unnamed:
        return
    free = [name for name in given if name not in found.values()]
    proposed = {label: nearest_name(label, free) or "?" for label in unnamed[:SHOWN]}
    nearest = with_nearest(unnamed, free)
    if len(unnamed) == len(free) == 1 and len(given) == len(labels):
        proposed = {unnamed[0]: free[0]}
        nearest = f"{unnamed[0]!r}: {free[0]!r}"
    what = "a key" if isinstance(given, dict) else "a name"
    message = (
        f"Label {unnamed[0]!r} has no class name in {source!r} ({len(unnamed)} of "
        f"{len(labels)} labels lack one); add it. Nearest of {len(free)} not taken: {nearest}."
    )
    if isinstance(given, list):
        known = list(found.items())[: max(SHOWN - len(proposed), 1)]
        bound = dict(known) | proposed
        message += (
            " Or write a JSON object {label: name}, such as "
            f"{json.dumps(bound, ensure_ascii=False)}, and give it to --classes."
        )
        if len(given) == len(labels):
            message += " If the list is in the order of the labels, --classes_by=order says so" + (
                f"; if {unnamed[0]!r} and {free[0]!r} belong together as the last of both, "
                "--classes_by=elimination does."
                if len(unnamed) == len(free) == 1
                else "."
            )
    else:
        message += f" Each label needs {what} of its own."
    raise ValueError(message)


def first_of(parts: Sequence[str], *, between: str = ", ", what: str = "") -> str:
    """The first `SHOWN` of the parts as they are, and how many more there are, of `what`."""
    more = f" and {len(parts) - SHOWN} more{what and f' {what}'}" if len(parts) > SHOWN else ""
    return between.join(parts[:SHOWN]) + more


def listed(names: Sequence[str]) -> str:
    """The first `SHOWN` of the names, and how many more there are."""
    return first_of(list(map(repr, names)))


def with_nearest(names: Sequence[str], among: Sequence[str]) -> str:
    """As `listed`, each with the `nearest_name` of others."""
    parts = []
    for name in names[:SHOWN]:
        near = nearest_name(name, among)
        parts.append(f"{name!r}: {f'{near!r}' if near else 'none is similar'}")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(parts) + more


def nearest_name(label: str, names: Sequence[str]) -> str:
    """The name with the most words of the label, else the most similar spelling; "" for none."""
    words = _words(label)
    best = max(names, key=lambda name: len(words & _words(name)), default="")
    if words & _words(best):
        return best
    by_key = {name_key(name): name for name in names}
    near = difflib.get_close_matches(name_key(spaced_words(label)), list(by_key), n=1, cutoff=0.5)
    return by_key[near[0]] if near else ""


def clean_names(
    names: dict[str, str], note: Callable[[str], None], *, keep: bool
) -> dict[str, str]:
    """Names in composed form (NFC), without underscores and HTML entities unless `keep`.

    Visible changes are passed to `note`.
    """
    composed = {label: unicodedata.normalize("NFC", name) for label, name in names.items()}
    if keep:
        return composed
    cleaned = {label: _cleaned(name) for label, name in composed.items()}
    changed = [(name, cleaned[label]) for label, name in composed.items() if cleaned[label] != name]
    if changed:
        before, after = changed[0]
        note(
            f"{len(changed)} of {len(names)} class names had underscores, odd spaces or HTML "
            f"entities cleaned, as {before!r} -> {after!r} (--keep_names keeps them)."
        )
    return cleaned


def _cleaned(name: str) -> str:
    unescaped = ENTITY.sub(lambda entity: html.unescape(entity[0]), name)
    return unicodedata.normalize("NFC", " ".join(unescaped.replace("_", " ").split()))
