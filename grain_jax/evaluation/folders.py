"""Zero-shot sets from disk: an image folder (one subfolder a class) or `labels.csv`, and their
class texts.

Everything is bound by name. Published class texts hold traps that this file turns into errors or
notes: keys in another order than the classes, classes without descriptions, names with underscores,
files that cover many more classes.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grain_jax.data.checking import MAX_IMAGE_BYTES, Dropped, read_image_file
from grain_jax.data.records import DEFAULT_TEMPLATES, Record, ZeroShotSet
from grain_jax.paths import user_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their class names, read when asked for.

    Raises ValueError for a file that is gone, or has grown beyond `MAX_IMAGE_BYTES`.
    """

    root: Path
    files: tuple[str, ...]  # relative to `root`
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Record:
        name = self.files[index]
        try:
            image = read_image_file(name, self.root)
        except Dropped as error:
            raise ValueError(f"Image {error} Replace it, or take it out of the set.") from error
        return Record(id=name, image=image, label=self.labels[index])


def load_zero_shot(
    folder: str | Path,
    *,
    classes: str = "",
    templates: str = "",
    descriptions: str = "",
    description_template: str = "{}",
    default_templates: Sequence[str] = DEFAULT_TEMPLATES,
    keep_names: bool = False,
    note: Callable[[str], None] = print,
) -> ZeroShotSet:
    """The set in `folder`: `labels.csv` (columns file,label) or one subfolder a class.

    `classes`: .txt (a name a line) or .json (list of names, or {label: name}); by default
    `classes.json` or `classes.txt` of the folder, else the labels are the names. `templates`: .txt
    or .json list with one "{}" (or "{c}") each. `descriptions`: .json {label or name: [description,
    ...]}. All three: `file.json#key` picks one entry of a file for many sets, and a file of that
    name in the folder is found by itself. Underscores in names become spaces unless `keep_names`.
    `note` is told what a reader of the figures should know. Raises ValueError.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r} to evaluate on.")
    files, labels = _labelled_files(root)
    source = classes or _beside(root, "classes.json", "classes.txt")
    names = _names_of_labels(labels, read_texts(source) if source else None, source)
    if not keep_names:
        names = _cleaned(names, note)
    class_names = tuple(dict.fromkeys(names.values()))
    if len(class_names) != len(names):
        twice = sorted(n for n in class_names if list(names.values()).count(n) > 1)
        raise ValueError(
            f"{len(names)} classes have only {len(class_names)} different names: {twice[0]!r} is "
            "used more than once. Give each its own with a {label: name} JSON in --classes."
        )
    used = {names[label] for label in labels}
    if len(used) < len(class_names):
        unseen = len(class_names) - len(used)
        note(f"{root.name}: {unseen} of {len(class_names)} classes have no images.")
    source = templates or _beside(root, "templates.json", "templates.txt")
    prompts = check_templates(read_texts(source), source) if source else tuple(default_templates)
    source = descriptions or _beside(root, "descriptions.json")
    described = (
        bind_descriptions(read_texts(source), names, source, root.name, note) if source else {}
    )
    return ZeroShotSet(
        name=root.name,
        source=ImageFiles(root, files, tuple(names[label] for label in labels)),
        class_names=class_names,
        templates=prompts,
        descriptions=described,
        description_template=description_template,
    )


def _labelled_files(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    table = root / "labels.csv"
    if table.exists():
        pairs = _table(table)
    else:
        pairs = [
            (path.relative_to(root).as_posix(), path.relative_to(root).parts[0])
            for path in sorted(root.glob("*/**/*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
        ]
    if not pairs:
        raise ValueError(
            f"{str(root)!r} holds no labelled images: give it a labels.csv (columns file,label) "
            "or one subfolder of images for each class."
        )
    inside = root.resolve()
    missing = []
    for name, _ in pairs:
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(inside):
            raise ValueError(f"{name!r} leads out of {str(root)!r}; images must lie inside it.")
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size > MAX_IMAGE_BYTES:
            raise ValueError(
                f"Image {name!r} of {str(root)!r} is larger than {MAX_IMAGE_BYTES} bytes. Shrink "
                "it, or take it out of the set."
            )
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(pairs)} images of {str(root)!r} do not exist, "
            f"{missing[0]!r} first."
        )
    files, labels = zip(*pairs, strict=True)
    return files, labels


def _table(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{str(path)!r} needs the columns file,label in its first line; "
                f"it has {reader.fieldnames}."
            )
        pairs = [((row["file"] or "").strip(), (row["label"] or "").strip()) for row in reader]
    seen: set[str] = set()
    for number, (name, label) in enumerate(pairs, start=2):
        if not name or not label:
            raise ValueError(f"Line {number} of {str(path)!r} lacks a file or a label.")
        if name in seen:
            raise ValueError(f"Line {number} of {str(path)!r} lists {name!r} a second time.")
        seen.add(name)
    return pairs


def _names_of_labels(labels: Sequence[str], given: Any, source: str) -> dict[str, str]:
    """label -> class name, for every class (also those without an image)."""
    unique = sorted(set(labels))
    if given is None:
        return {label: label for label in unique}
    if isinstance(given, dict):
        names = {str(label): name for label, name in given.items()}
    elif isinstance(given, list):
        by_key = {_key(name): name for name in map(str, given)}
        if len(by_key) != len(given):
            keys = [_key(str(name)) for name in given]
            twice = next(n for n in map(str, given) if keys.count(_key(n)) > 1)
            raise ValueError(f"{source!r} lists class {twice!r} more than once.")
        found = {label: by_key[_key(label)] for label in unique if _key(label) in by_key}
        rest = {name: name for name in by_key.values() if name not in found.values()}
        names = found | rest
    else:
        raise ValueError(f"{source!r} must hold a list of names or an object {{label: name}}.")
    if odd := [
        label for label, name in names.items() if not isinstance(name, str) or not name.strip()
    ]:
        raise ValueError(
            f"{source!r} gives label {odd[0]!r} no name (one string) to call it by"
            f"{_entries(given)}."
        )
    if unnamed := [label for label in unique if label not in names]:
        raise ValueError(
            f"Label {unnamed[0]!r} has no class name in {source!r} ({len(unnamed)} of "
            f"{len(unique)} labels lack one); add it."
        )
    return names


def _cleaned(names: dict[str, str], note: Callable[[str], None]) -> dict[str, str]:
    cleaned = {label: " ".join(name.replace("_", " ").split()) for label, name in names.items()}
    changed = [(name, cleaned[label]) for label, name in names.items() if cleaned[label] != name]
    if changed:
        before, after = changed[0]
        note(
            f"{len(changed)} of {len(names)} class names had underscores or odd spaces cleaned, as "
            f"{before!r} -> {after!r} (--keep_names leaves them)."
        )
    return cleaned


def check_templates(given: Any, source: str) -> tuple[str, ...]:
    """The prompts that `read_texts` read in `source`. Raises ValueError."""
    if not isinstance(given, list) or not given or not all(isinstance(t, str) for t in given):
        raise ValueError(
            f"{source!r} must hold a list of templates, such as 'a photo of a {{}}.'"
            f"{_entries(given)}."
        )
    templates = tuple(template.replace("{c}", "{}") for template in given)
    if odd := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(
            f"Template {odd[0]!r} of {source!r} needs exactly one '{{}}' for the name."
        )
    return templates


def bind_descriptions(
    given: Any, names: dict[str, str], source: str, title: str, note: Callable[[str], None]
) -> dict[str, tuple[str, ...]]:
    """Class name -> descriptions, from what `read_texts` read in `source`; keys may be labels or
    names of `names`, in any case and spacing. Raises ValueError.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{source!r} must hold an object {{class: [description, ...]}}.")
    by_key = {_key(text): name for label, name in names.items() for text in (label, name)}
    found: dict[str, tuple[str, ...]] = {}
    others = 0
    for key, texts in given.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"The descriptions of {key!r} in {source!r} must be a list of strings."
            )
        name = by_key.get(_key(key))
        if name is None:
            others += 1
        elif name in found:
            raise ValueError(
                f"{source!r} describes class {name!r} more than once (again as {key!r})."
            )
        else:
            found[name] = tuple(text.strip() for text in texts if text.strip())
    if not found:
        raise ValueError(
            f"No key of {source!r} is a class of {title!r}: keys are like "
            f"{next(iter(given), '')!r}, classes like {next(iter(names.values()))!r}. Keys must be "
            "class names or labels."
        )
    classes = len(set(names.values()))
    empty = [name for name in names.values() if not found.get(name)]
    if empty:
        note(undescribed_note(title, empty, classes))
    if others:
        note(f"{title}: {others} of {len(given)} entries of the descriptions are of other classes.")
    return found


