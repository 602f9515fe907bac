"""Texts of classes that are put together from names, descriptions, and texts of files.

Each function makes the groups of one entry of `TEXT_KINDS` and is pure; None where the classes have
no such texts.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

from grain_jax.zero_shot.scorers import ClassTexts, fill

Groups = Sequence[Sequence[str]]

# Words that a description begins with, and what it is joined to the name by; others by "has".
_VERBS = frozenset(
    ["has", "have", "is", "are", "was", "can", "may", "often", "usually", "typically", "sometimes"]
)
_NOUNS = frozenset(["a", "an", "the", "one", "used", "made", "found", "known", "called", "similar"])
# What an image can be like whatever it shows; "" says nothing.
DEFAULT_CONTEXTS = (
    ("", "seen from the side", "seen from behind", "close up"),
    ("", "out of focus"),
    ("", "in the dark"),
)
MAX_CONTEXTS = 256  # combinations of a suffix from each context


def named_description(name: str, description: str) -> str:
    """A description with the class name in front of it (Menon & Vondrick)."""
    first = description.split(maxsplit=1)[0].lower()
    joint = "" if first in _VERBS else "is " if first in _NOUNS else "has "
    return f"A photo of a {name}, which {joint}{description}"


def named_descriptions(texts: ClassTexts, descriptions: Sequence[Sequence[str]]) -> Groups | None:
    """Each class's `descriptions` with its name; one without any falls back to its prompts."""
    if not any(descriptions):
        return None
    return [
        tuple(named_description(name, one) for one in described) or prompts
        for name, described, prompts in zip(texts.called, descriptions, texts.names, strict=True)
    ]


def of_file(kind: str) -> Callable[[ClassTexts], Groups | None]:
    """Texts of a file as they stand; a class without any falls back to its prompts."""

    def make(texts: ClassTexts) -> Groups | None:
        given = texts.further.get(kind, ())
        if not any(given):
            return None
        return [own or prompts for own, prompts in zip(given, texts.names, strict=True)]

    return make


def shared_of_file(kind: str) -> Callable[[ClassTexts], Groups | None]:
    """Groups of texts of a file that are of no single class."""
    return lambda texts: texts.shared.get(kind) or None


def most_frequent_synonyms(texts: ClassTexts) -> Groups | None:
    """What each class is called most often, in its prompts; without a count, its name."""
    synonyms = texts.further.get("synonyms", ())
    if not any(synonyms):
        return None
    return [
        _prompts(texts, known[0] if known else name)
        for known, name in zip(synonyms, texts.called, strict=True)
    ]


def subclass_parents(texts: ClassTexts) -> Mapping[int, tuple[str, ...]]:
    """Names of the subclasses of each class by its position, the class itself first.

    The name of the class is put behind that of a subclass in which it does not occur.
    """
    given = texts.further.get("subclasses", ())
    return {
        k: tuple(
            dict.fromkeys(
                [parent, *(_with_parent(one, parent) for one in (given[k] if given else ()))]
            )
        )
        for k, parent in enumerate(texts.called)
    }


def subclass_prompts(texts: ClassTexts) -> Groups | None:
    """A group for each subclass of each class, in the order of `subclass_parents`."""
    if not any(texts.further.get("subclasses", ())):
        return None
    return [
        _prompts(texts, one)
        for subclasses in subclass_parents(texts).values()
        for one in subclasses
    ]


def context_suffixes(texts: ClassTexts) -> list[str]:
    """One suffix of each context in every combination, joined with commas; those of a file, or
    `DEFAULT_CONTEXTS`.

    Raises ValueError for more than `MAX_CONTEXTS`.
    """
    contexts = texts.shared.get("contexts") or DEFAULT_CONTEXTS
    count = 1
    for suffixes in contexts:
        count *= max(1, len(suffixes))
    if count > MAX_CONTEXTS:
        raise ValueError(
            f"The contexts have {count} combinations, and every class a text for each; at most "
            f"{MAX_CONTEXTS} are taken. Leave contexts or suffixes out."
        )
    every = itertools.product(*(suffixes or ("",) for suffixes in contexts))
    return list(dict.fromkeys(", ".join(filter(None, chosen)) for chosen in every))


def context_prompts(texts: ClassTexts) -> Groups | None:
    """Each class in the first template with each of the `context_suffixes`."""
    suffixes = context_suffixes(texts)
    return [[_in_context(prompts[0], suffix) for suffix in suffixes] for prompts in texts.names]


def pair_texts(texts: ClassTexts) -> Groups | None:
    """The texts of each of `ClassTexts.pairs`, in their order."""
    return list(texts.pairs.values()) or None


def _prompts(texts: ClassTexts, name: str) -> tuple[str, ...]:
    return tuple(fill(template, name, name) for template in texts.templates)


def _with_parent(subclass: str, parent: str) -> str:
    return subclass if parent.lower() in subclass.lower() else f"{subclass} {parent}"


def _in_context(prompt: str, suffix: str) -> str:
    if not suffix:
        return prompt
    end = "." * prompt.endswith(".")
    return f"{prompt.removesuffix('.')}, {suffix}{end}"
