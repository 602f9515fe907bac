"""Classes whose texts a model cannot tell apart, so that their scores tie."""

from collections.abc import Callable, Collection, Sequence

from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.scorers import ClassTexts
from grain_jax.zero_shot.text_kinds import DESCRIPTIONS, NAMES, REGIONS, TEXT_KINDS

SHOWN = 10  # groups and classes of a group that a note lists
EXPECTED = "a tie counts as its expected value"
# What a class is compared by -> the kinds of texts that all have to be equal.
COMPARED_BY = {"name": (NAMES,), "description": (DESCRIPTIONS, REGIONS)}


def tied_classes(banks: ClassBanks, kinds: Collection[str]) -> list[tuple[int, ...]]:
    """Groups of two classes or more with equal embeddings of all `kinds` that there are, by
    position; [] where there are none of these kinds.
    """
    given = [bank for kind in kinds if (bank := banks.get(kind)) is not None]
    if not given:
        return []
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, of in enumerate(zip(*(bank.distinct[1].tolist() for bank in given), strict=True)):
        groups.setdefault(of, []).append(k)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def note_ties(
    title: str,
    names: Sequence[str],
    banks: ClassBanks,
    note: Callable[[str], None],
    *,
    together: bool = False,
    consequence: str = EXPECTED,
) -> None:
    """Says which classes tie and why: by name, by description, or with `together` by a method that
    takes all texts that are encoded. Classes that are called the same are left out by name: who
    reads them says so.
    """
    if together:
        compared = {"": tuple(banks.banks)}
    else:
        compared = {f" by {what}": kinds for what, kinds in COMPARED_BY.items()}
    for what, kinds in compared.items():
        same: list[tuple[int, ...]] = []
        unlike: list[tuple[int, ...]] = []
        for group in tied_classes(banks, kinds):
            alike = _same_texts(banks.texts, kinds, group)
            if kinds == (NAMES,) and alike:
                continue
            (same if alike else unlike).append(group)
        for groups, reason in (
            (same, "have the same texts; give each texts of its own"),
            (
                unlike,
                "have texts that the tokenizer reads alike, as they differ only in words that it "
                "does not know, or behind its limit; tell them apart by words that it knows, early "
                "in the texts",
            ),
        ):
            if groups:
                note(
                    f"{title}: {sum(map(len, groups))} of {len(names)} classes tie{what} "
                    f"({_listed(groups, names)}): they {reason}. Till then {consequence}."
                )


def _same_texts(texts: ClassTexts, kinds: Collection[str], group: Sequence[int]) -> bool:
    made = (TEXT_KINDS[kind].make(texts) for kind in kinds)
    return all(
        len({tuple(sorted(of_classes[k])) for k in group}) == 1
        for of_classes in made
        if of_classes is not None
    )


def _listed(groups: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    parts = []
    for group in groups[:SHOWN]:
        more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
        parts.append(" = ".join(repr(names[k]) for k in group[:SHOWN]) + more)
    more = f" and {len(groups) - SHOWN} more groups" if len(groups) > SHOWN else ""
    return "; ".join(parts) + more
