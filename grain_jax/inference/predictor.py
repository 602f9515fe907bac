"""A trained model on new images and texts.

model = grain_jax.load("runs/demo")
model.classify("bird.jpg", ["cardinal", "blue jay"])[0].label

Boxes come back in pixels of the image as it was given, upright: what squashing or the centre crop
did to it is undone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from grain_jax.boxes import cxcywh_to_xyxy
from grain_jax.data.classification.class_texts import undescribed_note
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.inference.calibrated import (
    Question,
    check_weights,
    interpret,
    scored_method,
)
from grain_jax.inference.classifications import ComparedTexts, classifications
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.examples import (
    EmbeddedExamples,
    ExampleCache,
    ExampleImages,
    checked_examples,
    define,
    labels_of,
)
from grain_jax.inference.grounding import best_regions, to_pixels
from grain_jax.inference.inputs import (
    ACCEPTED_IMAGES,
    ImageInput,
    ImageInputs,
    checked_descriptions,
    checked_texts,
)
from grain_jax.inference.notes import warn_caller
from grain_jax.inference.progress_bar import progress_bar
from grain_jax.inference.results import (
    Classification,
    Grounding,
    ImageEmbeddings,
    Skipped,
)
from grain_jax.inference.text_cache import ClassCache, TextCache
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.learned import what_lacks
from grain_jax.zero_shot.calibration import Calibration
from grain_jax.zero_shot.method import ClassBanks, Images
from grain_jax.zero_shot.methods import METHODS, encode_banks
from grain_jax.zero_shot.scorers import ClassTexts, make_class_texts
from grain_jax.zero_shot.ties import note_ties

BATCH_SIZE = 64  # images or texts at once
ALPHA = 0.5  # weight of the global score where there are regions and descriptions
FIRST_GIVEN_FIRST = "those of a tie have equal scores, and the first one given is shown first"
# What an image may be compared with where there are descriptions; the first is the default.
DESCRIPTION_METHODS = ("description", "name_and_regions")


class Model:
    """Classifies images, finds phrases in them, and embeds both.

    Images are one or a list of: a file's path, its bytes, a PIL image, a uint8 array [H, W, 3]
    (RGB) or [H, W] (gray); or what `embed_images` returned, which saves embedding them again.
    Compiles once for every power of two of images up to `batch_size`.
    """

    def __init__(
        self,
        loaded: ModelBundle,
        *,
        batch_size: int = BATCH_SIZE,
        note: Callable[[str], None] = warn_caller,
        calibration: Calibration | None = None,
    ):
        """Raises ValueError for a calibration of other weights."""
        if calibration is not None:
            check_weights(calibration, loaded)
        self.loaded, self.batch_size, self.calibration = loaded, batch_size, calibration
        self._encoder = Encoder.from_bundle(
            loaded, batch_size=batch_size, smallest_batch=1, num_workers=0
        )
        self._note = note
        self._text_cache, self._class_cache = TextCache(self._encode_texts), ClassCache()
        self._example_cache = ExampleCache(self._encode_examples, loaded.preprocessing)
        self._said: set[str] = set()  # notes, and unknown words
        if loaded.config.model.type == "grain" and (lacking := what_lacks(loaded.learned)):
            drawn = "no box is shown" if not loaded.has_boxes else "boxes have no text"
            used = "" if loaded.has_regions else ", alpha is 1"
            self._say(f"This GRAIN model has no {lacking}: {drawn}{used}.")

    def __repr__(self) -> str:
        config = self.loaded.config
        return f"<{config.model.type} {config.name!r} of step {self.loaded.step}>"

    @property
    def has_regions(self) -> bool:
        """False for a CLIP model, and where region embeddings were never trained."""
        return self.loaded.has_regions

    @property
    def default_alpha(self) -> float:
        """The weight of the global score in a score with descriptions."""
        return ALPHA if self.has_regions else 1.0

    @property
    def logit_scale(self) -> float:
        """What cosines were multiplied by in training."""
        return self._encoder.logit_scale

    def classify(
        self,
        images: ImageInput | Sequence[ImageInput] | ImageEmbeddings,
        labels: Sequence[str] | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
        *,
        examples: ExampleImages | EmbeddedExamples | None = None,
        example_weight: float | None = None,
        examples_only: Sequence[str] = (),
        alpha: float | None = None,
        top_k: int | None = 5,
        method: str = "description",
        templates: Sequence[str] | None = None,
        description_template: str = "{}",
        progress: bool = False,
    ) -> list[Classification]:
        """The `top_k` best labels (None: all) of each image, as `grain_jax.evaluate` scores them.

        `labels` may be left out where `descriptions` or `examples` have them all. Without
        `descriptions`: by name, in every one of `templates` ("{}" takes the name; None: the model's
        own). With them the score is alpha x global score + (1 - alpha) x region score. The image
        embedding is compared with the descriptions, or with `method="name_and_regions"` with the
        name (the official protocol). `alpha` is 0.5 if not given, and 1 for a model without
        (trained) regions.

        `examples` are images of labels, {label: [image, ...]}, or what `embed_examples` returned; a
        label may have none. A label with examples is scored by its texts and by them
        (`docs/use.md`), which weigh `example_weight`, 0 to 1 (0.75); one of `examples_only` by its
        examples alone. Raises ValueError.
        """
        if labels is None:
            labels = labels_of(descriptions, examples)
        described = self._described(labels, descriptions, templates)
        self._check_method(method, description_template, described=descriptions is not None)
        alpha = self._alpha(alpha, described=descriptions is not None)
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1; None for all labels.")
        if examples is not None:
            examples = self.embed_examples(examples)
        defined = define(
            labels, described, examples, weight=example_weight, examples_only=examples_only
        )
        embedded = self._embedded(images, progress=progress)
        scored, used_alpha = scored_method(method, alpha, described=descriptions is not None)
        named = defined.named
        texts, banks = self._banks(named, described, templates, description_template, scored)
        block = Images(embedded.image, embedded.regions)
        scores = defined.scores(
            METHODS[scored].fit(banks) if named else None,
            block,
            alpha,
            self._example_cache,
            key=(banks, scored, alpha),
            logit_scale=self.logit_scale,
        )
        if defined.one_tells_nothing:
            self._say(
                "One example in all is not used: how similar images of a label are is not known "
                "from one. Give its label another, or one to another label."
            )
        if defined.with_examples and self.calibration is not None:
            self._say(
                "The calibration is not used: it was fitted without examples, and these labels "
                "have some."
            )
        meaning = interpret(
            scores,
            Question(labels, banks, scored, used_alpha),
            block,
            logit_scale=self.logit_scale,
            calibration=None if defined.with_examples else self.calibration,
            note=self._say,
        )
        compared = ComparedTexts(texts, banks, alpha, grounded=scored != "name")
        return list(classifications(embedded, scores, meaning, defined, compared, top_k=top_k))

    def ground(
        self,
        images: ImageInput | Sequence[ImageInput] | ImageEmbeddings,
        phrases: Sequence[str],
        *,
        progress: bool = False,
    ) -> list[Grounding]:
        """The region of each image that is most similar to each phrase.

        There always is one: whether the phrase is true of the image, the cosine has to say.
        Raises ValueError for a CLIP model, and where boxes or region embeddings were never trained.
        """
        if not (self.has_regions and self.loaded.has_boxes):
            raise ValueError(
                f"This is {self._kind()}, which has no regions to find a phrase in. Load "
                "another model, or compare whole images with texts: classify, embed_images, "
                "embed_texts."
            )
        wanted = self._text_cache.embed(checked_texts(phrases, "phrases"), kind="description")
        embedded = self._embedded(images, progress=progress)
        assert embedded.regions is not None
        assert embedded.boxes_xyxy is not None
        results = []
        for n, name in enumerate(embedded.names):
            cosines = embedded.regions[n] @ wanted.T
            boxes = embedded.boxes_xyxy[n]
            height, width = embedded.sizes[n].tolist()
            seen = best_regions(phrases, cosines, boxes)
            results.append(Grounding(name, height, width, tuple(seen), boxes, cosines))
        return results

    def embed_images(
        self,
        images: ImageInput | Sequence[ImageInput] | ImageEmbeddings,
        *,
        on_error: str = "raise",
        progress: bool = False,
    ) -> ImageEmbeddings:
        """Embeddings of the images and their regions, to be used as often as you like.

        `on_error` for an image that cannot be read: "raise" raises `ImageError`, a ValueError, with
        its name or position; "skip" leaves it out and lists it in `skipped`.
        """
        if isinstance(images, ImageEmbeddings):
            return images
        if on_error not in ("raise", "stop", "skip"):  # "stop": what version 0.1 called it
            raise ValueError(f"Unknown on_error={on_error!r}; choose 'raise' or 'skip'.")
        given = [images] if isinstance(images, ImageInput) else images
        if isinstance(given, Mapping) or not isinstance(given, Iterable):
            raise ValueError(
                f"Images were given as {type(images).__name__}; expected "
                f"{ACCEPTED_IMAGES}, or a list."
            )
        given = list(given)
        if not given:
            raise ValueError("There are no images to look at; give at least one.")
        source = ImageInputs(given, self.loaded.preprocessing, skip=on_error == "skip")
        with progress_bar(len(given), shown=progress) as on_batch:
            features = self._encoder.images(source, on_batch=on_batch)
        kept = [i for i in range(len(given)) if i not in source.failed]
        sizes = np.array([source.shapes[i] for i in kept], int).reshape(-1, 2)
        windows = [source.windows[i] for i in kept]
        boxes = None
        if features.boxes is not None:
            squares = cxcywh_to_xyxy(features.boxes[kept]).clip(0, 1)  # all that the model saw
            boxes = to_pixels(squares, windows, sizes)
        whole = np.tile(np.array([0, 0, 1, 1], np.float32), (len(kept), 1, 1))
        return ImageEmbeddings(
            names=tuple(source.name(i) for i in kept),
            sizes=sizes,
            image=features.image[kept],
            regions=None if features.regions is None else features.regions[kept],
            boxes_xyxy=boxes,
            crop_xyxy=to_pixels(whole, windows, sizes)[:, 0],
            skipped=tuple(
                Skipped(i, source.name(i), reason) for i, reason in sorted(source.failed.items())
            ),
        )

    def embed_texts(self, texts: Sequence[str], kind: str = "caption") -> Float[np.ndarray, "T E"]:
        """Embeddings of unit length. `kind`: "caption", about whole images, or "description", of
        regions; the model may take captions to be longer. Raises ValueError.
        """
        return self._text_cache.embed(checked_texts(texts, "texts"), kind=kind)

    def embed_examples(self, examples: ExampleImages | EmbeddedExamples) -> EmbeddedExamples:
        """Example images of labels, {label: [image, ...]}, for `classify`; those of a label may be
        what `embed_images` returned. Kept by their content, as texts are. Raises ValueError.
        """
        if isinstance(examples, EmbeddedExamples):
            self._check_own(examples)
            return examples
        for group in checked_examples(examples).values():
            if isinstance(group, ImageEmbeddings):
                self._check_own(group)
        found = self._example_cache.embed(examples)
        if (shared := found.shared()) is not None:
            self._say(f"{shared[0]!r} and {shared[1]!r} have an example in common.")
        return found

    def _embedded(
        self, images: ImageInput | Sequence[ImageInput] | ImageEmbeddings, *, progress: bool
    ) -> ImageEmbeddings:
        """As `embed_images`; raises ValueError for embeddings that cannot be of this model."""
        embedded = self.embed_images(images, progress=progress)
        self._check_own(embedded)
        return embedded

    def _check_own(self, embedded: ImageEmbeddings | EmbeddedExamples) -> None:
        regions, size = embedded.regions is not None, embedded.image.shape[1]
        wanted = self.loaded.config.model.embed_dim
        if regions != self.has_regions or size != wanted:
            raise ValueError(
                "These images were embedded by another model, "
                f"{'with' if regions else 'without'} regions and in {size} dimensions; this one "
                f"has {'regions' if self.has_regions else 'none'} and {wanted}. Embed them with it."
            )

    def _described(
        self,
        labels: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None,
        templates: Sequence[str] | None,
    ) -> dict[str, tuple[str, ...]]:
        """The descriptions; raises ValueError for class texts that are none."""
        checked_texts(labels, "labels")
        if repeated := [label for label, count in Counter(labels).items() if count > 1]:
            raise ValueError(
                f"Label {repeated[0]!r} is given more than once; labels are distinguished by name."
            )
        if isinstance(templates, str):
            raise ValueError(f"templates takes a list of texts, not one: [{templates!r}].")
        return checked_descriptions(descriptions, labels)

    def _banks(
        self,
        labels: Sequence[str],
        described: Mapping[str, Sequence[str]],
        templates: Sequence[str] | None,
        description_template: str,
        method: str,
    ) -> tuple[ClassTexts, ClassBanks]:
        """The texts of the labels, and what the method compares images with."""
        prompts = tuple(self.loaded.templates if templates is None else templates)
        if not labels:  # examples alone define all of them
            texts = ClassTexts((), (), (), ())
            return texts, ClassBanks(texts, {})

        def make() -> tuple[ClassTexts, ClassBanks]:
            texts = make_class_texts(
                labels,
                templates=prompts,
                descriptions=described,
                description_template=description_template,
                title="Zero-shot set 'labels'",
            )
            if described and texts.undescribed:
                self._say(undescribed_note("labels", texts.undescribed, len(labels)))
            embed = self._text_cache.embed
            settings = self.loaded.config.evaluation
            banks = encode_banks(
                embed,
                texts,
                methods=(method,),
                has_regions=self.has_regions,
                prompt_ensembling=settings.prompt_ensembling,
                region_aggregation=settings.region_aggregation,
            )
            note_ties(
                "labels", labels, banks, self._say, together=True, consequence=FIRST_GIVEN_FIRST
            )
            return texts, banks

        key = (tuple(labels), tuple(described.items()), prompts, description_template, method)
        return self._class_cache.get(key, make)

    def _check_method(self, method: str, description_template: str, *, described: bool) -> None:
        if method not in DESCRIPTION_METHODS:
            raise ValueError(f"Unknown method={method!r}; choose one of {DESCRIPTION_METHODS}.")
        if method == "name_and_regions" and not (described and self.has_regions):
            raise ValueError(
                f"method={method!r} needs a GRAIN model and descriptions for its regions."
            )
        if description_template != "{}" and (method != "description" or not described):
            raise ValueError(
                "description_template is the text of a description that an image is compared with; "
                "it needs descriptions and method='description'."
            )

    def _kind(self) -> str:
        if self.loaded.config.model.type == "clip":
            return "a CLIP model"
        return f"a GRAIN model without {what_lacks(self.loaded.learned)}"

    def _alpha(self, alpha: float | None, *, described: bool) -> float:
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(
                f"alpha is the weight of the global score, given {alpha:g}, expected 0 to 1."
            )
        if alpha is not None and not described:
            raise ValueError(
                f"alpha={alpha:g} weighs the whole image against regions, which are compared with "
                "descriptions; give some, or leave alpha out."
            )
        if alpha not in (None, 1) and not self.has_regions:
            raise ValueError(
                f"alpha={alpha:g} needs regions, and this is {self._kind()}; leave it out."
            )
        return self.default_alpha if alpha is None else alpha

    def _encode_examples(
        self, inputs: ImageInputs
    ) -> tuple[Float[np.ndarray, "S E"], Float[np.ndarray, "S Q E"] | None]:
        features = self._encoder.images(inputs)
        return features.image, features.regions

    def _encode_texts(self, texts: Sequence[str], kind: str) -> Float[np.ndarray, "T E"]:
        """As `Encoder.texts`; says which are cut or unknown."""
        cut_before = self._encoder.truncated_texts
        embed = self._encoder.texts(texts, kind=kind)
        if cut := self._encoder.truncated_texts - cut_before:
            self._say(
                f"{cut} of {len(texts)} texts are longer than the "
                f"{self._encoder.lengths[kind]} tokens of a {kind} in this model, and cut."
            )
        self._note_unknown_words(texts)
        return embed

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
            self._say(tokenizer.unknown_words_note(words))
