"""Published zero-shot results of public models, to set beside measured ones.

`published_results.json.gz` holds open_clip's result tables (docs/openclip_results.csv and
docs/openclip_retrieval_results.csv of github.com/mlfoundations/open_clip, MIT license, see NOTICE):
121 models, named as there, "ViT-B-16/openai". What is measured of each set, and on how many
images and classes, is that of the DataComp evaluation which the tables were made by
(github.com/mlfoundations/datacomp, tasklist.yml).
"""

import csv
import difflib
import functools
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from grain_jax.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from grain_jax.evaluation.tables import Table
from grain_jax.paths import user_path
from grain_jax.results import Result

SOURCE = "open_clip's result tables"
PROTOCOL = (
    ", by class name in CLIP_benchmark's prompts for each set, and recalls of the 5,000 and 1,000 "
    "test images of COCO and Flickr30k"
)
GOLDEN_SET, GOLDEN_METRIC = "imagenet", "top1"
MARK = "*"  # of a set with another number of classes
TOLERANCE = 0.2  # percentage points: 100 of ImageNet's 50,000 images


class PublishedSet(NamedTuple):
    """A set of the tables: its column, what is measured, and on how many images and classes."""

    column: str
    metric: str
    images: int
    classes: int | None  # None: retrieval has none
    other_names: tuple[str, ...] = ()


# By the names that our suites have, which are compared without case, "-" and "_".
SETS: Mapping[str, PublishedSet] = {
    "imagenet": PublishedSet(
        "ImageNet 1k",
        "top1",
        50_000,
        1_000,
        ("imagenet1k", "imagenetval", "ilsvrc2012", "imagenet2012"),
    ),
    "imagenetv2": PublishedSet(
        "ImageNet v2", "top1", 10_000, 1_000, ("imagenetv2matchedfrequency",)
    ),
    "imagenet_r": PublishedSet("ImageNet-R", "top1", 30_000, 200),
    "imagenet_a": PublishedSet("ImageNet-A", "top1", 7_500, 200),
    "imagenet_sketch": PublishedSet("ImageNet Sketch", "top1", 50_889, 1_000),
    "objectnet": PublishedSet("ObjectNet", "top1", 18_574, 113),
    "cifar10": PublishedSet("CIFAR-10", "top1", 10_000, 10),
    "cifar100": PublishedSet("CIFAR-100", "top1", 10_000, 100),
    "sun397": PublishedSet("SUN397", "top1", 108_754, 397),
    "stanford_cars": PublishedSet("Stanford Cars", "top1", 8_041, 196, ("cars", "cars196")),
    "dtd": PublishedSet("Describable Textures", "top1", 1_880, 47),
    "oxford_pets": PublishedSet(
        "Oxford-IIIT Pet", "per_class", 3_669, 37, ("pets", "oxfordiiitpet")
    ),
    "caltech101": PublishedSet("Caltech-101", "per_class", 6_085, 102),
    "flowers102": PublishedSet(
        "Oxford Flowers-102", "per_class", 6_149, 102, ("flowers", "oxfordflowers102")
    ),
    "food101": PublishedSet("Food-101", "top1", 25_250, 101),
    "eurosat": PublishedSet("EuroSAT", "top1", 5_400, 10, ("eurosatrgb",)),
    "fgvc_aircraft": PublishedSet("FGVC Aircraft", "per_class", 3_333, 100),
    "country211": PublishedSet("Country211", "top1", 21_100, 211),
    "resisc45": PublishedSet("RESISC45", "top1", 6_300, 45),
    "gtsrb": PublishedSet("GTSRB", "top1", 12_630, 43),
    "mnist": PublishedSet("MNIST", "top1", 10_000, 10),
    "svhn": PublishedSet("SVHN", "top1", 26_032, 10, ("svhncropped",)),
    "stl10": PublishedSet("STL-10", "top1", 8_000, 10),
    "patch_camelyon": PublishedSet("PatchCamelyon", "top1", 32_768, 2, ("pcam",)),
    "rendered_sst2": PublishedSet("Rendered SST2", "top1", 1_821, 2),
    "coco": PublishedSet("MSCOCO", "R@k", 5_000, None, ("mscoco", "mscococaptions")),
    "flickr30k": PublishedSet("Flickr", "R@k", 1_000, None),
}
HUB_NAMES = {
    "openai/clip-vit-base-patch32": "ViT-B-32/openai",
    "openai/clip-vit-base-patch16": "ViT-B-16/openai",
    "openai/clip-vit-large-patch14": "ViT-L-14/openai",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336/openai",
}
DIRECTIONS = {IMAGE_TO_TEXT: "text retr.", TEXT_TO_IMAGE: "image retr."}  # what is found
RECALLS = ("R@1", "R@5", "R@10")
Key = tuple[str, str, str]  # set, method, metric


