"""A trained model on new pictures and texts.

model = grain_jax.load("runs/demo")
model.classify("bird.jpg", ["cardinal", "blue jay"])[0].label

Boxes come back in pixels of the picture as it was given, upright: what squashing or the centre crop
did to it is undone.
"""

import contextlib
import difflib
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from grain_jax.data.checking import Dropped, read_image_file
from grain_jax.data.records import Record, ZeroShotSet
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.data.transforms import (
    ImageError,
    Pixels,
    Preprocessing,
    Window,
    image_shape,
    upright_rgb,
)
from grain_jax.evaluation.encode import Encoder, ImageFeatures
from grain_jax.evaluation.folders import undescribed_note
from grain_jax.evaluation.grounding import cxcywh_to_xyxy
from grain_jax.evaluation.scorers import ClassTexts, class_texts
from grain_jax.evaluation.zero_shot import class_scores
from grain_jax.interop.read import read_model
from grain_jax.training.checkpoint import LoadedModel

BATCH_SIZE = 64  # pictures or texts at once
ALPHA = 0.5  # share of the whole image where there are regions and descriptions
MAX_CACHED_TEXTS = 100_000  # embeddings kept for the next call
WAYS = ("description", "name_and_regions")

Picture = Image.Image | np.ndarray | str | Path | bytes
PICTURES = "a file's path, its bytes, a PIL image or a uint8 array [H, W, 3]"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out."""

    position: int  # among those given
    name: str
    reason: str


@dataclass(frozen=True)
class ImageEmbeddings:
    """N pictures as the model sees them; float32, embeddings of unit length."""

    names: tuple[str, ...]  # file, or "picture 3" for what came without one
    sizes: Int[np.ndarray, "N 2"]  # height and width in pixels, upright
    image: Float[np.ndarray, "N E"]
    regions: Float[np.ndarray, "N Q E"] | None  # None for a CLIP model
    boxes_xyxy: Float[np.ndarray, "N Q 4"] | None  # of the regions, in pixels of each picture
    view_xyxy: Float[np.ndarray, "N 4"]  # the part of each picture that the model saw, likewise
    skipped: tuple[Skipped, ...] = ()  # none of the N

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class SeenText:
    """A text and the region of a picture that is most similar to it."""

    text: str
    cosine: float
    query: int  # which region query of the model
    box_xyxy: Box  # pixels of the picture


@dataclass(frozen=True)
class RankedLabel:
    """A label with its score; `seen`: its descriptions where each is seen best, surest first."""

    label: str
    score: float  # cosines, mixed with alpha
    probability: float  # softmax of the model's logit scale x score over all labels given
    seen: tuple[SeenText, ...]  # () by name alone or without regions


@dataclass(frozen=True)
class Classification:
    """The best labels of a picture, best first."""

    name: str
    height: int
    width: int
    ranked: tuple[RankedLabel, ...]

    @property
    def label(self) -> str:
        """The best one."""
        return self.ranked[0].label


@dataclass(frozen=True)
class Grounding:
    """Where in a picture each of T phrases is seen best, in the order they were given."""

    name: str
    height: int
    width: int
    phrases: tuple[SeenText, ...]
    boxes_xyxy: Float[np.ndarray, "Q 4"]  # of all regions, in pixels
    cosines: Float[np.ndarray, "Q T"]  # of every region with every phrase


def load(
    path: str | Path,
    *,
    step: int | None = None,
    best: bool = False,
    batch_size: int = BATCH_SIZE,
    note: Callable[[str], None] = warnings.warn,
) -> "Model":
    """The model of a run folder, ready for pictures and texts, on the first device.

    `path` may also be an export, an official .pth, or a CLIP or SigLIP of Hugging Face or
    open_clip: a folder, or a name on the Hugging Face hub. Of a run's checkpoints the newest is
    taken, that of `step`, or the `best` that keep-best kept. `note` is told what does not stop a
    call but may spoil its answer, such as texts that were cut. Raises ValueError where there is no
    such model.
    """
    return Model(read_model(path, step=step, best=best), batch_size=batch_size, note=note)


class Model:
    """Classifies pictures, finds phrases in them, and embeds both.

    Pictures are one or a list of: a file's path, its bytes, a PIL image, a uint8 array [H, W, 3]
    (RGB) or [H, W] (gray); or what `embed_images` returned, which saves embedding them again.
    Compiles once for every power of two of pictures up to `batch_size`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        batch_size: int = BATCH_SIZE,
        note: Callable[[str], None] = warnings.warn,
    ):
        self.loaded, self.batch_size = loaded, batch_size
        data = loaded.config.data
        self._encoder = Encoder(
            loaded.model,
            loaded.params,
            tokenizer=loaded.tokenizer,
            preprocessing=loaded.preprocessing,
            batch_size=batch_size,
            caption_length=data.caption_length,
            description_length=data.description_length,
            num_threads=data.num_threads,
            smallest_batch=1,
        )
        self._note = note
        self._cached: dict[tuple[str, str], np.ndarray] = {}  # (kind, text) -> [E]
        self._said: set[str] = set()  # notes, and unknown words

    def __repr__(self) -> str:
        config = self.loaded.config
        return f"<{config.model.kind} {config.name!r} of step {self.loaded.step}>"

    @property
    def has_regions(self) -> bool:
        """False for a CLIP model."""
        return self.loaded.config.model.kind == "grain"

    @property
    def logit_scale(self) -> float:
        """What cosines were multiplied by in training."""
        limit = self.loaded.config.model.max_logit_scale
        return min(max(float(np.exp(self.loaded.params["logit_scale"])), 1.0), limit)

    def classify(
        self,
        images: Picture | Sequence[Picture] | ImageEmbeddings,
        labels: Sequence[str] | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
        *,
        alpha: float | None = None,
        top: int | None = 5,
        by: str = "description",
        templates: Sequence[str] | None = None,
        description_template: str = "{}",
        progress: bool = False,
    ) -> list[Classification]:
        """The `top` best labels (None: all) of each picture, as `grain_jax.evaluate` scores them.

        `labels` may be left out where `descriptions` has them all. Without `descriptions`: by name,
        in every one of `templates` ("{}" takes the name; None: the model's own). With them the
        score is alpha x whole image + (1 - alpha) x regions; the whole image meets the
        descriptions, or with `by="name_and_regions"` the name (the official protocol). `alpha` is
        0.5 if not given, and 1 for a CLIP model, which has no regions. Raises ValueError.
        """
        if labels is None:
            labels = tuple(_checked_mapping(descriptions))
        texts = self._class_texts(labels, descriptions, templates, description_template)
        self._check_way(by, description_template, described=descriptions is not None)
        alpha = self._alpha(alpha, described=descriptions is not None)
        if top is not None and top < 1:
            raise ValueError(f"top={top} must be at least 1; None for all labels.")
        embedded = self._embedded(images, progress=progress)
        # At its ends the mixture is one of its parts, and evaluation has it under that name.
        way = by if 0 < alpha < 1 else "description"
        if descriptions is None or (by == "name_and_regions" and alpha == 1):
            way = "name"
        (scores,) = class_scores(
            self._texts,
            texts,
            ImageFeatures(embedded.image, embedded.regions, None),
            alphas=(alpha,),
            by=(way,),
            name_ensemble=self.loaded.config.evaluation.name_ensemble,
            region_score=self.loaded.config.evaluation.region_score,
        ).values()
        probabilities = _softmax(self.logit_scale * scores.astype(np.float64))
        results = []
        for n, name in enumerate(embedded.names):
            best = np.argsort(-scores[n], kind="stable")[:top]
            ranked = [
                RankedLabel(
                    label=labels[k],
                    score=float(scores[n, k]),
                    probability=float(probabilities[n, k]),
                    seen=self._seen(embedded, n, texts.regions[k]) if descriptions else (),
                )
                for k in best
            ]
            height, width = embedded.sizes[n].tolist()
            results.append(Classification(name, height, width, tuple(ranked)))
        return results

    def ground(
        self,
        images: Picture | Sequence[Picture] | ImageEmbeddings,
        phrases: Sequence[str],
        *,
        progress: bool = False,
    ) -> list[Grounding]:
        """The region of each picture that is most similar to each phrase.

        There always is one: whether the phrase is true of the picture, the cosine has to tell.
        Raises ValueError for a CLIP model.
        """
        if not self.has_regions:
            raise ValueError(
                "This is a CLIP model, which has no regions to find a phrase in. Load a GRAIN "
                "model, or compare whole pictures with texts: classify, embed_images, embed_texts."
            )
        wanted = self._texts(_checked_texts(phrases, "phrases"), kind="description")
        embedded = self._embedded(images, progress=progress)
        assert embedded.regions is not None
        assert embedded.boxes_xyxy is not None
        results = []
        for n, name in enumerate(embedded.names):
            cosines = embedded.regions[n] @ wanted.T
            boxes = embedded.boxes_xyxy[n]
            height, width = embedded.sizes[n].tolist()
            seen = _best_regions(phrases, cosines, boxes)
            results.append(Grounding(name, height, width, tuple(seen), boxes, cosines))
        return results

    def embed_images(
        self,
        images: Picture | Sequence[Picture] | ImageEmbeddings,
        *,
        on_error: str = "stop",
        progress: bool = False,
    ) -> ImageEmbeddings:
        """Embeddings of the pictures and their regions, to be asked as often as you like.

        `on_error` for a picture that cannot be read: "stop" raises `ImageError`, a ValueError, with
        its name or position; "skip" leaves it out and lists it in `skipped`.
        """
        if isinstance(images, ImageEmbeddings):
            return images
        if on_error not in ("stop", "skip"):
            raise ValueError(f"Unknown on_error={on_error!r}; choose 'stop' or 'skip'.")
        pictures = [images] if isinstance(images, Picture) else images
        if isinstance(pictures, Mapping) or not isinstance(pictures, Iterable):
            raise ValueError(
                f"Pictures were given as {type(images).__name__}; needed {PICTURES}, or a list."
            )
        pictures = list(pictures)
        if not pictures:
            raise ValueError("There are no pictures to look at; give at least one.")
        source = _Pictures(pictures, self.loaded.preprocessing, skip=on_error == "skip")
        with _bar(len(pictures), shown=progress) as on_batch:
            features = self._encoder.images(source, on_batch=on_batch)
        kept = [i for i in range(len(pictures)) if i not in source.failed]
        sizes = np.array([source.shapes[i] for i in kept], int).reshape(-1, 2)
        windows = [source.windows[i] for i in kept]
        boxes = None
        if features.boxes is not None:
            squares = cxcywh_to_xyxy(features.boxes[kept]).clip(0, 1)  # all that the model saw
            boxes = _to_pixels(squares, windows, sizes)
        whole = np.tile(np.array([0, 0, 1, 1], np.float32), (len(kept), 1, 1))
        return ImageEmbeddings(
            names=tuple(source.name(i) for i in kept),
            sizes=sizes,
            image=features.image[kept],
            regions=None if features.regions is None else features.regions[kept],
            boxes_xyxy=boxes,
            view_xyxy=_to_pixels(whole, windows, sizes)[:, 0],
            skipped=tuple(
                Skipped(i, source.name(i), reason) for i, reason in sorted(source.failed.items())
            ),
        )

    def embed_texts(self, texts: Sequence[str], kind: str = "caption") -> Float[np.ndarray, "T E"]:
        """Embeddings of unit length. `kind`: "caption", about whole pictures, or "description", of
        regions; the model may take captions to be longer. Raises ValueError.
        """
        return self._texts(_checked_texts(texts, "texts"), kind=kind)

    def _embedded(
        self, images: Picture | Sequence[Picture] | ImageEmbeddings, *, progress: bool
    ) -> ImageEmbeddings:
        """As `embed_images`; raises ValueError for embeddings that cannot be of this model."""
        embedded = self.embed_images(images, progress=progress)
        regions, size = embedded.regions is not None, embedded.image.shape[1]
        wanted = self.loaded.config.model.embed_dim
        if regions != self.has_regions or size != wanted:
            raise ValueError(
                "These pictures were embedded by another model, "
                f"{'with' if regions else 'without'} regions and in {size} dimensions; this one "
                f"has {'regions' if self.has_regions else 'none'} and {wanted}. Embed them with it."
            )
        return embedded

    def _class_texts(
        self,
        labels: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None,
        templates: Sequence[str] | None,
        description_template: str,
    ) -> ClassTexts:
        _checked_texts(labels, "labels")
        if repeated := [label for label, count in Counter(labels).items() if count > 1]:
            raise ValueError(
                f"Label {repeated[0]!r} is given more than once; labels are told apart by name."
            )
        if isinstance(templates, str):
            raise ValueError(f"templates takes a list of texts, not one: [{templates!r}].")
        described = _checked_descriptions(descriptions, labels)
        dataset = ZeroShotSet(
            name="labels",
            source=(),
            class_names=tuple(labels),
            templates=self.loaded.templates if templates is None else tuple(templates),
            descriptions=described,
            description_template=description_template,
        )
        texts = class_texts(dataset)
        if described and texts.undescribed:
            self._say(undescribed_note("labels", texts.undescribed, len(labels)))
        return texts

    def _check_way(self, by: str, description_template: str, *, described: bool) -> None:
        if by not in WAYS:
            raise ValueError(f"Unknown by={by!r}; choose one of {WAYS}.")
        if by == "name_and_regions" and not (described and self.has_regions):
            raise ValueError(f"by={by!r} needs a GRAIN model and descriptions for its regions.")
        if description_template != "{}" and (by != "description" or not described):
            raise ValueError(
                "description_template is what the whole image meets of a description; it needs "
                "descriptions and by='description'."
            )

    def _alpha(self, alpha: float | None, *, described: bool) -> float:
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the share of the whole image, from 0 to 1; got {alpha:g}.")
        if alpha is not None and not described:
            raise ValueError(
                f"alpha={alpha:g} weighs the whole image against regions, which are compared with "
                "descriptions; give some, or leave alpha out."
            )
        if alpha not in (None, 1) and not self.has_regions:
            raise ValueError(
                f"alpha={alpha:g} needs regions, and this is a CLIP model; leave it out."
            )
        return (ALPHA if self.has_regions else 1.0) if alpha is None else alpha

    def _seen(
        self, embedded: ImageEmbeddings, n: int, texts: Sequence[str]
    ) -> tuple[SeenText, ...]:
        if embedded.regions is None or embedded.boxes_xyxy is None:
            return ()
        cosines = embedded.regions[n] @ self._texts(texts, kind="description").T
        seen = _best_regions(texts, cosines, embedded.boxes_xyxy[n])
        return tuple(sorted(seen, key=lambda one: -one.cosine))

    def _texts(self, texts: Sequence[str], *, kind: str) -> Float[np.ndarray, "T E"]:
        """As `Encoder.texts`; a text that was asked before is not embedded again."""
        missing = [text for text in dict.fromkeys(texts) if (kind, text) not in self._cached]
        if missing and len(self._cached) + len(missing) > MAX_CACHED_TEXTS:
            self._cached.clear()
            missing = list(dict.fromkeys(texts))
        if missing:
            cut_before = self._encoder.truncated_texts
            embed = self._encoder.texts(missing, kind=kind)
            self._cached |= {(kind, text): row for text, row in zip(missing, embed, strict=True)}
            if cut := self._encoder.truncated_texts - cut_before:
                self._say(
                    f"{cut} of {len(missing)} texts are longer than the "
                    f"{self._encoder.lengths[kind]} tokens of a {kind} in this model, and cut."
                )
            self._note_unknown_words(missing)
        return np.stack([self._cached[kind, text] for text in texts])

    def _say(self, text: str) -> None:
        """Tells `note`, once."""
        if text not in self._said:
            self._said.add(text)
            self._note(text)

    def _note_unknown_words(self, texts: Sequence[str]) -> None:
        tokenizer = self.loaded.tokenizer
        if not isinstance(tokenizer, WordTokenizer):
            return
        found = dict.fromkeys(word for text in texts for word in tokenizer.unknown_words(text))
        words = [word for word in found if word not in self._said]
        self._said.update(words)
        if words:
            shown = ", ".join(words[:5])
            self._say(
                f"This model has {len(tokenizer.words)} words of its own and takes these for one "
                f"and the same unknown word: {shown}{', ...' if len(words) > 5 else ''}."
            )


