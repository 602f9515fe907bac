"""The training step of open_clip's CLIP at the sizes of a configuration, from the installed package
`open_clip_torch`.
"""

import importlib
from typing import Any

from grain_jax.benchmarking.torch_peer import POSITIONS, TorchStep, import_torch
from grain_jax.config import TrainConfig

NEEDS = "pip install open_clip_torch, with a torchvision that is built for this torch"


def problems(config: TrainConfig) -> list[str]:
    """Settings that open_clip's plain CLIP cannot have, as "name = value; it has ..."."""
    model = config.model
    fixed: dict[str, tuple[Any, Any]] = {
        "loss.image_caption": (config.loss.image_caption, "softmax"),
        "model.type": (model.type, "clip"),
        "model.vision.pooling": (model.vision.pooling, "cls"),
        "model.text.causal": (model.text.causal, True),
        "model.text.pooling": (model.text.pooling, "end"),
    }
    found = [
        f"{name} = {have!r}; it has {its!r}" for name, (have, its) in fixed.items() if have != its
    ]
    if config.data.caption_length > POSITIONS:
        found.append(f"captions of {config.data.caption_length} tokens; it has {POSITIONS}")
    if model.vision.width % model.vision.num_heads:
        found.append("model.vision.num_heads, which does not divide the width")
    return found


def check_settings(config: TrainConfig) -> None:
    """Raises ValueError for settings that describe another model than open_clip's CLIP can be."""
    if found := problems(config):
        raise ValueError(
            f"--open_clip: its CLIP cannot be this model: {'; '.join(found)}. Change these "
            "settings (as in configs/clip_vitb16_cc12m.py), or leave --open_clip out."
        )


class OpenClipStep(TorchStep):
    """Its CLIP, contrastive loss, and AdamW; of `turns.Peer`.

    Raises ValueError where the package cannot be imported, or the settings describe another model.
    """

    name = "open_clip"

    def __init__(self, config: TrainConfig) -> None:
        check_settings(config)
        torch = import_torch("--open_clip")
        try:
            # Not the package's factory: of its parts these need least of what it imports.
            models = importlib.import_module("open_clip.model")
            losses = importlib.import_module("open_clip.loss")
        except (ImportError, RuntimeError) as error:
            raise ValueError(
                f"--open_clip: open_clip could not be imported ({error}). It needs {NEEDS}; its "
                "model imports torchvision, and cannot be had without it."
            ) from error
        super().__init__(torch, config)
        model, optim = config.model, config.optim
        vision, text = model.vision, model.text
        quick = vision.activation == "quick_gelu"
        self.model = models.CLIP(
            embed_dim=model.embed_dim,
            vision_cfg={
                "image_size": model.image_size,
                "patch_size": vision.patch_size,
                "width": vision.width,
                "layers": vision.depth,
                "mlp_ratio": vision.mlp_ratio,
                "head_width": vision.width // vision.num_heads,
            },
            text_cfg={
                "context_length": POSITIONS,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.num_heads,
                "layers": text.depth,
                "mlp_ratio": text.mlp_ratio,
            },
            quick_gelu=quick,
        )
        self.model.to(self.device).train()
        self.loss = losses.ClipLoss()
        weights = list(self.model.parameters())
        self.parameters = sum(weight.numel() for weight in weights)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
                {"params": [w for w in weights if w.ndim >= 2], "weight_decay": optim.weight_decay},
            ],
            lr=1e-6,
            betas=(optim.beta1, optim.beta2),
            eps=1e-8,
        )
        self.differences = tuple(_differences(config, quick=quick))

    def run(self) -> None:
        """Starts one step."""
        with self.precision():
            image, text, scale = self.model(self.images, self.captions)[:3]
            loss = self.loss(image, text, scale)
        self.finish(loss, self.optimizer)


def _differences(config: TrainConfig, *, quick: bool) -> list[str]:
    found = ["open_clip: a norm before the first layer of the image tower"]
    if config.model.vision.pre_norm:
        found.clear()
    if config.model.vision.qk_norm:
        found.append("open_clip: no norm of q and k (model.vision.qk_norm=false here for the same)")
    both = "quick_gelu" if quick else "gelu"
    for tower in ("vision", "text"):
        here = getattr(config.model, tower).activation
        if here != both:
            found.append(f"open_clip: {both} in both towers; model.{tower}.activation = {here}")
    if config.data.caption_length != POSITIONS:
        found.append(
            f"open_clip: captions of {POSITIONS} tokens; here {config.data.caption_length}"
        )
    return found
