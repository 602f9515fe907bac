"""Every setting of a run, as plain typed dataclasses. The demo is in `data/synthetic_birds`.

A config file is a Python file with `get_config(variant="")` that returns a `TrainConfig`; any field
can be overridden on the command line (`--optim.learning_rate=3e-4`). `validate` is called
once, before the first compile, and speaks to the user. Nothing reads a default from anywhere else.

Shape letters used in every signature of the package:
B batch, P image tokens (patches + CLS), L text tokens, Q region queries, M regions of an image,
D width, E embedding, K classes, N images or texts of a set, T texts.
"""

import dataclasses
import difflib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from grain_jax.config.migration import REASONS, migrate_fields, renamed_to

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
Dataset = Literal["synthetic_birds", "tfds"]
Difficulty = Literal["easy", "hard"]
Interpolation = Literal["bicubic", "bilinear"]
ModelType = Literal["grain", "clip"]
PromptEnsembling = Literal["embedding", "score"]
RegionAggregation = Literal["max_over_queries", "max_over_descriptions"]
Resize = Literal["squash", "crop"]
Remat = Literal["none", "dots", "full"]
GradientDtype = Literal["compute", "float32"]
Preset = Literal["auto", "dp", "fsdp", "fsdp_tp"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


OF_VARIANT = ("region_labels", "empty_batch")  # two switches before: both off is "corrected"


class UnknownSettingError(AttributeError):
    """A field that no settings class has, or not under this name."""


class _TakesOlderNames(type):
    """Passes keywords of a settings class through `migrate_fields`; an unknown one is refused."""

    if not TYPE_CHECKING:  # type checkers know the fields

        def __call__(cls, *args: Any, **given: Any) -> Any:
            known = _names(cls)
            given = migrate_fields(given, known, section=_section(cls))
            for name in given:
                if name not in known:
                    raise _unknown(cls, name)
            return super().__call__(*args, **given)

        @property
        def __signature__(cls) -> inspect.Signature:
            signature = inspect.signature(cls.__init__)
            return signature.replace(parameters=[*signature.parameters.values()][1:])


class Settings(metaclass=_TakesOlderNames):
    """Fields with their names of today or of older versions; any other is refused when set.

    A mistyped name would change nothing otherwise.
    """

    if not TYPE_CHECKING:  # type checkers know the fields

        def __setattr__(self, name: str, value: Any) -> None:
            owner, known = type(self), _names(type(self))
            migrated = migrate_fields({name: value}, known, section=_section(owner))
            if name in OF_VARIANT and not migrated and self.variant != "corrected":
                raise UnknownSettingError(
                    f"{owner.__name__}.{name} = {value!r} does not undo variant = "
                    f"{self.variant!r}; set variant = 'corrected'."
                )
            for today, now in migrated.items():
                if today not in known:
                    raise _unknown(owner, today)
                super().__setattr__(today, now)

        def __getattr__(self, name: str) -> Any:
            raise _unknown(type(self), name)


def _names(owner: Any) -> list[str]:
    return [item.name for item in dataclasses.fields(owner)]


def _section(owner: type) -> str:
    """The last part of the path of a class's settings: "decoder", "" for the run."""
    if issubclass(owner, TrainConfig):
        return ""
    if owner is SyntheticBirdsConfig:
        return "world"
    return owner.__name__.removesuffix("Config").lower()


def _unknown(owner: type, name: str) -> UnknownSettingError:
    known = _names(owner)
    renamed = renamed_to(name, known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}? It has" if near else "; it has"
    if name in REASONS:
        hint = f": {REASONS[name]}; it has"
    elif renamed:
        hint = f", which is {' or '.join(renamed)} now; it has"
    return UnknownSettingError(
        f"{owner.__name__} has no setting {name!r}{hint} {', '.join(known)}."
    )


@dataclass
class VisionConfig(Settings):
    """Vision transformer. Defaults: ViT-B/16 as the official GRAIN builds it."""

    patch_size: int = 16  # side of a patch in pixels
    width: int = 768  # of the tokens
    depth: int = 12  # number of layers
    num_heads: int = 12  # of attention
    mlp_ratio: float = 4.0  # hidden size of the MLP / width
    qk_norm: bool = True  # LayerNorm on q and k of each head
    activation: Activation = "gelu"  # "gelu" (exact) | "quick_gelu" (OpenAI's CLIP) | "gelu_tanh"
    norm_eps: float = 1e-6  # epsilon of LayerNorm
    # The next three are those of pretrained towers, see `pretrained` below.
    patch_bias: bool = True  # CLIP: False
    pre_norm: bool = False  # LayerNorm on the tokens before the first layer (CLIP: True)
    # "cls": a CLS token | "map": none, and where model.type is "clip" attention pools (SigLIP)
    pooling: Literal["cls", "map"] = "cls"
    # "normal" (std 0.02) | "sincos" (2-D, amplitude 1); learned either way
    position_init: Literal["normal", "sincos"] = "normal"
    initializer: Literal["torch", "xavier"] = "torch"  # "torch": nn.Linear's uniform, as official


@dataclass
class TextConfig(Settings):
    """Text transformer; one tower for captions and descriptions. Defaults: CLIP's."""

    vocab_size: int = 49408  # number of token ids
    context_length: int = 77  # rows of the position table; batches may be shorter (DataConfig)
    width: int = 512  # of the tokens
    depth: int = 12  # number of layers
    num_heads: int = 8  # of attention
    mlp_ratio: float = 4.0  # hidden size of the MLP / width
    activation: Activation = "quick_gelu"  # as model.vision.activation
    norm_eps: float = 1e-5  # epsilon of LayerNorm
    causal: bool = True  # SigLIP: False
    # "end": at end-of-text, the highest id | "last": at the last of all positions (SigLIP)
    pooling: Literal["end", "last"] = "end"
    projection_bias: bool = False  # SigLIP: True
    token_init_std: float = 0.02  # standard deviation of the token embeddings at the start


@dataclass
class DecoderConfig(Settings):
    """DETR-style decoder: `num_queries` region queries and, last, one image query."""

    width: int = 512  # of the queries
    depth: int = 6  # number of layers
    num_heads: int = 8  # of attention
    mlp_dim: int = 2048  # hidden size of the MLP
    dropout: float = 0.1  # probability, in training only
    num_queries: int = 5  # region queries; the image query comes on top
    share_projection: bool = False  # one matrix for image and region embeddings instead of two


@dataclass
class ModelConfig(Settings):
    """The two towers, the decoder between them, and how they are computed."""

    type: ModelType = "grain"  # "clip": the same towers, CLS token, no decoder
    image_size: int = 224  # pixels a side
    embed_dim: int = 512  # of image, region and text embeddings
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # compute; parameters are always float32
    # of weight gradients as devices add them up: "compute" is `dtype`, float32 twice its bytes
    gradient_dtype: GradientDtype = "compute"
    scan_layers: bool = False  # one compiled layer, not `depth`: fast compile, stacked parameters
    remat: Remat = "none"  # "dots" keeps outputs of matmuls
    # "cudnn" (flash; GPU and bfloat16 only) | "pallas" (a kernel; TPU only) | "auto": cudnn or
    # pallas where it applies, else xla
    attention: Literal["auto", "xla", "cudnn", "pallas"] = "auto"
    description_capacity_factor: float = 1.0  # fraction of a batch's B * M descriptions encoded
    # Texts of a device's images end to end in one stream with room for so many tokens an image, in
    # place of a padded row each; 0 = rows. Same results while they fit; the longest are cut if not
    text_tokens_per_image: float = 0.0
    init_logit_scale: float = 1 / 0.07  # of softmax losses at the start; 1 / temperature
    # Of loss.image_caption="sigmoid" at the start, as SigLIP: the scale of images and captions,
    # and the bias, which only this loss has
    init_sigmoid_scale: float = 10.0
    init_logit_bias: float = -10.0
    # Learned scales are clipped to it, that of the sigmoid loss too, which SigLIP does not clip
    max_logit_scale: float = 100.0
    # "shared" (official) | "own": a learned scale for regions; with loss.image_caption="sigmoid"
    # for both losses on descriptions, and then needed
    region_logit_scale: Literal["shared", "own"] = "shared"


@dataclass
class LossConfig(Settings):
    """Weights, and the differences from the official loss (`official_loss` is that one)."""

    contrastive_weight: float = 1.0  # of images against captions
    # Images against captions by "softmax" (CLIP) | "sigmoid" (SigLIP), which has a learned bias
    image_caption: Literal["softmax", "sigmoid"] = "softmax"
    box_weight: float = 1.5  # of (L1 + 1 - GIoU); official: divided by len(weights)/3, so 3/2
    region_weight: float = 1.0  # of regions against descriptions
    auxiliary_box_weight: float = 0.0  # on earlier decoder layers; official computes, never adds
    image_description_weight: float = 0.0  # image embedding against its own descriptions
    match_l1_cost: float = 5.0  # of the L1 distance, in matching queries to boxes
    match_giou_cost: float = 2.0  # of 1 - GIoU, likewise
    mask_duplicate_captions: bool = True  # equal captions are not negatives; official: they are
    mask_duplicate_descriptions: bool = True  # likewise for descriptions
    # "official": with its two bugs, see losses/official.py
    variant: Literal["corrected", "official"] = "corrected"
    # of the contrastive terms: all at once | in tiles passed round the devices, at whatever number
    # of them the same memory | tiled where the dense ones take more than 1 GiB a device
    logits: Literal["auto", "dense", "tiled"] = "auto"
    # of their matrix products, forward and backward; on a TPU six, three or one in bfloat16
    logits_precision: Literal["highest", "high", "default"] = "highest"


@dataclass
class SyntheticBirdsConfig(Settings):
    """Procedurally drawn birds (no files). An image is a function of (seed, split, index)."""

    difficulty: Difficulty = "easy"  # "hard": flips, backgrounds, several birds, more phrasings
    num_train_images: int = 16_000  # of the training split
    num_eval_images: int = 1_500  # of each evaluation set
    seed: int = 0  # of the birds, not of the run: species, names and images


@dataclass
class DataConfig(Settings):
    """What is read, how an image and its texts become arrays, and by how many workers."""

    # Drawn birds | a folder written by `python -m grain_jax.prepare`, see data_dir
    dataset: Dataset = "synthetic_birds"
    data_dir: str = ""  # the folder of "tfds"; with `mixture` only that of eval_split
    # "DIR=WEIGHT" of several folders to train on in place of data_dir; images are drawn by weight
    mixture: tuple[str, ...] = ()
    # Of "tfds", of each folder of `mixture`; synthetic_birds takes only "train"
    train_split: str = "train"
    allow_no_regions: bool = False  # train GRAIN where no image has a box: image embedding only
    eval_split: str = "validation"  # of "tfds": for retrieval, grounding, keep_best; "" = none
    synthetic_birds: SyntheticBirdsConfig = field(default_factory=SyntheticBirdsConfig)
    resize: Resize = "squash"  # "squash" (official) | "crop": random, centred in evaluation
    crop_min_area: float = 0.5  # of "crop": smallest area, of the largest square; from 0.01
    flip_probability: float = 0.0  # horizontal flip in training, boxes with it
    interpolation: Interpolation = "bicubic"  # of resizing
    # of each colour channel, subtracted from pixels of 0 to 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    # of each colour channel, which then divides them
    std: tuple[float, float, float] = IMAGENET_STD
    tokenizer: str = "clip"  # "clip" | "synthetic_birds" | a transformers name or folder
    caption_length: int = 77  # static token lengths, end-of-text kept
    description_length: int = 32  # likewise, of a region's description
    max_regions: int = 5  # M, best by score
    region_nms_iou: float = 1.0  # drop boxes that overlap a better one more; 1 = off (official)
    unique_descriptions: bool = False  # keep each description once an image
    synthetic_caption_probability: float = 0.5  # of an MLLM caption where there are both kinds
    region_caption_probability: float = 0.0  # of all region descriptions as the caption (a control)
    num_workers: int = 0  # loader processes; 0 = threads of this process
    num_threads: int = 2  # that make batches, in each of these processes
    prefetch_batches: int = 4  # made ahead by all of them, at least one by each thread
    cache: Literal["none", "memory"] = "none"  # keep decoded images; needs num_workers = 0


@dataclass
class OptimConfig(Settings):
    """AdamW with linear warm-up and cosine decay; defaults as the official recipe."""

    learning_rate: float = 1e-3  # at the end of warm-up, the highest
    warmup_epochs: float = 1.0  # of linearly rising learning rate
    warmup_steps: int = 0  # instead of warmup_epochs when > 0
    warmup_start: float = 1e-6  # learning rate of the first step
    final_learning_rate: float = 1e-5  # at the end of the cosine decay
    beta1: float = 0.9  # decay rate of the first moment
    beta2: float = 0.98  # decay rate of the second moment
    eps: float = 1e-8  # epsilon of AdamW
    # of both moments as they are stored; bfloat16 halves the optimizer's memory (docs/scale.md)
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.1  # decoupled, times the learning rate
    # What weight decay acts on: parameters of 2 or more dimensions | the official groups by name
    weight_decay_mask: Literal["matrices", "official"] = "matrices"
    clip_grad_norm: float = 0.0  # 0 = off (official)
    # "PATTERN=MULTIPLIER" of the learning rate of parameters by name, as "vision/*=0.1"; the first
    # pattern that matches counts, and 0 freezes.
    lr_multipliers: tuple[str, ...] = ()
    # How many of a tower's last layers are trained, with all that follows them; the rest of it is
    # frozen: no gradient, no optimizer state. 0 freezes the tower, -1 trains all of it.
    trained_vision_layers: int = -1
    trained_text_layers: int = -1
    grad_cache_chunks: int = 1  # micro-batches of a step (GradCache); negatives: the whole batch
    ema_decay: float = 0.0  # 0 = off; evaluation and export use the average when on
    max_consecutive_nonfinite: int = 20  # steps without an update before the run stops


@dataclass
class MeshConfig(Settings):
    """Sizes of the device mesh; -1 takes what is left."""

    data: int = -1  # data parallelism
    fsdp: int = 1  # data parallelism with sharded parameters and optimizer state
    tensor: int = 1  # tensor parallelism
    cpu_devices: int = 0  # on CPU only: host devices to make; 0 = as many as the axes name
    # "auto": the sizes above; where none is given, fsdp=16 from 16 devices of a slice or node on
    # "dp" | "fsdp" | "fsdp_tp": sizes by name (docs/scale.md)
    preset: Preset = "auto"


@dataclass
class CheckpointConfig(Settings):
    """When the state of a run is saved, and which saves are kept."""

    save_interval_steps: int = 1_000  # the last step is saved in any case
    max_to_keep: int = 2  # newest
    # By evaluation.best_metric; without effect if evaluation.eval_interval_steps = 0
    keep_best: bool = True
    asynchronous: bool = True  # train on while a checkpoint is written


@dataclass
class EvaluationConfig(Settings):
    """What is measured during a run and at its end."""

    eval_interval_steps: int = 0  # 0 = only at the end
    batch_size: int = 256  # images or texts at once
    max_images: int = 1_000  # of each held-out set, during training; the end uses all
    # weights of the whole image against regions, each with figures of its own
    alphas: tuple[float, ...] = (1.0, 0.5, 0.25, 0.0)
    # Score of a class by its descriptions. "max_over_queries": mean over descriptions of the best
    # query's cosine | "max_over_descriptions" (official): over queries, of the best description's
    region_aggregation: RegionAggregation = "max_over_queries"
    # Over templates. "embedding": mean embedding of unit length | "score" (official): mean cosine.
    # Of some methods; `docs/zero-shot.md` lists them
    prompt_ensembling: PromptEnsembling = "embedding"
    # How often what is random is drawn, of methods that have such: texts of WaffleCLIP (7 in the
    # paper), wrong descriptions, crops of WCA (20). Figures are means over draws, with the spread
    text_draws: int = 1
    zero_shot: tuple[str, ...] = ()  # folders of labelled images to classify, at the end
    # Folders to classify every `eval_interval_steps` too: test sets seen while the model is made
    zero_shot_during_training: tuple[str, ...] = ()
    # For checkpoint.keep_best, so it needs eval_interval_steps; "" = the data set's own
    # choice. Not a test set, unless zero_shot_during_training names it
    best_metric: str = ""
    num_visualized: int = 12  # images in grounding.png and its further pages


@dataclass
class LoggingConfig(Settings):
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    log_interval_steps: int = 50  # steps from one line of metrics to the next
    tensorboard: bool = True  # write event files for TensorBoard
    wandb: bool = False  # needs the package wandb
    wandb_project: str = "grain_jax"  # where the run is listed
    compilation_cache: str = "auto"  # a folder | "auto" (user cache) | "off"
    plan: str = ""  # a file of `plan --json`: its forecast is printed beside what is measured
    profile_step: int = -1  # write a profiler trace of 5 steps from here; -1 = none
    # Seconds without progress after which a run is reported with the stacks of all threads; four
    # times as many where it starts, compiles, evaluates or saves. It has to be more than one step
    # takes; 0 = off
    hang_timeout_seconds: float = 1200.0
    # "exit" then ends the process with status 75, on which launchers start it again | "report" goes
    # on | "auto": "exit" with several processes, as all their devices stand still
    hang_action: Literal["auto", "report", "exit"] = "auto"


@dataclass
class TrainConfig(Settings):
    """A whole run."""

    name: str = "grain"  # of the run; its folder is runs/<name> without --workdir
    seed: int = 0  # of initial weights, order of the data and augmentation
    batch_size: int = 2048  # global: of all devices together
    epochs: float = 35.0  # passes over the training data
    steps: int = 0  # instead of epochs when > 0
    # Stop after so many steps of this process, with the schedule of the whole run; 0 = off
    max_steps_this_run: int = 0
    # Trained weights to start from (see `grain_jax.loading.load`); what model.vision, model.text
    # and the data's tokenizer and normalisation leave at their defaults comes with them. "" = none
    pretrained: str = ""

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


def official_loss() -> LossConfig:
    """The official code's effective loss on one device, its bugs included."""
    return LossConfig(
        mask_duplicate_captions=False, mask_duplicate_descriptions=False, variant="official"
    )
