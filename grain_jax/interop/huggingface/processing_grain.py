"""From pictures and texts to what the model takes: as it was evaluated, without being told.

Image processor, processor and pipeline are one file, as saving a processor saves its file alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from PIL import ExifTags, Image
from transformers import BatchFeature, ZeroShotImageClassificationPipeline
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("squash", "crop")
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Picture = Any  # PIL image, or array [H, W, 3] or [H, W] of uint8


class GrainImageProcessor(BaseImageProcessor):
    """Squashes to a square, or cuts the centre square out ("crop"); then (x / 255 - mean) / std.

    By Pillow alone. Raises ValueError for unknown settings, and for arrays that are not uint8
    pictures.
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
        self, images: Picture | Sequence[Picture], return_tensors: str | None = None
    ) -> BatchFeature:
        """As `preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(
        self, images: Picture | Sequence[Picture], return_tensors: str | None = None
    ) -> BatchFeature:
        """`pixel_values` float32 [B, 3, S, S] of one picture or several, of any sizes."""
        batch = isinstance(images, np.ndarray) and images.ndim == 4
        several = images if batch or isinstance(images, list | tuple) else [images]
        pixels = np.stack([self._pixels(upright_rgb(image)) for image in several])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def seen_area(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of the part of a picture that the model sees."""
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
    """Pictures, texts and descriptions of regions to all that the model takes.

    Texts are cut where the model's evaluation cuts them, and padded.
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
        images: Picture | Sequence[Picture] | None = None,
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
        limit = self.tokenizer.model_max_length
        if self.padding == "max_length" and (padding not in (None, True, self.padding)):
            raise ValueError(f"padding={padding!r}, and this model needs {self.padding!r}.")
        exact = self.padding == "max_length"
        if max_length is not None and (max_length > limit or (exact and max_length != limit)):
            needed = f"{'' if exact else 'at most '}{limit}"
            raise ValueError(f"max_length={max_length}, and this model takes {needed} tokens.")
        settings = {
            "padding": self.padding if padding in (None, True) else padding,
            "truncation": truncation,
            "return_tensors": return_tensors,
        }
        data: dict[str, Any] = {}
        if text is not None:
            data |= self.tokenizer(text, max_length=max_length or limit, **settings)
        if descriptions is not None:
            length = max_length or self.description_length or limit
            several = [descriptions] if isinstance(descriptions, str) else list(descriptions)
            tokens = self.tokenizer(several, max_length=length, **settings)
            data["description_ids"] = tokens["input_ids"]
        if images is not None:
            data |= self.image_processor(images, return_tensors=return_tensors)
        return BatchFeature(data)

    def boxes_in_pixels(self, pred_boxes: Any, sizes: Sequence[tuple[int, int]]) -> list[Any]:
        """`pred_boxes` [B, Q, 4] of the model as (left, top, right, bottom) [Q, 4] of each picture.

        `sizes`: (height, width) of each upright picture. Boxes stay within what the model saw.
        """
        found = []
        for boxes, (height, width) in zip(pred_boxes, sizes, strict=True):
            left, top, right, bottom = self.image_processor.seen_area(height, width)
            scale = boxes.new_tensor([right - left, bottom - top] * 2)
            corners = boxes[:, [0, 1, 0, 1]] + boxes[:, [2, 3, 2, 3]] * boxes.new_tensor(
                [-0.5, -0.5, 0.5, 0.5]
            )
            found.append(corners.clamp(0, 1) * scale + boxes.new_tensor([left, top] * 2))
        return found


class GrainZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """As its base class, with these differences.

    Without `hypothesis_template` the prompts are the model's own; of several, the mean embedding
    stands for a label. Long texts are cut.
    """

    def check_model_type(self, supported_models: Any) -> None:
        """Every model that names this class in its configuration is meant for it."""

    def preprocess(
        self,
        image: Any,
        candidate_labels: Any = None,
        hypothesis_template: str | list[str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Raises ValueError without labels, or for a template without one "{}"."""
        if isinstance(candidate_labels, str) or not candidate_labels:
            raise ValueError(f"candidate_labels must be a list of texts; got {candidate_labels!r}.")
        templates = hypothesis_template or self.model.config.templates
        templates = [templates] if isinstance(templates, str) else templates
        if odd := [template for template in templates if template.count("{}") != 1]:
            raise ValueError(f"A template needs one {{}} for the label; got {odd[0]!r}.")
        labels = [template.replace("{}", x) for template in templates for x in candidate_labels]
        # Before the base class does, which drops transparency and clips 16 bits.
        if isinstance(image, str) and Path(image).is_file():
            image = Image.open(image)
        if isinstance(image, Image.Image):
            image = upright_rgb(image)
        last = self.model.config.text["pooling"] == "last"
        settings = {"truncation": True, "padding": "max_length" if last else "longest"}
        inputs = super().preprocess(image, labels, "{}", timeout=timeout, tokenizer_kwargs=settings)
        inputs["candidate_labels"] = candidate_labels
        return inputs

    def _forward(self, model_inputs: Any) -> Any:
        labels, texts = model_inputs.pop("candidate_labels"), model_inputs.pop("text_inputs")[0]
        if isinstance(texts, list | tuple):  # a batch, whose pictures share their labels
            texts = texts[0]
        num_labels = len(labels[0] if isinstance(labels[0], list | tuple) else labels)
        output = self.model(**texts, **model_inputs)
        by_template = output.text_embeds.unflatten(0, (-1, num_labels))
        prompts = F.normalize(by_template.mean(dim=0), dim=-1)
        logits = self.model.logit_scale() * output.image_embeds @ prompts.T
        return {"candidate_labels": labels, "logits": logits}


def upright_rgb(image: Picture) -> Image.Image:
    """Turned as its EXIF data says; 16 bit gray is scaled, transparency shown on white."""
    if not isinstance(image, Image.Image):
        return _of_array(np.asarray(image))
    turn = TURNS.get(_orientation(image))
    image = _of_mode(image)
    return image if turn is None else image.transpose(turn)


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
    if image.mode.startswith("I"):  # which Pillow would clip instead of scaling
        values = np.asarray(image).astype(np.int64)
        gray = values >> 8 if values.max() > 255 else values
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
