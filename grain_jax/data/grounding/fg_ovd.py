"""FG-OVD (Bianchi et al., CVPR 2024): an object by a caption with attributes, against captions that
differ from it in one, two or three of them.

A benchmark is one JSON of COCO's layout, `1_attributes.json` (hard), `2_attributes.json`,
`3_attributes.json`, `shuffle_negatives.json` (trivial), `color.json`, ...: categories are captions,
and an annotation names its own in `category_id` and the wrong ones in `neg_category_ids`.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from grain_jax.boxes import Box
from grain_jax.data.grounding.coco_file import (
    Annotation,
    CocoFile,
    one_file,
    read_coco_file,
    refuse_options,
)
from grain_jax.data.grounding.queries import (
    CAPTION,
    EVERY_BOX,
    GivenImage,
    GivenQuery,
    GivenSet,
)


def read_fg_ovd(
    data: Path,
    *,
    split: str | None = None,
    split_file: Path | None = None,
    negatives: int | None = None,
) -> GivenSet:
    """The annotations of a benchmark; those of one caption in one image are one query.

    Args:
        data: the file, or the folder of `<split>.json`.
        negatives: as many wrong captions each, the first of the list; annotations with fewer are
            left out, as published. None: all that an annotation has.

    Raises ValueError for another layout, a category that the file does not name, and annotations
    without wrong captions.
    """
    refuse_options(data, split, split_file)
    path = one_file(data, (f"{split or '*'}.json",))
    found = read_coco_file(path)
    left_out: Counter[str] = Counter()
    images = []
    for image in found.images.values():
        boxes: dict[tuple[Any, ...], list[Box]] = {}
        for one in found.annotations.get(image.id, ()):
            if one.box is None:
                left_out["with a box that is not [x, y, width, height]"] += 1
            elif negatives is not None and len(one.negatives) < negatives:
                left_out[f"with fewer than {negatives} wrong captions"] += 1
            else:
                chosen = one.negatives[:negatives]
                boxes.setdefault((one.category_id, *chosen), []).append(one.box)
                _check(path, one)
        queries = tuple(
            GivenQuery(
                _caption(path, found, own),
                tuple(given),
                tuple(_caption(path, found, other) for other in wrong),
            )
            for (own, *wrong), given in boxes.items()
        )
        images.append(
            GivenImage(str(image.id), image.file, queries, found.boxes(image.id), image.size)
        )
    folder = path.parent
    return GivenSet(
        images=images,
        queries_are=CAPTION,
        boxes_are=EVERY_BOX,
        left_out=left_out,
        name=path.stem,
        images_in=(folder / "coco", folder / "images", folder.parent / "coco"),
    )


def _check(path: Path, one: Annotation) -> None:
    if not one.negatives:
        raise ValueError(
            f"{path}: annotation {one.id!r} has no 'neg_category_ids'; expected a benchmark of "
            "FG-OVD, whose annotations name wrong captions."
        )


def _caption(path: Path, found: CocoFile, category: Any) -> str:
    if category not in found.categories:
        raise ValueError(f"{path} names no category {category!r}.")
    return found.categories[category]
