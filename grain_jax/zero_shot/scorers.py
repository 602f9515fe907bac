"""How an image scores against a class: by name, by descriptions, by regions, and mixtures; on
cached embeddings.

Every embedding has unit length, so a dot product is a cosine. Classes are bound to texts by name
(`class_texts`) and every class has at least one text in every bank, so that no score is ever a mean
of nothing.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from jaxtyping import Float, Int

from grain_jax.config.schema import RegionAggregation
from grain_jax.data.classification.class_names import with_nearest
from grain_jax.data.placeholder import check_placeholder
from grain_jax.data.records import ZeroShotSet

MAX_CELLS = 1 << 24  # similarities held at once by `region_scores`


@dataclass(frozen=True)
class ClassTexts:
    """Texts of each class, in the order of `ZeroShotSet.class_names`; none is empty."""

    names: tuple[tuple[str, ...], ...]  # the name in every template
    descriptions: tuple[tuple[str, ...], ...]  # what the image embedding is compared with
    regions: tuple[tuple[str, ...], ...]  # single descriptions, what region embeddings meet
    undescribed: tuple[str, ...]  # classes that fell back to their name
    called: tuple[str, ...] = ()  # what prompts call each class
    described: tuple[tuple[str, ...], ...] = ()  # bare descriptions; empty where there is none
    templates: tuple[str, ...] = ()  # prompts by name; "{}" takes it
    # further texts from files, by kind: those of each class, empty where it has none
    further: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    # by kind, groups of such texts that are of no single class
    shared: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    # a class and another -> texts that tell the first from the second
    pairs: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    description_template: str = "{}"  # "{}" takes a description, "{name}" what the class is called
    draw: int = 0  # the seed of texts that are drawn at random (`text_kinds.DRAWN`)


def class_texts(dataset: ZeroShotSet) -> ClassTexts:
    """`make_class_texts` of a set."""
    return make_class_texts(
        dataset.class_names,
        templates=dataset.templates,
        descriptions=dataset.descriptions,
        description_template=dataset.description_template,
        global_texts=dataset.global_texts,
        name_texts=dataset.name_texts,
        further=dataset.further,
        shared=dataset.shared,
        pairs=dataset.pairs,
        title=f"Zero-shot set {dataset.name!r}",
    )


def make_class_texts(
    names: Sequence[str],
    *,
    templates: Sequence[str],
    descriptions: Mapping[str, Sequence[str]],
    description_template: str = "{}",
    global_texts: Mapping[str, Sequence[str]] | None = None,
    name_texts: Mapping[str, str] | None = None,
    further: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    shared: Mapping[str, Sequence[Sequence[str]]] | None = None,
    pairs: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    title: str = "Classes",
) -> ClassTexts:
    """Texts of every class. A class without descriptions falls back to its name: templates for the
    image, the bare name for the regions.

    Args:
        names: of the classes, each once.
        templates: prompts by name; "{}" takes the name.
        descriptions: class name to descriptions; a class may be missing.
        description_template: the text that an image is compared with; "{}" takes a
            description, "{name}" the class name.
        global_texts: class name to texts about the whole image, instead of filled descriptions.
        name_texts: class name to what prompts call it, where that is another.
        further: by kind, class name to texts; a class may be missing.
        shared: by kind, groups of texts that are of no single class.
        pairs: class name to other class to texts that tell the class from the other.
        title: what to call the set in errors.

    Raises ValueError on duplicate classes, descriptions of unknown classes, bad templates.
    """
    global_texts, name_texts, further = global_texts or {}, name_texts or {}, further or {}
    pairs = pairs or {}
    if not names:
        raise ValueError(f"{title} has no classes; give at least one.")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{title} lists class {repeated[0]!r} more than once; classes "
            "are distinguished by name, so give each its own."
        )
    for texts in (
        descriptions,
        global_texts,
        name_texts,
        *further.values(),
        pairs,
        *pairs.values(),
    ):
        if unknown := sorted(set(texts) - set(names)):
            raise ValueError(
                f"{title} describes {len(unknown)} that are not among its {len(names)} classes; "
                f"nearest of these: {with_nearest(unknown, names)}. Use the exact class names as "
                "keys."
            )
    if not templates:
        raise ValueError(f"{title} has no prompt template; give one, or '{{}}'.")
    for template in (*templates, description_template):
        check_placeholder(template, f"Template {template!r}", takes="the text")
    by_name, by_description, by_region, undescribed = [], [], [], []
    called_by, bare = [], []
    for name in names:
        called = name_texts.get(name, name)
        prompts = tuple(fill(template, called, called) for template in templates)
        described = _without_blank(descriptions.get(name, ()))
        whole = _without_blank(global_texts.get(name, ()))
        if not described and not whole:
            undescribed.append(name)
        filled = tuple(fill(description_template, text, called) for text in described)
        by_name.append(prompts)
        by_description.append(whole or filled or prompts)
        by_region.append(described or (called,))
        called_by.append(called)
        bare.append(described)
    return ClassTexts(
        tuple(by_name),
        tuple(by_description),
        tuple(by_region),
        tuple(undescribed),
        called=tuple(called_by),
        described=tuple(bare),
        templates=tuple(templates),
        further={
            kind: tuple(_without_blank(of_class.get(name, ())) for name in names)
            for kind, of_class in further.items()
        },
        shared={kind: tuple(map(tuple, groups)) for kind, groups in (shared or {}).items()},
        pairs=_positioned_pairs(pairs, names),
        description_template=description_template,
    )


def _positioned_pairs(
    pairs: Mapping[str, Mapping[str, Sequence[str]]], names: Sequence[str]
) -> dict[tuple[int, int], tuple[str, ...]]:
    position = {name: k for k, name in enumerate(names)}
    by_pair = {
        (position[name], position[other]): _without_blank(texts)
        for name, others in pairs.items()
        for other, texts in others.items()
    }
    return {pair: texts for pair, texts in sorted(by_pair.items()) if texts}


@dataclass(frozen=True, eq=False)  # so that it can be a key, which keeps it
class TextBank:
    """Embeddings of the texts of K classes: each different text once, and which rows belong to
    which class.

    Classes whose texts have equal embeddings, as the same texts have and those that the tokenizer
    reads alike, are scored once: computed apart, their scores differ in the last bit wherever a
    matrix product treats their columns unlike, and would not tie.
    """

    embed: Float[np.ndarray, "T E"]
    members: tuple[Int[np.ndarray, "_"], ...]  # of class k: rows of `embed`, at least one
    texts: tuple[str, ...] = ()  # of the rows, where they are known

    @functools.cached_property
    def distinct(self) -> tuple[tuple[Int[np.ndarray, "_"], ...], Int[np.ndarray, "K"]]:
        """The members of classes that differ, and which of them each class has."""
        same = _first_of_equal(self.embed)
        position: dict[bytes, int] = {}
        first: list[np.ndarray] = []
        of_class = np.empty(len(self.members), int)
        for k, rows in enumerate(self.members):
            key = np.sort(same[rows]).tobytes()
            if key not in position:
                position[key] = len(first)
                first.append(rows)
            of_class[k] = position[key]
        return tuple(first), of_class

    def of_class(self, k: int) -> Float[np.ndarray, "_ E"]:
        """Embeddings of the texts of class k, in their order."""
        return self.embed[self.members[k]]

    @functools.cached_property
    def mean_embed(self) -> Float[np.ndarray, "distinct E"]:
        """Mean embedding of the texts of each of the classes that differ."""
        return np.stack([self.embed[rows].mean(axis=0) for rows in self.distinct[0]])

    @functools.cached_property
    def unit_mean_embed(self) -> Float[np.ndarray, "distinct E"]:
        """`mean_embed` scaled back to unit length."""
        norms = np.linalg.norm(self.mean_embed, axis=1, keepdims=True)
        return self.mean_embed / np.maximum(norms, 1e-12)

    def part(self, start: int, stop: int) -> "TextBank":
        """The bank of the classes from `start` to `stop`, with their texts alone."""
        members = self.members[start:stop]
        rows = np.unique(np.concatenate(members))
        if len(rows) == len(self.embed):
            return TextBank(self.embed, members, self.texts)
        texts = tuple(self.texts[row] for row in rows.tolist()) if self.texts else ()
        members = tuple(np.searchsorted(rows, one) for one in members)
        return TextBank(self.embed[rows], members, texts)

    def __post_init__(self):
        for position, rows in enumerate(self.members):
            if len(rows) == 0:
                raise ValueError(f"Class {position} has no text to compare with; give it one.")


def _first_of_equal(embed: Float[np.ndarray, "T E"]) -> Int[np.ndarray, "T"]:
    """Of each row the first row that is equal to it, bit by bit."""
    same = np.arange(len(embed))
    # Equal rows start with equal numbers, and few others do: what to look at is small.
    start = embed[:, :1].sum(axis=1)  # a sum, as rows may be empty
    _, inverse, counts = np.unique(start, return_inverse=True, return_counts=True)
    row_of: dict[bytes, int] = {}
    for i in np.flatnonzero(counts[inverse] > 1).tolist():
        same[i] = row_of.setdefault(embed[i].tobytes(), i)
    return same


def text_bank(
    encode: Callable[[list[str]], Float[np.ndarray, "T E"]], texts: Sequence[Sequence[str]]
) -> TextBank:
    """Encodes the texts of K classes, each different text once."""
    row = {text: i for i, text in enumerate(_unique(text for group in texts for text in group))}
    members = tuple(np.array([row[text] for text in group], int) for group in texts)
    return TextBank(encode(list(row)), members, tuple(row))


def global_scores(
    image: Float[np.ndarray, "N E"], bank: TextBank, *, ensembling: str
) -> Float[np.ndarray, "N K"]:
    """Cosine of the image with a class's texts, whose ensemble is one of

    - "embedding": the mean text embedding scaled back to unit length (CLIP's prompt ensemble);
    - "score": the mean of the cosines, so without scaling back (official GRAIN; Menon & Vondrick).
    """
    match ensembling:
        case "embedding":
            vectors = bank.unit_mean_embed
        case "score":
            vectors = bank.mean_embed  # the cosine-like product with it is a mean of cosines
        case _:
            raise ValueError(f"Unknown ensembling {ensembling!r}; choose 'embedding' or 'score'.")
    return _of_classes(image @ vectors.T, bank.distinct[1])


def region_scores(
    regions: Float[np.ndarray, "N Q E"], bank: TextBank, *, aggregation: str
) -> Float[np.ndarray, "N K"]:
    """Cosine of region embeddings with a class's descriptions, reduced over queries and
    descriptions as

    - "max_over_queries": mean over descriptions of the best query (each description has to be
      found somewhere);
    - "max_over_descriptions": mean over queries of the best description (official GRAIN: each query
      has to explain itself).
    """
    if aggregation not in get_args(RegionAggregation):
        known = ", ".join(get_args(RegionAggregation))
        raise ValueError(f"Unknown aggregation {aggregation!r}; choose one of {known}.")
    members, of_class = bank.distinct
    rows = np.concatenate(members)
    counts = np.array([len(rows) for rows in members])
    starts = np.cumsum(counts) - counts
    num_images, num_queries, width = regions.shape
    step = max(1, MAX_CELLS // max(1, num_queries * max(len(bank.embed), len(rows))))
    scores = np.empty((num_images, len(counts)), np.float32)
    for start in range(0, num_images, step):
        block = regions[start : start + step]
        similarity = (block.reshape(-1, width) @ bank.embed.T).reshape(*block.shape[:2], -1)
        if aggregation == "max_over_queries":
            best = similarity.max(axis=1)[:, rows]  # [n, all texts]
            scores[start : start + step] = np.add.reduceat(best, starts, axis=1) / counts
        else:
            best = np.maximum.reduceat(similarity[:, :, rows], starts, axis=2)  # [n, Q, K]
            scores[start : start + step] = best.mean(axis=1)
    return _of_classes(scores, of_class)


def _of_classes(
    scores: Float[np.ndarray, "N distinct"], of_class: Int[np.ndarray, "K"]
) -> Float[np.ndarray, "N K"]:
    return scores if len(of_class) == scores.shape[1] else scores[:, of_class]


def mixed_scores(
    whole: Float[np.ndarray, "N K"], regions: Float[np.ndarray, "N K"], alpha: float
) -> Float[np.ndarray, "N K"]:
    """alpha * whole-image score + (1 - alpha) * region score, alpha in [0, 1] (official: alpha =
    1).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha is the weight of the global score, given {alpha}, expected 0 to 1."
        )
    return (alpha * whole + (1 - alpha) * regions).astype(np.float32)


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _without_blank(texts: Iterable[str]) -> tuple[str, ...]:
    return _unique(text for text in texts if text.strip())


def fill(template: str, text: str, name: str) -> str:
    """The template with its "{}" and "{name}" filled in."""
    if "{name}" not in template:
        return template.replace("{}", text)
    return re.sub(r"\{name\}|\{\}", lambda hole: text if hole[0] == "{}" else name, template)
