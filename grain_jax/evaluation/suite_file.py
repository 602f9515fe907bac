"""Suites of evaluation sets, as files in TOML or JSON that a person can write.

A file names sets of labelled images, prepared records, grounding and compositional tests, their
texts, what is expected of them, and which metric of each is averaged; it may include other suites.
It holds data only. Those in `suites/` go by their name.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from grain_jax.data.classification.class_counts import published_counts
from grain_jax.data.classification.set_names import TFDS
from grain_jax.data.classification.templates import TEMPLATE_LISTS
from grain_jax.data.image_variants import crop_numbers
from grain_jax.data.placeholder import check_placeholder
from grain_jax.evaluation.digests import sha256_of
from grain_jax.evaluation.given_images import FULFILS, GOES_WITH
from grain_jax.evaluation.grounding_protocol import BoxesOf, Feature, Truth
from grain_jax.evaluation.suite_tables import checked_table, fields_of
from grain_jax.paths import user_path
from grain_jax.zero_shot.methods import named_methods
from grain_jax.zero_shot.text_kinds import FROM_FILES

PACKAGED = Path(__file__).parent / "suites"
QUESTIONS = (".json", ".jsonl")  # a file of questions, not a folder with it
VERSION = re.compile(r":\d+\.\d+\.\d+$")
SUFFIXES = (".toml", ".json")
NAME = re.compile(r"[^/\s][^/]*")  # of a set: the first part of its metrics' keys
Binding = Literal["name", "order", "elimination"]
# Format of a compositional test -> its metrics, the published one first.
METRICS_OF = {
    "sugarcrepe": ("mean_over_groups", "accuracy"),
    "winoground": ("group", "text", "image"),
    "aro": ("mean_over_groups", "accuracy"),
    "retrieval": ("mean_R@1",),
}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images, as `python -m grain_jax.evaluate --data` takes them."""

    name: str
    # folder, Parquet file or tfds:NAME:VERSION; "": the name, in --suite_data or beside the file
    data: str = ""
    split: str = ""  # of tars, tables and TFDS
    image_column: str = ""  # of tables and TFDS
    label_column: str = ""
    metric: Literal["top1", "per_class"] = "top1"  # what is shown and averaged
    in_average: bool = True
    num_classes: int | None = None  # expected, images of any number of them
    num_images: int | None = None
    methods: tuple[str, ...] = ()  # (): those of the suite
    classes: str = ""
    templates: str = ""
    descriptions: str = ""
    description_template: str = "{}"
    texts: Mapping[str, str] = field(default_factory=dict)  # kind (`FROM_FILES`) -> file
    counts: str = ""
    keep_names: bool = False
    classes_by: Binding = "name"
    allow_equal_names: bool = False
    crops: int | None = None  # random ones of each image, of methods that look at some
    crop_sizes: tuple[float, ...] = ()  # smallest and largest, in shorter sides of the image
    crop_seed: int | None = None
    support: str = ""  # labelled images that are not tested, for methods that look at some
    support_split: str = ""
    shots: int | None = None
    support_seed: int | None = None
    bank: str = ""  # prepared records with captions, for methods that look at some
    bank_split: str = ""
    bank_size: int | None = None

    @property
    def given_images(self) -> dict[str, Any]:
        """What the set gives such methods, paths as the file has them."""
        return {name: one for name in OF_GIVEN if (one := getattr(self, name)) not in ("", None)}

    @property
    def crop_numbers(self) -> dict[str, Any]:
        """Fields of `RandomCrops` that the set gives."""
        return crop_numbers(self.crops, self.crop_sizes, self.crop_seed)

    @property
    def averaged_with(self) -> str:
        """Sets of one word are averaged together: figures of unlike kinds say nothing as a mean."""
        return "images"


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """A split of prepared records, for retrieval and grounding."""

    name: str
    data: str = ""
    split: str = "test"
    tasks: tuple[Literal["retrieval", "grounding"], ...] = ("retrieval", "grounding")
    metric: Literal["mean_R@1", "phrase_accuracy", "box_recall"] = "mean_R@1"
    in_average: bool = True
    num_images: int | None = None
    captions_per_image: int | None = None  # expected, or more

    @property
    def averaged_with(self) -> str:
        """As of images."""
        return "records"


