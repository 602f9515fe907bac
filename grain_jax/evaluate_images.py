"""Zero-shot classification of the labelled images that `--data` names."""

from collections.abc import Callable, Sequence
from typing import Any

from grain_jax.config import TrainConfig
from grain_jax.data.classification.class_names import BINDINGS
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.image_variants import with_crops
from grain_jax.evaluate_options import OF_DESCRIPTIONS, Options, check_templates, refuse
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.given_images import read_given_images
from grain_jax.evaluation.left_out import check_any_left, note_left_out
from grain_jax.evaluation.suite import score_zero_shot
from grain_jax.evaluation.unknown_words import unknown_words_note
from grain_jax.evaluation.variants import predicted_boxes
from grain_jax.inference.encoder import Encoder
from grain_jax.results import Result
from grain_jax.zero_shot.methods import DEFAULT_METHODS


def evaluate_images(
    options: Options,
    encoder: Encoder,
    config: TrainConfig,
    templates: Sequence[str],
    note: Callable[[str], None],
    details: ResultDetails,
) -> list[Result]:
    """Every method of the options that these images, texts and model have; others are noted.

    Raises ValueError for images and texts that cannot be read or do not go together, and for
    options that change nothing.
    """
    assert options.data is not None
    naming: dict[str, Any] = {
        "keep_names": options.keep_names,
        "classes_by": options.classes_by or BINDINGS[0],
        "allow_equal_names": options.allow_equal_names,
    }
    dataset = load_zero_shot(
        options.data,
        classes=options.classes or "",
        templates=options.templates or "",
        descriptions=options.descriptions or "",
        counts=options.counts or "",
        further=options.texts,
        description_template=options.description_template or "{}",
        default_templates=templates,
        **naming,
        split=options.split,
        image_column=options.image_column,
        label_column=options.label_column,
        note=note,
    )
    if not any(dataset.descriptions.values()):
        refuse(options, OF_DESCRIPTIONS, "descriptions, which these images lack (--descriptions)")
    if unknown := unknown_words_note(encoder.tokenizer, dataset):
        note(unknown)
    has_regions = config.model.type == "grain" and encoder.learned.regions
    check_templates(options, dataset, has_regions=has_regions)
    given = read_given_images(
        dataset,
        config.data,
        image_size=encoder.preprocessing.image_size,
        **options.given.given,
        classes=options.classes or "",
        naming=naming,
        note=note,
    )
    details.given |= given.described
    kinds = with_crops(options.of_crops.numbers)
    note_left_out(
        options.methods or (),
        dataset,
        has_regions=has_regions,
        num_boxes=predicted_boxes(config, encoder.learned),
        note=note,
        given=given.fulfilled,
        left_out=details.left_out,
        kinds=kinds,
        draws=config.evaluation.text_draws,
    )
    check_any_left(options.methods or (), details.left_out)
    return score_zero_shot(
        encoder,
        dataset,
        config,
        final=True,
        details=details,
        methods=options.methods or DEFAULT_METHODS,
        kinds=kinds,
        note=note,
        **given.encode(encoder),
    )
