"""Image processor, processor and pipeline of GRAIN, with the preprocessing of its evaluation.

They are in one file, because saving a processor saves the file that defines it and those that this
one imports: a pipeline of its own file would be left out.
"""

import html
import numbers
import os
import re
import reprlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms
from transformers import BatchFeature, ZeroShotImageClassificationPipeline
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

from .scores_grain import (
    FOUND,
    Compared,
    answered,
    calibrated_logits,
    part_that_holds,
    texts_sha256,
    with_answers,
)

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("squash", "crop")
TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

PIPELINE_ARGUMENTS = frozenset(
    {"candidate_labels", "hypothesis_template", "timeout", "descriptions", "alpha", "on_error"}
)
ON_ERROR = ("raise", "skip")
NUM_KEPT = 4  # lists of texts whose embeddings a pipeline caches
SAMPLED = 16  # values of each tensor that are compared to detect changed weights
NORMALIZATION = "text_normalization"  # in tokenizer_config.json
# Texts that only the tokenizer's own normalizer changes: printable ASCII without "&", and marks
# that alone do not make up a broken encoding.
PLAIN = re.compile(r"[\t\n\r !-%'-~\u2013\u2014\u2018-\u201f\u2026]*")
ImageInput = Any  # path, PIL image, or array [H, W, 3] or [H, W] of uint8