@dataclass(frozen=True, kw_only=True)
class GroundingTest:
    """Phrase grounding by a published protocol, as `evaluate grounding` measures it."""

    name: str
    format: Literal["flickr30k_entities", "refcoco", "coco", "fg_ovd", "jsonl"]
    data: str = ""  # file or folder of annotations; "": the name, as of images
    images: str = ""  # folder of the images; "": where the format has them
    split: str = ""
    split_file: str = ""
    boxes: BoxesOf = "predicted"
    protocol: Truth = "any"
    feature: tuple[Feature, ...] = ("region",)
    prompt: str = "{}"
    negatives: int | None = None
    metric: Literal["R@1", "R@5", "R@10", "pointing", "caption_top1"] = "R@1"
    in_average: bool = True
    num_images: int | None = None  # expected, with a query
    num_texts: int | None = None  # expected, those without a box too

    @property
    def averaged_with(self) -> str:
        """As of records; figures of unlike protocols are not averaged."""
        return f"grounding/{self.boxes}_{self.protocol}"


@dataclass(frozen=True, kw_only=True)
class CompositionalTest:
    """Captions that differ in a word, or long ones, as `evaluate compositional` measures them."""

    name: str
    format: Literal["sugarcrepe", "winoground", "aro", "retrieval"]
    data: str = ""  # file of the questions, or a folder with it; "": the name, as of images
    images: str = ""  # folder of the images; "": `images` in that folder
    # "": the published one of the format
    metric: Literal["", "mean_over_groups", "accuracy", "group", "text", "image", "mean_R@1"] = ""
    in_average: bool = True
    num_images: int | None = None  # expected
    num_questions: int | None = None

    @property
    def averaged_with(self) -> str:
        """As of records; long captions are retrieved as those of records are."""
        return "records" if self.format == "retrieval" else "compositional"


