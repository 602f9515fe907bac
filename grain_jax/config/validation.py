"""What a configuration must satisfy before anything is opened or compiled."""

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Any

from grain_jax.config.bounds import bounds_problems, leaves
from grain_jax.config.logit_scales import idle_scale_problems, sigmoid_problems
from grain_jax.config.mixture import folder_location, mixture_problems, parse_mixture
from grain_jax.config.schema import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from grain_jax.config.text_validation import text_and_region_problems, text_tower_problems
from grain_jax.config.unread_settings import UNREAD, Unread


def validate(config: TrainConfig, *, complete: bool = True, new_run: bool = True) -> None:
    """Raises one ValueError that names all that is wrong with `config`, and what to change.

    Without `complete` each setting is checked by itself: others have still to come, with weights.
    Without `new_run` settings that nothing reads are let pass, as models are stored with such.
    What depends on the data, the tokenizer or the devices is checked where those are opened.
    """
    if found := problems(config, complete=complete, new_run=new_run):
        raise ValueError("\n".join(found))


def validate_model(model: ModelConfig) -> None:
    """Raises one ValueError that names all that keeps a model from being built.

    An image size between patches does not: such models of others are evaluated as they are, and
    only training is refused.
    """
    if found := bounds_problems(leaves(model, "model.")) or [*_model_problems(model)]:
        raise ValueError("\n".join(found))


def problems(config: TrainConfig, *, complete: bool = True, new_run: bool = True) -> list[str]:
    """Everything wrong with `config` by itself: given, expected, what to change.

    Without `complete` how settings go together is left for later. Without `new_run` settings that
    nothing reads are let pass: models are stored with such.
    """
    found = bounds_problems(leaves(config))
    if not complete:
        return found
    return found or [
        *_patch_problems(config.model),
        *_model_problems(config.model),
        *_data_problems(config.data),
        *text_and_region_problems(config),
        *_run_problems(config),
        *sigmoid_problems(config),
        *(_idle_problems(config) if new_run else ()),
        *(_unread_problems(config) if new_run else ()),
        *_best_problems(config),
        *_evaluation_problems(config),
    ]


def loader_problems(data: DataConfig) -> list[str]:
    """Everything wrong with `data` for a loader of records that are already open."""
    return bounds_problems(leaves(data, "data.")) or [
        *_loader_problems(data),
        *_transform_problems(data),
    ]


def _data_problems(data: DataConfig) -> Iterator[str]:
    yield from _loader_problems(data)
    yield from _transform_problems(data)
    yield from _split_problems(data)


