"""OWL-ViT and OWLv2 (Minderer et al., 2022 and 2023) of `transformers`.

The heads compute in float32 whatever the number format of the towers: bfloat16 would move the
right edge of a 960 pixel image by up to 4 pixels. Embeddings of texts are kept, as descriptions of
a class come again with each of its images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from grain_jax.annotation.backends.detector import ScoredBoxes, check_batch
from grain_jax.annotation.backends.placement import (
    OFFICIAL_SIDE,
    PadToSquare,
    Placement,
    PreparedImage,
    Squash,
    canvas_to_image,
)
from grain_jax.annotation.backends.torch_parts import TorchParts, load_parts
from grain_jax.boxes import cxcywh_to_xyxy, pairwise_iou
from grain_jax.data.transforms import Pixels

KEPT_TEXTS = 20_000  # embeddings; 512 floats of each take 40 MB
TEXTS_AT_ONCE = 256


class OwlDetector:
    """An `ImageGuidedDetector`: every patch of the image proposes one box.

    Texts are cut after 16 tokens, the length that these models were trained with.

    Args:
        name: folder, or name on the Hugging Face hub.
        device, dtype: as in `load_parts`.
        official_images: squash each image to 224 pixels before anything else and do not pad it, as
            GRAIN's annotation code does. Small things are lost; it is there to compare with.
    """

    default_threshold = 0.3  # GRAIN's annotation code with OWLv2
    default_example_threshold = 0.6  # as the documentation of `transformers` has it

    def __init__(
        self,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        official_images: bool = False,
    ) -> None:
        self._parts = load_parts(name, device=device, dtype=dtype)
        self.name, self.revision, self.dtype = name, self._parts.revision, self._parts.dtype
        self._placement = _placement(self._parts, official_images)
        self._max_tokens = self._parts.model.config.text_config.max_position_embeddings
        self._embeddings: dict[str, Any] = {}

    def prepare(self, image: Pixels) -> PreparedImage:
        return self._placement(image)

    def reads_whole(self, text: str) -> bool:
        return len(self._parts.tokens(text, verbose=False).input_ids) <= self._max_tokens

    def detect(
        self, images: Sequence[PreparedImage], texts: Sequence[Sequence[str]]
    ) -> list[ScoredBoxes]:
        check_batch(images, texts)
        if not images:
            return []
        import torch

        unique = list(dict.fromkeys(text for each in texts for text in each))
        if not unique:
            queries = torch.zeros(0, 1, device=self._parts.device)
        else:
            queries = self._embed_texts(unique)
        places = {text: place for place, text in enumerate(unique)}
        columns = [[places[text] for text in each] for each in texts]
        return self._scored(images, queries, columns)

    def detect_embeddings(
        self, images: Sequence[PreparedImage], queries: Float[np.ndarray, "T E"]
    ) -> list[ScoredBoxes]:
        if not images:
            return []
        import torch

        asked = torch.from_numpy(np.asarray(queries, np.float32)).to(self._parts.device)
        return self._scored(images, asked, [list(range(len(queries)))] * len(images))

    def embed_examples(self, images: Sequence[PreparedImage]) -> Float[np.ndarray, "N E"]:
        import torch

        features, boxes = self._boxes(images)
        with torch.inference_mode():
            _, embeddings = self._parts.model.class_predictor(features)
        found = []
        for image, boxes_cxcywh, each in zip(images, boxes, embeddings, strict=True):
            boxes_xyxy = canvas_to_image(cxcywh_to_xyxy(boxes_cxcywh.cpu().numpy()), image.extent)
            cover = pairwise_iou(boxes_xyxy, np.array([[0, 0, 1, 1]], np.float32))[:, 0]
            found.append(each[int(cover.argmax())].cpu().numpy())
        stacked = np.stack(found)
        return stacked / np.maximum(np.linalg.norm(stacked, axis=-1, keepdims=True), 1e-12)

    def _boxes(self, images: Sequence[PreparedImage]) -> tuple[Any, Any]:
        """Features [B, P, D] and boxes (cxcywh of the canvas) [B, P, 4] of each patch."""
        parts = self._parts
        with parts.computing():
            feature_map = parts.model.image_embedder(parts.pixel_values(images))[0].float()
        import torch

        with torch.inference_mode():
            features = feature_map.flatten(1, 2)
            return features, parts.model.box_predictor(features, feature_map)

    def _scored(
        self, images: Sequence[PreparedImage], queries: Any, columns: Sequence[Sequence[int]]
    ) -> list[ScoredBoxes]:
        """`columns`: which of the queries belong to each image."""
        import torch

        features, boxes = self._boxes(images)
        width = max(map(len, columns))
        scores = np.zeros((*features.shape[:2], width), np.float32)
        if width:  # shorter lists are filled up; those scores are cut off below
            filled = [[*each, *[0] * (width - len(each))] for each in columns]
            with torch.inference_mode():
                chosen = queries[torch.tensor(filled, device=queries.device)]
                logits, _ = self._parts.model.class_predictor(features, chosen)
                scores = logits.sigmoid().cpu().numpy()
        boxes_xyxy = cxcywh_to_xyxy(boxes.cpu().numpy())
        return [
            ScoredBoxes(canvas_to_image(found, image.extent), each[:, : len(asked)])
            for image, found, each, asked in zip(images, boxes_xyxy, scores, columns, strict=True)
        ]

    def _embed_texts(self, texts: Sequence[str]) -> Any:
        """Float32 [N, E] on the device."""
        import torch

        new = [text for text in texts if text not in self._embeddings]
        if len(self._embeddings) + len(new) > KEPT_TEXTS:
            self._embeddings.clear()
            new = list(texts)
        for start in range(0, len(new), TEXTS_AT_ONCE):
            some = new[start : start + TEXTS_AT_ONCE]
            for text, embedding in zip(some, self._text_tower(some), strict=True):
                self._embeddings[text] = embedding
        return torch.stack([self._embeddings[text] for text in texts])

    def _text_tower(self, texts: Sequence[str]) -> Any:
        parts = self._parts
        tokens = parts.tokens(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(parts.device)
        towers = getattr(parts.model, parts.model.base_model_prefix)
        with parts.computing():
            pooled = towers.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )[1]
            return towers.text_projection(pooled).float()


def _placement(parts: TorchParts, official_images: bool) -> Placement:
    size, interpolation = parts.preprocessor.size, parts.interpolation
    height, width = int(size["height"]), int(size["width"])
    if official_images:
        return Squash(height, width, interpolation, via=OFFICIAL_SIDE)
    if parts.model.config.model_type == "owlv2":
        if height != width:
            raise ValueError(f"The preprocessor of an OWLv2 has a size of {height} x {width}.")
        return PadToSquare(height, interpolation)
    return Squash(height, width, interpolation)
