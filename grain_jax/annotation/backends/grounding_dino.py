"""Grounding DINO (Liu et al., 2023) and MM-Grounding-DINO of `transformers`."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from grain_jax.annotation.backends.detector import ScoredBoxes, check_batch
from grain_jax.annotation.backends.placement import PreparedImage, ShortestEdge, canvas_to_image
from grain_jax.annotation.backends.prompts import (
    SPECIAL_TOKENS,
    Offset,
    Prompt,
    build_prompts,
    phrase_scores,
    prompt_phrase,
)
from grain_jax.annotation.backends.torch_parts import load_parts
from grain_jax.boxes import cxcywh_to_xyxy
from grain_jax.data.transforms import Pixels

Job = tuple[int, Prompt]  # number of the image, and one of its prompts


class GroundingDinoDetector:
    """A `Detector`. Long lists of texts take several passes of at most 256 tokens.

    Only images of one size are computed together: padding one would change what is found in it.

    Args:
        name: folder, or name on the Hugging Face hub.
        device, dtype: as in `load_parts`.
        official_images: refused; GRAIN's annotation code uses OWLv2.
    """

    default_threshold = 0.25  # the default of `transformers`

    def __init__(
        self,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        official_images: bool = False,
    ) -> None:
        if official_images:
            raise ValueError(
                f"{name!r} is a Grounding DINO, and the official annotation code uses OWLv2; give "
                "an OWLv2, or another --selection."
            )
        self._parts = load_parts(name, device=device, dtype=dtype)
        self.name, self.revision, self.dtype = name, self._parts.revision, self._parts.dtype
        size = self._parts.preprocessor.size
        self._placement = ShortestEdge(
            int(size["shortest_edge"]), int(size["longest_edge"]), self._parts.interpolation
        )
        self._max_tokens = self._parts.model.config.max_text_len

    def prepare(self, image: Pixels) -> PreparedImage:
        return self._placement(image)

    def reads_whole(self, text: str) -> bool:
        length = len(self._offsets(prompt_phrase(text)))
        return length + SPECIAL_TOKENS + 1 <= self._max_tokens

    def detect(
        self, images: Sequence[PreparedImage], texts: Sequence[Sequence[str]]
    ) -> list[ScoredBoxes]:
        check_batch(images, texts)
        found: list[list[ScoredBoxes]] = [[] for _ in images]
        for jobs in self._batches(images, texts):
            for (number, _), scored in zip(jobs, self._pass(images, texts, jobs), strict=True):
                found[number].append(scored)
        return [_joined(each, len(asked)) for each, asked in zip(found, texts, strict=True)]

    def _batches(
        self, images: Sequence[PreparedImage], texts: Sequence[Sequence[str]]
    ) -> Iterator[list[Job]]:
        """Jobs that are computed together: images of one size, as many as were given."""
        by_size: dict[tuple[int, ...], list[Job]] = defaultdict(list)
        for number, (image, asked) in enumerate(zip(images, texts, strict=True)):
            for prompt in build_prompts(asked, self._offsets, limit=self._max_tokens):
                by_size[image.pixels.shape].append((number, prompt))
        for jobs in by_size.values():
            for start in range(0, len(jobs), len(images)):
                yield jobs[start : start + len(images)]

    def _pass(
        self, images: Sequence[PreparedImage], texts: Sequence[Sequence[str]], jobs: Sequence[Job]
    ) -> Iterator[ScoredBoxes]:
        import torch

        parts = self._parts
        tokens = parts.tokens(
            [prompt.text for _, prompt in jobs],
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        offsets = [_pairs(each) for each in tokens.pop("offset_mapping").tolist()]
        pixels = parts.pixel_values([images[number] for number, _ in jobs])
        shape = (len(jobs), *pixels.shape[-2:])
        with parts.computing():
            output = parts.model(
                pixel_values=pixels,
                pixel_mask=torch.ones(shape, dtype=torch.long, device=parts.device),
                **tokens.to(parts.device),
            )
        length = tokens.input_ids.shape[1]
        scores = output.logits[..., :length].float().sigmoid().cpu().numpy()
        boxes = cxcywh_to_xyxy(output.pred_boxes.float().cpu().numpy())
        for row, (number, prompt) in enumerate(jobs):
            each = phrase_scores(scores[row], prompt, offsets[row], len(texts[number]))
            yield ScoredBoxes(canvas_to_image(boxes[row], images[number].extent), each)

    def _offsets(self, text: str) -> list[Offset]:
        tokens = self._parts.tokens(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return _pairs(tokens.offset_mapping)


def _pairs(offsets: Sequence[Sequence[int]]) -> list[Offset]:
    return [(first, last) for first, last in offsets]


def _joined(passes: Sequence[ScoredBoxes], num_texts: int) -> ScoredBoxes:
    """The boxes of all passes of one image."""
    boxes = [np.zeros((0, 4), np.float32), *(each.boxes_xyxy for each in passes)]
    scores = [np.zeros((0, num_texts), np.float32), *(each.scores for each in passes)]
    return ScoredBoxes(np.concatenate(boxes), np.concatenate(scores))
