"""Class folders: one subfolder of images for each class, whose name is the label.

`--input` is the folder of the subfolders. An image's caption is its class name in a template;
the name is that of the folder with spaces for underscores, or the one that `--classes` gives it.
`--descriptions` names a file of class descriptions, {class: [description, ...]}, which is bound to
the classes here and kept beside the records, for the step that grounds them. `--holdout` sets a
fraction of the images aside, chosen by a hash of their paths, so that it stays the same when images
are added.
"""

import hashlib
import json
from pathlib import Path
from typing import ClassVar

from grain_jax.data.classification.class_folders import LAYOUTS, layout_hint, read_class_folders
from grain_jax.data.classification.class_names import clean_names, names_of_labels
from grain_jax.data.classification.class_texts import bind_descriptions
from grain_jax.data.classification.image_folder import printable
from grain_jax.data.importers.columns import check_template
from grain_jax.data.importers.held_out import part_of
from grain_jax.data.importers.item import ImagesFolder, ImportedImage
from grain_jax.data.records import Caption
from grain_jax.data.text_files import read_texts


class ImageFolder:
    """One record for each image, sorted by class and path. An `Importer`."""

    images_folder: ClassVar[ImagesFolder] = "input"

    def __init__(
        self,
        path: Path,
        *,
        template: str | None = None,
        classes: Path | None = None,
        descriptions: Path | None = None,
        holdout: float | None = None,
        held_out: bool = False,
    ) -> None:
        if not path.is_dir():
            raise ValueError(f"--input={path} is not a folder. {LAYOUTS}")
        self._root = path
        self._template = check_template(template)
        folders = read_class_folders(path)
        if not folders.files:
            raise ValueError(
                f"--input={path} holds no images in class folders. {' '.join(folders.notes)}"
            )
        self.notes = [*folders.notes, *filter(None, [layout_hint(path, folders).strip()])]
        self._names = self._named(folders.classes, classes)
        places = part_of(list(folders.files), holdout, held_out=held_out)
        self._files = [(folders.files[place], folders.labels[place]) for place in places]
        self._descriptions = self._bound(descriptions)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ImportedImage:
        file, label = self._files[index]
        name = self._names[label]
        return ImportedImage(
            id=printable(file),
            image=file,
            captions=(Caption(self._template.format(name)),),
            label=name,
        )

    def fingerprint(self) -> dict[str, object]:
        return {"path": str(self._root.resolve()), "images": len(self), "sha256": self._hash()}

    def checksum(self, start: int, stop: int) -> str:
        made_of = [self._template, self._files[start:stop], self._names]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def class_descriptions(self) -> dict[str, tuple[str, ...]]:
        """Class name, which is the label of records, -> descriptions; {} where none are given."""
        return self._descriptions

    def _hash(self) -> str:
        made_of = [self._template, self._files, self._names, self._descriptions]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _named(self, labels: tuple[str, ...], source: Path | None) -> dict[str, str]:
        """The name of each folder. Raises ValueError where two folders have one."""
        given = None if source is None else read_texts(str(source), "classes")
        names = names_of_labels(labels, given, str(source or ""), self.notes.append)
        names = clean_names(names, lambda note: None, keep=False)
        if len(set(names.values())) < len(names):
            twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
            folders = [label for label, name in names.items() if name == twice]
            raise ValueError(
                f"The classes {folders[0]!r} and {folders[1]!r} are both called {twice!r}; give "
                "each its own name with --classes."
            )
        return names

    def _bound(self, source: Path | None) -> dict[str, tuple[str, ...]]:
        if source is None:
            return {}
        found = bind_descriptions(
            read_texts(str(source)),
            self._names,
            str(source),
            self._root.name,
            self.notes.append,
            undescribed="",  # evaluation says what becomes of them
        )
        return {name: found[name] for name in self._names.values() if name in found}
