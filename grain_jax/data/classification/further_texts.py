"""Texts from files of their own that only some zero-shot methods take, by their kind.

Most kinds are `{class: [text, ...]}`. Those of `FORMS` have a form of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grain_jax.data.classification.class_texts import bind_descriptions, classes_of_keys
from grain_jax.data.text_files import entries_hint, read_texts

Texts = tuple[str, ...]
# kind -> what its file holds, where that is not {class: [text, ...]}
FORMS = {
    "synonyms": "{class: {synonym: number of training captions}}",
    "pairs": "{class: {other class: [text about the class, ...]}}",
    "contexts": "{context: [suffix, ...]}",
    "reject": "[[text, opposite text], ...]",
    "accept": "[[text, opposite text], ...]",
}


@dataclass(frozen=True)
class FurtherTexts:
    """By kind: texts of classes, texts that are of no single class, and texts of pairs of classes.

    Args:
        of_classes: class name to texts; synonyms stand in falling order of their numbers.
        shared: groups of texts: suffixes of each context, a text with its opposite.
        pairs: class name to other class to what tells the class from the other.
    """

    of_classes: dict[str, dict[str, Texts]] = field(default_factory=dict)
    shared: dict[str, tuple[Texts, ...]] = field(default_factory=dict)
    pairs: dict[str, dict[str, Texts]] = field(default_factory=dict)


def read_further_texts(
    files: Mapping[str, str],
    names: dict[str, str],
    title: str,
    note: Callable[[str], None],
    *,
    name_texts: Mapping[str, str],
) -> FurtherTexts:
    """Reads the file of each kind, and binds what is of classes by name.

    Args:
        files: kind -> .json, as `FORMS` has it.
        names: label -> class name.
        title: the set, for messages.
        note: called with sentences that a reader of the metrics should know.
        name_texts: as in `ZeroShotSet`.

    Raises ValueError for another structure, and for ambiguous, repeated or only unknown classes.
    """
    further = FurtherTexts()
    for kind, source in files.items():
        given = read_texts(source)
        if kind == "pairs":
            further.pairs.update(_pairs(given, names, source, title, note, name_texts=name_texts))
        elif kind == "contexts":
            further.shared[kind] = _contexts(given, source)
        elif kind in ("reject", "accept"):
            further.shared[kind] = _opposites(given, source)
        else:
            texts = _by_count(given, source) if kind == "synonyms" else given
            further.of_classes[kind] = bind_descriptions(
                texts,
                names,
                source,
                title,
                note,
                name_texts=name_texts,
                undescribed=f" in {source!r}, and are scored by their name where it is used",
            )
    return further


def _expected(kind: str, source: str, given: Any) -> ValueError:
    return ValueError(f"{source!r} must hold {FORMS[kind]}{entries_hint(given)}.")


def _by_count(given: Any, source: str) -> dict[str, list[str]]:
    """Synonyms in falling order of their numbers, those of number 0 left out."""
    if not isinstance(given, dict):
        raise _expected("synonyms", source, given)
    for key, counts in given.items():
        if not isinstance(counts, dict):
            raise _expected("synonyms", source, given)
        for synonym, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(
                    f"The number of {synonym!r} of {key!r} in {source!r} must be a whole number of "
                    f"captions from 0 on, not {count!r}."
                )
    return {
        key: [name for name in sorted(counts, key=counts.get, reverse=True) if counts[name] > 0]
        for key, counts in given.items()
    }


def _contexts(given: Any, source: str) -> tuple[Texts, ...]:
    if not isinstance(given, dict) or not given or not all(map(_are_texts, given.values())):
        raise _expected("contexts", source, given)
    return tuple(tuple(dict.fromkeys(text.strip() for text in texts)) for texts in given.values())


def _opposites(given: Any, source: str) -> tuple[Texts, ...]:
    if not isinstance(given, list) or not given:
        raise _expected("reject", source, given)
    for pair in given:
        if not _are_texts(pair) or len(pair) != 2 or not all(text.strip() for text in pair):
            raise ValueError(f"{source!r} must hold {FORMS['reject']}, not {pair!r} among them.")
        if pair[0].strip() == pair[1].strip():
            raise ValueError(
                f"{source!r} sets {pair[0]!r} against itself; a pair shows a direction by what its "
                "two texts differ in."
            )
    return tuple((first.strip(), second.strip()) for first, second in given)


def _pairs(
    given: Any,
    names: dict[str, str],
    source: str,
    title: str,
    note: Callable[[str], None],
    *,
    name_texts: Mapping[str, str],
) -> dict[str, dict[str, Texts]]:
    nested = _nested(given, source)
    keys = dict.fromkeys([*nested, *(other for of in nested.values() for other in of)])
    meant = dict(classes_of_keys(keys, names, source, name_texts=name_texts))
    found: dict[str, dict[str, Texts]] = {}
    unknown = set()
    for key, of_others in nested.items():
        for other, texts in of_others.items():
            if not _are_texts(texts):
                raise ValueError(
                    f"The texts of {key!r} against {other!r} in {source!r} must be a list of "
                    "strings."
                )
            unknown |= {one for one in (key, other) if not meant[one]}
            for name in meant[key]:
                for against in meant[other]:
                    if name == against:
                        continue
                    if against in found.setdefault(name, {}):
                        raise ValueError(
                            f"{source!r} tells class {name!r} from {against!r} more than once "
                            f"(again as {key!r} and {other!r})."
                        )
                    found[name][against] = tuple(text.strip() for text in texts if text.strip())
    if not any(found.values()):
        raise ValueError(
            f"No pair of {source!r} is of two classes of {title!r}: keys are like "
            f"{next(iter(keys), '')!r}, classes like {next(iter(names.values()))!r}. Keys must be "
            "class names or labels; positions in a list of names are neither."
        )
    if unknown:
        note(
            f"{title}: {len(unknown)} of {len(keys)} keys of the pairs are of other classes "
            f"({sorted(unknown)[0]!r} first)."
        )
    return found


def _nested(given: Any, source: str) -> dict[str, dict[str, list[str]]]:
    """The pairs by class and other class, from that form or the flat one that FuDD publishes:
    {key: {"classes": [a, b], "prompt_pairs": [{"prompt_pair": [of a, of b]}, ...]}}.
    """
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise _expected("pairs", source, given)
    if not any("prompt_pairs" in one for one in given.values()):
        return given
    nested: dict[str, dict[str, list[str]]] = {}
    for key, one in given.items():
        classes, listed = one.get("classes"), one.get("prompt_pairs")
        pairs: list[Any] = [
            item.get("prompt_pair") if isinstance(item, dict) else None
            for item in (listed if isinstance(listed, list) else [None])
        ]
        if (
            not isinstance(classes, list)
            or len(classes) != 2
            or not all(_are_texts(pair) and len(pair) == 2 for pair in pairs)
        ):
            raise ValueError(
                f'{key!r} of {source!r} needs two "classes" and "prompt_pairs", each with a '
                '"prompt_pair" of two texts.'
            )
        first, second = map(str, classes)
        for name, other, side in ((first, second, 0), (second, first, 1)):
            if other in nested.setdefault(name, {}):
                raise ValueError(f"{source!r} has the pair of {first!r} and {second!r} twice.")
            nested[name][other] = [pair[side] for pair in pairs]
    return nested


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
