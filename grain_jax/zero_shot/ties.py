"""Classes whose texts a model cannot tell apart, so that their scores tie."""

from collections.abc import Callable, Collection, Sequence

from grain_jax.data.classification.class_names import first_of
from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.scorers import ClassTexts
from grain_jax.zero_shot.text_kinds import DESCRIPTIONS, NAMES, REGIONS, TEXT_KINDS

EXPECTED = "a tie counts as its expected value"
# What a class is compared by, of the parts of a score -> the kind of its texts.
COMPARED_BY = {
    "by name": NAMES,
    "by description of the whole image (alpha 1)": DESCRIPTIONS,
    "by description of regions (alpha 0)": REGIONS,
}
BY_BOTH = "by description"  # or by the only one of the two that there is


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
    """Says which classes tie and why: by name, by description of the whole image or of regions, or
    with `together` by a method that takes all texts that are encoded. Classes that are called the
    same are left out by name: who reads them says so.
    """
    for what, groups in _groups(banks, together=together).items():
        for alike, reason in (
            (True, "have the same texts; give each texts of its own"),
            (
                False,
                "have texts that the tokenizer reads alike, as they differ only in words that it "
                "does not know, or behind its limit; tell them apart by words that it knows, early "
                "in the texts",
            ),
        ):
            if found := [group for group, same in groups if same == alike]:
                note(
                    f"{title}: {sum(map(len, found))} of {len(names)} classes tie{what and ' '}"
                    f"{what} ({_listed(found, names)}): they {reason}. Till then {consequence}."
                )


def _groups(banks: ClassBanks, *, together: bool) -> dict[str, list[tuple[tuple[int, ...], bool]]]:
    """What is compared, in words -> groups that tie by it, and whether their texts are the same.

    Groups that tie by descriptions of the image and of regions alike are by description.
    """

    def found(*kinds: str) -> list[tuple[tuple[int, ...], bool]]:
        groups = tied_classes(banks, kinds)
        return [(group, _same_texts(banks.texts, kinds, group)) for group in groups]

    if together:
        return {"": found(*banks.banks)}
    by_name, whole, regions = (found(kind) for kind in COMPARED_BY.values())
    name, of_image, of_regions = COMPARED_BY
    if banks.get(DESCRIPTIONS) is None or banks.get(REGIONS) is None:
        both = whole or regions
    else:
        both = [one for one in whole if one in regions]
    return {
        name: [(group, same) for group, same in by_name if not same],
        BY_BOTH: both,
        of_image: [one for one in whole if one not in both],
        of_regions: [one for one in regions if one not in both],
    }


def _same_texts(texts: ClassTexts, kinds: Collection[str], group: Sequence[int]) -> bool:
    made = (TEXT_KINDS[kind].make(texts) for kind in kinds)
    return all(
        len({tuple(sorted(of_classes[k])) for k in group}) == 1
        for of_classes in made
        if of_classes is not None
    )


def _listed(groups: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    parts = [first_of([repr(names[k]) for k in group], between=" = ") for group in groups]
    return first_of(parts, between="; ", what="groups")
