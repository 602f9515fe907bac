"""Every setting of a run, as plain typed dataclasses. The demo is in `data/synthetic_birds`.

A config file is a Python file with `get_config(variant="")` that returns a `TrainConfig`; any field
can be overridden on the command line (`--config.optim.learning_rate=3e-4`). `validate` is called
once, before the first compile, and speaks to the user. Nothing reads a default from anywhere else.

Shape letters used in every signature of the package:
B batch, P image tokens (patches + CLS), L text tokens, Q region queries, M regions of an image,
D width, E embedding, K classes, N images or texts of a set, T texts.
"""

import dataclasses
from dataclasses import dataclass, field

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class VisionConfig:
    """Vision transformer. Defaults: ViT-B/16 as the official GRAIN builds it."""

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qk_norm: bool = True  # LayerNorm on q and k of each head
    activation: str = "gelu"  # "gelu" (exact) | "quick_gelu" (OpenAI's CLIP) | "gelu_tanh"
    norm_eps: float = 1e-6
    # The next three are those of pretrained towers, see `init` below.
    patch_bias: bool = True  # CLIP: False
    pre_norm: bool = False  # LayerNorm on the tokens before the first layer (CLIP: True)
    pooling: str = "cls"  # a CLS token | "map": none, and in kind "clip" attention pools (SigLIP)
    position_init: str = "normal"  # (std 0.02) | "sincos" (2-D, amplitude 1); learned either way
    init: str = "torch"  # "torch" (nn.Linear's uniform, as official) | "xavier"


@dataclass
class TextConfig:
    """Text transformer; one tower for captions and descriptions. Defaults: CLIP's."""

    vocab_size: int = 49408
    context_length: int = 77  # rows of the position table; batches may be shorter (DataConfig)
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    causal: bool = True  # SigLIP: False
    pooling: str = "end"  # end-of-text, the highest id | "last": the last of all positions (SigLIP)
    projection_bias: bool = False  # SigLIP: True
    token_init_std: float = 0.02


@dataclass
class DecoderConfig:
    """DETR-style decoder: `num_queries` region queries and, last, one image query."""

    width: int = 512
    depth: int = 6
    num_heads: int = 8
    mlp_dim: int = 2048
    dropout: float = 0.1
    num_queries: int = 5  # region queries; the image query comes on top
    memory_position: str = "none"  # (official) | "sincos": 2-D position added to the memory's keys
    share_projection: bool = False  # one matrix for image and region embeddings instead of two


@dataclass
class ModelConfig:
    """The two towers, the decoder between them, and how they are computed."""

    kind: str = "grain"  # "grain" | "clip" (same towers, CLS token, no decoder)
    image_size: int = 224
    embed_dim: int = 512
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    dtype: str = "bfloat16"  # compute; parameters are always float32
    scan_layers: bool = False  # one compiled layer, not `depth`: fast compile, stacked parameters
    remat: str = "none"  # "none" | "dots" (keep matmul outputs) | "full"
    attention: str = (
        "auto"  # "xla" | "cudnn" (flash; GPU and bfloat16 only) | "auto": cudnn where it applies
    )
    description_capacity: float = 1.0  # share of a batch's B * M descriptions encoded, real first
    init_logit_scale: float = 1 / 0.07
    max_logit_scale: float = 100.0
    region_logit_scale: str = "shared"  # (official) | "own": a learned scale for regions


@dataclass
class LossConfig:
    """Weights, and the named differences from the official loss (`faithful_loss`)."""

    contrastive_weight: float = 1.0
    box_weight: float = 1.5  # of (L1 + 1 - GIoU); official: divided by len(weights)/3, so 3/2
    region_weight: float = 1.0
    auxiliary_box_weight: float = 0.0  # on earlier decoder layers; official computes, never adds
    image_description_weight: float = 0.0  # image embedding against its own descriptions
    match_l1_cost: float = 5.0
    match_giou_cost: float = 2.0
    duplicate_captions: str = "mask"  # equal captions are no negatives | "negative" (official)
    duplicate_descriptions: str = "mask"  # likewise for descriptions
    region_labels: str = "aligned"  # "aligned" | "official": labels shift after a degenerate box
    empty_batch: str = "zero"  # "zero" loss without boxes | "nan" (official 0/0)


@dataclass
class WorldConfig:
    """The embedded procedural world (no files). A picture is a function of (seed, split, index)."""

    level: str = "easy"  # | "hard" (flips, strong backgrounds, several creatures, more phrasings)
    num_train_images: int = 16_000
    num_eval_images: int = 1_500  # of each evaluation set
    seed: int = 0  # of the world, not of the run: species, names and pictures


