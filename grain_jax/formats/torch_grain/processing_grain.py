"""From images and texts to what the model takes: as it was evaluated, without being told.

Image processor, processor and pipeline are one file, as saving a processor saves its file alone.
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
NUM_KEPT = 4  # lists of texts whose embeddings a pipeline keeps
SAMPLED = 16  # numbers of each tensor that tell whether weights were changed
NORMALIZATION = "text_normalization"  # in tokenizer_config.json
# Texts that "ftfy" leaves to the tokenizer's own normalizer: printable ASCII without "&", and marks
# that no broken encoding is made of alone.
PLAIN = re.compile(r"[\t\n\r !-%'-~\u2013\u2014\u2018-\u201f\u2026]*")
ImageInput = Any  # path, PIL image, or array [H, W, 3] or [H, W] of uint8


class GrainImageProcessor(BaseImageProcessor):
    """Squashes to a square, or cuts the centre square out ("crop"); then (x / 255 - mean) / std.

    By Pillow alone. Raises ValueError for unknown settings, and for arrays that are not uint8
    images.
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
        """`pixel_values` float32 [B, 3, S, S] of one image or several, of any sizes."""
        batch = isinstance(images, np.ndarray) and images.ndim == 4
        several = images if batch or isinstance(images, list | tuple) else [images]
        if len(several) == 0:
            raise ValueError("There are no images; give at least one.")
        upright = [
            _read(image, f"Image {i + 1} of {len(several)}") for i, image in enumerate(several)
        ]
        pixels = np.stack([self._pixels(image) for image in upright])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def seen_area(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of the part of an image that the model sees."""
        if self.resize == "squash":
            return 0.0, 0.0, float(width), float(height)
        side = min(height, width)
        left, top = (width - side) / 2 / width * width, (height - side) / 2 / height * height
        right, bottom = left + side / width * width, top + side / height * height
        return left, top, min(right, width), min(bottom, height)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        size = (self.image_size, self.image_size)
        box = self.seen_area(image.height, image.width)
        image = image.resize(size, RESAMPLING[self.interpolation], box=box)
        pixels = np.asarray(image, np.float32) / 255
        mean, std = (np.asarray(row, np.float32) for row in (self.image_mean, self.image_std))
        return ((pixels - mean) / std).transpose(2, 0, 1)


class GrainProcessor(ProcessorMixin):
    """Images, texts and descriptions of regions to all that the model takes.

    Texts are cleaned as in training, cut where the model's evaluation cuts them, and padded.
    """

    def __init__(
        self,
        image_processor: GrainImageProcessor,
        tokenizer: Any,
        description_length: int | None = None,  # in tokens; None: as long as a text
        padding: str = "longest",  # of the call | "max_length"
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
        """`pixel_values`, `input_ids` with `attention_mask`, `description_ids`: of what is given.

        `padding` as of tokenizers; None, or True, is what the model needs. `max_length`: of texts
        and of descriptions, in tokens; None, as evaluated. Raises ValueError where nothing is
        given, or what the model does not know is asked for.
        """
        if images is None and text is None and descriptions is None:
            raise ValueError("Give images, text or descriptions.")
        for name, texts in (("text", text), ("descriptions", descriptions)):
            if texts is not None and len(texts) == 0:
                raise ValueError(f"There is no {name}; give at least one text, or leave it out.")
        limit = self.tokenizer.model_max_length
        if self.padding == "max_length" and (padding not in (None, True, self.padding)):
            raise ValueError(f"padding={padding!r}, and this model needs {self.padding!r}.")
        exact = self.padding == "max_length"
        if max_length is not None and (max_length > limit or (exact and max_length != limit)):
            expected = f"{'' if exact else 'at most '}{limit}"
            raise ValueError(f"max_length={max_length}, and this model takes {expected} tokens.")
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
        """`pred_boxes` [B, Q, 4] of the model as (left, top, right, bottom) [Q, 4] of each image.

        Of each of `images`, or of its (height, width), as it is seen upright: cameras store many
        turned. Boxes stay within what the model saw. Raises ValueError for another number, and for
        None, which a model whose boxes were never trained gives.
        """
        if pred_boxes is None:
            raise ValueError(
                "pred_boxes is None: the boxes of this model were never trained (boxes_trained in "
                "its config.json), or it was given no images."
            )
        if len(images) != len(pred_boxes):
            raise ValueError(f"Boxes of {len(pred_boxes)} images, and {len(images)} images.")
        found = []
        for boxes, image in zip(pred_boxes, images, strict=True):
            if _is_image(image):
                width, height = upright_rgb(image).size
            else:
                height, width = map(int, image)
            left, top, right, bottom = self.image_processor.seen_area(height, width)
            scale = boxes.new_tensor([right - left, bottom - top] * 2)
            corners = boxes[:, [0, 1, 0, 1]] + boxes[:, [2, 3, 2, 3]] * boxes.new_tensor(
                [-0.5, -0.5, 0.5, 0.5]
            )
            found.append(corners.clamp(0, 1) * scale + boxes.new_tensor([left, top] * 2))
        return found


class GrainZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """As its base class, with these differences.

    Without `hypothesis_template` the prompts are the model's own; of several, the mean stands for a
    label, of the embeddings or of the cosines as the model was evaluated. `descriptions`,
    {label: [text, ...]}, tell the labels instead of their names: the score is `alpha` x whole image
    + (1 - `alpha`) x regions, each a mean over the descriptions; `alpha` is 0.5 if not given, 1 for
    a model without trained regions. Long texts are cut, and all are padded as the model needs it:
    there are no `tokenizer_kwargs`.

    Texts are embedded once, and again when the weights, their type or their device have changed
    (seen by torch's version counter and a sample of each tensor, which miss a change of single
    numbers through `.data`). An image that cannot be read is named in a ValueError; with
    `on_error="skip"` it is named in a warning, and its place has an empty list.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._encoded: OrderedDict[Any, Any] = OrderedDict()  # embeddings of the last texts
        self._tokens: OrderedDict[Any, Any] = OrderedDict()  # and their tokens
        super().__init__(*args, **kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """Every model that names this class in its configuration is meant for it."""

    def __call__(self, image: Any, candidate_labels: Any = None, **kwargs: Any) -> Any:
        """[{"label", "score"}, ...] of an image, best first; a list of these for several.

        Raises ValueError for what does not go together, TypeError for unknown arguments. What is
        not given is as the pipeline was made with; descriptions go without a template.
        """
        made: dict[str, Any] = self._preprocess_params
        if kwargs.get("descriptions") is not None:
            kwargs.setdefault("hypothesis_template", None)
        if candidate_labels is None:
            described = kwargs.get("descriptions", made.get("descriptions"))
            if described is not None:
                _check_descriptions(described)
            candidate_labels = made.get("candidate_labels") or list(described or ())
        if isinstance(image, list | tuple):  # for a message about one of them
            image = [_Numbered(one, i + 1, len(image)) for i, one in enumerate(image)]
        return super().__call__(image, candidate_labels, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict]:
        if unknown := set(kwargs) - PIPELINE_ARGUMENTS:
            raise TypeError(
                f"{unknown.pop()!r} is no argument; known: {', '.join(sorted(PIPELINE_ARGUMENTS))}."
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
        """`hypothesis_template`: a text or several; `alpha`: a number from 0 to 1.

        Raises ValueError for others, without labels, for a template without one "{}", and for a
        image that cannot be read, unless `on_error` is "skip".
        """
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error={on_error!r}; choose one of {ON_ERROR}.")
        _check_labels(candidate_labels)
        if descriptions is None:
            if alpha is not None:
                raise ValueError("alpha weighs the image against regions: give descriptions.")
            texts = self._prompts(candidate_labels, hypothesis_template)
            asked = _Asked(self._ids(texts, self.tokenizer.model_max_length))
        else:
            if hypothesis_template is not None:
                raise ValueError("hypothesis_template is for names; descriptions stand as given.")
            asked = self._described(candidate_labels, descriptions, alpha)
        failed = None
        try:
            image = self._image(image, timeout)
        except ValueError as error:
            if on_error == "raise":
                raise
            failed, image = str(error), Image.new("RGB", (8, 8))
        inputs = self.image_processor(images=[image], return_tensors="pt").to(self.dtype)
        return inputs | {"candidate_labels": candidate_labels, "asked": asked, "failed": failed}

    def _image(self, image: Any, timeout: float | None) -> Image.Image:
        """Raises ValueError that names it."""
        name = "The image"
        if isinstance(image, _Numbered):
            name = f"Image {image.number} of {image.count}"
            image = image.image
        # A URL or base64 goes to transformers, which drops transparency and clips 16 bits.
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

    def _described(
        self,
        labels: Sequence[str],
        descriptions: Mapping[str, Sequence[str]],
        alpha: Any,
    ) -> "_Asked":
        regions = self.model.config.type == "grain" and self.model.config.regions_trained
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
            raise ValueError(f"{odd.pop()!r} is a label or has descriptions, not both.")
        texts = [text for label in labels for text in descriptions[label]]
        limit = self.tokenizer.model_max_length
        return _Asked(
            ids=self._ids(texts, limit),
            region_ids=self._ids(texts, self.model.config.description_length or limit),
            counts=[len(descriptions[label]) for label in labels],
            alpha=float(alpha),
        )

    def _ids(self, texts: Sequence[str], length: int) -> Any:
        """[N, L] token ids, made once for the images that share the texts."""
        key = (length, tuple(texts))

        def tokens() -> Any:
            settings = {"padding": self._padding(), "truncation": True, "return_tensors": "pt"}
            cleaned = normalized(list(texts), self.tokenizer)
            return self.tokenizer(cleaned, max_length=length, **settings)["input_ids"]

        return _kept(self._tokens, key, tokens)

    def _forward(self, model_inputs: Any) -> Any:
        labels, failed = model_inputs.pop("candidate_labels"), model_inputs.pop("failed")
        asked = model_inputs.pop("asked")
        batch = isinstance(asked, list)  # whose images share their labels
        asked = asked[0] if batch else asked
        num_labels = len(labels[0] if batch else labels)
        output = self.model(**model_inputs)
        if asked.counts is None:
            prompts = self._embeds(asked.ids).unflatten(0, (-1, num_labels)).mean(dim=0)
            if self.model.config.prompt_ensembling == "embedding":
                prompts = F.normalize(prompts, dim=-1)
            scores = output.image_embeds @ prompts.T
        else:
            scores = self._mixed(output, asked)
        logits = self.model.logit_factor() * scores
        return {"candidate_labels": labels, "logits": logits, "failed": failed}

    def postprocess(self, model_outputs: Any) -> Any:
        """Labels with their scores, best first; [] for an image that was skipped."""
        if failed := model_outputs.pop("failed"):
            warnings.warn(f"Skipped: {failed}", stacklevel=2)
            return []
        return super().postprocess(model_outputs)

    def _embeds(self, ids: Any) -> Any:
        """[N, L] token ids to [N, E], once while the weights stay as they are."""
        key = (tuple(ids.shape), ids.numpy().tobytes(), self._weights())

        def embeds() -> Any:
            features = self.model.get_text_features(ids.to(self.model.device)).pooler_output
            return F.normalize(features.float(), dim=-1)

        return _kept(self._encoded, key, embeds)

    def _weights(self) -> Any:
        """What tells the weights of the text tower, and how they compute, from others."""
        state = (self.model.training, torch.is_autocast_enabled(self.model.device.type))
        told, samples = [], []
        for name, tensor in self.model.named_parameters():
            if name.startswith(("backbone.visual.", "decoder.")):
                continue
            version = 0 if tensor.is_inference() else tensor._version
            told.append((tensor.data_ptr(), version, tensor.dtype, tensor.device))
            flat = tensor.detach().reshape(-1)
            samples.append(flat[:: max(1, len(flat) // SAMPLED)].float())
        sample = torch.cat(samples).cpu().numpy().tobytes() if samples else b""
        return id(self.model), state, tuple(told), sample

    def _mixed(self, output: Any, asked: Any) -> Any:
        """[B, K]: `asked.ids` of all descriptions for the whole image, `region_ids` for regions."""
        counts, alpha = asked.counts, asked.alpha

        def by_label(values: Any, reduce: Any) -> Any:
            return torch.stack([reduce(part) for part in values.split(counts, dim=-1)], dim=-1)

        if alpha > 0:
            cosines = output.image_embeds @ self._embeds(asked.ids).T
            whole = by_label(cosines, lambda x: x.mean(dim=-1))
        if alpha == 1:
            return whole
        cosines = output.region_embeds @ self._embeds(asked.region_ids).T  # [B, Q, M]
        if (
            self.model.config.region_aggregation == "max_over_queries"
        ):  # each has to be found somewhere
            regions = by_label(cosines.amax(dim=1), lambda x: x.mean(dim=-1))
        else:  # each query has to explain itself
            regions = by_label(cosines, lambda x: x.amax(dim=-1)).mean(dim=1)
        return regions if alpha == 0 else alpha * whole + (1 - alpha) * regions


@dataclass(frozen=True, eq=False)
class _Numbered:
    """An image of a list, and its place there."""

    image: Any
    number: int
    count: int


@dataclass(frozen=True, eq=False)
class _Asked:
    """Tokens of what an image is asked for; a type of its own, which stays on the CPU."""

    ids: Any  # [N, L] prompts or descriptions
    region_ids: Any = None  # [M, L] descriptions as they are cut for regions
    counts: list[int] | None = None  # of descriptions, for each label
    alpha: float | None = None


def _kept(kept: OrderedDict[Any, Any], key: Any, make: Any) -> Any:
    """The value of `key`, made where it is not among the last few."""
    if key not in kept:
        kept[key] = make()
        while len(kept) > NUM_KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _check_labels(labels: Any) -> None:
    """Raises ValueError unless they are a list of texts, none of them twice."""
    if isinstance(labels, Mapping):
        raise ValueError(
            "candidate_labels must be a list of texts; got a dictionary. Descriptions of labels "
            "are given by name: descriptions={label: [text, ...]}."
        )
    if isinstance(labels, str) or not isinstance(labels, list | tuple) or not labels:
        raise ValueError(f"candidate_labels must be a list of texts; got {labels!r}.")
    _check_texts("candidate_labels", labels)
    if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise ValueError(f"candidate_labels has {twice[0]!r} more than once; give it once.")


def _check_descriptions(descriptions: Any) -> None:
    """Raises ValueError unless it is {label: [text, ...]}, with a text for every label."""
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
                f"{name} must be a list of texts; got a dictionary with the keys {keys}. Give the "
                f"texts that are meant, as [{name}[{next(iter(texts), 'KEY')!r}], ...]."
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
    """A text, or each of several, as in training, as far as the tokenizer does not do it itself.

    Raises ImportError where that needs `ftfy` and it is not there.
    """
    how = tokenizer.init_kwargs.get(NORMALIZATION)
    if how is None:
        return texts
    if how not in ("ftfy", "entities"):
        raise ValueError(
            f"{NORMALIZATION}={how!r} of the tokenizer is not known to this processor."
        )
    return (
        _normalized(texts, how) if isinstance(texts, str) else [_normalized(t, how) for t in texts]
    )


def _normalized(text: str, how: str) -> str:
    if not isinstance(text, str) or PLAIN.fullmatch(text):
        return text
    if how == "ftfy":
        try:
            import ftfy
        except ImportError as error:
            raise ImportError(
                f"This model was trained on texts cleaned by ftfy, which may change "
                f"{reprlib.repr(text)}: pip install ftfy. Texts of plain ASCII without '&' go "
                "without it."
            ) from error
        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return text.encode("utf-8", "replace").decode("utf-8")


def _read(image: Any, place: str, given: Any = None) -> Image.Image:
    """`upright_rgb` of an image, or of what a function gives. Raises ValueError that names it."""
    try:
        return upright_rgb(image() if callable(image) else image)
    except Exception as error:  # of Pillow, the file system or a download
        given = image if given is None else given
        file = given if isinstance(given, str | Path) else getattr(given, "filename", "")
        name = f"{place} ({reprlib.repr(str(file))})" if file else place
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{name} cannot be read: {why}") from error


def upright_rgb(image: ImageInput) -> Image.Image:
    """Turned as its EXIF data says; 16 bit gray is scaled, transparency shown on white."""
    image = _opened(image)
    if not isinstance(image, Image.Image):
        return _of_array(np.asarray(image))
    image.load()  # first: Pillow turns a TIFF upright while it loads, and forgets the tag then
    turn = TURNS.get(_orientation(image))
    image = _of_mode(image)
    return image if turn is None else image.transpose(turn)


def _is_image(given: Any) -> bool:
    """Rather than a size: two numbers in a tuple, list, array or tensor."""
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
    except Exception:  # damaged metadata, common on the web, leaves the pixels as good as they are
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
    """Gray of more than 8 bits, scaled by its depth: of 32 bits, 1, 255 or 65,535 is white."""
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
