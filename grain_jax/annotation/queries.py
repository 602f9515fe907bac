"""What to look for in an image: where the texts of the stage `ground` come from."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from grain_jax.annotation.images import list_images
from grain_jax.annotation.phrases import PhraseFinder, caption_phrases
from grain_jax.data.annotation_files import Annotations, read_annotations
from grain_jax.data.captions import clean_text, normalize_text
from grain_jax.data.classification.class_names import clean_names, names_of_labels
from grain_jax.data.classification.class_texts import bind_descriptions
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import IMPORTERS, InvalidRecordError
from grain_jax.data.records import Caption
from grain_jax.data.text_files import read_texts

MAX_PHRASES = 20  # of the captions of an image
# Formats of `prepare` with captions that people wrote, of images that are named by their path.
CAPTION_FORMATS = tuple(
    sorted(
        name
        for name, importer in IMPORTERS.items()
        if name != "annotations"
        and getattr(importer, "images_folder", "required") in ("required", "optional")
    )
)


@runtime_checkable
class TextQueries(Protocol):
    """Texts to look for in each image."""

    source: str  # how they come about, for the provenance of rows

    def inputs(self, image: str) -> Sequence[str]:
        """What the texts are made of; quick, as it is read of all images at the start of a run.

        Raises `SkippedSample` for an image that can only be grounded later, or never.
        """
        ...

    def texts(self, image: str) -> list[str]:
        """Distinct texts for an image. Raises `SkippedSample` where there are none."""
        ...

    def kept(self, image: str) -> Mapping[str, Any]:
        """What the image's row keeps of where its texts come from: columns of the stage."""
        ...


class DescriptionQueries:
    """The descriptions that `describe` wrote. `TextQueries`."""

    source = "descriptions"

    def __init__(self, folder: Path) -> None:
        self._rows = _RowsByImage(folder)

    def inputs(self, image: str) -> Sequence[str]:
        return self.texts(image)

    def texts(self, image: str) -> list[str]:
        return distinct_texts(self._rows.outputs(image, "descriptions"), "no description")

    def kept(self, image: str) -> Mapping[str, Any]:
        return {}


class CaptionPhraseQueries:
    """Noun phrases of an image's captions. `TextQueries`.

    Args:
        captions: of an image; raises `SkippedSample` where there are none.
        keep_captions: whether rows hold the captions, because no other stage does.
    """

    def __init__(
        self,
        captions: Callable[[str], Sequence[Caption]],
        finder: PhraseFinder,
        *,
        keep_captions: bool = False,
    ) -> None:
        self._captions, self._finder, self._keep = captions, finder, keep_captions
        of = "noun phrases of given captions" if keep_captions else "noun phrases"
        self.source = f"{of}: {finder.name}"

    def inputs(self, image: str) -> Sequence[str]:
        if not (captions := self._captions(image)):
            raise SkippedSample("no caption", f"{image} has no caption")
        return [caption.text for caption in captions]

    def texts(self, image: str) -> list[str]:
        phrases = caption_phrases(self.inputs(image), self._finder, limit=MAX_PHRASES)
        return distinct_texts(phrases, "no noun phrase in its captions")

    def kept(self, image: str) -> Mapping[str, Any]:
        captions = self._captions(image) if self._keep else ()
        if not captions:
            return {}
        return {
            "captions": [caption.text for caption in captions],
            "caption_sources": [caption.source for caption in captions],
        }


def annotated_captions(folder: Path) -> Callable[[str], Sequence[Caption]]:
    """The captions that `describe` wrote, by image."""
    rows = _RowsByImage(folder)
    return lambda image: [Caption(text, "synthetic") for text in rows.outputs(image, "captions")]