def _patch_problems(model: ModelConfig) -> Iterator[str]:
    patch = model.vision.patch_size
    if patch <= model.image_size and model.image_size % patch:
        near = [patch * (model.image_size // patch + more) for more in (0, 1)]
        yield (
            f"model.image_size = {model.image_size} is not a multiple of model.vision.patch_size = "
            f"{patch}; set it to {near[0]} or {near[1]}."
        )


def _model_problems(model: ModelConfig) -> Iterator[str]:
    if model.vision.patch_size > model.image_size:
        yield (
            f"model.vision.patch_size = {model.vision.patch_size} exceeds model.image_size = "
            f"{model.image_size}; lower the first."
        )
    towers: list[tuple[str, Any]] = [("vision", model.vision), ("text", model.text)]
    if model.type == "grain":
        towers.append(("decoder", model.decoder))
    for name, tower in towers:
        if tower.width % tower.num_heads:
            yield (
                f"model.{name}.width = {tower.width} cannot be split over "
                f"model.{name}.num_heads = {tower.num_heads}; choose a divisor."
            )
    if model.vision.position_init == "sincos" and model.vision.width % 4:
        yield (
            'model.vision.position_init = "sincos" needs a width that is a multiple of 4; '
            f"model.vision.width = {model.vision.width}."
        )
    if model.attention == "cudnn" and model.dtype == "float32":
        yield (
            'model.attention = "cudnn" computes in half precision and model.dtype = "float32"; set '
            'model.dtype="bfloat16" or model.attention="auto".'
        )
    if model.attention == "pallas":
        for name, tower in towers[:2]:
            if 128 % (tower.width // tower.num_heads or 128):
                yield (
                    f'model.attention = "pallas" needs heads whose size divides 128; '
                    f"model.{name}.width / num_heads = {tower.width / tower.num_heads:g}. Set "
                    'model.attention="auto".'
                )
    yield from text_tower_problems(model)
    if model.init_logit_scale > model.max_logit_scale:
        yield (
            f"model.init_logit_scale = {model.init_logit_scale:g} exceeds model.max_logit_scale = "
            f"{model.max_logit_scale:g}; lower the first."
        )


def _run_problems(config: TrainConfig) -> Iterator[str]:
    if config.steps == 0 and config.epochs == 0:
        yield "epochs and steps are both 0: nothing to train. Set one of them."
    grain = config.model.type == "grain"
    if grain and config.loss.auxiliary_box_weight and config.model.decoder.depth == 1:
        yield (
            f"loss.auxiliary_box_weight = {config.loss.auxiliary_box_weight:g} weighs the boxes of "
            "earlier decoder layers, and model.decoder.depth = 1 has none; raise the depth or "
            "set the weight to 0."
        )
    if config.batch_size % config.optim.grad_cache_chunks:
        yield (
            f"batch_size = {config.batch_size} cannot be split into optim.grad_cache_chunks = "
            f"{config.optim.grad_cache_chunks} micro-batches; choose a divisor."
        )
    alphas = config.evaluation.alphas
    if not alphas or min(alphas) < 0 or max(alphas) > 1:
        yield (
            f"evaluation.alphas = {alphas}: weights of the global score against the region "
            "score, one or more, each from 0 to 1."
        )
    for name in ("beta1", "beta2", "ema_decay"):
        if getattr(config.optim, name) == 1:
            yield f"optim.{name} = 1 would never move; choose less than 1."
    axes = dataclasses.asdict(config.mesh)
    axes.pop("cpu_devices")
    preset = axes.pop("preset")
    if preset != "auto" and tuple(axes.values()) != (-1, 1, 1):
        yield (
            f"mesh: given preset = {preset!r} and {axes}; a preset chooses the sizes: give one of "
            "them."
        )
    if 0 in axes.values() or list(axes.values()).count(-1) > 1:
        yield f"mesh: given {axes}; sizes are 1 or more, and at most one may be -1 (what is left)."


def _unread_problems(config: TrainConfig) -> Iterator[str]:
    for rule, changed in _unread(config):
        if rule.refused:
            for path, value in changed.items():
                yield f"{path} = {value!r} has no effect: {rule.reason}; {rule.change}."


def unread_notes(config: TrainConfig) -> list[str]:
    """For the screen: settings that were changed, do nothing and are not refused, by reason."""
    return [
        f"without effect, as {rule.reason}: "
        + ", ".join(f"{path} = {value!r}" for path, value in changed.items())
        for rule, changed in _unread(config)
        if not rule.refused
    ]


def memory_notes(config: TrainConfig) -> list[str]:
    """For the screen: settings that take much memory together on a TPU."""
    if not config.model.scan_layers or config.model.remat != "none":
        return []
    return [
        "model.scan_layers = true with model.remat = 'none' stacks what every layer keeps for the "
        "backward pass, which takes far more memory on a TPU than layers unrolled (of ViT-B/16 "
        "at 128 images a v5e chip 48.5 GiB of its 15.75); add --model.remat=full"
    ]


def _unread(config: TrainConfig) -> Iterator[tuple[Unread, dict[str, object]]]:
    """The rules that hold, each with those of its settings that differ from their defaults."""
    given, default = leaves(config), leaves(TrainConfig())
    for rule in UNREAD:
        if rule.when(config):
            changed = {
                path: value
                for pattern in rule.settings
                for path in fnmatch.filter(given, pattern)
                if (value := given[path][0]) not in (default[path][0], *rule.harmless)
            }
            if changed:
                yield rule, changed


def _idle_problems(config: TrainConfig) -> Iterator[str]:
    """Settings that were changed and that nothing would read."""
    descriptions = config.model.type == "grain" and config.loss.region_weight > 0
    if config.model.type == "clip" and config.loss.auxiliary_box_weight:
        yield (
            f"loss.auxiliary_box_weight = {config.loss.auxiliary_box_weight:g} weighs boxes of the "
            'region decoder, and model.type = "clip" has none; set it to 0 or model.type="grain".'
        )
    yield from idle_scale_problems(config)
    capacity = config.model.description_capacity_factor
    if capacity != 1 and not descriptions and not config.loss.image_description_weight:
        yield (
            f"model.description_capacity_factor = {capacity:g} limits the descriptions that are "
            "encoded, and no loss reads any; set it to 1, or give loss.image_description_weight "
            '(or, with model.type="grain", loss.region_weight) a value.'
        )


def _loader_problems(data: DataConfig) -> Iterator[str]:
    if data.cache == "memory" and data.num_workers:
        yield (
            'data.cache = "memory" is the memory of one process: with it, set data.num_workers=0 '
            '(threads fill the cache), or set data.cache="none".'
        )


def _transform_problems(data: DataConfig) -> Iterator[str]:
    if data.resize == "squash" and data.crop_min_area != DataConfig.crop_min_area:
        yield (
            f"data.crop_min_area = {data.crop_min_area:g} is the size of random crops, and "
            'data.resize = "squash" makes none; set data.resize="crop" or leave it out.'
        )


def _split_problems(data: DataConfig) -> Iterator[str]:
    if data.tokenizer == "synthetic_birds" and data.dataset != "synthetic_birds":
        yield (
            'data.tokenizer = "synthetic_birds" knows only the words of that data set; with '
            f'data.dataset = "{data.dataset}" use "clip" or a transformers tokenizer.'
        )
    if data.dataset == "synthetic_birds" and data.train_split != "train":
        yield (
            f"data.train_split = {data.train_split!r}: the other splits of the drawn birds are "
            'held out for evaluation; set data.train_split="train".'
        )
    mistaken = mixture_problems(data.mixture)
    yield from mistaken
    if data.dataset == "tfds" and not data.data_dir and not data.mixture:
        yield (
            'data.dataset = "tfds" needs data.data_dir, the folder that '
            "`python -m grain_jax.prepare` wrote: add --data.data_dir=DIR."
        )
    if data.dataset == "tfds" and not data.data_dir and data.mixture and data.eval_split:
        yield (
            f"data.eval_split = {data.eval_split!r} is a split of data.data_dir, and none is given "
            "beside data.mixture: add --data.data_dir=DIR (one of the mixture, or another), or "
            'hold nothing out: --data.eval_split="".'
        )
    if not mistaken and _held_out_is_trained_on(data):
        yield (
            f"data.eval_split = {data.eval_split!r} holds images of data.train_split = "
            f"{data.train_split!r}, so nothing would be held out; name another split, or none: "
            '--data.eval_split="".'
        )


def _held_out_is_trained_on(data: DataConfig) -> bool:
    """Whether images of `eval_split` surely are among those of `train_split`."""
    if data.dataset != "tfds" or not data.eval_split:
        return False
    trained = {each.location for each in parse_mixture(data.mixture)}
    if trained and folder_location(data.data_dir) not in trained:
        return False
    return _overlap(data.train_split, data.eval_split)


def _overlap(first: str, second: str) -> bool:
    """Whether two TFDS splits surely share records: equal parts, or a whole split and a slice."""
    pairs = [(a.strip(), b.strip()) for a in first.split("+") for b in second.split("+")]
    return any(a == b or a == b.split("[")[0] or b == a.split("[")[0] for a, b in pairs)


def _best_problems(config: TrainConfig) -> Iterator[str]:
    name = config.evaluation.best_metric
    if not name:
        return
    if not config.checkpoint.keep_best:
        yield (
            f"evaluation.best_metric = {name!r} decides what checkpoint.keep_best keeps, and that "
            "is off; turn it on or leave the metric out."
        )
    if not config.evaluation.eval_interval_steps:
        yield (
            f"evaluation.best_metric = {name!r} is measured during training, and "
            "evaluation.eval_interval_steps = 0 measures only at the end; set it to the steps "
            "between evaluations."
        )
    if config.data.dataset == "synthetic_birds" and name.startswith(("unseen/", "seen/")):
        yield (
            f"evaluation.best_metric = {name!r} is measured on a test set; choose a metric of the "
            "validation split."
        )


def _evaluation_problems(config: TrainConfig) -> Iterator[str]:
    settings, default = config.evaluation, EvaluationConfig()
    if settings.zero_shot_during_training and not settings.eval_interval_steps:
        yield (
            "evaluation.zero_shot_during_training = "
            f"{settings.zero_shot_during_training} is measured every "
            "evaluation.eval_interval_steps, and that is 0: set it to the steps between evaluations"
            ", or name the folders in evaluation.zero_shot, which is measured at the end."
        )
    for name in ("alphas", "region_aggregation") if config.model.type == "clip" else ():
        if getattr(settings, name) != getattr(default, name):
            yield (
                f"evaluation.{name} = {getattr(settings, name)!r} is about regions, and "
                'model.type = "clip" has none; leave it out.'
            )