AnySet = ImageSet | RecordSet | GroundingTest | CompositionalTest


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is measured together."""

    name: str
    note: str = ""  # printed with the results
    # suites that are measured too: packaged ones, or files relative to this one
    include: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()  # (): the default ones
    alphas: tuple[float, ...] = ()  # (): those of the run
    templates: str = ""  # of sets that give none; "": those of their folder, or the model's
    images: tuple[ImageSet, ...] = ()
    records: tuple[RecordSet, ...] = ()
    grounding: tuple[GroundingTest, ...] = ()
    compositional: tuple[CompositionalTest, ...] = ()
    included: tuple["Suite", ...] = ()
    folder: Path = field(default_factory=Path)  # what its paths are relative to
    packaged: bool = False

    @property
    def sets(self) -> tuple[AnySet, ...]:
        """Its own, without those of the suites that it includes."""
        return (*self.images, *self.records, *self.grounding, *self.compositional)

    @property
    def every(self) -> tuple["Suite", ...]:
        """The suite itself, and all that it includes."""
        return (self, *(one for part in self.included for one in part.every))

    @property
    def sha256(self) -> str:
        """Of what the file and those that it includes say, without where they lie."""
        said = {name: getattr(self, name) for name in fields_of(Suite) if name != "include"}
        if not said["templates"]:  # as it was before there were any
            del said["templates"]
        sets = {key: [_said(one) for one in said.pop(key)] for key in TABLES}
        written = {
            key: listed for key, listed in sets.items() if listed or key in ("images", "records")
        }
        parts = {"included": [one.sha256 for one in self.included]} if self.included else {}
        return sha256_of(said | written | parts)

    def place(self, one: AnySet, suite_data: Path | None) -> Path:
        """Where a set is: of a packaged suite in `suite_data`, else where the file says, or in
        `suite_data` or beside the file by its name. Raises ValueError where a packaged suite needs
        `suite_data`.
        """
        if one.data and (one.data.startswith(TFDS) or not self.packaged):
            return _address(one.data, self.folder)
        if suite_data is None and self.packaged:
            raise ValueError(
                f"Suite {self.name!r} says nothing of where its sets are; give "
                f"--suite_data=FOLDER, a folder that holds one folder a set, named "
                f"{', '.join(repr(known.name) for known in self.sets[:3])}, ..."
            )
        return (self.folder if suite_data is None else suite_data) / (one.data or one.name)

    def images_of(
        self, one: GroundingTest | CompositionalTest, suite_data: Path | None
    ) -> Path | None:
        """The folder of images that a test names, as `place`; of a compositional test that names
        none, `images` beside its questions. None: where the format has them.
        """
        if one.images:
            root = suite_data if self.packaged and suite_data is not None else self.folder
            return root / user_path(one.images)
        if isinstance(one, GroundingTest):
            return None
        place = self.place(one, suite_data)
        return (place.parent if place.suffix in QUESTIONS else place) / "images"

    def given_images(self, one: ImageSet) -> dict[str, Any]:
        """Arguments of `read_given_images`: `one.given_images` with paths relative to the file."""
        return {
            name: _address(value, self.folder) if name in FULFILS else value
            for name, value in one.given_images.items()
        }

    def text(self, given: str) -> str:
        """A text file of a set, relative to the suite's; published counts, and templates of the
        package, go by their name.
        """
        if not given or given in (*published_counts(), *TEMPLATE_LISTS):
            return given
        return str(self.folder / user_path(given))


def _address(given: str, folder: Path) -> Path:
    return Path(given) if given.startswith(TFDS) else folder / user_path(given)


def _said(one: AnySet) -> dict[str, Any]:
    """What a set says; of what older files had no words for only where it does."""
    said = asdict(one)
    return {key: said[key] for key in said if key not in LATER or said[key] not in (None, (), "")}


def shown_metric(one: AnySet) -> str:
    """The metric of a set that is shown and averaged."""
    if isinstance(one, CompositionalTest) and not one.metric:
        return METRICS_OF[one.format][0]
    return one.metric


TABLES: Mapping[str, type[AnySet]] = {
    "images": ImageSet,
    "records": RecordSet,
    "grounding": GroundingTest,
    "compositional": CompositionalTest,
}
NUMBERS = ("num_classes", "num_images", "num_texts", "num_questions")  # that are expected
COUNTS = (*NUMBERS, "captions_per_image", "negatives", "crops", "shots", "bank_size")
OF_GIVEN = (*FULFILS, *GOES_WITH)
LATER = ("crops", "crop_sizes", "crop_seed", *OF_GIVEN)


def packaged_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def read_suite(given: str) -> Suite:
    """The suite of a packaged name, or of a file.

    Raises ValueError for a file that is not one: unknown keys (with the nearest that exists),
    values of another type, sets of one name, no sets.
    """
    if given in packaged_suites():
        return _parse(PACKAGED / f"{given}.toml", packaged=True, within=())
    return _read_file(given, user_path(given), within=())


def _read_file(given: str, path: Path, *, within: Sequence[Path]) -> Suite:
    if path.suffix not in SUFFIXES or not path.is_file():
        near = difflib.get_close_matches(given, packaged_suites(), n=1)
        raise ValueError(
            f"There is no suite {given!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" Expected {', '.join(packaged_suites())}, or a file that ends in .toml or .json."
        )
    return _parse(path, packaged=False, within=within)


def _parse(path: Path, *, packaged: bool, within: Sequence[Path]) -> Suite:
    """The suite of a file; `within`: the files that include it."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:  # bytes that are no text, too
        raise ValueError(f"{str(path)!r} is not {path.suffix[1:].upper()}: {error}") from error
    title = f"Suite {str(path)!r}"
    if not isinstance(content, dict):
        raise ValueError(f"{title} is a {type(content).__name__}, and a table was expected.")
    content = {"name": path.stem, **content}
    for key, kind in TABLES.items():
        listed = content.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ValueError(f"{title}: {key} is a list of tables, [[{key}]] in TOML.")
        content[key] = tuple(
            kind(**checked_table(one, kind, f"{title}, {key}[{number}]"))
            for number, one in enumerate(listed)
        )
    sets = {key: content.pop(key) for key in TABLES}
    suite = Suite(
        **checked_table(content, Suite, title),
        **sets,
        folder=path.parent.absolute(),
        packaged=packaged,
    )
    suite = _with_methods(suite, title)
    included = tuple(
        _under(suite, _included(name, path, title, within=(*within, path.resolve())))
        for name in suite.include
    )
    suite = replace(suite, included=included)
    _check(suite, title)
    return suite


def _with_methods(suite: Suite, title: str) -> Suite:
    """The suite with its methods by their names, "all" by those that it stands for."""
    try:
        images = (replace(one, methods=named_methods(one.methods)) for one in suite.images)
        return replace(suite, methods=named_methods(suite.methods), images=tuple(images))
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from error