class _Pictures:
    """Pictures as squares of the model, and what happened to each on the way there."""

    def __init__(self, pictures: Sequence[Picture], preprocessing: Preprocessing, *, skip: bool):
        self.shapes: dict[int, tuple[int, int]] = {}  # height, width
        self.windows: dict[int, Window] = {}
        self.failed: dict[int, str] = {}
        self._pictures, self._preprocessing, self._skip = pictures, preprocessing, skip
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int, /) -> Record:
        size = self._preprocessing.image_size
        try:
            image = self._read(self._pictures[index])
            window, shape = self._preprocessing.window(image), image_shape(image)
            square = self._preprocessing(image)
        except (ImageError, Dropped) as error:
            if not self._skip:
                raise ImageError(f"Picture {self.name(index)!r}: {error}") from None
            self.failed[index] = str(error)
            square = np.zeros((size, size, 3), np.uint8)
        else:
            self.shapes[index], self.windows[index] = shape, window
        return Record(id=self.name(index), image=square)

    def name(self, index: int) -> str:
        picture = self._pictures[index]
        return str(picture) if isinstance(picture, str | Path) else f"picture {index}"

    def _read(self, picture: Picture) -> bytes | Pixels:
        """Raises `ImageError` or `Dropped`."""
        if isinstance(picture, bytes):
            return picture
        if isinstance(picture, np.ndarray):
            return _checked_pixels(picture)
        if isinstance(picture, Image.Image):
            with self._lock:  # one that is given twice must not be decoded by two threads at once
                return np.asarray(upright_rgb(picture))
        if not isinstance(picture, str | Path):
            raise ImageError(f"a {type(picture).__name__} is no picture; needed {PICTURES}.")
        if "://" in str(picture):
            raise ImageError("a file of this machine is needed; download it first.")
        path = Path(picture)
        if not os.path.isfile(path):  # unlike Path.is_file, false of names that are too long
            raise ImageError("it is a folder." if os.path.isdir(path) else "there is no such file.")
        return read_image_file(path.name, path.parent)