def undescribed_note(title: str, undescribed: Sequence[str], num_classes: int) -> str:
    """What a reader should know of classes without descriptions."""
    return (
        f"{title}: {len(undescribed)} of {num_classes} classes have no description "
        f"({undescribed[0]!r} first) and are scored by their name instead."
    )


def _entries(given: Any) -> str:
    """A hint where the content is an object of lists: a file for many sets."""
    if not isinstance(given, dict) or not all(isinstance(v, list) for v in given.values()):
        return ""
    return f"; pick one entry with 'file.json#key': {', '.join(sorted(given)[:20])}"


def read_texts(source: str) -> Any:
    """Content of a .json or .txt (list of lines) file; `file.json#key` one entry of an object."""
    name, _, entry = source.partition("#")
    path = user_path(name)
    if not path.is_file():
        raise ValueError(f"There is no file {name!r}.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix != ".json":
        raise ValueError(f"{name!r} should end in .json or .txt.")
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise ValueError(f"{name!r} is not valid JSON: {error}") from error
    if not entry:
        return content
    if not isinstance(content, dict) or entry not in content:
        known = ", ".join(sorted(content)[:20]) if isinstance(content, dict) else "none: a list"
        raise ValueError(f"{name!r} has no entry {entry!r}; it has {known}.")
    return content[entry]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return content


def _beside(root: Path, *names: str) -> str:
    return next((str(root / name) for name in names if (root / name).is_file()), "")


def _key(text: str) -> str:
    """What names are compared by: case, underscores and spacing do not matter."""
    return " ".join(text.replace("_", " ").casefold().split())
