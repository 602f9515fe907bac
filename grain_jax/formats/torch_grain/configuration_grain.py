"""Configuration of GRAIN, and of the CLIP baseline with the same towers."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

VISION = {
    "patch_size": 16,
    "width": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qk_norm": True,
    "activation": "gelu",
    "norm_eps": 1e-6,
    "patch_bias": True,
    "pre_norm": False,  # LayerNorm on the tokens before the first layer (CLIP: True)
    "pooling": "cls",  # "map": no CLS token; with type "clip", attention pooling (SigLIP)
}
TEXT = {
    "vocab_size": 49_408,
    "context_length": 77,
    "width": 512,
    "depth": 12,
    "num_heads": 8,
    "mlp_ratio": 4.0,
    "activation": "quick_gelu",
    "norm_eps": 1e-5,
    "causal": True,
    "pooling": "end",  # end-of-text, the highest id; "last": the last position (SigLIP)
    "projection_bias": False,
}
DECODER = {
    "width": 512,
    "depth": 6,
    "num_heads": 8,
    "mlp_dim": 2_048,
    "dropout": 0.1,
    "num_queries": 5,
    "share_projection": False,
}
TYPES = ("grain", "clip")
LOSSES = ("softmax", "sigmoid")
# Names and values in exports made before version 0.2, and their current ones.
OLDER_NAMES = {
    "kind": "type",
    "name_ensemble": "prompt_ensembling",
    "region_score": "region_aggregation",
}
OLDER_VALUES = {
    "cosine": "score",
    "descriptions": "max_over_queries",
    "queries": "max_over_descriptions",
}


class GrainConfig(PretrainedConfig):
    """Configuration of a `GrainModel`.

    `vision`, `text` and `decoder` are dictionaries; absent keys take the values of ViT-B/16. Raises
    ValueError for an unknown key or type.
    """

    model_type = "grain"

    def __init__(
        self,
        type: str = "grain",  # "grain" | "clip": no decoder, the CLS token is pooled
        image_size: int = 224,
        embed_dim: int = 512,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        init_logit_scale: float = 1 / 0.07,  # of newly initialized weights
        # Loss of images and captions: "softmax" | "sigmoid", whose logits have a bias (SigLIP)
        image_caption: str = "softmax",
        init_sigmoid_scale: float = 10.0,  # with "sigmoid", in place of init_logit_scale
        init_logit_bias: float = -10.0,
        max_logit_scale: float = 100.0,
        region_logit_scale: str = "shared",  # "shared" | "own"
        templates: Sequence[str] = ("a photo of a {}.",),  # prompts of class names, averaged
        prompt_ensembling: str = "embedding",  # normalized mean embedding | "score": mean cosine
        # Mean over descriptions of the maximum over queries | "max_over_descriptions": the reverse
        region_aggregation: str = "max_over_queries",
        description_length: int | None = None,  # in tokens; None: that of texts
        regions_trained: bool = True,  # False: region embeddings are untrained, and None
        boxes_trained: bool = True,  # False: boxes are untrained, and None
        **kwargs: Any,
    ) -> None:
        older = {now: kwargs.pop(name) for name, now in OLDER_NAMES.items() if name in kwargs}
        older = {now: OLDER_VALUES.get(value, value) for now, value in older.items()}
        self.type = older.get("type", type)
        if self.type not in TYPES:
            raise ValueError(f"type={self.type!r}; choose one of {TYPES}.")
        if image_caption not in LOSSES:
            raise ValueError(f"image_caption={image_caption!r}; choose one of {LOSSES}.")
        self.image_size = image_size
        self.embed_dim = embed_dim
        self.vision = _complete("vision", vision, VISION)
        self.text = _complete("text", text, TEXT)
        self.decoder = _complete("decoder", decoder, DECODER)
        self.init_logit_scale = init_logit_scale
        self.image_caption = image_caption
        self.init_sigmoid_scale = init_sigmoid_scale
        self.init_logit_bias = init_logit_bias
        self.max_logit_scale = max_logit_scale
        self.region_logit_scale = region_logit_scale
        self.templates = list(templates)
        self.prompt_ensembling = older.get("prompt_ensembling", prompt_ensembling)
        self.region_aggregation = older.get("region_aggregation", region_aggregation)
        self.description_length = description_length
        self.regions_trained = regions_trained
        self.boxes_trained = boxes_trained
        super().__init__(**kwargs)


def _complete(part: str, given: dict[str, Any] | None, default: dict[str, Any]) -> dict[str, Any]:
    given = dict(given or {})
    if given.get("memory_position") == "none":  # in exports made before version 0.2
        del given["memory_position"]
    unknown = sorted(set(given) - set(default))
    if unknown:
        raise ValueError(f"{part} has no {unknown[0]!r}; it has {', '.join(default)}.")
    return default | given
