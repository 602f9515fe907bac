"""What the settings of texts must satisfy: of the text tower, and of what the data make for it."""

from collections.abc import Iterator

from grain_jax.config.schema import ModelConfig, TrainConfig
from grain_jax.config.unread_settings import reads_no_descriptions

SHORTEST_TEXT = 3  # tokens: start, one, end


def text_tower_problems(model: ModelConfig) -> Iterator[str]:
    """Everything wrong with `model.text` and how its texts are laid out."""
    text, room = model.text, model.text_tokens_per_image
    if not text.causal and text.pooling == "end":
        yield (
            'model.text.pooling = "end" needs a causal tower, to which the padding after a text is '
            'nothing; set model.text.causal=True, or pooling="last" and a tokenizer that pads.'
        )
    elif room and not (text.causal and text.pooling == "end"):
        yield (
            f"model.text_tokens_per_image = {room:g} lays texts end to end, for a causal tower "
            f"pooled at end-of-text; given model.text.causal = {text.causal} and pooling = "
            f"{text.pooling!r}, a tower that looks at padding. Set it to 0."
        )
    if room and model.description_capacity_factor != 1:
        yield (
            f"model.description_capacity_factor = {model.description_capacity_factor:g} leaves out "
            f"padded descriptions, and model.text_tokens_per_image = {room:g} has none; set the "
            "first to 1 or the second to 0."
        )


def text_room(config: TrainConfig) -> tuple[int, int]:
    """The fewest and the most tokens that the texts of an image can have.

    `model.text_tokens_per_image` lies between.
    """
    data = config.data
    regions = 0 if reads_no_descriptions(config) else data.max_regions
    return SHORTEST_TEXT * (1 + regions), data.caption_length + regions * data.description_length


def text_and_region_problems(config: TrainConfig) -> Iterator[str]:
    """What the data makes and the model cannot take."""
    model, data = config.model, config.data
    for name in ("caption_length", "description_length"):
        if getattr(data, name) > model.text.context_length:
            yield (
                f"data.{name} = {getattr(data, name)} exceeds the text tower's positions, "
                f"model.text.context_length = {model.text.context_length}; lower the first or "
                "raise the second."
            )
        elif model.text.pooling == "last" and getattr(data, name) != model.text.context_length:
            yield (
                f'model.text.pooling = "last" reads the last of {model.text.context_length} '
                f"positions, so every text fills them; set data.{name} = "
                f"{model.text.context_length} (given {getattr(data, name)})."
            )
    regions = 0 if reads_no_descriptions(config) else data.max_regions
    least, most = text_room(config)
    if model.text_tokens_per_image and not least <= model.text_tokens_per_image <= most:
        yield (
            f"model.text_tokens_per_image = {model.text_tokens_per_image:g}: a caption and up to "
            f"{regions} descriptions have {least} to {most} tokens with these data.*_length; choose"
            " a number between, or 0 for a padded row each."
        )
    if model.type == "grain" and model.decoder.num_queries < data.max_regions:
        yield (
            f"model.decoder.num_queries = {model.decoder.num_queries} is less than "
            f"data.max_regions = {data.max_regions}: every region needs a query of its own. Raise "
            "the first or lower the second."
        )