@dataclass(frozen=True)
class PublishedModel:
    """Values in [0, 1] by set, method ("name", or a direction of retrieval) and metric."""

    name: str
    values: Mapping[Key, float]
    source: str = SOURCE


class Beside(NamedTuple):
    """A measured value and the published one of the same set, both in [0, 1]."""

    dataset: str
    published_set: str
    method: str
    metric: str
    measured: float
    published: float
    images: int | None
    published_images: int
    classes: int | None = None
    published_classes: int | None = None

    @property
    def has_other_classes(self) -> bool:
        """Whether both numbers of classes are known and differ."""
        return None not in (self.classes, self.published_classes) and (
            self.classes != self.published_classes
        )

    @property
    def difference(self) -> float:
        """Measured less published, in percentage points."""
        return 100 * (self.measured - self.published)


def known_set(dataset: str) -> str | None:
    """The key of `SETS` that a set of this name is, None for another set."""
    name = re.sub(r"-\d+(\.\d+)+$", "", dataset)  # TFDS's version
    name = re.sub(r"[-_]test$", "", name.lower())
    plain = _plain(name).removeprefix("wds").removeprefix("vtab")  # CLIP_benchmark's tars
    for key, one in SETS.items():
        if plain in (_plain(key), *one.other_names):
            return key
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_tables(*texts: str) -> dict[str, dict[Key, float]]:
    """{"name/pretrained": values} of tables in open_clip's form: CSV with the columns `name`,
    `pretrained`, and the sets' (fractions of 1). Other columns, and cells without a number, are
    left out. Raises ValueError for a table without the two columns or without a known set.
    """
    found: dict[str, dict[Key, float]] = {}
    columns = _columns()
    for text in texts:
        rows = csv.DictReader(io.StringIO(text))
        names = rows.fieldnames or []
        if not {"name", "pretrained"} <= set(names) or not set(names) & set(columns):
            raise ValueError(
                f"A table of published results has the columns {', '.join(names[:4]) or 'none'}; "
                "expected open_clip's: name, pretrained, and sets such as 'ImageNet 1k'."
            )
        for row in rows:
            values = found.setdefault(f"{row['name']}/{row['pretrained']}", {})
            for column, key in columns.items():
                if (cell := (row.get(column) or "").strip()) and _is_fraction(cell):
                    values[key] = float(cell)
    return found


def _columns() -> dict[str, Key]:
    columns = {}
    for key, one in SETS.items():
        if one.metric != "R@k":
            columns[one.column] = (key, "name", one.metric)
            continue
        for method, found in DIRECTIONS.items():
            for recall in RECALLS:
                columns[f"{one.column} {found} {recall}"] = (key, method, recall)
    return columns


def _is_fraction(cell: str) -> bool:
    try:
        return 0 <= float(cell) <= 1
    except ValueError:
        return False


@functools.cache
def stored_results() -> dict[str, dict[Key, float]]:
    """The tables that come with the package."""
    packed = resources.files("grain_jax.evaluation") / "published_results.json.gz"
    stored = json.loads(gzip.decompress(packed.read_bytes()))
    keys = [tuple(key) for key in stored["keys"]]
    return {
        name: {key: value for key, value in zip(keys, row, strict=True) if value is not None}
        for name, row in stored["models"].items()
    }


