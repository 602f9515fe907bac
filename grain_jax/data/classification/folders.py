"""Load zero-shot sets: labelled images in folders, tars, tables or of TFDS, and class texts.

Labels, names and descriptions are bound and checked before any image is read.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grain_jax.data.classification.class_counts import (
    bind_counts,
    published_counts,
    read_counts,
)
from grain_jax.data.classification.class_folders import (
    LAYOUTS,
    ClassFolders,
    layout_hint,
    read_class_folders,
)
from grain_jax.data.classification.class_names import (
    clean_names,
    name_key,
    names_of_labels,
)
from grain_jax.data.classification.class_texts import bind_descriptions
from grain_jax.data.classification.further_texts import read_further_texts
from grain_jax.data.classification.image_folder import printable
from grain_jax.data.classification.labels_table import NAME, FilesOnDisk, read_labels_table
from grain_jax.data.classification.set_names import folder_name
from grain_jax.data.classification.stored import open_stored
from grain_jax.data.classification.stored_classes import Labels, SplitChoice, labels_of
from grain_jax.data.classification.templates import TEMPLATE_LISTS, read_templates
from grain_jax.data.entities_folder import refuse_entities
from grain_jax.data.image_files import MAX_IMAGE_BYTES, SkippedSample, read_image_bytes
from grain_jax.data.records import DEFAULT_TEMPLATES, Record, ZeroShotSet
from grain_jax.data.text_files import read_texts, split_entry
from grain_jax.paths import nearest_hint, user_path


@dataclass(frozen=True)
class ImageFiles:
    """A source of labelled image files, read at each access.

    `__getitem__` raises ValueError for a file that is missing or larger than `MAX_IMAGE_BYTES`.
    """

    root: Path
    files: tuple[str, ...]  # relative to `root`
    labels: tuple[str, ...]  # class name of each file

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Record:
        name = printable(self.files[index])
        try:
            image = read_image_bytes(self.root / self.files[index], name=name)
        except SkippedSample as error:
            raise ValueError(f"Image {error} Replace it, or take it out of the set.") from error
        return Record(id=name, image=image, label=self.labels[index])


CODE = re.compile(r"n\d{8}|\d+")  # identifiers of WordNet, and numbers


def load_zero_shot(
    folder: str | Path,
    *,
    name: str = "",
    classes: str = "",
    templates: str = "",
    descriptions: str = "",
    counts: str = "",
    further: Mapping[str, str] | None = None,
    description_template: str = "{}",
    default_templates: Sequence[str] = DEFAULT_TEMPLATES,
    keep_names: bool = False,
    classes_by: str = "name",
    allow_equal_names: bool = False,
    split: str | SplitChoice | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    single_class: bool = False,
    note: Callable[[str], None] = print,
) -> ZeroShotSet:
    """The zero-shot set in `folder`, with a `labels.csv` (columns file,label) or class subfolders.

    `folder` may also hold tars in CLIP_benchmark's layout (`webdataset_folder`) or Parquet tables,
    and be a Parquet file (`parquet_tables`), or `tfds:NAME` (`tfds_set`).

    `classes`, `templates`, `descriptions` and `counts` are files; `file.json#key` selects one entry
    of a file for several sets. By default a file of that name in the folder is used.

    Args:
        name: of the set in notes and metrics (default: the name of its folder).
        classes: class names: .json {label: name}, or a list of names in .json, .txt (one per line)
            or .md (CLIP's `prompts.md`). Without a file, labels are the names.
        templates: a list, in the same formats, of prompts with one "{}" (or "{c}") each, or one of
            `TEMPLATE_LISTS`.
        descriptions: .json {label or name: [description, ...]}.
        counts: .json {label or name: training captions that it occurs in}, or the name of published
            ones (`class_counts`).
        further: kind of texts that only some methods take -> .json {label or name: [text, ...]},
            or another form (`further_texts.FORMS`).
        description_template: "{}" takes a description; "{name}", if present, the class name.
        default_templates: prompts where no file has any.
        keep_names: keep underscores and HTML entities in names instead of replacing them.
        classes_by: method of binding a list of names to labels: "name", "order" (of the sorted
            labels), or "elimination" (by name, and the last pair by elimination).
        allow_equal_names: several classes may have the same name; they remain distinct classes,
            and their scores by name tie.
        split: of tars, tables and TFDS: "test" by default, else the only one; a `SplitChoice`
            has other defaults.
        image_column: of tables and TFDS, where several hold images.
        label_column: of tables and TFDS, where several hold classes.
        single_class: one class is enough, as nothing is measured on these images.
        note: called with sentences that a reader of the metrics should know.

    Raises ValueError where a metric would be wrong or misleading: see `docs/evaluation.md`.
    """
    root = user_path(folder)
    choice = split if isinstance(split, SplitChoice) else SplitChoice(split)
    stored = open_stored(root, choice, image_column=image_column, label_column=label_column)
    if stored is None and not root.is_dir():
        raise ValueError(
            f"There is no folder {str(root)!r}{nearest_hint(root) or '.'} Give a folder of "
            "labelled images."
        )
    if stored is None and not (root / NAME).is_file():
        refuse_entities(root)
    title = name or (stored.title if stored else "") or folder_name(root)
    beside = root if stored is None else stored.beside
    text_files = {"labels": _beside(beside, NAME) if stored is None else ""}
    text_files["classes"] = classes or _beside(beside, "classes.json", "classes.txt")
    text_files["templates"] = templates or _beside(beside, "templates.json", "templates.txt")
    text_files["descriptions"] = descriptions or _beside(beside, "descriptions.json")
    text_files["counts"] = counts or _beside(beside, "counts.json")
    source = text_files["classes"]
    given = read_texts(source, "classes") if source else None
    hint, open_images = "", None
    if stored is None:
        folders = _labelled_images(root, title, note, named=bool(source) or single_class)
        hint = layout_hint(root, folders)
        labels = Labels(folders.labels, folders.classes)
    else:
        labels, open_images = labels_of(stored, given, classes_by), stored.open_images
        text_files["templates"] = text_files["templates"] or stored.templates_file
        if given is None:
            given, source = labels.names, stored.names_file or stored.where
            text_files["classes"] = stored.names_file
    try:
        names = names_of_labels(labels.all, given, source, note, binding=classes_by)
    except ValueError as error:
        raise ValueError(f"{error}{hint}") from error
    if not text_files["classes"] and _are_codes(names.values()):
        note(
            f"{title}: labels are taken for class names, and they look like codes, as "
            f"{next(iter(names.values()))!r}; give names with --classes, {{label: name}}."
        )
    cleaned = clean_names(names, note, keep=keep_names)
    names, name_texts = _distinct_classes(cleaned, title, note, allow_equal=allow_equal_names)
    if len(names) < 2 and not single_class:
        raise ValueError(
            f"{str(root)!r} has only one class, {next(iter(names))!r}, so every metric would be "
            f"100 %. {LAYOUTS}"
        )
    _note_empty(title, labels.of_images, names, note)
    source = text_files["templates"]
    prompts = read_templates(source) if source else tuple(default_templates)
    source = text_files["descriptions"]
    described = (
        bind_descriptions(read_texts(source), names, source, title, note, name_texts=name_texts)
        if source
        else {}
    )
    source = text_files["counts"]
    counted = (
        bind_counts(read_counts(source), names, source, title, note, name_texts=name_texts)
        if source
        else {}
    )
    more = read_further_texts(further or {}, names, title, note, name_texts=name_texts)
    text_files |= further or {}
    named = tuple(names[label] for label in labels.of_images)
    return ZeroShotSet(
        name=title,
        source=open_images(named) if open_images else ImageFiles(root, folders.files, named),
        class_names=tuple(names.values()),
        templates=prompts,
        descriptions=described,
        description_template=description_template,
        name_texts=name_texts,
        split=stored.split if stored else "",
        counts=counted,
        further=more.of_classes,
        shared=more.shared,
        pairs=more.pairs,
        text_files={
            role: file if file in (*TEMPLATE_LISTS, *published_counts()) else split_entry(file)[0]
            for role, file in text_files.items()
            if file
        },
    )


def _are_codes(names: Iterable[str]) -> bool:
    """Whether most are identifiers of WordNet or numbers, which say nothing to a text encoder."""
    every = list(names)
    return sum(CODE.fullmatch(name) is not None for name in every) > len(every) / 2


def _labelled_images(
    root: Path, title: str, note: Callable[[str], None], *, named: bool
) -> ClassFolders:
    """The images with their labels. `named`: a file lists the classes.

    Raises ValueError where there are no images or only one class.
    """
    if (root / NAME).is_file():
        return _listed_images(root, title, note)
    images = read_class_folders(root)
    with_images = sorted(set(images.labels))
    if not with_images:
        tables = sorted(path.name for path in root.glob("*.[cCtT][sS][vV]"))
        other = f" The table must be called {NAME!r}, not {tables[0]!r}." if tables else ""
        noted = "".join(f" {text}" for text in images.notes)
        raise ValueError(f"{str(root)!r} holds no labelled images. {LAYOUTS}{other}{noted}")
    if len(with_images) == 1 and not named:
        raise ValueError(
            f"{str(root)!r} has images in only one subfolder, {with_images[0]!r}: with one class "
            "every metric would be 100 %. "
            f"{LAYOUTS}{layout_hint(root, images)}"
        )
    for text in images.notes:
        note(f"{title}: {text}")
    return images


def _listed_images(root: Path, title: str, note: Callable[[str], None]) -> ClassFolders:
    pairs = read_labels_table(root / NAME, note=lambda text: note(f"{title}: {text}"))
    if not pairs:
        raise ValueError(f"{str(root / NAME)!r} lists no labelled images.")
    on_disk = FilesOnDisk(root)
    missing: list[str] = []
    files: dict[str, str] = {}  # as on disk -> as in the table
    for name, _ in pairs:
        found = on_disk.find(name)
        if found is None:
            missing.append(name)
        elif found in files:
            raise ValueError(
                f"{str(root / NAME)!r} lists {printable(found)!r} a second time, in another "
                "Unicode form."
            )
        else:
            files[found] = name
            if (root / found).stat().st_size > MAX_IMAGE_BYTES:
                raise ValueError(
                    f"Image {printable(name)!r} of {str(root)!r} is larger than {MAX_IMAGE_BYTES} "
                    "bytes. Shrink it, or take it out of the set."
                )
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(pairs)} images of {str(root)!r} do not exist, "
            f"{printable(missing[0])!r} first."
        )
    labels = tuple(label for _, label in pairs)
    return ClassFolders(tuple(files), labels, tuple(sorted(set(labels))))


def _distinct_classes(
    names_in_prompts: Mapping[str, str],
    title: str,
    note: Callable[[str], None],
    *,
    allow_equal: bool,
) -> tuple[dict[str, str], dict[str, str]]:
    """Label -> distinct class name, and class name -> name in prompts where the two differ.

    Raises ValueError for names with the same `name_key`, unless `allow_equal`.
    """
    labels_of: dict[str, list[str]] = defaultdict(list)
    for label, name in names_in_prompts.items():
        labels_of[name_key(name)].append(label)
    equal = [labels for labels in labels_of.values() if len(labels) > 1]
    if not equal:
        return dict(names_in_prompts), {}
    first, second = equal[0][:2]
    if not allow_equal:
        unlike = names_in_prompts[first] != names_in_prompts[second] or name_key(first) == name_key(
            second
        )
        raise ValueError(
            f"{len(names_in_prompts)} classes have only {len(labels_of)} different names: "
            f"{names_in_prompts[first]!r} is used more than once (labels {first!a} and {second!a}"
            f"{', alike but for case, spacing or composed letters' * unlike}). Give each its own "
            "with a {label: name} JSON in --classes, or let them be equal with "
            "--allow_equal_names."
        )
    names = dict(names_in_prompts)
    name_texts: dict[str, str] = {}
    for label in (label for labels in equal for label in labels):
        names[label] = f"{names_in_prompts[label]} ({label})"
        name_texts[names[label]] = names_in_prompts[label]
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"{title}: the name of a class equals that of another with its label; rename it."
        )
    note(
        f"{title}: {len(name_texts)} of {len(names)} classes share their name with another "
        f"({names_in_prompts[first]!r} first). By name their scores tie, and a tie counts as its "
        "expected value."
    )
    return names, name_texts


def _note_empty(
    title: str, labels: Sequence[str], names: Mapping[str, str], note: Callable[[str], None]
) -> None:
    used = set(labels)
    if empty := [name for label, name in names.items() if label not in used]:
        note(
            f"{title}: {len(empty)} of {len(names)} classes have no images ({empty[0]!r} first); "
            "they remain candidates."
        )


def _beside(root: Path | None, *names: str) -> str:
    if root is None:
        return ""
    return next((str(root / name) for name in names if os.path.isfile(root / name)), "")