def imported_captions(format: str, path: Path) -> Callable[[str], Sequence[Caption]]:
    """The captions of a file that `prepare --from=FORMAT` reads, by image.

    Lines that cannot be read count as images without captions, and several lines of one image are
    read together.

    Raises ValueError for a file that cannot be read, or that has images and not their paths.
    """
    try:
        importer = IMPORTERS[format](path)
    except ValueError as error:
        if not path.is_dir():
            raise
        raise ValueError(
            f"--captions={path}: {error} `ground` reads a whole collection and has no option for a "
            "part of it; give the file of that part."
        ) from error
    places: dict[str, list[int]] = {}
    for place in range(len(importer)):
        try:
            item = importer[place]
        except (InvalidRecordError, SkippedSample):
            continue
        if item.content is not None:
            raise ValueError(
                f"--captions={path} has images and not their paths in --images, so its captions "
                "belong to none of these."
            )
        places.setdefault(item.image, []).append(place)

    def captions(image: str) -> Sequence[Caption]:
        if image not in places:
            raise SkippedSample("no caption", f"{path} has no line for {image}")
        found = [caption for place in places[image] for caption in importer[place].captions]
        return list(dict.fromkeys(found))

    return captions


class ClassDescriptionQueries:
    """The descriptions of the class that an image's folder is named after. `TextQueries`.

    Args:
        path: a JSON file {class: [description, ...]}; keys are compared as in evaluation.
        images: folder with a subfolder for each class.
        note: called with sentences on classes without descriptions and on unused entries.
        classes: a JSON file {folder: name}, or a list of names; None: folders are names.

    Raises ValueError for another structure, or where no key is a class.
    """

    source = "class descriptions"

    def __init__(
        self,
        path: Path,
        images: Path,
        note: Callable[[str], None],
        *,
        classes: Path | None = None,
    ) -> None:
        labels = sorted({_label(image) for image in list_images(images).images} - {""})
        if not labels:
            raise ValueError(
                f"--images={images} has no subfolders with images; --class_descriptions needs one "
                "for each class."
            )
        given = None if classes is None else read_texts(str(classes), "classes")
        names = names_of_labels(labels, given, str(classes or ""), note)
        self._names = clean_names(names, lambda text: None, keep=False)
        self._texts = bind_descriptions(
            read_texts(str(path)),
            self._names,
            str(path),
            str(images),
            note,
            undescribed=", and their images are left out",
        )

    def inputs(self, image: str) -> Sequence[str]:
        return self.texts(image)

    def texts(self, image: str) -> list[str]:
        label = _label(image)
        if not label:
            raise SkippedSample("not in a class folder", f"{image} is in no subfolder")
        return distinct_texts(
            self._texts.get(self._names[label], ()), "no description of its class"
        )

    def kept(self, image: str) -> Mapping[str, Any]:
        return {"label": self._names[_label(image)]} if _label(image) else {}


class _RowsByImage:
    """Outputs of the rows in a folder of annotations."""

    def __init__(self, folder: Path) -> None:
        self._annotations: Annotations = read_annotations(folder)
        images = self._annotations.images
        self._places = {image: place for place, image in enumerate(images)}

    def outputs(self, image: str, name: str) -> Sequence[str]:
        """`captions` or `descriptions`. Raises `SkippedSample` for an image without a row."""
        if image not in self._places:
            raise SkippedSample("not described yet", f"{image} has no row of `describe`")
        # Dropped ones too, as the others need not be looked for again when some are dropped.
        return getattr(self._annotations.undecided(self._places[image]), name)


def _label(image: str) -> str:
    return image.partition("/")[0] if "/" in image else ""


def distinct_texts(texts: Sequence[str], reason: str) -> list[str]:
    """The texts as they are looked for, each once. Raises `SkippedSample` where none is left."""
    found: dict[str, str] = {}
    for text in map(clean_text, texts):
        found.setdefault(_normalized(text), text)
    found.pop("", None)
    if not found:
        raise SkippedSample(reason, reason)
    return list(found.values())


_normalized = functools.lru_cache(maxsize=10_000)(normalize_text)