def _checked_pixels(picture: np.ndarray) -> Pixels:
    """Raises `ImageError`."""
    shape = picture.shape
    gray = len(shape) == 2
    if picture.dtype != np.uint8 or not (gray or (len(shape) == 3 and shape[2] == 3)):
        hint = " Give a list of pictures, one array each." if len(shape) == 4 else ""
        raise ImageError(
            f"an array of {picture.dtype} {list(shape)} is no picture; needed uint8 [H, W, 3] "
            f"(RGB, 0 to 255) or [H, W] (gray).{hint}"
        )
    if picture.size == 0:
        raise ImageError(f"an array of shape {list(shape)} has no pixels.")
    return np.repeat(picture[:, :, None], 3, axis=2) if gray else picture


def _checked_texts(texts: Sequence[str], what: str) -> Sequence[str]:
    if isinstance(texts, str):
        raise ValueError(f"{what} takes a list of texts, not one: [{texts!r}].")
    if not isinstance(texts, Sequence):
        hint = "; classify(images, descriptions=...) takes labels with their descriptions"
        hint = hint if isinstance(texts, Mapping) else ""
        raise ValueError(f"{what} takes a list of texts, not a {type(texts).__name__}{hint}.")
    if len(texts) == 0:
        raise ValueError(f"There are no {what}; give at least one.")
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{what}[{position}] is {text!r}; needed a text.")
    return texts