class GrainImageProcessor(BaseImageProcessor):
    """Resizes to a square ("squash") or takes the centre square ("crop"), then normalises.

    Normalised pixels are (x / 255 - mean) / std. Uses Pillow only. Raises ValueError for unknown
    settings, and for arrays that are not uint8 images.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 224,
        resize: str = "squash",
        interpolation: str = "bicubic",
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if resize not in RESIZES:
            raise ValueError(f"resize={resize!r}; choose one of {RESIZES}.")
        if interpolation not in RESAMPLING:
            raise ValueError(f"interpolation={interpolation!r}; choose of {sorted(RESAMPLING)}.")
        self.image_size = image_size
        self.resize = resize
        self.interpolation = interpolation
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], return_tensors: str | None = None
    ) -> BatchFeature:
        """As `preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(
        self, images: ImageInput | Sequence[ImageInput], return_tensors: str | None = None
    ) -> BatchFeature:
        """`pixel_values` float32 [B, 3, S, S] of one or several images of any sizes."""
        batch = isinstance(images, np.ndarray) and images.ndim == 4
        several = images if batch or isinstance(images, list | tuple) else [images]
        if len(several) == 0:
            raise ValueError("There are no images; give at least one.")
        upright = [
            _read(image, f"Image {i + 1} of {len(several)}") for i, image in enumerate(several)
        ]
        pixels = np.stack([self._pixels(image) for image in upright])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of the part of an image that the model is given."""
        if self.resize == "squash":
            return 0.0, 0.0, float(width), float(height)
        side = min(height, width)
        left, top = (width - side) / 2 / width * width, (height - side) / 2 / height * height
        right, bottom = left + side / width * width, top + side / height * height
        return left, top, min(right, width), min(bottom, height)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        size = (self.image_size, self.image_size)
        box = self.crop_box(image.height, image.width)
        image = image.resize(size, RESAMPLING[self.interpolation], box=box)
        pixels = np.asarray(image, np.float32) / 255
        mean, std = (np.asarray(row, np.float32) for row in (self.image_mean, self.image_std))
        return ((pixels - mean) / std).transpose(2, 0, 1)


class GrainProcessor(ProcessorMixin):
    """Converts images, texts and region descriptions to inputs of the model.

    Texts are cleaned as in training, truncated as in evaluation, and padded.
    """

    def __init__(
        self,
        image_processor: GrainImageProcessor,
        tokenizer: Any,
        description_length: int | None = None,  # in tokens; None: that of texts
        padding: str = "longest",  # within the call | "max_length"
    ) -> None:
        super().__init__(image_processor, tokenizer)
        self.description_length = description_length
        self.padding = padding

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        text: str | Sequence[str] | None = None,
        descriptions: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        padding: bool | str | None = None,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> BatchFeature:
        """`pixel_values` of images, `input_ids` and `attention_mask` of texts, `description_ids`.

        Args:
            images: of any sizes.
            text: texts to compare images with.
            descriptions: texts to compare regions with.
            padding: as in tokenizers; None or True for the padding of the model.
            max_length: of texts and descriptions, in tokens; None: as in evaluation.

        Raises ValueError where nothing is given, and for a padding or length that the model does
        not support.
        """
        if images is None and text is None and descriptions is None:
            raise ValueError("Give images, text or descriptions.")
        for name, texts in (("text", text), ("descriptions", descriptions)):
            if texts is not None and len(texts) == 0:
                raise ValueError(f"There is no {name}; give at least one text, or leave it out.")
        limit = self.tokenizer.model_max_length
        if self.padding == "max_length" and (padding not in (None, True, self.padding)):
            raise ValueError(f"padding={padding!r}; this model expects {self.padding!r}.")
        exact = self.padding == "max_length"
        if max_length is not None and (max_length > limit or (exact and max_length != limit)):
            expected = f"{'' if exact else 'at most '}{limit}"
            raise ValueError(f"max_length={max_length}; this model takes {expected} tokens.")
        settings = {
            "padding": self.padding if padding in (None, True) else padding,
            "truncation": truncation,
            "return_tensors": return_tensors,
        }
        data: dict[str, Any] = {}
        if text is not None:
            text = normalized(text, self.tokenizer)
            data |= self.tokenizer(text, max_length=max_length or limit, **settings)
        if descriptions is not None:
            length = max_length or self.description_length or limit
            several = [descriptions] if isinstance(descriptions, str) else list(descriptions)
            several = normalized(several, self.tokenizer)
            tokens = self.tokenizer(several, max_length=length, **settings)
            data["description_ids"] = tokens["input_ids"]
        if images is not None:
            data |= self.image_processor(images, return_tensors=return_tensors)
        return BatchFeature(data)

    def boxes_in_pixels(
        self, pred_boxes: Any, images: Sequence[ImageInput | Sequence[int]]
    ) -> list[Any]:
        """`pred_boxes` [B, Q, 4] of the model as (left, top, right, bottom) in pixels: [Q, 4] for
        each image.

        `images`: the images, or the (height, width) of each after its EXIF orientation is applied.
        Boxes are clipped to the part that the model was given. Raises ValueError for another number
        of images, and where `pred_boxes` is None, as from a model with untrained boxes.
        """
        if pred_boxes is None:
            raise ValueError(
                "pred_boxes is None: the boxes of this model were never trained (boxes_trained in "
                "its config.json), or it was given no images."
            )
        if len(images) != len(pred_boxes):
            raise ValueError(
                f"Boxes of {len(pred_boxes)} images, and {len(images)} images; give equal numbers."
            )
        found = []
        for boxes, image in zip(pred_boxes, images, strict=True):
            if _is_image(image):
                width, height = upright_rgb(image).size
            else:
                height, width = map(int, image)
            left, top, right, bottom = self.image_processor.crop_box(height, width)
            scale = boxes.new_tensor([right - left, bottom - top] * 2)
            corners = boxes[:, [0, 1, 0, 1]] + boxes[:, [2, 3, 2, 3]] * boxes.new_tensor(
                [-0.5, -0.5, 0.5, 0.5]
            )
            found.append(corners.clamp(0, 1) * scale + boxes.new_tensor([left, top] * 2))
        return found


class GrainZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """Zero-shot classification by label name or by description; differs from its base class so:

    Without `hypothesis_template` the prompts are the model's own. Several prompts of a label are
    ensembled by their embeddings or by their scores, as in the model's evaluation. With
    `descriptions`, {label: [text, ...]}, labels are scored by their descriptions: `alpha` x score
    of the whole image + (1 - `alpha`) x score of the regions, each a mean over the descriptions.
    `alpha` is 0.5 by default, and 1 for a model with untrained regions. Texts are truncated and
    padded as the model expects; there are no `tokenizer_kwargs`.

    Where the model was calibrated for the method and alpha, scores are calibrated probabilities.
    For the classes and texts that it was fitted to each entry then also has, as far as they were
    fitted, `in_set`: whether its label is in the conformal set of the image; `none_of_these`:
    whether the image looks like none of the labels, equal in all entries; and `num_seen`: how many
    of its descriptions a region shows. A warning says, once, why a calibration is not used in full.

    Embeddings of texts are cached until the weights, their type or their device change. Changes are
    detected by torch's version counter and a sample of each tensor, which miss a change of single
    values through `.data`. An image that cannot be read raises a ValueError that names it; with
    `on_error="skip"` a warning names it and its result is an empty list.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._encoded: OrderedDict[Any, Any] = OrderedDict()  # cached embeddings of texts
        self._tokens: OrderedDict[Any, Any] = OrderedDict()  # cached tokens of texts
        self._digests: OrderedDict[Any, Any] = OrderedDict()  # cached `texts_sha256`
        self._said: set[str] = set()  # warnings about the calibration
        super().__init__(*args, **kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """Accepts every model, as only models made for it name this class in their config."""

    def __call__(self, image: Any, candidate_labels: Any = None, **kwargs: Any) -> Any:
        """[{"label", "score"}, ...] of an image, highest score first; a list of these for several.
        Of a calibrated model entries have more (see the class).

        Arguments that are not given default to those the pipeline was created with; descriptions
        are used without a template. Raises ValueError for invalid or contradictory arguments, and
        TypeError for unknown ones.
        """
        defaults: dict[str, Any] = self._preprocess_params
        if kwargs.get("descriptions") is not None:
            kwargs.setdefault("hypothesis_template", None)
        if candidate_labels is None:
            described = kwargs.get("descriptions", defaults.get("descriptions"))
            if described is not None:
                _check_descriptions(described)
            candidate_labels = defaults.get("candidate_labels") or list(described or ())
        if isinstance(image, list | tuple):  # for errors about one of them
            image = [_Numbered(one, i + 1, len(image)) for i, one in enumerate(image)]
        return super().__call__(image, candidate_labels, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict]:
        if unknown := set(kwargs) - PIPELINE_ARGUMENTS:
            raise TypeError(
                f"{unknown.pop()!r} is not an argument; known: "
                f"{', '.join(sorted(PIPELINE_ARGUMENTS))}."
            )
        return kwargs, {}, {}

    def preprocess(
        self,
        image: Any,
        candidate_labels: Any = None,
        hypothesis_template: Any = None,
        timeout: float | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
        alpha: Any = None,
        on_error: str = "raise",
    ) -> Any:
        """Inputs of the model for one image.

        Args:
            candidate_labels: at least one, without duplicates.
            hypothesis_template: one or several texts with one "{}" each.
            timeout: of a download, in seconds.
            descriptions: {label: [text, ...]}, for exactly the labels.
            alpha: weight of the whole image against the regions, from 0 to 1.
            on_error: "raise" or "skip" an image that cannot be read.

        Raises ValueError for other values, and with "raise" for an image that cannot be read.
        """
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error={on_error!r}; choose one of {ON_ERROR}.")
        _check_labels(candidate_labels)
        if descriptions is None:
            if alpha is not None:
                raise ValueError("alpha weighs the image against regions; give descriptions too.")
            texts = self._prompts(candidate_labels, hypothesis_template)
            query = _Query(
                self.token_ids(texts, self.tokenizer.model_max_length),
                digest=self._digest(candidate_labels, texts, None),
            )
        else:
            if hypothesis_template is not None:
                raise ValueError(
                    "hypothesis_template applies to names only; leave it out with descriptions."
                )
            query = self.description_query(candidate_labels, descriptions, alpha)
        failed = None
        try:
            image = self._image(image, timeout)
        except ValueError as error:
            if on_error == "raise":
                raise
            failed, image = str(error), Image.new("RGB", (8, 8))
        inputs = self.image_processor(images=[image], return_tensors="pt").to(self.dtype)
        return inputs | {"candidate_labels": candidate_labels, "query": query, "failed": failed}

    def _image(self, image: Any, timeout: float | None) -> Image.Image:
        """The image, read. Raises ValueError that names it where it cannot be read."""
        name = "The image"
        if isinstance(image, _Numbered):
            name = f"Image {image.number} of {image.count}"
            image = image.image
        # A URL or base64 is read by transformers, which drops transparency and clips 16 bits.
        known = not isinstance(image, str) or os.path.isfile(image)
        return _read(image if known else lambda: load_image(image, timeout=timeout), name, image)

    def _padding(self) -> str:
        return "max_length" if self.model.config.text["pooling"] == "last" else "longest"

    def _prompts(self, labels: Sequence[str], given: Any) -> list[str]:
        templates = given or self.model.config.templates
        templates = [templates] if isinstance(templates, str) else templates
        if not isinstance(templates, list | tuple):
            raise ValueError(
                f"hypothesis_template must be a text or a list of texts; got {templates!r}."
            )
        _check_texts("hypothesis_template", templates)
        if odd := [template for template in templates if template.count("{}") != 1]:
            raise ValueError(f"A template needs one {{}} for the label; got {odd[0]!r}.")
        return [template.replace("{}", label) for template in templates for label in labels]

    def description_query(
        self,
        labels: Sequence[str],
        descriptions: Mapping[str, Sequence[str]],
        alpha: Any,
    ) -> "_Query":
        """Tokens of the descriptions, and alpha. Raises ValueError where they do not fit."""
        regions = self._has_regions()
        if alpha is None:
            alpha = 0.5 if regions else 1.0
        number = isinstance(alpha, numbers.Real) and not isinstance(alpha, bool)
        if not number or not 0 <= alpha <= 1 or (alpha != 1 and not regions):
            expected = (
                "a number from 0 to 1" if regions else "1, as this model has no trained regions"
            )
            raise ValueError(f"alpha={alpha!r}; expected {expected}.")
        _check_descriptions(descriptions)
        if odd := set(descriptions) ^ set(labels):
            raise ValueError(
                f"{odd.pop()!r} is either not a label or has no descriptions; give "
                "descriptions of exactly the labels."
            )
        groups = [list(dict.fromkeys(descriptions[label])) for label in labels]
        texts, counts = [text for group in groups for text in group], list(map(len, groups))
        limit = self.tokenizer.model_max_length
        return _Query(
            ids=self.token_ids(texts, limit),
            region_ids=self.token_ids(texts, self.model.config.description_length or limit),
            counts=counts,
            alpha=float(alpha),
            digest=self._digest(labels, texts, counts),
        )

    def _digest(
        self, labels: Sequence[str], texts: Sequence[str], counts: Sequence[int] | None
    ) -> str | None:
        """`texts_sha256` of prompts, or of descriptions with their `counts`; None where no
        calibration asks for it. Cached for images with the same texts.
        """
        if "texts_sha256" not in (getattr(self.model.config, "calibration", None) or {}):
            return None
        key = (tuple(labels), tuple(texts), counts and tuple(counts), self._has_regions())

        def digest() -> str:
            return texts_sha256(labels, texts, counts, with_regions=self._has_regions())

        return _cached(self._digests, key, digest)

    def _has_regions(self) -> bool:
        return self.model.config.type == "grain" and self.model.config.regions_trained

    def token_ids(self, texts: Sequence[str], length: int) -> Any:
        """[N, L] token ids, cached for images with the same texts."""
        key = (length, tuple(texts))

        def tokens() -> Any:
            settings = {"padding": self._padding(), "truncation": True, "return_tensors": "pt"}
            cleaned = normalized(list(texts), self.tokenizer)
            return self.tokenizer(cleaned, max_length=length, **settings)["input_ids"]

        return _cached(self._tokens, key, tokens)

    def _forward(self, model_inputs: Any) -> Any:
        labels, failed = model_inputs.pop("candidate_labels"), model_inputs.pop("failed")
        query = model_inputs.pop("query")
        batch = isinstance(query, list)  # its images have the same labels
        query = query[0] if batch else query
        own = labels[0] if batch else labels
        output, config = self.model(**model_inputs), self.model.config
        compared = Compared(
            output.image_embeds,
            output.region_embeds,
            embed_texts=lambda: self._embeds(query.ids),
            embed_region_texts=lambda: self._embeds(query.region_ids),
            num_labels=len(own),
            counts=query.counts,
            alpha=query.alpha,
            prompt_ensembling=config.prompt_ensembling,
            region_aggregation=config.region_aggregation,
        )
        fitted = self._calibration(query)
        logits = self.model.logit_factor() * compared.scores()
        logits = calibrated_logits(fitted, logits, own)
        found = answered(fitted, logits, compared)
        return {"candidate_labels": labels, "logits": logits, "failed": failed} | found

    def _calibration(self, query: Any) -> Mapping[str, Any]:
        """The part of the model's calibration that holds for the question; warns, once, if it is
        not all of it.
        """
        config = self.model.config
        asked = {
            "method": "name" if query.counts is None else "description",
            "alpha": query.alpha,
            "prompt_ensembling": config.prompt_ensembling,
            "region_aggregation": config.region_aggregation,
        }
        calibration = getattr(config, "calibration", None)
        fitted, reason = part_that_holds(calibration, asked, query.digest)
        if reason is not None and reason not in self._said:
            self._said.add(reason)
            warnings.warn(reason, stacklevel=2)
        return fitted

    def postprocess(self, model_outputs: Any) -> Any:
        """Labels with their scores, highest first, and what a calibration says of them; [] for an
        image that was skipped.
        """
        found = {name: model_outputs.pop(name) for name in FOUND}
        if failed := model_outputs.pop("failed"):
            warnings.warn(f"Skipped: {failed}", stacklevel=2)
            return []
        labels = list(model_outputs["candidate_labels"])
        return with_answers(super().postprocess(model_outputs), labels, found)

    def _embeds(self, ids: Any) -> Any:
        """[N, L] token ids to [N, E], cached until the weights change."""
        key = (tuple(ids.shape), ids.numpy().tobytes(), self._weights())

        def embeds() -> Any:
            features = self.model.get_text_features(ids.to(self.model.device)).pooler_output
            return F.normalize(features.float(), dim=-1)

        return _cached(self._encoded, key, embeds)

    def _weights(self) -> Any:
        """A key that changes with the weights of the text tower and the mode of computation."""
        state = (self.model.training, torch.is_autocast_enabled(self.model.device.type))
        identities, samples = [], []
        for name, tensor in self.model.named_parameters():
            if name.startswith(("backbone.visual.", "decoder.")):
                continue
            version = 0 if tensor.is_inference() else tensor._version
            identities.append((tensor.data_ptr(), version, tensor.dtype, tensor.device))
            flat = tensor.detach().reshape(-1)
            samples.append(flat[:: max(1, len(flat) // SAMPLED)].float())
        sample = torch.cat(samples).cpu().numpy().tobytes() if samples else b""
        return id(self.model), state, tuple(identities), sample


@dataclass(frozen=True, eq=False)
class _Numbered:
    """An image of a list, and its position in the list."""

    image: Any
    number: int
    count: int


@dataclass(frozen=True, eq=False)
class _Query:
    """Tokens of the texts that an image is scored by; not a tensor, so it stays on the CPU."""

    ids: Any  # [N, L] prompts or descriptions
    region_ids: Any = None  # [M, L] descriptions as truncated for regions
    counts: list[int] | None = None  # number of descriptions of each label
    alpha: float | None = None
    digest: str | None = None  # `texts_sha256`, where a calibration asks for it


def _cached(cache: OrderedDict[Any, Any], key: Any, make: Any) -> Any:
    """The cached value of `key`, computed by `make` where it is not among the last few."""
    if key not in cache:
        cache[key] = make()
        while len(cache) > NUM_KEPT:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def _check_labels(labels: Any) -> None:
    """Raises ValueError unless they are a list of distinct texts."""
    if isinstance(labels, Mapping):
        raise ValueError(
            "candidate_labels must be a list of texts; got a dictionary. Give descriptions "
            "of labels as descriptions={label: [text, ...]}."
        )
    if isinstance(labels, str) or not isinstance(labels, list | tuple) or not labels:
        raise ValueError(f"candidate_labels must be a list of texts; got {labels!r}.")
    _check_texts("candidate_labels", labels)
    if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise ValueError(f"candidate_labels has {twice[0]!r} more than once; give it once.")


def _check_descriptions(descriptions: Any) -> None:
    """Raises ValueError unless it is {label: [text, ...]}, with at least one text per label."""
    if not isinstance(descriptions, Mapping):
        kind = type(descriptions).__name__
        raise ValueError(f"descriptions must be {{label: [text, ...]}}; got a {kind}.")
    if not descriptions:
        raise ValueError("descriptions has no labels; expected {label: [text, ...]}.")
    _check_texts("The labels of descriptions", list(descriptions))
    for label, texts in descriptions.items():
        name = f"descriptions[{label!r}]"
        if isinstance(texts, Mapping):
            keys = ", ".join(map(repr, list(texts)[:3]))
            raise ValueError(
                f"{name} must be a list of texts; got a dictionary with the keys {keys}. Give a "
                f"list of texts, as [{name}[{next(iter(texts), 'KEY')!r}], ...]."
            )
        if not isinstance(texts, list | tuple):
            shown = reprlib.repr(texts)
            raise ValueError(f"{name} must be a list of texts; got {shown}.")
        if not texts:
            raise ValueError(f"{name} must be a list of texts, not empty.")
        _check_texts(name, texts)


def _check_texts(name: str, texts: Sequence[Any]) -> None:
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            shown = reprlib.repr(text)
            raise ValueError(f"{name} must be a list of texts; number {position + 1} is {shown}.")


def normalized(texts: Any, tokenizer: Any) -> Any:
    """A text, or each of several, cleaned as in training before the tokenizer's own normalizer.

    Raises ImportError where a text requires `ftfy` and it is not installed.
    """
    method = tokenizer.init_kwargs.get(NORMALIZATION)
    if method is None:
        return texts
    if method not in ("ftfy", "entities"):
        raise ValueError(
            f"{NORMALIZATION}={method!r} of the tokenizer is not known to this processor."
        )
    return (
        _normalized(texts, method)
        if isinstance(texts, str)
        else [_normalized(text, method) for text in texts]
    )


def _normalized(text: str, method: str) -> str:
    if not isinstance(text, str) or PLAIN.fullmatch(text):
        return text
    if method == "ftfy":
        try:
            import ftfy
        except ImportError as error:
            raise ImportError(
                f"This model was trained on texts cleaned by ftfy, which may change "
                f"{reprlib.repr(text)}: pip install ftfy. Texts of plain ASCII without '&' "
                "do not require it."
            ) from error
        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return text.encode("utf-8", "replace").decode("utf-8")


def _read(image: Any, place: str, given: Any = None) -> Image.Image:
    """`upright_rgb` of an image or of the result of a function. Raises ValueError with its name."""
    try:
        return upright_rgb(image() if callable(image) else image)
    except Exception as error:  # of Pillow, the file system or a download
        given = image if given is None else given
        file = given if isinstance(given, str | Path) else getattr(given, "filename", "")
        name = f"{place} ({reprlib.repr(str(file))})" if file else place
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{name} cannot be read: {why}") from error


def upright_rgb(image: ImageInput) -> Image.Image:
    """RGB image with EXIF orientation applied, 16 bit gray scaled, and transparency on white."""
    image = _opened(image)
    if not isinstance(image, Image.Image):
        return _of_array(np.asarray(image))
    image.load()  # first: Pillow turns a TIFF upright while it loads, and removes the tag
    turn = TURNS.get(_orientation(image))
    image = _of_mode(image)
    return image if turn is None else image.transpose(turn)


def _is_image(given: Any) -> bool:
    """Whether it is an image rather than a size, two numbers in a tuple, list, array or tensor."""
    return isinstance(given, str | Path | Image.Image) or np.ndim(given) > 1


def _opened(image: ImageInput) -> ImageInput:
    if not isinstance(image, str | Path):
        return image
    with Image.open(image) as opened:
        opened.load()
        return opened


def _of_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.shape[2:] == (3,)):
        raise ValueError(
            f"An image array must be uint8 [H, W, 3] or [H, W], got {array.dtype} {array.shape}; "
            "give a PIL image otherwise."
        )
    return Image.fromarray(array).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata, common on the web, does not affect the pixels
        return 1


def _of_mode(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # which Pillow would clip instead of scaling
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Gray of more than 8 bits scaled by its bit depth; with 32 bits, 1, 255 or 65,535 is white."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})  # tags of a TIFF
    if image.mode.startswith("I;16") or image.format == "PNG":
        bits = min(int(tags.get(258, (16,))[0]), 16)
        levels = values.astype(np.int64)
        levels = (1 << bits) - 1 - levels if tags.get(262) == 0 else levels  # 0 is white
        gray = levels >> (bits - 8)
        if "transparency" in image.info:
            gray = np.where(values == image.info["transparency"], 255, gray)
        return gray.clip(0, 255).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all() or high > 65_535:
        raise ValueError(f"Values from {low:g} to {high:g}; expected 0 to 1, 255 or 65535.")
    white = 1.0 if image.mode == "F" and high <= 1 else 255.0 if high <= 255 else 65_535.0
    return (values.astype(np.float64) * (255.0 / white)).clip(0, 255).round().astype(np.uint8)
