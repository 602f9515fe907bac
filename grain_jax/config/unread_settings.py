"""Settings that were changed and that nothing reads, because of other settings.

Refused where a user would believe that something else was trained or measured. Noted where it is
plain that nothing was meant by them: a recipe for GRAIN that is trained as CLIP keeps the sizes of
its decoder. A setting at its default is neither. `validation` has those whose value is wrong too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grain_jax.config.schema import TrainConfig


@dataclass(frozen=True)
class Unread:
    """Settings that nothing reads where `when` holds."""

    settings: Sequence[str]  # by path; "model.decoder.*" is a section
    when: Callable[[TrainConfig], bool]
    reason: str  # after "has no effect: "
    change: str = "leave it out"
    harmless: Sequence[object] = ()  # values that ask for nothing, besides the default
    refused: bool = True


def _clip(config: TrainConfig) -> bool:
    return config.model.type == "clip"


def reads_no_descriptions(config: TrainConfig) -> bool:
    """Whether no loss reads descriptions, so that the text tower encodes none."""
    regions_learn = config.model.type == "grain" and config.loss.region_weight > 0
    return not regions_learn and not config.loss.image_description_weight


CLIP_REASON = 'model.type = "clip" has no regions'
LOSSLESS_REASON = (
    'no loss reads descriptions (loss.image_description_weight and, with model.type="grain", '
    "loss.region_weight do)"
)
BIRDS_REASON = 'data.dataset = "synthetic_birds" reads no files'
REPLACED_REASON = "the weights of `pretrained` take the place of new ones"

UNREAD = (
    # model and loss
    Unread(
        ("model.gradient_dtype",),
        lambda config: config.model.dtype == "float32",
        'model.dtype = "float32" has them in float32',
        refused=False,
    ),
    Unread(("model.decoder.*",), _clip, CLIP_REASON, refused=False),
    Unread(
        ("loss.box_weight", "loss.region_weight", "loss.match_l1_cost", "loss.match_giou_cost"),
        _clip,
        CLIP_REASON,
        'leave it out, or set model.type="grain"',
        harmless=(0.0,),
    ),
    Unread(("loss.mask_duplicate_descriptions",), reads_no_descriptions, LOSSLESS_REASON),
    Unread(
        ("loss.variant",),
        lambda config: _clip(config) and reads_no_descriptions(config),
        "both variants are the same without regions and their descriptions",
    ),
    Unread(
        ("model.vision.position_init", "model.vision.initializer", "model.text.token_init_std"),
        lambda config: bool(config.pretrained),
        REPLACED_REASON,
        refused=False,
    ),
    Unread(
        ("model.init_logit_scale",),
        # A scale of regions that the weights may lack starts from it.
        lambda config: bool(config.pretrained) and config.model.region_logit_scale != "own",
        f"{REPLACED_REASON}, unless a sigmoid learned their scale",
        refused=False,
    ),
    Unread(
        ("model.init_sigmoid_scale", "model.init_logit_bias"),
        lambda config: config.loss.image_caption != "sigmoid",
        'loss.image_caption = "softmax" starts from model.init_logit_scale and has no bias',
        'leave it out, or set loss.image_caption="sigmoid"',
    ),
    Unread(
        ("model.init_logit_scale",),
        lambda config: (
            config.loss.image_caption == "sigmoid"
            and config.model.region_logit_scale != "own"
            and not config.pretrained
        ),
        'loss.image_caption = "sigmoid" starts from model.init_sigmoid_scale',
        refused=False,
    ),
    # data
    Unread(
        ("data.max_regions", "data.region_nms_iou", "data.unique_descriptions"),
        lambda config: _clip(config) and reads_no_descriptions(config),
        'model.type = "clip" without loss.image_description_weight takes no regions',
        refused=False,
    ),
    Unread(
        ("data.description_length",),
        lambda config: _clip(config) and reads_no_descriptions(config),
        'model.type = "clip" without loss.image_description_weight reads no descriptions',
        refused=False,
    ),
    Unread(
        ("data.data_dir", "data.mixture"),
        lambda config: config.data.dataset == "synthetic_birds",
        BIRDS_REASON,
        'leave it out, or set data.dataset="tfds" (and data.tokenizer="clip")',
    ),
    Unread(
        ("data.data_dir",),
        lambda config: bool(config.data.mixture) and _nothing_held_out(config),
        "data.mixture is trained on instead, and data.eval_split names nothing to evaluate on",
        "leave it out, or name a split of it in data.eval_split",
    ),
    Unread(
        ("data.eval_split",),
        lambda config: config.data.dataset == "synthetic_birds",
        "the drawn birds have splits of their own",
        'leave it out, or set data.dataset="tfds"',
    ),
    Unread(
        ("data.synthetic_birds.*",),
        lambda config: config.data.dataset == "tfds",
        'data.dataset = "tfds" draws no images',
        'leave it out, or set data.dataset="synthetic_birds"; data.train_split="train[:1000]" takes'
        " the first 1,000",
    ),
    # optimizer and schedule
    Unread(
        ("epochs",),
        lambda config: config.steps > 0,
        "`steps` is given, which is instead of epochs",
        "set steps=0 to train for epochs, or epochs=0",
        harmless=(0.0,),
    ),
    Unread(
        ("optim.warmup_epochs",),
        lambda config: config.optim.warmup_steps > 0,
        "optim.warmup_steps is given, which is instead of it",
        "set optim.warmup_steps=0 to warm up for epochs, or optim.warmup_epochs=0",
        harmless=(0.0,),
    ),
    Unread(
        ("optim.warmup_start",),
        lambda config: not config.optim.warmup_steps and not config.optim.warmup_epochs,
        "there is no warm-up (optim.warmup_steps and optim.warmup_epochs are 0)",
    ),
    Unread(
        ("optim.weight_decay_mask",),
        lambda config: config.optim.weight_decay == 0,
        "optim.weight_decay = 0 decays nothing",
        refused=False,
    ),
    # evaluation and logging
    Unread(
        ("evaluation.max_images",),
        lambda config: config.evaluation.eval_interval_steps == 0,
        "evaluation.eval_interval_steps = 0 evaluates only at the end, which takes all images",
        refused=False,
    ),
    Unread(
        ("evaluation.num_visualized",),
        lambda config: _clip(config) or _nothing_held_out(config),
        "it shows the regions of held-out images, and there are none",
        harmless=(0,),
        refused=False,
    ),
    Unread(
        ("logging.hang_action",),
        lambda config: config.logging.hang_timeout_seconds == 0,
        "logging.hang_timeout_seconds = 0 watches nothing",
    ),
    Unread(
        ("logging.wandb_project",),
        lambda config: not config.logging.wandb,
        "logging.wandb is off",
        "leave it out, or set logging.wandb=true",
    ),
)


def _nothing_held_out(config: TrainConfig) -> bool:
    return config.data.dataset == "tfds" and not config.data.eval_split
