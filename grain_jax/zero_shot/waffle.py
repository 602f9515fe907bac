"""WaffleCLIP's texts, which describe nothing, and four ways of giving classes wrong descriptions.

Roth et al. 2023, arXiv 2306.07282. All depend on the seed, which is the number of the draw, and on
the names and descriptions alone, not on the order of the classes.
"""

import string
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grain_jax.zero_shot.class_prompts import Groups, named_descriptions
from grain_jax.zero_shot.random_words import WORDS
from grain_jax.zero_shot.scorers import ClassTexts, fill

PAIRS = 15  # of random words and random characters
Lists = Sequence[tuple[str, ...]]
Control = Callable[[Lists, Sequence[str], int], Lists]  # descriptions, names, and the seed


def waffle_descriptions(names: Sequence[str], seed: int = 0) -> tuple[str, ...]:
    """Random words, then random characters, `PAIRS` times: as many words as names have on average,
    and those of characters as long as words of names.
    """
    words = [name.split() for name in names]
    count = max(1, round(float(np.mean([len(one) for one in words]))))
    lengths = [len(word) for one in words for word in one]
    length = max(1, round(float(np.mean(lengths)))) if lengths else 1
    rng = np.random.default_rng(seed)
    letters = list(string.ascii_letters + string.digits)
    found: list[str] = []
    while len(found) < 2 * PAIRS:
        chosen = " ".join(rng.choice(WORDS, count).tolist())
        noise = " ".join("".join(rng.choice(letters, length).tolist()) for _ in range(count))
        if len({chosen, noise, *found}) == len(found) + 2:
            found += [chosen, noise]
    return tuple(found)


def waffle_texts(texts: ClassTexts) -> Groups | None:
    """The name with each of the `waffle_descriptions`, the same for all classes."""
    shared = waffle_descriptions(texts.called, texts.draw)
    return [
        tuple(f"A photo of a {name}, which has {one}." for one in shared) for name in texts.called
    ]


def shared_random(descriptions: Lists, names: Sequence[str], seed: int = 0) -> Lists:
    """Descriptions drawn from those of all classes, the same for every class that has any; as many
    as classes have on average.
    """
    pool = _pool(descriptions)
    counts = [len(one) for one in descriptions if one]
    count = min(len(pool), max(1, round(float(np.mean(counts)))))
    drawn = _draw(np.random.default_rng(seed), pool, count)
    return [drawn if one else () for one in descriptions]


def scrambled(descriptions: Lists, names: Sequence[str], seed: int = 0) -> Lists:
    """The words of a class's descriptions in random order over them, each as long as it was."""
    return [
        _scramble(one, _generator(name, seed)) if one else ()
        for one, name in zip(descriptions, names, strict=True)
    ]


def random_per_class(descriptions: Lists, names: Sequence[str], seed: int = 0) -> Lists:
    """Descriptions drawn from those of all classes, for each class others, as many as it has."""
    pool = _pool(descriptions)
    return [
        _draw(_generator(name, seed), pool, len(one))
        for one, name in zip(descriptions, names, strict=True)
    ]


def swapped(descriptions: Lists, names: Sequence[str], seed: int = 0) -> Lists:
    """Every class with the descriptions of another: `swapped_with`."""
    source = swapped_with([bool(one) for one in descriptions], names, seed)
    return [descriptions[k] for k in source]


def swapped_with(described: Sequence[bool], names: Sequence[str], seed: int = 0) -> list[int]:
    """Whose descriptions each class gets: a random cycle through the described classes, so that
    none keeps its own; the others keep their place. A class that is described alone keeps its own.
    """
    source = list(range(len(names)))
    chosen = sorted((k for k in source if described[k]), key=lambda k: (names[k], k))
    order = [chosen[i] for i in np.random.default_rng(seed).permutation(len(chosen))]
    for k, other in zip(order, order[1:] + order[:1], strict=True):
        source[k] = other
    return source


CONTROLS: Mapping[str, Control] = {
    "shared": shared_random,
    "scrambled": scrambled,
    "random": random_per_class,
    "swapped": swapped,
}


def named_control(control: Control) -> Callable[[ClassTexts], Groups | None]:
    """Names with descriptions that the control chose."""

    def make(texts: ClassTexts) -> Groups | None:
        if not _several(texts.described):
            return None
        return named_descriptions(texts, control(texts.described, texts.called, texts.draw))

    return make


def whole_control(control: Control) -> Callable[[ClassTexts], Groups | None]:
    """What images are compared with in place of `ClassTexts.descriptions`."""

    def make(texts: ClassTexts) -> Groups | None:
        filled = [
            tuple(fill(texts.description_template, one, name) for one in described)
            for described, name in zip(texts.described, texts.called, strict=True)
        ]
        sentences = [
            () if own == prompts else own
            for own, prompts in zip(texts.descriptions, texts.names, strict=True)
        ]
        if not _several(sentences):
            return None
        if sentences == filled:  # a template may have the name in it, which stays the class's
            chosen = control(texts.described, texts.called, texts.draw)
            sentences = [
                tuple(fill(texts.description_template, one, name) for one in described)
                for described, name in zip(chosen, texts.called, strict=True)
            ]
        else:
            sentences = list(control(sentences, texts.called, texts.draw))
        return [own or prompts for own, prompts in zip(sentences, texts.names, strict=True)]

    return make


def region_control(control: Control) -> Callable[[ClassTexts], Groups | None]:
    """What regions are compared with in place of `ClassTexts.regions`."""

    def make(texts: ClassTexts) -> Groups | None:
        if not _several(texts.described):
            return None
        chosen = control(texts.described, texts.called, texts.draw)
        return [own or (name,) for own, name in zip(chosen, texts.called, strict=True)]

    return make


def _several(descriptions: Lists) -> bool:
    """Whether two classes have any: with fewer there are no wrong ones."""
    return sum(map(bool, descriptions)) > 1


def _pool(descriptions: Lists) -> list[str]:
    return sorted({text for one in descriptions for text in one})


def _draw(rng: np.random.Generator, pool: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(pool[i] for i in rng.choice(len(pool), count, replace=False))


def _scramble(descriptions: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    words = [word for text in descriptions for word in text.split()]
    shuffled = iter([words[i] for i in rng.permutation(len(words))])
    texts = [" ".join(next(shuffled) for _ in text.split()) for text in descriptions]
    return tuple(dict.fromkeys(texts))


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
