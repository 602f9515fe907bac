"""COCO's boxes by class name: `instances_val2017.json`, or any detection data in that layout."""

from collections import Counter
from pathlib import Path

from grain_jax.boxes import Box
from grain_jax.data.grounding.coco_file import one_file, read_coco_file, refuse_options
from grain_jax.data.grounding.queries import CLASS, EVERY_BOX, GivenImage, GivenSet, grouped


def read_coco(data: Path, *, split: str | None = None, split_file: Path | None = None) -> GivenSet:
    """A query for every class of every image, with all its boxes; crowd regions are left out.

    `data`: the file, or the folder of `instances_<split>.json` or of `annotations/` with it. Raises
    ValueError for another layout, and for a class that the file does not name.
    """
    refuse_options(data, split, split_file)
    name = f"instances_{split or '*'}.json"
    path = one_file(data, (name, f"annotations/{name}"))
    found = read_coco_file(path)
    left_out: Counter[str] = Counter()
    if crowds := found.crowds.total():
        left_out["crowd regions"] = crowds
    images = []
    for image in found.images.values():
        pairs: list[tuple[str, Box]] = []
        for one in found.annotations.get(image.id, ()):
            if one.box is None:
                left_out["with a box that is not [x, y, width, height]"] += 1
            elif one.category_id not in found.categories:
                raise ValueError(f"{path} names no category {one.category_id!r}.")
            else:
                pairs.append((found.categories[one.category_id].replace("_", " "), one.box))
        images.append(GivenImage(str(image.id), image.file, grouped(pairs), size=image.size))
    part = path.stem.removeprefix("instances_")
    folder = data if data.is_dir() else data.parent
    return GivenSet(
        images=images,
        queries_are=CLASS,
        boxes_are=EVERY_BOX,
        left_out=left_out,
        name=path.stem,
        images_in=(folder / part, folder.parent / part, folder / "images"),
    )
