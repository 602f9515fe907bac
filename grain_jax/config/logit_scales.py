"""Which losses may share a learned logit scale. Part of `validation`."""

from collections.abc import Iterator

from grain_jax.config.schema import TrainConfig


def sigmoid_problems(config: TrainConfig) -> Iterator[str]:
    """What `loss.image_caption = "sigmoid"` cannot be trained with.

    Its scale is learned with a bias and starts and ends elsewhere than a softmax's, so that losses
    on descriptions, which remain softmax, need their own.
    """
    model = config.model
    if config.loss.image_caption != "sigmoid":
        return
    if model.init_sigmoid_scale > model.max_logit_scale:
        yield (
            f"model.init_sigmoid_scale = {model.init_sigmoid_scale:g} exceeds "
            f"model.max_logit_scale = {model.max_logit_scale:g}; lower the first."
        )
    contrasted = _regions_are(config) or config.loss.image_description_weight > 0
    if model.region_logit_scale == "shared" and contrasted:
        yield (
            'loss.image_caption = "sigmoid" learns the scale of images and captions with a bias; '
            "descriptions are contrasted by softmax, which needs a scale of its own: set "
            'model.region_logit_scale="own".'
        )


def idle_scale_problems(config: TrainConfig) -> Iterator[str]:
    """A scale of regions that no loss would learn."""
    clip, loss = config.model.type == "clip", config.loss
    learned = _regions_are(config) or (
        loss.image_caption == "sigmoid" and loss.image_description_weight > 0
    )
    if config.model.region_logit_scale == "own" and not learned:
        reason = 'model.type = "clip"' if clip else "loss.region_weight = 0"
        yield (
            'model.region_logit_scale = "own" is learned by the region loss, and with '
            f'{reason} there is none; set model.region_logit_scale="shared".'
        )


def _regions_are(config: TrainConfig) -> bool:
    return config.model.type == "grain" and config.loss.region_weight > 0