@dataclass
class DataConfig:
    """What is read, how a picture and its texts become arrays, and by how many workers."""

    source: str = "world"  # "world" | "records" (a folder written by `python -m grain_jax.prepare`)
    directory: str = ""  # of "records"
    train_split: str = "train"  # of "records"; the world trains on nothing else
    allow_no_regions: bool = False  # train GRAIN where no image has a box: image embedding only
    # Of "records" only, for retrieval, grounding and keep-best; "" = none. The world has its own.
    eval_split: str = "validation"
    world: WorldConfig = field(default_factory=WorldConfig)
    resize: str = "squash"  # (official) | "crop": random in training, centre in evaluation
    crop_min_area: float = 0.5  # of "crop": smallest area, of the largest square; from 0.01
    flip_probability: float = 0.0  # horizontal flip in training, boxes with it
    interpolation: str = "bicubic"  # "bicubic" | "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    tokenizer: str = "clip"  # "clip" | "world" | a transformers name or folder
    caption_length: int = 77  # static token lengths, end-of-text kept
    description_length: int = 32
    max_regions: int = 5  # M, best by score
    region_nms_iou: float = 1.0  # drop boxes that overlap a better one more; 1 = off (official)
    unique_descriptions: bool = False  # keep each description once an image
    synthetic_caption_probability: float = 0.5  # of an MLLM caption where there are both kinds
    region_caption_probability: float = 0.0  # of all region descriptions as the caption (a control)
    num_workers: int = 0  # loader processes; 0 = threads of this process
    num_threads: int = 2  # that make batches, in each of these processes
    prefetch_batches: int = 4  # made ahead by all of them, at least one by each thread
    cache: str = "none"  # "memory": keep decoded images, in this process (num_workers = 0)


@dataclass
class OptimConfig:
    """AdamW with linear warm-up and cosine decay; defaults as the official recipe."""

    learning_rate: float = 1e-3
    warmup_epochs: float = 1.0
    warmup_steps: int = 0  # instead of warmup_epochs when > 0
    warmup_start: float = 1e-6
    final_learning_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: str = "matrices"  # 2 or more dimensions | "official": its name-based groups
    clip_grad_norm: float = 0.0  # 0 = off (official)
    # "PATTERN=FACTOR" on the rate of parameters by name, as "vision/*=0.1"; the first that matches
    # counts, and 0 freezes.
    rate_factors: tuple[str, ...] = ()
    accumulate: int = 1  # micro-batches of a step; negatives stay those of the whole batch
    ema_decay: float = 0.0  # 0 = off; evaluation and export use the average when on
    max_bad_steps: int = 20  # stop after so many skipped (non-finite) steps in a row


@dataclass
class MeshConfig:
    """Sizes of the device mesh; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    cpu_devices: int = 0  # on CPU only: host devices to make; 0 = as many as the axes name


@dataclass
class CheckpointConfig:
    """When the state of a run is saved, and which saves are kept."""

    every_steps: int = 1_000
    keep: int = 2  # newest
    keep_best: bool = True  # by evaluation.best_metric; nothing to do if evaluation.every_steps = 0
    asynchronous: bool = True


@dataclass
class EvaluationConfig:
    """What is measured during a run and at its end."""

    every_steps: int = 0  # 0 = only at the end
    batch_size: int = 256
    max_images: int = 1_000  # of each held-out set, during training; the end uses all
    alphas: tuple[float, ...] = (1.0, 0.5, 0.25, 0.0)
    region_score: str = "descriptions"  # mean of their best queries | "queries": official, reversed
    name_ensemble: str = "embedding"  # mean over templates, unit length | "cosine": official
    zero_shot: tuple[str, ...] = ()  # folders of labelled images to classify, at the end
    # Folders to classify every `every_steps` too: test sets looked at while the model is made
    zero_shot_during_training: tuple[str, ...] = ()
    # For checkpoint.keep_best, so it needs every_steps; "" = the source's own choice. No test set,
    # unless zero_shot_during_training names it
    best_metric: str = ""
    num_pictures: int = 12  # of grounding.png and its further pages


@dataclass
class LoggingConfig:
    """Where figures go besides `metrics.jsonl`, which is always written."""

    every_steps: int = 50
    tensorboard: bool = True
    wandb: bool = False  # needs the package wandb
    wandb_project: str = "grain_jax"
    compilation_cache: str = "auto"  # a folder | "auto" (user cache) | "off"
    profile_step: int = -1  # write a profiler trace of 5 steps from here; -1 = none


@dataclass
class TrainConfig:
    """A whole run."""

    name: str = "grain"
    seed: int = 0
    batch_size: int = 2048  # global
    epochs: float = 35.0
    steps: int = 0  # instead of epochs when > 0
    stop_at_step: int = 0  # end early, with the schedule of the whole run; 0 = off
    # Trained weights to start from (see `grain_jax.loading.load`); what model.vision, model.text
    # and the data's tokenizer and normalisation leave at their defaults comes with them. "" = none
    init: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


VISION_VARIANTS = {
    "S/16": VisionConfig(patch_size=16, width=384, depth=12, num_heads=12),
    "B/16": VisionConfig(patch_size=16, width=768, depth=12, num_heads=12),
    "L/14": VisionConfig(patch_size=14, width=1024, depth=24, num_heads=16),
}


def vision_variant(name: str) -> VisionConfig:
    """A published size by name: S/16, B/16 or L/14 (as the official code builds them)."""
    if name not in VISION_VARIANTS:
        raise ValueError(
            f"Unknown vision variant {name!r}; choose one of {sorted(VISION_VARIANTS)}."
        )
    return dataclasses.replace(VISION_VARIANTS[name])


def faithful_loss() -> LossConfig:
    """The official code's effective loss on one device, quirks included."""
    return LossConfig(
        duplicate_captions="negative",
        duplicate_descriptions="negative",
        region_labels="official",
        empty_batch="nan",
    )