def packed_results(tables: Mapping[str, Mapping[Key, float]]) -> bytes:
    """What `stored_results` reads, of tables that `read_tables` read."""
    keys = list(_columns().values())
    models = {name: [values.get(key) for key in keys] for name, values in tables.items()}
    text = json.dumps({"keys": keys, "models": models}, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read_published(given: str) -> PublishedModel:
    """The model called `given`, "ViT-B-16/openai", or of a table of one's own,
    "table.csv#ViT-B-16/openai". OpenAI's go by their names on the Hugging Face hub, too.

    Raises ValueError with the nearest names where there is none, and for a table that is none.
    """
    file, hash_sign, name = given.rpartition("#")
    if not hash_sign:
        tables, place = stored_results(), SOURCE
    else:
        path = user_path(file)
        if not path.is_file():
            raise ValueError(f"There is no file {file!r}; give open_clip's CSV as FILE.csv#MODEL.")
        tables, place = _read_file(path), repr(file)
    name = HUB_NAMES.get(name, name)
    if name in tables:
        return PublishedModel(name, tables[name], place)
    near = nearest_models(name, list(tables))
    known = f"; the nearest: {', '.join(near)}" if near else ""
    raise ValueError(
        f"No results of {name!r} are among the {len(tables)} models of {place}{known}. Names are "
        "ARCHITECTURE/WEIGHTS, as in ViT-B-16/openai."
    )


def _read_file(path: Path) -> dict[str, dict[Key, float]]:
    try:
        return read_tables(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def nearest_models(name: str, known: Sequence[str], *, most: int = 3) -> list[str]:
    """Up to `most` of the known names that are spelled most like `name`, the nearest first."""
    by_plain = {_plain(one): one for one in known}
    near = difflib.get_close_matches(_plain(name), list(by_plain), n=most, cutoff=0.5)
    return [by_plain[one] for one in near]


def beside_published(results: Sequence[Result], model: PublishedModel) -> list[Beside]:
    """Measured values of which the model has a published one, in the order of the results."""
    images = {
        r.dataset: int(r.value)
        for r in results
        if r.metric == "images" and r.method in ("dataset", "retrieval")
    }
    classes = {r.dataset: int(r.value) for r in results if r.metric == "classes"}
    found = []
    for result in results:
        key = known_set(result.dataset)
        if key is None or result.alpha is not None:
            continue
        value = model.values.get((key, result.method, result.metric))
        if value is not None:
            place = (result.dataset, key, result.method, result.metric)
            counts = (images.get(result.dataset), SETS[key].images)
            of_classes = (classes.get(result.dataset), SETS[key].classes)
            found.append(Beside(*place, result.value, value, *counts, *of_classes))
    return found


def published_table(found: Sequence[Beside], model: PublishedModel) -> Table:
    """Measured and published values in percent, and their difference in points."""
    rows = []
    for one in found:
        other = one.images is not None and one.images != one.published_images
        images = "?" if one.images is None else f"{one.images:,}"
        if other:
            images += f" (published: {one.published_images:,})"
        rows.append(
            (
                f"{one.dataset} {MARK}" if one.has_other_classes else one.dataset,
                f"{one.method}, {_metric(one.metric)}",
                images,
                f"{100 * one.measured:.2f}",
                f"{100 * one.published:.2f}",
                f"{one.difference:+.2f}",
            )
        )
    return Table(
        f"Beside the published results of {model.name}, %",
        ("set", "measured", "images", "ours", "published", "difference"),
        tuple(rows),
        f"Published: {model.source}{PROTOCOL if model.source == SOURCE else ''}. Other names, "
        "prompts or images are another measurement." + _footnote(found),
    )


def _footnote(found: Sequence[Beside]) -> str:
    """What the `MARK` of sets with another number of classes says; "" where none has it."""
    others = dict.fromkeys(
        f"{one.dataset} has {one.classes:,}, published are {one.published_classes:,}"
        for one in found
        if one.has_other_classes
    )
    if not others:
        return ""
    return (
        f" {MARK} The list of classes is another one ({'; '.join(others)}), so the two accuracies "
        "are not of the same task."
    )


def _metric(metric: str) -> str:
    return {"top1": "top-1", "per_class": "mean per class"}.get(metric, metric)


def golden_failure(found: Sequence[Beside], *, tolerance: float) -> str | None:
    """Why ImageNet's accuracy is not the published one within `tolerance` percentage points; None
    where it is. Raises ValueError where ImageNet was not measured by class name.
    """
    golden = [
        one for one in found if one.published_set == GOLDEN_SET and one.metric == GOLDEN_METRIC
    ]
    if not golden:
        raise ValueError(
            "--golden compares ImageNet's accuracy by class name, which was not measured, or is "
            "not published of this model; give its validation images as a folder called imagenet, "
            "with the method name."
        )
    for one in golden:
        if one.images is None:
            return f"it is not known how many images {one.dataset!r} has"
        if one.images != one.published_images:
            return (
                f"{one.dataset!r} has {one.images:,} images; the published accuracy is of "
                f"{one.published_images:,}"
            )
        if one.has_other_classes:
            return (
                f"{one.dataset!r} has {one.classes:,} classes; the published accuracy is among "
                f"{one.published_classes:,}"
            )
        if abs(one.difference) > tolerance + 1e-9:
            return (
                f"{one.dataset!r} has {100 * one.measured:.2f} % top-1, published are "
                f"{100 * one.published:.2f} %; {abs(one.difference):.2f} points are more than "
                f"the {tolerance:g} allowed. Likely causes are other prompts (--templates=imagenet "
                "has CLIP's 80) or other class names (--classes=FILE)"
            )
    return None
