"""The training step of the official GRAIN code, from a checkout of it.

That is github.com/shaunak27/grain-clip. Its modules and losses are imported and built at the sizes
of a configuration; nothing of it is part of this project.

Its step is what its `train.py` does with a batch, but for the loader, the learning rate and fp16:
forward, the three losses, backward, AdamW with its own groups, and the clamped scale. Each text has
77 positions there, whatever the settings say.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from grain_jax.benchmarking.torch_peer import POSITIONS, TorchStep, import_torch
from grain_jax.config import TrainConfig

COMMIT = "c6bf85e"  # what this was written for
NEEDED = {  # file of the checkout -> what is used of it
    "clip/custom_models.py": ("VisionTransformer", "CLIP"),
    "model/tfm.py": ("Cross_Attention", "ObjDecoder"),
    "model/box_utils.py": ("HungarianMatcher", "SetCriterion", "compute_box_loss"),
    "model/losses.py": ("CLIPLoss", "WordContrastiveLoss"),
    "utils/train_utils.py": ("optim_policy",),
    "configs/cc_config.py": ("max_boxes",),
}
WIDTH = 512  # of its decoder and embeddings
PIXELS = 224  # a side of the frame that its boxes are given in
CLASSES = 22_047  # of its class head, which is computed and not trained
PACKAGES = ("clip", "model", "utils", "configs")


def problems(config: TrainConfig) -> list[str]:
    """Settings that the official modules cannot have, as "name = value; it has ..."."""
    model, data = config.model, config.data
    vision, text, decoder = model.vision, model.text, model.decoder
    fixed: dict[str, tuple[Any, Any]] = {
        "loss.image_caption": (config.loss.image_caption, "softmax"),
        "model.type": (model.type, "grain"),
        "model.embed_dim": (model.embed_dim, WIDTH),
        "model.vision.qk_norm": (vision.qk_norm, True),
        "model.vision.activation": (vision.activation, "gelu"),
        "model.vision.pooling": (vision.pooling, "cls"),
        "model.vision.pre_norm": (vision.pre_norm, False),
        "model.vision.patch_bias": (vision.patch_bias, True),
        "model.vision.mlp_ratio": (vision.mlp_ratio, 4.0),
        "model.text.activation": (text.activation, "quick_gelu"),
        "model.text.mlp_ratio": (text.mlp_ratio, 4.0),
        "model.text.causal": (text.causal, True),
        "model.text.pooling": (text.pooling, "end"),
        "model.decoder.width": (decoder.width, WIDTH),
    }
    found = [
        f"{name} = {have!r}; it has {its!r}" for name, (have, its) in fixed.items() if have != its
    ]
    longest = max(data.caption_length, data.description_length)
    if longest > POSITIONS:
        found.append(f"texts of {longest} tokens; it has {POSITIONS}")
    return found


def check_settings(config: TrainConfig) -> None:
    """Raises ValueError for settings that describe another model than the official code can be."""
    if found := problems(config):
        raise ValueError(
            f"--official: its modules cannot be this model: {'; '.join(found)}. Change these "
            "settings, or leave --official out."
        )


class OfficialStep(TorchStep):
    """The step of a checkout; of `turns.Peer`.

    Raises ValueError where the checkout is not what is expected, something that it imports is not
    installed, or the settings describe a model that it cannot be.
    """

    name = "official"

    def __init__(self, checkout: Path, config: TrainConfig) -> None:
        check_settings(config)
        torch = import_torch("--official")
        modules = load_modules(checkout)
        if (most := modules["configs/cc_config.py"].max_boxes) != config.data.max_regions:
            raise ValueError(
                f"--official={checkout}: configs/cc_config.py has max_boxes = {most}, and "
                f"data.max_regions = {config.data.max_regions}; make them the same."
            )
        super().__init__(torch, config)
        _join_alone(torch)
        self._modules = modules
        self.backbone, self.decoder = _build(torch, modules, config)
        self.backbone.to(self.device).train()
        self.decoder.to(self.device).train()
        boxes = modules["model/box_utils.py"]
        weights = {"loss_bbox_all_boxes": 1.0, "loss_giou_all_boxes": 1.0}
        matcher = boxes.HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
        self.criterion = boxes.SetCriterion(
            CLASSES,
            matcher=matcher,
            weight_dict=weights,
            eos_coef=0.1,
            losses=["boxes", "cardinality"],
        ).to(self.device)
        losses = modules["model/losses.py"]
        self.contrast, self.words = losses.CLIPLoss(), losses.WordContrastiveLoss()
        optim = config.optim
        groups = modules["utils/train_utils.py"].optim_policy(
            self.backbone, self.decoder, optim.learning_rate, optim.weight_decay
        )
        self.optimizer = torch.optim.AdamW(
            groups, lr=1e-6, betas=(optim.beta1, optim.beta2), eps=1e-8
        )
        self.parameters = sum(
            weight.numel()
            for module in (self.backbone, self.decoder)
            for weight in module.parameters()
        )
        self.queries = config.model.decoder.num_queries
        # Pixels of its frame, x0 y0 x1 y1, as its loader gives them.
        center, size = self.boxes[..., :2], self.boxes[..., 2:]
        corners = torch.cat([center - size / 2, center + size / 2], -1)
        self.corners = corners * PIXELS * self.region_mask[..., None]
        self.present = self.region_mask.flatten().long()
        self.real = self.descriptions.flatten(0, 1)[self.region_mask.flatten()]
        self.classes = torch.zeros(self.corners.shape[:2], device=self.device)
        self.differences = tuple(_differences(config))

    def run(self) -> None:
        """Starts one step."""
        with _cuda_is(self._torch, self.device):
            with self.precision():
                seen = self.backbone(
                    self.images,
                    self.captions,
                    self.real,
                    return_hidden_state=True,
                    use_desc_train=True,
                )
                boxes, image, regions = self.decoder(seen["image_embed"])
                scale = seen["logit_scale"]
                loss = self.contrast(image, seen["text_embed"], scale)["loss"]
                loss = loss + self._modules["model/box_utils.py"].compute_box_loss(
                    "all_boxes",
                    self.criterion,
                    boxes,
                    self.corners.clone(),
                    self.classes,
                    None,
                    n_queries=self.queries,
                )
                loss = (
                    loss
                    + self.words(
                        boxes,
                        seen["desc_embed"],
                        regions,
                        self.criterion,
                        self.corners.clone(),
                        self.queries,
                        self.present,
                        scale,
                    )["word_loss"]
                )
            self.finish(loss, self.optimizer)
            self.backbone.logit_scale.data.clamp_(0, 4.6052)


def _build(torch: Any, modules: dict[str, ModuleType], config: TrainConfig) -> tuple[Any, Any]:
    """Its image and text towers, and its decoder, at the sizes of `config`."""
    model, towers = config.model, modules["clip/custom_models.py"]
    vision, text, decoder = model.vision, model.text, model.decoder

    def norm(width: int) -> Any:
        return torch.nn.LayerNorm(width, eps=1e-6)

    image_tower = towers.VisionTransformer(
        qk_norm=True,
        img_size=model.image_size,
        patch_size=vision.patch_size,
        embed_dim=vision.width,
        depth=vision.depth,
        num_heads=vision.num_heads,
        mlp_ratio=4,
        qkv_bias=True,
        norm_layer=norm,
        num_classes=0,
    )
    backbone = towers.CLIP(
        embed_dim=model.embed_dim,
        vision_width=vision.width,
        vision_model=image_tower,
        context_length=POSITIONS,
        vocab_size=text.vocab_size,
        transformer_width=text.width,
        transformer_heads=text.num_heads,
        transformer_layers=text.depth,
    )
    transformer = modules["model/tfm.py"].Cross_Attention(
        d_model=decoder.width,
        nhead=decoder.num_heads,
        num_decoder_layers=decoder.depth,
        dim_feedforward=decoder.mlp_dim,
        dropout=decoder.dropout,
        normalize_before=True,
        return_intermediate_dec=True,
    )
    return backbone, modules["model/tfm.py"].ObjDecoder(
        transformer=transformer,
        num_classes=CLASSES,
        num_queries=decoder.num_queries + 1,
        aux_loss=True,
        pred_traj=True,
        feature_dim=vision.width,
        self_attn=False,
    )


def _differences(config: TrainConfig) -> Iterator[str]:
    lengths = {
        "captions": config.data.caption_length,
        "descriptions": config.data.description_length,
    }
    for texts, length in lengths.items():
        if length != POSITIONS:
            yield f"official: {texts} of {POSITIONS} positions; here {length}"
    yield "official: a class head of 22,048 classes, and other parameters that are never trained"
    yield "official: matching on the host, of all layers, twice a step"


def load_modules(checkout: Path) -> dict[str, ModuleType]:
    """The files of `NEEDED` as modules, by path.

    Raises ValueError where one is missing, lacks what is used of it, or cannot be imported.
    """
    missing = [file for file in NEEDED if not (checkout / file).is_file()]
    if missing:
        raise ValueError(
            f"--official={checkout} is not a checkout of the official code: it has no "
            f"{', '.join(missing)}. Expected github.com/shaunak27/grain-clip at {COMMIT}."
        )
    modules = {}
    with _importable(checkout):
        for file, names in NEEDED.items():
            try:
                modules[file] = _module(checkout, file)
            except (ImportError, RuntimeError, AttributeError) as error:
                raise ValueError(
                    f"--official={checkout}: {file} could not be imported ({error}). It needs "
                    "torch, torchvision for that torch, timm (0.9.12 is what it was written for), "
                    "scipy and packaging."
                ) from error
            if absent := [name for name in names if not hasattr(modules[file], name)]:
                raise ValueError(
                    f"--official={checkout}: {file} has no {', '.join(absent)}. Expected "
                    f"github.com/shaunak27/grain-clip at {COMMIT}."
                )
    return modules


def _module(checkout: Path, file: str) -> ModuleType:
    """By its name in the checkout; a file of `clip` alone, as that package imports much besides."""
    name = file.removesuffix(".py").replace("/", ".")
    if not file.startswith("clip/"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("official_clip_models", checkout / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _importable(checkout: Path) -> Iterator[None]:
    """Puts the checkout first on the path, with none of its packages imported from elsewhere."""
    for name in list(sys.modules):
        if name.partition(".")[0] in PACKAGES:
            del sys.modules[name]
    sys.path.insert(0, str(checkout.resolve()))
    before = list(sys.path)
    try:
        yield
    finally:
        extra = [entry for entry in sys.path if entry not in before]  # it appends "../"
        sys.path[:] = [e for e in sys.path if e != str(checkout.resolve()) and e not in extra]


def _join_alone(torch: Any) -> None:
    """Makes a group of this process alone, which its contrastive loss gathers over."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


@contextlib.contextmanager
def _cuda_is(torch: Any, device: str) -> Iterator[None]:
    """Within it `Tensor.cuda`, which its targets call, leaves tensors on a CPU where they are."""
    if device == "cuda":
        yield
        return
    before = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        torch.Tensor.cuda = before
