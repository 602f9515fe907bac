"""COCO's annotation files: captions, and instances with boxes and the names of their categories.

`--input` is one of the files, or a folder with `captions_<subset>.json` and
`instances_<subset>.json` (or with `annotations/` that holds them), which are joined by image id.
Boxes are x, y, width, height in pixels from the top left corner. A crowd region, which covers many
things at once, is left out and counted. The files are read as streams; only the places of images
and annotations in them are kept in memory: 17 bytes for each annotation, and 120 at the peak, while
the ids of a file are compared.
"""

import array
import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.importers.input_files import choose_subset, crc32_of
from grain_jax.data.importers.item import ImportedImage, ImportedRegion, InvalidRecordError
from grain_jax.data.importers.json_stream import Member, members, read_member
from grain_jax.data.importers.json_values import four_numbers, image_size, shown
from grain_jax.data.records import Caption

KINDS = ("captions", "instances")  # of annotation files, the beginning of their names
LISTS = ("images", "annotations", "categories")
ID_TYPES = (int, str)  # strings in converted data sets


class Coco:
    """The images of the files, in the order in which they are listed. An `Importer`."""

    def __init__(self, path: Path, *, split: str = "", subset: str | None = None) -> None:
        self._files = find_files(path, split, subset)
        index = _Index()
        for number, file in enumerate(self._files):
            index.read(number, file)
        if not index.images:
            raise ValueError(
                f"{self._files[0]} lists no images; expected an annotation file of COCO, an object "
                "with 'images' and 'annotations'."
            )
        self._images, self._annotations = index.images, index.annotations
        self._order, self._bounds = index.by_image()
        self._categories = index.categories
        self._problems = index.problems()

    def __len__(self) -> int:
        return len(self._problems) + len(self._images)

    def __getitem__(self, index: int) -> ImportedImage:
        if index < len(self._problems):  # first, so that a build that is to stop does so at once
            raise InvalidRecordError(self._problems[index])
        index -= len(self._problems)
        entry = self._read(*self._images[index])
        captions: list[Caption] = []
        regions: list[ImportedRegion] = []
        left_out: list[str] = []
        for place in self._places(index):
            try:
                annotation = self._read(*place)
                if "caption" in annotation:
                    captions.append(Caption(_text(annotation, "caption")))
                if "bbox" in annotation:
                    regions.append(self._region(annotation))
            except _LeftOut as reason:
                left_out.append(str(reason))
            except InvalidRecordError:
                left_out.append("unreadable annotation")
        return ImportedImage(
            id=str(entry["id"]),
            image=_file_name(entry, self._files[self._images[index][0]]),
            captions=tuple(captions),
            regions=tuple(regions),
            box_unit="pixel",
            size=_size(entry) if regions else None,
            left_out=tuple(left_out),
            sides_given=True,
        )

    def fingerprint(self) -> dict[str, object]:
        return {
            "files": [str(file.resolve()) for file in self._files],
            "crc32": [crc32_of(file) for file in self._files],
        }

    def checksum(self, start: int, stop: int) -> str:
        digest = hashlib.sha256(repr(sorted(self._categories.items(), key=repr)).encode())
        digest.update("\n".join(self._problems).encode("utf-8", "surrogatepass"))
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(file.open("rb")) for file in self._files]
            for index in range(start - len(self._problems), stop - len(self._problems)):
                if index < 0:
                    continue
                for number, offset, size in (self._images[index], *self._places(index)):
                    opened[number].seek(offset)
                    digest.update(opened[number].read(size))
        return digest.hexdigest()

    def _places(self, index: int) -> Iterator[tuple[int, int, int]]:
        for at in self._order[self._bounds[index] : self._bounds[index + 1]]:
            yield self._annotations[int(at)]

    def _read(self, number: int, start: int, size: int) -> dict[str, Any]:
        return read_member(self._files[number], start, size)

    def _region(self, annotation: dict[str, Any]) -> ImportedRegion:
        if annotation.get("iscrowd"):
            raise _LeftOut("crowd region")
        category = annotation.get("category_id")
        name = self._categories.get(category) if type(category) in ID_TYPES else None
        if name is None:
            raise _LeftOut("unknown category")
        box = corners(annotation["bbox"])
        if box is None:
            raise _LeftOut("box is not [x, y, width, height]")
        return ImportedRegion(box, name)


class _LeftOut(ValueError):
    """A region that is left out; the text is the reason that counts it."""


def corners(bbox: Any) -> tuple[float, float, float, float] | None:
    """x0, y0, x1, y1 of a box given as [x, y, width, height]; None for anything else."""
    box = four_numbers(bbox)
    if box is None:
        return None
    x, y, width, height = box
    return x, y, x + width, y + height