def _checked_mapping(descriptions: Any) -> Mapping[str, Sequence[str]]:
    if not isinstance(descriptions, Mapping):
        given = "neither" if descriptions is None else f"a {type(descriptions).__name__}"
        raise ValueError(
            f"Give labels, or descriptions as {{label: [text, ...]}}, or both; got {given}."
        )
    return descriptions


def _checked_descriptions(
    descriptions: Mapping[str, Sequence[str]] | None, labels: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    if descriptions is None:
        return {}
    for label, texts in _checked_mapping(descriptions).items():
        if label not in labels:
            near = difflib.get_close_matches(label, labels, n=1)
            raise ValueError(
                f"descriptions has {label!r}, which is not among the {len(labels)} labels"
                f"{f'; is it {near[0]!r}?' if near else '.'}"
            )
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"The descriptions of {label!r} must be a list of texts.")
    if not any(text.strip() for texts in descriptions.values() for text in texts):
        raise ValueError("descriptions holds no text; leave it out to classify by name.")
    return {label: tuple(texts) for label, texts in descriptions.items()}


def _best_regions(
    texts: Sequence[str], cosines: Float[np.ndarray, "Q T"], boxes_xyxy: Float[np.ndarray, "Q 4"]
) -> list[SeenText]:
    queries = cosines.argmax(axis=0)
    return [
        SeenText(text, float(cosines[query, t]), int(query), _box(boxes_xyxy[query]))
        for t, (text, query) in enumerate(zip(texts, queries, strict=True))
    ]


def _box(xyxy: Float[np.ndarray, "4"]) -> Box:
    x0, y0, x1, y1 = xyxy.tolist()
    return x0, y0, x1, y1


def _to_pixels(
    squares_xyxy: Float[np.ndarray, "N Q 4"],
    windows: Sequence[Window],
    sizes: Int[np.ndarray, "N 2"],
) -> Float[np.ndarray, "N Q 4"]:
    """Boxes in [0, 1] of the squares to pixels of the pictures of these heights and widths."""
    boxes = np.empty_like(squares_xyxy)
    for n, (window, (height, width)) in enumerate(zip(windows, sizes.tolist(), strict=True)):
        scale = np.array([width, height, width, height], np.float32)
        boxes[n] = window.to_picture(squares_xyxy[n]) * scale
    return boxes


def _softmax(logits: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@contextlib.contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A progress bar where the error stream is a terminal; yields what moves it."""
    if not shown:
        yield None
        return
    console = Console(stderr=True)
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)