def _included(name: str, path: Path, title: str, *, within: Sequence[Path]) -> Suite:
    if name in packaged_suites():
        other, packaged = PACKAGED / f"{name}.toml", True
    else:
        other, packaged = path.parent / user_path(name), False
    if other.resolve() in within:
        raise ValueError(f"{title} includes {name!r}, which includes it; take one of them out.")
    if packaged:
        return _parse(other, packaged=True, within=within)
    return _read_file(name, other, within=within)


def _under(outer: Suite, suite: Suite) -> Suite:
    """A suite as it is measured in another, whose methods and alphas go before its own."""
    return replace(
        suite,
        methods=outer.methods or suite.methods,
        alphas=outer.alphas or suite.alphas,
        included=tuple(_under(outer, one) for one in suite.included),
    )


def _check(suite: Suite, title: str) -> None:
    names = [part.name for part in suite.every]
    names += [one.name for part in suite.every for one in part.sets]
    if not suite.sets and not suite.included:
        tables = " or ".join(f"[[{key}]]" for key in TABLES)
        raise ValueError(f"{title} has no sets; give {tables}, or include other suites.")
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{title}: {name!r} is not a name of a set: no '/', no space first.")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{title}: {twice[0]!r} is the name of two; give each its own.")
    for images in suite.images:
        for kind in images.texts:
            if kind not in FROM_FILES:
                raise ValueError(
                    f"{title}: texts of {images.name!r} has {kind!r}, and the kinds of texts that "
                    f"files have are {', '.join(FROM_FILES)}."
                )
    if any(not 0 <= alpha <= 1 for alpha in suite.alphas):
        raise ValueError(f"{title}: alphas are numbers from 0 to 1, not {list(suite.alphas)}.")
    for one in suite.sets:
        for what in COUNTS:
            expected = getattr(one, what, None)
            if expected is not None and expected < 1:
                raise ValueError(f"{title}: {what} of {one.name!r} should be at least 1.")
    for one in suite.images:
        _check_images(one, title)
    for test in suite.grounding:
        _check_grounding(test, title)
    for each in suite.compositional:
        metrics = METRICS_OF[each.format]
        if each.metric and each.metric not in metrics:
            raise ValueError(
                f"{title}: {each.name!r} in the format {each.format} has the metrics "
                f"{', '.join(metrics)}, not {each.metric!r}."
            )


def _check_images(one: ImageSet, title: str) -> None:
    """Crops lie in the image; a set of TFDS is one version of it, with so many classes: others are
    other measurements.
    """
    if one.crop_sizes and (
        len(one.crop_sizes) != 2 or not 0 < one.crop_sizes[0] <= one.crop_sizes[1] <= 1
    ):
        raise ValueError(
            f"{title}: crop_sizes of {one.name!r} are the smallest and the largest, above 0 and up "
            f"to 1, as [0.7, 0.9], not {list(one.crop_sizes)}."
        )
    for seed in ("crop_seed", "support_seed"):
        if (getattr(one, seed) or 0) < 0:
            raise ValueError(f"{title}: {seed} of {one.name!r} should be 0 or more.")
    for name in one.given_images:
        if (other := GOES_WITH.get(name, name)) not in one.given_images:
            raise ValueError(f"{title}: {name} of {one.name!r} goes with {other}; give both.")
    address = one.data.removeprefix(TFDS)
    if one.data == address or address.startswith(("/", ".", "~")):
        return
    if not VERSION.search(address) or one.num_classes is None:
        raise ValueError(
            f"{title}: {one.name!r} is of TFDS; give its version and num_classes, as in "
            f'data = "{TFDS}eurosat/rgb:2.0.0" and num_classes = 10.'
        )


def _check_grounding(one: GroundingTest, title: str) -> None:
    where = f"{title}: {one.name!r}"
    check_placeholder(one.prompt, f"{where}: the prompt {one.prompt!r}", takes="the text")
    if not one.feature or len(set(one.feature)) < len(one.feature):
        raise ValueError(f"{where} needs one feature or two different ones, not {one.feature}.")
    if one.negatives is not None and one.format != "fg_ovd":
        raise ValueError(f"{where} has negatives, which only the format fg_ovd has.")
    if one.metric == "caption_top1" and one.format not in ("fg_ovd", "jsonl"):
        raise ValueError(f"{where} has no wrong captions to take caption_top1 of.")