def find_files(path: Path, split: str, subset: str | None) -> list[Path]:
    """The annotation files that `--input` names, captions first. Raises ValueError."""
    if path.is_file():
        if subset is not None:
            raise ValueError(
                f"--subset={subset} chooses among the files of a folder, and --input={path} is one "
                "file; leave it out."
            )
        return [path]
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    found = {kind: sorted(folder.glob(f"{kind}_*.json")) for kind in KINDS}
    subsets = sorted({file.stem.partition("_")[2] for files in found.values() for file in files})
    if not subsets:
        raise ValueError(
            f"--input={path} has no captions_*.json and no instances_*.json; give the folder that "
            "holds them, or one annotation file."
        )
    chosen = choose_subset(subsets, split, subset)
    every = (file for files in found.values() for file in files)
    return [file for file in every if file.stem.partition("_")[2] == chosen]


class _Places:
    """File, start and size of members, in arrays."""

    def __init__(self) -> None:
        self._file, self._start = array.array("B"), array.array("q")
        self._size = array.array("i")

    def append(self, number: int, member: Member) -> None:
        self._file.append(number)
        self._start.append(member.start)
        self._size.append(member.size)

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return self._file[index], self._start[index], self._size[index]


class _Index:
    """Places of the images and annotations of several files, and what is wrong with them."""

    def __init__(self) -> None:
        self.images, self.annotations = _Places(), _Places()
        self.categories: dict[Any, str] = {}
        self._numbers: dict[Any, int] = {}  # image id -> its number, in the order of first mention
        self._seen: set[int] = set()  # numbers of `images`
        self._listed = array.array("q")  # the number of each of `images`
        self._owner = array.array("q")  # the number of the image of each of `annotations`
        self._count: Counter[str] = Counter()  # of problems
        self._first: dict[str, str] = {}

    def read(self, number: int, path: Path) -> None:
        """Adds the members of one file."""
        images: set[Any] = set()
        annotations: set[Any] = set()
        for member in members(path, LISTS):
            if member.key not in LISTS:
                continue
            value, where = member.value, f"{path}, byte {member.start}"
            name = "image_id" if member.key == "annotations" else "id"
            if not isinstance(value, dict) or type(value.get(name)) not in ID_TYPES:
                self._note(f"{member.key} without {name!r}", f"{where}: {shown(value)}")
            elif member.key == "categories":
                if isinstance(called := value.get("name"), str):  # else "unknown category"
                    self.categories[value["id"]] = called.replace("_", " ")
            elif _is_repeated(value, images if member.key == "images" else annotations):
                self._note(f"{member.key} with the id of another", f"{where}: {value['id']!r}")
            elif member.key == "images":
                self._add_image(number, member)
            else:
                self._owner.append(self._number(value["image_id"]))
                self.annotations.append(number, member)

    def _number(self, image_id: Any) -> int:
        return self._numbers.setdefault(image_id, len(self._numbers))

    def _add_image(self, number: int, member: Member) -> None:
        image = self._number(member.value["id"])
        if image not in self._seen:  # the other file lists it too
            self._seen.add(image)
            self._listed.append(image)
            self.images.append(number, member)

    def _note(self, kind: str, where: str) -> None:
        self._count[kind] += 1
        self._first.setdefault(kind, where)

    def by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Annotations in the order of `images`, and where those of each image begin and end."""
        rows = np.full(len(self._numbers), len(self.images), np.int64)
        rows[np.asarray(self._listed, np.int64)] = np.arange(len(self.images))
        owner = rows[np.asarray(self._owner, np.int64)]
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(len(self.images) + 1))
        if orphans := len(order) - int(bounds[-1]):
            _, start, _ = self.annotations[int(order[bounds[-1]])]
            kind = "annotations of images that are not listed"
            self._count[kind], self._first[kind] = orphans, f"byte {start}"
        return order.astype(np.int32), bounds

    def problems(self) -> list[str]:
        """One sentence for each kind of problem of the files."""
        return [f"{n} {kind}, first: {self._first[kind]}" for kind, n in self._count.items()]


def _is_repeated(value: dict[str, Any], seen: set[Any]) -> bool:
    """Whether the id of `value` is in `seen`, to which it is added. Without an id it never is."""
    if type(value.get("id")) not in ID_TYPES:
        return False
    repeated = value["id"] in seen
    seen.add(value["id"])
    return repeated


def _text(annotation: dict[str, Any], name: str) -> str:
    value = annotation[name]
    if not isinstance(value, str):
        raise InvalidRecordError(f"{name!r} must be a string, got {shown(value)}.")
    return value


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    given = entry.get("width"), entry.get("height")
    return None if given == (None, None) else image_size(*given)


def _file_name(entry: dict[str, Any], file: Path) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise InvalidRecordError(
            f"{file}: image {entry['id']!r} has no 'file_name', got {shown(name)}."
        )
    return name
